"""What several series show together: one series UID that stands in two studies."""

from __future__ import annotations

from pathlib import Path

import phantoms
import pytest
from voxelwise.transforms.read_options import ReadOptions
from voxelwise.transforms.readers import find_sources


@pytest.mark.parametrize("first", [lambda k: k < 4, lambda k: k % 2 == 0])
def test_a_series_that_lies_in_two_studies_stops(tmp_path: Path, first: object) -> None:
    """Parted by study each half would look whole."""
    study = lambda k: "1.2.3" if first(k) else "1.2.4"  # noqa: E731
    phantoms.ct_series(tmp_path, StudyInstanceUID=study)
    found = find_sources(tmp_path)
    assert found.sources == ()
    assert [(one.code, len(one.files)) for one in found.stopped] == [("mixed-studies", 8)]
    assert "--group-by StudyInstanceUID,SeriesInstanceUID" in found.stopped[0].message
    parted = find_sources(tmp_path, ReadOptions(group_by=("StudyInstanceUID", "SeriesInstanceUID")))
    assert ([source.shape for source in parted.sources], parted.stopped) == ([(12, 10, 4)] * 2, ())


def test_a_broken_file_of_a_series_is_found_by_its_uid(tmp_path: Path) -> None:
    paths = phantoms.ct_series(tmp_path / "a")
    (tmp_path / "b").mkdir()
    paths[-1].rename(tmp_path / "b" / "elsewhere")
    whole = (tmp_path / "b" / "elsewhere").read_bytes()
    (tmp_path / "b" / "elsewhere").write_bytes(whole[:-50])
    found = find_sources(tmp_path)
    assert found.sources == ()
    assert [(one.code, len(one.files)) for one in found.stopped] == [("truncated", 8)]


def test_two_series_of_one_study_and_folder_are_two_volumes(tmp_path: Path) -> None:
    study = {"StudyInstanceUID": "1.2.3"}
    phantoms.ct_series(tmp_path, **study)
    phantoms.ct_series(tmp_path, seed=1, names=[f"other{k}" for k in range(8)], **study)
    assert [source.shape for source in find_sources(tmp_path).sources] == [(12, 10, 8)] * 2
