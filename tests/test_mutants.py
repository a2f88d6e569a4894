"""A hundred seeded mutants of each kind: nothing crashes, and nothing is wrong in silence that could be shown.

`python scripts/mutants.py` judges thousands, in processes of their own.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import mutants
import pytest

SEED = 20261
MEMORY = 2 << 30


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> mutants.Bench:
    return mutants.Bench(tmp_path_factory.mktemp("bench"))


@pytest.fixture(autouse=True)
def limited_memory() -> Iterator[None]:
    """2 GB above what the process has."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("kind", mutants.KINDS)
def test_a_hundred_mutants(bench: mutants.Bench, kind: str) -> None:
    verdicts = [bench.judge(kind, SEED, number) for number in range(100)]
    assert not [verdict for verdict in verdicts if verdict.word in ("traceback", "memory")]
    assert not [verdict for verdict in verdicts if mutants.unexplained(verdict)]
    assert not [verdict for verdict in verdicts if verdict.false_alarm]
    assert {"right", "refused"} <= {verdict.word for verdict in verdicts}


def test_a_mutant_is_made_from_its_numbers_alone(bench: mutants.Bench) -> None:
    for kind in mutants.KINDS:
        assert bench.judge(kind, 1, 7) == bench.judge(kind, 1, 7)
    assert len({bench.judge("nifti_header", 1, number).what for number in range(20)}) > 15


def test_the_judge_sees_what_is_wrong(bench: mutants.Bench) -> None:
    """A slope of 2 is wrong in silence and explained; the same with no explanation would not pass."""
    place = bench.folder / "nifti_header"
    before = (place / "image.nii").read_bytes()
    scaled = bytearray(before)
    scaled[112:116] = b"\x00\x00\x00\x40"
    (place / "image.nii").write_bytes(scaled)
    assert bench.verdict(place, "nifti_header") == ("silently wrong", "")
    (place / "image.nii").write_bytes(before)
    assert bench.verdict(place, "nifti_header") == ("right", "")
    verdict = mutants.Verdict("nifti_header-0", "silently wrong", "dim")
    assert mutants.unexplained(verdict)
