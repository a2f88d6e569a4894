"""The store of preprocessed cases: what training reads patches from, without touching the source files again.

A case is one file, NAME.case, with three blosc2 arrays one behind the other: the image (C, X, Y, Z) float32, the labels
(X, Y, Z) as class numbers, and (n, 4) a sample of the voxels of each foreground class as class, x, y, z; the manifest
says where each begins. An entry is known by the content of its inputs and by the chain; each run checks it by its
checksum and makes it anew where a bit is wrong.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any
from zlib import crc32

import blosc2
import numpy as np
import torch

from ...errors import CaseError, NoRoomError, NothingDoneError, UsageError
from ...transforms.chains import build_chain, preprocessing_steps, run_chain
from ...transforms.edges import with_own
from ...transforms.labels import label_counts, whole_labels
from ...transforms.located import affine_of, plain
from ...transforms.plain_arrays import open_array
from ...transforms.volume import Entry, Geometry
from ...transforms.writers import atomic_write, write_json
from ..manifest import Failure, Outcome, OutputFolder, digest_of, file_digest
from ..scale_out import each
from .cases import Case, Dataset
from .checks import check_grid, find_copies, voxel_digest
from .fingerprint import Fingerprint, take_fingerprint
from .layouts import read_dataset
from .plan import make_plan
from .plan_record import Plan, read_plan, write_plan

PLAN_FILE, PATIENTS_FILE = "plan.yaml", "patients.json"
STORE_VERSION = 1  # raised when the same plan would give other voxels
SAMPLES_PER_CLASS = 10_000
CHUNK, BLOCK = 128, 32
SUFFIX = ".case"


@dataclass(frozen=True)
class _Task:
    case: Case
    steps: list[dict[str, Any]]
    out: Path
    seed: int


def preprocess(
    dataset: Path | str | Dataset,
    *,
    out: Path | str,
    plan: Plan | Path | str | None = None,
    overwrite: bool = False,
    workers: int | None = 1,
    **choices: Any,
) -> Outcome:
    """Run the plan's chain on every case and keep the results.

    Args:
        dataset: folder, dataset.json, or what `read_dataset` or a fingerprint holds.
        out: folder of the store; entries that are whole and up to date stay.
        plan: made from the data set unless given.
        overwrite: start anew where the folder holds results of other settings.
        workers: processes.
        choices: of `make_plan`, where no plan is given.

    Raises:
        UsageError: results of other settings, wrong choices.
        NothingDoneError: no case can be used.
    """
    dataset = dataset if isinstance(dataset, Dataset) else read_dataset(dataset)
    listed = dataset.cases
    if plan is None:
        fingerprint = take_fingerprint(dataset, workers=workers)
        plan, dataset = make_plan(fingerprint, **choices), fingerprint.dataset
        _check_room(fingerprint, plan, Path(out))
    elif not isinstance(plan, Plan):
        plan = read_plan(plan)
    steps = preprocessing_steps(**plan.model_dump())
    settings = {"steps": steps, "seed": plan.seed, "store": STORE_VERSION}
    with OutputFolder(Path(out), "preprocess", settings, overwrite) as folder:
        for failure in dataset.failures:
            folder.fail(failure.case, failure.files, CaseError(failure.message, failure.code))
        inputs: dict[str, str] = {}
        tasks = []
        for case in dataset.cases:
            try:
                inputs[case.name] = digest_of(_files(case))
            except OSError as error:
                folder.fail(case.name, _files(case), CaseError(f"{case.name}: {error}", "unreadable"))
                continue
            if not folder.is_done(case.name, inputs[case.name]):
                tasks.append(_Task(case, steps, Path(out), plan.seed))
        started = time.monotonic()
        for task, result in each(_prepare, tasks, workers):
            name = task.case.name
            if isinstance(result, CaseError):
                folder.fail(name, _files(task.case), result)
            elif isinstance(result, Exception):
                raise result
            else:
                details, notes = result
                folder.note(name, *notes)
                file = Path(out) / f"{name}{SUFFIX}"
                folder.record(name, [file], inputs[name], details, seconds=time.monotonic() - started)
            started = time.monotonic()
        digests = {name: record["image"] for name, record in folder.records.items()}
        for name, copied in find_copies(digests, dataset.cases).items():
            folder.fail(name, _files(next(case for case in dataset.cases if case.name == name)), copied)
        outcome = folder.finish()
    if not outcome.done and not outcome.skipped:
        first = f"; the first: {outcome.failures[0].message}" if outcome.failures else ""
        raise NothingDoneError(f"data set {dataset.root}: none of its cases could be preprocessed{first}")
    write_plan(plan, Path(out) / PLAN_FILE)
    write_json(Path(out) / PATIENTS_FILE, {case.name: case.patient for case in listed})
    return outcome


def stored_dataset(cache: Path) -> tuple[Dataset, Plan] | None:
    """The data set that a store was made from, as far as training needs it, and its plan; None where there is none.

    All cases of the data set are in it, those that were stopped too, so that the folds are those of the data set.

    Raises:
        UsageError: a store that is not finished, or whose plan was changed since.
    """
    if not _is_store(cache):
        return None
    store = open_store(cache)
    if not (cache / PATIENTS_FILE).is_file():
        raise UsageError(f"{cache}: its {PATIENTS_FILE} is not there; preprocess again")
    plan = read_plan(cache / PLAN_FILE)
    if [dict(step) for step in store.steps] != preprocessing_steps(**plan.model_dump()):
        raise UsageError(f"{cache}: its {PLAN_FILE} is not the one that its cases were made with; preprocess again")
    patients = json.loads((cache / PATIENTS_FILE).read_text(encoding="utf-8"))
    cases = tuple(Case(name, (), None, str(patients.get(name, name))) for name in sorted({*patients, *store.cases}))
    unlisted = tuple(failure for failure in store.failures if failure.case not in patients)
    return Dataset(plan.dataset, cache, cases, tuple(plan.channels), layout="store", failures=unlisted), plan


def damaged_cases(store: Store) -> tuple[Failure, ...]:
    """Cases whose files are not those that the store's manifest names; every byte is read."""
    failures = []
    for name in store.cases:
        for file, digest in store.records[name]["files"].items():
            path = store.folder / file
            if not path.is_file() or file_digest(path) != digest:
                found = "has another checksum than its manifest says" if path.is_file() else "is not there"
                message = f"case {name}: {path} {found}; preprocess the data set again, or go on without the case"
                failures.append(Failure(name, (path.name,), "store-entry", message))
    return tuple(failures)


