"""NIfTI: the geometry is proved or refused, the stream is read to its end, no number is invented."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import phantoms
import pytest
from voxelwise.errors import CaseError
from voxelwise.transforms.nifti import read_header, read_nifti

NAN = float("nan")


def codes(volume: Any) -> set[str]:
    """Codes of all repairs and notes."""
    return {entry.code for entry in (*volume.repairs, *volume.notes)}


@pytest.mark.parametrize("name", ["image.nii", "image.nii.gz", "IMAGE.NII.GZ"])
def test_a_plain_file_is_read_exactly(tmp_path: Path, name: str) -> None:
    volume = read_nifti(phantoms.nifti_file(tmp_path / name))
    np.testing.assert_array_equal(volume.array[0], phantoms.ramp())
    assert volume.array.dtype == np.int16
    np.testing.assert_array_equal(volume.geometry.affine, phantoms.AXIAL.astype(np.float32))
    assert volume.geometry.affine.dtype == np.float64
    assert (volume.name.lower(), codes(volume)) == ("image", set())
    assert volume.array.flags.writeable


@pytest.mark.parametrize("name", [f"{code}.nii.gz" for code in ("RAS", "LPI", "PSR", "IAR", "SPR")])
def test_real_volumes_agree_with_nibabel(shared_data: Callable[[str], Path], name: str) -> None:
    path = shared_data("nifti_48_orientations") / name
    volume, image = read_nifti(path), nib.load(path)
    np.testing.assert_array_equal(volume.geometry.affine, image.affine)
    np.testing.assert_allclose(volume.array[0], np.asarray(image.dataobj), rtol=1e-6)


def test_a_real_label_map_and_image_agree_with_nibabel(shared_data: Callable[[str], Path]) -> None:
    for kind in ("images", "labels"):
        path = sorted((shared_data("hippocampus") / kind).iterdir())[0]
        volume, image = read_nifti(path), nib.load(path)
        np.testing.assert_array_equal(volume.array[0], np.asarray(image.dataobj))
        np.testing.assert_array_equal(volume.geometry.affine, image.affine)


@pytest.mark.parametrize(
    ("slope", "inter", "dtype"), [(1, -1024, np.int16), (2, 0, np.int16), (1, 40000, np.uint16), (3, -40000, np.int32)]
)
def test_whole_scaling_stays_whole(tmp_path: Path, slope: float, inter: float, dtype: type) -> None:
    path = phantoms.nifti_file(tmp_path / "a.nii", scl_slope=slope, scl_inter=inter)
    volume = read_nifti(path)
    assert volume.array.dtype == dtype
    np.testing.assert_array_equal(volume.array[0], np.asarray(nib.load(path).dataobj))


def test_other_scaling_becomes_float32(tmp_path: Path) -> None:
    path = phantoms.nifti_file(tmp_path / "a.nii", scl_slope=0.1, scl_inter=-1000)
    volume = read_nifti(path)
    assert volume.array.dtype == np.float32
    np.testing.assert_allclose(volume.array[0], np.asarray(nib.load(path).dataobj), rtol=1e-6)


@pytest.mark.parametrize(("slope", "inter"), [(0, 100), (NAN, NAN), (0, float("inf"))])
def test_no_scaling_where_the_slope_says_none(tmp_path: Path, slope: float, inter: float) -> None:
    volume = read_nifti(phantoms.nifti_file(tmp_path / "a.nii", scl_slope=slope, scl_inter=inter))
    np.testing.assert_array_equal(volume.array[0], phantoms.ramp())


def test_qform_alone_gives_the_geometry(tmp_path: Path) -> None:
    affine = phantoms.oblique() * [[-1], [1], [1], [1]]
    volume = read_nifti(phantoms.nifti_file(tmp_path / "a.nii", affine=affine, sform_code=0))
    np.testing.assert_allclose(volume.geometry.affine, affine, atol=1e-5)
    assert codes(volume) == set()


def test_no_code_means_no_world(tmp_path: Path) -> None:
    volume = read_nifti(phantoms.nifti_file(tmp_path / "a.nii", sform_code=0, qform_code=0))
    assert not volume.geometry.has_world
    assert codes(volume) == {"no-world-coordinates"}
    assert volume.geometry.spacing_mm == pytest.approx((0.7, 0.9, 2.5))


def test_a_shear_is_kept_and_said(tmp_path: Path) -> None:
    """A qform cannot hold a shear; the sform is taken where the qform is the same but for it."""
    path = phantoms.nifti_file(tmp_path / "a.nii", srow_y=[0, -0.9, 0.67, 12])
    volume = read_nifti(path)
    assert codes(volume) == {"sheared-grid", "qform-without-shear"}
    assert volume.geometry.affine[1, 2] == pytest.approx(0.67)


@pytest.mark.parametrize(("unit", "factor"), [(1, 1e-3), (3, 1e3)])
def test_units_become_millimetres(tmp_path: Path, unit: int, factor: float) -> None:
    affine = phantoms.AXIAL.copy()
    affine[:3] *= factor
    volume = read_nifti(phantoms.nifti_file(tmp_path / "a.nii", affine=affine, xyzt_units=unit))
    np.testing.assert_allclose(volume.geometry.affine, phantoms.AXIAL, rtol=1e-6)
    assert codes(volume) == {"units"}


def test_unknown_units_are_said_where_the_spacing_is_odd(tmp_path: Path) -> None:
    affine = phantoms.AXIAL.copy()
    affine[:3] *= 1e-3
    assert codes(read_nifti(phantoms.nifti_file(tmp_path / "a.nii", affine=affine, xyzt_units=0))) == {"units-unknown"}


def test_time_points_are_read_one_by_one(tmp_path: Path) -> None:
    array = np.stack([phantoms.ramp(), phantoms.ramp() + 1, phantoms.ramp() + 2], axis=-1)
    path = phantoms.nifti_file(tmp_path / "a.nii.gz", array)
    with pytest.raises(CaseError, match="4D, 3 volumes where one is expected"):
        read_nifti(path)
    one = read_nifti(path, 1)
    np.testing.assert_array_equal(one.array[0], phantoms.ramp() + 1)
    assert one.name == "a_t001"
    np.testing.assert_array_equal(read_nifti(path, channels=True).array, np.moveaxis(array, -1, 0))
    with pytest.raises(CaseError, match="volume 3 was asked for"):
        read_nifti(path, 3)


def test_a_trailing_dimension_of_one_is_dropped(tmp_path: Path) -> None:
    volume = read_nifti(phantoms.nifti_file(tmp_path / "a.nii", phantoms.ramp()[..., None]))
    assert volume.array.shape == (1, 12, 10, 8)
    assert codes(volume) == {"trailing-dimension"}


def test_two_dimensions_keep_their_plane(tmp_path: Path) -> None:
    volume = read_nifti(phantoms.nifti_file(tmp_path / "a.nii", phantoms.ramp((6, 5)), phantoms.oblique()))
    assert volume.array.shape == (1, 6, 5)
    np.testing.assert_array_equal(volume.geometry.affine, phantoms.oblique())


def test_pairs_nifti2_and_big_endian(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Pair(phantoms.ramp(), phantoms.AXIAL), tmp_path / "pair.hdr")
    nib.save(nib.Nifti2Image(phantoms.ramp(), phantoms.AXIAL), tmp_path / "two.nii.gz")
    big = nib.Nifti1Image(phantoms.ramp(), phantoms.AXIAL, nib.Nifti1Header(endianness=">"))
    big.set_sform(phantoms.AXIAL, 1)
    big.set_data_dtype(np.int16)
    nib.save(big, tmp_path / "big.nii")
    for name in ("pair.hdr", "two.nii.gz", "big.nii"):
        volume = read_nifti(tmp_path / name)
        np.testing.assert_array_equal(volume.array[0], phantoms.ramp())
        assert volume.array.dtype == np.dtype("<i2")
    (tmp_path / "pair.img").unlink()
    with pytest.raises(CaseError, match=r"belongs to pair\.img, which is not there"):
        read_nifti(tmp_path / "pair.hdr")


def test_names_do_not_decide(tmp_path: Path) -> None:
    packed = phantoms.nifti_file(tmp_path / "a.nii.gz")
    packed.rename(tmp_path / "packed.nii")
    phantoms.nifti_file(tmp_path / "b.nii").rename(tmp_path / "plain.nii.gz")
    for name in ("packed.nii", "plain.nii.gz"):
        volume = read_nifti(tmp_path / name)
        np.testing.assert_array_equal(volume.array[0], phantoms.ramp())
        assert codes(volume) == {"suffix-lies"}


def test_several_gzip_members_are_one_file(tmp_path: Path) -> None:
    raw = phantoms.nifti_file(tmp_path / "a.nii").read_bytes()
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(raw[:600]) + gzip.compress(raw[600:]))
    np.testing.assert_array_equal(read_nifti(tmp_path / "b.nii.gz").array[0], phantoms.ramp())


def test_nan_is_handed_on_and_counted(tmp_path: Path) -> None:
    array = phantoms.ramp().astype(np.float32)
    array[3, 4, 5] = np.nan
    volume = read_nifti(phantoms.nifti_file(tmp_path / "a.nii", array))
    assert volume.notes[0].detail == "1 voxels are NaN or inf, the first at index (3, 4, 5)"


BAD_HEADERS: list[tuple[dict[str, Any], str]] = [
    ({"qoffset_x": 45}, r"sform and qform are 42\.9 voxels apart at the corners"),
    ({"qform_code": 0, "srow_x": [NAN, 0, 0, 0]}, "sform_code is 1, and srow_x, srow_y, srow_z give no grid"),
    ({"qform_code": 0, "srow_x": [0, 0, 0, 0]}, "give no grid"),
    ({"sform_code": 0, "pixdim": [1, 0, 0, 0, 1, 1, 1, 1]}, "qform_code is 1, and pixdim"),
    ({"sform_code": 0, "pixdim": [1, -0.7, 0.9, 2.5, 1, 1, 1, 1]}, "qform_code is 1, and pixdim"),
    ({"dim": [3, 12, 10, 40, 1, 1, 1, 1]}, "the header claims 9952 bytes, the file has 2272"),
    ({"dim": [3, 12, 10, 4, 1, 1, 1, 1]}, "the header claims 1312 bytes, the file has 2272"),
    ({"dim": [3, 30000, 30000, 30000, 1, 1, 1, 1]}, "the header claims 54000000000352 bytes"),
    ({"dim": [3, -40, 10, 8, 1, 1, 1, 1]}, "dim is .*at least 1"),
    ({"dim": [3, 12, 10, 0, 1, 1, 1, 1]}, "dim is .*at least 1"),
    ({"dim": [6, 12, 2, 2, 5, 4, 1, 1]}, "two of them behind the space"),
    ({"magic": b"xxxx"}, "magic bytes are b'xxx"),
    ({"datatype": 777}, "datatype 777"),
    ({"datatype": 128, "bitpix": 24}, "RGB24"),
    ({"scl_slope": 1, "scl_inter": float("inf")}, "scl_inter inf"),
    ({"vox_offset": 100}, "vox_offset is 100"),
]


@pytest.mark.parametrize(
    ("fields", "message"), BAD_HEADERS, ids=[str(sorted(fields)) + str(i) for i, (fields, _) in enumerate(BAD_HEADERS)]
)
def test_a_header_that_cannot_be_right_stops(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    path = phantoms.nifti_file(tmp_path / "a.nii", phantoms.ramp(), **fields)
    with pytest.raises(CaseError, match=message) as caught:
        read_nifti(path)
    assert str(path) in str(caught.value)


def test_the_user_may_say_which_form_holds(tmp_path: Path) -> None:
    path = phantoms.nifti_file(tmp_path / "a.nii", qoffset_x=45)
    assert read_nifti(path, affine="sform").geometry.affine[0, 3] == 15
    chosen = read_nifti(path, affine="qform")
    assert chosen.geometry.affine[0, 3] == 45
    assert codes(chosen) == {"affine-chosen"}
    with pytest.raises(CaseError, match="--affine qform was given, and qform_code is 0"):
        read_nifti(phantoms.nifti_file(tmp_path / "b.nii", qform_code=0), affine="qform")
    with pytest.raises(ValueError, match="affine must be 'sform' or 'qform'"):
        read_nifti(path, affine="best")


def test_damaged_gzip_stops(tmp_path: Path) -> None:
    whole = phantoms.nifti_file(tmp_path / "a.nii.gz").read_bytes()
    raw = gzip.decompress(whole)
    stored = bytearray(gzip.compress(raw, compresslevel=0))
    stored[len(stored) // 2] ^= 0x40
    claim = bytearray(raw)
    claim[42:48] = (30000).to_bytes(2, "little") * 3
    for name, data, message in (
        ("cut", whole[: int(len(whole) * 0.7)], "ends early"),
        ("crc", bytes(stored), "damaged .*checksum"),
        ("empty", b"", "the file is empty"),
        ("more", gzip.compress(raw + b"\0" * 9), "the stream holds more"),
        ("less", gzip.compress(raw[:-9]), "1911 of 1920 bytes"),
        ("behind", whole + b"text", "no gzip lie behind"),
        ("claim", gzip.compress(bytes(claim)), "more than .* bytes of gzip can hold"),
        ("text", b"this is text, no image", "not a NIfTI header"),
    ):
        path = tmp_path / f"{name}.nii.gz"
        path.write_bytes(data)
        with pytest.raises(CaseError, match=message):
            read_nifti(path)
    (tmp_path / "zeros.nii.gz").write_bytes(whole + b"\0" * 64)
    assert codes(read_nifti(tmp_path / "zeros.nii.gz")) == {"bytes-behind-gzip"}


def test_a_gzip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    head = bytearray(phantoms.nifti_file(tmp_path / "a.nii").read_bytes()[:352])
    head[42:48] = (1024).to_bytes(2, "little") * 3
    (tmp_path / "bomb.nii.gz").write_bytes(
        gzip.compress(bytes(head) + bytes(3 << 20), compresslevel=9) + b"\0" * (4 << 20)
    )
    with pytest.raises(CaseError, match=r"needs 2\.1 GB unpacked .*--max-voxels 1073741824"):
        read_nifti(tmp_path / "bomb.nii.gz")
    with pytest.raises(CaseError, match=r"960 voxels of int16, .* limit 100 voxels.*--max-voxels 960"):
        read_nifti(tmp_path / "a.nii", max_voxels=100)


@pytest.mark.parametrize("colour", [False, True])
def test_a_plane_over_time_without_codes_is_a_film(tmp_path: Path, colour: bool) -> None:
    frames = np.arange(6 * 5 * 4 * (3 if colour else 1), dtype=np.uint8)
    rgb = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    array = (frames.view(rgb) if colour else frames).reshape(6, 5, 1, 4)
    fields = {"sform_code": 0, "qform_code": 0, "pixdim": [1, 0.3, 0.4, 1, 40, 1, 1, 1], "xyzt_units": 2 | 16}
    header = read_header(phantoms.nifti_file(tmp_path / "film.nii.gz", array, **fields))
    assert (header.geometry.film, header.volumes, header.channels) == (True, 1, 3 if colour else 1)
    volume = read_nifti(tmp_path / "film.nii.gz")
    assert volume.array.shape == ((3 if colour else 1), 6, 5, 4)
    wanted = np.stack([array[name] for name in "RGB"]) if colour else array[np.newaxis]
    np.testing.assert_array_equal(volume.array, wanted[:, :, :, 0])
    assert volume.geometry.film
    assert not volume.geometry.has_world
    assert volume.geometry.spacing_mm == pytest.approx((0.3, 0.4, 0.04))
    assert codes(volume) == {"no-world-coordinates"}


def test_colour_in_a_volume_and_a_plane_with_a_place_are_no_films(tmp_path: Path) -> None:
    rgb = np.zeros((6, 5, 4), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    with pytest.raises(CaseError, match="expected a picture or a film"):
        read_nifti(phantoms.nifti_file(tmp_path / "a.nii", rgb, sform_code=0, qform_code=0))
    placed = read_header(phantoms.nifti_file(tmp_path / "b.nii", np.zeros((6, 5, 1, 4), np.int16)))
    assert (placed.volumes, placed.geometry.film, placed.geometry.shape) == (4, False, (6, 5, 1))


def test_declared_channels_of_five_dimensions(tmp_path: Path) -> None:
    array = np.arange(4 * 3 * 2 * 3, dtype=np.int16).reshape(4, 3, 2, 1, 3)
    volume = read_nifti(phantoms.nifti_file(tmp_path / "a.nii", array, intent_code=1007))
    np.testing.assert_array_equal(volume.array, np.moveaxis(array[:, :, :, 0], -1, 0))


@pytest.mark.parametrize(
    ("apart", "code"), [(0.005, set()), (0.05, {"sform-qform-differ"}), (0.2, None)], ids=["rounding", "note", "stop"]
)
def test_how_far_sform_and_qform_may_lie_apart(tmp_path: Path, apart: float, code: set[str] | None) -> None:
    path = phantoms.nifti_file(tmp_path / "a.nii", qoffset_x=phantoms.AXIAL[0, 3] + 0.7 * apart)
    if code is None:
        with pytest.raises(CaseError, match="--affine sform or --affine qform"):
            read_nifti(path)
    else:
        assert codes(read_nifti(path)) == code


def test_scaling_never_overflows(tmp_path: Path) -> None:
    """Large factors and wide types go to float64; whole factors may leave a type on the way and come back."""
    deep = np.array([0, 1, 2**31 - 1], dtype=np.int32).reshape(3, 1, 1)
    for array, slope, inter in (
        (phantoms.ramp(), 3e38, 0),
        (deep, 0.5, 0.25),
        (np.zeros((3, 2, 1), np.int16), 100000, 0),
        (np.array([2**63 + 2048], np.uint64).reshape(1, 1, 1), 1, 5),
    ):
        path = phantoms.nifti_file(tmp_path / "a.nii", array, scl_slope=slope, scl_inter=inter)
        wanted = array * np.float64(np.float32(slope)) + inter
        np.testing.assert_allclose(read_nifti(path).array[0].astype(np.float64), wanted, rtol=1e-12)


@pytest.mark.parametrize("packed", [False, True])
def test_a_pair_may_be_packed(tmp_path: Path, packed: bool) -> None:
    nib.save(nib.Nifti1Pair(phantoms.ramp(), phantoms.AXIAL), tmp_path / "pair.hdr")
    for name in ("pair.img", *(["pair.hdr"] if packed else [])):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes()))
        (tmp_path / name).unlink()
    volume = read_nifti(tmp_path / ("pair.hdr.gz" if packed else "pair.hdr"))
    np.testing.assert_array_equal(volume.array[0], phantoms.ramp())
    assert (volume.name, codes(volume)) == ("pair", set())


def test_big_endian_nifti2_is_read(tmp_path: Path) -> None:
    image = nib.Nifti2Image(phantoms.ramp(), phantoms.AXIAL, nib.Nifti2Header(endianness=">"))
    image.set_data_dtype(np.int16)
    nib.save(image, tmp_path / "a.nii")
    volume = read_nifti(tmp_path / "a.nii")
    np.testing.assert_array_equal(volume.array[0], phantoms.ramp())
    np.testing.assert_array_equal(volume.geometry.affine, phantoms.AXIAL)
