"""NRRD and MetaImage: proved, repaired or refused as NIfTI is; ITK is the second opinion."""

from __future__ import annotations

import bz2
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import phantoms
import pytest
from voxelwise.errors import CaseError
from voxelwise.pipeline.archive.convert import convert
from voxelwise.transforms.itk_files import itk_parts, read_itk
from voxelwise.transforms.read_options import ReadOptions
from voxelwise.transforms.readers import only_source, read_source

MAKERS = {"nrrd": phantoms.nrrd_file, "mha": phantoms.mha_file}
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def codes(volume: Any) -> set[str]:
    return {entry.code for entry in (*volume.repairs, *volume.notes)}


def changed(path: Path, *pairs: tuple[bytes, bytes]) -> Path:
    """The file with words of its header replaced."""
    data = path.read_bytes()
    for old, new in pairs:
        assert data.count(old) == 1, old
        data = data.replace(old, new)
    path.write_bytes(data)
    return path


def second_opinion(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Array (X, Y, Z) and affine (RAS) as ITK gives them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import SimpleITK

        image = SimpleITK.ReadImage(str(path))
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return SimpleITK.GetArrayFromImage(image).T, LPS @ affine


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("packed", [False, True])
def test_values_and_place_are_exact(tmp_path: Path, kind: str, packed: bool) -> None:
    path = MAKERS[kind](tmp_path / f"a.{kind}", affine=phantoms.oblique(), packed=packed)
    volume = read_itk(path)
    np.testing.assert_array_equal(volume.array[0], phantoms.ramp())
    assert volume.array.dtype == np.int16
    np.testing.assert_allclose(volume.geometry.affine, phantoms.oblique(), atol=1e-5)
    assert (volume.name, volume.notes, volume.repairs) == ("a", (), ())
    array, affine = second_opinion(path)
    np.testing.assert_array_equal(volume.array[0], array)
    np.testing.assert_allclose(volume.geometry.affine, affine, atol=1e-4)


def test_real_label_maps_agree_with_itk(shared_data: Callable[[str], Path]) -> None:
    for path in sorted(shared_data("dicom_seg").rglob("*.nrrd")):
        volume, (array, affine) = read_itk(path), second_opinion(path)
        np.testing.assert_array_equal(volume.array[0], array)
        np.testing.assert_allclose(volume.geometry.affine, affine, atol=1e-3)


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("packed", [False, True])
def test_a_cut_file_stops(tmp_path: Path, kind: str, packed: bool) -> None:
    path = MAKERS[kind](tmp_path / f"a.{kind}", packed=packed)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(CaseError, match=r"end early|claims 1920 bytes, the file has 1820|CompressedDataSize is"):
        read_itk(path)
    path.write_bytes(whole + b"more")
    with pytest.raises(CaseError, match=r"claims 1920 bytes, the file has 1924|4 bytes or more lie behind"):
        read_itk(path)
    if packed:
        path.write_bytes(whole[:-40] + bytes([whole[-40] ^ 16]) + whole[-39:])
        with pytest.raises(CaseError, match=r"damaged|ends? early|are there"):
            read_itk(path)
        path.write_bytes(whole + bytes(16))
        assert codes(read_itk(path)) == {"bytes-behind-gzip"}


@pytest.mark.parametrize(
    ("space", "signs"),
    [("right-anterior-superior", (1, 1, 1)), ("LAS", (-1, 1, 1)), ("left-posterior-superior", (-1, -1, 1))],
)
def test_every_space_of_the_patient_becomes_ras(tmp_path: Path, space: str, signs: tuple[int, ...]) -> None:
    path = phantoms.nrrd_file(tmp_path / "a.nrrd", affine=phantoms.oblique())
    changed(path, (b"left-posterior-superior", space.encode()))
    stored = LPS @ phantoms.oblique()
    wanted = np.diag([*signs, 1]) @ stored
    np.testing.assert_allclose(read_itk(path).geometry.affine, wanted, atol=1e-5)
    np.testing.assert_allclose(second_opinion(path)[1], wanted, atol=1e-4)


def test_byte_order_packing_and_types(tmp_path: Path) -> None:
    path = phantoms.nrrd_file(tmp_path / "a.nrrd")
    head, _, data = path.read_bytes().partition(b"\n\n")
    swapped = np.frombuffer(data, "<i2").astype(">i2").tobytes()
    path.write_bytes(head.replace(b"endian: little", b"endian: big") + b"\n\n" + swapped)
    np.testing.assert_array_equal(read_itk(path).array[0], phantoms.ramp())
    assert read_itk(path).array.dtype == np.int16
    path.write_bytes(head.replace(b"encoding: raw", b"encoding: bz2") + b"\n\n" + bz2.compress(data))
    np.testing.assert_array_equal(read_itk(path).array[0], phantoms.ramp())
    mha = phantoms.mha_file(tmp_path / "a.mha")
    text, _, _ = mha.read_bytes().partition(b"LOCAL\n")
    mha.write_bytes(text.replace(b"ByteOrderMSB = False", b"ByteOrderMSB = True") + b"LOCAL\n" + swapped)
    np.testing.assert_array_equal(read_itk(mha).array[0], phantoms.ramp())
    np.testing.assert_array_equal(second_opinion(mha)[0], phantoms.ramp())


def test_voxels_in_a_file_beside_the_header(tmp_path: Path) -> None:
    """Never anywhere else: a header may come from anybody."""
    head, _, data = phantoms.nrrd_file(tmp_path / "a.nrrd").read_bytes().partition(b"\n\n")
    (tmp_path / "a.raw").write_bytes(data)
    path = tmp_path / "a.nhdr"
    path.write_bytes(head + b"\ndata file: a.raw\n")
    np.testing.assert_array_equal(read_itk(path).array[0], phantoms.ramp())
    assert itk_parts(path) == (path, tmp_path / "a.raw")
    (tmp_path / "b.raw").write_bytes(b"rubbish first" + data)
    for skip in (b"13", b"-1"):
        path.write_bytes(head + b"\nbyte skip: " + skip + b"\ndata file: b.raw\n")
        np.testing.assert_array_equal(read_itk(path).array[0], phantoms.ramp())
    mha = phantoms.mha_file(tmp_path / "a.mha").read_bytes()
    text, _, data = mha.partition(b"LOCAL\n")
    (tmp_path / "a.mhd").write_bytes(text + b"a.raw\n")
    np.testing.assert_array_equal(read_itk(tmp_path / "a.mhd").array[0], phantoms.ramp())
    (tmp_path / "folder").mkdir()
    for name, message in (
        (b"../a.raw", "only a file beside the header"),
        (b"/etc/hostname", "only a file beside the header"),
        (b"folder/a.raw", "only a file beside the header"),
        (b"c:\\a.raw", "only a file beside the header"),
        (b"no.raw", "which is not beside it"),
        (b"LIST", "list of files"),
        (b"a%03d.raw 1 8 1", "list of files"),
    ):
        for file, content in ((path, head + b"\ndata file: " + name + b"\n"), (tmp_path / "a.mhd", text + name)):
            file.write_bytes(content)
            with pytest.raises(CaseError, match=message):
                read_itk(file)


BAD_NRRD = [
    (b"sizes: 12 10 8", b"sizes: 9999 9999 9999", "the header claims"),
    (b"type: int16", b"type: block", "type 'block'; expected a number type"),
    (b"dimension: 3", b"dimension: 4", "dimension '4' and sizes '12 10 8' do not fit"),
    (b"sizes: 12 10 8", b"sizes: 12 10 x", "sizes is '12 10 x', expected whole numbers"),
    (b"sizes: 12 10 8", b"sizes: 12 10 0", "do not fit"),
    (b"encoding: raw", b"encoding: ascii", "encoding 'ascii'; expected raw, gzip or bzip2"),
    (b"encoding: raw", b"encoding: hex", "expected raw, gzip or bzip2"),
    (b"sizes", b"sizez", "no NRRD header"),
    (b"endian: little", b"endian: both", "endian is 'both'"),
    (b"endian: little\n", b"", "endian is None"),
    (b"space origin: (", b"space origin: (nan", "expected numbers|give no grid"),
    (b"space origin", b"space oregano", "Export it again with its origin"),
    (b"kinds: domain domain domain", b"kinds: vector domain domain", "expected 2 or 3 axes of space"),
    (b"kinds: domain domain domain", b"kinds: domain domain", "3 axes, 2 kinds"),
    (b"space directions: (", b"space directions: (0,0,0) (", "4 space directions"),
    (b"type: int16", b"type: int16\ntype: uint16", "stands there twice"),
    (b"encoding: raw", b"encoding: raw\nline skip: 3", "line skip or byte skip"),
]


@pytest.mark.parametrize(("old", "new", "message"), BAD_NRRD, ids=[new.decode()[:40] for _, new, _ in BAD_NRRD])
def test_an_nrrd_header_that_cannot_be_right_stops(tmp_path: Path, old: bytes, new: bytes, message: str) -> None:
    path = changed(phantoms.nrrd_file(tmp_path / "a.nrrd"), (old, new))
    with pytest.raises(CaseError, match=message) as caught:
        read_itk(path)
    assert str(path) in str(caught.value)


def test_axes_without_a_place(tmp_path: Path) -> None:
    """Axes of length 1 that are none of space are dropped; longer ones are vectors, colours or time, and stop."""
    path = changed(
        phantoms.nrrd_file(tmp_path / "a.nrrd"),
        (b"dimension: 3", b"dimension: 4"),
        (b"sizes: 12 10 8", b"sizes: 1 12 10 8"),
        (b"space directions: ", b"space directions: none "),
        (b"kinds: domain", b"kinds: list domain"),
    )
    volume = read_itk(path)
    assert (volume.array.shape, codes(volume)) == ((1, 12, 10, 8), {"trailing-dimension"})
    np.testing.assert_array_equal(volume.array[0], phantoms.ramp())
    with pytest.raises(CaseError, match="expected 2 or 3 axes of space and single numbers"):
        read_itk(changed(path, (b"sizes: 1 12 10 8", b"sizes: 2 6 10 8")))


BAD_META = [
    (b"ElementSpacing = ", b"ElementSpacing = 0 ", "ElementSpacing is .*expected 3 numbers above 0"),
    (b"ElementSpacing", b"Elementspazing", "not all there"),
    (b"Offset", b"Offzet", "not all there"),
    (b"TransformMatrix = ", b"TransformMatrix = 2 ", "not axes of length 1"),
    (b"ElementType = MET_SHORT", b"ElementType = MET_SHORT_ARRAY", "expected single numbers"),
    (b"ElementType", b"ElementNumberOfChannels = 3\nElementType", "voxels of 3 x MET_SHORT"),
    (b"NDims = 3", b"NDims = 4", "do not fit"),
    (b"DimSize = 12 10 8", b"DimSize = 12 10 9", "claims 2160 bytes, the file has 1920"),
    (b"BinaryData = True", b"BinaryData = False", "written as text"),
    (b"BinaryData = True", b"BinaryData = Perhaps", "expected True or False"),
    (b"ElementType", b"ElementByteOrderMSB = True\nElementType", "stands there twice"),
    (b"ElementType", b"ElementToIntensityFunctionSlope = 2\nElementType", "which nobody applies"),
    (b"ElementType", b"HeaderSize = 7\nElementType", "HeaderSize is '7'"),
    (b"Offset = ", b"Offset = nan", "expected numbers|give no grid"),
]


@pytest.mark.parametrize(("old", "new", "message"), BAD_META, ids=[new.decode()[:40] for _, new, _ in BAD_META])
def test_a_metaimage_header_that_cannot_be_right_stops(tmp_path: Path, old: bytes, new: bytes, message: str) -> None:
    path = changed(phantoms.mha_file(tmp_path / "a.mha"), (old, new))
    with pytest.raises(CaseError, match=message) as caught:
        read_itk(path)
    assert str(path) in str(caught.value)


def test_a_compressed_size_that_lies_is_said_or_stops(tmp_path: Path) -> None:
    path = phantoms.mha_file(tmp_path / "a.mha", packed=True)
    size = path.read_bytes().partition(b"CompressedDataSize = ")[2].partition(b"\n")[0]
    changed(path, (b"CompressedDataSize = " + size, b"CompressedDataSize = %d" % (int(size) - 5)))
    volume = read_itk(path)
    np.testing.assert_array_equal(volume.array[0], phantoms.ramp())
    assert codes(volume) == {"compressed-size"}
    changed(path, (b"CompressedDataSize = ", b"CompressedDataSize = 9"))
    with pytest.raises(CaseError, match=r"CompressedDataSize is \d+, \d+ bytes are there"):
        read_itk(path)


def test_left_handed_and_sheared_axes_are_kept(tmp_path: Path) -> None:
    flipped = phantoms.oblique()
    flipped[:3, 2] *= -1
    path = phantoms.mha_file(tmp_path / "a.mha", affine=flipped)
    volume = read_itk(path)
    np.testing.assert_allclose(volume.geometry.affine, flipped, atol=1e-5)
    np.testing.assert_allclose(second_opinion(path)[1], flipped, atol=1e-4)
    sheared = phantoms.oblique()
    sheared[:3, 2] += 0.3 * sheared[:3, 1]
    for kind, make in MAKERS.items():
        volume = read_itk(make(tmp_path / f"s.{kind}", affine=sheared))
        np.testing.assert_allclose(volume.geometry.affine, sheared, atol=1e-5)
        assert codes(volume) == {"sheared-grid"}


def test_units_become_millimetres(tmp_path: Path) -> None:
    small = phantoms.AXIAL.copy()
    small[:3] *= 1e-3
    path = changed(
        phantoms.nrrd_file(tmp_path / "a.nrrd", affine=small),
        (b"kinds:", b'space units: "m" "m" "m"\nkinds:'),
    )
    np.testing.assert_allclose(read_itk(path).geometry.affine, phantoms.AXIAL, rtol=1e-5)
    assert codes(read_itk(path)) == {"units"}
    assert codes(read_itk(phantoms.nrrd_file(tmp_path / "b.nrrd", affine=small))) == {"units-unknown"}
    mha = changed(phantoms.mha_file(tmp_path / "a.mha", affine=small), (b"DimSize", b"DistanceUnits = m\nDimSize"))
    np.testing.assert_allclose(read_itk(mha).geometry.affine, phantoms.AXIAL, rtol=1e-5)


def test_no_directions_mean_no_world(tmp_path: Path) -> None:
    path = phantoms.nrrd_file(tmp_path / "a.nrrd")
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join(line for line in lines if not line.startswith(b"space")))
    mha = phantoms.mha_file(tmp_path / "a.mha")
    changed(mha, (b"TransformMatrix", b"Comment"))
    for file in (path, mha):
        volume = read_itk(file)
        assert not volume.geometry.has_world
        assert codes(volume) == {"no-world-coordinates"}
    assert read_itk(mha).geometry.spacing_mm == pytest.approx((0.7, 0.9, 2.5))


