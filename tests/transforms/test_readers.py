"""What lies behind a path, and the loading transform of the chains."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import label_phantoms
import nibabel as nib
import numpy as np
import phantoms
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, LoadImage
from PIL import Image
from voxelwise.errors import CaseError, UsageError
from voxelwise.transforms import look, readers
from voxelwise.transforms.dicom import SliceError, read_header
from voxelwise.transforms.loading import LoadVolume, VolumeReader, to_tensor
from voxelwise.transforms.read_options import ReadOptions
from voxelwise.transforms.readers import find_sources, read_geometry, read_source, read_volume
from voxelwise.transforms.volume import Geometry, Volume
from voxelwise.transforms.writers import write_volume


def test_missing_and_empty_paths_are_wrong_use(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere does not exist"):
        find_sources(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="is empty; give a file or a folder with images"):
        find_sources(tmp_path)


def test_a_mixed_folder_is_sorted_by_content(tmp_path: Path) -> None:
    phantoms.ct_series(tmp_path / "b" / "series", names=[f"{k:08d}" for k in range(8)])
    phantoms.nifti_file(tmp_path / "a" / "one.nii.gz")
    phantoms.nifti_file(tmp_path / "a" / "time.nii", np.stack([phantoms.ramp()] * 2, axis=-1))
    Image.fromarray(np.zeros((3, 4), np.uint8)).save(tmp_path / "a" / "picture.png")
    (tmp_path / "a" / "broken.nii.gz").write_bytes(b"no image")
    (tmp_path / "notes.txt").write_text("nothing")
    found = find_sources(tmp_path)
    assert [(source.kind, source.name, source.shape) for source in found.sources] == [
        ("nifti", "one", (12, 10, 8)),
        ("picture", "picture", (4, 3)),
        ("nifti", "time_t000", (12, 10, 8)),
        ("nifti", "time_t001", (12, 10, 8)),
        ("dicom", "", (12, 10, 8)),
    ]
    assert [(stop.code, stop.files[0].name) for stop in found.stopped] == [("unknown-format", "broken.nii.gz")]
    assert (found.rubbish, found.listed) == (1, ())
    assert [read_source(source).channels for source in found.sources] == [1] * 5


def test_an_unreadable_file_stops_its_neighbours_only(tmp_path: Path) -> None:
    phantoms.ct_series(tmp_path, names=[f"a{k}" for k in range(8)])
    phantoms.ct_series(tmp_path, names=[f"c{k}" for k in range(8)], seed=1)
    phantoms.ct_series(tmp_path, names=[f"e{k}" for k in range(8)], seed=2)
    (tmp_path / "d").write_bytes(b"")
    found = find_sources(tmp_path)
    assert [source.files[0].name for source in found.sources] == ["a0"]
    assert len(found.stopped) == 2
    assert all(tmp_path / "d" in stop.files for stop in found.stopped)


def test_one_volume_means_one(tmp_path: Path) -> None:
    phantoms.nifti_file(tmp_path / "a.nii")
    geometry, channels = read_geometry(tmp_path / "a.nii")
    assert (geometry.shape, channels) == ((12, 10, 8), 1)
    phantoms.nifti_file(tmp_path / "b.nii")
    with pytest.raises(CaseError, match="holds 2 volumes, expected exactly one"):
        read_volume(tmp_path)
    (tmp_path / "only.txt").write_text("x")
    with pytest.raises(CaseError, match=r"only\.txt: not an image in a format that is read"):
        read_volume(tmp_path / "only.txt")


@pytest.mark.parametrize("kind", ["dicom", "nifti", "picture", "itk"])
def test_geometry_without_voxels_is_that_of_the_volume(tmp_path: Path, kind: str) -> None:
    path = tmp_path / {"dicom": "series", "nifti": "a.nii.gz", "picture": "a.png", "itk": "a.nrrd"}[kind]
    if kind == "dicom":
        phantoms.ct_series(path)
    elif kind == "nifti":
        phantoms.nifti_file(path)
    elif kind == "picture":
        Image.fromarray(np.zeros((3, 4, 3), np.uint8)).save(path)
    else:
        phantoms.nrrd_file(path)
    geometry, channels = read_geometry(path)
    volume = read_volume(path)
    assert (geometry.shape, geometry.has_world, channels) == (
        volume.geometry.shape,
        volume.geometry.has_world,
        volume.channels,
    )
    np.testing.assert_array_equal(geometry.affine, volume.geometry.affine)


def test_dicom_and_the_nifti_made_of_it_lie_on_one_grid(tmp_path: Path) -> None:
    phantoms.ct_series(tmp_path / "series", affine=phantoms.oblique())
    volume = read_volume(tmp_path / "series")
    write_volume(tmp_path / "volume.nii.gz", volume)
    again = read_volume(tmp_path / "volume.nii.gz")
    np.testing.assert_array_equal(again.array, volume.array)
    np.testing.assert_array_equal(again.geometry.affine, volume.geometry.affine)
    assert again.array.dtype == volume.array.dtype
    assert again.notes == again.repairs == ()


def test_a_chain_loads_dicom_nifti_and_pictures(tmp_path: Path) -> None:
    phantoms.ct_series(tmp_path / "series")
    phantoms.nifti_file(tmp_path / "a.nii.gz")
    Image.fromarray(np.zeros((3, 4, 3), np.uint8)).save(tmp_path / "a.png")
    sample = {"image": tmp_path / "series", "label": str(tmp_path / "a.nii.gz"), "picture": tmp_path / "a.png"}
    loaded = Compose([LoadVolume(["image", "label", "picture"])])(sample)
    assert [tuple(loaded[key].shape) for key in sample] == [(1, 12, 10, 8), (1, 12, 10, 8), (3, 4, 3, 1)]
    image = loaded["image"]
    assert isinstance(image, MetaTensor)
    assert (image.dtype, image.affine.dtype) == (torch.int16, torch.float64)
    np.testing.assert_allclose(image.affine.numpy(), phantoms.AXIAL, atol=1e-6)
    assert set(image.meta) == {"affine", "original_affine", "spatial_shape", "has_world", "modality", "space"}
    assert "anary" not in repr(image.meta)
    assert sample["image"] == tmp_path / "series"


def test_several_files_are_channels_on_one_grid(tmp_path: Path) -> None:
    files = [phantoms.nifti_file(tmp_path / f"{name}.nii", phantoms.ramp() + k) for k, name in enumerate("ab")]
    image = LoadVolume("image")({"image": files})["image"]
    np.testing.assert_array_equal(image.numpy(), np.stack([phantoms.ramp(), phantoms.ramp() + 1]))
    moved = phantoms.AXIAL.copy()
    moved[0, 3] += 1
    for name, array, affine, message in (
        ("moved", phantoms.ramp(), moved, r"1\.43 voxels apart at the corners"),
        ("shape", phantoms.ramp((12, 10, 7)), None, r"shapes \(12, 10, 8\) and \(12, 10, 7\)"),
    ):
        other = phantoms.nifti_file(tmp_path / f"{name}.nii", array, affine)
        with pytest.raises(CaseError, match=rf"{name}\.nii: another grid than .*a\.nii: {message}"):
            LoadVolume("image")({"image": [files[0], other]})
    with pytest.raises(ValueError, match="at least one file"):
        LoadVolume("image")({"image": []})


def test_a_fourth_dimension_is_channels_only_where_declared(tmp_path: Path) -> None:
    path = phantoms.nifti_file(tmp_path / "a.nii.gz", np.stack([phantoms.ramp()] * 3, axis=-1))
    assert LoadVolume("image", channels=True)({"image": path})["image"].shape == (3, 12, 10, 8)
    with pytest.raises(CaseError, match="holds 3 volumes"):
        LoadVolume("image")({"image": path})


def test_types_that_torch_lacks_are_widened_and_others_shared() -> None:
    geometry = Geometry((2, 2, 2), np.eye(4))
    for stored, wanted in (
        (np.uint16, torch.int32),
        (np.uint32, torch.int64),
        (np.int16, torch.int16),
        (np.float32, torch.float32),
    ):
        assert to_tensor(Volume(np.ones((1, 2, 2, 2), stored), geometry)).dtype == wanted
    array = np.ones((1, 2, 2, 2), np.int16)
    assert np.shares_memory(to_tensor(Volume(array, geometry)).numpy(), array)
    assert to_tensor(Volume(array[:, ::-1], geometry)).shape == (1, 2, 2, 2)


def test_load_of_a_damaged_file_asks_no_other_reader(tmp_path: Path) -> None:
    path = phantoms.nifti_file(tmp_path / "a.nii", magic=b"xxxx")
    with pytest.raises(CaseError, match="magic bytes"):
        LoadVolume("image")({"image": path})


@pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader")
def test_monai_load_image_takes_our_reader(tmp_path: Path) -> None:
    phantoms.ct_series(tmp_path / "series")
    image = LoadImage(reader=VolumeReader(), image_only=True, dtype=None)(tmp_path / "series")
    assert tuple(image.shape) == (1, 12, 10, 8)
    np.testing.assert_allclose(image.affine.numpy(), phantoms.AXIAL, atol=1e-6)


def test_dicom_pictures_are_never_stacked(tmp_path: Path) -> None:
    phantoms.ct_series(tmp_path, SOPClassUID="1.2.840.10008.5.1.4.1.1.7", Modality="OT")
    found = find_sources(tmp_path)
    assert [source.shape for source in found.sources] == [(12, 10)] * 8
    volume = read_source(found.sources[0])
    assert (volume.array.shape, volume.geometry.has_world) == ((1, 12, 10), False)
    assert LoadVolume("image")({"image": found.sources[0]})["image"].shape == (1, 12, 10, 1)


@pytest.mark.parametrize(
    ("name", "channels", "shape"),
    [("SC_rgb.dcm", 3, (100, 100)), ("image_dfl.dcm", 1, (512, 512)), ("MR_small_bigendian.dcm", 1, (64, 64, 1))],
)
def test_real_odd_dicom(shared_data: Callable[[str], Path], name: str, channels: int, shape: tuple[int, ...]) -> None:
    volume = read_volume(shared_data("odd_dicom") / name)
    assert (volume.channels, volume.geometry.shape) == (channels, shape)


def test_real_odd_folder_ends_without_a_traceback(shared_data: Callable[[str], Path]) -> None:
    found = find_sources(shared_data("odd_dicom"))
    assert {"truncated", "not-dicom"} <= {stop.code for stop in found.stopped}
    assert "not a volume: RT Structure Set Storage" in {listed.reason for listed in found.listed}


def test_a_pair_of_files_is_one_source(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Pair(phantoms.ramp(), phantoms.AXIAL), tmp_path / "pair.hdr")
    shutil.copy(tmp_path / "pair.img", tmp_path / "lonely.img")
    found = find_sources(tmp_path)
    assert [[file.name for file in source.files] for source in found.sources] == [["pair.hdr", "pair.img"]]


def test_what_was_proved_in_this_process_is_not_parsed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stack stays with its source as long as no file changes, and does not travel to other processes."""
    files = phantoms.ct_series(tmp_path)
    (source,) = find_sources(tmp_path).sources
    assert source == replace(source, proved=None)
    assert source.__getstate__()["proved"] is None
    parsed = []
    monkeypatch.setattr(readers, "read_header", lambda *arguments: parsed.append(arguments) or read_header(*arguments))
    first = read_source(source)
    assert parsed == []
    os.utime(files[2], ns=(1, 1))
    np.testing.assert_array_equal(read_source(source).array, first.array)
    np.testing.assert_array_equal(read_source(replace(source, proved=None)).array, first.array)
    assert len(parsed) == 16


