"""What one file is: looked up in its bytes, never in its name alone; headers only."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from pydicom.uid import UID_dictionary

from ..errors import CaseError, UnsafeInputError
from .dicom import PICTURE_CLASSES, VOLUME_CLASSES, DirectoryFileError, Slice, SliceError, is_dicom, read_header
from .itk_files import check_claim, is_itk_file, itk_name
from .neighbours import PLAIN_TEXT
from .nifti import GZIP_MAGIC, base_name, is_nifti, unpacked_head
from .nifti import read_header as read_nifti_header
from .pictures import is_picture, picture_name, picture_shape
from .read_options import DEFAULT, ReadOptions
from .sources import Source
from .volume import Entry, Geometry
from .zip_files import PREFIX_BYTES, check_archive, is_zip, temporary_folder, unpack, unwritten, with_siblings

RUBBISH_NAMES = re.compile(r"(?i)^(\..*|thumbs\.db|desktop\.ini|dicomdir|readme.*|license.*|licence.*|copying)$")
RUBBISH_SUFFIXES = frozenset(
    (
        *(".txt", ".md", ".json", ".yaml", ".yml", ".csv", ".tsv", ".xml", ".html", ".htm", ".pdf", ".log", ".bval"),
        *(".bvec", ".part", ".py", ".sh", ".exe", ".inf", ".ini", ".jar", ".doc", ".docx", ".xls", ".xlsx"),
        *(".sha256", ".md5", ".lnk", ".db", ".db-journal"),
    )
)
DICOM_SUFFIXES = frozenset((".dcm", ".dicom", ".ima", ".dic", ".img", ""))
VOLUME_SUFFIXES = frozenset(
    (
        *(".nii", ".nii.gz", ".hdr", ".nrrd", ".nhdr", ".mha", ".mhd"),
        *(".png", ".jpg", ".jpeg", ".tif", ".tiff", ".gif"),
    )
)
LABEL_INTENT = 1002
IMAGE_CLASSES = VOLUME_CLASSES | PICTURE_CLASSES
AGAIN = "Copy it again from its source"


@dataclass(frozen=True)
class Look:
    """What a file was found to be.

    Args:
        kind: "dicom", "nifti", "itk", "picture", "zip"; "object" (DICOM, and no image), "rubbish" (nobody expects an
            image there), "listed" (no image), "stopped" (an image that cannot be read), "broken" (the same, and it may
            be a slice of a series), "gone".
        slices: records of a DICOM file, one a frame.
        sources: volumes of a file that is no DICOM.
        geometry, repairs, notes: of these volumes, where the look at the header told it.
        labels: the header calls them label maps.
        error: why it is stopped or broken.
        reason: why it is listed.
        members: names of the files in a zip archive.
    """

    kind: str
    slices: tuple[Slice, ...] = ()
    sources: tuple[Source, ...] = ()
    geometry: Geometry | None = None
    repairs: tuple[Entry, ...] = ()
    notes: tuple[Entry, ...] = ()
    labels: bool = False
    error: CaseError | None = None
    reason: str = ""
    members: tuple[str, ...] = ()


RUBBISH = Look("rubbish")
NESTED = Look("listed", reason="a zip archive inside a zip archive; it is not read")


def look_into(file: Path, options: ReadOptions = DEFAULT, *, alone: bool = False) -> Look:
    """Look inside one file.

    Args:
        file: the file.
        options: the ways out that the user has chosen.
        alone: it was named by the user, so it is meant to be an image whatever it is called.

    Raises:
        UnsafeInputError: a zip archive that must not be unpacked, where it is what the user named.
    """
    if not alone and RUBBISH_NAMES.match(file.name):
        return RUBBISH
    try:
        with open(file, "rb") as opened:
            head = opened.read(1024)
        if head[128:132] == b"DICM":
            return _dicom(file, options)
        if head.startswith(GZIP_MAGIC) or is_nifti(head):
            return _nifti(file, head, options, alone)
        if is_picture(head):
            return _one_volume("picture", file, picture_name(file), lambda: picture_shape(file)[0])
        if is_itk_file(head):
            return _itk(file)
        if is_zip(head) and (alone or file.suffix.lower() in (".zip", "")):
            return _zip(file, alone)
        return _dicom(file, options) if is_dicom(head) else _unknown(file, head, alone)
    except FileNotFoundError:
        return Look("gone")
    except OSError as error:
        message = f"{file}: cannot be read ({error.strerror or error}). Check the disk and the rights"
        return Look("broken" if _may_be_slice(file) else "stopped", error=CaseError(message, "unreadable"))


def _dicom(file: Path, options: ReadOptions) -> Look:
    """One DICOM file, or one that should be."""
    try:
        slices = read_header(file, options)
    except DirectoryFileError:
        return RUBBISH
    except CaseError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return Look("gone")
        is_object = isinstance(error, SliceError) and error.sop_class in UID_dictionary.keys() - IMAGE_CLASSES
        return Look("stopped" if is_object else "broken", error=error)
    first = slices[0]
    if first.sop_class not in IMAGE_CLASSES:
        return Look("object", tuple(slices))
    if not first.pixels:
        message = f"{file}: an image without PixelData: the file is cut off. {AGAIN}"
        return Look("broken", error=SliceError(message, "no-pixels", (first.study, first.series)))
    return Look("dicom", tuple(slices))


def _nifti(file: Path, head: bytes, options: ReadOptions, alone: bool) -> Look:
    """One NIfTI file: one source, or one a time point."""
    if head.startswith(GZIP_MAGIC):
        unpacked = unpacked_head(file)[0]
        if unpacked and not is_nifti(unpacked):
            return _unknown(file, head, alone)
    if file.suffix.lower() == ".img":
        return RUBBISH  # its header file is looked into
    try:
        header = read_nifti_header(file, affine=options.affine)
    except CaseError as error:
        return Look("stopped", error=error)
    files = (file,) if header.data_path == file else (file, header.data_path)
    name, shape = base_name(file), header.geometry.shape
    labels = int(header.raw["intent_code"]) == LABEL_INTENT
    look = Look("nifti", (), (), header.geometry, header.repairs, header.notes, labels)
    if header.volumes == 1:
        return replace(look, sources=(Source("nifti", files, name, shape=shape),))
    numbers = range(header.volumes)
    if options.time != "all":
        number = 0 if options.time == "first" else int(options.time)
        numbers = numbers[number : number + 1]
        if not numbers:
            message = f"{file}: has no time point {number}, it has 0 to {header.volumes - 1}. Give --time one of these"
            return Look("stopped", error=CaseError(message, "no-time-point"))
    sources = [Source("nifti", files, f"{name}_t{part:03d}", shape=shape, part=part) for part in numbers]
    return replace(look, sources=tuple(sources))


def _itk(file: Path) -> Look:
    """One NRRD or MetaImage file, with the file beside it that holds its voxels."""
    try:
        header, shape = check_claim(file)
    except CaseError as error:
        return Look("stopped", error=error)
    files = (file,) if header.data_path == file else (file, header.data_path)
    return Look("itk", sources=(Source("itk", files, itk_name(file), shape=shape),), geometry=header.geometry)


def _one_volume(kind: str, file: Path, name: str, shape: Callable[[], tuple[int, ...]]) -> Look:
    """A file that is one volume by itself."""
    try:
        modality = "picture" if kind == "picture" else ""
        return Look(kind, sources=(Source(kind, (file,), name, modality=modality, shape=shape()),))
    except CaseError as error:
        return Look("stopped", error=error)


def _zip(file: Path, alone: bool) -> Look:
    try:
        return Look("zip", members=check_archive(file))
    except UnsafeInputError as error:
        if alone:
            raise
        return Look("stopped", error=CaseError(str(error), "unsafe-archive"))
    except CaseError as error:
        return Look("stopped", error=error)


def _unknown(file: Path, head: bytes, alone: bool) -> Look:
    """Neither DICOM nor anything else that we read."""
    suffix = "".join(file.suffixes[-2:]).lower() if file.name.lower().endswith(".gz") else file.suffix.lower()
    if suffix == ".img" and any(file.with_suffix(end).is_file() for end in (".hdr", ".HDR")):
        return RUBBISH
    if suffix in VOLUME_SUFFIXES or alone:
        found = f"not an image in a format that is read (starts with {head[:8]!r})"
        return _cannot("stopped", file, head, found, "unknown-format")
    if suffix in RUBBISH_SUFFIXES:
        return RUBBISH
    if not suffix and head and is_text(head):
        return _cannot("broken", file, head, "plain text where a slice is expected", PLAIN_TEXT)
    if _may_be_slice(file):
        return _cannot("broken", file, head, "no DICOM header", "not-dicom")
    return Look("listed", reason="no image in a format that is read")


def is_text(head: bytes) -> bool:
    """Whether a file that begins so is text: UTF-8 without control characters."""
    text = head.decode("utf-8", "replace")
    return "\ufffd" not in text[:-1] and all(letter.isprintable() or letter in "\t\n\r\f" for letter in text[:-1])


def _cannot(kind: str, file: Path, head: bytes, found: str, code: str) -> Look:
    if not head:
        found, code = "the file is empty (0 bytes)", "empty-file"
    return Look(kind, error=CaseError(f"{file}: {found}. {AGAIN}", code))


def _may_be_slice(file: Path) -> bool:
    """Whether a name is one that slices have."""
    suffix = file.suffix.lower()
    return suffix in DICOM_SUFFIXES or suffix.lstrip(".").isdecimal()


def look_into_members(
    archive: Path, names: Sequence[str], options: ReadOptions = DEFAULT
) -> Iterator[tuple[Path, Look]]:
    """Look inside the files of a zip archive that was checked, unpacked one by one and as little as their headers need.

    Args:
        archive: the zip file.
        names: of the members.
        options: the ways out that the user has chosen.

    Returns:
        for each the path that it is called by, and what it is.
    """
    modified = archive.stat().st_mtime_ns
    with temporary_folder() as folder, zipfile.ZipFile(archive) as opened:
        listed = sorted(opened.namelist())
        there = frozenset(listed)
        for name in names:
            path = archive / name
            header = name[:-4] if path.suffix.lower() == ".img" else None
            if RUBBISH_NAMES.match(path.name) or (header and {f"{header}.hdr", f"{header}.HDR"} & there):
                yield path, RUBBISH
            elif path.suffix.lower() == ".zip":
                yield path, NESTED
            else:
                yield path, _member(opened, name, with_siblings(name, listed), folder, modified, options)


def _member(
    archive: zipfile.ZipFile,
    name: str,
    siblings: Sequence[str],
    folder: Path,
    modified: int,
    options: ReadOptions,
) -> Look:
    target = folder / Path(name).name
    virtual = Path(str(archive.filename)) / name
    unpacked = [folder / Path(other).name for other in siblings]
    try:
        for other, place in zip(siblings, unpacked, strict=True):
            unpack(archive, other, place)
        whole = unpack(archive, name, target, PREFIX_BYTES)
        look = look_into(target, options)
        enough = look.kind in ("rubbish", "listed", "zip") or (
            look.slices and 0 < look.slices[0].pixel_offset < PREFIX_BYTES
        )
        if not whole and not enough:
            unpack(archive, name, target)
            look = look_into(target, options)
    except (CaseError, OSError) as error:
        refusal = error if isinstance(error, CaseError) else unwritten(virtual, error)
        return Look("broken" if _may_be_slice(virtual) else "stopped", error=refusal)
    finally:
        for place in (*unpacked, target):
            with suppress(OSError):
                place.unlink()
    if look.kind == "zip":
        return NESTED
    if look.error is not None:
        look.error.args = (str(look.error).replace(str(target), str(virtual)),)
    slices = tuple(replace(one, path=virtual, modified=modified) for one in look.slices)
    sources = tuple(
        replace(one, files=tuple(virtual.with_name(file.name) for file in one.files)) for one in look.sources
    )
    return replace(look, slices=slices, sources=sources)
