"""The JSON record beside each volume: BIDS names where they exist, repairs, notes, where it came from by hashed ids.

Nothing of a header that names a patient is in it, unless the user asked for it (`--phi`): then it stands under `phi`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ... import __version__
from ...transforms.geometry import axis_codes
from ...transforms.readers import Source
from ...transforms.volume import Entry, Volume
from ..text import printable
from .naming import Origin

BIDS_UNITS = {"BQML": "Bq/mL"}
UNITS = {"CT": "HU"}  # where the modality alone decides; PET's are in its header, MR has none


def sidecar(volume: Volume, *, case: str, series: str, source: Source, origin: Origin) -> dict[str, Any]:
    """What is known of a volume; `repairs`, `notes` are lists of {code, detail}.

    Args:
        volume: as it is written.
        case: what its file is called.
        series: salted id of the series or file that it came from; other volumes may have the same.
        source: what it was read from.
        origin: salted ids of its study and patient.
    """
    geometry = volume.geometry
    facts: dict[str, Any] = {str(key): plain(value) for key, value in volume.facts.items()}
    if volume.modality == "PT":
        facts = in_bids_words(facts)
    if volume.modality in UNITS:
        facts.setdefault("Units", UNITS[volume.modality])
    record = {
        **facts,
        "Modality": volume.modality,
        "ConversionSoftware": "voxelwise",
        "ConversionSoftwareVersion": __version__,
        "case": printable(case),
        "series": series,
        "study": origin.study,
        "patient": origin.patient,
        "source": {"kind": source.kind, "files": len(source.files)},
        "shape": list(geometry.shape),
        "channels": volume.channels,
        "spacing_mm": [round(value, 6) for value in geometry.spacing_mm] if geometry.has_world else None,
        "orientation": axis_codes(geometry.affine) if geometry.has_world else None,
        "dtype": str(volume.array.dtype),
        "repairs": listed(volume.repairs),
        "notes": listed(volume.notes),
    }
    if volume.phi:
        record["phi"] = {str(key): printable(str(value)) for key, value in volume.phi.items()}
    return record


def in_bids_words(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What DICOM says of a PET image in the names, units and forms that BIDS has for it."""
    said = dict(facts)
    if "Units" in said:
        said["Units"] = BIDS_UNITS.get(str(said["Units"]), said["Units"])
    if isinstance(said.get("FrameDuration"), (int, float)):
        said["FrameDuration"] = [said["FrameDuration"]]
    if isinstance(said.get("RadionuclideTotalDose"), (int, float)):
        said.update(InjectedRadioactivity=said["RadionuclideTotalDose"], InjectedRadioactivityUnits="Bq")
    if said.get("DecayCorrection") in ("NONE", "START", "ADMIN"):
        said["ImageDecayCorrected"] = said["DecayCorrection"] != "NONE"
    return said


def listed(entries: Sequence[Entry]) -> list[dict[str, str]]:
    """Repairs or notes as JSON keeps them."""
    return [{"code": entry.code, "detail": entry.detail} for entry in entries]


def plain(value: Any) -> Any:
    """A fact as JSON knows it: no NaN, no array, and text on one line."""
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
