"""The plan as a record and as a file.

A plan is a YAML file that a person may edit and give back. Every choice stands below a comment with its reason; the
comments are read back into `Plan.reasons`, so that a model folder can still say why.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, SerializerFunctionWrapHandler, ValidationError, model_serializer, model_validator

from ...errors import UsageError
from ...transforms.geometry import ALL_AXIS_CODES
from ...transforms.writers import write_text
from .plan_parts import REGION_LOSSES, Label, Network, Normalisation, Optimizer, Record, Region, Resampling


class Plan(Record):
    """What will be done with a data set.

    Args:
        labels: classes; the channels of the network's output, where there are no regions.
        regions: what these channels are instead, each above 0 where its region is; plain classes where there are none.
        spacing_mm: grid that the network works on; None, for all axes or for one, keeps each image's own.
        resampling: how images come to that grid, and scores back.
        orientation: axis codes of the network's grid; None keeps the image's own (pictures).
        patch: three numbers; a slice model has 1 along the slice axis.
        slices: that a slice model sees at a time, an odd number: 3 for a slice and its two neighbours (2.5D).
        mirror_axes: spatial axes (0, 1, 2 of `orientation`) that augmentation and test-time mirroring may flip.
        oversample_foreground: share of the patches that are centred on a foreground voxel.
        augmentation: strengths, by the names that transforms/augment.py documents; 0 turns one off.
        loss: what is made small, a key of `networks.losses.LOSSES`.
        average_weights: decay of the running average of the weights, 0 for none.
        blending: weights of a window where windows overlap: more in its centre (gaussian_voxel: half a voxel beside it
            where a side is even, as nnU-Net has it), or the same everywhere.
        windows: spread evenly, or at whole steps of what is not shared, the last one at the end of the image.
        reasons: field -> one sentence.
    """

    version: Literal[1] = 1
    dataset: str
    dims: Literal[2, 3]
    channels: list[str] = Field(min_length=1)
    modality: str
    labels: list[Label] = Field(min_length=2)
    regions: list[Region] = Field(default_factory=list)
    spacing_mm: list[float | None] | None = Field(default=None, min_length=3, max_length=3)
    resampling: Resampling = Field(default_factory=Resampling)
    orientation: str | None = "RAS"
    crop: Literal["none", "nonzero"] = "none"
    bias_field: bool = False
    normalisation: list[Normalisation]
    patch: list[int] = Field(min_length=3, max_length=3)
    slices: int = Field(default=1, ge=1)
    batch: int = Field(ge=1)
    network: Network
    mirror_axes: list[int] = Field(default_factory=list)
    oversample_foreground: float = Field(default=0.33, ge=0, le=1)
    augmentation: dict[str, float] = Field(default_factory=dict)
    optimizer: Optimizer = Field(default_factory=Optimizer)
    loss: Literal["dice_ce", "dice", "cross_entropy", "bce", "dice_bce", "sen_spe"] = "dice_ce"
    steps_per_epoch: int = Field(default=250, ge=1)
    validation_cases: int = Field(default=8, ge=0)
    average_weights: float = Field(default=0.0, ge=0, lt=1)
    overlap: float = Field(default=0.5, ge=0, lt=1)
    blending: Literal["gaussian", "gaussian_voxel", "constant"] = "gaussian"
    windows: Literal["even", "stepped"] = "even"
    tta: bool = True
    seed: int = Field(default=0, ge=0)
    reasons: dict[str, str] = Field(default_factory=dict)

    @model_serializer(mode="wrap")
    def _without_the_usual(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = write(self)
        usual = {"loss": "dice_ce", "slices": 1, "regions": [], "blending": "gaussian", "windows": "even"}
        usual["resampling"] = Resampling().model_dump()
        return {key: value for key, value in values.items() if key not in usual or value != usual[key]}

    @model_validator(mode="after")
    def _check(self) -> Plan:
        if len(self.normalisation) != len(self.channels):
            raise ValueError(
                f"normalisation has {len(self.normalisation)} entries and channels {len(self.channels)}; one "
                "each is expected"
            )
        if min(self.patch) < 1:
            raise ValueError(f"patch must hold positive numbers, found {self.patch}")
        if self.dims == 2 and 1 not in self.patch:
            raise ValueError(f"patch of a slice model (dims 2) must be 1 along the slice axis, found {self.patch}")
        if self.slices % 2 == 0 or (self.slices > 1 and self.dims == 3):
            raise ValueError(f"slices must be odd, and 1 unless dims is 2, found {self.slices} with dims {self.dims}")
        if any(step is not None and step <= 0 for step in self.spacing_mm or ()):
            raise ValueError(f"spacing_mm must be positive, found {self.spacing_mm}")
        if self.orientation is not None and self.orientation not in ALL_AXIS_CODES:
            raise ValueError(f"orientation must name each axis once, as RAS or LPS do, found {self.orientation!r}")
        if not set(self.mirror_axes) <= {0, 1, 2} or len(set(self.mirror_axes)) != len(self.mirror_axes):
            raise ValueError(f"mirror_axes must be different numbers among 0, 1, 2, found {self.mirror_axes}")
        values = [label.value for label in self.labels]
        if len(set(values)) != len(values):
            raise ValueError(f"labels must have different values, found {values}")
        self._check_regions()
        return self

    def _check_regions(self) -> None:
        if not self.regions:
            return
        names, known = [region.name for region in self.regions], [label.value for label in self.labels[1:]]
        if len(set(names)) != len(names):
            raise ValueError(f"regions must have different names, found {', '.join(names)}")
        for region in self.regions:
            if odd := [value for value in (*region.values, region.writes) if value not in known]:
                raise ValueError(
                    f"region {region.name} has the label value {odd[0]}, expected values of labels other than the "
                    f"background: {', '.join(map(str, known))}"
                )
        if self.loss not in REGION_LOSSES:
            raise ValueError(f"loss of regions must be one of {', '.join(REGION_LOSSES)}, found {self.loss}")

    @property
    def network_channels(self) -> int:
        """Channels of the network's input: each of the image's with its neighbouring slices."""
        return len(self.channels) * self.slices

    @property
    def outputs(self) -> int:
        """Channels of the network's output: regions, or classes."""
        return len(self.regions or self.labels)

    @property
    def scored(self) -> list[tuple[str, tuple[int, ...]]]:
        """What is scored: the name of a foreground class or of a region, and the numbers of the classes in it."""
        if not self.regions:
            return [(label.name, (number,)) for number, label in enumerate(self.labels) if number]
        numbers = {label.value: number for number, label in enumerate(self.labels)}
        return [(region.name, tuple(numbers[value] for value in region.values)) for region in self.regions]

    @property
    def slice_axis(self) -> int | None:
        """The axis along which a slice model has no extent; None for a volume model."""
        return self.patch.index(1) if self.dims == 2 else None


