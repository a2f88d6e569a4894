"""Text that stays one line, whatever a file name or a header holds."""

from __future__ import annotations


def printable(text: str) -> str:
    """Line breaks, control characters and bytes that are no text are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)
