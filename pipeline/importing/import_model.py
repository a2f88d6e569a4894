"""`import-model`: a model of another program as a model folder, whole or not at all."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...errors import UsageError
from ...transforms.geometry import ALL_AXIS_CODES
from ...transforms.writers import write_json
from ..identity import file_digest
from ..model_folder import write_model_folder
from ..new_folder import files_in, new_folder, refuse_existing
from ..versions import versions
from .bundle import convert_bundle, is_bundle
from .checkpoint import CheckpointReader
from .conversion import Conversion, Report
from .nnunet import Wanted, convert_nnunet
from .nnunet_folder import PLANS_FILE, is_nnunet

COMMAND, RECORD = "import-model", "import.json"


@dataclass(frozen=True)
class Imported:
    """What an import came to.

    Args:
        out: the model folder.
        kind: of the source, in words.
        folds: that it holds.
        report: what was taken over, what was ignored, what differs.
        files: their SHA-256.
    """

    out: Path
    kind: str
    folds: tuple[str, ...]
    report: Report
    files: Mapping[str, str]


def import_model(
    source: Path | str,
    out: Path | str,
    *,
    fold: Sequence[int | str] | int | str = (),
    checkpoint: str = "final",
    orientation: str | None = None,
    overwrite: bool = False,
) -> Imported:
    """Turn a model of another program into a model folder; nothing of it is executed.

    Args:
        source: a trained folder of nnU-Net v2 (TRAINER__PLANS__CONFIGURATION), or a MONAI bundle, packed or not.
        out: folder to make.
        fold: of nnU-Net: numbers, or "all" for `fold_all`; every numbered fold when left out.
        checkpoint: of nnU-Net: final or best.
        orientation: of nnU-Net: axis codes that images are turned to first, such as RAS, where they were so in
            training (TotalSegmentator's); nnU-Net's own readers take most files in the order that they have.
        overwrite: replace an earlier import.

    Raises:
        UsageError: no such model, or one that does what ours cannot, by name; `out` is there.
        UnsafeInputError: a checkpoint that holds more than tensors and plain values.
        NoRoomError: the disk or the memory is full.
    """
    source, out = Path(source), Path(out)
    refuse_existing(out, RECORD, COMMAND, overwrite=overwrite)
    if orientation is not None and orientation not in ALL_AXIS_CODES:
        raise UsageError(f"--orientation {orientation}: expected a letter for each axis, as RAS or LPS are")
    with CheckpointReader() as reader:
        conversion = understand(source, reader, Wanted(fold_names(fold), checkpoint, orientation))
        if out.resolve().is_relative_to(source.resolve()) or source.resolve().is_relative_to(out.resolve()):
            raise UsageError(f"{out} and {source} lie in one another; choose another place")
        with new_folder(out) as part:
            names = write_conversion(part, conversion)
            files = {path.relative_to(part).as_posix(): file_digest(path) for path in files_in(part)}
            write_json(part / RECORD, record_of(conversion, names, files))
    return Imported(out, conversion.kind, names, conversion.report, files)


def understand(source: Path, reader: CheckpointReader, wanted: Wanted) -> Conversion:
    """Find out what a source is, and read it.

    Raises:
        UsageError: it is neither, or cannot be imported.
        UnsafeInputError: a checkpoint that holds more than tensors and plain values.
    """
    if is_nnunet(source) or not is_bundle(source):
        return convert_nnunet(source, reader, wanted)
    if source.is_file() and _holds_plans(source):
        raise UsageError(f"{source} is an archive with a {PLANS_FILE} of nnU-Net; unpack it, and give the folder")
    if wanted != Wanted():
        raise UsageError(
            f"--fold, --checkpoint and --orientation are of nnU-Net, and {source} is a MONAI bundle; leave them out"
        )
    return convert_bundle(source, reader)


def _holds_plans(archive: Path) -> bool:
    with zipfile.ZipFile(archive) as opened:
        return any(Path(name).name == PLANS_FILE for name in opened.namelist())


def fold_names(fold: Sequence[int | str] | int | str) -> tuple[str, ...]:
    """`0,1` or [0, 1] as names of folds.

    Raises:
        UsageError: something that is neither a number nor all.
    """
    words = str(fold).split(",") if isinstance(fold, str | int) else fold
    names = tuple(str(word).strip() for word in words)
    wrong = next((name for name in names if not name.isdecimal() and name != "all"), None)
    if wrong is not None:
        raise UsageError(f"--fold {wrong!r}: expected numbers with commas, such as 0,1,2, or all")
    return tuple(name if name == "all" else str(int(name)) for name in names)


def write_conversion(folder: Path, conversion: Conversion) -> tuple[str, ...]:
    """Write each fold of a model; the names of them."""
    plan = conversion.plan.model_dump()
    provenance = {"imported": dict(conversion.source), "report": asdict(conversion.report), "versions": versions()}
    names = []
    for fold, network in conversion.networks:
        options = conversion.plan.network.options
        write_model_folder(folder, network, options, plan, fold=fold, provenance=provenance)
        names.append(fold)
    return tuple(names)


def record_of(conversion: Conversion, folds: Sequence[str], files: Mapping[str, str]) -> dict[str, Any]:
    """The content of import.json."""
    return {
        "format": 1,
        "command": COMMAND,
        "finished": True,
        "kind": conversion.kind,
        "source": dict(conversion.source),
        "folds": list(folds),
        "report": asdict(conversion.report),
        "versions": versions(),
        "files": dict(files),
    }
