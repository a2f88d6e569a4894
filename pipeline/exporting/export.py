"""`export`: a model folder for elsewhere, held against the original before it is in its place.

Everything is made in a folder beside OUT under a temporary name, checked there, and moved to its place as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch

from ...errors import UsageError, unknown
from ...networks.base import SegmentationNetwork, SliceNetwork
from ...transforms.writers import write_json, write_text
from ..identity import file_digest
from ..model_folder import ModelFolder, load_network, read_model_folder, select_folds
from ..new_folder import files_in, new_folder, refuse_existing
from ..versions import versions
from .bundle import check_bundle, inference_config, metadata
from .card import Card, window_size
from .formats import FORMS, Form, write_checked

FORMATS = ("monai", *FORMS)
BUNDLE_FORM = "torchscript"  # what MONAI's workflow loads
TOLERANCE = 1e-3  # of a logit; kernels add up in another order
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Exported:
    """What an export came to.

    Args:
        out: the folder.
        format: that it holds.
        fold: whose weights it has.
        any_number: whether the network takes any number of windows; else one at a time.
        max_difference: the largest one of a logit from the network's own on the sample windows.
        files: their SHA-256.
    """

    out: Path
    format: str
    fold: str
    any_number: bool
    max_difference: float
    files: Mapping[str, str]


def export_model(
    model: ModelFolder | Path | str,
    out: Path | str,
    *,
    format: str = "monai",
    fold: str | int | None = None,
    network: str | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write the network of a model folder in a format that others read.

    Args:
        model: the folder.
        out: folder to make.
        format: monai (a bundle), torch (torch.export), torchscript, onnx (`voxelwise[onnx]`).
        fold: whose weights; may be left out where there is one.
        network: `path/to/file.py:Class` again, where the model's network is a user's own.
        overwrite: replace an earlier export.

    Raises:
        UsageError: no such model, fold or format; `out` is there; what writes the format is not installed.
        NothingDoneError: the network cannot be exported so, or gives something else there.
        UnsafeInputError: weights that must not be opened.
        NoRoomError: the disk is full.
    """
    if format not in FORMATS:
        raise unknown("--format", format, FORMATS)
    out = Path(out)
    form = FORMS[BUNDLE_FORM if format == "monai" else format]
    form.check_installed()
    model = model if isinstance(model, ModelFolder) else read_model_folder(model)
    if fold is None and len(model.folds) > 1:
        raise UsageError(
            f"{model.folder} holds the folds {', '.join(model.folds)}, an export holds one; name it with --fold"
        )
    chosen = select_folds(model, fold)[0]
    _refuse_existing(out, model, overwrite)
    loaded = load_network(model, chosen, network=network)
    inner: SegmentationNetwork = loaded.network if isinstance(loaded, SliceNetwork) else loaded  # type: ignore[assignment]
    with new_folder(out) as part:
        card = _written(part, model, inner.eval(), chosen, format, form)
        files = {path.relative_to(part).as_posix(): file_digest(path) for path in files_in(part)}
        write_json(part / MANIFEST, _manifest(card, files))
    return Exported(out, format, chosen, card.any_number, card.difference, files)


def _written(part: Path, model: ModelFolder, network: SegmentationNetwork, fold: str, format: str, form: Form) -> Card:
    """All files of an export but its manifest, checked."""
    bundle = format == "monai"
    name = f"models/model{form.suffix}" if bundle else f"network{form.suffix}"
    (part / name).parent.mkdir(exist_ok=True)
    if bundle:  # what no bundle can hold is told before the network is traced
        inference_config(Card(model, fold, format, name, any_number=True, difference=0.0))
    size = (model.network.in_channels, *window_size(model))
    checked = write_checked(network, size, form, part / name, TOLERANCE)
    card = Card(model, fold, format, name, checked.any_number, checked.difference)
    if not bundle:
        write_json(part / "model.json", card.entries)
        write_text(part / "README.md", card.readme(form.reader.replace("FILE", f"'{name}'")))
        return card
    weights = {key: value.detach().clone().contiguous() for key, value in network.state_dict().items()}
    safetensors.torch.save_file(weights, str(part / "models" / "model.safetensors"))
    for folder in ("configs", "docs"):
        (part / folder).mkdir()
    write_json(part / "configs" / "inference.json", inference_config(card))
    write_json(part / "configs" / "metadata.json", metadata(card))
    reader = "python -m monai.bundle run --config_file configs/inference.json --bundle_root ."
    mirrored = "The workflow does not average over mirrored images, which `voxelwise predict` may do.\n"
    write_text(part / "docs" / "README.md", f"{card.readme(reader)}\n{mirrored}")
    check_bundle(part, card)
    return card


def _manifest(card: Card, files: Mapping[str, str]) -> dict[str, Any]:
    return {
        "format": 1,
        "command": "export",
        "finished": True,
        "settings": {"format": card.format, "fold": card.fold, "model": card.model.sha256(card.fold)},
        "facts": {"max_abs_difference": card.difference, "any_number_of_windows": card.any_number},
        "versions": versions(),
        "files": dict(files),
    }


def _refuse_existing(out: Path, model: ModelFolder, overwrite: bool) -> None:
    """Keep what is there, unless it is an earlier export and is to be replaced."""
    if out.resolve().is_relative_to(model.folder.resolve()):
        raise UsageError(f"{out} lies inside the model folder {model.folder}; choose a place outside")
    refuse_existing(out, MANIFEST, "export", overwrite=overwrite)