def test_a_plane_in_space_keeps_its_place(tmp_path: Path) -> None:
    path = changed(
        phantoms.nrrd_file(tmp_path / "a.nrrd", affine=phantoms.oblique()),
        (b"dimension: 3", b"dimension: 2"),
        (b"sizes: 12 10 8", b"sizes: 12 80"),
        (b"kinds: domain domain domain", b"kinds: domain domain"),
    )
    head, _, rest = path.read_bytes().partition(b"space directions: ")
    vectors, _, rest = rest.partition(b"\n")
    path.write_bytes(head + b"space directions: " + b" ".join(vectors.split(b" ")[:2]) + b"\n" + rest)
    volume = read_itk(path)
    assert volume.array.shape == (1, 12, 80)
    np.testing.assert_allclose(volume.geometry.affine[:, [0, 1, 3]], phantoms.oblique()[:, [0, 1, 3]], atol=1e-5)
    assert volume.geometry.has_world


def test_limits_and_holes(tmp_path: Path) -> None:
    with pytest.raises(CaseError, match=r"960 voxels of int16.*--max-voxels 960"):
        read_itk(phantoms.nrrd_file(tmp_path / "a.nrrd"), max_voxels=100)
    path = changed(
        phantoms.nrrd_file(tmp_path / "b.nrrd"), (b"type: int16", b"type: float"), (b"sizes: 12", b"sizes: 6")
    )
    head, _, _ = path.read_bytes().partition(b"\n\n")
    values = np.ones(480, "<f4")
    values[7] = np.nan
    path.write_bytes(head + b"\n\n" + values.tobytes())
    assert read_itk(path).notes[0].detail == "1 voxels are NaN or inf, the first at index (1, 1, 0)"


def test_a_source_names_both_of_its_files_and_has_its_limit(tmp_path: Path) -> None:
    head, _, data = phantoms.nrrd_file(tmp_path / "a.nrrd").read_bytes().partition(b"\n\n")
    (tmp_path / "a.raw").write_bytes(data)
    (tmp_path / "a.nhdr").write_bytes(head + b"\ndata file: a.raw\n")
    source = only_source(tmp_path / "a.nhdr")
    assert source.files == (tmp_path / "a.nhdr", tmp_path / "a.raw")
    with pytest.raises(CaseError, match="--max-voxels 960"):
        read_source(source, ReadOptions(max_voxels=10))


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha"])
def test_convert_wants_a_place(tmp_path: Path, name: str) -> None:
    """N02 holds for every format."""
    path = (phantoms.nrrd_file if name == "a.nrrd" else phantoms.mha_file)(tmp_path / name)
    assert convert(path, tmp_path / "out").done == ("a",)
    path.write_bytes(path.read_bytes().replace(b"space directions", b"special").replace(b"TransformMatrix", b"Comment"))
    assert [failure.code for failure in convert(path, tmp_path / "none").failures] == ["no-world-coordinates"]
