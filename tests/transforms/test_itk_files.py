"""NRRD and MetaImage: the claim is held against the file before ITK is asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import phantoms
import pytest
from voxelwise.errors import CaseError
from voxelwise.transforms.itk_files import read_itk

MAKERS = {"nrrd": phantoms.nrrd_file, "mha": phantoms.mha_file}


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("packed", [False, True])
def test_values_and_place_are_exact(tmp_path: Path, kind: str, packed: bool) -> None:
    path = MAKERS[kind](tmp_path / f"a.{kind}", affine=phantoms.oblique(), packed=packed)
    volume = read_itk(path)
    np.testing.assert_array_equal(volume.array[0], phantoms.ramp())
    assert volume.array.dtype == np.int16
    np.testing.assert_allclose(volume.geometry.affine, phantoms.oblique(), atol=1e-5)
    assert (volume.name, volume.notes, volume.repairs) == ("a", (), ())


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("packed", [False, True])
def test_a_cut_file_stops(tmp_path: Path, kind: str, packed: bool) -> None:
    path = MAKERS[kind](tmp_path / f"a.{kind}", packed=packed)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CaseError, match=r"end early|the header claims 1920 bytes of voxels, 1820 are there"):
        read_itk(path)


def test_a_header_that_cannot_be_right_stops(tmp_path: Path) -> None:
    for old, new, message in (
        (b"sizes: 12 10 8", b"sizes: 9999 9999 9999", "the header claims"),
        (b"type: int16", b"type: block", "expected 2 or 3 dimensions of single numbers"),
        (b"sizes: 12 10 8", b"sizes: 12 10 8 1", "expected 2 or 3 dimensions"),
        (b"encoding: raw", b"encoding: bzip2", "expected raw or gzip"),
        (b"sizes", b"sizez", "no header of NRRD or MetaImage"),
        (b"encoding: raw", b"data file: ../x.raw\nencoding: raw", "which is not beside it"),
        (b"space directions: (", b"space directions: (0,0,0) (", "ITK cannot read|give no grid"),
    ):
        path = phantoms.nrrd_file(tmp_path / "a.nrrd")
        data = path.read_bytes()
        assert old in data
        path.write_bytes(data.replace(old, new))
        with pytest.raises(CaseError, match=message):
            read_itk(path)


def test_no_directions_mean_no_world(tmp_path: Path) -> None:
    path = phantoms.nrrd_file(tmp_path / "a.nrrd")
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join(line for line in lines if not line.startswith(b"space")))
    volume = read_itk(path)
    assert not volume.geometry.has_world
    assert [note.code for note in volume.notes] == ["no-world-coordinates"]
