"""What stands behind `$` in a MONAI config, as far as it is a literal in disguise; nothing is evaluated.

Understood are references, words, numbers, lists of them, True, False and None, `+` between two of a kind, `len(...)`,
`A if B else C` with a `not`, and the names of number types. Everything else stays what it is: text.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

TOKEN = re.compile(
    r"\s*(?:(?P<reference>@\w+(?:(?:\#|::)[\w-]+)*)"
    r"|(?P<word>'[^'\\]*'|\"[^\"\\]*\")"
    r"|(?P<number>-?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)"
    r"|(?P<name>[A-Za-z_][\w.]*)"
    r"|(?P<sign>[()\[\],+]))"
)
CONSTANTS = {"True": True, "False": False, "None": None}
DTYPE = re.compile(r"(?:torch|numpy|np)\.(float\d*|double|half|u?int\d+|long|bool_?)")
LONGEST = 500
DEEPEST = 20


@dataclass(frozen=True)
class Expression:
    """A value that is a program, kept as it was written.

    Args:
        text: without the dollar sign.
    """

    text: str

    def __str__(self) -> str:
        short = " ".join(self.text.split())
        return f"${short[:77]}..." if len(short) > 80 else f"${short}"


class _NotPlain(Exception):
    """The text is a program."""


def read_words(text: str, look_up: Callable[[str], Any]) -> Any:
    """The value that a text behind `$` stands for, or an `Expression`.

    Args:
        text: without the dollar sign.
        look_up: what a reference, without its @, leads to.
    """
    try:
        return _Words(text, look_up).value()
    except _NotPlain:
        return Expression(text)


class _Words:
    """A text and how far it is read."""

    def __init__(self, text: str, look_up: Callable[[str], Any]) -> None:
        self.tokens = _tokens(text)
        self.at = 0
        self.depth = 0
        self.look_up = look_up

    def value(self) -> Any:
        found = self._choice()
        if self.at < len(self.tokens):
            raise _NotPlain
        return found

    def _next(self) -> tuple[str, str]:
        if self.at >= len(self.tokens):
            return "end", ""
        self.at += 1
        return self.tokens[self.at - 1]

    def _is_next(self, text: str) -> bool:
        if self.at < len(self.tokens) and self.tokens[self.at] in (("name", text), ("sign", text)):
            self.at += 1
            return True
        return False

    def _choice(self) -> Any:
        self.depth += 1
        if self.depth > DEEPEST:
            raise _NotPlain
        found = self._sum()
        if self._is_next("if"):
            turned = self._is_next("not")
            asked = self._sum()
            if not self._is_next("else") or not isinstance(asked, bool):
                raise _NotPlain
            other = self._choice()
            found = found if asked is not turned else other
        self.depth -= 1
        return found

    def _sum(self) -> Any:
        found = self._atom()
        while self._is_next("+"):
            other = self._atom()
            if type(found) is not type(other) or not isinstance(found, (str, list, int, float)):
                raise _NotPlain
            found = found + other
            if isinstance(found, (str, list)) and len(found) > LONGEST:
                raise _NotPlain
        return found

    def _atom(self) -> Any:
        kind, text = self._next()
        if kind == "reference":
            found = self.look_up(text[1:])
            if isinstance(found, Expression):
                raise _NotPlain
            return found
        if kind == "word":
            return text[1:-1]
        if kind == "number":
            return float(text) if re.search(r"[.eE]", text) else int(text)
        if kind == "name":
            return self._named(text)
        if text in ("(", "["):
            return self._list("]" if text == "[" else ")")
        raise _NotPlain

    def _named(self, name: str) -> Any:
        if name in CONSTANTS:
            return CONSTANTS[name]
        if dtype := DTYPE.fullmatch(name):
            return dtype[1]
        if name == "not":
            found = self._atom()
            if isinstance(found, bool):
                return not found
        if name == "len" and self._is_next("("):
            found = self._choice()
            if isinstance(found, (str, list, dict)) and self._is_next(")"):
                return len(found)
        raise _NotPlain

    def _list(self, end: str) -> Any:
        found: list[Any] = []
        commas = 0
        while not self._is_next(end):
            found.append(self._choice())
            if self._is_next(","):
                commas += 1
            elif self._is_next(end):
                break
            else:
                raise _NotPlain
        return found[0] if end == ")" and len(found) == 1 and not commas else found


def _tokens(text: str) -> list[tuple[str, str]]:
    """Kinds and texts of the parts of a text."""
    text = text.strip()
    if len(text) > LONGEST:
        raise _NotPlain
    found, at = [], 0
    while at < len(text):
        match = TOKEN.match(text, at)
        if match is None:
            raise _NotPlain
        found.append((str(match.lastgroup), match.group(str(match.lastgroup))))
        at = match.end()
    return found
