"""Every volume behind a path, in memory: for inputs of one run. An archive of any size is an index's work."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from ..errors import CaseError, UsageError
from .dicom import Slice
from .dicom_series import Stack
from .grouping import group_series, is_single, scrambled, series_key, series_of_error
from .look import Look, look_into, look_into_members
from .neighbours import NO_SLICE, PLAIN_TEXT, neighbours
from .read_options import DEFAULT, ReadOptions
from .sources import Found, NotAVolume, Source, Stopped
from .tree import Item, items

MOST_KEPT_SLICES = 20_000  # of series whose proved stacks stay in memory for the reading


def find_sources(path: Path, options: ReadOptions = DEFAULT) -> Found:
    """Every volume behind a file or a folder (walked recursively), from headers alone.

    Raises:
        UsageError: the path does not exist, or the folder is empty.
        UnsafeInputError: the path is a zip archive that must not be unpacked.
    """
    path = Path(path)
    if not path.exists():
        raise UsageError(f"{path} does not exist; give a file or a folder with images")
    finder = Finder(options)
    if path.is_file():
        finder.add(path, look_into(path, options, alone=True))
        return finder.found()
    empty = True
    for item in items(path, ordered=True):
        empty = False
        finder.add_item(item)
    if empty:
        raise UsageError(f"{path} is empty; give a file or a folder with images")
    return finder.found()


class Finder:
    """Takes files one by one and tells what they are in the end."""

    def __init__(self, options: ReadOptions) -> None:
        self.options = options
        self.sources: list[Source] = []
        self.stopped: list[Stopped] = []
        self.listed: list[NotAVolume] = []
        self.rubbish = 0
        self.kept = 0
        self.series: dict[tuple[str, str], list[Slice]] = defaultdict(list)
        self.images: set[tuple[str, str]] = set()
        self.broken: list[tuple[Path, CaseError]] = []
        self.slices_in: dict[Path, dict[str, tuple[str, str]]] = defaultdict(dict)

    def add_item(self, item: Item) -> None:
        """Take what the walk met."""
        file = Path(item.path)
        if item.link:
            self.listed.append(NotAVolume((file,), item.link))
        elif item.error is not None:
            self.stopped.append(Stopped((file,), item.error.code, str(item.error)))
        else:
            self.add(file, look_into(file, self.options))

    def add(self, file: Path, look: Look) -> None:
        """Take what one file is."""
        if look.kind == "zip":
            for member, inside in look_into_members(file, look.members, self.options):
                self.add(member, inside)
        elif look.kind == "rubbish":
            self.rubbish += 1
        elif look.kind == "broken" and look.error is not None:
            self.broken.append((file, look.error))
        elif look.error is not None:
            self.stopped.append(Stopped((file,), look.error.code, str(look.error)))
        elif look.kind == "listed":
            self.listed.append(NotAVolume((file,), look.reason))
        self.sources += look.sources
        if look.slices:
            key = series_key(look.slices[0], self.options)
            self.series[key] += look.slices
            if look.kind == "dicom":
                self.slices_in[file.parent][file.name] = key
                self.images.add(key)

    def found(self) -> Found:
        """Sort the DICOM files into volumes and close."""
        blamed = self.blamed()
        single: dict[tuple[str, str, Path], list[Stack]] = defaultdict(list)
        for key, slices in self.series.items():
            grouped = group_series(slices, self.options, blamed.get(key))
            self.kept += len(slices)
            self.sources += [
                source if self.kept <= MOST_KEPT_SLICES else unproved(source) for source in grouped.sources
            ]
            self.stopped += grouped.stopped
            self.listed += grouped.listed
            for stack in filter(is_single, grouped.stacks):
                first = stack.slices[0]
                single[first.study, first.series_number, first.path.parent].append(stack)
        if not self.options.group_by:
            for stacks in single.values():
                self.stop_scrambled(scrambled(stacks))
        return Found(tuple(self.sources), tuple(self.stopped), tuple(self.listed), self.rubbish)

    def blamed(self) -> dict[tuple[str, str], tuple[Path, CaseError]]:
        """The series that an unreadable file belongs to: by its UIDs, else by its neighbours in its folder."""
        blamed: dict[tuple[str, str], tuple[Path, CaseError]] = {}
        for file, error in self.broken:
            own = series_of_error(error, self.options)
            others = self.slices_in.get(file.parent, {})
            keys = neighbours(file.name, others.items(), error.code)
            if own is not None and own in self.series:
                keys = {own} & self.images
            news = [key for key in keys if key not in blamed]
            blamed.update(dict.fromkeys(news, (file, error)))
            if not keys and error.code == PLAIN_TEXT:
                self.listed.append(NotAVolume((file,), NO_SLICE))
            elif not news:
                self.stopped.append(Stopped((file,), error.code, str(error)))
        return blamed

    def stop_scrambled(self, stop: Stopped | None) -> None:
        """Take the sources back whose series cannot be told apart."""
        if stop is not None:
            files = set(stop.files)
            self.sources = [one for one in self.sources if one.kind != "dicom" or files.isdisjoint(one.files)]
            self.stopped.append(stop)


def unproved(source: Source) -> Source:
    """A source without its stack."""
    return Source(**source.__getstate__())
