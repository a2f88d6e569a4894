"""Volumes into MONAI chains: the loading transform of our chains, and an `ImageReader` for people's own.

MONAI's `LoadImage` tries further readers in silence when one fails, and its NIfTI reader rewrites headers; this calls
our reader and no other.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import ImageReader, MetaTensor
from monai.transforms import MapTransform

from ..errors import CaseError
from .geometry import grid_difference
from .nifti import read_nifti
from .pictures import read_picture
from .read_options import DEFAULT, ReadOptions
from .readers import Source, only_source, read_source
from .volume import Volume
from .zip_files import unpacked

GRID_TOLERANCE_VOXELS = 0.1
TORCH_TYPES: dict[np.dtype[Any], np.dtype[Any]] = {
    np.dtype(np.uint16): np.dtype(np.int32),
    np.dtype(np.uint32): np.dtype(np.int64),
}


def load(
    item: str | PathLike[str] | Source,
    *,
    channels: bool = False,
    labels: bool = False,
    options: ReadOptions = DEFAULT,
) -> Volume:
    """Read a path or a source.

    Args:
        channels: the fourth dimension of a NIfTI file is declared to be channels.
        labels: a label map: numbers of a colour palette are label values.
        options: the ways out that the user has chosen.
    """
    source = item if isinstance(item, Source) else None
    path = source.files[0] if source else Path(str(item))
    if source is None and path.is_file() and channels:
        source = Source("nifti", (path,)) if path.name.lower().endswith((".nii", ".nii.gz", ".hdr")) else None
    if source is None:
        source = only_source(path, options)
    if source.kind == "nifti" and channels:
        limit = options.max_voxels
        with unpacked(source.files) as (files, _):
            return read_nifti(files[0], source.part, affine=options.affine, channels=True, max_voxels=limit)
    if source.kind == "picture" and labels:
        with unpacked(source.files) as (files, _):
            return read_picture(files[0], labels=True)
    return read_source(source, options)


def load_channels(
    items: Sequence[str | PathLike[str] | Source], *, labels: bool = False, options: ReadOptions = DEFAULT
) -> Volume:
    """Read several files as the channels of one image.

    Raises:
        CaseError: their grids differ by more than 0.1 voxel.
    """
    if not items:
        raise ValueError("an image needs at least one file, got an empty list")
    volumes = [load(item, labels=labels, options=options) for item in items]
    first = volumes[0]
    for item, volume in zip(items[1:], volumes[1:], strict=True):
        apart = grid_difference(first.geometry, volume.geometry)
        if apart > GRID_TOLERANCE_VOXELS:
            shapes = f"{first.geometry.shape} and {volume.geometry.shape}"
            found = f"shapes {shapes}" if not np.isfinite(apart) else f"{apart:.2f} voxels apart at the corners"
            raise CaseError(
                f"{name_of(item)}: another grid than {name_of(items[0])}: {found}, "
                f"allowed are {GRID_TOLERANCE_VOXELS:g} voxels. Bring them to one grid, as `voxelwise dataset` does",
                "channel-grids",
            )
    array = np.concatenate([volume.array for volume in volumes])
    repairs = tuple(entry for volume in volumes for entry in volume.repairs)
    notes = tuple(entry for volume in volumes for entry in volume.notes)
    return Volume(array, first.geometry, first.modality, first.name, first.series, repairs, notes, first.facts)


def name_of(item: str | PathLike[str] | Source) -> str:
    """What an error calls an input."""
    return str(item.files[0]) if isinstance(item, Source) else str(item)


def to_tensor(volume: Volume) -> MetaTensor:
    """A volume as `MetaTensor` (C, X, Y, Z), pictures (C, X, Y, 1); nothing that names anybody goes into its metadata.

    Memory: the array is shared where torch has its type; uint16 and uint32 become int32 and int64.
    """
    array = volume.array
    if array.ndim == 3:
        array = array[..., np.newaxis]
    array = array.astype(TORCH_TYPES.get(array.dtype, array.dtype), copy=False)
    if any(stride < 0 for stride in array.strides) or not array.flags.writeable:
        array = array.copy(order="K")
    affine = torch.from_numpy(np.array(volume.geometry.affine, dtype=np.float64))
    meta = {
        "original_affine": affine.clone(),
        "spatial_shape": tuple(int(size) for size in array.shape[1:]),
        "has_world": volume.geometry.has_world,
        "modality": volume.modality,
    }
    return MetaTensor(torch.from_numpy(array), affine=affine, meta=meta)


class LoadVolume(MapTransform):
    """Read the files under `keys`: a path, a `Source`, a `Volume`, or a list of them whose files are the channels.

    Args:
        keys: in the sample; each holds one of the above.
        channels: the fourth dimension of a NIfTI file is declared to be channels.
        label_keys: those of the keys that are label maps.
        allow_missing_keys: leave out keys that a sample does not have.
    """

    def __init__(
        self,
        keys: KeysCollection,
        channels: bool = False,
        label_keys: Sequence[str] = ("label", "labels"),
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.channels = channels
        self.label_keys = tuple(label_keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the sample with `MetaTensor`s under the keys."""
        sample = dict(data)
        for key in self.key_iterator(sample):
            item, labels = sample[key], key in self.label_keys
            if isinstance(item, Volume):
                volume = item
            elif isinstance(item, (list, tuple)):
                one = load(item[0], channels=self.channels, labels=labels) if len(item) == 1 else None
                volume = one or load_channels(item, labels=labels)
            else:
                volume = load(item, channels=self.channels, labels=labels)
            sample[key] = to_tensor(volume)
        return sample


class VolumeReader(ImageReader):
    """Our reader in MONAI's protocol: `LoadImage(reader=VolumeReader())`, for people who build their own chains.

    `LoadImage` itself goes on to other readers when this one refuses a file; `LoadVolume` does not.
    """

    def verify_suffix(self, filename: Sequence[PathLike[str] | str] | PathLike[str] | str) -> bool:
        """Every file is looked into; its name does not matter."""
        return True

    def read(self, data: Sequence[PathLike[str] | str] | PathLike[str] | str, **kwargs: Any) -> Volume:
        """Read one path, or several as channels."""
        if isinstance(data, (str, PathLike)):
            return load(data)
        return load(data[0]) if len(data) == 1 else load_channels(data)

    def get_data(self, img: Volume) -> tuple[np.ndarray, dict[str, Any]]:
        """The array with channels first, and its metadata."""
        array = img.array
        meta = {
            "affine": img.geometry.affine.copy(),
            "original_affine": img.geometry.affine.copy(),
            "spatial_shape": np.array(array.shape[1:]),
            "original_channel_dim": 0,
            "space": "RAS",
        }
        return array, meta
