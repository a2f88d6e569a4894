"""Which files of a data set folder belong together; no voxel is read here.

Known layouts: a Medical Segmentation Decathlon `dataset.json`, an nnU-Net raw folder (imagesTr, labelsTr, dataset.json
with `channel_names`), plain `images/` + `labels/` with equal base names, and one flat folder whose label maps are named
after their images (1.jpg, 1-mask.png). The label folder may be `1st_manual/` (DRIVE) too, and where no base
name is equal the part in front of the last `_` is (21_training.tif, 21_manual1.gif). `patients.csv` (case,patient) may
stand beside any of them.
"""

from __future__ import annotations

import csv
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...errors import UsageError
from ..manifest import Failure
from .cases import Case, Dataset, LabelInfo

__all__ = ["Case", "Dataset", "LabelInfo", "base_name", "is_dataset", "read_dataset"]

SUFFIXES = (
    ".nii.gz",
    ".nii",
    ".nrrd",
    ".nhdr",
    ".mha",
    ".mhd",
    ".png",
    ".jpg",
    ".jpeg",
    ".tif",
    ".tiff",
    ".gif",
    ".bmp",
)
LABEL_FOLDERS = ("labels", "1st_manual")
NAMED_AFTER = re.compile(r"(.+)[-_](?:mask|labels?|seg|segmentation)", re.IGNORECASE)
EXPECTED = (
    "expected a dataset.json (Medical Segmentation Decathlon or nnU-Net), or the folders images/ and labels/ "
    "whose files have the same base names, or images and label maps such as 1.png and 1-mask.png"
)


def base_name(path: Path) -> str:
    """File name without its suffixes; a folder's (DICOM series) whole name."""
    lower = path.name.lower()
    for suffix in SUFFIXES:
        if lower.endswith(suffix):
            return path.name[: -len(suffix)]
    return path.name


def is_dataset(path: Path) -> bool:
    """Whether a path is a data set: a dataset.json or its folder, or a folder of images and label maps."""
    if path.is_file():
        return path.suffix == ".json"
    if (path / "dataset.json").is_file() or _label_folder(path) is not None:
        return True
    return path.is_dir() and _is_flat(path) and not any(entry.is_dir() for entry in _visible(path))


def read_dataset(path: Path | str, *, unlabelled: bool = False) -> Dataset:
    """Find the cases of a data set.

    Args:
        path: the folder, or its dataset.json.
        unlabelled: images without a label map are cases too (with `label` None), for prediction; else they are
            failures.

    Raises:
        UsageError: no such folder, an unknown layout, a dataset.json that cannot be understood, no case at all.
    """
    path = Path(path)
    if not path.exists():
        raise UsageError(f"data set {path} does not exist; give a folder or a dataset.json")
    if path.is_file() and path.suffix != ".json":
        raise UsageError(f"{path} is a file; {EXPECTED}")
    root = path.parent if path.is_file() else path
    description = path if path.is_file() else root / "dataset.json"
    if description.is_file():
        dataset = _read_described(root, description, unlabelled)
    elif (folder := _label_folder(root)) is not None:
        dataset = _read_plain(root, folder, unlabelled)
    elif _is_flat(root):
        dataset = _read_flat(root, unlabelled)
    else:
        found = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in root.iterdir())
        if not found:
            raise UsageError(f"data set {root} is empty; {EXPECTED}")
        shown = ", ".join(found[:8]) + (", ..." if len(found) > 8 else "")
        raise UsageError(f"data set {root}: found {shown}; {EXPECTED}")
    dataset = _with_patients(_without_clashes(dataset))
    if not dataset.cases and not dataset.failures:
        raise UsageError(f"data set {root} holds no case; {EXPECTED}")
    return dataset


