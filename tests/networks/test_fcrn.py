"""Facts of the authors' network and of its baselines: counts, sizes, layers, and how scores are fused."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from voxelwise.networks.fcrn import FCNVGG16, FCRN, FCRN38, FCRN50, FCRN101, FCNGoogLeNet, FusedScores
from voxelwise.networks.registry import count_parameters

COUNTS = [
    (FCRN38, 19_884_166),
    (FCRN50, 23_515_782),
    (FCRN101, 42_507_910),
    (FCNVGG16, 14_717_830),
    (FCNGoogLeNet, 5_605_158),
]


@pytest.mark.parametrize(("build", "count"), COUNTS)
def test_parameters(build: type[FusedScores], count: int) -> None:
    with torch.device("meta"):
        assert count_parameters(build(2, 3, 2)) == count
    assert f"{count:,}" in (build.__doc__ or "")


@pytest.mark.parametrize("build", [FCRN38, FCNVGG16, FCNGoogLeNet])
def test_sizes(build: type[FusedScores]) -> None:
    """480 pixels come back; the scores stand at strides of 8, 16 and 32."""
    with torch.device("meta"):
        network = build(2, 3, 2, width=8)
        sizes: list[int] = []
        for layer in (*network.scores, *reversed(network.ups)):
            layer.register_forward_hook(lambda module, inputs, result: sizes.append(result.shape[-1]))
        assert network(torch.empty(1, 3, 480, 480)).shape == (1, 2, 480, 480)
    assert sizes == [15, 30, 30, 60, 60, 480]  # the coarse map first, each enlarged and met by the next


@pytest.mark.parametrize(("build", "layers"), [(FCRN38, 38), (FCRN50, 50), (FCRN101, 101)])
def test_layers(build: type[FCRN], layers: int) -> None:
    """The stem, three convolutions a block, and the scores as one, as the paper counts; shortcuts are not counted."""
    with torch.device("meta"):
        trunk = build(2, 3, 2, width=1).trunk
    convs = [name for name, module in trunk.named_modules() if isinstance(module, nn.Conv2d)]
    assert len([name for name in convs if "downsample" not in name]) + 1 == layers
    blocks = [block for stage in (1, 2, 3, 4) for block in trunk.get_submodule(f"layer{stage}")]
    assert all(block.step_first for block in blocks)


@pytest.mark.parametrize(
    ("build", "widths"), [(FCRN50, [512, 1024, 2048]), (FCNVGG16, [256, 512, 512]), (FCNGoogLeNet, [480, 832, 1024])]
)
def test_heads(build: type[FusedScores], widths: list[int]) -> None:
    with torch.device("meta"):
        network = build(2, 3, 2)
    assert [score.in_channels for score in network.scores] == widths
    kernels = [(up.kernel_size[0], up.stride[0], up.padding[0], up.groups) for up in network.ups]
    assert kernels == [(16, 8, 4, 2), (4, 2, 1, 2), (4, 2, 1, 2)]


@torch.no_grad()
def test_scores_that_are_constant_stay_constant_inside() -> None:
    """Each of the three alone, and so their sum."""
    network = FCRN50(2, 1, 2, width=1, blocks=(1, 1, 1, 1)).eval()
    for index in range(3):
        for place, score in enumerate(network.scores):
            nn.init.zeros_(score.weight)
            nn.init.constant_(score.bias, float(place == index))
        logits = network(torch.randn(1, 1, 192, 192))
        torch.testing.assert_close(logits[:, :, 48:-48, 48:-48], torch.ones(1, 2, 96, 96))


def test_wrong_options() -> None:
    with pytest.raises(ValueError, match=r"four stages of one block or more, got blocks=\(1, 2\)"):
        FCRN50(2, 3, 2, blocks=(1, 2))
