"""Counts and sizes of N4 and N3, and the identity of the dense and the sliding form."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from voxelwise.errors import UsageError
from voxelwise.networks.patch_classifier import POOL, PatchClassifier, undilated
from voxelwise.networks.registry import count_parameters

SMALL = {"kernels": (2, 3), "last": 3, "width": 4, "hidden": 6}


@pytest.mark.parametrize(("variant", "count", "patch"), [("n4", 219_290, 95), ("n3", 335_978, 65)])
def test_parameters(variant: str, count: int, patch: int) -> None:
    with torch.device("meta"):
        network = PatchClassifier(2, 1, 2, variant=variant)
        assert network.classify(torch.empty(3, 1, patch, patch)).shape == (3, 2)
    assert count_parameters(network) == count
    assert f"{count:,}" in (PatchClassifier.__doc__ or "")
    assert network.patch == patch


@pytest.mark.parametrize(("variant", "sizes"), [("n4", [92, 46, 42, 21, 18, 9, 6, 3]), ("n3", [62, 31, 27, 13, 10, 5])])
def test_sizes(variant: str, sizes: list[int]) -> None:
    found = []
    with torch.device("meta"):
        network = PatchClassifier(2, 1, 2, variant=variant)
        maps = torch.empty(1, 1, network.patch, network.patch)
        for conv in network.convs:
            maps = undilated(conv, maps)
            found.append(maps.shape[2])
            maps = POOL[2](maps, 2)
            found.append(maps.shape[2])
    assert found == sizes


@pytest.mark.parametrize(
    ("dims", "options", "size"),
    [
        (2, {"variant": "n4", "width": 3, "hidden": 5}, (4, 3)),
        (2, {"variant": "n3", "width": 3, "hidden": 5}, (3, 4)),
        (2, SMALL, (21, 18)),
        (3, SMALL, (4, 5, 3)),
    ],
)
@torch.no_grad()
def test_dense_form_is_the_sliding_form(dims: int, options: dict[str, Any], size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    network = PatchClassifier(dims, 2, 3, **options)
    image = torch.randn(2, 2, *size)
    torch.testing.assert_close(network(image), network.sliding(image, batch=50), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_dense_form_is_faster() -> None:
    """Less time for 24 x 24 voxels, by a factor that no noise of a clock makes."""
    network = PatchClassifier(2, 1, 2, width=4, hidden=5)
    image = torch.randn(1, 1, 24, 24)
    network(image)
    took = []
    for form in (network, network.sliding):
        start = time.process_time()
        form(image)
        took.append(time.process_time() - start)
    assert took[1] > 5 * took[0]


def test_wrong_options() -> None:
    with pytest.raises(UsageError, match="unknown variant of the patch classifier: 'n5'"):
        PatchClassifier(2, 1, 2, variant="n5")
    for wrong in ({"kernels": (0, 3)}, {"kernels": ()}, {"last": 0}):
        with pytest.raises(ValueError, match="convolutions of side 1 or more"):
            PatchClassifier(2, 1, 2, **wrong)
    with pytest.raises(ValueError, match=r"95 voxels a side, got \(94, 95\)"):
        PatchClassifier(2, 1, 2, width=1).classify(torch.zeros(1, 1, 94, 95))
