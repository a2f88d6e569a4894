"""One case of a data set: its channels brought to one grid, its label map proved to lie on it, both written."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...errors import CaseError
from ...transforms.geometry import axis_codes
from ...transforms.label_values import label_counts
from ...transforms.readers import read_source
from ...transforms.register import register
from ...transforms.regrid import resampled_onto, turned_onto
from ...transforms.volume import NOTHING, Entry, Volume
from ...transforms.writers import fields_hold, write_json, write_label_map, write_volume
from ..archive.sidecar import listed, plain
from ..text import printable
from .case_job import Job, Made, times
from .case_labels import read_labels


@dataclass(frozen=True, eq=False)
class _Channel:
    """One channel on the grid of the case, and how it came there."""

    volume: Volume
    notes: tuple[Entry, ...] = ()
    transform: np.ndarray | None = None


def make_case(job: Job) -> Made:
    """Read, prove and write one case.

    Memory: all its channels, and its label map.
    """
    started = time.monotonic()
    first = _read(job, 0)
    channels = [_Channel(first), *(_on_grid(job, number, first) for number in range(1, len(job.sources)))]
    labels, notes = read_labels(job, first.geometry)
    counts = label_counts(labels)
    if set(counts) <= {0}:
        notes = (*notes, Entry("label-empty", "the label map holds nothing but background"))
    modalities = tuple(
        channel.volume.modality or known for channel, known in zip(channels, job.modalities, strict=True)
    )
    if job.states_now() != job.states:
        raise CaseError(f"{job.images[0]}: changed while it was read; run again when the inputs are at rest", "changed")
    *images, label, sidecar = job.targets
    files = {target: write_volume(target, channel.volume) for channel, target in zip(channels, images, strict=True)}
    files[label] = write_label_map(label, labels, first.geometry)
    files[sidecar] = write_json(sidecar, _sidecar(job, channels, modalities, notes, counts))
    told = [entry for one in channels for entry in (*one.volume.repairs, *one.volume.notes, *one.notes)]
    return Made(files, (*told, *notes), counts, modalities, time.monotonic() - started)


def _read(job: Job, number: int) -> Volume:
    """One channel, its place proved.

    Raises:
        CaseError: no world coordinates, or several channels in a file of a case that has several files.
    """
    source = job.sources[number]
    volume = read_source(source, job.choices.options)
    geometry = volume.geometry
    if not geometry.has_world and source.kind == "nifti" and len(geometry.shape) == 3 and not geometry.film:
        raise CaseError(
            f"{source.files[0]}: sform_code and qform_code are both 0, so nothing says where the voxels lie; "
            "take the volume from its source again, or set the code of the form that holds",
            "no-world-coordinates",
        )
    if len(job.sources) > 1 and volume.channels > 1:
        raise CaseError(
            f"{source.files[0]}: holds {volume.channels} channels, expected 1, as the case has a file a channel; "
            "split it",
            "channel-several",
        )
    if not fields_hold(geometry):
        geometry = replace(geometry, nifti_fields=NOTHING)
    return replace(volume, geometry=geometry)


def _on_grid(job: Job, number: int, first: Volume) -> _Channel:
    """A further channel on the grid of the first, by world position."""
    volume, source = _read(job, number), job.sources[number]
    grid = first.geometry
    if not (grid.has_world and volume.geometry.has_world):
        if volume.geometry.shape != grid.shape or grid.has_world != volume.geometry.has_world:
            raise CaseError(
                f"{source.files[0]}: {times(volume.geometry.shape)}, channel 0 has {times(grid.shape)}, and without "
                "world coordinates nothing says how they lie; correct the pair",
                "channel-grids",
            )
        return _Channel(volume)
    array, affine, transform = volume.array[0], volume.geometry.affine, None
    if job.choices.register is not None:
        try:
            transform = register(array, volume.geometry, first.array[0], grid, job.choices.register)
        except CaseError as error:
            raise CaseError(f"{source.files[0]}: {error}", error.code) from error
    elif (turned := turned_onto(array, affine, grid)) is not None:
        return _Channel(replace(volume, array=turned[np.newaxis], geometry=grid))
    lowest = float(array.min())
    moved, outside = resampled_onto(array, affine, grid, outside=lowest, transform=transform)
    if outside >= 1:
        raise CaseError(
            f"{source.files[0]}: does not overlap channel 0 ({job.sources[0].files[0].name}); it belongs to another "
            "case, or its geometry is wrong",
            "channel-grids",
        )
    what = f"aligned ({job.choices.register}) to channel 0" if transform is not None else "put on the grid of channel 0"
    detail = f"channel {number} was {what}, linear; {100 * outside:.2f} % of the voxels lie outside of it and got "
    note = Entry("channel-resampled", f"{detail}its lowest value {lowest:g}")
    return _Channel(replace(volume, array=moved[np.newaxis], geometry=grid), (note,), transform)


def _sidecar(
    job: Job,
    channels: Sequence[_Channel],
    modalities: Sequence[str],
    notes: Sequence[Entry],
    counts: Mapping[int, int],
) -> dict[str, Any]:
    """What is known of a case, no identifiers of any header."""
    geometry = channels[0].volume.geometry
    told = []
    for number, (channel, source) in enumerate(zip(channels, job.sources, strict=True)):
        facts = {
            "name": job.choices.channels[number] if number < len(job.choices.channels) else f"{number:04d}",
            "Modality": modalities[number],
            "series": job.series[number],
            "source": {"kind": source.kind, "files": len(source.files)},
            "facts": {key: plain(value) for key, value in channel.volume.facts.items()},
            "repairs": listed(channel.volume.repairs),
            "notes": listed((*channel.volume.notes, *channel.notes)),
        }
        if channel.transform is not None:
            facts["registration"] = {
                "kind": job.choices.register,
                "from_channel_0_to_this_one_ras_mm": channel.transform.tolist(),
            }
        told.append(facts)
    kind = job.label.drawn.kind if job.label.drawn else job.label.source.kind if job.label.source else ""
    return {
        "case": printable(job.name),
        "patient": job.patient,
        "shape": list(geometry.shape),
        "spacing_mm": [round(value, 6) for value in geometry.spacing_mm] if geometry.has_world else None,
        "orientation": axis_codes(geometry.affine) if geometry.has_world else None,
        "channels": told,
        "label": {
            "source": {"kind": kind, "files": len(job.label.files)},
            "voxels": {str(value): count for value, count in sorted(counts.items())},
            "notes": listed(notes),
        },
    }
