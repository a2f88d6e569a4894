"""Which label map belongs to which image: by the UIDs that a SEG or RTSTRUCT refers to, by name, or by a table.

Nothing is paired by its place in a list. What matches nothing, or more than one thing, is stopped, both sides named.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from ...errors import CaseError, UsageError
from ...transforms.read_options import DEFAULT, ReadOptions
from ...transforms.readers import Source, dicom_stack
from ..archive.naming import relative, source_id
from .channels import ImageCase, Problem, clashes
from .label_items import LabelItem


@dataclass(frozen=True)
class Pair:
    """An image and its label map; `patient` is what a table says, "" where none does."""

    case: ImageCase
    label: LabelItem
    patient: str = ""


@dataclass(frozen=True)
class Matched:
    """The pairs, what is stopped, and with a table the files that it does not name."""

    pairs: tuple[Pair, ...]
    problems: tuple[Problem, ...]
    left_out: tuple[Path, ...] = ()


class Index:
    """Images by what a label map may call them.

    Args:
        cases: the images.
        salts: of case ids, by which a converted image is known by the UID of its series.
        options: how their headers are read.
    """

    def __init__(self, cases: Sequence[ImageCase], salts: Sequence[str], options: ReadOptions = DEFAULT) -> None:
        self.cases, self.salts, self.options = cases, salts, options
        self.by_key: dict[str, list[ImageCase]] = defaultdict(list)
        for case in cases:
            for key in case.keys:
                self.by_key[key].append(case)

    def of_label(self, label: LabelItem) -> list[ImageCase]:
        """The images that a label map may belong to; one is what is wanted."""
        if label.drawn is None:
            for key in label.keys:
                if found := self._distinct(self.by_key.get(key, [])):
                    return found
            return []
        found = self._distinct(case for uid in label.drawn.series for case in self._of_series(uid))
        if len(found) == 1:
            return found
        wanted = label.drawn.instances
        hits = {id(case): len(wanted & self.instances[id(case)]) for case in found or self.cases}
        most = max(hits.values(), default=0)
        return [case for case in found or self.cases if hits[id(case)] == most] if most else found

    @cached_property
    def instances(self) -> Mapping[int, frozenset[str]]:
        """SOPInstanceUIDs of each image; a second pass over the headers, only where series do not tell."""
        return {id(case): frozenset(self._instances(case)) for case in self.cases}

    def _of_series(self, uid: str) -> list[ImageCase]:
        series = Source("dicom", (), series=uid)
        words = (uid, *(source_id(series, salt, Path()) for salt in self.salts))
        return [case for word in words for case in self.by_key.get(word, ())]

    def _instances(self, case: ImageCase) -> Iterator[str]:
        for source in case.sources:
            if source.kind == "dicom":
                try:
                    yield from (one.sop for one in dicom_stack(source, self.options).slices)
                except CaseError:  # it is stopped with its reason when it is read
                    continue

    @staticmethod
    def _distinct(cases: Iterable[ImageCase]) -> list[ImageCase]:
        return list({id(case): case for case in cases}.values())


def match(index: Index, labels: Sequence[LabelItem], images_root: Path, labels_root: Path) -> Matched:
    """Pair images and label maps by reference and by name."""
    problems: list[Problem] = []
    claims: dict[int, list[LabelItem]] = defaultdict(list)
    handled: set[int] = set()
    for label in labels:
        found = index.of_label(label)
        if len(found) == 1:
            claims[id(found[0])].append(label)
        else:
            problems.append(_unmatched_label(label, found, index.cases, images_root, labels_root))
            handled |= {id(case) for case in found}
    pairs = []
    for case in index.cases:
        own = claims[id(case)]
        if len(own) == 1:
            pairs.append(Pair(case, own[0]))
        elif own or id(case) not in handled:
            problems.append(_unmatched_image(case, own, images_root, labels_root))
    return _without_clashes(pairs, problems, images_root)


def match_table(
    table: Path, index: Index, labels: Sequence[LabelItem], images_root: Path, labels_root: Path
) -> Matched:
    """Pair images and label maps as a table says: image, label, and where wanted case and patient.

    Raises:
        UsageError: no such table, or other columns.
    """
    rows = _rows(table)
    by_label: dict[str, list[LabelItem]] = defaultdict(list)
    for label in labels:
        for word in {relative(label.path, labels_root), str(label.path), *label.keys}:
            by_label[word].append(label)
    by_image: dict[str, list[ImageCase]] = defaultdict(list)
    for case in index.cases:
        words = set(case.keys)
        for file in case.files:
            words |= {relative(file, images_root), str(file), relative(file.parent, images_root), str(file.parent)}
        for word in words:
            by_image[word].append(case)
    pairs, problems = [], []
    used: set[int] = set()
    for line, row in rows:
        cases, items = by_image.get(row["image"], []), by_label.get(row["label"], [])
        if len(cases) == 1 and len(items) == 1 and not used & {id(cases[0]), id(items[0])}:
            named = replace(cases[0], name=row["case"]) if row.get("case") else cases[0]
            pairs.append(Pair(named, items[0], row.get("patient") or ""))
            used |= {id(cases[0]), id(items[0])}
            continue
        counts = f"{len(cases)} images are called {row['image']!r} and {len(items)} label maps {row['label']!r}"
        again = len(cases) == len(items) == 1
        text = "one of the two stands in an earlier line" if again else f"{counts}, expected one of each"
        error = CaseError(f"{table.name}, line {line}: {text}; correct the table", "pair-unknown")
        problems.append(Problem(row["image"], (row["image"], row["label"]), error))
        used |= {id(one) for one in (*cases, *items)}
    rest = [case.files[0] for case in index.cases if id(case) not in used]
    rest += [label.path for label in labels if id(label) not in used and label.path not in set(rest)]
    known = {file for pair in pairs for file in (*pair.case.files, *pair.label.files)}
    return replace(_without_clashes(pairs, problems, images_root), left_out=tuple(f for f in rest if f not in known))


def _rows(table: Path) -> list[tuple[int, dict[str, str]]]:
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or ()
            rows = [
                (number, {key: (value or "").strip() for key, value in row.items() if isinstance(key, str)})
                for number, row in enumerate(reader, start=2)
            ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"--pairs {table}: cannot be read as a table ({error}); give a CSV file") from None
    if not {"image", "label"} <= set(columns):
        raise UsageError(f"--pairs {table}: found the columns {', '.join(columns)}; expected image and label")
    return rows


def _without_clashes(pairs: Sequence[Pair], problems: list[Problem], root: Path) -> Matched:
    clashing = clashes([pair.case for pair in pairs], root)
    kept = tuple(pair for pair in pairs if pair.case.name not in clashing)
    return Matched(kept, (*problems, *clashing.values()))


def _unmatched_label(
    label: LabelItem, found: Sequence[ImageCase], cases: Sequence[ImageCase], images: Path, labels: Path
) -> Problem:
    own = relative(label.path, labels)
    others = tuple(relative(case.files[0], images) for case in found)
    if found:
        text = f"{own}: fits {len(found)} images ({', '.join(others)}), expected one; say which in a table with --pairs"
        return Problem(own, (own, *others), CaseError(text, "image-doubled"))
    if label.drawn is not None:
        text = f"{own}: refers to a series that is not among the {len(cases)} images; add the series, or take it away"
        return Problem(own, (own,), CaseError(text, "image-missing"))
    lower = {key.casefold(): key for case in cases for key in case.keys}
    near = next((lower[key.casefold()] for key in label.keys if key.casefold() in lower), None)
    hint = f" ({near!r} differs in upper and lower case)" if near else ""
    text = f"{own}: none of the {len(cases)} images is called {label.keys[-1]!r}{hint}; rename one, or give --pairs"
    return Problem(own, (own,), CaseError(text, "image-missing"))


def _unmatched_image(case: ImageCase, own: Sequence[LabelItem], images: Path, labels: Path) -> Problem:
    first = relative(case.files[0], images)
    others = tuple(relative(label.path, labels) for label in own)
    if own:
        text = f"{first}: {len(own)} label maps belong to it ({', '.join(others)}), expected one; keep one, or say "
        return Problem(case.name, (first, *others), CaseError(f"{text}which in a table with --pairs", "label-doubled"))
    text = f"{first}: no label map is called as it is or refers to it; add one, take it away, or give --pairs"
    return Problem(case.name, (first,), CaseError(text, "label-missing"))
