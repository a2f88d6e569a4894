"""The configs of a MONAI bundle, read as data: references are followed, nothing is evaluated or imported.

`@key` is what stands under a key, `%file#key` the same of another config, and what follows a `$` is read as far as it
is a literal (`bundle_words`). All else that follows a `$` stays an `Expression`, which whoever needs it refuses.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ...errors import UsageError
from .bounds import values_in
from .bundle_words import Expression, read_words

CONFIGS, METADATA = "configs", "metadata.json"
INFERENCE = ("inference.json", "inference.yaml", "inference.yml")
LARGEST_CONFIG = 1 << 20
MOST_VALUES, DEEPEST = 200_000, 60
PARTS = re.compile(r"#|::")
DAMAGED = (OSError, ValueError, TypeError, AttributeError, ArithmeticError, LookupError, RecursionError)


class Config:
    """A config whose values are asked for by key.

    Args:
        root: folder of the bundle.
        path: of the config.
        content: of it.
    """

    def __init__(self, root: Path, path: Path, content: Mapping[str, Any]) -> None:
        self.root, self.path = root, path
        self.content = {**content, "bundle_root": "."}
        self.values = 0
        self.others: dict[Path, Mapping[str, Any]] = {}

    def __contains__(self, key: str) -> bool:
        return key in self.content

    def __getitem__(self, key: str) -> Any:
        """The value under a key with its references followed.

        Raises:
            UsageError: references that lead in a circle, or to a file that is not there.
        """
        return self._followed(self.content[key], 0)

    def _followed(self, value: Any, depth: int) -> Any:
        self.values += 1
        if depth > DEEPEST or self.values > MOST_VALUES:
            raise UsageError(f"{self.path}: its references lead in a circle, or to too many values; get the file again")
        if isinstance(value, Mapping):
            return {str(key): self._followed(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list):
            return [self._followed(item, depth + 1) for item in value]
        if not isinstance(value, str):
            return value
        if value.startswith("$"):
            return read_words(value[1:], lambda name: self._followed(self._at(name, depth), depth + 1))
        if value.startswith("@"):
            return self._followed(self._at(value[1:], depth), depth + 1)
        if value.startswith("%"):
            return self._followed(self._elsewhere(value[1:], depth), depth + 1)
        return value

    def _at(self, name: str, depth: int, content: Any = None) -> Any:
        """What stands under a name of keys and numbers, as it is written; an expression where nothing does."""
        found = self.content if content is None else content
        for part in PARTS.split(name):
            if isinstance(found, str) and found[:1] in ("@", "%", "$"):
                found = self._followed(found, depth + 1)
            if isinstance(found, Expression):
                return found
            if isinstance(found, Mapping) and part in found:
                found = found[part]
            elif isinstance(found, list) and part.isdecimal() and int(part) < len(found):
                found = found[int(part)]
            else:
                return Expression(f"@{name}, which leads nowhere")
        return found

    def _elsewhere(self, name: str, depth: int) -> Any:
        """What stands under a key of another config of the bundle."""
        file, *keys = PARTS.split(name, maxsplit=1)
        if not file:
            return self._at("#".join(keys), depth)
        found = (file_within(self.root, folder / file) for folder in (self.root, self.path.parent))
        path = next((one for one in found if one is not None), None)
        if path is None:
            raise UsageError(f"{self.path}: %{name:.80} names a file that is not in the bundle")
        content = self.others.get(path)
        if content is None:
            content = self.others[path] = read_content(path)
        return self._at(keys[0], depth, content) if keys else content


class _Plain(yaml.SafeLoader):
    """YAML without aliases, of which a few lines stand for more values than there is memory."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            why = f"the alias *{event.anchor:.40} is not followed, write out what it stands for"
            raise yaml.composer.ComposerError(None, None, why, event.start_mark)
        return super().compose_node(parent, index)


def file_within(root: Path, path: Path) -> Path | None:
    """A file of a bundle, with its links followed; None where it is not there or lies elsewhere."""
    try:
        found = path.resolve()
        return found if found.is_file() and found.is_relative_to(root.resolve()) else None
    except (OSError, RuntimeError, ValueError):  # names that are too long, links in a circle
        return None


def read_config(root: Path) -> Config:
    """The config that predicts.

    Raises:
        UsageError: there is none, or it cannot be read.
    """
    path = next((one for name in INFERENCE if (one := root / CONFIGS / name).is_file()), None)
    if path is None:
        raise UsageError(f"{root / CONFIGS} holds none of {', '.join(INFERENCE)}; give a bundle that can predict")
    return Config(root, path, read_content(path))


def read_metadata(root: Path) -> Mapping[str, Any]:
    """What the bundle says of itself; nothing where it says nothing.

    Raises:
        UsageError: it cannot be read.
    """
    path = root / CONFIGS / METADATA
    return read_content(path) if path.is_file() else {}


def read_content(path: Path) -> dict[str, Any]:
    """A JSON or YAML file that holds a dictionary.

    Raises:
        UsageError: it does not, is damaged, or holds more than any config does; YAML that has aliases.
    """
    try:
        size = path.stat().st_size
        if size > LARGEST_CONFIG:
            raise UsageError(f"{path} has {size / 1e6:.0f} MB, expected a few kilobytes; get the bundle again")
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else _Plain(text).get_single_data()
    except (*DAMAGED, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"{path} cannot be read ({reason}); get the bundle again") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path}: found {type(content).__name__}, expected a dictionary; get the bundle again")
    if any(number > MOST_VALUES for number, _ in enumerate(values_in(content), start=1)):
        raise UsageError(f"{path} holds more than {MOST_VALUES} values, expected a few hundred; get the bundle again")
    return {str(key): value for key, value in content.items()}
