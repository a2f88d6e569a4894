"""b-value and direction of the makers, turned to RAS+ where that is certain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import phantoms
import pydicom
import pytest
from voxelwise.transforms.dicom import read_header
from voxelwise.transforms.readers import find_sources, read_source

SIEMENS = [(0x00190010, "LO", "SIEMENS MR HEADER")]
PHILIPS = [(0x20010010, "LO", "Philips Imaging DD 001"), (0x20050010, "LO", "Philips MR Imaging DD 001")]
GE = [(0x00190010, "LO", "GEMS_ACQU_01"), (0x00430010, "LO", "GEMS_PARM_01")]


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize(
    ("elements", "b_value", "direction"),
    [
        ([(0x00189087, "FD", 700.0), (0x00189089, "FD", [0.6, 0.0, 0.8])], 700, [-0.6, 0, 0.8]),
        ([*SIEMENS, (0x0019100C, "IS", "1000"), (0x0019100E, "FD", [0.0, -1.0, 0.0])], 1000, [0, 1, 0]),
        ([*SIEMENS, (0x0019100C, "UN", b"50"), (0x0019100E, "UN", np.array([0.0, 0, 1]).tobytes())], 50, [0, 0, 1]),
        ([*SIEMENS, (0x0019100C, "IS", "1000")], 1000, None),
        ([(0x00190010, "LO", "SOMEBODY"), (0x0019100C, "IS", "1000")], None, None),
        (
            [*PHILIPS, (0x20011003, "FL", 800.0), *((0x200510B0 + k, "FL", (0.0, 0.6, 0.8)[k]) for k in range(3))],
            800,
            [0, -0.6, 0.8],
        ),
        ([*PHILIPS, (0x20011003, "FL", 0.0), *((0x200510B0 + k, "FL", 0.0) for k in range(3))], 0, None),
        ([*GE, (0x00431039, "IS", [1_000_001_500, 8, 0, 0]), (0x001910BB, "DS", "1")], 1500, None),
        ([*GE, (0x00431039, "IS", [0, 8, 0, 0])], None, None),
        ([*GE, (0x00431039, "IS", [0, 8, 0, 0]), (0x001910E0, "DS", "30")], 0, None),
        ([(0x00189087, "FD", 700.0), (0x00189089, "FD", [0.3, 0.0, 0.4])], 700, None),
        ([(0x00189087, "FD", -5.0)], None, None),
    ],
)
def test_b_value_and_direction(
    tmp_path: Path,
    elements: list[tuple[int, str, Any]],
    b_value: float | None,
    direction: list[float] | None,
    implicit: bool,
) -> None:
    (path,) = phantoms.mr_series(tmp_path, phantoms.ramp((4, 3, 1)))
    dataset = pydicom.dcmread(path)
    for tag, form, value in elements:
        dataset.add_new(tag, form, value)
    if implicit:
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
    dataset.save_as(path)
    facts = read_header(path)[0].facts
    assert facts.get("DiffusionBValue") == b_value
    found = facts.get("DiffusionGradientOrientation")
    assert (found is None) == (direction is None)
    if direction is not None:
        np.testing.assert_allclose(found, direction, atol=1e-6)


def test_directions_of_one_b_value_are_parted(tmp_path: Path) -> None:
    array = phantoms.ramp((4, 3, 3)) + 100
    directions = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    for number, direction in enumerate(directions):
        names = [f"{number}_{k}" for k in range(3)]
        for path in phantoms.mr_series(tmp_path, array + 100 * number, names=names):
            dataset = pydicom.dcmread(path)
            dataset.SOPInstanceUID = pydicom.uid.generate_uid()
            dataset.add_new(0x00190010, "LO", "SIEMENS MR HEADER")
            dataset.add_new(0x0019100C, "IS", "1000")
            dataset.add_new(0x0019100E, "FD", direction)
            dataset.save_as(path)
    volumes = [read_source(source) for source in find_sources(tmp_path).sources]
    assert len(volumes) == 3
    for volume in volumes:
        number = int(volume.array.min() // 100)
        expected = np.array(directions[number]) * [-1, -1, 1]
        np.testing.assert_array_equal(volume.facts["DiffusionGradientOrientation"], expected)
        np.testing.assert_array_equal(volume.array[0], array + 100 * number)