def _is_store(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["command"] == "preprocess")
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _prepare(task: _Task) -> tuple[dict[str, Any], list[Entry]]:
    """One case through the chain into the store; on one thread, as the arithmetic waits for memory, not for cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _prepared(task)
    finally:
        torch.set_num_threads(threads)


def _prepared(task: _Task) -> tuple[dict[str, Any], list[Entry]]:
    case = task.case
    if case.label is None:
        raise CaseError(f"case {case.name} has no label map", "label-missing")
    chain = build_chain(task.steps, ("image", "label"))
    images = case.images[0] if len(case.images) == 1 else list(case.images)
    loaded = run_chain(chain, {"image": images, "label": case.label}, end=1)
    grids = [Geometry(tuple(loaded[key].shape[1:]), affine_of(loaded[key])) for key in ("image", "label")]
    check_grid(grids[0], grids[1], f"label map {case.label}", f"its image {case.images[0]}")
    try:
        before = label_counts(whole_labels(plain(loaded["label"])[:1].numpy())[0])
        sample = run_chain(chain, loaded, start=1)
    except CaseError as error:
        raise CaseError(f"case {case.name} ({case.images[0].name}, {case.label.name}): {error}", error.code) from error
    image, labels = plain(sample["image"]).numpy(), plain(sample["label"])[0].numpy()
    counts = label_counts(labels)
    notes = []
    if len(before) > len(counts):
        notes.append(Entry("class-vanished", f"{len(before)} classes before resampling, {len(counts)} after"))
    parts = {"image": image, "labels": labels, "foreground": _foreground(labels, task.seed, case.name)}
    packed = {part: _pack(array) for part, array in parts.items()}
    with atomic_write(task.out / f"{case.name}{SUFFIX}") as temporary, temporary.open("wb") as file:
        file.writelines(packed.values())
    ends = np.cumsum([0, *(len(frame) for frame in packed.values())]).tolist()
    details = {
        "shape": list(image.shape),
        "image": voxel_digest(plain(loaded["image"]).numpy()),
        "offsets": dict(zip(packed, ends[:-1], strict=True)),
        "affine": affine_of(sample["image"]).tolist(),
        "voxels": {str(number): count for number, count in counts.items()},
    }
    return details, notes


def _foreground(labels: np.ndarray, seed: int, name: str) -> np.ndarray:
    """At most 10,000 voxels of each class but the background, drawn with a seed of their own for each case."""
    random = np.random.default_rng([seed, crc32(name.encode())])
    where = np.nonzero(labels)
    classes = labels[where]
    rows = []
    for number in np.flatnonzero(np.bincount(classes)) if len(classes) else ():
        those = np.flatnonzero(classes == number)
        if len(those) > SAMPLES_PER_CLASS:
            those = np.sort(random.choice(those, SAMPLES_PER_CLASS, replace=False))
        rows.append(np.stack([np.full(len(those), number), *(axis[those] for axis in where)], axis=1))
    kind = np.int16 if max(labels.shape) < 2**15 else np.int32
    return np.concatenate(rows).astype(kind) if rows else np.zeros((0, 4), kind)


def _pack(array: np.ndarray) -> bytes:
    """A blosc2 frame in blocks that suit patches."""
    spatial = array.shape[-3:] if array.ndim > 2 else ()
    lead = (1,) * (array.ndim - len(spatial))
    chunks = (*lead, *(max(1, min(CHUNK, size)) for size in spatial)) if spatial else None
    blocks = (*lead, *(max(1, min(BLOCK, size)) for size in spatial)) if spatial else None
    packing = blosc2.CParams(codec=blosc2.Codec.LZ4, clevel=5, nthreads=1)
    return blosc2.asarray(np.ascontiguousarray(array), chunks=chunks, blocks=blocks, cparams=packing).to_cframe()


@dataclass(frozen=True)
class Store:
    """Preprocessed cases, read slice by slice.

    Args:
        folder: where they lie.
        records: of the manifest: case -> shape, affine, voxels of each class.
        steps: the chain that made them.
        failures: cases that were stopped when the store was made.
    """

    folder: Path
    records: Mapping[str, Mapping[str, Any]]
    steps: tuple[Mapping[str, Any], ...]
    failures: tuple[Failure, ...] = ()

    @property
    def cases(self) -> tuple[str, ...]:
        """Names, sorted."""
        return tuple(sorted(self.records))

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the image, (C, X, Y, Z)."""
        return tuple(self._record(name)["shape"])

    def affine(self, name: str) -> np.ndarray:
        """Of the preprocessed grid, voxel to RAS+ mm."""
        return np.asarray(self._record(name)["affine"], dtype=np.float64)

    def image(self, name: str) -> blosc2.NDArray:
        """(C, X, Y, Z) float32; slicing reads the chunks that it touches and gives a numpy array."""
        return self._open(name, "image")

    def labels(self, name: str) -> blosc2.NDArray:
        """(X, Y, Z) class numbers, uint8 or uint16; read as `image` is."""
        return self._open(name, "labels")

    def foreground(self, name: str) -> dict[int, np.ndarray]:
        """Class -> (n, 3) voxel coordinates, a sample; classes that the case does not hold are not there."""
        rows = self._open(name, "foreground")[:]
        return {int(number): rows[rows[:, 0] == number, 1:].astype(np.int64) for number in np.unique(rows[:, 0])}

    def _record(self, name: str) -> Mapping[str, Any]:
        if name not in self.records:
            raise UsageError(f"the store {self.folder} has no case {name!r}; preprocess the data set again")
        return self.records[name]

    def _open(self, name: str, part: str) -> blosc2.NDArray:
        offsets = self._record(name)["offsets"]
        offset = offsets[part]
        path = self.folder / f"{name}{SUFFIX}"
        try:
            return open_array(path, offset, min((o for o in offsets.values() if o > offset), default=None))
        except (OSError, RuntimeError, ValueError) as error:
            raise CaseError(
                f"{path}: cannot be opened ({error}); preprocess the data set again", "store-entry"
            ) from error


