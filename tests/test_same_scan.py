"""One scan, stored in any way, gives one label map: as DICOM in six planes, as our NIfTI, as dcm2niix's, in 48 orders.

The network is untrained and fixed; label maps are compared voxel by voxel after their axes were put in one order.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import phantoms
import pytest
import torch
from voxelwise.networks.registry import build_network
from voxelwise.pipeline.archive.convert import convert
from voxelwise.pipeline.inference.loading import load_predictor
from voxelwise.pipeline.inference.predict import predict
from voxelwise.pipeline.inference.predictor import Predictor
from voxelwise.pipeline.model_folder import write_model_folder
from voxelwise.transforms.chains import build_chain, run_chain
from voxelwise.transforms.geometry import ALL_AXIS_CODES, axis_codes, reorient_to
from voxelwise.transforms.nifti import read_nifti
from voxelwise.transforms.nifti_geometry import GEOMETRIC_FIELDS
from voxelwise.transforms.readers import read_volume
from voxelwise.transforms.restore import restore_labels
from voxelwise.transforms.writers import write_label_map, write_volume

OPTIONS: dict[str, Any] = {"widths": [4, 8]}
PLANES = ("LPS", "LPI", "PIL", "PIR", "LIP", "LIA")  # axial, sagittal, coronal; slices up and down
LABELS = [{"value": 0, "name": "background"}, {"value": 1, "name": "organ"}, {"value": 2, "name": "vessel"}]
DCM2NIIX = Path(sys.executable).with_name("dcm2niix")
CHAIN = [
    {"name": "LoadVolume", "args": {}},
    {"name": "Orient", "args": {"orientation": "RAS"}},
    {"name": "Resample", "args": {"spacing_mm": None}},
]


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    """A fixed small network of three classes."""
    fields: dict[str, Any] = {
        "dims": 3,
        "channels": ["image"],
        "modality": "",
        "labels": LABELS,
        "spacing_mm": None,
        "orientation": "RAS",
        "crop": "none",
        "bias_field": False,
        "normalisation": [{"kind": "zscore"}],
        "patch": [32, 32, 16],
        "network": {"name": "unet", "options": OPTIONS},
        "mirror_axes": [],
        "overlap": 0.5,
        "tta": False,
    }
    torch.manual_seed(4)
    folder = tmp_path_factory.mktemp("model")
    write_model_folder(folder, build_network("unet", 3, 1, len(LABELS), **OPTIONS), OPTIONS, fields)
    return load_predictor(folder, device="cpu", overlap=0.0)


def scan(shape: tuple[int, int, int] = (20, 18, 14)) -> np.ndarray:
    """Noise on which the network gives all of its classes."""
    return np.random.default_rng(5).integers(-200, 900, shape).astype(np.int16)


def in_order(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """A written label map with axes that point to RAS, and its affine."""
    image = nib.load(path)
    array, affine = reorient_to(np.asanyarray(image.dataobj)[np.newaxis], image.affine, "RAS")
    return array[0], affine


def as_dcm2niix_orders(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows from the bottom to the top: the order in which dcm2niix stores what DICOM stores from the top."""
    flipped = affine.copy()
    flipped[:3, 3] += affine[:3, 1] * (array.shape[1] - 1)
    flipped[:3, 1] *= -1
    return np.ascontiguousarray(array[:, ::-1]), flipped


