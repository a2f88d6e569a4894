"""What lies in a trained folder of nnU-Net v2: plans.json, dataset.json and one checkpoint a fold.

    plans.json, dataset.json
    fold_0/checkpoint_final.pth, checkpoint_best.pth     and so on, or fold_all

The folder is one configuration of one trainer: TRAINER__PLANS__CONFIGURATION below the data set's name. Nothing else in
it is looked at.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import UnsafeInputError, UsageError, unknown

PLANS_FILE, DATASET_FILE, OLD_PLANS_FILE = "plans.json", "dataset.json", "plans.pkl"
CHECKPOINTS = {"final": "checkpoint_final.pth", "best": "checkpoint_best.pth"}
LARGEST_JSON = 64 << 20
FOLD = re.compile(r"fold_(\d+|all)")
EXPECTED = f"give the folder with {PLANS_FILE}, {DATASET_FILE} and fold_0, named TRAINER__PLANS__CONFIGURATION"
MOST_LISTED = 8


@dataclass(frozen=True)
class NnUNetFolder:
    """A folder whose files are all there.

    Args:
        root: of them.
        plans: content of plans.json.
        dataset: content of dataset.json.
        checkpoints: of the folds that are taken, by name.
        left_out: folds that are there as well.
    """

    root: Path
    plans: Mapping[str, Any]
    dataset: Mapping[str, Any]
    checkpoints: Mapping[str, Path]
    left_out: tuple[str, ...]


def is_nnunet(root: Path) -> bool:
    """Whether a path looks like a folder of nnU-Net, of whatever level or version."""
    names = (PLANS_FILE, OLD_PLANS_FILE)
    return any((root / name).is_file() for name in names) or bool(_folds_in(root) or _trained_below(root))


def read_nnunet_folder(root: Path, folds: Sequence[str] = (), checkpoint: str = "final") -> NnUNetFolder:
    """Find the files of a folder and read the two of JSON.

    Args:
        root: the folder.
        folds: their names, numbers or "all"; every numbered fold that has the checkpoint when left out.
        checkpoint: "final" or "best".

    Raises:
        UsageError: it is no such folder, or of nnU-Net v1, or one above; a fold or a file that is not there.
        UnsafeInputError: JSON of a size that no plans have.
    """
    if checkpoint not in CHECKPOINTS:
        raise unknown("--checkpoint", checkpoint, CHECKPOINTS)
    _check_root(root)
    chosen, there = _choose(root, folds, CHECKPOINTS[checkpoint])
    return NnUNetFolder(
        root=root,
        plans=read_json(root / PLANS_FILE),
        dataset=read_json(root / DATASET_FILE),
        checkpoints={fold: root / f"fold_{fold}" / CHECKPOINTS[checkpoint] for fold in chosen},
        left_out=tuple(fold for fold in there if fold not in chosen),
    )


def read_json(path: Path) -> dict[str, Any]:
    """An object of JSON.

    Raises:
        UsageError: it cannot be read, is no JSON, or no object.
        UnsafeInputError: it is larger than any such file.
    """
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise UnsafeInputError(f"{path} has {path.stat().st_size / 1e6:.0f} MB, expected a few; it was not read")
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}); {EXPECTED}") from error
    except (ValueError, RecursionError) as error:
        why = "nested too deep" if isinstance(error, RecursionError) else str(error)
        raise UsageError(f"{path} cannot be read as JSON ({why}); get the folder again") from error
    if not isinstance(found, dict):
        raise UsageError(f"{path}: found {type(found).__name__}, expected an object; get the folder again")
    return found


def _check_root(root: Path) -> None:
    if not root.exists():
        raise UsageError(f"{root} does not exist; {EXPECTED}")
    if not root.is_dir():
        raise UsageError(f"{root} is a file; unpack it where it is an archive, and {EXPECTED}")
    if (root / PLANS_FILE).is_file():
        if not (root / DATASET_FILE).is_file():
            raise UsageError(f"{root} has no {DATASET_FILE}, which names the labels; copy the whole folder")
        return
    if (root / OLD_PLANS_FILE).is_file() or any(root.glob(f"*/{OLD_PLANS_FILE}")):
        raise UsageError(
            f"{root} is a folder of nnU-Net v1 ({OLD_PLANS_FILE}); only v2 can be imported: train again with v2"
        )
    if FOLD.fullmatch(root.name) and (root.parent / PLANS_FILE).is_file():
        raise UsageError(f"{root} is one fold; give the folder above it, and --fold {root.name.removeprefix('fold_')}")
    trained = _trained_below(root)
    if trained:
        names = [path.relative_to(root).as_posix() for path in trained]
        shown = ", ".join(names[:MOST_LISTED]) + (
            f" and {len(names) - MOST_LISTED} more" if trained[MOST_LISTED:] else ""
        )
        raise UsageError(f"{root} holds several trained folders or lies above one; give one of them: {shown}")
    raise UsageError(f"{root} is no folder of nnU-Net: there is no {PLANS_FILE} in it; {EXPECTED}")


def _trained_below(root: Path) -> list[Path]:
    """Trained folders one or two levels down, as below a data set and below nnUNet_results."""
    if not root.is_dir():
        return []
    return sorted(path.parent for pattern in ("*", "*/*") for path in root.glob(f"{pattern}/{PLANS_FILE}"))


def _folds_in(root: Path) -> list[str]:
    """Names of the folds that are there, numbers first and in order."""
    if not root.is_dir():
        return []
    found = [match[1] for path in root.iterdir() if (match := FOLD.fullmatch(path.name)) and path.is_dir()]
    return sorted(found, key=lambda fold: (fold == "all", int(fold) if fold != "all" else 0))


def _choose(root: Path, folds: Sequence[str], name: str) -> tuple[list[str], list[str]]:
    """Folds to take, and all that have the checkpoint."""
    folders = _folds_in(root)
    there = [fold for fold in folders if (root / f"fold_{fold}" / name).is_file()]
    chosen = list(dict.fromkeys(folds)) or [fold for fold in there if fold != "all"]
    listed = f"there are: {', '.join(there)}" if there else "no fold has it"
    for fold in chosen:
        if fold in there:
            continue
        if fold not in folders:
            raise UsageError(f"--fold {fold}: {root} has no fold_{fold} with {name} ({listed})")
        raise UsageError(f"--fold {fold}: {root / f'fold_{fold}'} has no {name} ({listed}){_other(root, fold, name)}")
    if chosen:
        return chosen, there
    if there:
        raise UsageError(f"{root} has no numbered fold, but fold_all; take it with --fold all")
    if not folders:
        raise UsageError(f"{root} holds no folds; {EXPECTED}")
    raise UsageError(f"{root}: no fold has {name}{_other(root, folders[0], name)}")


def _other(root: Path, fold: str, name: str) -> str:
    """The way out where a fold has the other checkpoint: a training that was stopped has no final one."""
    for word, other in CHECKPOINTS.items():
        if other != name and (root / f"fold_{fold}" / other).is_file():
            return f"; it has {other}: take it with --checkpoint {word}"
    return "; copy the whole folder"
