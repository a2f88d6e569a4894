"""Networks that learn codes without labels: a table of their own, since nothing that segments takes one of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import unknown
from .building import build_checked, check_dims
from .conv_rbm import ConvRBM
from .csae import CSAE
from .features import FeatureNetwork
from .jule3d import JULE3D
from .ssae import SSAE


@dataclass(frozen=True)
class FeatureEntry:
    """One feature network, as `Entry` in registry.py has the others.

    Args:
        build: its class, called as `build(spatial_dims, in_channels, **options)`.
        spatial_dims: what it supports, its default first.
        paper: one line.
        small: options of a version that is built and run in no time, for tests.
        counted: channels in that its count is stated with.
        sources: which of the sources have it.
    """

    build: Callable[..., FeatureNetwork]
    spatial_dims: tuple[int, ...]
    paper: str
    small: Mapping[str, Any]
    counted: tuple[int] = (1,)
    sources: str = ""


FEATURE_NETWORKS: dict[str, FeatureEntry] = {
    "jule3d": FeatureEntry(
        JULE3D,
        (3, 2),
        "Moriya et al., SPIE 10578 (2018), arXiv 1804.03830",
        {"patch": 12, "kernel": 3, "width": 3, "hidden": 6, "code": 4},
        sources="S1",
    ),
    "ssae": FeatureEntry(
        SSAE,
        (3, 2),
        "in the manner of Guo et al., MICCAI 2014",
        {"patch": 4, "widths": (8, 6, 3)},
        counted=(2,),
        sources="S1",
    ),
    "csae": FeatureEntry(
        CSAE,
        (2, 3),
        "in the manner of Kallenberg et al., IEEE TMI 2016",
        {"widths": (4, 6, 5), "kernels": (3, 3, 3)},
        sources="S1",
    ),
    "conv_rbm": FeatureEntry(ConvRBM, (3, 2), "Brosch et al., IEEE TMI 2016", {"width": 4, "kernel": 3}, sources="S1"),
}


def build_feature_network(name: str, spatial_dims: int, in_channels: int, **options: Any) -> FeatureNetwork:
    """The feature network called `name`, a key of `FEATURE_NETWORKS`, with fresh weights.

    Raises:
        UsageError: no such network, option or dimension.
    """
    if name not in FEATURE_NETWORKS:
        raise unknown("feature network", name, FEATURE_NETWORKS)
    entry = FEATURE_NETWORKS[name]
    check_dims(name, spatial_dims, entry.spatial_dims)
    return build_checked(name, entry.build, (spatial_dims, in_channels), options)
