"""What lies behind a path, and how it is read: files by what they hold and not by their names, DICOM by its UIDs.

`find_sources` reads headers only; `read_source` reads one volume. A failure is a failure: no second reader is tried.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..errors import CaseError, UsageError
from .dicom import PICTURE_CLASSES, VOLUME_CLASSES, DirectoryFileError, Slice, SliceError, is_dicom, read_header
from .dicom_pixels import read_stack
from .dicom_series import SortedSeries, Stack, sort_series
from .itk_files import check_claim, is_itk_file, itk_geometry, itk_name, read_itk
from .nifti import GZIP_MAGIC, base_name, is_nifti, read_nifti, unpacked_head
from .nifti import read_header as read_nifti_header
from .pictures import is_picture, picture_name, picture_shape, read_picture
from .read_options import DEFAULT, ReadOptions
from .volume import Entry, Geometry, Volume

RUBBISH_NAMES = re.compile(r"(?i)^(\..*|thumbs\.db|desktop\.ini|dicomdir|readme.*|license.*|licence.*|copying)$")
RUBBISH_SUFFIXES = (
    *(
        ".txt",
        ".md",
        ".json",
        ".yaml",
        ".yml",
        ".csv",
        ".tsv",
        ".xml",
        ".html",
        ".htm",
        ".pdf",
        ".log",
        ".bval",
        ".bvec",
        ".part",
    ),
    *(".py", ".sh", ".exe", ".inf", ".ini", ".jar", ".doc", ".docx", ".xls", ".xlsx", ".sha256", ".md5", ".lnk", ".db"),
)
DICOM_SUFFIXES = (".dcm", ".dicom", ".ima", ".dic", ".img", "")
VOLUME_SUFFIXES = (
    ".nii",
    ".nii.gz",
    ".hdr",
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
)


@dataclass(frozen=True)
class Source:
    """One volume that can be read.

    Args:
        kind: "dicom", "nifti", "itk" or "picture".
        files: all files that belong to it.
        name: base name of a file ("" for DICOM).
        series: SeriesInstanceUID and split part ("" unless DICOM); never written out unhashed.
        modality: DICOM's word, "picture", or "".
        shape: spatial shape, from the headers.
        part: which volume of a 4D file.
        repairs, notes: what the headers of a whole DICOM series tell; None where they are to be found while reading.
    """

    kind: str
    files: tuple[Path, ...]
    name: str = ""
    series: str = ""
    modality: str = ""
    shape: tuple[int, ...] | None = None
    part: int | None = None
    repairs: tuple[Entry, ...] | None = None
    notes: tuple[Entry, ...] | None = None


@dataclass(frozen=True)
class Stopped:
    """Found, and cannot be read."""

    files: tuple[Path, ...]
    code: str
    message: str


@dataclass(frozen=True)
class NotAVolume:
    """Found, and no volume: a localizer, a report."""

    files: tuple[Path, ...]
    reason: str


@dataclass(frozen=True)
class Found:
    """All that lies behind a path; `rubbish` counts files that nobody expects to be images."""

    sources: tuple[Source, ...]
    stopped: tuple[Stopped, ...] = ()
    listed: tuple[NotAVolume, ...] = ()
    rubbish: int = 0


def find_sources(path: Path, options: ReadOptions = DEFAULT) -> Found:
    """Every volume behind a file or a folder (walked recursively), from headers alone.

    Raises:
        UsageError: the path does not exist, or the folder is empty.
    """
    path = Path(path)
    if not path.exists():
        raise UsageError(f"{path} does not exist; give a file or a folder with images")
    files = [path] if path.is_file() else list(walk(path))
    if not files:
        raise UsageError(f"{path} is empty; give a file or a folder with images")
    finder = Finder(options, alone=path.is_file())
    for file in files:
        finder.add(file)
    return finder.found()


def walk(folder: Path) -> Iterator[Path]:
    """All files below a folder in a fixed order."""
    for root, folders, names in os.walk(folder):
        folders.sort(key=natural_key)
        for name in sorted(names, key=natural_key):
            file = Path(root, name)
            if file.is_file():
                yield file


def natural_key(name: str) -> list[tuple[int, int | str]]:
    """Sort numbers in names as numbers."""
    return [(0, int(part)) if part.isdecimal() else (1, part.lower()) for part in re.split(r"(\d+)", name) if part]


class Finder:
    """Takes files one by one and tells what they are in the end."""

    def __init__(self, options: ReadOptions, alone: bool) -> None:
        self.options = options
        self.alone = alone
        self.sources: list[Source] = []
        self.stopped: list[Stopped] = []
        self.listed: list[NotAVolume] = []
        self.rubbish = 0
        self.series: dict[tuple[str, str], list[Slice]] = defaultdict(list)
        self.broken: list[tuple[Path, SliceError | CaseError]] = []
        self.series_of_file: dict[Path, tuple[str, str]] = {}

    def add(self, file: Path) -> None:
        """Look inside one file."""
        if not self.alone and RUBBISH_NAMES.match(file.name):
            self.rubbish += 1
            return
        try:
            with open(file, "rb") as opened:
                head = opened.read(1024)
        except OSError as error:
            message = f"{file}: cannot be read ({error.strerror}). Check the disk and the rights"
            self.stopped.append(Stopped((file,), "unreadable", message))
            return
        if head[128:132] == b"DICM":
            self.add_dicom(file)
        elif head.startswith(GZIP_MAGIC) or is_nifti(head):
            self.add_nifti(file, head)
        elif is_picture(head):
            self.add_file("picture", file, picture_name(file), lambda: picture_shape(file)[0])
        elif is_itk_file(head):
            self.add_file("itk", file, itk_name(file), lambda: check_claim(file)[1])
        elif is_dicom(head):
            self.add_dicom(file)
        else:
            self.add_unknown(file, head)

    def add_dicom(self, file: Path) -> None:
        """One DICOM file, or one that should be."""
        try:
            slices = read_header(file)
        except DirectoryFileError:
            self.rubbish += 1
            return
        except CaseError as error:
            self.broken.append((file, error))
            return
        first = slices[0]
        if not first.pixels and first.sop_class in VOLUME_CLASSES | PICTURE_CLASSES:
            message = f"{file}: an image without PixelData: the file is cut off. Copy it again from its source"
            self.broken.append((file, SliceError(message, "no-pixels", (first.study, first.series))))
            return
        key = (first.study, first.series or str(file))
        self.series[key] += slices
        self.series_of_file[file] = key

    def add_nifti(self, file: Path, head: bytes) -> None:
        """One NIfTI file: one source, or one a time point."""
        if head.startswith(GZIP_MAGIC):
            unpacked = unpacked_head(file)[0]
            if unpacked and not is_nifti(unpacked):
                self.add_unknown(file, head)
                return
        if file.suffix.lower() == ".img":
            return
        try:
            header = read_nifti_header(file, affine=self.options.affine)
        except CaseError as error:
            self.stopped.append(Stopped((file,), error.code, str(error)))
            return
        files = (file,) if header.data_path == file else (file, header.data_path)
        name = base_name(file)
        if header.volumes == 1:
            self.sources.append(Source("nifti", files, name, shape=header.geometry.shape))
        else:
            for part in range(header.volumes):
                self.sources.append(
                    Source("nifti", files, f"{name}_t{part:03d}", shape=header.geometry.shape, part=part)
                )

    def add_file(self, kind: str, file: Path, name: str, shape: Callable[[], tuple[int, ...]]) -> None:
        """A file that is one volume by itself."""
        try:
            modality = "picture" if kind == "picture" else ""
            self.sources.append(Source(kind, (file,), name, modality=modality, shape=shape()))
        except CaseError as error:
            self.stopped.append(Stopped((file,), error.code, str(error)))

    def add_unknown(self, file: Path, head: bytes) -> None:
        """Neither DICOM nor anything else that we read."""
        suffix = "".join(file.suffixes[-2:]).lower() if file.name.lower().endswith(".gz") else file.suffix.lower()
        if suffix == ".img" and any(file.with_suffix(end).is_file() for end in (".hdr", ".HDR")):
            return
        if suffix in VOLUME_SUFFIXES or self.alone:
            found = (
                "the file is empty (0 bytes)"
                if not head
                else f"not an image in a format that is read (starts with {head[:8]!r})"
            )
            message = f"{file}: {found}. Copy it again from its source"
            self.stopped.append(Stopped((file,), "empty-file" if not head else "unknown-format", message))
        elif suffix in RUBBISH_SUFFIXES:
            self.rubbish += 1
        elif suffix in DICOM_SUFFIXES or suffix.lstrip(".").isdecimal():
            found = "the file is empty (0 bytes)" if not head else "no DICOM header"
            error = CaseError(
                f"{file}: {found}. Copy it again from its source", "empty-file" if not head else "not-dicom"
            )
            self.broken.append((file, error))
        else:
            self.listed.append(NotAVolume((file,), "no image in a format that is read"))

    def found(self) -> Found:
        """Sort the DICOM files into volumes and close."""
        stopped_series = self.stopped_by_broken_files()
        single: dict[tuple[str, str, Path], list[Stack]] = defaultdict(list)
        for key, slices in self.series.items():
            if key in stopped_series:
                error = stopped_series[key]
                files = tuple(dict.fromkeys(one.path for one in slices))
                message = f"{error} (the {len(files)} files of its series were left out with it)"
                self.stopped.append(Stopped((*files, *self.broken_with(error)), error.code, message))
                continue
            result = sort_series(slices, self.options)
            self.keep(result)
            for stack in result.stacks:
                if len(stack.slices) == 1 and not stack.picture and stack.slices[0].frame is None:
                    first = stack.slices[0]
                    single[first.study, first.series_number, first.path.parent].append(stack)
        for stacks in single.values():
            self.stop_scrambled(stacks)
        return Found(tuple(self.sources), tuple(self.stopped), tuple(self.listed), self.rubbish)

    def keep(self, result: SortedSeries) -> None:
        """Take over what one series holds."""
        for stack in result.stacks:
            modality = stack.slices[0].modality
            found = Source("dicom", stack.files, "", stack.series, modality, stack.shape)
            self.sources.append(replace(found, repairs=stack.repairs, notes=stack.notes))
        self.stopped += [Stopped(files, error.code, str(error)) for files, error in result.stopped]
        self.listed += [NotAVolume(files, reason) for files, reason in result.listed]

    def broken_with(self, error: CaseError) -> tuple[Path, ...]:
        """The unreadable file behind an error."""
        return tuple(file for file, other in self.broken if other is error)

    def stopped_by_broken_files(self) -> dict[tuple[str, str], CaseError]:
        """Series that an unreadable file belongs to: by its UIDs, else by its neighbours in its folder.

        A series that may lack a slice is not made into a volume.
        """
        stopped: dict[tuple[str, str], CaseError] = {}
        by_folder: dict[Path, list[Path]] = defaultdict(list)
        for file in self.series_of_file:
            by_folder[file.parent].append(file)
        for file, error in self.broken:
            own = getattr(error, "series", None)
            if own in self.series:
                keys = {own}
            else:
                others = by_folder[file.parent]
                before = [other for other in others if natural_key(other.name) < natural_key(file.name)][-1:]
                after = [other for other in others if natural_key(other.name) > natural_key(file.name)][:1]
                keys = {self.series_of_file[other] for other in (*before, *after)}
            for key in keys:
                stopped.setdefault(key, error)
            if not any(error is other for other in stopped.values()):
                self.stopped.append(Stopped((file,), error.code, str(error)))
        return stopped

    def stop_scrambled(self, stacks: list[Stack]) -> None:
        """Three or more series of one slice each with one SeriesNumber: an anonymiser gave each file its own UID."""
        alike = [
            stack
            for stack in stacks
            if stack.shape == stacks[0].shape and stack.slices[0].orientation == stacks[0].slices[0].orientation
        ]
        if len(alike) < 3 or len({stack.slices[0].position for stack in alike}) < len(alike):
            return
        names = {stack.series for stack in alike}
        self.sources = [source for source in self.sources if source.series not in names]
        files = tuple(file for stack in alike for file in stack.files)
        message = (
            f"{files[0].parent}: {len(alike)} series of 1 slice each: SeriesInstanceUID looks scrambled, so nothing "
            "says which slices belong together. Fetch the series with its own UIDs"
        )
        self.stopped.append(Stopped(files, "scrambled-uids", message))


def read_source(source: Source, options: ReadOptions = DEFAULT) -> Volume:
    """Read one volume.

    Raises:
        CaseError: anything that makes the voxels or their place uncertain.
    """
    file = source.files[0]
    try:
        if source.kind == "dicom":
            return read_stack(dicom_stack(source, options))
        if source.kind == "nifti":
            return read_nifti(file, source.part, affine=options.affine, max_voxels=options.max_voxels)
        return read_picture(file) if source.kind == "picture" else read_itk(file)
    except OSError as error:
        raise CaseError(
            f"{error.filename or file}: cannot be read ({error.strerror or error}). Check the disk", "unreadable"
        ) from error
    except MemoryError as error:
        raise CaseError(
            f"{file}: no memory for its voxels ({source.shape}). Free memory, or cut it smaller", "memory"
        ) from error


def dicom_stack(source: Source, options: ReadOptions = DEFAULT) -> Stack:
    """The stack of a source, proved again from its files."""
    slices = [one for file in source.files for one in read_header(file)]
    result = sort_series(slices, options)
    stacks = [stack for stack in result.stacks if stack.series == source.series] or list(result.stacks)
    if len(stacks) == 1:
        repairs = stacks[0].repairs if source.repairs is None else source.repairs
        notes = stacks[0].notes if source.notes is None else source.notes
        return replace(stacks[0], series=source.series or stacks[0].series, repairs=repairs, notes=notes)
    if result.stopped:
        raise result.stopped[0][1]
    raise CaseError(
        f"{source.files[0].parent}: the series changed while it was read. Run again when it is complete", "changed"
    )


def only_source(path: Path, options: ReadOptions = DEFAULT) -> Source:
    """The one volume behind a path.

    Raises:
        UsageError: the path does not exist or is empty.
        CaseError: none, several, or one beside files that could not be read.
    """
    found = find_sources(path, options)
    if found.stopped:
        first = found.stopped[0]
        more = f" ({len(found.stopped) - 1} more could not be read)" if len(found.stopped) > 1 else ""
        raise CaseError(f"{first.message}{more}", first.code)
    if len(found.sources) != 1:
        raise CaseError(
            f"{path} holds {len(found.sources)} volumes, expected exactly one. "
            "Give the file or the folder of one series",
            "several-volumes" if found.sources else "no-volume",
        )
    return found.sources[0]


def read_volume(path: Path, options: ReadOptions = DEFAULT) -> Volume:
    """Read the one volume behind a file or a DICOM folder."""
    return read_source(only_source(Path(path), options), options)


def read_geometry(path: Path, options: ReadOptions = DEFAULT) -> tuple[Geometry, int]:
    """Shape and place of the one volume behind a path, and its number of channels; headers only."""
    return source_geometry(only_source(Path(path), options), options)


def source_geometry(source: Source, options: ReadOptions = DEFAULT) -> tuple[Geometry, int]:
    """Shape and place of a source, and its number of channels; headers only."""
    file = source.files[0]
    if source.kind == "nifti":
        header = read_nifti_header(file, affine=options.affine)
        return header.geometry, header.channels
    if source.kind == "itk":
        return itk_geometry(file)[0], 1
    if source.kind == "picture":
        shape, channels = picture_shape(file)
        return Geometry(shape, np.eye(4), has_world=False), channels
    stack = dicom_stack(source, options)
    first = stack.slices[0]
    colour = stack.picture and (first.samples > 1 or first.photometric == "PALETTE COLOR")
    return Geometry(stack.shape, stack.affine, has_world=not stack.picture), 3 if colour else 1
