"""A network of the user's own: how it is found, what it must declare, and what is said where it does not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from voxelwise.errors import UsageError
from voxelwise.networks.registry import build_network

GOOD = """
from torch import nn
from voxelwise.networks.base import SegmentationNetwork

class Pointwise(SegmentationNetwork):
    def __init__(self, spatial_dims, in_channels, out_channels, *, width: int = 3):
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

class Flat(Pointwise):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.stride = (1, 0, 1)

class Clumsy(Pointwise):
    def __init__(self, *sizes):
        raise KeyError("weights\\nof mine")

NotAClass = 3

class Plain:
    pass
"""

SETTINGS = """
from __future__ import annotations
from dataclasses import dataclass

@dataclass
class Widths:
    first: int = 3
"""


@pytest.fixture
def own_file(tmp_path: Path) -> Path:
    path = tmp_path / "own.py"
    path.write_text(GOOD)
    return path


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
        ("Bare", {}, "class Bare lacks spatial_dims, in_channels, .*layout, .*activation_bytes; subclass"),
        ("Liar", {}, r"class Liar was built with .*\(3, 1, 2\) and declares \(3, 1, 7\)"),
        ("Wordy", {}, "class Wordy declares stride=4; expected a tuple of 3 whole numbers from 1 on"),
        ("Flat", {}, r"class Flat declares stride=\(1, 0, 1\); expected a tuple of 3 whole numbers from 1 on"),
        ("Clumsy", {}, "class Clumsy cannot be built from .*KeyError: 'weights"),
        ("Pointwise", {"widht": 3}, "unknown option of network .*'widht'; did you mean 'width'"),
        ("Pointwise", {"width": "wide"}, "option width of network .*Pointwise': found 'wide', expected: .*integer"),
        ("Greedy", {"depth": 3}, "Greedy cannot be built.*depth"),
    ],
)
def test_a_class_that_does_not_keep_the_contract(
    own_file: Path, name: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        build_network(f"{own_file}:{name}", 3, 1, 2, **options)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import no_such_module_at_all", "ModuleNotFoundError"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("class Network(:", "SyntaxError"),
    ],
)
def test_a_file_that_fails(tmp_path: Path, code: str, message: str) -> None:
    (tmp_path / "broken.py").write_text(code + "\n")
    with pytest.raises(UsageError, match=rf"broken.py fails when it is executed: {message}"):
        build_network(f"{tmp_path / 'broken.py'}:Network", 3, 1, 2)


def test_a_file_with_data_classes(tmp_path: Path) -> None:
    """They look up where their types come from."""
    (tmp_path / "settings.py").write_text(SETTINGS + GOOD)
    network = build_network(f"{tmp_path / 'settings.py'}:Pointwise", 3, 1, 2)
    assert network.first.out_channels == 3
