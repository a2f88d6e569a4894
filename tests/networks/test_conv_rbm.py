"""The machine against exact sums over all of its states, against scikit-learn's dense one, and as a start."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from sklearn.neural_network import BernoulliRBM
from torch import Tensor
from torch.nn import functional
from voxelwise.errors import UsageError
from voxelwise.networks.cen import CEN, CENS
from voxelwise.networks.conv_rbm import ConvRBM, convert_rbms
from voxelwise.networks.losses import SenSpeLoss
from voxelwise.networks.registry import count_parameters


def machine(**options: object) -> ConvRBM:
    torch.manual_seed(0)
    rbm = ConvRBM(2, 1, **{"width": 2, "kernel": 2, "visible": "binary", "hidden": "binary", **options})
    with torch.no_grad():
        for parameter in rbm.parameters():
            parameter.normal_()
    return rbm


def images_of_four() -> Tensor:
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=4))).view(16, 1, 2, 2)


def test_parameters() -> None:
    assert count_parameters(ConvRBM(3, 1)) == 23_361
    assert "23,361" in (ConvRBM.__doc__ or "")


@torch.no_grad()
def test_free_energy_of_binary_units_is_the_sum_over_hidden_states() -> None:
    rbm = machine()
    images = images_of_four()
    drive, bias = rbm.drive(images).flatten(1), rbm.visible_bias
    states = torch.tensor(list(itertools.product((0.0, 1.0), repeat=2)))
    energy = -(states @ drive.T).T - (bias * images).flatten(1).sum(1, keepdim=True)
    torch.testing.assert_close(rbm.free_energy(images), -torch.logsumexp(-energy, dim=1))


@torch.no_grad()
def test_free_energy_of_rectified_units_is_the_integral() -> None:
    rbm = machine(visible="normal", hidden="relu", width=1, kernel=1).double()
    image = torch.tensor([-1.5]).double().view(1, 1, 1, 1)
    drive = rbm.drive(image).flatten()
    height = torch.linspace(0, 30, 300_001).double()
    integral = torch.trapezoid((height * drive - height**2 / 2).exp(), height)
    own = (image.flatten() - rbm.visible_bias).square() / 2
    torch.testing.assert_close(rbm.free_energy(image), own - integral.log(), rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_dense_machine_is_scikit_learns() -> None:
    rbm = machine(kernel=3, width=4)
    dense = BernoulliRBM(4)
    dense.components_ = rbm.weight.flatten(1).double().numpy()
    dense.intercept_hidden_ = rbm.hidden_bias.double().numpy()
    dense.intercept_visible_ = rbm.visible_bias.double().expand(9).numpy()
    image = (torch.rand(6, 1, 3, 3, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    flat = image.flatten(1).double().numpy()
    torch.testing.assert_close(rbm.code_of(image).flatten(1), torch.from_numpy(dense.transform(flat)).float())
    torch.testing.assert_close(rbm.free_energy(image), torch.from_numpy(dense._free_energy(flat)).float())


def test_many_steps_give_the_gradient_of_the_likelihood() -> None:
    rbm = machine()
    data = images_of_four()[[3, 5, 9]]
    everything = images_of_four()
    names = [name for name, _ in rbm.named_parameters()]
    likelihood = -rbm.free_energy(data).mean() - torch.logsumexp(-rbm.free_energy(everything), dim=0)
    exact = torch.autograd.grad(-likelihood, list(rbm.parameters()))
    many = data.repeat(4000, 1, 1, 1)
    loss = rbm.contrastive_divergence(many, steps=20, generator=torch.Generator().manual_seed(2))
    for name, found, wanted in zip(names, torch.autograd.grad(loss, list(rbm.parameters())), exact, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0.03, msg=name)


@pytest.mark.parametrize("drive", [-4.0, 0.5, 3.0])
@torch.no_grad()
def test_rectified_units_have_their_mean(drive: float) -> None:
    rbm = machine(visible="normal", hidden="relu", width=1, kernel=1)
    rbm.weight.fill_(1)
    rbm.hidden_bias.zero_()
    drawn = rbm.sample_hidden(torch.full((1, 1, 200, 200), drive), torch.Generator().manual_seed(0))
    density = math.exp(-(drive**2) / 2) / math.sqrt(2 * math.pi)
    below = 0.5 * (1 + math.erf(drive / math.sqrt(2)))
    assert float(drawn.mean()) == pytest.approx(drive + density / below, rel=0.02)
    assert drawn.min() >= 0


def stripes(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    phase = torch.randint(0, 4, (count, 1, 1, 1), generator=generator)
    along = (torch.arange(12).view(1, 1, 12, 1) + phase) // 2 % 2
    return along.expand(count, 1, 12, 12).float() + 0.1 * torch.randn(count, 1, 12, 12, generator=generator)


@pytest.mark.parametrize("hidden", ["relu", "binary"])
def test_training_prefers_the_data_to_shuffled_data(hidden: str) -> None:
    torch.manual_seed(0)
    rbm = ConvRBM(2, 1, width=6, kernel=4, hidden=hidden)
    data = stripes(32)
    rbm.measure(data)
    order = torch.randperm(144, generator=torch.Generator().manual_seed(4))
    shuffled = data.flatten(1)[:, order].view_as(data)
    optimiser = torch.optim.SGD(rbm.parameters(), lr=1e-4, momentum=0.5)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        before = (rbm(data).reconstruction - data).square().mean()
    for _ in range(40):
        optimiser.zero_grad()
        rbm.contrastive_divergence(data, generator=generator).backward()
        optimiser.step()
    with torch.no_grad():
        assert rbm.free_energy(rbm.standardise(data)).mean() < rbm.free_energy(rbm.standardise(shuffled)).mean() - 10
        assert (rbm(data).reconstruction - data).square().mean() < before


def test_dropped_units_take_no_part() -> None:
    rbm = machine()
    data = images_of_four()
    loss = rbm.contrastive_divergence(data, dropout=1.0, generator=torch.Generator().manual_seed(0))
    weight, hidden, visible = torch.autograd.grad(loss, [rbm.weight, rbm.hidden_bias, rbm.visible_bias])
    assert weight.abs().max() == hidden.abs().max() == 0
    assert visible.abs().max() > 0


@torch.no_grad()
def test_a_channel_that_says_nothing_stays_harmless() -> None:
    """Such as the code of a filter that is never active: its weights are not blown up when they are converted."""
    rbm = ConvRBM(2, 2, width=3, kernel=3)
    image = torch.randn(4, 2, 8, 8)
    image[:, 1] = 0.7
    rbm.measure(image)
    torch.testing.assert_close(rbm.deviation, torch.tensor([float(image[:, 0].std()), 1.0]))
    torch.testing.assert_close(rbm.standardise(image)[:, 1], torch.zeros(4, 8, 8))


@torch.no_grad()
def test_converted_machines_compute_what_they_did() -> None:
    torch.manual_seed(0)
    first, second = ConvRBM(2, 2, width=3, kernel=3), ConvRBM(2, 3, width=3, kernel=3)
    for parameter in (*first.parameters(), *second.parameters()):
        parameter.normal_()
    image = 5 + 3 * torch.randn(2, 2, 12, 12)
    first.measure(image)
    network = CENS(2, 2, 2, width=3, kernel=3)
    shortcut = network.shortcut.weight.clone()
    pooled = network.pool(first.encode(image))
    second.measure(pooled)
    convert_rbms([first, second], network, outputs="image")
    torch.testing.assert_close(network.encoder[0](image).relu(), first.encode(image), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(network.encoder[1](pooled).relu(), second.encode(pooled), rtol=1e-4, atol=1e-4)
    code = second.encode(pooled)
    torch.testing.assert_close(network.decoder[0](code), second.decode(code), rtol=1e-4, atol=1e-4)
    maps = first.encode(image)
    torch.testing.assert_close(network.decoder[1](maps), first.decode(maps), rtol=1e-4, atol=1e-4)
    assert torch.equal(network.shortcut.weight, shortcut)


def lesions(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noisy stripes in the middle of each image, of any phase, and where they are."""
    generator = torch.Generator().manual_seed(seed)
    phase = torch.randint(0, 8, (count, 1, 1), generator=generator)
    across = torch.arange(16)
    labels = ((across.view(1, 16, 1) + phase) // 4 % 2 == 0) & ((across >= 4) & (across < 12))
    return labels[:, None] + 0.3 * torch.randn(count, 1, 16, 16, generator=generator), labels.long()


def machines(images: Tensor) -> list[ConvRBM]:
    """Two, the second trained on the first one's pooled code."""
    trained = []
    generator = torch.Generator().manual_seed(6)
    for channels in (1, 6):
        rbm = ConvRBM(2, channels, width=6, kernel=3)
        rbm.measure(images)
        optimiser = torch.optim.SGD(rbm.parameters(), lr=2e-5, momentum=0.5)
        for _ in range(20):
            optimiser.zero_grad()
            rbm.contrastive_divergence(images, generator=generator).backward()
            optimiser.step()
        images = functional.avg_pool2d(rbm.encode(images).detach(), 2)
        trained.append(rbm)
    return trained


def steps_to(network: CEN, target: float) -> int:
    """How many steps of training it takes."""
    image, labels = lesions(4, seed=7)
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    for step in range(100):
        loss = SenSpeLoss()(network(image), labels)
        if float(loss.detach()) < target:
            return step
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    raise AssertionError(f"the loss stays above {target}")


def test_a_start_from_machines_saves_training() -> None:
    torch.manual_seed(0)
    rbms = machines(lesions(16, seed=8)[0])
    fresh, started = [], []
    for seed in range(2):
        torch.manual_seed(seed)
        network = CEN(2, 1, 2, width=6, kernel=3)
        fresh.append(steps_to(network, 0.1))
        network = CEN(2, 1, 2, width=6, kernel=3)
        convert_rbms(rbms, network, generator=torch.Generator().manual_seed(seed))
        started.append(steps_to(network, 0.1))
    assert max(started) < min(fresh)


def test_new_outputs_are_drawn() -> None:
    network = CEN(2, 1, 20, width=16)
    rbms = [ConvRBM(2, 1, width=16), ConvRBM(2, 16, width=16)]
    convert_rbms(rbms, network, generator=torch.Generator().manual_seed(0))
    assert float(network.decoder[1].weight.detach().std()) == pytest.approx(math.sqrt(2 / 81), rel=0.02)
    assert network.decoder[1].bias.abs().max() == 0


def test_wrong_use() -> None:
    network = CEN(2, 1, 3, width=3, kernel=3)
    good = [ConvRBM(2, 1, width=3, kernel=3), ConvRBM(2, 3, width=3, kernel=3)]
    with pytest.raises(ValueError, match="has 2 encoder layers, got 1 RBMs"):
        convert_rbms(good[:1], network)
    with pytest.raises(ValueError, match=r"RBM 2 has filters \(3, 1, 3, 3\), encoder layer 2 takes \(3, 3, 3, 3\)"):
        convert_rbms([good[0], good[0]], network)
    with pytest.raises(ValueError, match="RBM 1 with visible='normal', hidden='binary'"):
        convert_rbms([ConvRBM(2, 1, width=3, kernel=3, hidden="binary"), good[1]], network)
    with pytest.raises(ValueError, match="3 outputs, the image 1 channels"):
        convert_rbms(good, network, outputs="image")
    with pytest.raises(UsageError, match="unknown kind of hidden units 'gauss'"):
        ConvRBM(2, 1, hidden="gauss")
    with pytest.raises(ValueError, match="not standardised"):
        ConvRBM(2, 1, visible="binary").measure(torch.zeros(1, 1, 9, 9))
