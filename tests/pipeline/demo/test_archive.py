"""The made-up archive is real DICOM, follows from its seed, and its truth is what the tissue is."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from voxelwise.pipeline.demo.anatomy import SAT, VAT, abdomen
from voxelwise.pipeline.demo.archive import Truth, make_archive, read_truth
from voxelwise.transforms.geometry import grid_difference
from voxelwise.transforms.readers import find_sources, read_source, read_volume

SHAPE = (64, 56, 8)


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Truth:
    return make_archive(tmp_path_factory.mktemp("demo"), subjects=4, new=1, seed=3, shape=SHAPE)


def test_each_study_holds_three_series_and_one_localizer(truth: Truth) -> None:
    for subject in truth.subjects:
        series = defaultdict(list)
        for path in subject.folder.iterdir():
            image = pydicom.dcmread(path)
            assert image.StudyInstanceUID == pydicom.dcmread(next(subject.folder.iterdir())).StudyInstanceUID
            series[image.SeriesInstanceUID].append(image)
        assert sorted(len(images) for images in series.values()) == [1, SHAPE[2] // 2, SHAPE[2]]
        assert [images[0].ImageType[2] for images in series.values()].count("LOCALIZER") == 1
        numbers = [image.InstanceNumber for image in series[subject.series_uid]]  # sorted by file name
        assert numbers != sorted(numbers)


def test_readers_find_the_volumes_and_they_fit_the_truth(truth: Truth) -> None:
    found = find_sources(truth.archive)
    assert (len(found.sources), len(found.stopped), len(found.listed)) == (8, 0, 4)
    by_uid = {subject.series_uid: subject for subject in truth.subjects}
    matched = [source for source in found.sources if source.series in by_uid]
    assert len(matched) == 4
    for source in matched:
        volume, label = read_source(source), read_volume(by_uid[source.series].label)
        assert grid_difference(volume.geometry, label.geometry) < 1e-3
        for value in (SAT, VAT):
            fat = volume.array[0][label.array[0] == value]
            assert -110 < fat.mean() < -80
            assert fat.std() > 15


def test_same_seed_same_bytes(truth: Truth, tmp_path: Path) -> None:
    again = make_archive(tmp_path, subjects=4, new=1, seed=3, shape=SHAPE)
    for first, second in zip(truth.subjects, again.subjects, strict=True):
        assert first.label.read_bytes() == second.label.read_bytes()
        files = {path.name: path.read_bytes() for path in first.folder.iterdir()}
        assert files == {path.name: path.read_bytes() for path in second.folder.iterdir()}
    assert read_truth(tmp_path) == again
    other = make_archive(tmp_path / "other", subjects=1, new=0, seed=4, shape=SHAPE)
    assert other.subjects[0].series_uid != again.subjects[0].series_uid


@pytest.mark.parametrize("subjects", [2, 16, 20])
def test_half_of_them_have_gaps_and_some_are_thin(subjects: int, tmp_path: Path) -> None:
    made = make_archive(tmp_path, subjects=subjects, new=0, shape=(16, 14, 2)).subjects
    assert 2 * sum(bool(subject.gaps) for subject in made) >= subjects
    assert any(subject.thin for subject in made)
    for gap in (gap for subject in made for gap in subject.gaps):
        assert 3 <= gap.width_mm <= 15
    assert max(len(subject.gaps) for subject in made) <= 3


def test_new_subjects_are_of_all_kinds(tmp_path: Path) -> None:
    made = make_archive(tmp_path, subjects=20, new=6, shape=(16, 14, 2))
    new = [subject for subject in made.subjects if subject.new]
    assert len(new) == 6
    assert {bool(subject.gaps) for subject in new} == {True, False}
    assert any(subject.thin for subject in new)
    assert all(subject.folder.parent == (made.new if subject.new else made.labelled) for subject in made.subjects)


def test_noise_and_gaps() -> None:
    """Noise of 20 HU or more; through a gap SAT and VAT are neighbours, through a whole ring they are not."""
    for gaps in (0, 2):
        body = abdomen(np.random.default_rng([1, gaps]), gaps=gaps)
        inside = body.labels == VAT
        assert body.image[inside].std() > 20
        touching = 0
        for axis in (0, 1):
            near, far = np.moveaxis(body.labels, axis, 0)[:-1], np.moveaxis(body.labels, axis, 0)[1:]
            touching += int(((near == SAT) & (far == VAT)).sum() + ((near == VAT) & (far == SAT)).sum())
        assert (touching > 0) == (gaps > 0)
        assert len(body.gaps) == gaps


def test_label_maps_hold_three_values(truth: Truth) -> None:
    labels = np.asarray(nib.load(truth.subjects[0].label).dataobj)
    assert labels.dtype == np.uint8
    assert np.unique(labels).tolist() == [0, SAT, VAT]


def test_wrong_numbers(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="5 of 4 subjects cannot be new ones"):
        make_archive(tmp_path, subjects=4, new=5)
