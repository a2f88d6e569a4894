"""The process in which foreign checkpoints are read: a path in, safetensors and JSON out, over two pipes.

A checkpoint of torch is a zip archive around a pickle. Here torch's restricted reader looks into it, with a short list
of plain numpy types beside torch's own; whatever else is in it ends the reading. The process has a bound on memory and
one on time, writes no file, and holds nothing but this one file. `checkpoint.py` starts it, feeds it and kills it.

Each request is a JSON object behind four bytes of length. So is each reply; one that names `bytes` is followed by as
many of safetensors.
"""

from __future__ import annotations

import math
import re
import signal
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from ...transforms.codec_child import address_space, bound_memory, read_message, sealed_off, send, write_all
from .weights import check_dtypes

PLAIN_DTYPES = ("Bool", "Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32", "UInt64", "Float16", "Float32")
SCALAR = np.float64(0).__reduce__()[0]  # numpy keeps it in a private module, under two names by now
ALLOWED: list[Any] = [
    np.dtype,
    (SCALAR, "numpy._core.multiarray.scalar"),
    (SCALAR, "numpy.core.multiarray.scalar"),
    *(getattr(np.dtypes, f"{name}DType") for name in (*PLAIN_DTYPES, "Float64")),
]
FOREIGN = re.compile(r"(?:GLOBAL|unrecognized function|but got) (\S+(?: '[^']+')?)")
LONGEST_TEXT = 200
DEEPEST = 6


class ForeignTypeError(Exception):
    """The checkpoint holds something that is not on the list."""


def serve() -> None:
    """Answer requests until the parent has gone."""
    requests, replies = sealed_off()
    base = address_space()
    while (request := read_message(requests)) is not None:
        bound_memory(base + int(request["memory"]))
        signal.alarm(int(request["seconds"]))
        try:
            header, data = answer(Path(request["path"]), request["keys"])
        except Exception as error:  # whatever a parser raises is one refused file
            header, data = in_words(error), b""
        signal.alarm(0)
        send(replies, header)
        write_all(replies, data)


def answer(path: Path, keys: Sequence[str]) -> tuple[dict[str, Any], bytes]:
    """The reply to a request: weights under the first of the keys that is there, and all that is plain beside them.

    Args:
        path: of the checkpoint.
        keys: names that the dictionary of the weights may have; "" for the file being that dictionary.
    """
    check_archive(path)
    found = restricted(path)
    if not isinstance(found, Mapping):
        raise ValueError(f"it holds {type(found).__name__}, expected a dictionary")
    key = next((key for key in keys if key == "" or key in found), None)
    if key is None:
        raise ValueError(f"it has no {keys[0]!r}; it holds {', '.join(map(str, list(found)[:8])) or 'nothing'}")
    weights, aliases = once_each(tensors_of(found[key] if key else found), path.stat().st_size)
    data = safetensors.torch.save(weights)
    facts = {str(name): plain(value) for name, value in found.items() if name != key} if key else {}
    return {"bytes": len(data), "aliases": aliases, "facts": facts}, data


def check_archive(path: Path) -> None:
    """Refuse an archive with packed or damaged members: torch stores them as they are, and never checks their sums."""
    with zipfile.ZipFile(path) as archive:
        packed = [one.filename for one in archive.infolist() if one.compress_type != zipfile.ZIP_STORED]
        if packed:
            raise ValueError("its members are packed, which torch never does")
        wrong = archive.testzip()
    if wrong is not None:
        raise ValueError("a checksum in it is wrong")


def restricted(path: Path) -> Any:
    """What torch's restricted reader makes of a file; only what is asked for is taken from the disk."""
    try:
        with torch.serialization.safe_globals(ALLOWED):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        if type(error).__name__ != "UnpicklingError":
            raise
        text = str(error)
        foreign = FOREIGN.search(text)
        if foreign is None:
            raise ValueError(f"torch cannot read it: {text.rpartition('WeightsUnpickler error:')[2]}") from error
        raise ForeignTypeError(foreign[1].rstrip(".,")) from error


def tensors_of(found: Any) -> dict[str, Tensor]:
    """The weights by name; refuse what is no dictionary of plain tensors."""
    if not isinstance(found, Mapping) or not found:
        raise ValueError("its weights are no dictionary of tensors")
    wrong = next((name for name, value in found.items() if not isinstance(value, Tensor)), None)
    if wrong is not None:
        raise ValueError(f"its weights hold {type(found[wrong]).__name__} under {wrong!r}, expected tensors")
    if any(value.layout != torch.strided or value.is_quantized or value.is_meta for value in found.values()):
        raise ValueError("its weights are no plain tensors")
    weights = {str(name): value for name, value in found.items()}
    check_dtypes(weights)
    return weights


def once_each(weights: Mapping[str, Tensor], limit: int) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors that are one in memory under their first name alone; the other names, and the first one of each.

    Args:
        weights: by name.
        limit: bytes that they may take together: those of their file.
    """
    kept: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[tuple[Any, ...], str] = {}
    for name, value in weights.items():
        place = (value.data_ptr(), value.dtype, value.shape, value.stride()) if value.numel() else (name,)
        first = seen.setdefault(place, name)
        if first == name:
            kept[name] = value.detach()
        else:
            aliases[name] = first
    if sum(math.prod(value.shape) * value.element_size() for value in kept.values()) > limit:
        raise ValueError("its weights claim more bytes than the file has")
    return {name: value.contiguous() for name, value in kept.items()}, aliases


def plain(value: Any, depth: int = 0) -> Any:
    """Numbers, short texts and lists of them as JSON has them; of everything else, the name of its type."""
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, str):
        return value[:LONGEST_TEXT]
    if isinstance(value, np.generic):
        return plain(value.item(), depth)
    if isinstance(value, Mapping) and depth < DEEPEST and len(value) < 100:
        return {str(key)[:LONGEST_TEXT]: plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)) and depth < DEEPEST and len(value) < 100:
        return [plain(item, depth + 1) for item in value]
    return type(value).__name__


def in_words(error: Exception) -> dict[str, str]:
    """The reply of a file that was refused."""
    kind = {ForeignTypeError: "type", MemoryError: "memory"}.get(type(error), "content")
    text = " ".join(str(error).split())[:LONGEST_TEXT] or type(error).__name__
    if isinstance(error, (zipfile.BadZipFile, EOFError)) or "PytorchStreamReader" in text:
        return {"error": "it is no whole zip archive, as torch writes it", "kind": "damaged"}
    return {"error": "".join(letter if letter.isprintable() else "?" for letter in text), "kind": kind}
