"""voxelwise: images in, label maps out, on exactly the grid they came in on."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# public function -> the module that holds it; loaded on first use, so that `import voxelwise` costs nothing
_PUBLIC = {
    "index": "pipeline.archive.index",
    "convert": "pipeline.archive.convert",
    "dataset": "pipeline.dataset.assemble",
    "take_fingerprint": "pipeline.dataset.fingerprint",
    "plan": "pipeline.dataset.plan",
    "preprocess": "pipeline.dataset.store",
    "train": "pipeline.training.supervised",
    "predict": "pipeline.inference.predict",
    "predict_volume": "pipeline.inference.in_memory",
    "FrameSegmenter": "pipeline.inference.frames",
    "read_probabilities": "transforms.probabilities",
    "StreamingInferer": "pipeline.inference.inferer",  # in the place of MONAI's SlidingWindowInferer
    "export_model": "pipeline.exporting.export",
    "import_model": "pipeline.importing.import_model",
    "evaluate": "pipeline.evaluation.evaluate",
    "demo": "pipeline.demo.run",
    "doctor": "pipeline.doctor",
    "describe_networks": "networks.registry",  # the verb `networks`; that name is the package that holds them
    "build_network": "networks.registry",
    "write_model_folder": "pipeline.model_folder",
    "read_model_folder": "pipeline.model_folder",
    "VoxelwiseError": "errors",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_PUBLIC[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
