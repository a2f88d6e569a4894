"""What is found while a MONAI bundle is read: what was understood, and what stands in the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .bundle_words import Expression

LARGEST = 1e300  # of numbers; NaN is not below it


@dataclass(frozen=True)
class Findings:
    """Short lines, gathered as they are found.

    Args:
        obstacles: what stands in the way of an import.
        ignored: what matters to nothing of ours.
        differs: what is done otherwise here.
    """

    obstacles: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    differs: list[str] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Step:
    """A component of a config: a class of MONAI's and its arguments.

    Args:
        where: it stands, for messages.
        name: of the class, without its module.
        values: its arguments.
        findings: where what cannot be read is noted.
    """

    where: str
    name: str
    values: Mapping[str, Any]
    findings: Findings

    def get(self, key: str, default: Any = None) -> Any:
        """An argument; where it is a program or None, the default, and the former is noted."""
        value = self.values.get(key)
        if isinstance(value, Expression):
            self.stop(f"{key} is the expression {value}, and expressions are not evaluated")
        return default if value is None or isinstance(value, Expression) else value

    def numbers(self, key: str, default: Any = None) -> list[float] | None:
        """An argument that is a number or a list of them; anything else is noted, and None."""
        value = self.get(key, default)
        found = value if isinstance(value, list) else [value]
        if found and all(type(one) in (int, float) and abs(one) < LARGEST for one in found):
            return [float(one) for one in found]
        if not isinstance(self.values.get(key), Expression):
            self.stop(f"{key} is {value!r:.60}, expected numbers")
        return None

    def number(self, key: str, default: float | None = None) -> float | None:
        """An argument that is one number; anything else is noted, and None."""
        found = self.numbers(key, default)
        if found is not None and len(found) != 1:
            self.stop(f"{key} is {found!r:.60}, expected one number")
            return None
        return None if found is None else found[0]

    def keep(self, **usual: Any) -> None:
        """Note arguments that are there and are not what they usually are."""
        for key, value in usual.items():
            found = self.get(key, value)
            if found != value:
                self.stop(f"{key} is {found!r:.60}, and only {value!r} is done here")

    def stop(self, why: str) -> None:
        """Note that this stands in the way."""
        line = f"{self.where}, {self.name}: {why}"
        if line not in self.findings.obstacles:
            self.findings.obstacles.append(line)

    def differ(self, how: str) -> None:
        """Note that something is done otherwise here."""
        if how not in self.findings.differs:
            self.findings.differs.append(how)


def read_step(where: str, value: Any, findings: Findings) -> Step | None:
    """A component; None, and a note, where it is none of MONAI's."""
    if isinstance(value, Expression):
        findings.obstacles.append(f"{where} is the expression {value}, and expressions are not evaluated")
        return None
    target = value.get("_target_") if isinstance(value, Mapping) else None
    if not isinstance(target, str):
        findings.obstacles.append(f"{where}: found {value!r:.60}, expected a component with a _target_")
        return None
    name = target.rpartition(".")[2]
    if "." in target and not target.startswith("monai."):
        findings.obstacles.append(
            f"{where}: {target} is code of the bundle's own or of another library, which is not run"
        )
        return None
    values = {key: item for key, item in value.items() if not key.startswith("_")}
    step = Step(where, name, values, findings)
    if value.get("_mode_", "default") != "default":
        step.stop(f"_mode_ is {value['_mode_']!r}")
    return step


def read_steps(where: str, value: Any, findings: Findings) -> list[Step]:
    """The components of a Compose or of a list, without those that are turned off."""
    if isinstance(value, Mapping) and str(value.get("_target_", "")).rpartition(".")[2] == "Compose":
        value = value.get("transforms", [])
    listed = value if isinstance(value, list) else [value]
    found = []
    for number, one in enumerate(listed):
        off = one.get("_disabled_", False) if isinstance(one, Mapping) else False
        if isinstance(off, Expression):
            findings.obstacles.append(f"{where} {number}: _disabled_ is {off}, and expressions are not evaluated")
        elif off not in (True, "true", "True"):
            found.append(read_step(f"{where} {number}", one, findings))
    return [step for step in found if step is not None]
