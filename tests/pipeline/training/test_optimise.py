"""Schedules and averaged weights, by hand-computed values."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from voxelwise.errors import UsageError
from voxelwise.pipeline.training.optimise import average_weights, build_optimizer, rate_factor


@pytest.mark.parametrize("schedule", ["cosine", "poly", "constant"])
def test_a_schedule_warms_up_and_ends(schedule) -> None:
    factors = [rate_factor(schedule, step, 100, 0.1) for step in range(101)]
    assert factors[0] == pytest.approx(1 / 11)
    assert factors[10] == pytest.approx(1)
    assert factors[:11] == sorted(factors[:11])
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[100] == pytest.approx(1 if schedule == "constant" else 0, abs=1e-6)
    assert rate_factor("cosine", 55, 100, 0.1) == pytest.approx(0.5)
    assert rate_factor("poly", 55, 100, 0.1) == pytest.approx(0.5**0.9)


def test_unknown_words_name_the_nearest() -> None:
    with pytest.raises(UsageError, match="unknown --schedule 'cosin'; did you mean 'cosine'"):
        rate_factor("cosin", 50, 100, 0.1)
    with pytest.raises(UsageError, match="unknown --optimizer 'adamx'; did you mean 'adam"):
        build_optimizer("adamx", nn.Linear(1, 1).parameters(), lr=1, weight_decay=0)


@pytest.mark.parametrize(
    ("name", "kind"), [("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam), ("sgd", torch.optim.SGD)]
)
def test_the_optimiser_is_the_one_named(name, kind) -> None:
    optimizer = build_optimizer(name, nn.Linear(1, 1).parameters(), lr=0.1, weight_decay=0.01)
    assert type(optimizer) is kind
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_the_average_follows_closely_at_first_and_then_slowly() -> None:
    layer = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(0.0)
    averaged = average_weights(layer, 0.9)
    value = None
    for step in range(200):
        with torch.no_grad():
            layer.weight.fill_(float(step))
        averaged.update_parameters(layer)
        decay = min(0.9, (1 + step) / (10 + step))
        value = float(step) if value is None else decay * value + (1 - decay) * step
    assert averaged.module.weight.item() == pytest.approx(value, rel=1e-5)
    assert not any(parameter.requires_grad for parameter in averaged.parameters())
