"""The contract that every feature network keeps, and the facts of those that have no file of their own here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from voxelwise.errors import UsageError
from voxelwise.networks.csae import CSAE
from voxelwise.networks.features import FeatureNetwork
from voxelwise.networks.jule3d import JULE3D
from voxelwise.networks.registry import FEATURE_NETWORKS, build_feature_network, count_parameters
from voxelwise.networks.ssae import SSAE

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
    else:
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


# jule3d


@pytest.mark.parametrize(
    ("options", "count"), [({}, 2_671_710), ({"hidden": 0}, 847_860), ({"pool_after": 3}, 24_001_710)]
)
def test_jule3d_parameters(options: dict[str, Any], count: int) -> None:
    with torch.device("meta"):
        network = JULE3D(3, 1, **options)
        assert network(torch.empty(2, 1, 27, 27, 27)).code.shape == (2, 160)
    assert count_parameters(network) == count
    assert f"{count:,}" in (JULE3D.__doc__ or "")


def test_the_default_pooling_leaves_the_paper_s_width() -> None:
    with torch.device("meta"):
        assert JULE3D(3, 1).convs(torch.empty(1, 1, 27, 27, 27)).shape == (1, 1350)


@torch.no_grad()
def test_codes_have_length_one() -> None:
    network = build("jule3d", 3, {}).eval()
    torch.testing.assert_close(network.encode(image(network, 4)).norm(dim=1), torch.ones(4))


def test_jule3d_wrong_options() -> None:
    with pytest.raises(ValueError, match="convolution 1 to 3, got pool_after=4"):
        JULE3D(3, 1, pool_after=4)
    with pytest.raises(ValueError, match="a patch of side 12 is too small"):
        JULE3D(3, 1, patch=12)


# auto-encoders


def test_auto_encoder_parameters() -> None:
    for network, count in (
        (SSAE(3, 2), 4_984_362),
        (CSAE(2, 1), 382_753),
        (CSAE(3, 1), 1_926_853),
    ):
        assert count_parameters(network) == count
        assert f"{count:,}" in (type(network).__doc__ or "")


@pytest.mark.parametrize("name", ["ssae", "csae"])
def test_greedy_training_lowers_the_error_layer_by_layer(name: str) -> None:
    network: Any = build(name, 2, {"widths": (12, 8, 6)})
    generator = torch.Generator().manual_seed(4)
    low_rank = torch.randn(64, 3, generator=generator) @ torch.randn(3, IN * 16, generator=generator)
    patches = 0.3 * low_rank.view(64, IN, 4, 4)
    for depth in range(3):
        own = [network.encoder[depth], network.decoder[-1 - depth]] if name == "ssae" else [network.encoder[depth]]
        optimiser = torch.optim.Adam(nn.ModuleList(own).parameters(), lr=1e-2)
        others = [p.clone() for d, layer in enumerate(network.encoder) if d != depth for p in layer.parameters()]
        errors = []
        for _ in range(60):
            before, _, result = network.greedy(patches, depth)
            loss = (result - before).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            errors.append(float(loss.detach()))
        assert errors[-1] < 0.8 * errors[0], f"layer {depth}"
        now = [p for d, layer in enumerate(network.encoder) if d != depth for p in layer.parameters()]
        assert all(torch.equal(one, other) for one, other in zip(now, others, strict=True))


@torch.no_grad()
def test_csae_decoder_is_tied() -> None:
    network = CSAE(2, 1, widths=(3,), kernels=(3,), scales=(1,)).double()
    one, maps = torch.randn(1, 1, 6, 5).double(), torch.randn(1, 3, 6, 5).double()
    nn.init.zeros_(network.encoder[0].bias)
    torch.testing.assert_close((network.encoder[0](one) * maps).sum(), (one * network.undone(0, maps)).sum())


@torch.no_grad()
def test_csae_scales() -> None:
    network = CSAE(2, 1)
    one = torch.randn(1, 1, 16, 16)
    stack = network.stack(one)
    assert stack.shape == (1, 3, 16, 16)
    assert torch.equal(stack[:, :1], one)
    torch.testing.assert_close(network.stack(torch.ones(1, 1, 8, 8)), torch.ones(1, 3, 8, 8))


def test_auto_encoder_wrong_options() -> None:
    with pytest.raises(ValueError, match="at least one layer"):
        SSAE(3, 1, widths=())
    with pytest.raises(ValueError, match="width and an odd kernel"):
        CSAE(2, 1, kernels=(4, 3, 3))
    with pytest.raises(ValueError, match=r"divisors of 4, got \[1, 3\]"):
        CSAE(2, 1, scales=(1, 3))
    for network in (build("ssae", 2, {}), build("csae", 2, {})):
        with pytest.raises(ValueError, match="has layers 0 to 2, got depth=3"):
            network.greedy(image(network), 3)  # type: ignore[operator]
