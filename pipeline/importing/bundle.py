"""A MONAI bundle as a plan and a network of ours; nothing in it is executed.

The network must be one of MONAI's own (`networks.monai_network`), the preprocessing made of transforms that our chain
knows, and the labels those of an argmax or of thresholds. What stands in the way is listed, all of it at once. A bundle
that `voxelwise export` wrote says in metadata.json what it was made from, and is taken from there.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from ...errors import CaseError, UsageError
from ...networks.base import SegmentationNetwork
from ...networks.monai_network import CLASSES
from ...networks.registry import NETWORKS, build_network
from ...transforms.zip_files import check_archive, unpacked
from ..dataset.plan import Plan, plan_from
from ..identity import file_digest
from .bounds import few_parts, too_large
from .bundle_chain import read_chain
from .bundle_config import CONFIGS, INFERENCE, METADATA, Config, read_config, read_metadata
from .bundle_findings import Findings, read_step, read_steps
from .bundle_network import (
    MODELS,
    NAME,
    SUFFIXES,
    Described,
    load_network,
    read_network,
    read_weights,
    try_network,
    weights_file,
)
from .bundle_scores import read_inferer, read_outputs
from .checkpoint import CheckpointReader
from .conversion import Conversion, Report
from .weights import not_finite

KIND = "MONAI bundle"
OURS = "voxelwise"  # what an export of ours says of itself, in metadata.json
MODALITIES = {"CT": "CT", "MR": "MR", "MRI": "MR", "PET": "PT", "PT": "PT"}
FOLD, BATCH = "0", 2


def is_bundle(source: Path) -> bool:
    """Whether a folder or a zip archive is laid out as a MONAI bundle."""
    if source.is_file():
        return zipfile.is_zipfile(source)
    return any((source / CONFIGS / name).is_file() for name in (METADATA, *INFERENCE))


def convert_bundle(source: Path, reader: CheckpointReader) -> Conversion:
    """Understand a bundle.

    Args:
        source: its folder, or a zip archive of it.
        reader: of its checkpoint.

    Raises:
        UsageError: it is none, or something in it cannot be taken over: all of that at once.
        UnsafeInputError: a checkpoint that holds other types, an archive that is not safe.
    """
    with _opened(source) as root:
        metadata = read_metadata(root)
        ours = metadata.get(OURS)
        if isinstance(ours, Mapping) and "plan" in ours:
            return _exported(root, source, metadata, ours)
        return _converted(root, source, metadata, reader)


@contextmanager
def _opened(source: Path) -> Iterator[Path]:
    """The folder of a bundle; of an archive, with what is read of it unpacked."""
    if source.is_dir():
        yield source
        return
    try:
        names = check_archive(source)
        marks = [PurePosixPath(name) for name in names if PurePosixPath(name).name in (METADATA, *INFERENCE)]
        homes = sorted(
            (path.parent.parent for path in marks if path.parent.name == CONFIGS), key=lambda one: len(one.parts)
        )
        if not homes:
            raise UsageError(f"{source} is no MONAI bundle: there is no {CONFIGS}/{METADATA} in it")
        kept = [
            source / name
            for name in names
            if (home := PurePosixPath(name).parent) == homes[0] / CONFIGS
            or (home == homes[0] / MODELS and PurePosixPath(name).suffix in (*SUFFIXES, ".ts"))
        ]
        with unpacked(kept) as (_, folders):
            yield Path(next(iter(folders))) / homes[0]
    except CaseError as error:
        raise UsageError(str(error)) from error


def _converted(root: Path, source: Path, metadata: Mapping[str, Any], reader: CheckpointReader) -> Conversion:
    """A bundle of MONAI's own making."""
    config, findings = read_config(root), Findings()
    described = read_network(
        read_step("network_def", _found(config, ("network_def", "network"), findings), findings), findings
    )
    image, labels = (_format_of(metadata, part) for part in ("inputs", "outputs"))
    modality = MODALITIES.get(str(image.get("modality", "")).strip().upper(), "other")
    hounsfield = modality == "CT" or image.get("format") == "hounsfield"
    dims, channels, outputs = described.sizes if described else (3, 1, 2)
    windows = read_inferer(read_step("inferer", _found(config, ("inferer",), findings), findings), dims)
    chain = read_chain(
        read_steps("preprocessing", _found(config, ("preprocessing",), findings), findings),
        findings,
        channels=channels,
        patch=windows.patch if windows else None,
        hounsfield=hounsfield,
    )
    finish = read_steps("postprocessing", _found(config, ("postprocessing",), findings), findings)
    found = read_outputs(finish, findings, outputs=outputs, names=_names(labels, outputs))
    path, keys = weights_file(config, findings)
    if described and windows:
        try_network(described, windows.patch, findings)
    if described and found and list(found.order) != sorted(found.order) and not CLASSES[described.class_name].head:
        findings.obstacles.append(
            f"postprocessing paints its regions in the order {list(found.order)}, not the network's"
        )
    if findings.obstacles or described is None or windows is None or found is None or path is None:
        raise _refused(source, findings)
    plan = plan_from(
        {
            **chain,
            "dataset": source.resolve().stem if source.is_file() else source.resolve().name,
            "dims": dims,
            "channels": _channels(image, channels, modality),
            "modality": modality,
            "labels": found.labels,
            "regions": found.regions,
            "patch": list(windows.patch),
            "overlap": windows.overlap,
            "blending": windows.blending,
            "windows": "stepped",
            "resampling": {"kind": "span", "scores": found.interpolated} if chain["spacing_mm"] else {},
            "batch": BATCH,
            "network": {"name": NAME, "options": described.options},
            "mirror_axes": [],
            "tta": False,
        },
        where=str(config.path),
    )
    weights = read_weights(path, keys, reader)
    try:
        network = load_network(described, weights, found.order)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    return _conversion(root, source, metadata, plan, network, [config.path, path], _report(plan, described, findings))


