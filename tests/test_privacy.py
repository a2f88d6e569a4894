"""No name of a patient in any byte that is written, unless it is asked for: canaries in every header, and a search.

Paths are not part of it: they stand in the index, in failures.csv and on the terminal, and say what their folders say.
"""

from __future__ import annotations

import gzip
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import phantoms
import pydicom
import pytest
from PIL import Image, PngImagePlugin
from voxelwise.scripts.main import main

CANARY = "Canary"
DATES = ("19610412", "19990607", "1961-04-12", "1999-06-07", "141516")
TAGS: dict[str, Any] = {
    **dict.fromkeys(
        ("PatientName", "ReferringPhysicianName", "OperatorsName", "PerformingPhysicianName"), f"{CANARY}^Zugvogel"
    ),
    **{
        name: f"{CANARY} {number} 7731042"
        for number, name in enumerate(
            (
                *("InstitutionName", "StudyDescription", "SeriesDescription", "ProtocolName", "PatientComments"),
                *("ImageComments", "PatientAddress", "RequestedProcedureDescription", "DeviceSerialNumber"),
                *("StationName", "ContrastBolusAgent", "PatientID", "OtherPatientIDs", "Manufacturer"),
            )
        )
    },
    **dict.fromkeys(("AccessionNumber", "StudyID", "SequenceName"), f"{CANARY}7731042"[:16]),
    "PatientBirthDate": "19610412",
    **dict.fromkeys(("StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate"), "19990607"),
    **dict.fromkeys(("StudyTime", "SeriesTime"), "141516"),
}


def private(paths: list[Path]) -> None:
    """Put private elements with canaries into DICOM files."""
    for path in paths:
        dataset = pydicom.dcmread(path)
        block = dataset.private_block(0x0019, "CANARY MAKER", create=True)
        block.add_new(0x10, "LO", "Canary private 7731042")
        block.add_new(0x11, "UN", b"Canary raw 7731042")
        dataset.save_as(path)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """One source of every kind, a canary in every text that its format knows, a damaged series among them."""
    root = tmp_path / "archive"
    private(phantoms.ct_series(root / "ct", seed=1, **TAGS))
    private(phantoms.mr_series(root / "mr", seed=2, **TAGS))
    damaged = phantoms.ct_series(root / "damaged", seed=3, **TAGS)
    damaged[2].unlink()
    cut = phantoms.ct_series(root / "cut", seed=4, **TAGS)
    cut[-1].write_bytes(cut[-1].read_bytes()[:-300])
    fields = dict.fromkeys(("descrip", "db_name", "aux_file", "intent_name"), b"Canary 7731042")
    plain = phantoms.nifti_file(root / "brain.nii", **fields)
    content = plain.read_bytes()
    extension = struct.pack("<ii", 32, 6) + b"Canary 7731042 comment".ljust(24, b"\0")
    header = bytearray(content[:348])
    struct.pack_into("<f", header, 108, 352.0 + len(extension))
    plain.write_bytes(bytes(header) + b"\1\0\0\0" + extension + content[352:])
    phantoms.nifti_file(root / "damaged.nii", **fields).write_bytes(bytes(header))
    nrrd = phantoms.nrrd_file(root / "chest.nrrd").read_bytes()
    named = b"NRRD0004\n# Canary 7731042\ncontent: Canary 7731042\nPatientName:=Canary^Zugvogel\n"
    (root / "chest.nrrd").write_bytes(named + nrrd.removeprefix(b"NRRD0004\n"))
    mha = phantoms.mha_file(root / "liver.mha").read_bytes()
    (root / "liver.mha").write_bytes(b"ObjectType = Image\nComment = Canary 7731042\n" + mha.partition(b"\n")[2])
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Author", "Canary Zugvogel")
    texts.add_text("Comment", "Canary 7731042", zip=True)
    Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(root / "picture.png", pnginfo=texts)
    with zipfile.ZipFile(root / "more.zip", "w") as packed:
        for path in phantoms.ct_series(tmp_path / "more", seed=5, **TAGS):
            packed.write(path, path.name)
    return root


def hits(folder: Path) -> Iterator[str]:
    """Names of files that hold a canary, in their name or their bytes."""
    words = [word.lower().encode() for word in (CANARY, "Zugvogel", "7731042", *DATES, phantoms.ROOT)]
    for path in sorted(folder.rglob("*")):
        content = path.read_bytes() if path.is_file() else b""
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
        text = (path.name.encode() + content).lower()
        for word in words:
            if word in text:
                yield f"{path.relative_to(folder)}: {word.decode()}"


def verbs(archive: Path, out: Path) -> list[list[str]]:
    source = str(archive)
    layouts = [["convert", source, str(out / layout), "--layout", layout] for layout in ("flat", "bids", "msd")]
    named = ["convert", source, str(out / "named"), "--name", "{study}_{patient}_{series}_{number}_{part}"]
    index = ["index", source, "--db", str(out / "index.db"), "--export", str(out / "cases.csv"), "--show"]
    return [index, *layouts, named, ["convert", source, str(out / "json"), "--json", "--debug"]]


def test_nobody_is_named(archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for words in verbs(archive, out):
        assert main(words) in (0, 3), words
    said = capsys.readouterr()
    (out / "said").write_text(said.out + said.err)
    assert list(hits(out)) == []
    assert len(list((out / "flat").glob("*.nii.gz"))) == 7


def test_nobody_is_named_by_predictions(archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch
    from voxelwise.networks.registry import build_network
    from voxelwise.pipeline.model_folder import write_model_folder

    torch.manual_seed(0)
    options: dict[str, Any] = {"widths": [4, 8]}
    labels = [{"value": 0, "name": "background"}, {"value": 1, "name": "organ"}]
    plan: dict[str, Any] = {
        "dims": 3,
        "channels": ["image"],
        "modality": "CT",
        "labels": labels,
        "spacing_mm": None,
        "orientation": "RAS",
        "crop": "none",
        "bias_field": False,
        "normalisation": [{"kind": "zscore"}],
        "patch": [32, 32, 16],
        "network": {"name": "unet", "options": options},
        "mirror_axes": [0],
        "overlap": 0.5,
        "tta": False,
    }
    write_model_folder(tmp_path / "model", build_network("unet", 3, 1, 2, **options), options, plan, fold="0")
    out = tmp_path / "out"
    assert main(["predict", str(tmp_path / "model"), str(archive), str(out), "--preview", "--device", "cpu"]) == 3
    said = capsys.readouterr()
    (out / "said").write_text(said.out + said.err)
    assert list(hits(out)) == []
    assert len(list(out.glob("*.nii.gz"))) >= 4


def test_names_are_kept_where_they_are_asked_for(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    assert main(["convert", str(archive), str(out / "flat"), "--phi", "--quiet"]) == 3
    assert main(["index", str(archive), "--db", str(out / "index.db"), "--phi", "--quiet"]) in (0, 3)
    found = set(hits(out))
    assert any(hit.startswith("flat/case-") and ".json: zugvogel" in hit for hit in found)
    assert any(hit.startswith("index.db: zugvogel") for hit in found)
    assert not any(".nii.gz: " in hit for hit in found)
    assert not any(hit.startswith(("flat/manifest", "flat/failures")) for hit in found)