def write_plan(plan: Plan, path: Path | str) -> None:
    """Write a plan as YAML, each field below a comment with its reason."""
    lines = ["# A plan may be edited and given back with --plan. The line above a field says why it is as it is.", ""]
    for name, value in plan.model_dump(mode="json", exclude={"reasons"}).items():
        if name in plan.reasons:
            lines.append("# " + " ".join(plan.reasons[name].split()))
        if name == "normalisation":
            value = [entry.model_dump(exclude_defaults=True) for entry in plan.normalisation]
        style = None if isinstance(value, list | dict) else False  # None: the innermost lists on one line
        lines.append(yaml.safe_dump({name: value}, sort_keys=False, default_flow_style=style, width=10_000).rstrip())
    write_text(Path(path), "\n".join(lines) + "\n")


def read_plan(path: Path | str) -> Plan:
    """Read and check a plan; a wrong field is named with what was found and what was expected.

    Raises:
        UsageError: no such file, not YAML, a field missing, unknown or wrong.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path}: the plan cannot be read ({error}); give a file that `voxelwise plan` wrote"
        ) from error
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f" at line {where.line + 1}" if where is not None else ""
        raise UsageError(f"{path}: not YAML{line} ({getattr(error, 'problem', error)}); correct that line") from error
    if not isinstance(values, dict):
        raise UsageError(
            f"{path}: found {type(values).__name__}, expected the fields of a plan; write one with `voxelwise plan`"
        )
    reasons = {**_reasons_in(text), **(values.pop("reasons", None) or {})}
    return plan_from(values | {"reasons": reasons}, where=str(path))


def plan_from(values: dict[str, Any], where: str = "plan") -> Plan:
    """Check plain values (of a YAML file, of a model folder) and make them a plan.

    Raises:
        UsageError: names the first wrong fields.
    """
    try:
        return Plan.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(_explain(detail) for detail in error.errors()[:3])
        raise UsageError(f"{where}: {problems}; correct it, or write a new plan with `voxelwise plan`") from error


def _explain(detail: Any) -> str:
    field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in detail["loc"]).lstrip(".")
    message = str(detail["msg"]).removeprefix("Value error, ")
    if detail["type"] == "missing":
        return f"field {field} is missing"
    if detail["type"] == "extra_forbidden":
        return f"unknown field {field}"
    if detail["type"] == "value_error":
        return f"{field}: {message}" if field else message
    return f"{field}: found {detail['input']!r}, expected: {message[:1].lower() + message[1:]}"


def _reasons_in(text: str) -> dict[str, str]:
    """The comment that stands directly above each top-level field."""
    return {name: reason for reason, name in re.findall(r"^# (.+)\n([a-z_]+):", text, flags=re.MULTILINE)}
