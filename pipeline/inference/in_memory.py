"""`predict_volume`: an image that is in memory already, and its label map in the same kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from nibabel.spatialimages import SpatialImage

from ...transforms.located import affine_of, plain
from ...transforms.volume import Geometry, Volume
from ..sizes import parse_bytes
from .budget import Limits, check_gpu_limit
from .classes import Wanted
from .loading import Model, loaded
from .modes import MARGIN_MM, Modes, several

GEOMETRIC_FIELDS = (
    *("srow_x", "srow_y", "srow_z", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("pixdim", "sform_code", "qform_code", "xyzt_units"),
)


def predict_volume(
    model: Model,
    image: Any,
    *,
    fold: str | int | None = None,
    device: str = "auto",
    precision: str = "auto",
    engine: str = "auto",
    overlap: float | None = None,
    tta: bool | None = None,
    tiling: str = "blend",
    classes: Wanted | None = None,
    with_model: Sequence[Path | str] | Path | str = (),
    coarse: Path | str | None = None,
    margin: float = MARGIN_MM,
    skip_background: bool = False,
    views: str | Sequence[str] | None = None,
    network: str | None = None,
    memory: str | int | None = None,
    gpu_memory: str | int | None = None,
) -> Any:
    """Segment one volume that is in memory already.

    Args:
        model: model folder, or a `Predictor`, which saves loading it again for each volume.
        image: `(array, affine)` with an array (X, Y, Z) or (C, X, Y, Z), a nibabel image (channels last), or a
            `MetaTensor` (C, X, Y, Z).
        fold: one fold; all are averaged without it.
        device: auto, cpu, cuda:0.
        precision: auto, float32, bf16, fp16.
        engine: as for `predict`.
        overlap: of neighbouring windows; the plan's own when left out.
        tta: average over mirrored windows; the plan's own when left out.
        tiling: as for `predict`.
        classes: as for `predict`.
        with_model: as for `predict`.
        coarse: as for `predict`.
        margin: as for `predict`.
        skip_background: as for `predict`.
        views: as for `predict`.
        network: as for `predict`.
        memory: as for `predict`; what the process holds already is counted.
        gpu_memory: as for `predict`.

    Returns:
        The label map in the same kind: an array (X, Y, Z), a nibabel image, or a `MetaTensor` (1, X, Y, Z).

    Raises:
        CaseError: an image that the model cannot take.
        TypeError: an image of another kind.
    """
    settings_of: dict[str, Any] = {"fold": fold, "device": device, "precision": precision, "engine": engine}
    settings_of |= {"overlap": overlap, "tta": tta}
    limits = Limits(parse_bytes(memory, "--memory"), parse_bytes(gpu_memory, "--gpu-memory"))
    modes = Modes(
        classes=classes,
        with_models=several(with_model),
        coarse=coarse,
        margin_mm=margin,
        skip_background=skip_background,
        views=views,
    )
    predictor = loaded(model, network=network, tiling=tiling, limits=limits, modes=modes, **settings_of)
    check_gpu_limit(limits, [str(predictor.device)])
    volume, give_back = _as_volume(image)
    return give_back(predictor.labels(volume))


def _as_volume(image: Any) -> tuple[Volume, Callable[[np.ndarray], Any]]:
    """An image in memory as a volume, and how its label map is given back."""
    if isinstance(image, MetaTensor):
        array, affine = plain(image).detach().cpu().numpy(), affine_of(image)
        volume = _volume(array, affine)
        return volume, lambda labels: MetaTensor(torch.from_numpy(labels)[None], affine=image.affine.clone())
    if isinstance(image, SpatialImage):
        array = np.asanyarray(image.dataobj)
        array = np.moveaxis(array, -1, 0) if array.ndim == 4 else array[np.newaxis]
        return _volume(array, image.affine), lambda labels: _nifti(labels, image)
    if isinstance(image, tuple) and len(image) == 2:
        array, affine = np.asarray(image[0]), np.asarray(image[1], dtype=np.float64)
        array = array if array.ndim == 4 else array[np.newaxis]
        return _volume(array, affine), lambda labels: labels
    raise TypeError(
        f"predict_volume takes (array, affine), a nibabel image or a MetaTensor, got {type(image).__name__}"
    )


def _volume(array: np.ndarray, affine: np.ndarray | None) -> Volume:
    if affine is None or np.shape(affine) != (4, 4) or not np.isfinite(affine).all():
        raise ValueError("an image needs a finite (4, 4) affine, voxel index to RAS+ mm")
    if array.ndim not in (3, 4):
        raise ValueError(f"an image is (X, Y, Z) or (C, X, Y, Z), got an array of {array.ndim - 1} dimensions")
    if array.dtype.kind not in "iufb":
        raise ValueError(f"an image holds real numbers, got {array.dtype}")
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    if native.dtype in (np.float16, np.longdouble, np.bool_, np.uint64):
        native = native.astype(np.float32)
    return Volume(native, Geometry(tuple(array.shape[1:]), np.asarray(affine, dtype=np.float64)))


def _nifti(labels: np.ndarray, image: SpatialImage) -> nib.Nifti1Image:
    """A label map with the geometry of a nibabel image and nothing else of its header."""
    header = nib.Nifti1Header()
    if isinstance(image.header, nib.Nifti1Header):
        for field in GEOMETRIC_FIELDS:
            header[field] = image.header[field]
    header.set_data_dtype(labels.dtype)
    return nib.Nifti1Image(labels, image.affine, header)
