"""Plans that fit: what is given up first, what is refused, and that every plan gives the same labels."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import phantoms
import pytest
import torch
from torch import Tensor
from voxelwise.errors import CaseError, NoRoomError, UsageError
from voxelwise.networks.registry import build_network
from voxelwise.pipeline.inference import segmentation
from voxelwise.pipeline.inference.budget import Limits, Needs, Plan, _plans, make_plan
from voxelwise.pipeline.inference.engines import TorchEngine
from voxelwise.pipeline.inference.fallback import CarefulScorer, first_that_fits
from voxelwise.pipeline.inference.footprint import give_back, peak_of, resident
from voxelwise.pipeline.inference.in_memory import predict_volume
from voxelwise.pipeline.inference.loading import load_predictor, loaded
from voxelwise.pipeline.inference.modes import Modes
from voxelwise.pipeline.inference.predict import predict
from voxelwise.pipeline.inference.predictor import Predictor
from voxelwise.pipeline.inference.reading import check_reading, reading_bytes
from voxelwise.pipeline.inference.scorer import NetworkScorer
from voxelwise.pipeline.inference.strips import CrossSection
from voxelwise.pipeline.model_folder import write_model_folder
from voxelwise.pipeline.start import left_out
from voxelwise.transforms.blockwise import blockwise
from voxelwise.transforms.chains import build_chain, preprocessing_steps
from voxelwise.transforms.readers import only_source
from voxelwise.transforms.splined import SplinedImage
from voxelwise.transforms.volume import Geometry, Volume

MB = 10**6
GB = 10**9
AFFINE = np.diag([-0.8, -0.8, 2.5, 1.0])
OPTIONS: dict[str, Any] = {"widths": [4, 8]}
CT = CrossSection((512, 512, 800), (96, 96, 96), 0.25, axis=2, shared=1)


def needs(**changes: Any) -> Needs:
    values: dict[str, Any] = {
        "held": 1200 * MB,
        "image": 839 * MB,
        "in_boxes": True,
        "labels": 210 * MB,
        "window": lambda batch: (230 * MB * batch, 0),
        "channels": 8,
        "classes": 105,
        "section": CT,
    }
    return Needs(**{**values, **changes})


def make_model(folder: Path, *, classes: int = 3, **changes: Any) -> Path:
    fields: dict[str, Any] = {
        "dims": 3,
        "channels": ["image"],
        "modality": "MR",
        "labels": [{"value": 2 * at, "name": f"organ {at}"} for at in range(classes)],
        "spacing_mm": None,
        "orientation": "RAS",
        "crop": "none",
        "bias_field": False,
        "normalisation": [{"kind": "zscore"}],
        "patch": [16, 16, 16],
        "network": {"name": "unet", "options": OPTIONS},
        "mirror_axes": [0],
        "overlap": 0.5,
        "tta": False,
        **changes,
    }
    torch.manual_seed(0)
    write_model_folder(folder, build_network("unet", fields["dims"], 1, classes, **OPTIONS), OPTIONS, fields, fold="0")
    return folder


def noise(shape: tuple[int, ...] = (40, 36, 20)) -> np.ndarray:
    return np.random.default_rng(0).integers(-100, 400, shape).astype(np.int16)


def volume_of(array: np.ndarray, affine: np.ndarray = AFFINE) -> Volume:
    return Volume(np.asfortranarray(array)[np.newaxis], Geometry(array.shape, affine), "MR")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_model(tmp_path / "model")


# ---------------------------------------------------------------- the plan


def test_what_costs_time_is_given_up_last() -> None:
    """Scores at a time, then windows, the prepared image, kept memory; the cross-section is cut last."""
    amounts = [16.0, 3.9, 3.3, 3.0, 2.6, 2.3, 2.1]
    plans = [make_plan(needs(), Limits(round(amount * GB)), 2) for amount in amounts]
    assert plans[0].window_batch == 2
    assert plans[0].whole_image
    assert plans[0].keep_heap
    assert plans[0].strips.counts == (1, 1)
    parts = [len(plan.strips.parts) for plan in plans]
    assert parts == sorted(parts)
    assert parts[-1] > 1
    assert not plans[-1].whole_image
    for plan, amount in zip(plans, amounts, strict=True):
        assert sum(plan.ram.values()) <= amount * GB


@pytest.mark.parametrize("amount", [2.0, 2.2, 2.5, 3.0])
def test_the_fewest_parts_that_fit_are_taken(amount: float) -> None:
    limits = Limits(round(amount * GB))
    fitting = [plan for plan in _plans(needs(), 2) if plan.fits(limits)]
    plan = make_plan(needs(), limits, 2)
    assert plan.fits(limits)
    assert len(plan.strips.parts) == min(len(one.strips.parts) for one in fitting)


def test_what_does_not_fit_is_refused_with_what_would() -> None:
    with pytest.raises(CaseError, match=r"needs at least 1\.\d+ GB \(.*label map 0\.21.*--memory is 1\.50 GB") as stop:
        make_plan(needs(), Limits(round(1.5 * GB)), 4)
    assert stop.value.code == "memory"
    named = str(stop.value).split("give --memory ")[1].split("GB")[0]
    make_plan(needs(), Limits(round(float(named) * GB)), 4)


def test_sums_leave_the_gpu_before_the_cross_section_is_cut() -> None:
    on_gpu = needs(gpu=True, held_gpu=700 * MB, window=lambda batch: (10 * MB * batch, 230 * MB * batch), channels=32)
    plans = [make_plan(on_gpu, Limits(8 * GB, round(amount * GB)), 4) for amount in (8, 1.6, 1.2)]
    assert [plan.sums_on_gpu for plan in plans] == [True, False, False]
    assert [len(plan.strips.parts) for plan in plans] == [1, 1, 1]
    assert plans[0].window_batch == 4
    assert plans[2].window_batch == 1
    assert make_plan(on_gpu, Limits(3 * GB, 2 * GB), 1).strips.counts != (1, 1)
    with pytest.raises(CaseError, match=r"--gpu-memory is 0\.80 GB; give --gpu-memory 1"):
        make_plan(on_gpu, Limits(8 * GB, round(0.8 * GB)), 4)
    assert "on the GPU" in str(plans[0])


# ---------------------------------------------------------------- parts of the cross-section


@pytest.mark.parametrize(("overlap", "shared"), [(0.25, 1), (0.5, 1), (0.5, 0), (0.0, 1)])
def test_parts_cover_the_cross_section_and_share_what_they_must(overlap: float, shared: int) -> None:
    section = CrossSection((100, 70, 50), (20, 20, 20), overlap, axis=2, shared=shared)
    whole = section.strips((1, 1))
    assert whole.parts == [(slice(0, 100), slice(0, 70))]
    assert whole.more == 0
    for strips in section.choices(64):
        for spans, length in zip(strips.spans, (100, 70), strict=True):
            assert spans[0].start == 0
            assert spans[-1].stop == length
            assert all(after.start == one.stop - shared for one, after in itertools.pairwise(spans))
        assert strips.windows >= whole.windows


def test_cuts_are_laid_where_few_windows_lie_across() -> None:
    section = CrossSection((512, 512, 800), (128, 128, 128), 0.5, axis=2, shared=0)
    assert section.strips((2, 1)).spans[0] == (slice(0, 256), slice(256, 512))
    assert section.strips((2, 1)).more == pytest.approx(1 / 7)


# ---------------------------------------------------------------- equal labels


@pytest.mark.parametrize(("spacing", "counts"), [(None, (2, 2)), (None, (1, 3)), ((1.1, 1.3, 2.0), (2, 2))])
def test_parts_give_the_labels_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spacing: Any, counts: tuple[int, int]
) -> None:
    predictor = load_predictor(make_model(tmp_path / "model", spacing_mm=spacing), device="cpu")
    volume = volume_of(noise())
    wanted = predictor.labels(volume)
    assert set(np.unique(wanted)) == {0, 2, 4}
    usual = segmentation._plan

    def cut(predictor: Predictor, prepared: Any) -> Plan:
        section = CrossSection(
            prepared.shape, predictor.patch, predictor.overlap, prepared.axis, 0 if spacing is None else 1
        )
        return replace(usual(predictor, prepared), strips=section.strips(counts), chunk_numbers=20_000)

    monkeypatch.setattr(segmentation, "_plan", cut)
    np.testing.assert_array_equal(predictor.labels(volume), wanted)


def test_a_limit_is_planned_for_and_gives_the_same_labels(model: Path) -> None:
    volume = volume_of(noise())
    wanted = load_predictor(model, device="cpu").labels(volume)
    found = load_predictor(model, device="cpu", limits=Limits(ram=resident() + GB)).segment(volume)
    np.testing.assert_array_equal(found.labels, wanted)
    assert found.plan.ram["process and image as read"] > 0
    assert "cross-section whole" in str(found.plan)
    assert found.notes == ()


def test_a_limit_holds_for_a_loaded_predictor_too(tmp_path: Path, model: Path) -> None:
    predictor = load_predictor(model, device="cpu", modes=Modes(coarse=model))
    limited = loaded(predictor, limits=Limits(ram=resident() + GB))
    assert limited.limits == limited.coarse.limits
    assert limited.measured
    assert limited.coarse.measured
    assert loaded(limited, limits=Limits()) is limited
    with pytest.raises(CaseError, match="needs at least"):
        predict_volume(load_predictor(model, device="cpu"), (noise(), AFFINE), memory=MB)


def test_an_engine_is_made_ready_for_all_views_before_a_case_is_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it holds for each of them for good is held when the process is measured."""
    flat = make_model(tmp_path / "flat", dims=2, patch=[8, 12, 1])
    seen: set[tuple[int, ...]] = set()
    run = TorchEngine.__call__

    def scored(engine: TorchEngine, network: Any, windows: Tensor, *, features: bool) -> Tensor:
        seen.add(tuple(windows.shape[2:]))
        return run(engine, network, windows, features=features)

    monkeypatch.setattr(TorchEngine, "__call__", scored)
    load_predictor(flat, device="cpu", engine="torch", limits=Limits(8 * GB), modes=Modes(views="all"))
    assert seen == {(1, 8, 12), (8, 1, 12), (8, 12, 1)}


