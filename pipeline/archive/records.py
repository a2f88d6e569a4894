"""What an index keeps of a header: the record as a JSON list, every identifier in it as a salted hash.

A token stands where a UID stood: equal UIDs have equal tokens, so series are sorted from tokens as they are from UIDs.
Names of files that are no text are kept with their odd bytes escaped.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
from collections.abc import Sequence
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from ...transforms.dicom import Slice
from ...transforms.grouping import series_key
from ...transforms.read_options import ReadOptions
from ..identity import case_id

KEPT = tuple(one.name for one in fields(Slice) if one.name not in ("path", "size", "modified", "phi"))
IDENTIFIERS = ("sop", "study", "series", "patient", "frame_of_reference", "group")
PLACES = tuple(KEPT.index(name) for name in IDENTIFIERS)
SPLITS, TILE, REFUSAL = (KEPT.index(name) for name in ("splits", "tile", "refusal"))
PLAIN = re.compile(r"[A-Za-z0-9 .,:_\\/+*#&()-]{0,96}")
TOKEN_DIGITS = 16
TOKEN = re.compile(f"t[0-9a-f]{{{TOKEN_DIGITS}}}")
WORD = re.compile(r"[^/=+]+")  # of what a series and its parts are called
ESCAPED = re.compile(r"\\(\\|u[0-9a-f]{4})")
LOOK = "2"  # another number where files are taken for something else than before
READER = hashlib.sha256(" ".join((LOOK, *KEPT)).encode()).hexdigest()[:12]  # of records that this version can read


@lru_cache(maxsize=4096)
def token(salt: str, value: str) -> str:
    """A salted hash in the place of an identifier; nothing where there is none."""
    if not value:
        return ""
    return "t" + hmac.digest(salt.encode(), value.encode("utf-8", "surrogateescape"), "sha256").hex()[:TOKEN_DIGITS]


def series_token(salt: str, one: Slice, options: ReadOptions) -> str:
    """The token of the series that a slice belongs to."""
    return key_token(salt, series_key(one, options))


def key_token(salt: str, key: tuple[str, str]) -> str:
    """The token of a series key."""
    return token(salt, "\0".join(key))


def series_id(salt: str, series: str) -> str:
    """The case id of a DICOM volume, from its series and split part: the same from UIDs as from their tokens.

    Every word in it is made a token, as nothing tells a UID of an odd form from a value that parts a series.
    """
    return case_id(
        salt, WORD.sub(lambda found: found[0] if TOKEN.fullmatch(found[0]) else token(salt, found[0]), series)
    )


def packed(slices: Sequence[Slice], salt: str) -> str:
    """The records of one file as JSON: the first whole, of the others what differs from it."""
    first, *others = (_values(one, salt) for one in slices)
    found: list[Any] = [first]
    for other in others:
        found.append({str(k): value for k, value in enumerate(other) if value != first[k]})
    return json.dumps(found, separators=(",", ":"), ensure_ascii=False)


def _values(one: Slice, salt: str) -> list[Any]:
    values = [getattr(one, name) for name in KEPT]
    for place in PLACES:
        if values[place]:
            values[place] = token(salt, values[place])
    values[SPLITS] = {name: text if PLAIN.fullmatch(text) else token(salt, text) for name, text in one.splits.items()}
    return values


def unpacked(text: str, path: Path, size: int, modified: int) -> list[Slice]:
    """The records of one file again."""
    first, *others = json.loads(text)
    found = [_slice(first, path, size, modified)]
    for changes in others:
        values = list(first)
        for place, value in changes.items():
            values[int(place)] = value
        found.append(_slice(values, path, size, modified))
    return found


def _slice(values: Sequence[Any], path: Path, size: int, modified: int) -> Slice:
    own = dict(zip(KEPT, values, strict=True))
    for name in ("tile", "refusal"):
        own[name] = None if own[name] is None else tuple(own[name])
    return Slice(path=path, size=size, modified=modified, **own)


def readable(text: str) -> str:
    """A message that names a file whose name is no text, as a database takes it; cannot be turned back."""
    return text.encode("utf-8", "backslashreplace").decode()


def stored(name: str) -> str:
    """A file name as text: a byte that is no text stands as `\\udcff`, and a backslash doubled."""
    if "\\" in name:
        name = name.replace("\\", "\\\\")
    try:
        name.encode()
    except UnicodeEncodeError:
        return name.encode("utf-8", "backslashreplace").decode()
    return name


def named(text: str) -> str:
    """The file name again."""
    if "\\" not in text:
        return text
    return ESCAPED.sub(lambda found: "\\" if found[1] == "\\" else chr(int(found[1][1:], 16)), text)


def place_of(path: str, root: str) -> tuple[str, str]:
    """Folder (relative to the root, "" for the root itself) and name of a file, as they are stored."""
    folder, name = os.path.split(path[len(os.path.join(root, "")) :])
    return stored(folder), stored(name)


def joined(folder: str, name: str) -> str:
    """The stored path of a stored folder and name."""
    return f"{folder}/{name}" if folder else name
