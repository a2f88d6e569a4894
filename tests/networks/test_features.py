"""The contract that every feature network keeps; and the layer by layer training of auto-encoders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from voxelwise.errors import UsageError
from voxelwise.networks.feature_registry import FEATURE_NETWORKS, build_feature_network
from voxelwise.networks.features import FeatureNetwork

IN = 2
CASES = [(name, dims, {}) for name, entry in FEATURE_NETWORKS.items() for dims in entry.spatial_dims]
CASES += [("jule3d", 2, {"decoder": True, "pool_after": 2, "hidden": 0}), ("conv_rbm", 2, {"hidden": "binary"})]


def build(name: str, dims: int, options: dict[str, Any], seed: int = 0) -> FeatureNetwork:
    torch.manual_seed(seed)
    return build_feature_network(name, dims, IN, **{**FEATURE_NETWORKS[name].small, **options})


@pytest.fixture(params=CASES, ids=str)
def network(request: pytest.FixtureRequest) -> FeatureNetwork:
    return build(*request.param)


def image(network: FeatureNetwork, batch: int = 2) -> Tensor:
    """Of a size that has to be padded, where any size is taken."""
    size = network.patch or tuple(side + more for side, more in zip(network.minimum_size, (5, 6, 8), strict=False))
    return torch.randn(batch, IN, *size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_code_and_reconstruction(network: FeatureNetwork) -> None:
    network.eval()
    one = image(network)
    code, reconstruction = network(one)
    assert code.shape[:2] == (2, network.code_channels)
    torch.testing.assert_close(network.encode(one), code, rtol=0, atol=0)
    torch.testing.assert_close(network.encode(one[1:]), code[1:])
    assert network.reconstructs == (reconstruction is not None)
    if reconstruction is None:
        with pytest.raises(ValueError, match="has no decoder"):
            network.decode(code)
        return
    with pytest.raises(ValueError, match=rf"decodes codes \(N, {network.code_channels}.*got shape"):
        network.decode(code[:, 1:])
    with pytest.raises(ValueError, match="decodes codes"):
        network.decode(code[0])
    assert reconstruction.shape == one.shape
    inside = tuple(slice(side) for side in one.shape)
    torch.testing.assert_close(network.decode(code)[inside], reconstruction, rtol=0, atol=0)


def test_backward_reaches_every_parameter(network: FeatureNetwork) -> None:
    code, reconstruction = network(image(network))
    weights = torch.randn(code.shape, generator=torch.Generator().manual_seed(2))
    loss = (code * weights).sum() + (0 if reconstruction is None else reconstruction.square().mean())
    loss.backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, f"{name} is not used"
        cancels = name.startswith("convs.") and name.endswith(".bias")  # in front of a batch norm
        assert cancels or parameter.grad.abs().max() > 0, f"{name} gets no gradient"


@torch.no_grad()
def test_weights_survive_safetensors(network: FeatureNetwork, tmp_path: Path) -> None:
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    one = image(network)
    code = network.eval().encode(one)
    for parameter in network.parameters():
        parameter.add_(torch.randn_like(parameter))
    assert not torch.equal(network.encode(one), code)
    network.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    assert torch.equal(network.encode(one), code)


def test_other_images_are_refused(network: FeatureNetwork) -> None:
    one = image(network)
    with pytest.raises(ValueError, match=rf"takes images \(N, {IN}, X, Y.*got shape"):
        network(one[:, :1])
    if any(side > 1 for side in network.minimum_size):
        with pytest.raises(ValueError, match=r"takes patches of|needs at least"):
            network(one[:, :, :1])


def test_wrong_use() -> None:
    with pytest.raises(UsageError, match="unknown feature network 'jule'; did you mean 'jule3d'"):
        build_feature_network("jule", 3, 1)
    with pytest.raises(UsageError, match="network 'csae' is 2D and 3D, not 4D"):
        build_feature_network("csae", 4, 1)
    with pytest.raises(UsageError, match="unknown option of network 'ssae': 'width'; did you mean 'widths'"):
        build_feature_network("ssae", 3, 1, width=4)


@pytest.mark.parametrize("name", ["ssae", "csae"])
def test_greedy_training_lowers_the_error_layer_by_layer(name: str) -> None:
    network: Any = build(name, 2, {"widths": (12, 8, 6)})
    generator = torch.Generator().manual_seed(4)
    low_rank = torch.randn(32, 3, generator=generator) @ torch.randn(3, IN * 16, generator=generator)
    patches = 0.3 * low_rank.view(32, IN, 4, 4)
    for depth in range(3):
        own = [network.encoder[depth], network.decoder[-1 - depth]] if name == "ssae" else [network.encoder[depth]]
        optimiser = torch.optim.Adam(nn.ModuleList(own).parameters(), lr=1e-2)
        others = [p.clone() for d, layer in enumerate(network.encoder) if d != depth for p in layer.parameters()]
        errors = []
        for _ in range(50):
            before, _, result = network.greedy(patches, depth)
            loss = (result - before).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            errors.append(float(loss.detach()))
        assert errors[-1] < 0.8 * errors[0], f"layer {depth}"
        now = [p for d, layer in enumerate(network.encoder) if d != depth for p in layer.parameters()]
        assert all(torch.equal(one, other) for one, other in zip(now, others, strict=True))


@pytest.mark.parametrize("name", ["ssae", "csae"])
def test_greedy_training_has_a_layer_for_each_depth(name: str) -> None:
    network = build(name, 2, {})
    with pytest.raises(ValueError, match="has layers 0 to 2, got depth=3"):
        network.greedy(image(network), 3)  # type: ignore[operator]