# ---------------------------------------------------------------- files, refusals, books


def test_the_limit_and_the_plan_stand_in_the_manifest(tmp_path: Path, model: Path) -> None:
    source = phantoms.nifti_file(tmp_path / "in" / "a.nii.gz", noise(), AFFINE)
    amount = resident() + GB
    outcome = predict(model, source, tmp_path / "out", device="cpu", memory=amount)
    assert outcome.exit_code == 0
    facts = json.loads((tmp_path / "out" / "manifest.json").read_text())["facts"]
    assert facts["limits"] == {"ram": amount}
    assert "GB of RAM" in facts["plans"]["a"]


def test_a_case_that_cannot_fit_is_stopped_before_the_network(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = phantoms.nifti_file(tmp_path / "in" / "a.nii.gz", noise(), AFFINE)
    predictor = load_predictor(model, device="cpu", limits=Limits(ram=resident() + GB))
    tight = replace(predictor, limits=Limits(ram=resident() + MB))
    monkeypatch.setattr(NetworkScorer, "__call__", lambda *_: pytest.fail("the network ran"))
    outcome = predict(tight, source, tmp_path / "out")
    assert outcome.exit_code == 6
    assert "a.nii.gz: needs at least" in outcome.failures[0].message
    assert not (tmp_path / "out" / "a.nii.gz").exists()


def test_a_mask_of_the_whole_image_is_counted_before_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(tmp_path / "model", normalisation=[{"kind": "zscore_mask"}])
    predictor = load_predictor(model, device="cpu", limits=Limits(ram=resident() + GB))
    monkeypatch.setattr(segmentation, "MASK_BYTES", GB)
    monkeypatch.setattr(segmentation, "blockwise", lambda *_: pytest.fail("the mask was made"))
    with pytest.raises(CaseError, match=r"up to .* GB, as the mask of its normalisation concerns the whole image"):
        predictor.segment(volume_of(noise()))


def test_what_splines_make_on_the_way_is_counted() -> None:
    """A window or all of it: no more than is told beside the result; a plan has room for whichever takes more."""
    array = np.stack([np.asfortranarray(noise((150, 140, 130))) for _ in range(3)])
    values: dict[str, Any] = {"channels": ["a", "b", "c"], "labels": [], "crop": "none", "bias_field": False}
    values["normalisation"] = [{"kind": "window", "low": 0, "high": 200}] * 3
    steps = preprocessing_steps(**values, spacing_mm=[1.1, 1.2, 2.2], resampling={"kind": "spline"}, orientation=None)
    image = blockwise(build_chain(steps), Volume(array, Geometry(array.shape[1:], AFFINE), "MR"))
    assert isinstance(image, SplinedImage)
    where = (slice(None), *(slice(10, 74),) * 3)
    for make, beside in ((lambda: image[where], image.working_bytes((64,) * 3)), (image.whole, image.working_bytes())):
        made = make().nbytes  # which also finds the ranges
        peak = peak_of(make)
        assert peak is None or peak <= made + beside + 16 * MB  # what the heap of a long-lived process adds
        assert beside <= 16 * array[0].size + made
    loose, counted = (make_plan(needs(preparing=amounts), Limits(16 * GB), 2) for amounts in ((0, 0), (GB, 2 * GB)))
    assert counted.whole_image
    more = sum(counted.ram.values()) - sum(loose.ram.values())
    assert more == pytest.approx(1.6 * (GB - 460 * MB), rel=0.05)


def test_less_than_the_process_itself_is_refused_at_once(tmp_path: Path, model: Path) -> None:
    source = phantoms.nifti_file(tmp_path / "in" / "a.nii.gz", noise(), AFFINE)
    with pytest.raises(NoRoomError, match=r"--memory 0\.05 GB: the process takes .* give at least"):
        predict(model, source, tmp_path / "out", memory="50MB")
    with pytest.raises(UsageError, match="--gpu-memory 'much': expected an amount"):
        predict(model, source, tmp_path / "out", gpu_memory="much")


def test_an_amount_for_a_gpu_is_refused_where_none_computes(tmp_path: Path, model: Path) -> None:
    source = phantoms.nifti_file(tmp_path / "in" / "a.nii.gz", noise(), AFFINE)
    with pytest.raises(UsageError, match="--gpu-memory 2GB: the network runs on the CPU; give --memory"):
        predict(model, source, tmp_path / "out", device="cpu", gpu_memory="2GB")
    with pytest.raises(UsageError, match="--gpu-memory 2GB: the network runs on the CPU"):
        predict_volume(model, nib.load(source), device="cpu", gpu_memory="2GB")
    assert not (tmp_path / "out").exists()


def test_an_image_that_cannot_be_read_within_the_limit_is_not_read(tmp_path: Path) -> None:
    plain = phantoms.nifti_file(tmp_path / "plain.nii", noise(), AFFINE)
    scaled = phantoms.nifti_file(tmp_path / "scaled.nii", noise(), AFFINE, scl_slope=0.5)
    packed = phantoms.nifti_file(tmp_path / "packed.nii.gz", noise(), AFFINE)
    size = noise().nbytes
    assert reading_bytes([only_source(plain)]) == size
    assert reading_bytes([only_source(scaled)]) == 3 * size
    assert reading_bytes([only_source(packed)]) == size + packed.stat().st_size
    assert reading_bytes([only_source(plain), only_source(plain)]) == 4 * size
    check_reading([only_source(plain)], None)
    check_reading([only_source(plain)], resident() + GB)
    with pytest.raises(CaseError, match=r"plain.nii: reading it takes the process to .*--memory is 0.00 GB") as stop:
        check_reading([only_source(plain)], MB)
    assert stop.value.code == "memory"


def test_dicom_is_counted_from_its_headers(tmp_path: Path) -> None:
    phantoms.ct_series(tmp_path / "series", noise((12, 10, 8)), AFFINE)
    assert reading_bytes([only_source(tmp_path / "series")]) == 12 * 10 * 8 * 2


# ---------------------------------------------------------------- an accelerator that runs out


class Small:
    """A scorer on an accelerator that holds two windows."""

    def __init__(self, room: int = 2) -> None:
        self.room, self.seen = room, []
        self.channels = self.classes = 2
        self.head = None
        self.device = torch.device("cpu")

    def __call__(self, windows: Tensor) -> Tensor:
        if len(windows) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.seen.append(len(windows))
        return torch.cat([windows, -windows], dim=1)


def test_fewer_windows_at_a_time_when_memory_runs_out() -> None:
    notes: list[Any] = []
    small = Small()
    careful = CarefulScorer(small, notes)
    windows = torch.arange(7.0).reshape(7, 1, 1, 1, 1)
    assert torch.equal(careful(windows), torch.cat([windows, -windows], dim=1))
    assert small.seen == [1] * 7
    assert [note.code for note in notes] == ["gpu-memory"] * 2
    careful(windows[:2])
    assert len(notes) == 2  # what was learned is kept
    with pytest.raises(torch.OutOfMemoryError):
        CarefulScorer(Small(room=0), [])(windows)


def test_the_next_road_is_taken_and_told() -> None:
    def fails() -> int:
        raise torch.OutOfMemoryError("CUDA out of memory")

    notes: list[Any] = []
    assert first_that_fits([("", fails), ("sums in RAM", fails), ("on the CPU", lambda: 3)], notes) == 3
    assert [note.detail.split(", ")[1].split(";")[0] for note in notes] == ["sums in RAM", "on the CPU"]
    with pytest.raises(torch.OutOfMemoryError):
        first_that_fits([("", fails)], [])


def test_a_case_goes_on_without_its_accelerator(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU is played: networks stay where they are, and scoring fails as long as the predictor says `cuda`."""
    source = phantoms.nifti_file(tmp_path / "in" / "a.nii.gz", noise(), AFFINE)
    predict(model, source, tmp_path / "wanted", device="cpu")
    predictor = load_predictor(model, device="cpu", window_batch=1, limits=Limits(ram=resident() + GB))
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *_, **__: self)
    tried = []

    class Full(NetworkScorer):
        def __call__(self, windows: Tensor) -> Tensor:
            tried.append(self._device.type)
            if self._device.type == "cuda":
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().__call__(windows)

        @property
        def device(self) -> torch.device:
            return torch.device("cpu")

    def scorer(self: Predictor) -> NetworkScorer:
        found = Full(self.networks)
        found._device = self.device
        return found

    monkeypatch.setattr(Predictor, "scorer", property(scorer))
    monkeypatch.setattr(Predictor, "held_gpu", property(lambda self: 0))
    monkeypatch.setattr(segmentation, "_sums_on", lambda predictor, plan: torch.device("cpu"))
    played = replace(predictor, device=torch.device("cuda:0"), limits=Limits(resident() + GB, 8 * GB))
    outcome = predict(played, source, tmp_path / "out")
    assert outcome.exit_code == 0
    assert [note.detail.split(", ")[1].split(";")[0] for note in outcome.notes["a"]] == [
        "the sums were kept in RAM",
        "it was done on the CPU",
    ]
    assert tried[:2] == ["cuda", "cuda"]
    assert set(tried[2:]) == {"cpu"}
    found, wanted = (nib.load(tmp_path / folder / "a.nii.gz") for folder in ("out", "wanted"))
    np.testing.assert_array_equal(np.asanyarray(found.dataobj), np.asanyarray(wanted.dataobj))
    record = json.loads((tmp_path / "out" / "manifest.json").read_text())["cases"]["a"]
    assert [note["code"] for note in record["notes"]] == ["gpu-memory"] * 2


# ---------------------------------------------------------------- measuring


def test_the_peak_of_a_call_is_seen() -> None:
    give_back()
    peak = peak_of(lambda: np.ones(40 * MB, np.uint8))
    assert peak is None or 38 * MB < peak < 60 * MB
    assert peak_of(lambda: None) in (None, *range(8 * MB))


def test_a_library_is_left_out_for_a_while() -> None:
    with left_out("colorsys_none"), pytest.raises(ImportError):
        __import__("colorsys_none")
    with left_out("json"):
        __import__("json")  # what is loaded stays
