"""Real series with real faults: each folder ends as the table of hazards says, stopped, repaired, noted or parted."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from voxelwise.errors import CaseError
from voxelwise.transforms.geometry import reorient_to
from voxelwise.transforms.read_options import ReadOptions
from voxelwise.transforms.readers import find_sources, read_source, read_volume
from voxelwise.transforms.sources import Found


def codes(found: Found) -> set[str]:
    """Codes of all repairs and notes of all volumes."""
    return {entry.code for source in found.sources for entry in (*(source.repairs or ()), *(source.notes or ()))}


# Folder -> shapes of the volumes, codes of their entries, and what stops, or nothing.
ODD: list[tuple[str, list[tuple[int, ...]], set[str], str]] = [
    ("duplicate_slice", [(84, 128, 19)], {"duplicate-files"}, ""),
    ("foreign_files_in_folder", [], set(), r"008\.dcm: the file is empty \(0 bytes\)"),
    ("missing_two_middle_slices", [], set(), r"slices are missing: .* mm behind .* \(InstanceNumber \d+ and \d+\)"),
    ("no_position_in_one", [], set(), r"\.dcm: ImagePositionPatient is absent, expected 3 numbers.*--geometry FILE"),
    ("shuffled_names_instance_numbers_removed", [(84, 128, 19)], {"instance-numbers"}, ""),
    ("truncated_file", [], set(), r"\.dcm: PixelData claims \d+ bytes, \d+ are there: the file is cut off"),
]


@pytest.mark.parametrize(("case", "shapes", "said", "message"), ODD, ids=[case[0] for case in ODD])
def test_each_odd_series_ends_as_it_must(
    shared_data: Callable[[str], Path], case: str, shapes: list[tuple[int, ...]], said: set[str], message: str
) -> None:
    found = find_sources(shared_data(f"odd_dicom_series/{case}"))
    assert [source.shape for source in found.sources] == shapes
    assert codes(found) == said
    assert len(found.stopped) == bool(message)
    assert re.search(message, found.stopped[0].message if found.stopped else "")


def test_every_odd_folder_has_a_line_here(shared_data: Callable[[str], Path]) -> None:
    there = {folder.name for folder in shared_data("odd_dicom_series").iterdir() if folder.is_dir()}
    assert there == {case[0] for case in ODD}


def test_series_that_can_be_read_are_equal_to_the_intact_one(shared_data: Callable[[str], Path]) -> None:
    intact = read_volume(shared_data("dicom_prostatex/adc/dicom"))
    for case in ("duplicate_slice", "shuffled_names_instance_numbers_removed"):
        volume = read_volume(shared_data(f"odd_dicom_series/{case}"))
        np.testing.assert_array_equal(volume.array, intact.array)
        np.testing.assert_array_equal(volume.geometry.affine, intact.geometry.affine)


def test_missing_slices_are_laid_on_an_even_grid_where_the_user_asks(shared_data: Callable[[str], Path]) -> None:
    folder = shared_data("odd_dicom_series/missing_two_middle_slices")
    (source,) = find_sources(folder, ReadOptions(gaps="resample")).sources
    assert source.shape == (84, 128, 19)
    assert [entry.code for entry in source.repairs or ()] == ["gaps-resampled"]


# Folders of series -> how many volumes, how many stop, codes of the entries.
REAL: list[tuple[str, int, int, set[str]]] = [
    ("dicom_brain_mr/study3_two_series_one_folder", 2, 0, set()),
    ("dicom_ct_body/lidc_0314_part_a", 1, 0, {"frames-of-reference"}),
    (
        "dicom_ct_head/mixed_tilted_ct_scout_and_screen_saves",
        6,
        0,
        {"gantry-tilt", "no-world-coordinates", "burned-in"},
    ),
    ("dicom_ct_head/philips_tilt_plus16.5/dicom", 1, 0, {"gantry-tilt"}),
    ("dicom_enhanced/siemens_xa10_4_volumes", 4, 0, set()),
    ("dicom_icometrix/failing_gantrytilting_001", 1, 0, {"gantry-tilt"}),
    ("dicom_icometrix/failing_sliceincrement_001", 0, 1, set()),
    ("dicom_icometrix/siemens_fmri_classic_001", 2, 0, {"slices-missing"}),
    ("dicom_mosaic/ax_asc_35sl_6", 2, 0, set()),
    ("dicom_pet/pet_part_a", 1, 0, {"slices-missing"}),
    ("dicom_prostatex/dwi_3_bvalues_one_series", 3, 0, set()),
    ("dicom_prostatex/t2_cor_oblique", 1, 0, set()),
    ("dicom_prostatex/adc/dicom", 1, 0, set()),
    ("dicom_prostatex/hbv_missing_slice/dicom", 0, 1, set()),
]


@pytest.mark.parametrize(("case", "volumes", "stopped", "said"), REAL, ids=[case[0] for case in REAL])
def test_real_series_are_noted_where_something_is_amiss(
    shared_data: Callable[[str], Path], case: str, volumes: int, stopped: int, said: set[str]
) -> None:
    folder = shared_data(case)
    found = find_sources(folder / "dicom" if (folder / "dicom").is_dir() else folder)
    assert (len(found.sources), len(found.stopped), codes(found)) == (volumes, stopped, said)


def test_a_missing_slice_names_the_way_on(shared_data: Callable[[str], Path]) -> None:
    with pytest.raises(CaseError, match=r"the others are .* mm apart\. Fetch .*--gaps resample"):
        read_volume(shared_data("dicom_prostatex/hbv_missing_slice/dicom"))


@pytest.mark.parametrize(
    ("case", "reference"),
    [
        ("dicom_enhanced/siemens_xa10_4_volumes", "ref_upstream/Siemens_REST1_w_SMS_PF7-8_6.nii"),
        ("dicom_mosaic/cor_desc_35sl_17", "ref_upstream/cor_desc_35sl_17.nii"),
        ("dicom_prostatex/dwi_3_bvalues_one_series", "ref_dcm2niix/6_ep2d_diff_tra.nii.gz"),
    ],
)
def test_the_parts_of_a_series_are_the_volumes_of_an_independent_4d_file(
    shared_data: Callable[[str], Path], case: str, reference: str
) -> None:
    folder = shared_data(case)
    image = nib.as_closest_canonical(nib.load(folder / reference))
    expected = np.asarray(image.dataobj)
    sources = find_sources(folder / "dicom" if (folder / "dicom").is_dir() else folder).sources
    assert len(sources) == expected.shape[3]
    for time, source in enumerate(sources):
        volume = read_source(source)
        array, affine = reorient_to(volume.array, volume.geometry.affine, "RAS")
        np.testing.assert_array_equal(array[0], expected[..., time])
        np.testing.assert_allclose(affine, image.affine, atol=1e-3)
