"""Facts of the trunk and of what stands on it: counts, maps, names of torchvision, gates and skips."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from voxelwise.errors import UsageError
from voxelwise.networks.base import SegmentationNetwork
from voxelwise.networks.deeplabv3plus import DeepLabV3Plus
from voxelwise.networks.fcrn import FCNVGG16, FCRN38, FCRN50, FCRN101, VGG16, FCNGoogLeNet
from voxelwise.networks.googlenet import GoogLeNet
from voxelwise.networks.registry import count_parameters
from voxelwise.networks.res_att_unet import ResAttUNet, ResUNet
from voxelwise.networks.resnet import ResNet
from voxelwise.networks.resnet34_unet import ResNet34UNet

COUNTS = [
    (FCRN38, 2, 3, 2, {}, 19_884_166),
    (FCRN50, 2, 3, 2, {}, 23_515_782),
    (FCRN101, 2, 3, 2, {}, 42_507_910),
    (FCNVGG16, 2, 3, 2, {}, 14_717_830),
    (FCNGoogLeNet, 2, 3, 2, {}, 5_605_158),
    (ResNet34UNet, 2, 3, 1, {}, 24_436_369),
    (ResNet34UNet, 2, 1, 1, {}, 24_430_097),
    (ResNet34UNet, 3, 3, 1, {}, 72_964_657),
    (ResAttUNet, 2, 3, 1, {}, 25_399_437),
    (ResAttUNet, 2, 3, 1, {"gates": False}, 25_307_521),
    (ResUNet, 2, 3, 1, {}, 25_307_521),
    (DeepLabV3Plus, 2, 3, 1, {}, 26_677_585),
    (DeepLabV3Plus, 2, 3, 1, {"encoder": "resnet34"}, 22_437_457),
    (DeepLabV3Plus, 2, 3, 1, {"encoder": "resnet101"}, 45_669_713),
]


@pytest.mark.parametrize(("build", "dims", "channels", "classes", "options", "count"), COUNTS)
def test_parameters(
    build: type[SegmentationNetwork], dims: int, channels: int, classes: int, options: dict[str, object], count: int
) -> None:
    with torch.device("meta"):
        assert count_parameters(build(dims, channels, classes, **options)) == count
    assert f"{count:,}" in (build.__doc__ or "")


def test_maps_of_the_encoder() -> None:
    with torch.device("meta"):
        trunk = ResNet(2, 3, (3, 4, 6, 3), bottleneck=False)
        maps = trunk(torch.empty(2, 3, 256, 256))
        assert count_parameters(trunk) == 21_284_672
        assert [(side.shape[1], side.shape[2]) for side in maps] == [
            (64, 128),
            (64, 64),
            (128, 32),
            (256, 16),
            (512, 8),
        ]
        for build in (FCRN38, FCNVGG16, FCNGoogLeNet):
            assert build(2, 3, 2, width=8)(torch.empty(2, 3, 480, 480)).shape == (2, 2, 480, 480)


def test_layers_of_fcrn() -> None:
    """The stem, three convolutions a block, and the scores as one layer, as the paper counts."""
    for build, layers in ((FCRN38, 38), (FCRN50, 50), (FCRN101, 101)):
        assert 2 + 3 * sum(build.BLOCKS) == layers
    trunk = FCRN50(2, 3, 2, width=1).trunk
    assert [(block.conv1.stride, block.conv2.stride) for block in trunk.layer2] == [((1, 1), (1, 1))] * 4
    assert trunk.layer2[0].step_first


@torch.no_grad()
def test_scores_that_are_constant_stay_constant_inside() -> None:
    network = FCRN50(2, 1, 2, width=1, blocks=(1, 1, 1, 1)).eval()
    for index, score in enumerate(network.scores):
        nn.init.zeros_(score.weight)
        nn.init.constant_(score.bias, 1.0 if index == 2 else 0.0)
    logits = network(torch.randn(1, 1, 192, 192))
    torch.testing.assert_close(logits[:, :, 48:-48, 48:-48], torch.ones(1, 2, 96, 96))


@torch.no_grad()
def test_without_weights_of_its_skip_a_map_is_not_used() -> None:
    network = ResNet34UNet(2, 1, 1, width=4).eval()
    image = torch.randn(1, 1, 64, 64)
    network.decoder[2][0].conv.weight[:, 2 * 4 :].zero_()  # what is joined with layer1
    kept: list[Tensor] = []
    block = network.encoder.layer2[0]
    block.register_forward_pre_hook(lambda module, inputs: kept.append(inputs[0]) or (kept[0],))
    before = network(image)
    network.encoder.layer1.register_forward_hook(lambda module, inputs, result: result + 1)
    assert torch.equal(network(image), before)  # the rest of the encoder still gets the old map


class _Skip(nn.Module):
    def forward(self, signal: Tensor, skip: Tensor) -> Tensor:
        return skip


@torch.no_grad()
def test_masks_of_one_give_the_arm_without_gates() -> None:
    gated, plain = ResAttUNet(2, 1, 2, width=4).eval(), ResUNet(2, 1, 2, width=4).eval()
    weights = {name: value for name, value in gated.state_dict().items() if not name.startswith("gates")}
    plain.load_state_dict(weights)
    image = torch.randn(1, 1, 64, 64)
    assert not torch.equal(gated(image), plain(image))
    for gate in gated.gates:
        nn.init.constant_(gate.psi[2].bias, 1e4)  # sigmoid(10000) is 1
    assert torch.equal(gated(image), plain(image))


def test_shapes_and_gates_of_res_att_unet() -> None:
    with torch.device("meta"):
        network = ResAttUNet(2, 3, 1)
        shapes: list[tuple[int, int]] = []
        for stage in network.decoder:
            stage.register_forward_hook(
                lambda module, inputs, result: shapes.append((result.shape[1], result.shape[2]))
            )
        assert network(torch.empty(2, 3, 256, 256)).shape == (2, 1, 256, 256)
    assert shapes == [(256, 16), (128, 32), (64, 64), (64, 128)]
    assert count_parameters(network.gates) == 91_916


def test_deeplab_is_dilated_and_says_why_it_wants_two_cases() -> None:
    with torch.device("meta"):
        network = DeepLabV3Plus(2, 3, 1)
        maps = network.encoder(torch.empty(2, 3, 256, 256))
        assert [side.shape[2] for side in maps] == [128, 64, 32, 16, 16]
        assert {block.conv2.dilation for block in network.encoder.layer4} == {(2, 2)}
        with pytest.raises(ValueError, match=r"DeepLabV3Plus cannot be trained on a batch of one.*use a batch of two"):
            network(torch.empty(1, 3, 64, 64))
        assert network.eval()(torch.empty(1, 3, 50, 70)).shape == (1, 1, 50, 70)


def test_weights_of_torchvision_fit() -> None:
    """By name and by shape; no weights are fetched."""
    from torchvision import models

    with torch.device("meta"):
        pairs = [
            (ResNet(2, 3, (3, 4, 6, 3), bottleneck=False), models.resnet34(weights=None)),
            (ResNet(2, 3, (3, 4, 6, 3), bottleneck=True), models.resnet50(weights=None)),
            (GoogLeNet(3), models.googlenet(weights=None, aux_logits=False, init_weights=False)),
            (VGG16(3), models.vgg16(weights=None)),
        ]
    for ours, theirs in pairs:
        given = {name: value.shape for name, value in theirs.state_dict().items()}
        wanted = {name: value.shape for name, value in ours.state_dict().items()}
        assert wanted.items() <= given.items()
        assert {name.split(".")[0] for name in given.keys() - wanted.keys()} <= {"fc", "classifier"}


@torch.no_grad()
def test_trunks_compute_what_torchvisions_do() -> None:
    from torchvision import models

    image = torch.randn(1, 3, 64, 64)
    theirs = models.resnet18(weights=None).eval()
    ours = ResNet(2, 3, (2, 2, 2, 2), bottleneck=False).eval()
    ours.load_state_dict(theirs.state_dict(), strict=False)
    torch.testing.assert_close(theirs.fc(ours(image)[-1].mean((2, 3))), theirs(image))
    theirs = models.googlenet(weights=None, aux_logits=False, init_weights=False).eval()
    ours = GoogLeNet(3).eval()
    ours.load_state_dict(theirs.state_dict(), strict=False)
    torch.testing.assert_close(theirs.fc(ours(image)[-1].mean((2, 3))), theirs(image))


def test_wrong_options() -> None:
    with pytest.raises(UsageError, match="unknown encoder 'resnet43'"):
        ResUNet(2, 3, 1, encoder="resnet43")
    with pytest.raises(ValueError, match="got depth=33"):
        ResAttUNet(2, 3, 1, depth=33)
    with pytest.raises(ValueError, match=r"four stages of one block or more, got blocks=\(1, 2\)"):
        FCRN50(2, 3, 2, blocks=(1, 2))