def _exported(root: Path, source: Path, metadata: Mapping[str, Any], ours: Mapping[str, Any]) -> Conversion:
    """A bundle that was exported by us."""
    where = str(root / CONFIGS / METADATA)
    stated = ours["plan"]
    if not isinstance(stated, Mapping):
        raise UsageError(f"{where}: {OURS}.plan is no dictionary; export the model again")
    plan = plan_from({"dataset": root.name, "batch": BATCH, **stated}, where=where)
    path = root / MODELS / "model.safetensors"
    if plan.network.name not in NETWORKS:
        raise UsageError(
            f"{where}: network {plan.network.name!r} is a user's own class, whose code is not in the bundle"
        )
    if not path.is_file():
        raise UsageError(f"{path} is not there; export the model again")
    if (number := too_large([plan.network.options, plan.network_channels, plan.outputs])) is not None:
        raise UsageError(f"{where}: holds the number {number}, which no network has; export the model again")
    weights = dict(read_weights(path, (), CheckpointReader()))
    try:
        with torch.device("meta"):  # no memory is taken before names and shapes are those of the weights
            _built(plan, where).load_state_dict({name: one.to("meta") for name, one in weights.items()}, strict=True)
        network = _built(plan, where)
        network.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise UsageError(f"{path} does not fit network {plan.network.name!r}: {reason}") from error
    if (wrong := not_finite(weights)) is not None:
        raise UsageError(f"{path}: the weights of {wrong} are not finite; export the model again")
    lines = ("exported by voxelwise: plan, network and labels are those of the model that it was made from",)
    return _conversion(root, source, metadata, plan, network, [root / CONFIGS / METADATA, path], Report(lines))


