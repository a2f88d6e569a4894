"""Facts: dilation costs no parameter, reaches further, and leaves no holes."""

from __future__ import annotations

import pytest
import torch
from voxelwise.networks.dilated_unet import DilatedUNet, reached
from voxelwise.networks.registry import count_parameters
from voxelwise.networks.unet2015 import UNet2015


def test_parameters_and_shape() -> None:
    with torch.device("meta"):
        network = DilatedUNet(2, 1, 1)
        assert network(torch.empty(1, 1, 256, 250)).shape == (1, 1, 256, 250)
        assert count_parameters(network) == 31_034_753 == count_parameters(UNet2015(2, 1, 1)) + 64 * 64 + 64
        assert count_parameters(DilatedUNet(2, 1, 1, rates=(1, 1))) == 31_034_753
    assert "31,034,753" in (DilatedUNet.__doc__ or "")


def test_it_sees_further_than_a_plain_one() -> None:
    plain, dilated = DilatedUNet(2, 1, 1, width=1, rates=(1, 1)), DilatedUNet(2, 1, 1, width=1)
    assert plain.receptive_field is not None
    assert dilated.receptive_field is not None
    assert dilated.receptive_field[0] > plain.receptive_field[0]


@pytest.mark.parametrize(
    ("rates", "count", "span"), [((1, 2, 5), 17, 17), ((1, 2, 9), 21, 25), ((2, 2, 2), 7, 13), ((1, 2), 7, 7)]
)
def test_offsets_reached(rates: tuple[int, ...], count: int, span: int) -> None:
    offsets = reached(rates)
    assert (len(offsets), offsets[-1] - offsets[0] + 1) == (count, span)
    if count == span:
        assert [conv.conv.dilation for conv in DilatedUNet(2, 1, 1, width=1, rates=rates).encoder[0]] == [
            (rate, rate) for rate in rates
        ]
    else:
        with pytest.raises(ValueError, match=rf"leave holes.*{count} of {span}"):
            DilatedUNet(2, 1, 1, rates=rates)
