"""Sidecars: what is said of a volume, and that it is JSON whatever the facts are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from voxelwise import __version__
from voxelwise.pipeline.archive.naming import Origin
from voxelwise.pipeline.archive.sidecar import plain, sidecar
from voxelwise.transforms.readers import Source
from voxelwise.transforms.volume import Entry, Geometry, Volume


def volume(modality: str = "CT", **fields: object) -> Volume:
    geometry = Geometry((2, 3, 4), np.diag([1.0, 2.0, 3.0, 1.0]))
    return Volume(np.zeros((1, 2, 3, 4), np.int16), geometry, modality, **fields)  # type: ignore[arg-type]


def record(one: Volume) -> dict[str, object]:
    made = sidecar(
        one, case="a\nb", series="case-1", source=Source("dicom", (Path("x"), Path("y"))), origin=Origin("s", "p")
    )
    return json.loads(json.dumps(made, allow_nan=False))


def test_what_a_sidecar_says() -> None:
    facts = {"DiffusionBValue": np.float64(1000), "DiffusionGradientOrientation": np.array([0.0, 0.6, 0.8])}
    found = record(volume(facts=facts, repairs=(Entry("r", "why"),), notes=(Entry("n", "what"),)))
    assert found["DiffusionBValue"] == 1000
    assert found["DiffusionGradientOrientation"] == [0.0, 0.6, 0.8]
    assert (found["repairs"], found["notes"]) == ([{"code": "r", "detail": "why"}], [{"code": "n", "detail": "what"}])
    assert (found["case"], found["study"], found["patient"]) == ("a\\nb", "s", "p")
    assert (found["ConversionSoftware"], found["ConversionSoftwareVersion"]) == ("voxelwise", __version__)
    assert (found["Units"], found["orientation"], found["spacing_mm"]) == ("HU", "RAS", [1.0, 2.0, 3.0])
    assert found["source"] == {"kind": "dicom", "files": 2}
    assert "phi" not in found


def test_units_of_the_header_stand() -> None:
    assert record(volume("PT", facts={"Units": "Bq/mL"}))["Units"] == "Bq/mL"
    assert "Units" not in record(volume("MR"))


def test_pet_is_described_in_the_words_of_bids() -> None:
    facts = {"Units": "BQML", "FrameDuration": 180.0, "RadionuclideTotalDose": 3.8e8, "DecayCorrection": "START"}
    found = record(volume("PT", facts=facts))
    assert (found["Units"], found["FrameDuration"], found["ImageDecayCorrected"]) == ("Bq/mL", [180.0], True)
    assert (found["InjectedRadioactivity"], found["InjectedRadioactivityUnits"]) == (3.8e8, "Bq")
    assert record(volume("PT", facts={"DecayCorrection": "NONE"}))["ImageDecayCorrected"] is False
    assert record(volume("PT", facts={"Units": "GML"}))["Units"] == "GML"


def test_names_stand_under_phi_alone() -> None:
    found = record(volume(phi={"PatientName": "Zug^Vogel\x1b"}))
    assert found.pop("phi") == {"PatientName": "Zug^Vogel\\x1b"}
    assert "Zug" not in json.dumps(found)


def test_facts_are_plain() -> None:
    assert plain({"a": (np.int16(1), float("nan")), "b": "x\ny"}) == {"a": [1, None], "b": "x\\ny"}
