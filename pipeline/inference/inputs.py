"""What `predict` is asked to segment: the cases behind a path, and what was found there and cannot be used.

INPUT is a file, a folder that is walked to its leaves, or a data set. Files of several channels belong together by
nnU-Net's names (NAME_0000, NAME_0001, ...), or as the volumes of one 4D file where their number is the model's.
Nothing is left out in silence: what is no case is a failure or is listed.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...errors import CaseError, UsageError
from ...transforms.read_options import DEFAULT, ReadOptions
from ...transforms.readers import Found, Source, find_sources, only_source
from ...transforms.zip_files import archive_of
from ..archive.naming import relative
from ..dataset.layouts import is_dataset, read_dataset
from ..model_folder import ModelFolder
from ..outcome import Failure
from .checks import check_channel_names

CHANNEL = re.compile(r"(.+)_(\d{4})")
FOLDS_FILE = "folds.json"


@dataclass(frozen=True)
class Job:
    """One case to predict: the sources that hold its channels. The first one's name is the base name of the case."""

    sources: tuple[Source, ...]

    @property
    def files(self) -> tuple[Path, ...]:
        """All files of all channels, each once."""
        return tuple(dict.fromkeys(file for source in self.sources for file in source.files))

    @property
    def on_disk(self) -> tuple[Path, ...]:
        """The files as they lie on the disk: a zip archive in the place of its members."""
        return tuple(dict.fromkeys(archive_of(file) or file for file in self.files))

    @property
    def kind(self) -> str:
        """Of the source: dicom, nifti, itk or picture."""
        return self.sources[0].kind


@dataclass(frozen=True)
class Inputs:
    """The cases behind a path; `failures` are those that cannot be used, `listed` what is no volume."""

    root: Path
    jobs: tuple[Job, ...]
    failures: tuple[Failure, ...] = ()
    listed: tuple[dict[str, Any], ...] = ()
    rubbish: int = 0


def gather(path: Path, model: ModelFolder, fold: str | None = None, options: ReadOptions = DEFAULT) -> Inputs:
    """Find the cases behind a path.

    Args:
        path: file, folder or data set.
        model: whose number of channels the cases must have.
        fold: of a data set, only the validation cases of this fold.
        options: how sources are read where the default would stop.

    Raises:
        UsageError: a missing path, an empty folder, a folder without any volume, a fold that is not there.
    """
    if not path.exists():
        raise UsageError(f"{path} does not exist; give a file, a folder with images, or a data set")
    if is_dataset(path):
        return _of_dataset(path, model, fold, options)
    found = find_sources(path, options)
    jobs, failures = _grouped(found, path, model.channels)
    failures = [*[_stopped(one.files, one.code, one.message, path) for one in found.stopped], *failures]
    if not jobs and not failures:
        reasons = f" (for example {found.listed[0].files[0].name}: {found.listed[0].reason})" if found.listed else ""
        raise UsageError(f"{path} holds no volume{reasons}; give a file, a folder with images, or a data set")
    listed = tuple(
        {"files": [relative(file, path) for file in one.files], "reason": one.reason} for one in found.listed
    )
    return Inputs(path, tuple(jobs), tuple(failures), listed, found.rubbish)


