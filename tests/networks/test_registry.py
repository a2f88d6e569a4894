"""Names, counts and options of all networks."""

from __future__ import annotations

import re

import pytest
import torch
from voxelwise.errors import UsageError
from voxelwise.networks.base import SegmentationNetwork
from voxelwise.networks.feature_registry import FEATURE_NETWORKS
from voxelwise.networks.registry import NETWORKS, SOURCES, Entry, build_network, describe_networks
from voxelwise.networks.unet import UNet


def test_options_reach_the_class() -> None:
    network = build_network("unet", 2, 3, 4, widths=[4, 8], blocks="residual")
    assert isinstance(network, UNet)
    assert network(torch.zeros(1, 3, 8, 8)).shape == (1, 4, 8, 8)


# table 26.1 of the specification: the default dimensions' count, with the channels in and out that it was taken with
PINNED = {
    "unet2015": (1, 2, 31_030_658),
    "unet3d2016": (3, 3, 19_075_523),
    "vnet": (1, 2, 65_183_258),
    "voxresnet": (3, 4, 1_329_024),
    "fcn8s": (3, 21, 134_362_751),
    "fcn_alexnet": (3, 21, 56_954_261),
    "fcn32s": (3, 21, 134_346_581),
    "fcn16s": (3, 21, 134_357_354),
    "res_unet": (3, 1, 25_307_521),
    "cen": (3, 1, 1_586_401),
    "fcrn38": (3, 2, 19_884_166),
    "fcrn50": (3, 2, 23_515_782),
    "fcrn101": (3, 2, 42_507_910),
    "fcn_vgg16": (3, 2, 14_717_830),
    "fcn_googlenet": (3, 2, 5_605_158),
    "resnet34_unet": (3, 1, 24_436_369),
    "res_att_unet": (3, 1, 25_399_437),
    "attention_unet": (3, 1, 34_878_573),
    "unetpp": (1, 1, 9_041_601),
    "dilated_unet": (1, 1, 31_034_753),
    "adid_unet": (1, 1, 52_132_416),
    "r2u_net": (3, 1, 39_091_393),
    "deeplabv3plus": (3, 1, 26_677_585),
    "cen_s": (3, 1, 1_609_729),
    "patch_classifier": (1, 2, 219_290),
    "jule3d": (1, 2_671_710),
}


# the names that the table has no row for, and what our stated default counts
OURS = {
    "unet": (1, 2, 16_543_650),
    "autocontext": (3, 4, 1_329_024 + 1_332_480),
    "mscnn": (1, 2, 4_385_954),
    "vnet_monai": (1, 2, 45_597_898),
    "dynunet": (1, 2, 16_543_650),
    "segresnet": (1, 2, 18_796_002),
    "unetr": (1, 2, 92_783_842),
    "swin_unetr": (1, 2, 62_186_708),
    "mednext": (1, 2, 5_550_914),
    "highresnet": (1, 2, 808_946),
    "ssae": (2, 4_984_362),
    "csae": (1, 382_753),
    "conv_rbm": (1, 23_361),
}


def test_rows() -> None:
    rows = {row.name: row for row in describe_networks()}
    counts = {name: (*row.counted, row.parameters[0]) for name, row in rows.items()}
    assert counts == {**counts, **PINNED, **OURS}  # and perhaps networks that came later
    assert {name for name, row in rows.items() if row.kind == "features"} == set(FEATURE_NETWORKS)
    for row in rows.values():
        assert len(row.dims) == len(row.parameters)
        assert row.paper
        assert set(re.findall(r"S\d", row.sources)) <= set(SOURCES)


def test_an_error_without_options_is_ours() -> None:
    """It must reach the developer as it is, not as a wrong use."""

    def broken(spatial_dims: int, in_channels: int, out_channels: int) -> SegmentationNetwork:
        raise RuntimeError("a mistake of ours")

    NETWORKS["broken"] = Entry(broken, (2,), "no paper", {})
    try:
        with pytest.raises(RuntimeError, match="a mistake of ours"):
            build_network("broken", 2, 1, 2)
    finally:
        del NETWORKS["broken"]


@pytest.mark.parametrize(
    ("name", "dims", "options", "message"),
    [
        ("fcn", 2, {}, "unknown network 'fcn'.*there are: .*fcn8s, fcn_alexnet"),
        ("fcn8s", 3, {}, "network 'fcn8s' is 2D, not 3D; use --dims 2"),
        ("unett", 3, {}, "unknown network 'unett'; did you mean 'unet'"),
        ("unet", 3, {"width": 4}, "unknown option of network 'unet': 'width'; did you mean 'widths'.*there are: act"),
        ("vnet", 4, {}, "network 'vnet' is 3D and 2D, not 4D"),
        (
            "vnet",
            3,
            {"width": "wide"},
            "option width of network 'vnet': found 'wide', expected: input should be a valid in",
        ),
        (
            "vnet",
            3,
            {"width": 2.5},
            "option width of network 'vnet': found 2.5, expected: input should be a valid integer",
        ),
        ("vnet", 3, {"width": True}, "option width of network 'vnet': found True"),
        ("mscnn", 3, {"kernels": "3"}, "option kernels of network 'mscnn': found '3', expected: .*str.*not allowed"),
        ("autocontext", 3, {"options": 3}, "option options of network 'autocontext': found 3, expected: .*dictionary"),
        ("cen", 3, {"width": -1}, "network 'cen' cannot be built with {'width': -1}: .*negative dimension"),
        ("cen", 3, {"width": 0}, "network 'cen' cannot be built with {'width': 0}: .*zero"),
        ("vnet", 3, {"width": 0}, "network 'vnet': {'width': 0} leaves a layer without channels"),
        ("none.py:Network", 3, {}, "none.py does not exist"),
        ("none.py", 3, {}, "write path/to/file.py:Class"),
    ],
)
def test_wrong_use(name: str, dims: int, options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_network(name, dims, 1, 2, **options)


@pytest.mark.parametrize("name", NETWORKS)
def test_without_any_width_it_is_refused(name: str) -> None:
    """In one line; a ValueError is a wrong use too."""
    entry = NETWORKS[name]
    options = {"widths": (0, 0, 0)} if name == "unet" else {"width": 0}
    with pytest.raises((UsageError, ValueError)) as caught:
        build_network(name, entry.spatial_dims[0], 1, 2, **options)
    assert "\n" not in str(caught.value)
