"""Facts of the authors' network: counts, sizes, layers, and a crop that aligns."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from voxelwise.errors import UsageError
from voxelwise.networks.fcn_alexnet import FCNAlexNet
from voxelwise.networks.registry import count_parameters


@pytest.mark.parametrize(("classes", "count"), [(21, 56_954_261), (2, 56_876_418)])
def test_parameters(classes: int, count: int) -> None:
    with torch.device("meta"):
        assert count_parameters(FCNAlexNet(2, 3, classes)) == count
    assert f"{count:,}" in (FCNAlexNet.__doc__ or "")


@pytest.mark.parametrize("padding", ["paper", "same"])
def test_sizes_come_back(padding: str) -> None:
    with torch.device("meta"):
        network = FCNAlexNet(2, 3, 2, width=2, padding=padding)
        for size in (500, 512, 256):
            assert network(torch.empty(1, 3, size, size)).shape == (1, 2, size, size)


def test_layers_of_the_authors() -> None:
    with torch.device("meta"):
        network = FCNAlexNet(2, 3, 21)
        convs = {name: layer for name, layer in network.named_children() if isinstance(layer, nn.Conv2d)}
        sizes: list[int] = []
        for layer in (*convs.values(), network.upscore):
            layer.register_forward_hook(lambda module, inputs, result: sizes.append(result.shape[-1]))
        network(torch.empty(1, 3, 512, 512))
    found = {name: (conv.out_channels, conv.kernel_size[0], conv.groups) for name, conv in convs.items()}
    assert found == {
        "conv1": (96, 11, 1), "conv2": (256, 5, 2), "conv3": (384, 3, 1), "conv4": (384, 3, 2), "conv5": (256, 3, 2),
        "fc6": (4096, 6, 1), "fc7": (4096, 1, 1), "score_fr": (21, 1, 1),
    }  # fmt: skip
    assert (network.conv1.stride, network.conv1.padding) == ((4, 4), (100, 100))
    assert (network.upscore.side, network.upscore.scale) == (63, 32)
    # 512 and 100 around: (712 - 11) / 4 + 1, poolings of side 3 that round up, and 32 * 16 + 31 of 17 scores
    assert sizes == [176, 88, 44, 44, 44, 17, 17, 17, 575]


@torch.no_grad()
@pytest.mark.parametrize(("padding", "place"), [("paper", 18), ("same", 15)])
def test_where_the_image_begins_in_the_scores(padding: str, place: int) -> None:
    """A score of 1 at one place is a bilinear kernel of 63 pixels, from 32 pixels times that place less the crop."""
    network = FCNAlexNet(2, 1, 1, width=2, padding=padding).eval()

    def one(module: nn.Module, inputs: object, result: Tensor) -> Tensor:
        marks = torch.zeros_like(result)
        marks[:, :, 2, 3] = 1
        return marks

    network.score_fr.register_forward_hook(one)
    logits = network(torch.zeros(1, 1, 160, 192))[0, 0]
    assert logits.argmax() == (2 * 32 + 31 - place) * 192 + 3 * 32 + 31 - place
    assert float(logits.sum()) == pytest.approx(32**2)


def test_wrong_options() -> None:
    with pytest.raises(UsageError, match="unknown padding 'papr'; did you mean 'paper'"):
        FCNAlexNet(2, 3, 2, padding="papr")
    with pytest.raises(ValueError, match="its width is even; got width=3"):
        FCNAlexNet(2, 3, 2, width=3)
