"""`StreamingInferer` gives what MONAI's `SlidingWindowInferer` does, or labels without ever holding the logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import voxelwise
from monai.data import MetaTensor
from monai.inferers import Inferer, SlidingWindowInferer
from torch import Tensor, nn
from voxelwise.errors import UsageError
from voxelwise.networks.registry import build_network
from voxelwise.pipeline.inference.inferer import StreamingInferer, monai_starts
from voxelwise.pipeline.inference.scorer import NetworkScorer


def seen_from_the_window(dims: int, classes: int = 3) -> nn.Module:
    """Logits that depend on where in its window a voxel lies, so that windows and weights matter."""
    torch.manual_seed(0)
    make = nn.Conv3d if dims == 3 else nn.Conv2d
    return make(2, classes, 3, padding=1).eval()


@pytest.mark.parametrize("mode", ["constant", "gaussian"])
@pytest.mark.parametrize(
    ("shape", "roi", "overlap"),
    [
        ((13, 17, 9), (8, 8, 8), 0.25),
        ((13, 17, 9), (8, 6, 4), (0.5, 0.25, 0.6)),
        ((5, 20, 7), (8, 8, 8), 0.5),  # smaller than a window along two axes
        ((19, 11), (8, 8), 0.5),
        ((19, 11), (8, -1), 0.3),
    ],
)
def test_logits_are_those_of_monai(mode: str, shape: tuple[int, ...], roi: tuple[int, ...], overlap: Any) -> None:
    network, images = seen_from_the_window(len(shape)), torch.randn(2, 2, *shape)
    options: dict[str, Any] = {"sw_batch_size": 3, "overlap": overlap, "mode": mode}
    with torch.no_grad():
        wanted = SlidingWindowInferer(roi, **options)(images, network)
    found = StreamingInferer(roi, **options)(images, network)
    assert isinstance(wanted, Tensor)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    labels = StreamingInferer(roi, **options, labels=True)(images, network)
    assert labels.dtype == torch.uint8
    assert labels.shape == (2, 1, *shape)
    assert torch.equal(labels[:, 0].long(), found.max(dim=1).indices)


@pytest.mark.parametrize("mode", ["constant", "gaussian"])
def test_the_features_of_a_network_with_a_head_are_stitched(mode: str) -> None:
    network = build_network("unet", 3, 1, 20, widths=(4, 8)).eval()
    image = torch.randn(1, 1, 20, 17, 18)
    options: dict[str, Any] = {"overlap": 0.5, "mode": mode}
    with torch.no_grad():
        wanted = SlidingWindowInferer((8, 12, 8), **options)(image, network)
        plain = StreamingInferer((8, 12, 8), **options)(image, lambda windows: network(windows))
    assert isinstance(wanted, Tensor)
    for given in (network, NetworkScorer([network])):
        found = StreamingInferer((8, 12, 8), **options)(image, given)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
        assert not torch.equal(found, plain)  # the head came after the sums
    labels = StreamingInferer((8, 12, 8), **options, labels=True)(image, network)
    assert float((labels[:, 0] == wanted.max(dim=1).indices).float().mean()) > 0.999


def test_windows_are_those_of_monai() -> None:
    assert monai_starts(192, 96, 0.5) == [0, 48, 96]
    assert monai_starts(100, 40, 0.25) == [0, 30, 60]
    assert monai_starts(101, 40, 0.25) == [0, 30, 60, 61]
    assert monai_starts(8, 8, 0.5) == [0]
    assert monai_starts(3, 1, 0.9) == [0, 1, 2]


def test_the_nearest_window_gives_the_value_of_a_voxel() -> None:
    network = seen_from_the_window(2)
    image = torch.randn(1, 2, 16, 8)
    found = StreamingInferer((8, 8), overlap=0.5, mode="centre")(image, network)
    with torch.no_grad():
        each = [network(image[:, :, start : start + 8]) for start in (0, 4, 8)]
    wanted = torch.cat([each[0][:, :, :6], each[1][:, :, 2:6], each[2][:, :, 2:]], dim=2)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


def test_a_metatensor_stays_one_and_options_reach_the_network() -> None:
    affine = torch.diag(torch.tensor([2.0, 1.0, 1.5, 1.0], dtype=torch.float64))
    image = MetaTensor(torch.randn(1, 1, 9, 9, 9), affine=affine)

    def network(windows: Tensor, offset: float, *, scale: float) -> Tensor:
        return torch.cat([windows, -windows], dim=1) * scale + offset

    for labels in (False, True):
        found = StreamingInferer((4, 4, 4), labels=labels)(image, network, 1.0, scale=2.0)
        assert isinstance(found, MetaTensor)
        assert torch.equal(found.affine, affine)
    np.testing.assert_array_equal(found.numpy()[0, 0], (image.numpy()[0, 0] < 0).astype(np.uint8))


def test_more_than_256_classes_are_int16() -> None:
    found = StreamingInferer((4, 4), labels=True)(
        torch.ones(1, 1, 6, 6), lambda x: x * torch.arange(300)[:, None, None]
    )
    assert found.dtype == torch.int16
    assert (found == 299).all()


def test_half_precision_goes_in_and_comes_out() -> None:
    found = StreamingInferer((4, 4), overlap=0.5, mode="gaussian")(torch.ones(1, 1, 9, 9).half(), lambda x: x)
    assert found.dtype == torch.half
    torch.testing.assert_close(found.float(), torch.ones(1, 1, 9, 9), rtol=0, atol=1e-3)


def test_it_is_an_inferer_of_the_package() -> None:
    assert voxelwise.StreamingInferer is StreamingInferer
    assert isinstance(StreamingInferer(8), Inferer)


def test_wrong_use_is_named() -> None:
    with pytest.raises(UsageError, match="unknown mode 'gausian'; did you mean 'gaussian'"):
        StreamingInferer(8, mode="gausian")
    with pytest.raises(ValueError, match=r"from 0 to below 1; got 1\.0"):
        StreamingInferer(8, overlap=1.0)
    for network in (lambda x: (x, x), lambda x: x[..., ::2]):
        with pytest.raises(ValueError, match=r"gives one tensor \(n, K, 4, 4\) for windows of that size, got"):
            StreamingInferer((4, 4))(torch.ones(1, 1, 6, 6), network)
    with pytest.raises(ValueError, match=r"no images in a batch of shape \(0, 1, 6, 6\)"):
        StreamingInferer((4, 4))(torch.ones(0, 1, 6, 6), lambda x: x)
