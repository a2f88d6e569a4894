"""Enhanced multi-frame objects: each frame's own geometry, rescale and place among stacks and time points."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import phantoms
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import EnhancedMRImageStorage, EnhancedUSVolumeStorage
from voxelwise.errors import CaseError
from voxelwise.transforms.dicom import read_header
from voxelwise.transforms.readers import find_sources, read_source, read_volume


def group(**tags: object) -> Sequence:
    """A functional group of one item."""
    item = Dataset()
    for name, value in tags.items():
        setattr(item, name, value)
    return Sequence([item])


def changed(path: Path, change: Callable[[Dataset, Dataset, list[Dataset]], None]) -> Path:
    """Edit an enhanced object: the data set, its shared group, its groups by frame."""
    dataset = pydicom.dcmread(path)
    shared = dataset.SharedFunctionalGroupsSequence[0]
    change(dataset, shared, list(dataset.PerFrameFunctionalGroupsSequence))
    dataset.save_as(path)
    return path


@pytest.fixture
def enhanced(tmp_path: Path) -> Path:
    """The enhanced CT of the phantoms."""
    return phantoms.enhanced_ct(tmp_path / "enhanced.dcm")


def test_each_frame_has_its_own_rescale(enhanced: Path) -> None:
    def change(_: Dataset, shared: Dataset, frames: list[Dataset]) -> None:
        del shared.PixelValueTransformationSequence
        for k, frame in enumerate(frames):
            frame.PixelValueTransformationSequence = group(
                RescaleSlope=str(k + 1), RescaleIntercept="-1024", RescaleType="HU"
            )

    changed(enhanced, change)
    stored = phantoms.ramp() + 1024
    np.testing.assert_array_equal(read_volume(enhanced).array[0], stored * np.arange(1, 9) - 1024)


def test_real_world_values_are_no_rescale(enhanced: Path) -> None:
    def change(dataset: Dataset, shared: Dataset, frames: list[Dataset]) -> None:
        shared.RealWorldValueMappingSequence = group(RealWorldValueSlope=7.0, RealWorldValueIntercept=3.0)
        for frame in frames:
            frame.RealWorldValueMappingSequence = shared.RealWorldValueMappingSequence

    changed(enhanced, change)
    np.testing.assert_array_equal(read_volume(enhanced).array[0], phantoms.ramp())


def test_orientation_and_spacing_by_frame(enhanced: Path) -> None:
    def change(_: Dataset, shared: Dataset, frames: list[Dataset]) -> None:
        for frame in frames:
            frame.PlaneOrientationSequence = shared.PlaneOrientationSequence
            frame.PixelMeasuresSequence = shared.PixelMeasuresSequence
        del shared.PlaneOrientationSequence, shared.PixelMeasuresSequence

    changed(enhanced, change)
    np.testing.assert_allclose(read_volume(enhanced).geometry.affine, phantoms.AXIAL, atol=1e-6)


@pytest.mark.parametrize("known", [True, False])
def test_sequences_of_either_length(enhanced: Path, known: bool) -> None:
    def change(dataset: Dataset, shared: Dataset, frames: list[Dataset]) -> None:
        for name in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
            dataset[name].is_undefined_length = not known
        for item in (shared, *frames):
            item.is_undefined_length_sequence_item = not known
            for element in item:
                element.is_undefined_length = not known

    changed(enhanced, change)
    np.testing.assert_array_equal(read_volume(enhanced).array[0], phantoms.ramp())


@pytest.mark.parametrize("count", [7, 9, 1])
def test_frames_that_are_not_as_many_as_stated_stop(enhanced: Path, count: int) -> None:
    changed(enhanced, lambda dataset, *_: setattr(dataset, "NumberOfFrames", count))
    with pytest.raises(CaseError, match=f"NumberOfFrames is {count}, PerFrameFunctionalGroupsSequence has 8") as caught:
        read_volume(enhanced)
    assert caught.value.code == "frame-count"


def test_time_points_and_b_values_of_one_object_are_parted(tmp_path: Path) -> None:
    array = np.concatenate([phantoms.ramp((5, 4, 3)) + 100, phantoms.ramp((5, 4, 3)) + 500], axis=2)
    for name in ("time", "diffusion", "type"):
        path = phantoms.enhanced_ct(tmp_path / name / "enhanced.dcm", array)

        def change(dataset: Dataset, shared: Dataset, frames: list[Dataset], name: str = name) -> None:
            if name == "diffusion":
                dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = EnhancedMRImageStorage
                dataset.Modality = "MR"
            for k, frame in enumerate(frames):
                frame.PlanePositionSequence = frames[k % 3].PlanePositionSequence
                frame.FrameContentSequence[0].DimensionIndexValues = [1, k % 3 + 1, k // 3 + 1]
                if name == "time":
                    frame.FrameContentSequence[0].TemporalPositionIndex = k // 3 + 1
                elif name == "type":
                    kind = ["ORIGINAL", "PRIMARY", "VOLUME", ("NONE", "ADDITION")[k // 3]]
                    frame.CTImageFrameTypeSequence = group(FrameType=kind)
                else:
                    weighted = group(DiffusionBValue=1000.0 * (k // 3), DiffusionDirectionality="DIRECTIONAL")
                    direction = group(DiffusionGradientOrientation=[0.6, 0.0, -0.8])
                    weighted[0].DiffusionGradientDirectionSequence = direction
                    frame.MRDiffusionSequence = weighted

        changed(path, change)
        volumes = [read_source(source) for source in find_sources(path).sources]
        volumes.sort(key=lambda volume: int(volume.array.min()))
        assert len(volumes) == 2
        for volume, offset in zip(volumes, (0, 400), strict=True):
            np.testing.assert_array_equal(volume.array[0], array[..., :3] + offset)
        if name == "diffusion":
            assert volumes[0].facts["DiffusionBValue"] == 0
            assert "DiffusionGradientOrientation" not in volumes[0].facts
            assert volumes[1].facts["DiffusionBValue"] == 1000
            np.testing.assert_allclose(volumes[1].facts["DiffusionGradientOrientation"], [-0.6, 0, -0.8])


def test_facts_come_from_functional_groups(enhanced: Path) -> None:
    def change(dataset: Dataset, shared: Dataset, frames: list[Dataset]) -> None:
        del dataset.KVP
        shared.CTXRayDetailsSequence = group(KVP=100.0)
        shared.CTExposureSequence = group(XRayTubeCurrentInmA=210.0, ExposureInmAs=90.0)
        shared.CTReconstructionSequence = group(ConvolutionKernel="B30f")
        shared.CTImageFrameTypeSequence = group(FrameType=["ORIGINAL", "PRIMARY", "VOLUME", "NONE"])
        frames[0].MREchoSequence = group(EffectiveEchoTime=30.0)
        frames[1].CTReconstructionSequence = group(ConvolutionKernel="canary 7731")

    first, second = read_header(changed(enhanced, change))[:2]
    assert first.facts == {
        "KVP": 100.0,
        "XRayTubeCurrent": 210.0,
        "Exposure": 90.0,
        "ConvolutionKernel": "B30f",
        "EchoTime": 0.03,
        "SliceThickness": 2.5,
        "PatientPosition": "HFS",
        "ImageType": ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"],
    }
    assert "canary" not in str(second.facts)


def test_real_enhanced_objects(shared_data: Callable[[str], Path]) -> None:
    frames = read_header(next(shared_data("dicom_enhanced/siemens_xa30_t1_96_frames/dicom").iterdir()))
    assert len(frames) == 96
    assert [one.frame for one in frames] == list(range(96))
    assert len({one.position for one in frames}) == 96
    assert 0.001 < frames[0].facts["EchoTime"] < 0.01
    assert 0.1 < frames[0].facts["RepetitionTime"] < 5


def test_a_damaged_functional_group_stops_its_series_alone(enhanced: Path) -> None:
    phantoms.ct_series(enhanced.parent, seed=1)
    data = enhanced.read_bytes()
    at = data.index(b"\x00\x52\x30\x92SQ") + 12
    assert data[at : at + 4] == b"\xfe\xff\x00\xe0"
    enhanced.write_bytes(data[: at + 4] + b"\xf0\xff\xff\x00" + data[at + 8 :])
    found = find_sources(enhanced.parent)
    assert [(source.shape, len(source.files)) for source in found.sources] == [((12, 10, 8), 8)]
    assert [stop.files for stop in found.stopped] == [(enhanced,)]
    assert found.stopped[0].code in ("truncated", "frame-count")


def test_objects_of_one_series_are_time_points(tmp_path: Path) -> None:
    """Nothing but the number of the object tells them apart."""
    for time in (10, 2):
        path = phantoms.enhanced_ct(tmp_path / f"{time}.dcm", phantoms.ramp() + time)
        dataset = pydicom.dcmread(path)
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{12 - time}"
        dataset.InstanceNumber = time
        dataset.save_as(path)
    sources = find_sources(tmp_path).sources
    assert [source.series.partition("/")[2] for source in sources] == ["InstanceNumber=2", "InstanceNumber=10"]
    for time, source in zip((2, 10), sources, strict=True):
        np.testing.assert_array_equal(read_source(source).array[0], phantoms.ramp() + time)


def test_frames_of_an_ultrasound_volume_are_no_film(enhanced: Path) -> None:
    dataset = pydicom.dcmread(enhanced)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = EnhancedUSVolumeStorage
    dataset.save_as(enhanced)
    found = find_sources(enhanced.parent)
    assert found.sources == ()
    assert [one.reason for one in found.listed] == [
        "not a volume: Enhanced US Volume Storage, 8 frames that are no film"
    ]