def open_store(cache: Path | str) -> Store:
    """The store that `preprocess` made.

    Raises:
        UsageError: no finished store there.
    """
    folder = Path(cache)
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        if manifest["command"] != "preprocess":
            raise KeyError("preprocess")
        steps, finished = manifest["settings"]["steps"], manifest["finished"]
        failures = tuple(Failure(**{**one, "files": tuple(one["files"])}) for one in manifest["failures"])
        store = Store(folder, manifest["cases"], tuple(steps), failures)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{folder} is no store of preprocessed cases; make one with `voxelwise preprocess`") from error
    if finished is not True:
        raise UsageError(
            f"{folder}: preprocessing was cut off or still goes on (its manifest is not finished); let "
            "`voxelwise preprocess` come to its end first"
        )
    return store


def _files(case: Case) -> list[Path]:
    """All files of a case; of a folder (a DICOM series) those inside, in the order of their names."""
    given = [*case.images, *([case.label] if case.label is not None else [])]
    return [
        file
        for path in given
        for file in (sorted(inner for inner in path.rglob("*") if inner.is_file()) if path.is_dir() else [path])
    ]


def _check_room(fingerprint: Fingerprint, plan: Plan, out: Path) -> None:
    """Refuse before the start what cannot fit: float32 of a scanner's noise hardly packs.

    Raises:
        NoRoomError: less room than three quarters of the voxels take.
    """
    needed = 0.0
    for case in fingerprint.cases:
        spacing = with_own(plan.spacing_mm, case.spacing_mm)
        shrink = prod(old / new for old, new in zip(case.spacing_mm, spacing, strict=True))
        needed += 0.75 * prod(case.shape) * shrink * (4 * len(plan.channels) + 1)
    there = next(folder for folder in (out, *out.absolute().parents) if folder.is_dir())
    with suppress(OSError):
        free = shutil.disk_usage(there).free
        if needed > free:
            raise NoRoomError(
                f"{out}: the preprocessed cases need about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; "
                "choose another disk, or a coarser spacing_mm in the plan"
            )
