"""What is shown, and where."""

from __future__ import annotations

import io
import logging
import sys
from pathlib import Path

import pytest
from voxelwise.pipeline.outcome import Outcome
from voxelwise.scripts.terminal import Terminal, finish, one_line, table
from voxelwise.transforms.volume import Entry


class Screen(io.StringIO):
    """A standard error that is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def log() -> logging.Logger:
    logger = logging.Logger("voxelwise.stage", logging.INFO)
    logger.addHandler(Terminal())
    return logger


def test_progress_elsewhere_is_a_line_now_and_then(log: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(1, 101):
        log.info("converted %d of %d: %s", number, 100, f"case {number}")
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["converted 1 of 100: case 1", "converted 100 of 100: case 100"]


def test_progress_on_a_terminal_is_a_bar(log: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    log.info("converted %d of %d: %s", 1, 4, "first")
    log.info("scored %d of %d: %s", 1, 2, "first")
    log.warning("%s: stopped: %s", "second", "cut off")
    log.handlers[0].close()
    assert "voxelwise: second: stopped: cut off" in screen.getvalue()
    assert "scored" in screen.getvalue()


def test_quiet_shows_warnings_alone(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.Logger("voxelwise.stage", logging.INFO)
    logger.addHandler(Terminal(quiet=True))
    logger.info("converted %d of %d: %s", 1, 4, "first")
    logger.warning("a.dcm: cut\noff")
    assert capsys.readouterr().err == "voxelwise: a.dcm: cut off\n"


def test_tables_are_as_wide_as_they_need_to_be() -> None:
    text = table(("name", "n"), [("unet", 1), ("a long\nname", 22)])
    assert text == "name         n\n-----------  --\nunet         1\na long name  22"


def test_one_line() -> None:
    assert one_line(" a \n\n b\x1b[31m \udcff") == r"a b\x1b[31m \udcff"


def test_what_is_no_volume_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    finish("convert", Outcome(Path("out"), ("a",), facts={"listed": 6}), as_json=False)
    assert capsys.readouterr().err == (
        "convert: 1 in = 1 done + 0 stopped + 0 skipped; 6 found that are no volumes -> out\n"
    )


def test_notes_are_one_line_a_code_with_the_number_of_cases(capsys: pytest.CaptureFixture[str]) -> None:
    """A thousand of one code hide none of the other."""
    flood = tuple(Entry("padding", f"slice {number}") for number in range(1000))
    notes = {"a": flood, "b": (flood[0], Entry("uneven", "once"))}
    outcome = Outcome(Path("out\x1b[31m"), ("a", "b"), notes=notes)
    assert finish("convert", outcome, as_json=False) == 0
    assert capsys.readouterr().err.splitlines() == [
        "convert: 2 in = 2 done + 0 stopped + 0 skipped; 1002 repairs and notes -> out\\x1b[31m",
        "  padding: 2 cases",
        "  uneven: 1 case",
    ]