def validation_cases(model: ModelFolder, fold: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the validation and of the training cases of a fold, as training wrote them down.

    Raises:
        UsageError: no folds.json, or no such fold in it, or nothing to validate on.
    """
    path = model.folder / FOLDS_FILE
    way_out = "leave --fold out to predict every case"
    if not path.is_file():
        raise UsageError(
            f"--fold {fold}: {model.folder} has no {FOLDS_FILE}, so nothing says which cases it is; {way_out}"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        folds = dict(enumerate(content)) if isinstance(content, list) else dict(content)
        entry = {str(key): value for key, value in folds.items()}[str(fold)]
        validation = entry["validation"] if "validation" in entry else entry["val"]
        names = tuple(map(str, validation)), tuple(map(str, entry["train"]))
    except (ValueError, TypeError, KeyError) as error:
        raise UsageError(
            f"--fold {fold}: {path} names no such fold ({type(error).__name__}: {error}); {way_out}"
        ) from None
    if not names[0]:
        raise UsageError(f"--fold {fold}: it has no validation cases ({path}); {way_out}")
    return names


def _of_dataset(path: Path, model: ModelFolder, fold: str | None, options: ReadOptions) -> Inputs:
    dataset = read_dataset(path, unlabelled=fold is None)
    failures = list(dataset.failures)
    cases = list(dataset.cases)
    if fold is not None:
        validation, train = validation_cases(model, fold)
        names = {case.name for case in cases} | {failure.case for failure in failures}
        if not names & {*validation, *train}:
            raise UsageError(
                f"--fold {fold}: none of the cases that {model.folder / FOLDS_FILE} names is in {dataset.root}; "
                "give the data set that the model was trained on, or leave --fold out"
            )
        cases = [case for case in cases if case.name in validation]
        failures = [failure for failure in failures if failure.case in validation]
        for name in sorted(set(validation) - names):
            message = f"{dataset.root} has no case {name}, which {FOLDS_FILE} names for fold {fold}; put it back"
            failures.append(Failure(name, (), "case-missing", message))
    jobs = []
    for case in cases:
        try:
            check_channel_names(dataset.channels, model.plan)
            sources = tuple(_sources_of(image, model.channels, options) for image in case.images)
            flat = [source for group in sources for source in group]
            jobs.append(Job((_named(flat[0], case.name), *flat[1:])))
        except CaseError as error:
            files = tuple(relative(image, dataset.root) for image in case.images)
            failures.append(Failure(case.name, files, error.code, str(error)))
    return Inputs(dataset.root, tuple(jobs), tuple(failures))


def _sources_of(image: Path, channels: int, options: ReadOptions) -> tuple[Source, ...]:
    """The source of an image, or the volumes of a 4D file that holds all channels."""
    if channels > 1 and image.is_file():
        found = find_sources(image, options).sources
        if len(found) == channels and all(source.part is not None for source in found):
            return found
    return (only_source(image, options),)


def _grouped(found: Found, root: Path, channels: int) -> tuple[list[Job], list[Failure]]:
    """Sources put together to cases, in the order in which they were found."""
    groups: dict[tuple[Any, ...], list[Source]] = defaultdict(list)
    for index, source in enumerate(found.sources):
        match = CHANNEL.fullmatch(source.name)
        if source.part is not None and channels > 1:
            groups["volumes of one file", source.files].append(source)
        elif source.kind != "dicom" and source.part is None and match:
            groups["channels", source.files[0].parent, match[1]].append(source)
        else:
            groups["alone", index].append(source)
    jobs, failures = [], []
    for key, sources in groups.items():
        if key[0] == "channels":
            cases, problem = _channels(key[2], sources, root, channels)
        elif key[0] == "alone":
            cases, problem = [Job(tuple(sources))], None
        elif len(sources) == channels:
            cases, problem = [Job((_named(sources[0], _stem(sources[0])), *sources[1:]))], None
        else:
            name = _stem(sources[0])
            cases, problem = [], _wrong_number(name, sources, root, f"{len(sources)} volumes in one file", channels)
        jobs += cases
        failures += [problem] if problem else []
    return jobs, failures


def _stem(source: Source) -> str:
    """Base name of a 4D file: the name of its volume NAME_t000 without the number."""
    return source.name.rpartition("_t")[0] or source.name


def _named(source: Source, name: str) -> Source:
    return replace(source, name=name)


def _channels(stem: str, sources: Sequence[Source], root: Path, channels: int) -> tuple[list[Job], Failure | None]:
    """Files named NAME_0000, NAME_0001, ...: the channels of one case."""
    numbers = sorted(source.name.removeprefix(f"{stem}_") for source in sources)
    if numbers == [f"{number:04d}" for number in range(channels)]:
        ordered = sorted(sources, key=lambda source: source.name)
        return [Job((_named(ordered[0], stem), *ordered[1:]))], None
    if numbers == ["0000"] and channels == 3 and sources[0].kind == "picture":  # its colours are the channels
        return [Job((_named(sources[0], stem),))], None
    if channels == 1 and "0000" not in numbers:  # numbers of cases, not of channels
        return [Job((source,)) for source in sources], None
    return [], _wrong_number(stem, sources, root, f"the channels {', '.join(numbers)}", channels)


def _wrong_number(case: str, sources: Sequence[Source], root: Path, found: str, channels: int) -> Failure:
    files = [file for source in sources for file in source.files]
    wanted = "1 channel" if channels == 1 else f"the channels 0000 to {channels - 1:04d}"
    message = f"{relative(files[0], root)}: found {found}, the model takes {wanted}; give exactly these"
    return _stopped(files, "channels", message, root, case)


def _stopped(files: Sequence[Path], code: str, message: str, root: Path, case: str = "") -> Failure:
    names = tuple(dict.fromkeys(relative(file, root) for file in files))
    return Failure(case or (names[0] if names else root.name), names, code, message)
