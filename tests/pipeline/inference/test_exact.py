"""Exact tiling: what comes out of tiles is what one forward pass over the whole volume gives."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from voxelwise.errors import CaseError, UsageError
from voxelwise.networks.base import SegmentationNetwork, SliceNetwork
from voxelwise.networks.registry import build_network
from voxelwise.pipeline.inference import exact
from voxelwise.pipeline.inference.exact import default_limit, exact_planes
from voxelwise.pipeline.inference.halo import Halo, measure_halo
from voxelwise.pipeline.inference.in_memory import predict_volume
from voxelwise.pipeline.inference.loading import load_predictor
from voxelwise.pipeline.inference.predict import predict
from voxelwise.pipeline.inference.scorer import NetworkScorer
from voxelwise.pipeline.inference.tiles import Tiling, plan_tiles
from voxelwise.pipeline.model_folder import write_model_folder
from voxelwise.scripts.main import main
from voxelwise.transforms.restore import restore_labels

from .test_halo import BOUNDED, bounded


class InDouble:
    """A scorer in double precision, where a wrong voxel cannot pass for rounding."""

    head = None
    device = torch.device("cpu")

    def __init__(self, network: SegmentationNetwork) -> None:
        self.network = network.double()
        self.channels = self.classes = network.out_channels

    def __call__(self, windows: Tensor) -> Tensor:
        result: Tensor = self.network(windows.double())
        return result


def lively(network: SegmentationNetwork, seed: int = 0) -> SegmentationNetwork:
    """Biases and running statistics as after training: what stands at borders is not zero."""
    torch.manual_seed(seed)
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm3d)):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 2)
        elif isinstance(getattr(module, "bias", None), nn.Parameter):
            nn.init.normal_(module.bias, std=0.2)  # type: ignore[arg-type]
    return network.eval()


def put_together(scorer: Any, image: Tensor, tiling: Tiling, **options: Any) -> Tensor:
    planes = [(where, scores.clone()) for where, scores in exact_planes(scorer, image, tiling, **options)]
    assert [where.start for where, _ in planes] == [0, *(where.stop for where, _ in planes[:-1])]
    assert planes[-1][0].stop == image.shape[tiling.axis + 1]
    return torch.cat([scores for _, scores in planes], dim=1).movedim(1, tiling.axis + 1)


@torch.inference_mode()
def whole(networks: Any, image: Tensor, tta_axes: tuple[int, ...] = ()) -> Tensor:
    """One pass over the whole volume, for each mirror and network."""
    scorer = NetworkScorer([networks] if isinstance(networks, nn.Module) else networks, tta_axes=tta_axes)
    sums = scorer(image[None])
    return (sums if scorer.head is None else scorer.head(sums))[0]


def check(network: SegmentationNetwork, image: Tensor, tiling: Tiling) -> None:
    """Logits within 1e-4, labels equal except at ties; classes are made as likely, so that all of them are there."""
    assert math.prod(tiling.counts) >= 3
    assert any(side < length for side, length in zip(tiling.largest, tiling.shape, strict=True))
    wanted = whole(network, image)
    found = put_together(NetworkScorer([network]), image, tiling)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
    mean = wanted.mean(dim=list(range(1, wanted.ndim)), keepdim=True)
    found, wanted = found - mean, wanted - mean
    differ = found.argmax(0) != wanted.argmax(0)
    top = wanted.topk(2, dim=0).values
    assert float((top[0] - top[1])[differ].sum()) < 1e-3
    assert len(wanted.argmax(0).unique()) > 1


VARIANTS: list[tuple[str, int, dict[str, Any]]] = [
    ("autocontext", 2, {"network": "unet", "options": {"widths": (3, 4, 5), "norm": "batch"}}),
    ("fcn8s", 2, {"width": 1, "padding": "same"}),
    ("unet2015", 2, {"width": 2, "padding": "same"}),
    ("unet", 2, {"widths": (2, 3, 4), "norm": "none", "blocks": "residual"}),
    ("unet", 3, {"widths": (2, 3, 4), "norm": "batch", "strides": (1, (2, 2, 1), 2), "kernels": ((3, 3, 1), 3, 3)}),
    ("voxresnet", 2, {"width": 3, "head": "deconv_full"}),
]


@pytest.mark.parametrize("name", BOUNDED)
def test_every_bounded_network_gives_what_the_whole_image_gives(name: str) -> None:
    check_in_double(bounded(name, channels=2))


@pytest.mark.parametrize(("name", "dims", "options"), VARIANTS)
def test_their_options_do_too(name: str, dims: int, options: dict[str, Any]) -> None:
    check_in_double(build_network(name, dims, 2, 3, **options))


def check_in_double(network: SegmentationNetwork) -> None:
    """Three tiles, an odd length, and widths that are padded to the stride."""
    lively(network)
    halo = measure_halo([network])
    step, *others = halo.stride
    length = 2 * halo.shared[0] + 5 * step + (3 if step > 1 else 0)
    shape = (length, *(max(1, 2 * other - 1) for other in others))
    tiling = Tiling.of(shape, halo, (3, *(1 for _ in others)))
    assert tiling.counts[0] == 3
    assert tiling.largest[0] < shape[0]
    scorer = InDouble(network)
    image = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1)).double()
    with torch.inference_mode():
        wanted = scorer(image[None])[0]
    torch.testing.assert_close(put_together(scorer, image, tiling), wanted, rtol=1e-9, atol=1e-9)


def test_a_halo_that_is_one_voxel_short_is_seen() -> None:
    network = lively(bounded("unet"))
    halo = measure_halo([network])
    image = torch.randn(1, 120, 9, dtype=torch.float64)
    for change in ({"before": (halo.before[0] - 4, 18)}, {"after": (halo.after[0] - 4, 14)}):
        short = type(halo)(**{**vars(halo), **change})
        tiling = Tiling.of((120, 9), short, (3, 1))
        scorer = InDouble(network)
        with torch.inference_mode():
            wanted = scorer(image[None])[0]
        assert float((put_together(scorer, image, tiling) - wanted).abs().max()) > 1e-9


def test_fcn8s_on_a_picture() -> None:
    network = lively(build_network("fcn8s", 2, 3, 4, width=2))
    image = torch.randn(3, 1024, 707, generator=torch.Generator().manual_seed(2))
    check(network, image, Tiling.of(image.shape[1:], measure_halo([network]), (2, 2)))


def test_voxresnet() -> None:
    network = lively(build_network("voxresnet", 3, 1, 3, width=3))
    image = torch.randn(1, 331, 30, 41, generator=torch.Generator().manual_seed(3))
    check(network, image, Tiling.of(image.shape[1:], measure_halo([network]), (3, 1, 1)))


def test_unet_with_batch_norm() -> None:
    network = lively(build_network("unet", 3, 1, 3, widths=(4, 8, 12), norm="batch"))
    image = torch.randn(1, 75, 63, 79, generator=torch.Generator().manual_seed(4))
    check(network, image, Tiling.of(image.shape[1:], measure_halo([network]), (2, 2, 2), axis=1))


def test_vnet() -> None:
    network = lively(build_network("vnet", 3, 1, 3, variant="release", width=2, kernel=3, head_kernel=1))
    halo = measure_halo([network])
    image = torch.randn(1, 2 * halo.shared[0] + 70, 20, 17, generator=torch.Generator().manual_seed(5))
    check(network, image, Tiling.of(image.shape[1:], halo, (3, 1, 1)))


def test_highresnet() -> None:
    network = lively(build_network("highresnet", 3, 1, 2, width=2, repeats=1))
    image = torch.randn(1, 90, 81, 11, generator=torch.Generator().manual_seed(6))
    check(network, image, Tiling.of(image.shape[1:], measure_halo([network]), (2, 2, 1)))


@pytest.mark.slow
def test_highresnet_on_a_volume_of_more_than_a_thousand_voxels_along_two_axes() -> None:
    """At full resolution and full depth; the plan itself chooses the tiles, under a tenth of what the whole takes."""
    network = lively(build_network("highresnet", 3, 1, 4, width=4))
    image = torch.randn(1, 1040, 1011, 8, generator=torch.Generator().manual_seed(7))
    limit = network.activation_bytes(image.shape[1:]) // 10
    tiling = plan_tiles([network], measure_halo([network]), image.shape[1:], channels=4, limit_bytes=limit)
    check(network, image, tiling)
    assert tiling.computed < 2.5


@given(
    shape=st.tuples(st.integers(1, 70), st.integers(1, 40)),
    counts=st.tuples(st.integers(1, 5), st.integers(1, 3)),
    axis=st.integers(0, 1),
    tta_axes=st.sampled_from([(), (0,), (1,), (0, 1)]),
    steps=st.sampled_from([(2, 2), (2, 1), (1, 3)]),
)
@settings(max_examples=60, deadline=None)
def test_any_size_any_tiles(
    shape: tuple[int, int],
    counts: tuple[int, int],
    axis: int,
    tta_axes: tuple[int, ...],
    steps: tuple[int, int],
) -> None:
    network = lively(build_network("unet", 2, 1, 2, widths=(3, 4), strides=(1, steps), norm="batch", decoder_depth=1))
    tiling = Tiling.of(shape, measure_halo([network]), counts, axis=axis, tta_axes=tta_axes)
    image = torch.randn(1, *shape, generator=torch.Generator().manual_seed(sum(shape)))
    found = put_together(NetworkScorer([network]), image, tiling)
    torch.testing.assert_close(found, whole(network, image, tta_axes), rtol=0, atol=1e-4)


@given(shape=st.tuples(*[st.integers(1, 40)] * 3), part=st.floats(0.2, 1.1))
@example(shape=(1, 1, 17), part=0.5)  # the aligned tile of 18 voxels does not fit, that of 16 does
@settings(max_examples=8, deadline=None)
def test_any_size_and_limit_in_three_dimensions(shape: tuple[int, int, int], part: float) -> None:
    network = lively(build_network("unet", 3, 1, 2, widths=(2, 3), norm="batch"))
    halo = measure_halo([network])
    least = [min(side, shared + step) for side, shared, step in zip(shape, halo.shared, halo.stride, strict=True)]
    limit = int(max(network.activation_bytes(shape) * part, network.activation_bytes(least) + 8 * math.prod(shape)))
    tiling = plan_tiles([network], halo, shape, channels=2, limit_bytes=limit)
    image = torch.randn(1, *shape, generator=torch.Generator().manual_seed(sum(shape)))
    found = put_together(NetworkScorer([network]), image, tiling)
    torch.testing.assert_close(found, whole(network, image), rtol=0, atol=1e-4)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slice_networks(axis: int) -> None:
    network = SliceNetwork(lively(bounded("unet", classes=2)), axis=axis).eval()
    shape = [75, 75, 75]
    shape[axis] = 5
    image = torch.randn(1, *shape)
    tiling = Tiling.of(shape, measure_halo([network]), (2, 2, 2), axis=axis)
    assert math.prod(tiling.counts) == 8
    check(network, image, tiling)


@pytest.mark.parametrize("shape", [(64, 71, 33), (80, 31, 1)])
def test_mirrored_volumes(shape: tuple[int, ...]) -> None:
    """A mirrored volume has a grid of its own: 71 is no multiple of the stride."""
    network = lively(build_network("unet", 3, 1, 3, widths=(3, 4), norm="batch"))
    tiling = Tiling.of(shape, measure_halo([network]), (3, 2, 1), tta_axes=(0, 1, 2))
    image = torch.randn(1, *shape)
    found = put_together(NetworkScorer([network]), image, tiling)
    wanted = whole(network, image, (0, 1, 2))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
    assert not torch.allclose(wanted, whole(network, image), atol=1e-2)


def test_several_networks_and_their_heads() -> None:
    """Features are put together where they are fewer than classes, and the head comes last."""
    networks = [
        lively(build_network("unet", 3, 2, 11, widths=(3, 6), norm="batch"), seed=1),
        lively(build_network("unet", 3, 2, 11, widths=(4, 5, 6), norm="batch"), seed=2),
    ]
    halo = measure_halo(networks)
    assert halo.stride == (4, 4, 4)
    scorer = NetworkScorer(networks)
    assert scorer.channels == 7
    image = torch.randn(2, 75, 9, 40)
    tiling = Tiling.of(image.shape[1:], halo, (3, 1, 2))
    assert math.prod(tiling.counts) == 6
    found = put_together(scorer, image, tiling)
    torch.testing.assert_close(found, whole(networks, image), rtol=0, atol=1e-4)
    again = put_together(scorer, image, tiling, slab_on=torch.device("cpu"))
    assert torch.equal(again, found)


def test_what_is_held_is_one_slab() -> None:
    """Planes go out as soon as their slab is done, before the next one is begun."""
    network = lively(build_network("unet", 3, 1, 2, widths=(2, 3), norm="batch"))
    tiling = Tiling.of((120, 30, 30), measure_halo([network]), (5, 1, 2))
    runs: list[int] = []

    class Counting(NetworkScorer):
        def __call__(self, windows: Tensor) -> Tensor:
            runs.append(windows.shape[2])
            return super().__call__(windows)

    planes = exact_planes(Counting([network]), torch.randn(1, 120, 30, 30), tiling)
    where, scores = next(planes)
    assert len(runs) == tiling.counts[2]
    assert scores.shape == (2, where.stop, 30, 30)
    assert max(part.stop - part.start for part, _ in planes) <= max(stop - start for start, stop in tiling.cores(0))
    assert len(runs) == math.prod(tiling.counts)
    assert max(runs) <= tiling.largest[0]


def test_planes_become_labels_on_another_grid() -> None:
    """Whatever axis the cores are run along: those of the whole volume's scores."""
    network = lively(build_network("unet", 3, 1, 3, widths=(3, 4), norm="batch"))
    image = torch.randn(1, 40, 44, 60)
    scores = whole(network, image)
    affine, source = np.diag([1.0, 1.0, 1.0, 1.0]), np.diag([0.7, 0.8, 1.3, 1.0])
    source[:3, 3] = (0.2, 0.1, 0.4)
    wanted = restore_labels([(slice(0, 40), scores)], (40, 44, 60), affine, (56, 54, 46), source)
    for axis in range(3):
        tiling = Tiling.of((40, 44, 60), measure_halo([network]), (2, 2, 3), axis=axis)
        order = [axis, *(other for other in range(3) if other != axis)]
        planes = exact_planes(NetworkScorer([network]), image, tiling)
        shape = [(40, 44, 60)[at] for at in order]
        found = restore_labels(planes, shape, affine[:, [*order, 3]], (56, 54, 46), source)
        assert (found != wanted).mean() < 1e-4


