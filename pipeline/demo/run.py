"""`demo`: the whole job on an archive that it makes, from DICOM to label maps, volumes, pictures and a report.

OUT/archive, OUT/truth   studies of made-up abdominal CT, and the label maps that are known
OUT/index.db, index.csv  the inventory
OUT/converted            every volume of the labelled studies as NIfTI
OUT/dataset              images and label maps, ready for plan and train
OUT/run                  the model folder
OUT/predictions          label maps of the new studies, straight from DICOM
OUT/rules                the rule-based answer for the same studies; OUT/references: the truth under the same names
OUT/scores               what `evaluate` found for the network, OUT/scores_rules for the rules
OUT/scores.csv           both in one table;  OUT/volumes.csv  SAT, VAT and their ratio
OUT/overlays, OUT/report.html
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import NothingDoneError
from ...transforms.readers import find_sources, read_source, read_volume
from ...transforms.volume import Volume
from ...transforms.writers import atomic_write, write_json, write_label_map, write_text
from ..archive.convert import convert
from ..archive.index import index
from ..archive.records import series_id
from ..dataset.plan import plan
from ..evaluation.evaluate import evaluate
from ..identity import salt_of
from ..inference.predict import predict
from ..manifest import Outcome, OutputFolder
from ..overlays import overlay
from ..training.supervised import train
from .anatomy import CLASSES
from .archive import Subject, Truth, make_archive, read_truth
from .results import NETWORK, RULES, Found, figures, read_scores, write_report, write_scores, write_volumes
from .rules import rule_based

log = logging.getLogger(__name__)

TRAINING_STEPS = 450  # about two and a half minutes on two cores; a number, so that equal seeds give equal results
# what a few minutes on two cores need: many small steps, and no mirror images that no patient looks like
PATCH = (64, 64, 16)
PLAN: dict[str, Any] = {"mirror_axes": [0], "options": {"decoder_depth": 1}}
SUBJECTS, NEW = 20, 6
LEAD = (
    "Made-up abdominal CT studies were written as DICOM, found, converted and learned from; the new ones were then "
    "segmented straight from DICOM. Everything here was computed on this machine."
)


def demo(
    *,
    out: Path | str,
    minutes: float | None = None,
    seed: int = 0,
    overwrite: bool = False,
    training: Mapping[str, Any] | None = None,
    archive: Mapping[str, Any] | None = None,
) -> Outcome:
    """Run every stage once; the same call again finishes what is left.

    Args:
        out: folder for all results.
        minutes: of training; by default a fixed number of steps.
        seed: of the made-up archive and of every draw in training.
        overwrite: start anew.
        training: further options of `train`, which replace the demo's own.
        archive: further options of `make_archive`.

    Returns:
        Outcome of the new cases; `facts`: `report` (path), `figures` (Dice and volume errors of both methods),
        `next_steps` (lines to show).
    """
    out = Path(out)
    limits = dict(training or {})
    if not limits.keys() & {"minutes", "epochs", "steps"}:
        limits.update({"steps": TRAINING_STEPS} if minutes is None else {"minutes": minutes})
    made = {"subjects": SUBJECTS, "new": NEW, **(archive or {})}
    settings = {"seed": seed, "training": limits, "archive": made}
    with OutputFolder(out, "demo", settings, overwrite) as folder:
        with _stage(folder, "1/7 making an archive of abdominal CT"):
            truth = _archive(out, seed=seed, overwrite=overwrite, options=made)
        salt = out / "salt.txt"
        if overwrite or not salt.exists():
            write_text(salt, f"voxelwise demo {seed}\n")
        with _stage(folder, "2/7 indexing and converting it"):
            inventory = index(truth.archive, db=out / "index.db", export=out / "index.csv", salt=salt)
            convert(truth.labelled, out / "converted", salt=salt, overwrite=overwrite)
            cases = {series_id(salt_of(out, salt), subject.series_uid): subject for subject in truth.subjects}
            _dataset(out / "dataset", out / "converted", {c: s for c, s in cases.items() if not s.new})
        with _stage(folder, "3/7 planning and training"):
            made_plan = plan(out / "dataset", seed=seed, **PLAN, **_patch(made))
            train(out / "dataset", out=out / "run", plan=made_plan, **_training(overwrite, limits))
        new = {case: subject for case, subject in cases.items() if subject.new}
        with _stage(folder, "4/7 predicting the new studies from DICOM"):
            predict(out / "run", truth.new, out / "predictions", salt=salt, overwrite=overwrite, tta=False)
        with _stage(folder, "5/7 asking the rules"):
            images = {case: _image(subject) for case, subject in new.items()}
            _rules(out, images, new)
        with _stage(folder, "6/7 scoring both"):
            found = _scores(out, new, overwrite)
        with _stage(folder, "7/7 drawing pictures and the report"):
            volumes = write_volumes(out / "volumes.csv", found)
            write_scores(out / "scores.csv", found)
            pictures = _overlays(out, images)
            facts = _facts(inventory, truth, out)
            steps = next_steps(out)
            write_report(
                out / "report.html",
                found,
                volumes,
                pictures,
                lead=LEAD,
                facts=facts,
                next_steps="\n".join(steps),
            )
        for case in sorted({each.case for each in found}):
            folder.record(case, [out / "predictions" / f"{case}.nii.gz", out / "overlays" / f"{case}.png"], "")
        return folder.finish(report=str(out / "report.html"), figures=figures(found), next_steps=steps)


def next_steps(out: Path) -> tuple[str, ...]:
    """What to try on one's own data, as lines to type."""
    return (
        "voxelwise index YOUR_ARCHIVE                          what is there, and what is wrong with it",
        "voxelwise convert YOUR_ARCHIVE NIFTI                  every usable volume as NIfTI",
        "voxelwise train YOUR_DATASET --out RUN --minutes 60   images/ and labels/, MSD or nnU-Net raw folder",
        "voxelwise predict RUN YOUR_SCANS LABELS               DICOM or NIfTI in, label maps on the same grid out",
        "voxelwise evaluate LABELS REFERENCES --out SCORES     Dice, surfaces and volumes, with intervals",
        f"voxelwise predict {out / 'run'} YOUR_CT LABELS        this demo's model, which has seen no patient",
    )


