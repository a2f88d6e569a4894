"""Zip archives as folders: checked before anything of them is unpacked, and then one file at a time.

A member is called by the archive's path and its own name below it: `a.zip/inner/name`. What could leave the folder, or
grow beyond all reason, makes the whole archive unsafe. Temporary folders are locked by the process that works in them,
so that those of a killed process can be told and removed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import stat
import struct
import tempfile
import time
import zipfile
import zlib
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from ..errors import CaseError, UnsafeInputError

MAGIC = (b"PK\3\4", b"PK\5\6")
MOST_MEMBERS = 100_000
MOST_DIRECTORY_BYTES = 32 << 20
MOST_BYTES = 1 << 40
FREE_BYTES = 256 << 20  # as much may come out of any archive; above it the ratio is held
MOST_RATIO = 200
PREFIX_BYTES = 1 << 20
ENTRY = struct.Struct("<4s24xHHH12x")  # of the central directory: signature, lengths of name, extra field and comment
TEMPORARY = "voxelwise-zip-"
LOCK = "lock"
WAY_OUT = "Unpack it yourself if you trust it, and give the folder"
DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, struct.error)


def is_zip(head: bytes) -> bool:
    """Whether a file that begins so is a zip archive."""
    return head.startswith(MAGIC)


def check_archive(path: Path) -> tuple[str, ...]:
    """The names of the files in an archive, after the archive was held against the limits.

    Raises:
        UnsafeInputError: too many or too large, a name that leads out of the folder, a link, members that share bytes.
        CaseError: a damaged archive.
    """
    try:
        check_directory(path)
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except DAMAGED as error:
        raise CaseError(
            f"{path}: a zip archive that cannot be read ({type(error).__name__}). Copy it again", "unreadable"
        ) from error
    size = path.stat().st_size
    total = sum(member.file_size for member in members)
    if sum(member.compress_size for member in members) > size:
        raise unsafe(path, "its members share bytes, so that little becomes much")
    if total > MOST_BYTES or total > max(FREE_BYTES, MOST_RATIO * size):
        raise unsafe(path, f"{size} bytes become {total}, expected at most {MOST_RATIO} times as many")
    names = set()
    for member in members:
        kind = stat.S_IFMT(member.external_attr >> 16)
        if kind and not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
            raise unsafe(path, "it holds a link or a special file")
        if leads_out(member.filename):
            raise unsafe(path, "it holds a name that leads out of its folder")
        name = PurePosixPath(member.filename).as_posix()
        if name in names:
            raise unsafe(path, "it holds two files of one name")
        names.add(name)
    return tuple(sorted(member.filename for member in members if not member.is_dir()))


def check_directory(path: Path) -> None:
    """Count the members before a list is made of them.

    Raises:
        UnsafeInputError: too many.
        CaseError: no directory.
    """
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 65557))
        tail = file.read()
        place = tail.rfind(b"PK\5\6")
        if place < 0 or len(tail) < place + 22:
            raise CaseError(f"{path}: a zip archive without its end: it is cut off. Copy it again", "truncated")
        length = struct.unpack_from("<I", tail, place + 12)[0]
        end = max(0, size - len(tail)) + place
        locator = tail[place - 20 : place] if place >= 20 else b""
        if locator.startswith(b"PK\6\7"):
            file.seek(struct.unpack_from("<Q", locator, 8)[0])
            large = file.read(56)
            if large.startswith(b"PK\6\6") and len(large) == 56:
                length = struct.unpack_from("<Q", large, 40)[0]
                end = struct.unpack_from("<Q", locator, 8)[0]
        if length > MOST_DIRECTORY_BYTES:
            raise unsafe(path, f"its list of files has {length} bytes, expected at most {MOST_DIRECTORY_BYTES}")
        file.seek(max(0, end - length))
        directory = file.read(length)
    place = count = 0
    while place + ENTRY.size <= len(directory):
        signature, *lengths = ENTRY.unpack_from(directory, place)
        if signature != b"PK\1\2":
            break
        place += 46 + sum(lengths)
        count += 1
        if count > MOST_MEMBERS:
            raise unsafe(path, f"it holds more than {MOST_MEMBERS} files")


def leads_out(name: str) -> bool:
    """Whether a member's name is absolute, climbs, or is no plain name."""
    parts = re.split(r"[/\\]", name)
    return name.startswith(("/", "\\")) or ".." in parts or "\0" in name or re.match(r"^[A-Za-z]:", name) is not None


def unsafe(path: Path, found: str) -> UnsafeInputError:
    """The refusal of an archive."""
    return UnsafeInputError(f"{path}: an unsafe zip archive: {found}. {WAY_OUT}")