def _read_described(root: Path, description: Path, unlabelled: bool) -> Dataset:
    try:
        content = json.loads(description.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{description} cannot be read as JSON ({error}); correct it") from error
    if not isinstance(content, dict):
        raise UsageError(f"{description}: found {type(content).__name__}, expected an object with labels and channels")
    is_list = isinstance(content.get("training"), list) and content["training"]
    if not is_list and not (root / "imagesTr").is_dir():
        raise UsageError(
            f"{description}: it has no list `training` (Decathlon) and {root / 'imagesTr'} (nnU-Net) is not there"
        )
    channels = _in_order(content.get("channel_names", content.get("modality")), description, "channel_names")
    labels = _labels(content.get("labels"), description)
    name = str(content.get("name") or root.resolve().name)
    if is_list:
        cases, failures = _listed_cases(root, content["training"], description, unlabelled)
        return Dataset(name, root, cases, channels, labels, "msd", failures)
    ending = str(content.get("file_ending", ""))
    cases, failures = _numbered_cases(root, ending, len(channels), description, unlabelled)
    return Dataset(name, root, cases, channels, labels, "nnunet", failures)


def _in_order(names: Any, description: Path, field: str) -> tuple[str, ...]:
    if isinstance(names, Mapping) and all(str(key).isdigit() for key in names):
        return tuple(str(names[key]) for key in sorted(names, key=lambda key: int(str(key))))
    if isinstance(names, list):
        return tuple(str(name) for name in names)
    if names is None:
        return ()
    raise UsageError(f'{description}: {field} is {names!r}, expected numbers and names such as {{"0": "CT"}}')


def _labels(labels: Any, description: Path) -> tuple[LabelInfo, ...] | None:
    """Both directions are in use: {"0": "background"} (Decathlon) and {"background": 0} (nnU-Net)."""
    if labels is None:
        return None
    if isinstance(labels, list):
        labels = {str(value): name for value, name in enumerate(labels)}
    if not isinstance(labels, Mapping):
        raise UsageError(
            f'{description}: labels is {labels!r}, expected values and names such as {{"0": "background"}}'
        )
    found = []
    for key, value in labels.items():
        if str(key).isdigit() and not isinstance(value, int):
            found.append(LabelInfo(int(key), str(value)))
        elif isinstance(value, int) and str(key) != "ignore":
            found.append(LabelInfo(value, str(key)))
        else:
            raise UsageError(
                f"{description}: label {key!r} is {value!r}; expected one whole value for each class. Regions "
                "and an ignore "
                "label are not supported: write label maps with one value a class"
            )
    if len({label.value for label in found}) != len(found) or len(found) < 2:
        raise UsageError(f"{description}: labels {labels!r} must hold at least two different values")
    return tuple(sorted(found, key=lambda label: label.value))


def _listed_cases(
    root: Path, entries: Any, description: Path, unlabelled: bool
) -> tuple[tuple[Case, ...], tuple[Failure, ...]]:
    """Decathlon: `training` names each pair, relative to dataset.json."""
    cases, failures = [], []
    for number, entry in enumerate(entries):
        if not isinstance(entry, Mapping) or "image" not in entry or "label" not in entry:
            raise UsageError(
                f"{description}: training[{number}] is {entry!r}, expected an object with `image` and `label`"
            )
        listed = entry["image"] if isinstance(entry["image"], list) else [entry["image"]]
        images = tuple(_inside(root, str(name)) for name in listed)
        label = _inside(root, str(entry["label"]))
        case = Case(base_name(label), images, label, base_name(label))
        missing = [file for file in (*images, label) if not file.exists()]
        if unlabelled and missing == [label]:
            cases.append(replace(case, label=None))
        elif missing:
            message = f"training[{number}] of {description} lists {missing[0]}, which does not exist"
            failures.append(Failure(case.name, tuple(file.name for file in missing), "file-missing", message))
        else:
            cases.append(case)
    if not cases:
        raise UsageError(
            f"{description}: none of the {len(entries)} listed pairs exists ({failures[0].message}); the "
            "paths are relative to dataset.json: put the files there or correct the list"
        )
    return tuple(cases), tuple(failures)


def _inside(root: Path, listed: str) -> Path:
    path = Path(listed)
    return path if path.is_absolute() else root / path


def _numbered_cases(
    root: Path, ending: str, channels: int, description: Path, unlabelled: bool
) -> tuple[tuple[Case, ...], tuple[Failure, ...]]:
    """nnU-Net: imagesTr/NAME_0000.ENDING for each channel, labelsTr/NAME.ENDING."""
    images, labels = root / "imagesTr", root / "labelsTr"
    if not labels.is_dir() and not unlabelled:
        raise UsageError(f"{description}: {labels} is not there; an nnU-Net raw folder holds imagesTr/ and labelsTr/")
    by_case: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    failures = []
    for file in _visible(images, ending):
        stem, _, number = base_name(file).rpartition("_")
        if len(number) == 4 and number.isdigit() and stem:
            by_case[stem][number].append(file)
        else:
            failures.append(
                Failure(
                    base_name(file),
                    (file.name,),
                    "channel-missing",
                    f"{file}: expected a name that ends in _0000, _0001, ...",
                )
            )
    by_label = _grouped(_visible(labels, ending) if labels.is_dir() else [])
    cases = []
    for name in sorted({*by_case, *by_label}):
        numbers, label_files = by_case.get(name, {}), by_label.get(name, [])
        files = [file for group in numbers.values() for file in group]
        wanted = [f"{channel:04d}" for channel in range(max(channels, 1))]
        if numbers and sorted(numbers) != wanted:
            message = f"{images / name}: found the channels {', '.join(sorted(numbers))}, expected {', '.join(wanted)}"
            failures.append(Failure(name, tuple(file.name for file in files), "channel-missing", message))
            continue
        one_each = files if len(files) != len(numbers) else files[:1]
        problem = _pairing_problem(name, images, labels, one_each, label_files, unlabelled)
        if problem is not None:
            failures.append(problem)
        else:
            found = tuple(numbers[number][0] for number in wanted)
            cases.append(Case(name, found, label_files[0] if label_files else None, name))
    return tuple(cases), tuple(failures)


def _label_folder(root: Path) -> Path | None:
    """Where the label maps lie beside images/."""
    folders = [root / name for name in LABEL_FOLDERS if (root / "images").is_dir() and (root / name).is_dir()]
    return folders[0] if folders else None


def _read_plain(root: Path, folder: Path, unlabelled: bool) -> Dataset:
    """images/ and a folder of labels, one file (or one folder with a DICOM series) a case."""
    images, labels = _grouped(_visible(root / "images")), _grouped(_visible(folder))
    if not images.keys() & labels.keys():
        numbered, marked = _beginnings(images), _beginnings(labels)
        if numbered.keys() & marked.keys():
            images, labels = numbered, marked
    return _paired(root, images, labels, root / "images", folder, unlabelled)


def _beginnings(groups: Mapping[str, list[Path]]) -> dict[str, list[Path]]:
    """Files by the part of their names in front of the last `_`."""
    found: dict[str, list[Path]] = defaultdict(list)
    for name, files in groups.items():
        found[name.rpartition("_")[0] or name].extend(files)
    return found


def _is_flat(root: Path) -> bool:
    """Whether a folder holds an image and a label map that is named after it."""
    images, labels = _split(root)
    return bool(images.keys() & labels.keys())


def _split(root: Path) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    """Images and label maps of a flat folder, both by the image's base name."""
    groups = _grouped(file for file in _visible(root) if not file.is_dir())
    marks = {name: found[1] for name in groups if (found := NAMED_AFTER.fullmatch(name)) is not None}
    labels: dict[str, list[Path]] = defaultdict(list)
    for name, image in marks.items():
        labels[image].extend(groups[name])
    return {name: files for name, files in groups.items() if name not in marks}, labels


def _read_flat(root: Path, unlabelled: bool) -> Dataset:
    """Images and label maps side by side."""
    images, labels = _split(root)
    return _paired(root, images, labels, root, root, unlabelled)


def _paired(
    root: Path,
    images: Mapping[str, list[Path]],
    labels: Mapping[str, list[Path]],
    images_folder: Path,
    labels_folder: Path,
    unlabelled: bool,
) -> Dataset:
    """One image and one label map a case; what is missing or doubled is a failure."""
    cases, failures = [], []
    for name in sorted({*images, *labels}):
        files, label_files = images.get(name, []), labels.get(name, [])
        problem = _pairing_problem(name, images_folder, labels_folder, files, label_files, unlabelled)
        if problem is not None:
            failures.append(problem)
        else:
            cases.append(Case(name, (files[0],), label_files[0] if label_files else None, name))
    return Dataset(root.resolve().name, root, tuple(cases), (), None, "plain", tuple(failures))


def _visible(folder: Path, ending: str = "") -> list[Path]:
    """Images of a folder; hidden files (macOS leaves `._` twins) and texts are passed over."""
    endings = (ending.lower(),) if ending else SUFFIXES
    return sorted(
        entry
        for entry in folder.iterdir()
        if not entry.name.startswith(".") and (entry.name.lower().endswith(endings) or (entry.is_dir() and not ending))
    )


def _grouped(files: Iterable[Path]) -> dict[str, list[Path]]:
    groups: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        groups[base_name(file)].append(file)
    return groups


def _pairing_problem(
    name: str, images_folder: Path, labels_folder: Path, images: list[Path], labels: list[Path], unlabelled: bool
) -> Failure | None:
    files = tuple(file.name for file in (*images, *labels))
    if not labels and not unlabelled:
        message = (
            f"{images[0]} has no label map: expected {labels_folder / name} with an image's suffix; add it or take "
            "the image away"
        )
        return Failure(name, files, "label-missing", message)
    if not images:
        message = (
            f"{labels[0]} has no image: expected {images_folder / name} with an image's suffix; add it or take the "
            "label away"
        )
        return Failure(name, files, "image-missing", message)
    if len(images) > 1 or len(labels) > 1:
        message = (
            f"case {name} has {len(images)} images and {len(labels)} label maps ({', '.join(files)}); keep one of each"
        )
        return Failure(name, files, "case-doubled", message)
    return None


def _without_clashes(dataset: Dataset) -> Dataset:
    """Case ids that differ in upper and lower case alone would overwrite one another on some disks."""
    groups: dict[str, list[Case]] = defaultdict(list)
    for case in dataset.cases:
        groups[case.name.lower()].append(case)
    failures = list(dataset.failures)
    for group in groups.values():
        for case in group if len(group) > 1 else ():
            files = tuple(file.name for one in group for file in (*one.images, one.label) if file is not None)
            message = (
                f"case {case.name} clashes with {', '.join(one.name for one in group if one is not case)} "
                f"({', '.join(files)}); rename"
            )
            failures.append(Failure(case.name, files, "case-clash", message))
    kept = [case for group in groups.values() if len(group) == 1 for case in group]
    return replace(
        dataset,
        cases=tuple(sorted(kept, key=lambda case: case.name)),
        failures=tuple(sorted(failures, key=lambda failure: failure.case)),
    )


def _with_patients(dataset: Dataset) -> Dataset:
    """Without patients.csv each case is its own patient."""
    table = dataset.root / "patients.csv"
    if not table.is_file():
        return dataset
    with table.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        if not {"case", "patient"} <= set(rows.fieldnames or ()):
            raise UsageError(
                f"{table}: found the columns {', '.join(rows.fieldnames or ())}, expected case and patient"
            )
        patients = {row["case"]: row["patient"] for row in rows if row["case"] and row["patient"]}
    missing = [case.name for case in dataset.cases if case.name not in patients and case.label is not None]
    if missing:
        raise UsageError(
            f"{table}: {len(missing)} cases have no patient (the first: {missing[0]}); give each case a row, "
            "so that no patient stands on both sides of a fold"
        )
    cases = tuple(replace(case, patient=patients.get(case.name, case.name)) for case in dataset.cases)
    return replace(dataset, cases=cases)
