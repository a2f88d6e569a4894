"""What a bundle of a stranger may cost: exports that do not fit, weights of other types, YAML that unfolds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from voxelwise.errors import UsageError
from voxelwise.networks.registry import build_network
from voxelwise.pipeline.dataset.plan import plan_from
from voxelwise.pipeline.importing import bounds, bundle_config
from voxelwise.pipeline.importing.bundle import convert_bundle
from voxelwise.pipeline.importing.bundle_config import read_config
from voxelwise.pipeline.importing.checkpoint import CheckpointReader
from voxelwise.pipeline.importing.conversion import Conversion

BOMB = "\n".join(
    ["a0: &a0 [x]", *(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]" for level in range(1, 9))]
)


def exported(folder: Path, **changes: Any) -> Path:
    """A bundle as our export writes it, and what metadata.json says of its network changed."""
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    plan = plan_from(
        {
            "dims": 3,
            "dataset": "organs",
            "channels": ["T1"],
            "modality": "MR",
            "normalisation": [{"kind": "zscore"}],
            "labels": [{"value": 0, "name": "background"}, {"value": 1, "name": "organ"}],
            "patch": [8, 8, 8],
            "batch": 1,
            "network": {"name": "unet", "options": {"widths": [4, 8]}},
        }
    ).model_dump()
    network = build_network("unet", 3, 1, 2, widths=[4, 8])
    safetensors.torch.save_file(network.state_dict(), folder / "models" / "model.safetensors")
    options = {**plan["network"]["options"], **changes}
    described = {"voxelwise": {"plan": {**plan, "network": {"name": "unet", "options": options}}}}
    (folder / "configs" / "metadata.json").write_text(json.dumps(described))
    return folder


def convert(root: Path) -> Conversion:
    return convert_bundle(root, CheckpointReader())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": [65536, 65536]}, "does not fit network 'unet': .* size mismatch"),
        ({"widths": [4, 10**9]}, r"metadata.json: holds the number 1e\+09, which no network has"),
        ({"encoder_depth": 60000}, "network 'unet' has more than 500 parts, which no network has"),
        ({"widths": [4]}, "network 'unet' cannot be built: a U-Net has at least two levels"),
        ({"widths": "wide"}, "option widths of network 'unet': found 'wide'"),
    ],
)
def test_exports_that_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(bounds, "MOST_PARTS", 500)
    with pytest.raises(UsageError, match=message):
        convert(exported(tmp_path / "bundle", **options))


def test_weights_of_an_export_are_finite_floats(tmp_path: Path) -> None:
    root = exported(tmp_path / "bundle")
    path = root / "models" / "model.safetensors"
    good = safetensors.torch.load_file(path)
    name = next(iter(good))
    assert convert(root).plan.network.name == "unet"
    safetensors.torch.save_file({**good, name: good[name] / 0}, path)
    with pytest.raises(UsageError, match=r"model.safetensors: the weights of .* are not finite"):
        convert(root)
    safetensors.torch.save_file({**good, name: good[name].long()}, path)
    with pytest.raises(UsageError, match=r"its weights hold torch.int64 under '.*', expected floating point numbers"):
        convert(root)


def test_configs_are_as_large_as_what_is_written(tmp_path: Path) -> None:
    """No alias of YAML stands for more."""
    path = tmp_path / "configs" / "inference.yaml"
    path.parent.mkdir()
    path.write_text(BOMB)
    with pytest.raises(UsageError, match=r"inference.yaml cannot be read \(the alias \*a0 is not followed, write out"):
        read_config(tmp_path)
    path.write_text("a: !!int ''")
    with pytest.raises(UsageError, match=r"inference.yaml cannot be read"):
        read_config(tmp_path)
    path.with_suffix(".json").write_text(json.dumps({"a": [1] * bundle_config.MOST_VALUES}))
    with pytest.raises(UsageError, match=r"inference.json holds more than 200000 values, expected a few hundred"):
        read_config(tmp_path)


def test_another_config_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "configs").mkdir()
    named = {"a": ["%other.json#b"] * 5, "c": f"%{'x' * 300}"}
    (tmp_path / "configs" / "inference.json").write_text(json.dumps(named))
    (tmp_path / "other.json").write_text('{"b": 1}')
    config, content = read_config(tmp_path), bundle_config.read_content
    read: list[Path] = []

    def counted(path: Path) -> dict[str, Any]:
        read.append(path)
        return content(path)

    monkeypatch.setattr(bundle_config, "read_content", counted)
    assert config["a"] == [1] * 5
    assert read == [(tmp_path / "other.json").resolve()]
    with pytest.raises(UsageError, match="names a file that is not in the bundle"):
        assert config["c"]
