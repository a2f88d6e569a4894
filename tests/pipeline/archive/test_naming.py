"""Names of outputs: templates, ids, folders in front of equal names, what stays equal."""

from __future__ import annotations

import os
import re
from pathlib import Path

import phantoms
import pytest
from voxelwise.errors import CaseError, UsageError
from voxelwise.pipeline.archive.naming import FIELDS, case_names, names_of, source_id, whole_id
from voxelwise.transforms.readers import Source, find_sources

SALT = "a salt of ours"


def files(root: Path, *names: str) -> list[Source]:
    """Sources of files that need not be there."""
    return [Source("nifti", (root / name,), Path(name).name.partition(".")[0]) for name in names]


def test_names_of_outputs(tmp_path: Path) -> None:
    sources = [
        Source("dicom", (tmp_path / "p 1" / "x.dcm",), "", "/tmp/../x", "CT"),
        Source("nifti", (tmp_path / "b.nii",), "b"),
    ]
    hashed, plain = case_names(sources, tmp_path, salt="salt")
    assert re.fullmatch("case-[0-9a-f]{12}", hashed)
    assert plain == "b"
    names = case_names(sources, tmp_path, salt="salt", template="{folder}-{modality}-{number}")
    assert names == ["p_1-CT-0001", f"{tmp_path.name}-unknown-0002"]


def test_every_field_is_filled_without_identifiers(tmp_path: Path) -> None:
    phantoms.ct_series(tmp_path / "a" / "b", seed=1)
    phantoms.mr_series(tmp_path / "a" / "c", seed=2)
    sources = find_sources(tmp_path).sources
    template = "+".join(f"{{{field}}}" for field in FIELDS)
    first, second = (name.split("+") for name in case_names(sources, tmp_path, salt=SALT, template=template))
    named = dict(zip(FIELDS, first, strict=True))
    assert (named["folder"], named["path"], named["modality"], named["number"]) == ("b", "a_b", "CT", "0001")
    for field in ("series", "study", "patient"):
        assert re.fullmatch("[0-9a-f]{12}", named[field]), field
    other = dict(zip(FIELDS, second, strict=True))
    assert named["patient"] == other["patient"]
    assert named["study"] != other["study"]
    assert "CANARY" not in "".join(first).upper()


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("a/scan.nii", "b/Scan.nii"), ["a_scan", "b_Scan"]),
        (("x/a/scan.nii", "y/a/scan.nii", "z/other.nii"), ["x_a_scan", "y_a_scan", "other"]),
        (("scan.nii", "b/scan.nii"), ["scan", "b_scan"]),
        (("a/manifest.nii",), ["a_manifest"]),
        (("one/caf\u00e9.nii", "two/cafe\u0301.nii"), ["one_caf\u00e9", "two_cafe\u0301"]),
    ],
)
def test_folders_tell_equal_names_apart(tmp_path: Path, names: tuple[str, ...], expected: list[str]) -> None:
    sources = files(tmp_path, *names)
    assert case_names(sources, tmp_path, salt=SALT) == expected
    backwards = case_names(sources[::-1], tmp_path, salt=SALT)
    assert backwards == expected[::-1]


def test_dicom_of_one_id_is_told_apart_without_the_names_of_folders(tmp_path: Path) -> None:
    sources = [Source("dicom", (tmp_path / who / "x.dcm",), "", "1.2.3/file=1", "MR") for who in ("CANARY", "DOE")]
    names = case_names(sources, tmp_path, salt=SALT)
    assert len(set(names)) == 2
    assert all(re.fullmatch("case-[0-9a-f]{12}", name) for name in names)
    assert case_names(sources[::-1], tmp_path, salt=SALT) == names[::-1]
    filled = case_names(sources, tmp_path, salt=SALT, template="{series}")
    assert filled == [name.removeprefix("case-") for name in names]
    assert case_names(sources[:1], tmp_path, salt=SALT) == [source_id(sources[0], SALT, tmp_path)]


def test_volumes_of_one_series_or_file_share_an_id(tmp_path: Path) -> None:
    """It is that of a series which is one volume."""
    place = (tmp_path / "x.dcm",)
    one, two, whole = (Source("dicom", place, "", f"1.2.3{part}", "MR") for part in ("/EchoTime=1", "/EchoTime=2", ""))
    assert whole_id(one, SALT, tmp_path) == whole_id(two, SALT, tmp_path) == source_id(whole, SALT, tmp_path)
    first, second = (Source("nifti", (tmp_path / "f.nii",), f"f_t{part}", part=part) for part in (0, 1))
    assert whole_id(first, SALT, tmp_path) == whole_id(second, SALT, tmp_path)
    assert source_id(first, SALT, tmp_path) != source_id(second, SALT, tmp_path)


def test_what_stays_equal_is_refused_alone(tmp_path: Path) -> None:
    sources = files(tmp_path, "a_scan.nii", "a/scan.nii", "b/scan.nii", "timings.nii")
    names = names_of(sources, tmp_path, salt=SALT)
    assert [isinstance(name, CaseError) for name in names] == [True, True, False, True]
    assert names[2] == "b_scan"
    assert "a_scan.nii and a/scan.nii would be written as 'a_scan'; use --name" in str(names[0])
    assert "timings.nii: the name 'timings' is kept for the output folder's own" in str(names[3])
    with pytest.raises(UsageError, match="would be written as 'a_scan'"):
        case_names(sources, tmp_path, salt=SALT)


def test_a_template_never_gives_one_name_twice(tmp_path: Path) -> None:
    names = names_of(files(tmp_path, "a/x.nii", "b/y.nii"), tmp_path, salt=SALT, template="{modality}")
    assert all(isinstance(name, CaseError) for name in names)


@pytest.mark.parametrize("name", ["n" * 255, "\u00e4" * 127, "\udcff" * 240])
def test_long_names_are_cut_and_stay_apart(tmp_path: Path, name: str) -> None:
    sources = [Source("nifti", (tmp_path / "x.nii",), name), Source("nifti", (tmp_path / "y.nii",), f"{name}z")]
    first, second = case_names(sources, tmp_path, salt=SALT)
    assert first != second
    assert max(len(os.fsencode(one)) for one in (first, second)) <= 200


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{birthday}", r"unknown field \{birthday\}; use \{folder\}, \{path\}"),
        ("../{series}", "holds a slash"),
        ("scan", "holds no field"),
        ("{series", "expected '}'"),
    ],
)
def test_wrong_templates(tmp_path: Path, template: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        case_names([], tmp_path, salt="salt", template=template)
