"""One run at a time in an output folder: a lock file, taken over where its process is dead.

The lock is linked into place with its content, so that nobody ever reads half of one. A process is known by host, boot,
pid and the moment it started, so that a pid that was given out again does not keep a dead lock alive. A lock of another
machine cannot be judged from here: it is respected, and the message says which file to delete.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from contextlib import suppress
from pathlib import Path

from ..errors import FolderInUseError


def process_start(pid: int) -> str | None:
    """When a process started, as a word that no later one of that pid shares; None where there is no such process."""
    try:
        ticks = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        if ticks[0] == "Z":
            return None  # ended, its parent has not noticed yet
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{ticks[19]}"
    except (OSError, IndexError):
        pass
    if Path("/proc/self/stat").exists():
        return None
    try:  # no /proc here: a signal that does nothing asks whether the process is there
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass
    return "running"


class FolderLock:
    """Hold `path` from `acquire` to `release`.

    Args:
        path: the lock file.
        what: the folder or file that is locked, for the message.
    """

    def __init__(self, path: Path, what: Path) -> None:
        self.path, self.what = path, what
        self.text = ""

    def acquire(self, wait_seconds: float = 0.0) -> None:
        """Take the lock.

        Args:
            wait_seconds: how long another holder is waited for.

        Raises:
            FolderInUseError: a living process, or one on another machine, holds it.
        """
        until = time.monotonic() + wait_seconds
        while True:
            try:
                return self._acquire()
            except FolderInUseError:
                if time.monotonic() >= until:
                    raise
            time.sleep(0.05)

    def check(self) -> None:
        """Take nothing, only look.

        Raises:
            FolderInUseError: a living process, or one on another machine, holds the lock.
        """
        with suppress(FileNotFoundError):
            self._refuse_if_alive(self.path.read_text())

    def _acquire(self) -> None:
        owner = {"host": socket.gethostname(), "pid": os.getpid(), "start": process_start(os.getpid())}
        text = json.dumps({**owner, "token": secrets.token_hex(8)})
        for _ in range(20):
            if self._link(text):
                self.text = text
                return
            try:
                held = self.path.read_text()
            except FileNotFoundError:
                continue  # released in between
            self._refuse_if_alive(held)
            self._bury(held)
        raise FolderInUseError(
            f"{self.what} is in use by other runs that keep taking {self.path.name}; try again later"
        )

    def release(self) -> None:
        """Give the lock back, if it is still ours."""
        with suppress(OSError):
            if self.text and self.path.read_text() == self.text:
                self.path.unlink()
        self.text = ""

    def _link(self, text: str) -> bool:
        whole = self.path.with_name(f"{self.path.name}.{secrets.token_hex(6)}")
        whole.write_text(text)
        try:
            os.link(whole, self.path)
        except FileExistsError:
            return False
        except OSError:  # a file system without links
            try:
                with self.path.open("x") as stream:
                    stream.write(text)
            except FileExistsError:
                return False
        finally:
            whole.unlink()
        return True

    def _refuse_if_alive(self, held: str) -> None:
        try:
            owner = json.loads(held)
            host, pid, start = str(owner["host"]), int(owner["pid"]), owner["start"]
        except (ValueError, KeyError, TypeError):
            return  # not a lock of ours, or a broken one
        here = host == socket.gethostname()
        if here and process_start(pid) != start:
            return
        where = "" if here else f" on {host}"
        way_out = "wait for it or stop it" if here else f"if that run is dead, delete {self.path}"
        raise FolderInUseError(f"{self.what} is in use by another run (process {pid}{where}); {way_out}")

    def _bury(self, held: str) -> None:
        grave = self.path.with_name(f"{self.path.name}.{secrets.token_hex(6)}")
        try:
            os.rename(self.path, grave)
        except FileNotFoundError:
            return  # somebody else buried it
        if grave.read_text() != held:  # a fresh lock, taken between our look and our rename: it goes back
            with suppress(OSError):
                os.link(grave, self.path)
        grave.unlink()
