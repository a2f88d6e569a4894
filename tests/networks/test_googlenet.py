"""Facts of the trunk: maps, names and numbers of torchvision."""

from __future__ import annotations

import torch
from torchvision import models
from voxelwise.networks.googlenet import GoogLeNet


def test_maps() -> None:
    with torch.device("meta"):
        trunk = GoogLeNet(3)
        maps = trunk(torch.empty(1, 3, 96, 64))
    assert [tuple(side.shape[1:]) for side in maps] == [(480, 12, 8), (832, 6, 4), (1024, 3, 2)]
    assert trunk.widths == [480, 832, 1024]


def test_a_narrow_one_keeps_its_proportions() -> None:
    with torch.device("meta"):
        assert GoogLeNet(1, width=16).widths == [120, 208, 256]
        assert min(parameter.shape[0] for parameter in GoogLeNet(1, width=1).parameters()) == 1


@torch.no_grad()
def test_it_computes_what_torchvisions_does() -> None:
    theirs = models.googlenet(weights=None, aux_logits=False, init_weights=False, num_classes=3).eval()
    ours = GoogLeNet(3).eval()
    missing = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert (missing.missing_keys, missing.unexpected_keys) == ([], ["fc.weight", "fc.bias"])
    image = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(theirs.fc(ours(image)[-1].mean((2, 3))), theirs(image), rtol=1e-4, atol=1e-4)