def test_a_cut_file_stops_its_own_series_and_links_are_not_followed(tmp_path: Path) -> None:
    phantoms.nifti_file(tmp_path / "elsewhere.nii")
    root = tmp_path / "root"
    for letter, seed in (("a", 1), ("b", 2)):
        phantoms.ct_series(root, seed=seed, names=[f"{letter}{k:02d}.dcm" for k in range(8)])
    (root / "a08.dcm").write_bytes(b"")
    (root / "link.nii").symlink_to(tmp_path / "elsewhere.nii")
    (root / "loop").symlink_to(root)
    found = find_sources(root)
    assert [source.files[0].name for source in found.sources] == ["b00.dcm"]
    assert [(stop.code, len(stop.files)) for stop in found.stopped] == [("empty-file", 9)]
    assert sorted(entry.files[0].name for entry in found.listed) == ["link.nii", "loop"]


def test_one_time_point_is_chosen(tmp_path: Path) -> None:
    path = phantoms.nifti_file(tmp_path / "a.nii", np.stack([phantoms.ramp()] * 3, axis=-1))
    for time, parts in (("all", [0, 1, 2]), ("first", [0]), ("2", [2])):
        assert [source.part for source in find_sources(path, ReadOptions(time=time)).sources] == parts
    (stop,) = find_sources(path, ReadOptions(time="3")).stopped
    assert (stop.code, "has no time point 3, it has 0 to 2" in stop.message) == ("no-time-point", True)