def test_scores_that_are_not_finite_stop_the_case() -> None:
    network = lively(build_network("unet", 3, 1, 2, widths=(2, 3), norm="batch"))
    assert isinstance(network.head, nn.Conv3d)
    tiling = Tiling.of((30, 8, 8), measure_halo([network]), (2, 1, 1))
    nn.init.constant_(network.head.weight, float("inf"))
    with pytest.raises(CaseError, match="the network gave NaN or inf"):
        list(exact_planes(NetworkScorer([network]), torch.randn(1, 30, 8, 8), tiling))


def test_the_tiling_of_another_volume_is_refused() -> None:
    network = bounded("unet", 3)
    tiling = Tiling.of((30, 8, 8), measure_halo([network]), (1, 1, 1))
    with pytest.raises(ValueError, match=r"the tiling is that of a volume \(30, 8, 8\), got an image of \(30, 8, 9\)"):
        list(exact_planes(NetworkScorer([network.eval()]), torch.zeros(1, 30, 8, 9), tiling))


def test_the_default_limit_is_bounded() -> None:
    assert 1 << 26 < default_limit(torch.device("cpu")) <= 2 << 30


def model_folder(folder: Path, norm: str = "batch", **changes: Any) -> Path:
    """An untrained model folder for MR volumes of one channel."""
    options = {"widths": [3, 5], "norm": norm}
    fields = {
        "dims": 3,
        "channels": ["image"],
        "modality": "MR",
        "labels": [{"value": 0, "name": "background"}, {"value": 5, "name": "organ"}],
        "spacing_mm": [1.0, 1.0, 1.0],
        "orientation": "RAS",
        "crop": "none",
        "bias_field": False,
        "normalisation": [{"kind": "zscore"}],
        "patch": [16, 16, 16],
        "network": {"name": "unet", "options": options},
        "mirror_axes": [1],
        "overlap": 0.5,
        "tta": False,
        **changes,
    }
    network = lively(build_network("unet", 3, 1, 2, **options))
    assert isinstance(network.head, nn.Conv3d)
    nn.init.zeros_(network.head.bias)  # type: ignore[arg-type]
    write_model_folder(folder, network, options, fields)
    return folder


