from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from voxelwise.errors import UsageError
from voxelwise.networks.registry import FEATURE_NETWORKS, NETWORKS, SOURCES, build_network, describe_networks
from voxelwise.networks.unet import UNet

GOOD = """
from torch import nn
from voxelwise.networks.base import SegmentationNetwork

class Pointwise(SegmentationNetwork):
    def __init__(self, spatial_dims, in_channels, out_channels, *, width=3):
        super().__init__(spatial_dims, in_channels, out_channels, stride=(1,) * spatial_dims,
                         receptive_field=(1,) * spatial_dims)
        self.first = nn.Conv3d(in_channels, width, 1)
        self.head = nn.Conv3d(width, out_channels, 1)

    def body(self, image):
        return self.first(image)

class Bare(nn.Module):
    def __init__(self, spatial_dims, in_channels, out_channels):
        super().__init__()

class Liar(Pointwise):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.out_channels = 7

class Wordy(Pointwise):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.stride = 4

class Greedy(Pointwise):
    def __init__(self, spatial_dims, in_channels, out_channels, **options):
        super().__init__(spatial_dims, in_channels, out_channels, **options)

NotAClass = 3

class Plain:
    pass
"""


@pytest.fixture
def own_file(tmp_path: Path) -> Path:
    path = tmp_path / "own.py"
    path.write_text(GOOD)
    return path


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


def test_rows() -> None:
    rows = {row.name: row for row in describe_networks()}
    assert set(rows) == {*NETWORKS, *FEATURE_NETWORKS}
    assert {name for name, row in rows.items() if row.kind == "features"} == set(FEATURE_NETWORKS)
    assert all(len(row.dims) == len(row.parameters) and row.paper for row in rows.values())
    assert {name: (*rows[name].counted, rows[name].parameters[0]) for name in PINNED} == PINNED
    for row in rows.values():
        assert set(re.findall(r"S\d", row.sources)) <= set(SOURCES)


@pytest.mark.parametrize(
    ("name", "dims", "options", "message"),
    [
        ("unett", 3, {}, "unknown network 'unett'; did you mean 'unet'"),
        ("unet", 3, {"width": 4}, "unknown option of network 'unet': 'width'; did you mean 'widths'.*there are: act"),
        ("vnet", 4, {}, "network 'vnet' is 3D and 2D, not 4D"),
        ("none.py:Network", 3, {}, "none.py does not exist"),
        ("none.py", 3, {}, "write path/to/file.py:Class"),
    ],
)
def test_wrong_use(name: str, dims: int, options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_network(name, dims, 1, 2, **options)


def test_a_class_of_the_users(own_file: Path) -> None:
    network = build_network(f"{own_file}:Pointwise", 3, 1, 2, width=5)
    assert network(torch.zeros(1, 1, 3, 4, 5)).shape == (1, 2, 3, 4, 5)
    assert network.activation_bytes((4, 4, 4)) > 0


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("Pointwize", {}, "unknown class in .*own.py: 'Pointwize'; did you mean 'Pointwise'"),
        ("NotAClass", {}, "unknown class in .*own.py: 'NotAClass'"),
        ("Plain", {}, "class Plain is no torch.nn.Module"),
        ("Bare", {}, "class Bare lacks spatial_dims, in_channels, .*activation_bytes; subclass"),
        ("Liar", {}, r"class Liar was built with .*\(3, 1, 2\) and declares \(3, 1, 7\)"),
        ("Wordy", {}, "class Wordy declares stride=4; expected a tuple of 3 whole numbers"),
        ("Pointwise", {"widht": 3}, "unknown option of network .*'widht'; did you mean 'width'"),
        ("Greedy", {"depth": 3}, "Greedy cannot be built.*depth"),
    ],
)
def test_a_class_that_does_not_keep_the_contract(
    own_file: Path, name: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        build_network(f"{own_file}:{name}", 3, 1, 2, **options)


def test_a_file_that_fails(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import no_such_module_at_all\n")
    with pytest.raises(UsageError, match=r"broken.py fails when it is executed: ModuleNotFoundError"):
        build_network(f"{tmp_path / 'broken.py'}:Network", 3, 1, 2)
