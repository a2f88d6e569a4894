"""Training checkpoints that survive a kill and a full disk, and that run no code when they are read.

A checkpoint is written beside the old ones (temporary name, fsync, rename) and counts from the moment that
`checkpoints.json` names it with its SHA-256. The newest two and the best one stay. Reading uses torch's restricted
reader.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from ...transforms.writers import atomic_write, write_json
from ..manifest import file_digest

log = logging.getLogger(__name__)

RECORD = "checkpoints.json"


class AtomicCheckpoints(TorchCheckpointIO):
    """Lightning's way to disk, made atomic and restricted."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write under a temporary name in the same folder, then rename."""
        with atomic_write(Path(path)) as part, part.open("wb") as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:  # torch's archive writer reports a full disk as "unexpected pos"
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True) -> dict[str, Any]:
        """Read tensors and plain values; anything else is refused by torch."""
        return torch.load(path, map_location=map_location, weights_only=True)


def read_record(folder: Path) -> dict[str, dict[str, Any]]:
    """Checkpoints that a folder knows of: `last`, `previous`, `best` -> file, step, sha256, dice."""
    file = folder / RECORD
    try:
        return dict(json.loads(file.read_text())) if file.is_file() else {}
    except ValueError:
        log.warning("%s cannot be read, so no checkpoint is taken", file)
        return {}


def newest_whole(folder: Path) -> tuple[Path, int] | None:
    """The newest checkpoint whose bytes agree with its record, and its step; a damaged one is named and passed over."""
    record = read_record(folder)
    for word in ("last", "previous"):
        if word not in record:
            continue
        file = folder / record[word]["file"]
        if file.parent == folder and file.is_file() and file_digest(file) == record[word]["sha256"]:
            return file, int(record[word]["step"])
        log.warning("checkpoint %s is damaged or missing; taking the one before", file)
    return None


class KeepCheckpoints(lightning.Callback):
    """Save at the end of every epoch: the last, the one before, and the best by mean validation Dice."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Write, record, and only then remove what nothing names any more."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / f"step-{trainer.global_step:08d}.ckpt"
        trainer.save_checkpoint(file)
        dice = dict(getattr(pl_module, "dice", {}))
        entry = {"file": file.name, "step": trainer.global_step, "sha256": file_digest(file), "dice": dice}
        record = read_record(self.folder)
        if "last" in record and record["last"]["file"] != file.name:
            record["previous"] = record["last"]
        record["last"] = entry
        best = record.get("best", {}).get("dice", {}).get("mean", -1.0)
        if dice.get("mean", -1.0) > best:
            record["best"] = entry
        write_json(self.folder / RECORD, record)
        named = {entry["file"] for entry in record.values()}
        for old in self.folder.glob("step-*.ckpt"):
            if old.name not in named:
                old.unlink()