def scan(shape: tuple[int, ...] = (44, 30, 25), spacing: tuple[float, ...] = (1.0, 1.0, 1.3)) -> tuple[Any, Any]:
    array = np.random.default_rng(0).integers(0, 1000, shape).astype(np.int16)
    return array, np.diag([*spacing, 1.0])


@pytest.mark.parametrize("tta", [False, True])
def test_labels_of_a_predictor_are_those_of_the_whole_volume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tta: bool
) -> None:
    folder = model_folder(tmp_path / "model")
    predictor = load_predictor(folder, tiling="exact", tta=tta, precision="float32")
    assert predictor.halo == Halo((2, 2, 2), (8, 8, 8), (6, 6, 6))
    with caplog.at_level("INFO"):
        wanted = predict_volume(predictor, scan())
    assert "exact tiling: the whole volume of 44x30x32 voxels in one window" in caplog.text
    limit = predictor.networks[0].activation_bytes((24, 30, 32)) + 4 * 2 * 44 * 30 * 32
    monkeypatch.setattr(exact, "default_limit", lambda device: limit)
    caplog.clear()
    with caplog.at_level("INFO"):
        found = predict_volume(predictor, scan())
    assert re.search(
        r"tiles of up to \d+x\d+x\d+ voxels, 1\.\d\d voxels computed .*; blended windows compute", caplog.text
    )
    assert set(np.unique(wanted)) == {0, 5}
    assert (found != wanted).mean() < 1e-4


