"""Facts of a header: numbers and codes, never a word that may name somebody."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import phantoms
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from voxelwise.transforms.dicom import read_header
from voxelwise.transforms.dicom_facts import nameless

KEPT = {"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"], "PatientPosition": "HFS", "SliceThickness": 2.5}


def facts(folder: Path, **tags: Any) -> dict[str, Any]:
    """Facts of an MR slice with these tags, less those of every phantom."""
    (path,) = phantoms.mr_series(folder, phantoms.ramp((4, 3, 1)), **tags)
    found = dict(read_header(path)[0].facts)
    return {name: value for name, value in found.items() if KEPT.get(name) != value}


def test_facts_have_bids_names_and_units(tmp_path: Path) -> None:
    said = facts(
        tmp_path,
        EchoTime="4.6",
        RepetitionTime="2300",
        InversionTime="900",
        FlipAngle="9",
        MagneticFieldStrength="3",
        ScanningSequence=["GR", "IR"],
        SequenceVariant="SK",
        MRAcquisitionType="3D",
        EchoTrainLength=12,
        PixelBandwidth="240",
        Manufacturer="SIEMENS",
        ManufacturerModelName="Prisma_fit",
        BodyPartExamined="BRAIN",
        InPlanePhaseEncodingDirection="ROW",
    )
    assert said == {
        "EchoTime": 0.0046,
        "RepetitionTime": 2.3,
        "InversionTime": 0.9,
        "FlipAngle": 9.0,
        "MagneticFieldStrength": 3.0,
        "ScanningSequence": ["GR", "IR"],
        "SequenceVariant": "SK",
        "MRAcquisitionType": "3D",
        "EchoTrainLength": 12.0,
        "PixelBandwidth": 240.0,
        "Manufacturer": "SIEMENS",
        "ManufacturersModelName": "Prisma_fit",
        "BodyPartExamined": "BRAIN",
        "InPlanePhaseEncodingDirectionDICOM": "ROW",
    }


def test_facts_of_a_pet(tmp_path: Path) -> None:
    dose = Dataset()
    dose.RadionuclideHalfLife, dose.RadionuclideTotalDose = "6586.2", "3.7E8"
    dose.Radiopharmaceutical, dose.RadiopharmaceuticalStartTime = "FDG for Quetzal", "101500"
    said = facts(
        tmp_path,
        Units="BQML",
        DecayCorrection="START",
        CorrectedImage=["DECY", "ATTN"],
        ActualFrameDuration=90_000,
        RadiopharmaceuticalInformationSequence=Sequence([dose]),
    )
    assert said == {
        "Units": "BQML",
        "DecayCorrection": "START",
        "CorrectedImage": ["DECY", "ATTN"],
        "FrameDuration": 90.0,
        "RadionuclideHalfLife": 6586.2,
        "RadionuclideTotalDose": 3.7e8,
    }


@pytest.mark.parametrize(
    ("tag", "value"),
    [
        ("Manufacturer", "Made for Canary"),
        ("Manufacturer", "QUETZAL Systems"),
        ("ManufacturerModelName", "scanner of ward 7731"),
        ("ManufacturerModelName", "Dr. Ostrich's"),
        ("ManufacturerModelName", "Model ostrich 1"),
        ("ConvolutionKernel", "acc20260412"),
        ("Manufacturer", "two\nlines"),
        ("Manufacturer", "x" * 70),
        ("BodyPartExamined", "CANARY HEAD"),
        ("BodyPartExamined", "left leg of Ann"),
        ("ScanningSequence", "gradient"),
        ("ContrastBolusAgent", "100 ml Ultravist for Ann"),
        ("EchoTime", "nan"),
        ("KVP", "1e400"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
def test_what_may_name_somebody_or_is_no_fact_is_dropped(tmp_path: Path, tag: str, value: str) -> None:
    (path,) = phantoms.mr_series(
        tmp_path, phantoms.ramp((4, 3, 1)), ReferringPhysicianName="Ostrich^Dr", AccessionNumber="ACC20260412"
    )
    dataset = pydicom.dcmread(path)
    dataset[tag] = pydicom.dataelem.RawDataElement(
        pydicom.tag.Tag(pydicom.datadict.tag_for_keyword(tag)), "LO", len(value), value.encode(), 0, False, True
    )
    dataset.save_as(path)
    assert read_header(path)[0].facts == KEPT


def test_the_coded_agent_is_kept(tmp_path: Path) -> None:
    assert facts(tmp_path, ContrastBolusAgent="Ann", ContrastBolusIngredient="IODINE") == {
        "ContrastBolusIngredient": "IODINE"
    }


def test_free_text_that_parts_slices_is_kept_as_a_checksum() -> None:
    """Equal texts stay equal, numbers and codes stay readable, and no word of a scanner's operator is kept."""
    kept = nameless({"EchoTime": "12.5", "ImageType": "ORIGINAL\\PRIMARY\\M", "SequenceName": "*fl3d of CANARY"})
    assert kept["EchoTime"] == "12.5"
    assert kept["ImageType"] == "ORIGINAL\\PRIMARY\\M"
    assert len(kept["SequenceName"]) == 8
    assert "CANARY" not in kept["SequenceName"]
    assert kept["SequenceName"] == nameless({"SequenceName": "*fl3d of CANARY"})["SequenceName"]
