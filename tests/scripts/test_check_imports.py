"""The house rules: each kind of offence is found, and our own tree has none."""

from __future__ import annotations

from pathlib import Path

import pytest
from voxelwise.scripts.check_imports import check, main

ROOT = Path(__file__).resolve().parents[2]


def house(root: Path, **files: str) -> Path:
    """A package folder; `pipeline__dataset__plan` is pipeline/dataset/plan.py."""
    for name, text in {"errors": "", "__init__": "", **files}.items():
        path = root / f"{name if name == '__init__' else name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_our_own_tree_keeps_the_rules() -> None:
    assert check(ROOT) == []


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("transforms__crop", "from ..errors import UsageError\nfrom .volume import Volume\nimport numpy"),
        ("networks__unet", "from .blocks import Block\nimport torch"),
        (
            "pipeline__manifest",
            "from ..transforms.volume import Entry\nfrom .lock import Lock\nfrom ..errors import UsageError",
        ),
        (
            "pipeline__training__fit",
            "from ..dataset.plan import Plan\nfrom ..manifest import Outcome\nfrom ...networks.unet import U",
        ),
        ("pipeline__dataset__plan", "from .. import manifest\nfrom ... import __version__"),
        ("pipeline__demo__run", "from ..training.fit import fit\nfrom ..archive.index import index"),
        ("scripts__train", "def run():\n    from ..pipeline.training.fit import train"),
        ("transforms__nrrd", "def read():\n    import itk"),
        (
            "pipeline__dataset__store",
            "import torch\nx = torch.load(f, weights_only=True)\ny = np.load(f, allow_pickle=False)",
        ),
        ("pipeline__dataset__store", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .plan import Plan"),
    ],
)
def test_what_is_allowed(tmp_path: Path, module: str, text: str) -> None:
    others = {"transforms__volume": "", "networks__unet": "", "pipeline__manifest": "", "pipeline__dataset__plan": ""}
    assert check(house(tmp_path, **{**others, module: text})) == []


@pytest.mark.parametrize(
    ("module", "text", "line"),
    [
        (
            "transforms__crop",
            "from ..networks.unet import UNet",
            "voxelwise.transforms.crop may not import voxelwise.networks.unet",
        ),
        (
            "networks__unet",
            "from ..transforms import volume",
            "voxelwise.networks.unet may not import voxelwise.transforms",
        ),
        ("networks__unet", "from ..pipeline.seeds import seed", "may not import voxelwise.pipeline.seeds"),
        ("pipeline__seeds", "from ..scripts.main import main", "may not import voxelwise.scripts.main"),
        ("pipeline__seeds", "from .dataset.plan import Plan", "may not import voxelwise.pipeline.dataset.plan"),
        ("pipeline__archive__index", "from ..dataset import plan", "may not import voxelwise.pipeline.dataset"),
        (
            "pipeline__inference__predict",
            "from ..evaluation.overlap import dice",
            "may not import voxelwise.pipeline.evaluation",
        ),
        ("pipeline__training__fit", "from ..demo.run import demo", "may not import voxelwise.pipeline.demo.run"),
        (
            "pipeline__dataset__plan",
            "def f():\n    from ..seeds import seed",
            ":2: voxelwise.pipeline.seeds.seed is imported inside",
        ),
        ("transforms__crop", "def f():\n    import numpy", "numpy is imported inside a function"),
        ("transforms__crop", "from transforms.volume import Volume", "imports inside the package are relative"),
        ("transforms__crop", "import pickle", "pickle unpickles or runs what it reads"),
        ("transforms__crop", "from joblib import load", "joblib.load unpickles or runs what it reads"),
        ("pipeline__seeds", "torch.load(f, weights_only=False)", "torch.load(weights_only=False) is not called"),
        ("pipeline__seeds", "torch.load(f)", "torch.load(...) without weights_only=True"),
        ("pipeline__seeds", "np.load(f, allow_pickle=True)", "np.load(allow_pickle=True) is not called"),
        ("pipeline__seeds", "run('ls', shell=True)", "run(shell=True) is not called"),
        ("pipeline__seeds", "tar.extractall(f)", "tar.extractall(...) is not called"),
        ("pipeline__seeds", "os.system('ls')", "os.system(...) is not called"),
        ("pipeline__seeds", "eval('1')", "eval(...) is not called"),
        ("pipeline__seeds", "yaml.load(f)", "yaml.load(...) is not called"),
    ],
)
def test_what_is_found(tmp_path: Path, module: str, text: str, line: str) -> None:
    offences = check(house(tmp_path, **{module: text}))
    assert len(offences) == 1
    assert line in offences[0]


def test_circles_are_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {"networks__a": "from .b import x", "networks__b": "from . import c", "networks__c": "from .a import y"}
    assert main([str(house(tmp_path, **files))]) == 1
    circle = (
        "import circle: voxelwise.networks.a -> voxelwise.networks.b -> voxelwise.networks.c -> voxelwise.networks.a"
    )
    assert capsys.readouterr().out.splitlines() == [circle]


def test_tests_and_environments_are_no_part_of_the_package(tmp_path: Path) -> None:
    house(tmp_path, tests__test_x="import pickle", _venv__x="import pickle")
    (tmp_path / "_venv").rename(tmp_path / ".venv")
    assert main([str(tmp_path)]) == 0
