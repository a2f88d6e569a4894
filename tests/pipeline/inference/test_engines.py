"""Engines: believed after the first window alone, left where they fail, refused by name with the figure."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import phantoms
import pytest
import torch
from torch import Tensor, nn
from voxelwise.errors import UsageError
from voxelwise.networks.base import SliceNetwork
from voxelwise.networks.registry import build_network
from voxelwise.pipeline.inference import engines
from voxelwise.pipeline.inference.budget import Limits
from voxelwise.pipeline.inference.engines import CheckedEngine, TorchEngine, check, choose_engine
from voxelwise.pipeline.inference.engines_backends import Compiler, Converted, EngineError
from voxelwise.pipeline.inference.engines_openvino import OpenVino
from voxelwise.pipeline.inference.in_memory import predict_volume
from voxelwise.pipeline.inference.loading import load_predictor
from voxelwise.pipeline.inference.predict import predict
from voxelwise.pipeline.inference.scorer import NetworkScorer, in_plain_order
from voxelwise.pipeline.model_folder import write_model_folder
from voxelwise.scripts.main import main

CPU = torch.device("cpu")
OPTIONS: dict[str, Any] = {"widths": [4, 8]}
WITH_OPENVINO = pytest.mark.skipif(find_spec("openvino") is None, reason="OpenVINO is an extra, voxelwise[openvino]")


@dataclass
class Fake:
    """A backend that runs torch and spoils what it gives."""

    spoil: Callable[[Tensor], Tensor] = torch.clone
    name: str = "openvino"
    version: str = "1.2"
    converted: list[nn.Module] = field(default_factory=list)

    def convert(self, module: nn.Module, windows: Tensor) -> Converted:
        self.converted.append(module)
        return lambda windows: self.spoil(module(windows)), None


class Refusing(Fake):
    def convert(self, module: nn.Module, windows: Tensor) -> Converted:
        raise EngineError("does not take the network (SomeError: no such layer)")


def off(found: Tensor) -> Tensor:
    """A hundredth of the range too much in one place."""
    found = found.contiguous().clone()
    found.view(-1)[5] += 0.01 * (found.max() - found.min())
    return found


def holes(found: Tensor) -> Tensor:
    return torch.where(torch.arange(found.numel()).view(found.shape) == 3, math.nan, found)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Fake], Fake]]:
    """Put a fake in the place of OpenVINO."""

    def install(fake: Fake) -> Fake:
        monkeypatch.setattr(engines, "_version", lambda name: "1.2")
        monkeypatch.setattr(engines, "LEAST_ACTIVATIONS", 0)
        monkeypatch.setitem(engines.BACKENDS, "openvino", lambda device, precision: fake)
        return fake

    return install


def network(seed: int = 0, classes: int = 3, dims: int = 3) -> Any:
    torch.manual_seed(seed)
    return build_network("unet", dims, 1, classes, **OPTIONS).eval()


def make_model(folder: Path, **changes: Any) -> Path:
    plan: dict[str, Any] = {
        "dims": 3,
        "channels": ["image"],
        "modality": "MR",
        "labels": [{"value": value, "name": f"organ {value}"} for value in (0, 3, 7)],
        "spacing_mm": None,
        "orientation": "RAS",
        "crop": "none",
        "bias_field": False,
        "normalisation": [{"kind": "zscore"}],
        "patch": [8, 8, 8],
        "network": {"name": "unet", "options": OPTIONS},
        "mirror_axes": [0],
        "overlap": 0.5,
        "tta": False,
        **changes,
    }
    write_model_folder(folder, network(dims=plan["dims"]), OPTIONS, plan)
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_model(tmp_path / "model")


def image(tmp_path: Path) -> Path:
    array = np.random.default_rng(0).integers(0, 400, (12, 10, 8)).astype(np.int16)
    return phantoms.nifti_file(tmp_path / "in" / "case.nii.gz", array, np.diag([1.0, 1.0, 2.0, 1.0]))


def engine_of(out: Path) -> dict[str, str]:
    facts: dict[str, str] = json.loads((out / "manifest.json").read_text())["facts"]["engine"]
    return facts


def test_auto_takes_openvino_where_it_is_and_the_manifest_says_so(tmp_path: Path, model: Path, installed) -> None:
    fake = installed(Fake())
    outcome = predict(model, image(tmp_path).parent, tmp_path / "out", device="cpu", precision="float32")
    assert outcome.exit_code == 0
    assert outcome.notes == {}
    assert len(fake.converted) == 1
    assert engine_of(tmp_path / "out") == {"name": "openvino", "version": "1.2", "precision": "float32"}


def test_torch_stands_in_the_manifest_too(tmp_path: Path, model: Path) -> None:
    predict(model, image(tmp_path).parent, tmp_path / "out", device="cpu", precision="float32", engine="torch")
    assert engine_of(tmp_path / "out") == {"name": "torch", "version": torch.__version__, "precision": "float32"}


@pytest.mark.parametrize(
    ("fake", "told"),
    [
        (Fake(off), r"gave logits that differ by 0\.01 of their range on the first window, 0\.001 is allowed"),
        (Fake(holes), r"gave NaN or inf on the first window"),
        (Fake(lambda found: found[:, :-1]), r"gave \(1, 2, 8, 8, 8\) for a window of which torch makes \(1, 3, 8"),
        (Refusing(), r"does not take the network \(SomeError: no such layer\)"),
    ],
)
def test_an_engine_that_fails_is_left_with_a_note_and_refused_by_name(
    tmp_path: Path, model: Path, installed, fake: Fake, told: str
) -> None:
    installed(fake)
    source = image(tmp_path).parent
    wanted = predict(model, source, tmp_path / "torch", device="cpu", precision="float32", engine="torch")
    found = predict(model, source, tmp_path / "auto", device="cpu", precision="float32")
    assert found.exit_code == 0
    (note,) = found.notes["case"]
    assert note.code == "engine"
    assert "openvino" in note.detail
    assert engine_of(tmp_path / "auto")["name"] == "torch"
    assert "openvino" in engine_of(tmp_path / "auto")["instead"]
    for out in (tmp_path / "torch", tmp_path / "auto"):
        assert (out / "case.nii.gz").is_file()
    assert (tmp_path / "torch" / "case.nii.gz").read_bytes() == (tmp_path / "auto" / "case.nii.gz").read_bytes()
    assert wanted.done == found.done
    with pytest.raises(UsageError, match=rf"--engine openvino {told}.*; use --engine torch"):
        predict(model, source, tmp_path / "named", device="cpu", precision="float32", engine="openvino")
    assert not (tmp_path / "named").exists()


def test_the_command_line_ends_with_2_and_one_line(tmp_path: Path, model: Path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    words = ["predict", str(model), str(image(tmp_path)), str(tmp_path / "out.nii.gz"), "--device", "cpu"]
    assert main([*words, "--engine", "openvino"]) == 2
    told = capsys.readouterr().err
    assert "--engine openvino is not installed; run pip install 'voxelwise[openvino]'; use --engine torch" in told
    assert len(told.strip().splitlines()) == 1
    assert main([*words, "--engine", "open-vino"]) == 2
    assert "unknown --engine 'open-vino'; did you mean 'openvino'?" in capsys.readouterr().err


def test_under_a_limit_of_memory_it_is_checked_before_a_case_and_measured(model: Path, installed) -> None:
    installed(Fake(off))
    limits = Limits(ram=10**12)
    with pytest.raises(UsageError, match=r"--engine openvino gave logits that differ"):
        load_predictor(model, device="cpu", precision="float32", engine="openvino", limits=limits)
    fallen = load_predictor(model, device="cpu", precision="float32", limits=limits)
    assert fallen.engine_facts["name"] == "torch"
    held: list[Tensor] = []

    def held_for_good(found: Tensor) -> Tensor:
        held[:] = held or [torch.zeros(10**7)]
        return found.clone()

    installed(Fake(held_for_good))
    measured = load_predictor(model, device="cpu", precision="float32", limits=limits).measured
    assert held
    assert all(ram < 30 * 10**6 for ram, _ in measured)  # held by the process, so not once more by a window


def test_a_limit_of_memory_that_it_would_overstep_leaves_it_out(installed) -> None:
    installed(Fake())
    given: dict[str, Any] = {"device": CPU, "precision": "float32", "patch": (8, 8, 8)}
    assert choose_engine("auto", [network()], room=10**9, **given).facts["name"] == "openvino"
    assert choose_engine("auto", [network()], room=100 * 10**6, **given).facts["name"] == "torch"
    with pytest.raises(UsageError, match=r"takes up to 0\.08 GB, of --memory 0\.05 GB are left before an image"):
        choose_engine("openvino", [network()], room=50 * 10**6, **given)


def test_small_windows_are_not_worth_a_conversion(monkeypatch) -> None:
    monkeypatch.setattr(engines, "_version", lambda name: "1.2")
    monkeypatch.setitem(engines.BACKENDS, "openvino", lambda device, precision: Fake())
    given: dict[str, Any] = {"device": CPU, "precision": "float32"}
    assert choose_engine("auto", [network()], patch=(8, 8, 8), **given).facts["name"] == "torch"
    assert choose_engine("auto", [network()], patch=(96, 96, 96), **given).facts["name"] == "openvino"
    assert choose_engine("openvino", [network()], patch=(8, 8, 8), **given).facts["name"] == "openvino"


def test_exact_tiles_are_of_many_sizes(installed) -> None:
    installed(Fake())
    given: dict[str, Any] = {"device": CPU, "precision": "float32", "patch": (8, 8, 8), "exact": True}
    assert choose_engine("auto", [network()], **given).facts["name"] == "torch"
    with pytest.raises(UsageError, match=r"--engine openvino is for windows of one size, exact tiles have many"):
        choose_engine("openvino", [network()], **given)


def test_what_an_engine_is_not_for_is_said(monkeypatch) -> None:
    given: dict[str, Any] = {"precision": "float32", "patch": (8, 8, 8)}
    with pytest.raises(UsageError, match=r"--engine tensorrt runs on NVIDIA GPUs alone, the device is cpu"):
        choose_engine("tensorrt", [network()], device=CPU, **given)
    monkeypatch.setattr("voxelwise.pipeline.inference.engines_backends.find_spec", lambda name: None)
    with pytest.raises(EngineError, match=r"is not installed; run pip install torch_tensorrt"):
        Compiler("tensorrt", torch.device("cuda:0"), "fp16")
    with pytest.raises(EngineError, match=r"is for the CPU, the device is cuda:0"):
        OpenVino(torch.device("cuda:0"), "float32")


@pytest.mark.parametrize(("precision", "allowed"), [("float32", 1e-3), ("fp16", 0.02), ("bf16", 0.1)])
def test_less_precise_numbers_may_differ_more(precision: str, allowed: float) -> None:
    expected = torch.linspace(-3, 5, 1000).view(1, 1, 10, 10, 10)
    check(expected + 0.9 * allowed * 8, expected, precision)
    with pytest.raises(EngineError, match=rf"{allowed:g} is allowed against torch in {precision}"):
        check(expected + 1.2 * allowed * 8, expected, precision)
    check(torch.full_like(expected, 2.0), torch.full_like(expected, 2.0), precision)  # no range at all


@pytest.mark.parametrize("classes", [2, 12])  # logits are blended, or features
def test_mirrored_and_averaged_as_by_torch(classes: int) -> None:
    networks = [network(seed, classes) for seed in range(2)]
    fake = Fake()
    engine = CheckedEngine(fake, TorchEngine(CPU, "float32"), fall_back=False)
    windows = torch.randn(3, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    scorers = [NetworkScorer(networks, tta_axes=(0, 2), engine=one) for one in (engine, None)]
    assert (scorers[0].head is None) == (classes == 2)
    with torch.inference_mode():
        found, expected = (scorer(windows) for scorer in scorers)
    assert torch.equal(found, expected)
    assert len(fake.converted) == 2  # one for each network, whatever is mirrored
    assert scorers[0].unmirrored.engine is engine


def test_windows_of_one_value_are_no_check() -> None:
    """What an instance norm makes of them is rounding, blown up."""
    fake = Fake(lambda found: torch.where((found == found[:, :, :1, :1, :1]).all(), found + 1, found))
    engine = CheckedEngine(fake, TorchEngine(CPU, "float32"), fall_back=False)
    plain, own = TorchEngine(CPU, "float32"), network()
    air = torch.full((2, 1, 8, 8, 8), -1.0)
    body = torch.randn(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(engine(own, air, features=False), plain(own, air, features=False))
        assert not fake.converted
        for windows in (torch.cat([air, body]), body):
            assert torch.equal(engine(own, windows, features=False), plain(own, windows, features=False))
    assert len(fake.converted) == 1


def test_windows_on_which_rounding_decides_are_no_check() -> None:
    """A norm of what is all but constant: torch itself gives something else for a window that differs by rounding."""
    fake = Fake(lambda found: found + 0.1 * (found.mean() < 0.1))  # air's mean is 0, that of the body about 0.5
    engine = CheckedEngine(fake, TorchEngine(CPU, "float32"), fall_back=False)

    class Shaky(nn.Module):
        """Blows up the last digits of windows below 0."""

        out_channels, head = 1, None

        def forward(self, windows: Tensor) -> Tensor:
            mean = windows.mean(dim=(2, 3, 4), keepdim=True)
            return torch.where(mean < 0, (windows - mean) * 1e6, windows)

    shaky: Any = Shaky()
    air, body = torch.full((1, 1, 8, 8, 8), -1.0), torch.rand(1, 1, 8, 8, 8)
    air[0, 0, 0, 0, 0] = -1.0 + 1e-6
    with torch.inference_mode():
        assert torch.equal(engine(shaky, air, features=False), shaky(air))
        assert engine.facts["instead"] == "no window was one to check openvino on"
        assert torch.equal(engine(shaky, body, features=False), shaky(body))
        assert engine.facts["name"] == "openvino"
        assert len(fake.converted) == 1
        engine = CheckedEngine(fake, TorchEngine(CPU, "float32"), fall_back=False)
        for _ in range(7):
            engine(shaky, air, features=False)
        with pytest.raises(UsageError, match="openvino cannot be checked: rounding decides on each of 8 windows; use"):
            engine(shaky, air, features=False)


def test_slice_networks_are_known_by_the_one_inside() -> None:
    inner = network(dims=2)
    fake = Fake()
    engine = CheckedEngine(fake, TorchEngine(CPU, "float32"), fall_back=False)
    with torch.inference_mode():
        for axis in (2, 2, 0):
            sides = [1 if at == axis else 8 for at in range(3)]
            engine(SliceNetwork(inner, axis=axis).eval(), torch.randn(1, 1, *sides), features=False)
    assert len(fake.converted) == 2


def test_the_compiler_runs_what_it_compiled_and_says_why_not(monkeypatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda module, **_: module)
    windows = torch.randn(2, 1, 8, 8, 8)
    with torch.inference_mode():
        one = network()
        run, _ = Compiler("compile", CPU, "float32").convert(one, windows)
        assert torch.equal(run(windows), one(windows))

    def broken(module: nn.Module, **_: Any) -> Any:
        raise RuntimeError("\n  No C++ compiler found.\nand more")

    monkeypatch.setattr(torch, "compile", lambda module, **_: broken)
    with pytest.raises(EngineError, match=r"does not take the network \(RuntimeError: No C\+\+ compiler found\.\)"):
        Compiler("compile", CPU, "float32").convert(network(), windows)


def test_engines_of_this_machine_are_listed(monkeypatch) -> None:
    found = engines.available_engines()
    assert set(found) == set(engines.ENGINES) - {"auto"}
    assert found["torch"] == found["compile"] == torch.__version__.partition("+")[0]


@WITH_OPENVINO
@pytest.mark.parametrize(("dims", "patch"), [(3, [16, 8, 8]), (2, [16, 8, 1])])
def test_openvino_gives_the_labels_of_torch(tmp_path: Path, dims: int, patch: list[int]) -> None:
    folder = make_model(tmp_path / "model", dims=dims, patch=patch, tta=True)
    array = np.random.default_rng(1).normal(size=(20, 14, 6)).astype(np.float32)
    found, expected = (
        predict_volume(folder, (array, np.eye(4)), device="cpu", precision="float32", engine=engine)
        for engine in ("openvino", "torch")
    )
    assert len(np.unique(expected)) == 3
    assert np.mean(found == expected) >= 0.999


@WITH_OPENVINO
def test_openvino_tells_nobody_that_it_is_used() -> None:
    """Its library would tell a server about every conversion, also where a user has loaded what tells it."""
    if find_spec("openvino_telemetry") is None:
        pytest.skip("there is nothing that could tell")
    lines = (
        "import openvino, openvino_telemetry, socket",
        "def refuse(*_, **__): raise SystemExit('the network is used')",
        "openvino_telemetry.Telemetry.__init__ = socket.socket.connect = refuse",
        "import torch",
        "from voxelwise.networks.registry import build_network",
        "from voxelwise.pipeline.inference.engines_openvino import OpenVino",
        "network = build_network('unet', 2, 1, 2, widths=(2, 4)).eval()",
        "OpenVino(torch.device('cpu'), 'float32').convert(network, torch.zeros(1, 1, 8, 8))",
    )
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@WITH_OPENVINO
def test_openvino_leaves_the_network_as_it_was() -> None:
    one = SliceNetwork(network(dims=2)).eval().to(memory_format=torch.channels_last)
    before = [(weight.data_ptr(), weight.stride()) for weight in one.parameters()]
    windows = torch.randn(3, 1, 16, 8, 1)
    with torch.inference_mode():
        run, given = OpenVino(CPU, "float32").convert(one, windows)
        expected = one(windows)
        torch.testing.assert_close(run(windows), expected, rtol=0, atol=1e-4)
        torch.testing.assert_close(given, expected[:1], rtol=0, atol=1e-4)
    assert not [name for name in sys.modules if name.startswith("openvino_telemetry")]
    assert not one._forward_hooks
    assert [(weight.data_ptr(), weight.stride()) for weight in one.parameters()] == before


@pytest.mark.parametrize("shape", [(2, 12, 5, 6, 7), (2, 3, 5, 6, 7), (1, 12, 5, 6), (3, 8, 1, 1, 9)])
def test_plain_order_changes_no_number(shape: tuple[int, ...]) -> None:
    plain = torch.randn(shape)
    last = plain.contiguous(memory_format=torch.channels_last if len(shape) == 4 else torch.channels_last_3d)
    for found in (last, plain):
        assert torch.equal(in_plain_order(found), plain)
    assert in_plain_order(last).is_contiguous() == (shape[1] >= 8 or plain.stride() == last.stride())


@pytest.mark.slow
def test_torch_compile_gives_the_labels_of_torch(tmp_path: Path, model: Path, monkeypatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))  # a killed run leaves half a library
    array = np.random.default_rng(1).normal(size=(20, 14, 6)).astype(np.float32)
    found, expected = (
        predict_volume(model, (array, np.eye(4)), device="cpu", precision="float32", engine=engine)
        for engine in ("compile", "torch")
    )
    assert np.mean(found == expected) >= 0.999


@pytest.mark.gpu
@pytest.mark.parametrize("engine", ["compile", "tensorrt"])
def test_engines_of_a_gpu_give_the_labels_of_torch(model: Path, engine: str) -> None:
    if engine == "tensorrt":
        pytest.importorskip("torch_tensorrt", reason="TensorRT is installed by hand")
    array = np.random.default_rng(1).normal(size=(20, 14, 6)).astype(np.float32)
    found, expected = (
        predict_volume(model, (array, np.eye(4)), device="cuda:0", precision="float32", engine=one)
        for one in (engine, "torch")
    )
    assert np.mean(found == expected) >= 0.999