def _built(plan: Plan, where: str) -> SegmentationNetwork:
    """The network of a plan, with fresh weights."""
    name = plan.network.name
    try:
        with few_parts(f"{where}: network {name!r}"):
            return build_network(name, plan.dims, plan.network_channels, plan.outputs, **plan.network.options).eval()
    except (ValueError, TypeError, RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UsageError(f"{where}: network {name!r} cannot be built: {reason}; export the model again") from error


def _conversion(
    root: Path,
    source: Path,
    metadata: Mapping[str, Any],
    plan: Plan,
    network: SegmentationNetwork,
    files: list[Path],
    report: Report,
) -> Conversion:
    """What is handed over."""
    metadata_file = root / CONFIGS / METADATA
    listed = dict.fromkeys([*files, *([metadata_file] if metadata_file.is_file() else [])])
    return Conversion(
        kind=KIND,
        plan=plan,
        networks=iter([(FOLD, network)]),
        report=report,
        source={
            "program": KIND,
            "folder": source.resolve().name,
            "name": str(metadata.get("name", ""))[:200],
            "version": str(metadata.get("version", ""))[:200],
            "files": {path.relative_to(root).as_posix(): file_digest(path) for path in listed},
        },
    )


def _report(plan: Plan, described: Described, findings: Findings) -> Report:
    """The lines of a report."""
    spacing = (
        "their own"
        if plan.spacing_mm is None
        else " x ".join("own" if side is None else f"{side:g}" for side in plan.spacing_mm)
    )
    values = plan.normalisation[0].model_dump(exclude_defaults=True)
    told = ", ".join(f"{key} {value:g}" for key, value in values.items() if key != "kind")
    what = f"{len(plan.regions)} region(s)" if plan.regions else f"{len(plan.labels)} classes"
    names = [one.name for one in plan.regions or plan.labels]
    taken = (
        f"network MONAI's {described.class_name} in {plan.dims}D, {described.sizes[1]} channel(s), {what}",
        f"labels {', '.join(names[:6])}{f', and {len(names) - 6} more' if len(names) > 6 else ''}",
        f"orientation {plan.orientation or 'of the file'}, spacing {spacing}{' mm' if plan.spacing_mm else ''}, crop "
        f"{plan.crop}",
        f"normalisation {plan.normalisation[0].kind}{f' ({told})' if told else ''}",
        f"patch {' x '.join(map(str, plan.patch))}, overlap {plan.overlap:g}, {plan.blending} weights, no mirroring",
    )
    ignored = (
        "device, data lists, handlers, evaluator, run: what predict does by itself",
        *findings.ignored,
    )
    return Report(taken, ignored, tuple(findings.differs))


def _refused(source: Path, findings: Findings) -> UsageError:
    listed = "; ".join(f"({number}) {line}" for number, line in enumerate(findings.obstacles, start=1))
    return UsageError(f"{source} cannot be imported as it is; what stands in the way: {listed}")


def _found(config: Config, keys: tuple[str, ...], findings: Findings) -> Any:
    """What stands under the first of the keys that holds a component."""
    for key in keys:
        if key in config and isinstance(value := config[key], (Mapping, list)):
            return value
    return next((config[key] for key in keys if key in config), None)


def _format_of(metadata: Mapping[str, Any], part: str) -> Mapping[str, Any]:
    """What metadata.json says of the first input or output."""
    formats = metadata.get("network_data_format")
    found = formats.get(part) if isinstance(formats, Mapping) else None
    first = next(iter(found.values()), None) if isinstance(found, Mapping) else None
    return first if isinstance(first, Mapping) else {}


def _names(described: Mapping[str, Any], count: int) -> dict[int, str]:
    """Names of channels by number, as far as they are said."""
    named = described.get("channel_def")
    if not isinstance(named, Mapping):
        return {}
    return {int(key): str(name)[:100] for key, name in named.items() if str(key).isdecimal() and int(key) < count}


def _channels(described: Mapping[str, Any], count: int, modality: str) -> list[str]:
    """Names of the image's channels."""
    named = _names(described, count)
    if count == 1 and named.get(0, "image").lower() == "image" and modality != "other":
        return [modality]
    return [named.get(number, f"channel {number}") for number in range(count)]
