"""From fingerprint to plan, and the plan as a file that people edit."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import phantoms
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from voxelwise.errors import UsageError
from voxelwise.networks.registry import build_network
from voxelwise.pipeline.dataset.cases import Case, Dataset, LabelInfo
from voxelwise.pipeline.dataset.fingerprint import CaseFacts, ChannelFacts, Fingerprint, take_fingerprint
from voxelwise.pipeline.dataset.layouts import read_dataset
from voxelwise.pipeline.dataset.plan import Plan, make_plan, plan, read_plan, write_plan
from voxelwise.pipeline.dataset.topology import Machine, choose_topology

CPU: dict[str, Any] = {"device_kind": "cpu", "memory_bytes": 16 * 10**9}
GPU: dict[str, Any] = {"device_kind": "gpu", "memory_bytes": 80 * 10**9}


def made_up(
    *,
    shape: tuple[int, int, int] = (60, 50, 40),
    spacing: tuple[float, float, float] = (1, 1, 1),
    values: tuple[float, float, float] = (0, 900, 1),
    labels: tuple[str, ...] = ("background", "tumour"),
    channels: tuple[str, ...] = ("image",),
    offsets: tuple[tuple[float, float, float], ...] = (),
    cases: int = 6,
    box_share: float = 1.0,
    orientation: str = "LPS",
) -> Fingerprint:
    names = [f"case{number}" for number in range(cases)]
    dataset = Dataset(
        "set",
        Path("set"),
        tuple(Case(name, (Path(name),), Path(name), name) for name in names),
        channels,
        tuple(LabelInfo(number, name) for number, name in enumerate(labels)),
    )
    where = {number + 1: place for number, place in enumerate(offsets)}
    facts = tuple(
        CaseFacts(
            name, shape, spacing, orientation, "", {0: 9, 1: 9}, where, (), (values,) * len(channels), box_share, name
        )
        for name in names
    )
    channel = ChannelFacts(values[0], values[1], 50, 20, -10, 45, 140)
    return Fingerprint(dataset, facts, (channel,) * len(channels), ())


def test_hippocampus(shared_data: Callable[[str], Path]) -> None:
    """The plan that a hand experiment found best: whole image, batch 2, mirrored left-right only."""
    dataset = read_dataset(shared_data("hippocampus"))
    made = make_plan(take_fingerprint(replace(dataset, cases=dataset.cases[::4])), **CPU)
    assert (made.patch, made.batch) == ([40, 56, 40], 2)
    assert made.mirror_axes == [0]
    assert made.normalisation[0].kind == "zscore"
    assert made.spacing_mm == [1, 1, 1]
    assert made.network.options["widths"] == [16, 32, 64, 128]
    assert made.network.options["deep_supervision"] == 2
    assert made.tta
    assert set(made.reasons) >= {"patch", "mirror_axes", "spacing_mm", "normalisation", "modality"}


def test_spleen_ct(shared_data: Callable[[str], Path], tmp_path: Path) -> None:
    source = shared_data("ct_spleen_crop")
    for side, name in (("images", "spleen2_ct"), ("labels", "spleen2_label")):
        (tmp_path / side).mkdir()
        (tmp_path / side / "a.nii.gz").symlink_to(source / f"{name}.nii.gz")
    made = make_plan(take_fingerprint(read_dataset(tmp_path)), **CPU)
    assert made.modality == "CT"
    assert "Hounsfield" in made.reasons["modality"]
    window = made.normalisation[0]
    assert window.kind == "window"
    assert window.low is not None
    assert window.high - window.low >= 400
    assert window.low < 0 < window.mean < 130 < window.high
    assert made.mirror_axes == [0, 1]
    assert made.network.options["strides"][1] == [2, 2, 1]
    assert made.network.options["kernels"][0] == [3, 3, 1]


@pytest.mark.parametrize(
    ("labels", "axes", "side"),
    [
        (("background", "tumour"), [0, 1, 2], []),
        (("background", "Anterior", "Posterior"), [0, 2], ["Anterior", "Posterior"]),
        (("background", "kidney_left", "kidney_r"), [1, 2], ["kidney_left", "kidney_r"]),
        (("background", "LeftLung", "upper lobe"), [1], ["LeftLung", "upper lobe"]),
        (("background", "vertebra_L1", "background tissue"), [0, 1, 2], []),
    ],
)
def test_names_that_mean_a_side_forbid_mirroring(labels: tuple[str, ...], axes: list[int], side: list[str]) -> None:
    made = make_plan(made_up(labels=labels), **CPU)
    assert made.mirror_axes == axes
    assert [label.name for label in made.labels if label.side] == side
    if side:
        assert repr(side[0]) in made.reasons["mirror_axes"]


def test_classes_at_opposite_ends_forbid_mirroring() -> None:
    labels = ("background", "label 1", "label 2")
    made = make_plan(made_up(labels=labels, offsets=((0, 0.8, 0.1), (0, -0.7, -0.1))), **CPU)
    assert made.mirror_axes == [0, 2]
    assert "labels 1 and 2 lie at opposite ends of the front-back axis" in made.reasons["mirror_axes"]
    few = make_plan(made_up(labels=labels, offsets=((0, 0.8, 0), (0, -0.7, 0)), cases=4), **CPU)
    assert few.mirror_axes == [0, 1, 2]


def test_anisotropic_spacing_and_slices() -> None:
    fingerprint = made_up(shape=(256, 256, 24), spacing=(0.5, 0.5, 5), channels=("T2",))
    made = make_plan(fingerprint, **CPU)
    assert made.modality == "MR"
    assert made.spacing_mm == [0.5, 0.5, 5]
    assert "10th percentile" in made.reasons["spacing_mm"]
    flat = make_plan(fingerprint, dims=2, **CPU)
    assert flat.dims == 2
    assert flat.patch[2] == 1
    assert flat.slice_axis == 2
    assert flat.batch >= 8
    assert len(flat.network.options["strides"][0]) == 2
    assert make_plan(made_up(spacing=(4, 1, 1)), dims=2, **CPU).slice_axis == 0
    given = make_plan(made_up(spacing=(4, 1, 1)), dims=2, patch=[16, 1, 32], **CPU)
    assert (given.slice_axis, given.mirror_axes) == (1, [0, 2])


def test_pictures() -> None:
    fingerprint = made_up(shape=(300, 200, 1), orientation="", labels=("background", "left lung"))
    made = make_plan(fingerprint, **CPU)
    assert (made.dims, made.orientation, made.spacing_mm, made.modality) == (2, None, None, "picture")
    assert made.mirror_axes == [1]
    with pytest.raises(UsageError, match="holds pictures; use --dims 2"):
        make_plan(fingerprint, dims=3, **CPU)


def test_crop_where_it_pays() -> None:
    made = make_plan(made_up(box_share=0.5), **CPU)
    assert made.crop == "nonzero"
    assert made.normalisation[0].kind == "zscore_nonzero"
    assert "50%" in made.reasons["crop"]


def test_what_is_given_wins() -> None:
    made = make_plan(
        made_up(),
        width=8,
        options={"norm": "batch"},
        batch=3,
        bias_field=True,
        optimizer={"lr": 0.01},
        augmentation={"noise": 0.5},
        seed=None,
        **CPU,
    )
    assert made.network.options["widths"][0] == 8
    assert made.network.options["norm"] == "batch"
    assert (made.batch, made.bias_field, made.seed) == (3, True, 0)
    assert made.optimizer.name == "adamw"
    assert made.optimizer.lr == 0.01
    assert made.augmentation["noise"] == 0.5
    assert made.augmentation["scale"] > 0
    assert made.reasons["batch"] == "given"
    with pytest.raises(UsageError, match="unknown field of a plan 'batchsize'; did you mean 'batch'"):
        make_plan(made_up(), batchsize=3, **CPU)
    with pytest.raises(UsageError, match=r"choices of the plan: optimizer\.name: found 'lion', expected"):
        make_plan(made_up(), optimizer={"name": "lion"}, **CPU)


@pytest.mark.parametrize(
    ("network", "options", "rate"),
    [
        ("unet", {}, 0.003),
        ("unet", {"norm": "none"}, 0.0003),
        ("unet", {"encoder": "resnet18"}, 0.003),
        ("vnet", {"width": 4}, 0.0003),
        ("res_att_unet", {"width": 4}, 0.003),
        ("unet2015", {"width": 4, "norm": "group"}, 0.003),
    ],
)
def test_a_network_without_norms_learns_slowly(network: str, options: dict[str, Any], rate: float) -> None:
    dims = 3 if network == "vnet" else 2
    made = make_plan(made_up(shape=(32, 32, 16)), network=network, dims=dims, options=options, **CPU)
    assert made.optimizer.lr == rate
    assert f"{rate:g}" in made.reasons["optimizer"]


def test_levels_that_the_user_gives() -> None:
    made = make_plan(made_up(), options={"widths": [4, 8, 16, 32, 64]}, **CPU)
    assert all(side % 16 == 0 for side in made.patch)
    assert build_network("unet", 3, 1, 2, **made.network.options).stride == (16, 16, 16)
    made = make_plan(made_up(), options={"widths": [4, 8], "strides": [1, 4]}, **CPU)
    assert all(side % 4 == 0 for side in made.patch)


@pytest.mark.parametrize("widths", [[4, 8], [4, 8, 16], [2, 4, 6, 8, 10, 12]])
@pytest.mark.parametrize("dims", [2, 3])
def test_number_of_widths_is_the_number_of_levels(widths: list[int], dims: int) -> None:
    """Strides, kernels and deep supervision follow, and the rule for coarse axes still holds."""
    made = make_plan(made_up(spacing=(1, 1, 4)), dims=dims, options={"widths": widths}, **CPU)
    options = made.network.options
    assert options["widths"] == widths
    assert made.reasons["network"] == f"{len(widths)} levels, as given"
    assert len(options["strides"]) == len(options.get("kernels", widths)) == len(widths)
    assert options["deep_supervision"] == min(2, len(widths) - 1)
    if dims == 3:
        assert options["strides"][1] == [2, 2, 1]
        assert options["kernels"][0] == [3, 3, 1]
    network = build_network("unet", dims, 1, 2, **options)
    assert all(side % step == 0 for side, step in zip(made.patch, network.stride, strict=False))
    with pytest.raises(UsageError, match=r"widths 2, strides 3 entries; give each of them one entry a level"):
        make_plan(made_up(), options={"widths": [4, 8], "strides": [1, 2, 2]}, **CPU)


def test_memory_in_words(tmp_path: Path) -> None:
    """The words of the command line; a fingerprint may be given instead of its data set."""
    fingerprint = made_up(shape=(300, 300, 200))
    little, much = (
        plan(fingerprint, memory=size, gpu_memory=size, width=64, device_kind=kind)
        for size, kind in (("1GB", "cpu"), ("64 GiB", "cpu"))
    )
    assert np.prod(little.patch) < np.prod(much.patch)
    assert plan(fingerprint, memory="1GB", gpu_memory="64GB", width=64, device_kind="gpu").patch != little.patch
    with pytest.raises(UsageError, match=r"--gpu-memory 'big': expected an amount such as 4GB"):
        plan(tmp_path / "none", gpu_memory="big")


def test_other_networks_align_the_patch() -> None:
    made = make_plan(made_up(), network="vnet", width=4, **CPU)
    assert made.network.name == "vnet"
    assert made.network.options["width"] == 4
    stride = build_network("vnet", 3, 1, 2, width=4).stride
    assert all(side % step == 0 for side, step in zip(made.patch, stride, strict=True))


@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(*(st.integers(1, 700) for _ in range(3))),
    spacing=st.tuples(*(st.floats(0.2, 8) for _ in range(3))),
    kind=st.sampled_from(["cpu", "gpu"]),
    dims=st.sampled_from([2, 3]),
)
def test_patch_is_aligned_and_within_the_step(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], kind: str, dims: int
) -> None:
    """Any median image, one voxel thin or huge, gives a patch that the network takes without padding."""
    machine = Machine(kind, 10**12)
    found = choose_topology(
        shape, spacing, machine, dims=dims, slice_axis=2 if dims == 2 else None, channels=1, classes=3
    )
    strides = np.prod(found.options["strides"], axis=0)
    assert all(side % step == 0 for side, step in zip(found.patch, strides, strict=False))
    assert np.prod(found.patch) * found.batch <= 4 * 128**3
    assert (found.patch[2] == 1) or dims == 3
    assert len(found.options["widths"]) == len(found.options["strides"]) >= 2


def test_little_memory_makes_a_small_patch() -> None:
    big, small = (
        make_plan(made_up(shape=(300, 300, 200)), device_kind="gpu", memory_bytes=size) for size in (10**11, 10**9)
    )
    assert np.prod(small.patch) < np.prod(big.patch)


def test_file_comes_back_with_its_reasons(tmp_path: Path) -> None:
    made = make_plan(made_up(labels=("background", "it's: a # name")), **GPU)
    write_plan(made, tmp_path / "plan.yaml")
    assert read_plan(tmp_path / "plan.yaml") == made
    text = (tmp_path / "plan.yaml").read_text()
    assert "# median of 6 cases\nspacing_mm: [1.0, 1.0, 1.0]\n" in text


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("batch: 2", "batch: two", r"plan\.yaml: batch: found 'two', expected: .*integer"),
        ("batch: 2", "batch: 0", "batch: found 0, expected: .*greater than or equal to 1"),
        ("batch: 2", "bach: 2", "field batch is missing; unknown field bach"),
        ("mirror_axes: [0, 1, 2]", "mirror_axes: [0, 3]", "mirror_axes must be different numbers among 0, 1, 2"),
        ("orientation: RAS", "orientation: RAR", "orientation must name each axis once.*found 'RAR'"),
        ("spacing_mm: [1.0, 1.0, 1.0]", "spacing_mm: [1.0, 0, 1.0]", "spacing_mm must be positive"),
        ("crop: none", "crop: tight", "crop: found 'tight', expected: .*'none' or 'nonzero'"),
        ("- {kind: zscore}", "- {kind: window, low: 3, high: 1}", r"normalisation\[0\]: low must be below high"),
        ("- {kind: zscore}", "- {kind: window}", r"normalisation\[0\]: window needs low and high"),
        ("batch: 2", "batch: [2", "not YAML at line"),
        ("version: 1", "version: 2", "version: found 2, expected"),
        ("{value: 1,", "{value: 0,", "labels must have different values"),
    ],
)
def test_wrong_line_is_named(tmp_path: Path, old: str, new: str, words: str) -> None:
    path = tmp_path / "plan.yaml"
    write_plan(make_plan(made_up(), **CPU), path)
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UsageError, match=words):
        read_plan(path)


def test_no_plan_at_all(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the plan cannot be read"):
        read_plan(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(UsageError, match="found list, expected the fields of a plan"):
        read_plan(tmp_path / "list.yaml")


def test_slice_plan_needs_a_flat_patch() -> None:
    values = make_plan(made_up(), **CPU).model_dump()
    with pytest.raises(ValueError, match="must be 1 along the slice axis"):
        Plan.model_validate({**values, "dims": 2})


def test_verb_writes_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = phantoms.blob_dataset(tmp_path / "set", cases=2)
    out = tmp_path / "plan.yaml"
    with caplog.at_level(logging.WARNING):
        assert plan(root, out=out, **CPU) == read_plan(out)
    with pytest.raises(UsageError, match=r"plan\.yaml exists; use --overwrite"):
        plan(root, out=out, **CPU)
    assert plan(root, out=out, overwrite=True, batch=5, **CPU).batch == 5
