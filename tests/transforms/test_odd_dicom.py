"""Single odd DICOM files of the public sets: for each one what is found and what reading it gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from voxelwise.errors import CaseError
from voxelwise.transforms.readers import find_sources, read_source

CT_512, CT_128, MR_64 = (1, 512, 512, 1), (1, 128, 128, 1), (1, 64, 64, 1)
SAID: dict[str, set[str]] = {"volume": {"single-slice"}, "picture": {"no-world-coordinates"}}
# File -> kind, shape, what is said of it beside the usual.
READ: dict[str, tuple[str, tuple[int, ...], set[str]]] = {
    "693_J2KI.dcm": ("volume", CT_512, {"lossy", "padding"}),
    "693_UNCI.dcm": ("volume", CT_512, {"lossy", "padding"}),
    "CT_small.dcm": ("volume", CT_128, set()),
    "J2K_pixelrep_mismatch.dcm": ("volume", CT_512, set()),
    "JLSL_16_15_1_1F.dcm": ("picture", (1, 128, 128), set()),
    "JPEG2000.dcm": ("picture", (1, 256, 1024), {"lossy"}),
    "MR_small.dcm": ("volume", MR_64, set()),
    "MR_small_RLE.dcm": ("volume", MR_64, set()),
    "MR_small_bigendian.dcm": ("volume", MR_64, set()),
    "MR_small_implicit.dcm": ("volume", MR_64, set()),
    "MR_small_jp2klossless.dcm": ("volume", MR_64, set()),
    "SC_rgb.dcm": ("picture", (3, 100, 100), set()),
    "SC_rgb_small_odd.dcm": ("picture", (3, 3, 3), set()),
    "color-px.dcm": ("picture", (3, 256, 120), set()),
    "image_dfl.dcm": ("picture", (1, 512, 512), set()),
    "eCT_Supplemental.dcm": ("volume", (1, 512, 512, 2), {"not-hu"}),
}
STOPPED = {
    "JPGExtended.dcm": ("codec|truncated|not-supported", "JPEG Extended"),  # 12 bits: no free codec reads them
    "MR_truncated.dcm": ("truncated", "PixelData claims 8192 bytes, 8130 are there"),
    "UN_sequence.dcm": ("not-dicom", "no SOPClassUID"),
    "emri_small.dcm": ("multi-frame", "NumberOfFrames is 10"),
    "emri_small_RLE.dcm": ("multi-frame", "NumberOfFrames is 10"),
    "meta_missing_tsyntax.dcm": ("not-dicom", "no SOPClassUID"),
    "no_meta.dcm": ("unknown-format", "not an image in a format that is read"),  # a stray byte before its first element
}
LISTED = {
    "badVR.dcm": "RT Dose Storage",
    "liver_1frame.dcm": "Segmentation Storage",
    "reportsi.dcm": "Basic Text SR Storage",
    "rtdose.dcm": "RT Dose Storage",
    "rtstruct.dcm": "RT Structure Set Storage",
}


def test_every_file_has_a_stated_outcome(shared_data: Callable[[str], Path]) -> None:
    files = {file.name for file in shared_data("odd_dicom").glob("*.dcm")}
    assert files == READ.keys() | STOPPED.keys() | LISTED.keys()
    assert len(files) == 28


@pytest.mark.parametrize("name", READ)
def test_files_that_are_read(shared_data: Callable[[str], Path], name: str) -> None:
    kind, shape, said = READ[name]
    found = find_sources(shared_data(f"odd_dicom/{name}"))
    assert (len(found.sources), found.stopped, found.listed) == (1, (), ())
    volume = read_source(found.sources[0])
    assert volume.array.shape == shape
    assert volume.geometry.has_world == (kind == "volume")
    usual = set() if shape[-1] == 2 else SAID[kind]
    assert {entry.code for entry in (*volume.repairs, *volume.notes)} == usual | said


@pytest.mark.parametrize("name", STOPPED)
def test_files_that_stop(shared_data: Callable[[str], Path], name: str) -> None:
    code, message = STOPPED[name]
    file = shared_data(f"odd_dicom/{name}")
    found = find_sources(file)
    said = [(stop.code, stop.message) for stop in found.stopped]
    for source in found.sources:
        with pytest.raises(CaseError, match=message) as caught:
            read_source(source)
        said.append((caught.value.code, str(caught.value)))
    assert len(said) == 1
    assert any(part in said[0][0] for part in code.split("|"))
    assert message in said[0][1]
    assert str(file) in said[0][1]


@pytest.mark.parametrize("name", LISTED)
def test_files_that_are_no_images(shared_data: Callable[[str], Path], name: str) -> None:
    found = find_sources(shared_data(f"odd_dicom/{name}"))
    assert [listed.reason for listed in found.listed] == [f"not a volume: {LISTED[name]}"]
    assert (found.sources, found.stopped) == ((), ())