def with_siblings(name: str, names: Sequence[str]) -> list[str]:
    """The members that a header file in an archive may name as its data: called like it but for the suffix.

    Args:
        name: of the header file.
        names: of all members, sorted.
    """
    if not name.lower().endswith((".hdr", ".mhd", ".nhdr")):
        return []
    base = name[: name.rindex(".") + 1]
    found = []
    for place in range(bisect_left(names, base), len(names)):
        other = names[place]
        if not other.startswith(base):
            break
        if other != name and "/" not in other[len(base) :] and other.count(".", len(base)) < 2:
            found.append(other)
    return found


def unpack(archive: zipfile.ZipFile, name: str, target: Path, limit: int | None = None) -> bool:
    """Write one member, whole or as a prefix in a file of the full length.

    Args:
        archive: one that was checked.
        name: of the member.
        target: file to write.
        limit: bytes of the prefix.

    Returns:
        Whether it is whole.

    Raises:
        CaseError: it is encrypted, damaged, or packed in a way that is not read.
        OSError: the target cannot be written.
    """
    path = f"{archive.filename}/{name}"
    member = archive.getinfo(name)
    if member.flag_bits & 1:
        raise CaseError(f"{path}: is encrypted. Unpack it yourself, and give the folder", "encrypted")
    whole = limit is None or member.file_size <= limit
    try:
        with archive.open(member) as packed, open(target, "wb") as file:
            if whole or limit is None:
                shutil.copyfileobj(packed, file, 1 << 20)
            else:
                file.write(packed.read(limit))
                file.truncate(member.file_size)
    except Exception as error:  # each codec has its own errors over damaged bytes, bz2 an OSError without a number
        if isinstance(error, MemoryError) or getattr(error, "errno", None) is not None:
            raise
        raise CaseError(
            f"{path}: cannot be unpacked ({type(error).__name__}). Copy the archive again", "truncated"
        ) from error
    return whole


def unwritten(path: Path, error: OSError) -> CaseError:
    """The refusal of a member that no file can be made of.

    Raises:
        OSError: the error itself, where the disk is full: nothing is wrong with the archive.
    """
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise error
    return CaseError(f"{path}: cannot be unpacked ({error.strerror or error}). {WAY_OUT}", "unreadable")


def archive_of(path: Path) -> Path | None:
    """The zip archive that a path leads into; None for what lies on the disk itself, or nowhere."""
    if os.path.lexists(path):
        return None
    above = next((parent for parent in path.parents if os.path.lexists(parent)), None)
    return above if above is not None and above.is_file() else None


@contextlib.contextmanager
def unpacked(files: Sequence[Path]) -> Iterator[tuple[tuple[Path, ...], dict[str, str]]]:
    """The files, those in zip archives unpacked into a temporary folder.

    Returns:
        the files as they lie on the disk, and for each temporary folder the archive that it stands for.

    Raises:
        UnsafeInputError: an archive is not safe.
        CaseError: a member cannot be unpacked.
    """
    archives: dict[Path, list[str]] = {}
    homes: list[Path | None] = []
    for file in files:
        homes.append(home := archive_of(file))
        if home is not None:
            archives.setdefault(home, []).append(file.relative_to(home).as_posix())
    if not archives:
        yield tuple(files), {}
        return
    with temporary_folder() as folder:
        folders = {archive: folder / str(number) for number, archive in enumerate(archives)}
        for archive, wanted in archives.items():
            _unpack_all(archive, wanted, folders[archive])
        places = [
            file if home is None else folders[home] / file.relative_to(home)
            for file, home in zip(files, homes, strict=True)
        ]
        yield tuple(places), {str(place): str(archive) for archive, place in folders.items()}


def _unpack_all(path: Path, wanted: Sequence[str], folder: Path) -> None:
    names = check_archive(path)
    called = {PurePosixPath(name).as_posix(): name for name in names}
    if gone := set(wanted) - called.keys():
        raise CaseError(f"{path}/{min(gone)}: is no longer in the archive. Run again", "changed")
    members = [called[one] for one in wanted]
    with zipfile.ZipFile(path) as archive:
        for name in dict.fromkeys((*members, *(other for one in members for other in with_siblings(one, names)))):
            target = folder / name
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                unpack(archive, name, target)
            except OSError as error:
                raise unwritten(path / name, error) from error


@contextlib.contextmanager
def temporary_folder(prefix: str = TEMPORARY) -> Iterator[Path]:
    """A folder that is removed when the block ends, or by the next process after this one was killed."""
    remove_leftovers(prefix)
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    try:
        with open(folder / LOCK, "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield make(folder / "files")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def make(folder: Path) -> Path:
    """A new folder."""
    folder.mkdir()
    return folder


def remove_leftovers(prefix: str = TEMPORARY) -> None:
    """Remove the temporary folders of processes that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        try:
            with open(folder / LOCK, "rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except FileNotFoundError:  # killed before it was locked, or about to be
            with contextlib.suppress(OSError):
                if time.time() - folder.stat().st_mtime > 60:
                    folder.rmdir()
        except OSError:
            continue  # in use, or another user's