def dcm2niix(folder: Path, out: Path) -> Path:
    """What dcm2niix makes of a series."""
    out.mkdir()
    command = [str(DCM2NIIX), "-z", "y", "-b", "n", "-o", str(out), "-f", "scan", str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    found = list(out.glob("*.nii.gz"))
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("codes", PLANES)
def test_six_planes_give_one_label_map_however_they_are_stored(
    tmp_path: Path, predictor: Predictor, codes: str
) -> None:
    moved, affine = reorient_to(scan()[np.newaxis], phantoms.oblique((0.75, 0.75, 2.5)), codes)
    array = np.ascontiguousarray(moved[0])
    phantoms.ct_series(tmp_path / "dicom", array, affine)
    ours = convert(tmp_path / "dicom", tmp_path / "ours")
    assert ours.exit_code == 0
    sources = {"dicom": tmp_path / "dicom", "ours": tmp_path / "ours" / f"{ours.done[0]}.nii.gz"}
    flipped = as_dcm2niix_orders(array, affine)
    sources["flipped"] = phantoms.nifti_file(tmp_path / "flipped" / "scan.nii.gz", *flipped)
    if DCM2NIIX.exists():
        sources["dcm2niix"] = dcm2niix(tmp_path / "dicom", tmp_path / "theirs")
    maps = {}
    for name, source in sources.items():
        outcome = predict(predictor, source, tmp_path / "labels" / f"{name}.nii.gz")
        assert outcome.exit_code == 0, outcome.failures
        maps[name] = in_order(tmp_path / "labels" / f"{name}.nii.gz")
    assert len(np.unique(maps["dicom"][0])) == len(LABELS)
    for name, (labels, place) in maps.items():
        np.testing.assert_allclose(place, maps["dicom"][1], atol=1e-3, err_msg=name)
        np.testing.assert_array_equal(labels, maps["dicom"][0], err_msg=name)


def test_dcm2niix_is_compared_where_it_is_there() -> None:
    if not DCM2NIIX.exists():
        pytest.skip("dcm2niix is not installed (pip install 'voxelwise[bench]'); its order of axes alone was tested")


def test_all_orders_of_axes_give_one_label_map(tmp_path: Path, predictor: Predictor) -> None:
    affine = phantoms.oblique((0.75, 0.75, 2.5))
    wanted = None
    for codes in ALL_AXIS_CODES:
        moved, turned = reorient_to(scan((14, 12, 10))[np.newaxis], affine, codes)
        path = phantoms.nifti_file(tmp_path / f"{codes}.nii", np.ascontiguousarray(moved[0]), turned, qform_code=0)
        labels = predictor.labels(read_volume(path))
        assert labels.shape == moved.shape[1:]
        back, _ = reorient_to(labels[np.newaxis], turned, "RAS")
        wanted = back if wanted is None else wanted
        np.testing.assert_array_equal(back, wanted, err_msg=codes)


def test_our_own_nifti_is_read_as_it_was_written(tmp_path: Path, predictor: Predictor) -> None:
    """From us to us: the volume, its place and its labels stay bit for bit."""
    for codes in ("LPS", "IAR"):
        moved, affine = reorient_to(scan()[np.newaxis], phantoms.oblique(), codes)
        path = phantoms.nifti_file(tmp_path / f"{codes}.nii.gz", np.ascontiguousarray(moved[0]), affine)
        first = read_volume(path)
        write_volume(tmp_path / "again.nii.gz", first)
        second = read_volume(tmp_path / "again.nii.gz")
        np.testing.assert_array_equal(first.array, second.array)
        np.testing.assert_array_equal(first.geometry.affine, second.geometry.affine)
        np.testing.assert_array_equal(predictor.labels(first), predictor.labels(second))


def test_the_orientations_of_one_brain_are_equal_after_the_chain(
    shared_data: Callable[[str], Path], tmp_path: Path
) -> None:
    """And labels on each of the grids come back bit for bit, with the header of the file."""
    folder = shared_data("nifti_48_orientations")
    chain = build_chain(CHAIN)
    reference = run_chain(chain, {"image": folder / "RAS.nii.gz"})["image"]
    rng = np.random.default_rng(0)
    files = sorted(folder.glob("*.nii.gz"))
    assert len(files) >= 24
    for file in files:
        volume = read_nifti(file)
        assert axis_codes(volume.geometry.affine) == file.name.partition(".")[0]
        image = run_chain(chain, {"image": volume})["image"]
        assert image.shape == reference.shape, file.name
        assert torch.equal(image.as_tensor(), reference.as_tensor()), file.name
        torch.testing.assert_close(image.affine, reference.affine, rtol=0, atol=1e-3, msg=file.name)
        labels = rng.integers(0, 3, volume.geometry.shape, dtype=np.uint8)
        turned, _ = reorient_to(labels[np.newaxis], volume.geometry.affine, "RAS")
        scores = torch.nn.functional.one_hot(torch.from_numpy(np.ascontiguousarray(turned[0])).long(), 3)
        planes = [(slice(0, scores.shape[0]), scores.movedim(-1, 0).float())]
        grid = volume.geometry
        restored = restore_labels(planes, image.shape[1:], image.affine.numpy(), grid.shape, grid.affine)
        np.testing.assert_array_equal(restored, labels, err_msg=file.name)
        write_label_map(tmp_path / "labels.nii.gz", restored, grid)
        written, source = nib.load(tmp_path / "labels.nii.gz"), nib.load(file)
        np.testing.assert_array_equal(np.asanyarray(written.dataobj), labels)
        for name in GEOMETRIC_FIELDS:
            np.testing.assert_array_equal(written.header[name], source.header[name], err_msg=f"{file.name} {name}")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dicom_prostatex", "dicom_patient_position", "dicom_ct_body"])
def test_real_series_give_one_label_map(
    shared_data: Callable[[str], Path], tmp_path: Path, predictor: Predictor, name: str
) -> None:
    """Each series as DICOM, and as the NIfTI that we and dcm2niix make of it."""
    compared = 0
    for folder in sorted({file.parent for file in shared_data(name).rglob("*") if file.suffix in (".dcm", ".IMA")}):
        shutil.rmtree(tmp_path / "work", ignore_errors=True)
        work = tmp_path / "work"
        ours = convert(folder, work / "ours")
        if len(ours.done) != 1 or ours.failures:
            continue
        paths = {"ours": work / "ours" / f"{ours.done[0]}.nii.gz"}
        if nib.load(paths["ours"]).ndim != 3 or min(nib.load(paths["ours"]).shape) == 1:
            continue
        if DCM2NIIX.exists():
            theirs = work / "theirs"
            theirs.mkdir()
            command = [str(DCM2NIIX), "-z", "y", "-b", "n", "-o", str(theirs), "-f", "scan", str(folder)]
            subprocess.run(command, check=False, capture_output=True)
            found = list(theirs.glob("*.nii.gz"))
            if len(found) == 1 and nib.load(found[0]).ndim == 3:
                paths["dcm2niix"] = found[0]
        done = predict(predictor, folder, work / "labels" / "dicom")
        assert done.exit_code == 0, done.failures
        wanted, place = in_order(work / "labels" / "dicom" / f"{done.done[0]}.nii.gz")
        for kind, path in paths.items():
            assert predict(predictor, path, work / "labels" / f"{kind}.nii.gz").exit_code == 0
            labels, affine = in_order(work / "labels" / f"{kind}.nii.gz")
            np.testing.assert_allclose(affine, place, atol=1e-2, err_msg=f"{folder} {kind}")
            np.testing.assert_array_equal(labels, wanted, err_msg=f"{folder} {kind}")
            compared += 1
    assert compared