@contextmanager
def _stage(folder: OutputFolder, name: str) -> Iterator[None]:
    """Say what is being done, and keep how long it took for timings.json."""
    log.info("%s", name)
    started = time.monotonic()
    yield
    folder.seconds[name] = round(time.monotonic() - started, 1)
    log.info("%s: %.0f s", name, folder.seconds[name])


def _archive(out: Path, *, seed: int, overwrite: bool, options: Mapping[str, Any]) -> Truth:
    """The archive of an earlier, equal call, or a new one."""
    if overwrite:
        for name in ("archive", "truth"):
            shutil.rmtree(out / name, ignore_errors=True)
    if (out / "truth" / "truth.json").exists():  # written last
        return read_truth(out)
    return make_archive(out, seed=seed, **options)


def _training(overwrite: bool, limits: Mapping[str, Any]) -> dict[str, Any]:
    return {"fold": "all", "overwrite": overwrite, "resume": not overwrite, **limits}


def _patch(archive: Mapping[str, Any]) -> dict[str, Any]:
    """The demo's patch where the archive has its usual size; a smaller archive gets what the plan finds."""
    return {} if "shape" in archive else {"patch": list(PATCH)}


def _dataset(folder: Path, converted: Path, cases: Mapping[str, Subject]) -> None:
    """images/ and labels/ of the series that have a label map, with a dataset.json that names channel and classes."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "labels").mkdir(exist_ok=True)
    for case, subject in cases.items():
        _copy(converted / f"{case}.nii.gz", folder / "images" / f"{case}.nii.gz")
        _copy(subject.label, folder / "labels" / f"{case}.nii.gz")
    pairs = [{"image": f"images/{case}.nii.gz", "label": f"labels/{case}.nii.gz"} for case in sorted(cases)]
    labels = {str(value): name for value, name in CLASSES.items()}
    described = {
        "name": "demo",
        "modality": {"0": "CT"},
        "labels": labels,
        "numTraining": len(pairs),
        "training": pairs,
    }
    write_json(folder / "dataset.json", described)


def _copy(source: Path, target: Path) -> None:
    with atomic_write(target) as part:
        shutil.copyfile(source, part)


def _image(subject: Subject) -> Volume:
    """The abdomen series of a study, out of the three that lie in its folder."""
    for source in find_sources(subject.folder).sources:
        if source.series == subject.series_uid:
            return read_source(source)
    raise NothingDoneError(f"{subject.folder} holds no series of the abdomen; run the demo again with --overwrite")


def _rules(out: Path, images: Mapping[str, Volume], new: Mapping[str, Subject]) -> None:
    """Write the rule-based label maps, and the truth under the same names."""
    for name in ("rules", "references"):
        (out / name).mkdir(exist_ok=True)
    for case, image in images.items():
        labels = rule_based(image.array[0], image.geometry.spacing_mm)
        write_label_map(out / "rules" / f"{case}.nii.gz", labels, image.geometry)
        _copy(new[case].label, out / "references" / f"{case}.nii.gz")


def _scores(out: Path, new: Mapping[str, Subject], overwrite: bool) -> list[Found]:
    found = []
    for method, labels, scores in ((NETWORK, "predictions", "scores"), (RULES, "rules", "scores_rules")):
        evaluate(out / labels, out / "references", out=out / scores, labels=CLASSES, overwrite=overwrite)
        found += read_scores(out / scores, method, new)
    return found


def _overlays(out: Path, images: Mapping[str, Volume]) -> dict[str, bytes]:
    """A picture of each new subject, cut where the answers differ most."""
    (out / "overlays").mkdir(exist_ok=True)
    pictures = {}
    for case, image in images.items():
        maps = {
            heading: read_volume(out / place / f"{case}.nii.gz").array[0]
            for heading, place in (("network", "predictions"), ("reference", "references"), ("rules", "rules"))
        }
        differ = (maps["network"] != maps["reference"]) | (maps["rules"] != maps["reference"])
        chosen = np.where(differ, maps["reference"], 0) if differ.any() else maps["reference"]
        pictures[case] = overlay(image, maps, CLASSES, title=case, choose_by=chosen)
        with atomic_write(out / "overlays" / f"{case}.png") as part:
            part.write_bytes(pictures[case])
    return pictures


def _facts(inventory: Outcome, truth: Truth, out: Path) -> list[tuple[str, str]]:
    labelled = sum(not subject.new for subject in truth.subjects)
    files = sum(1 for path in truth.archive.rglob("*") if path.is_file())
    return [
        ("archive", f"{len(truth.subjects)} studies, {files} DICOM files in no order"),
        ("index", f"{len(inventory.done)} usable volumes, {len(inventory.failures)} stopped"),
        ("train", f"3D U-Net on {labelled} studies; plan and reasons in {out.name}/run/plan.yaml"),
        ("predict", f"{len(truth.subjects) - labelled} studies that it has not seen, from DICOM"),
    ]
