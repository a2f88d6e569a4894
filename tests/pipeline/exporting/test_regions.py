"""What is said of a model of regions where it goes, and that MONAI's chain writes what ours does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from voxelwise.networks.registry import build_network
from voxelwise.pipeline.exporting.bundle import LABELS, metadata, postprocessing
from voxelwise.pipeline.exporting.card import Card
from voxelwise.pipeline.model_folder import write_model_folder
from voxelwise.transforms.cells import last_region

OPTIONS: dict[str, Any] = {"widths": [4, 8]}
REGIONS = [
    {"name": "whole", "values": [3, 7], "writes": 3},
    {"name": "core", "values": [7], "writes": 7},
]


@pytest.fixture
def card(tmp_path: Path) -> Card:
    plan = {
        "dims": 3,
        "channels": ["T1"],
        "modality": "MR",
        "labels": [{"value": value, "name": f"label {value}"} for value in (0, 3, 7)],
        "regions": REGIONS,
        "spacing_mm": None,
        "orientation": "RAS",
        "crop": "none",
        "bias_field": False,
        "normalisation": [{"kind": "zscore"}],
        "patch": [8, 8, 8],
        "network": {"name": "unet", "options": OPTIONS},
    }
    model = write_model_folder(tmp_path / "model", build_network("unet", 3, 1, 2, **OPTIONS), OPTIONS, plan)
    return Card(model, "0", "torch", "model.pt2", any_number=True, difference=0.0)


def test_regions_stand_in_the_card(card: Card) -> None:
    entries = card.entries
    assert entries["regions"] == REGIONS
    assert entries["output"]["label_of_a_voxel"].startswith("the `writes` of the last of `regions`")
    text = card.readme("torch.export.load")
    assert "| 0 | whole | 3, 7 | 3 |\n| 1 | core | 7 | 7 |" in text
    assert "in this order regions write their values where their logits are above 0" in text
    assert metadata(card)["network_data_format"]["outputs"][LABELS]["channel_def"] == {"0": "whole", "1": "core"}


@pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader:UserWarning")
def test_a_bundle_writes_the_values_of_regions(card: Card) -> None:
    parser = ConfigParser({"imports": ["$import torch"], "steps": postprocessing(card)[1:3]})
    sample: Any = {LABELS: MetaTensor(torch.randn(2, 6, 5, 4, generator=torch.Generator().manual_seed(0)))}
    wanted = np.array([0, 3, 7])[last_region(sample[LABELS].as_tensor()).numpy()]
    for step in parser.get_parsed_content("steps"):
        sample = step(sample)
    np.testing.assert_array_equal(sample[LABELS][0].numpy(), wanted)