def test_blending_is_named_where_it_would_compute_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    predictor = load_predictor(model_folder(tmp_path / "model", patch=[32, 32, 32]), tiling="exact")
    limit = predictor.networks[0].activation_bytes((20, 20, 20)) + 4 * 2 * 40**3
    monkeypatch.setattr(exact, "default_limit", lambda device: limit)
    predict_volume(predictor, scan((40, 40, 40), (1, 1, 1)))
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "use --tiling blend" in record.getMessage()


def test_models_and_options_that_cannot_be_tiled_exactly(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model", norm="instance")
    with pytest.raises(UsageError, match=r"UNet looks at the whole window \(instance norm, .*use --tiling blend"):
        predict(folder, tmp_path / "model", tmp_path / "out", tiling="exact")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match="unknown --tiling 'exakt'; did you mean 'exact'"):
        predict_volume(folder, scan(), tiling="exakt")
    with pytest.raises(UsageError, match=r"--overlap 0.5 is of --tiling blend"):
        load_predictor(folder, tiling="exact", overlap=0.5)


def test_the_verb_has_the_option(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    array, affine = scan()
    nib.save(nib.Nifti1Image(array, affine), tmp_path / "scan.nii.gz")
    arguments = ["predict", str(folder), str(tmp_path / "scan.nii.gz"), "--quiet"]
    for tiling in ("exact", "blend"):
        assert main([*arguments, str(tmp_path / tiling), "--tiling", tiling]) == 0
    written = np.asanyarray(nib.load(tmp_path / "exact" / "scan.nii.gz").dataobj)
    np.testing.assert_array_equal(written, predict_volume(folder, (array, affine), tiling="exact"))
    assert (written != np.asanyarray(nib.load(tmp_path / "blend" / "scan.nii.gz").dataobj)).any()
    settings = json.loads((tmp_path / "exact" / "manifest.json").read_text())["settings"]
    assert settings["tiling"] == "exact"
    assert main([*arguments, str(tmp_path / "exact"), "--tiling", "blend"]) == 2


@pytest.mark.gpu
def test_gpu_scores_are_those_of_the_cpu(tmp_path: Path) -> None:
    network = lively(build_network("unet", 3, 1, 4, widths=(8, 16, 32), norm="batch"))
    image = torch.randn(1, 120, 64, 57)
    tiling = Tiling.of(image.shape[1:], measure_halo([network]), (3, 1, 1), tta_axes=(0,))
    wanted = whole(network, image, (0,)).argmax(0)
    scorer = NetworkScorer([network.cuda()], device="cuda:0")
    found = put_together(scorer, image, tiling, slab_on=torch.device("cpu")).argmax(0).cpu()
    assert float((found == wanted).float().mean()) >= 0.9999
    assert default_limit(torch.device("cuda:0")) > 1 << 28
