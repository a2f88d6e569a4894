"""How things are named and told apart: checksums, salted ids of cases, the files that stand beside an output."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..transforms.read_options import ReadOptions
from ..transforms.writers import write_text

FILE_SUFFIXES = (".nii.gz", ".nii", ".png")


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex digits."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def digest_of(files: Iterable[Path]) -> str:
    """SHA-256 over the digests of the files, in the order given."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(bytes.fromhex(file_digest(path)))
    return digest.hexdigest()


def states_of(files: Iterable[Path], root: Path) -> tuple[str, str]:
    """Two digests of files as they lie on the disk.

    Args:
        files: to be looked at.
        root: what their names are relative to.

    Returns:
        One of their names, sizes and times, which is another one where a file changed; and one of their names and
        sizes, which a copy of the files shares.

    Raises:
        OSError: one of them is not there.
    """
    timed, copied = hashlib.sha256(), hashlib.sha256()
    base = os.path.join(os.fspath(root), "")
    for path in files:
        name = os.fspath(path)
        status = os.stat(name)
        state = b"%b\0%d\n" % (os.fsencode(name.removeprefix(base)), status.st_size)
        copied.update(state)
        timed.update(b"%b%d\n" % (state, status.st_mtime_ns))
    return timed.hexdigest(), copied.hexdigest()


def case_id(salt: bytes | str, *parts: str) -> str:
    """`case-` and 12 hex digits of a keyed hash of `parts`; nothing of them can be read back without the salt."""
    key = salt.encode() if isinstance(salt, str) else salt
    return (
        f"case-{hmac.new(key, chr(0).join(parts).encode('utf-8', 'surrogateescape'), hashlib.sha256).hexdigest()[:12]}"
    )


def salt_of(out: Path, salt_file: Path | None = None) -> str:
    """The salt of an output folder: what `salt_file` holds, else made once and kept in `salt.txt` of the folder."""
    if salt_file is not None:
        try:
            text = Path(salt_file).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--salt {salt_file}: cannot be read as text ({error}); give a text file") from None
        if len(text) < 8:
            raise UsageError(f"--salt {salt_file}: holds {len(text)} characters, a salt needs 8 or more")
        return text
    kept = beside(Path(out), "salt.txt")
    if kept.exists():
        return kept.read_text().strip()
    salt = secrets.token_hex(16)
    write_text(kept, salt + "\n")
    return salt


def salt_mark(salt: Path | str | None) -> str | None:
    """A word that tells salt files apart and gives none away; None where the salt is made by the run."""
    return None if salt is None else case_id(salt_of(Path(), Path(salt)), "salt").removeprefix("case-")


def options_mark(options: ReadOptions) -> dict[str, Any]:
    """The options of reading that are not at their default, for a manifest; a file is told by what it holds.

    Raises:
        UsageError: the file of the geometry cannot be read.
    """
    chosen = dict(options.chosen())
    if options.geometry is not None:
        try:
            chosen["geometry"] = file_digest(options.geometry)
        except OSError as error:
            raise UsageError(f"--geometry {options.geometry}: cannot be read ({error.strerror}); give a file") from None
    return chosen


def is_file_output(out: Path) -> bool:
    """Whether OUT means one file: it carries the suffix of one and is no folder."""
    return out.name.lower().endswith(FILE_SUFFIXES) and not out.is_dir()


def beside(out: Path, name: str) -> Path:
    """Where a book-keeping file stands: inside an output folder, or beside an output file under its base name."""
    if not is_file_output(out):
        return out / name
    base = next(out.name[: -len(end)] for end in FILE_SUFFIXES if out.name.lower().endswith(end))
    return out.with_name(f".{base}{name}" if name.startswith(".") else f"{base}.{name}")
