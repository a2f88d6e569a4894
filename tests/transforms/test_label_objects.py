"""Damaged SEG and RTSTRUCT files: a label map or a refusal, whatever their bytes are."""

from __future__ import annotations

import warnings
from pathlib import Path

import label_phantoms as draw
import numpy as np
import phantoms
import pytest
from voxelwise.errors import CaseError
from voxelwise.transforms.dicom_rtstruct import read_rtstruct, rtstruct_header
from voxelwise.transforms.dicom_seg import read_seg, seg_grid, seg_header
from voxelwise.transforms.readers import read_volume

SHAPE = (12, 10, 8)


def mutant(data: bytes, rng: np.random.Generator) -> bytes:
    """A file with some bytes written over, some taken out, or its end lost."""
    changed = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        place = int(rng.integers(len(changed)))
        kind = rng.random()
        if kind < 0.6:
            changed[place] = rng.integers(256)
        elif kind < 0.9:
            del changed[place : place + int(rng.integers(1, 9))]
        else:
            del changed[place:]
    return bytes(changed) or b"\0"


@pytest.mark.parametrize("number", [50, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP", "rtstruct"])
def test_damaged_objects_are_read_or_refused(tmp_path: Path, kind: str, number: int) -> None:
    files = phantoms.ct_series(tmp_path / "ct")
    grid = read_volume(tmp_path / "ct").geometry
    path = tmp_path / "drawn.dcm"
    if kind == "rtstruct":
        draw.rtstruct_file(path, files, {"liver": [draw.ring(2.2, 5.2, depth) for depth in (2, 3)]})
    else:
        draw.seg_file(path, files, {"liver": draw.box(SHAPE, (2, 6), (2, 6), (2, 6))}, kind=kind)
    whole, rng = path.read_bytes(), np.random.default_rng(7)
    told = []
    for _ in range(number):
        path.write_bytes(mutant(whole, rng))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of pydicom, over odd values
                if kind == "rtstruct":
                    rtstruct_header(path)
                    labels = read_rtstruct(path, grid, {1: 1}).labels
                else:
                    seg_header(path)
                    seg_grid(path)
                    labels = read_seg(path, grid, {1: 1}).labels
        except CaseError as error:
            told.append(str(error))
        else:
            assert (labels.shape, labels.dtype) == (SHAPE, np.uint8)
    assert 0 < len(told) < number
    assert all(str(path) in message for message in told)
