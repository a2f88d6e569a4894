"""Device, precision and heap: what a word means here, and clear words for what does not exist."""

from __future__ import annotations

import pytest
import torch
from voxelwise.errors import UsageError
from voxelwise.pipeline import devices
from voxelwise.pipeline.seeds import draw_seed


def test_cpu_is_cpu_and_auto_is_what_there_is() -> None:
    assert devices.resolve_device("cpu") == torch.device("cpu")
    assert devices.resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize(
    ("name", "message"),
    [("cuda:99", "this machine has"), ("cuda:x", "this machine has"), ("gpu", "unknown --device 'gpu'")],
)
def test_a_device_that_is_not_there_is_said(name, message) -> None:
    with pytest.raises(UsageError, match=message):
        devices.resolve_device(name)


@pytest.mark.parametrize(("fast", "word"), [(True, "bf16"), (False, "float32")])
def test_auto_precision_takes_bf16_only_where_it_is_fast(fast, word, monkeypatch) -> None:
    monkeypatch.setattr(devices, "has_fast_bf16", lambda: fast)
    assert devices.resolve_precision("auto", torch.device("cpu")) == word


def test_wrong_precisions_are_said() -> None:
    with pytest.raises(UsageError, match="unknown --precision 'half'"):
        devices.resolve_precision("half", torch.device("cpu"))
    with pytest.raises(UsageError, match="fp16 needs a GPU"):
        devices.resolve_precision("fp16", torch.device("cpu"))


def test_autocast_changes_the_type_only_where_asked() -> None:
    one = torch.ones(2, 2)
    with devices.autocast(torch.device("cpu"), "float32"):
        assert (one @ one).dtype == torch.float32
    with devices.autocast(torch.device("cpu"), "bf16"):
        assert (one @ one).dtype == torch.bfloat16


@pytest.mark.filterwarnings("error")
def test_float32_on_a_gpu_is_no_tf32() -> None:
    """Torch lets cuDNN round to 10 bits behind the point unless it is told; the flags are there without a GPU too."""
    conv, gpu, before = torch.backends.cudnn.conv, torch.device("cuda:0"), torch.backends.cudnn.conv.fp32_precision
    assert before == "tf32"
    with devices.autocast(gpu, "float32"):
        assert conv.fp32_precision == "ieee"
        assert not torch.is_autocast_enabled("cuda")
    assert conv.fp32_precision == before
    with pytest.raises(KeyError), devices.autocast(gpu, "float32"):
        raise KeyError
    assert conv.fp32_precision == before
    with devices.autocast(torch.device("cpu"), "float32"):
        assert conv.fp32_precision == before


def test_the_heap_can_be_left_alone(monkeypatch) -> None:
    monkeypatch.setenv("VOXELWISE_KEEP_HEAP", "0")
    assert devices.keep_heap() is False


def test_seeds_differ_from_place_to_place_and_stay() -> None:
    seeds = [draw_seed(0, step, slot) for step in range(50) for slot in range(4)]
    assert len(set(seeds)) == 200
    assert seeds[:3] == [draw_seed(0, 0, slot) for slot in range(3)]
    assert draw_seed(1, 0, 0) != seeds[0]