def test_a_file_without_rights_stops_its_series(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """EACCES and EIO are of that file and its series."""
    files = phantoms.ct_series(tmp_path / "a")
    phantoms.ct_series(tmp_path / "b", seed=3)
    real = open

    def refuse(path: object, *arguments: object) -> object:
        if path == files[3]:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return real(path, *arguments)  # type: ignore[call-overload]

    monkeypatch.setattr(look, "open", refuse, raising=False)
    found = find_sources(tmp_path)
    assert [source.files[0].parent.name for source in found.sources] == ["b"]
    assert [(stop.code, len(stop.files)) for stop in found.stopped] == [("unreadable", 8)]


@pytest.mark.parametrize("zipped", [False, True])
def test_a_text_without_a_suffix_is_no_lost_slice(tmp_path: Path, zipped: bool) -> None:
    """SHA256SUMS beside slices is listed; a text where a slice should be stops its series."""
    tree = tmp_path / "tree"
    phantoms.ct_series(tree, seed=1, names=[f"IM{k}" for k in range(8)])
    (tree / "SHA256SUMS").write_text(f"{'0' * 64}  IM0\n")
    (tree / "CHANGES").write_text("Größe\n")
    (tree / "sub").mkdir()
    (tree / "sub" / "notes7").write_text("nothing here\n")
    root = tree
    if zipped:
        root = tmp_path / "tree.zip"
        with zipfile.ZipFile(root, "w") as packed:
            for file in sorted(path for path in tree.rglob("*") if path.is_file()):
                packed.write(file, file.relative_to(tree).as_posix())
    found = find_sources(root)
    assert [source.shape for source in found.sources] == [(12, 10, 8)]
    assert sorted(entry.files[0].name for entry in found.listed) == ["CHANGES", "SHA256SUMS", "notes7"]
    assert {entry.reason for entry in found.listed} == {"plain text, no image"}
    assert found.stopped == ()


@pytest.mark.parametrize(("name", "content"), [("IM5", b"an error page"), ("IM8", b"text"), ("IM5", b"")])
def test_a_text_in_the_place_of_a_slice_stops_its_series(tmp_path: Path, name: str, content: bytes) -> None:
    phantoms.ct_series(tmp_path, seed=1, names=[f"IM{k}" for k in range(8)])
    (tmp_path / name).write_bytes(content)
    (stop,) = find_sources(tmp_path).stopped
    assert (stop.code, f"{name}: " in stop.message) == ("plain-text" if content else "empty-file", True)


def test_a_damaged_segmentation_is_no_lost_slice(tmp_path: Path) -> None:
    """A SEG that is cut stops alone, beside slices and beside other SEGs; a text among SEGs takes none with it."""
    files = phantoms.ct_series(tmp_path / "in", names=[f"IM{k}.dcm" for k in range(8)])
    box = label_phantoms.box((12, 10, 8), (2, 6), (2, 6), (2, 6))
    for number in (4, 5, 6):
        label_phantoms.seg_file(tmp_path / "in" / f"S{number}.dcm", files, {"liver": box})
    cut = (tmp_path / "in" / "S5.dcm").rename(tmp_path / "in" / "IM9.dcm")
    cut.write_bytes(cut.read_bytes()[:-40])
    (tmp_path / "labels").mkdir()
    shutil.copy(tmp_path / "in" / "S4.dcm", tmp_path / "labels" / "1.dcm")
    (tmp_path / "labels" / "2.dcm").write_bytes(b"")
    found = find_sources(tmp_path)
    assert [source.shape for source in found.sources] == [(12, 10, 8)]
    assert {(stop.code, *(file.name for file in stop.files)) for stop in found.stopped} == {
        ("truncated", "IM9.dcm"),
        ("empty-file", "2.dcm"),
    }
    assert {file.name for entry in found.listed for file in entry.files} == {"S4.dcm", "S6.dcm", "1.dcm"}


def test_a_refused_slice_comes_back_whole_from_another_process() -> None:
    error = pickle.loads(pickle.dumps(SliceError("a: cut", "truncated", ("1.2", "3.4"), "5.6")))
    assert (str(error), error.code, error.series, error.sop_class) == ("a: cut", "truncated", ("1.2", "3.4"), "5.6")
