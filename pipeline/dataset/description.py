"""dataset.json and patients.csv: what a data set that was made says of itself."""

from __future__ import annotations

import csv
import io
import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ...transforms.writers import write_json, write_text
from ..manifest import OutputFolder
from .case_job import ENDING
from .label_classes import BACKGROUND, Classes, described

log = logging.getLogger(__name__)

DESCRIPTION, PATIENTS = "dataset.json", "patients.csv"


def describe(folder: OutputFolder, classes: Classes, channels: Sequence[str], name: str) -> None:
    """dataset.json and patients.csv of all cases that are done."""
    records = dict(sorted(folder.records.items()))
    if not records:
        for file in (DESCRIPTION, PATIENTS):
            (folder.out / file).unlink(missing_ok=True)
        return
    found = sorted({int(value) for record in records.values() for value in record["voxels"]} - {0})
    names = {info.name: info.value for info in classes.infos} or {f"label {value}": value for value in found}
    count = len(next(iter(records.values()))["modalities"])
    description: dict[str, Any] = {
        "name": name,
        "channel_names": {str(number): word for number, word in enumerate(_channel_names(records, channels, count))},
        "numTraining": len(records),
        "file_ending": ENDING,
    }
    if names:
        description["labels"] = {BACKGROUND: 0, **names}
        description["label_details"] = described(classes.infos)
    else:
        log.warning("no label map holds anything but background")
    write_json(folder.out / DESCRIPTION, description)
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(("case", "patient"))
    rows.writerows((case, record["patient"]) for case, record in records.items())
    write_text(folder.out / PATIENTS, table.getvalue())


def _channel_names(records: dict[str, Any], channels: Sequence[str], count: int) -> list[str]:
    """The user's names; else the modality that all cases share, else numbers."""
    if channels:
        return list(channels)
    names = []
    for number in range(count):
        told = Counter(record["modalities"][number] for record in records.values())
        word = next(iter(told)) if len(told) == 1 else ""
        names.append(word or f"image {number}")
    return names if len(set(names)) == len(names) else [f"{word} {number}" for number, word in enumerate(names)]
