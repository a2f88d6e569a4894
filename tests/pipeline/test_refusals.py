"""What every stage refuses alike."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch
from voxelwise.errors import CaseError, UnsafeInputError, UsageError
from voxelwise.pipeline.refusals import refusal, refuse_missing, refuse_overlap


def test_an_output_inside_its_input(tmp_path: Path) -> None:
    refuse_overlap(tmp_path / "in", tmp_path / "out")
    with pytest.raises(UsageError, match="is the input; nothing is written over what is read"):
        refuse_overlap(tmp_path, tmp_path / "." / "x" / "..")
    with pytest.raises(UsageError, match=r"lies inside the input .* would be read as input the next time"):
        refuse_overlap(tmp_path, tmp_path / "out")
    refuse_overlap(tmp_path, tmp_path / "out", walked=False)


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (CaseError("a voxel is missing", "cut"), "cut", "a/x.nii: a voxel is missing"),
        (CaseError("x.nii: a voxel is missing", "cut"), "cut", "x.nii: a voxel is missing"),
        (CaseError("a: slice 3 is missing", "gap"), "gap", "a: slice 3 is missing"),
        (torch.OutOfMemoryError("CUDA"), "memory", "a/x.nii: needs more memory than there is"),
        (RuntimeError("can't allocate memory"), "memory", "a/x.nii: needs more memory"),
        (OSError(errno.ENOMEM, "no memory"), "memory", "a/x.nii: needs more memory"),
        (PermissionError(errno.EACCES, "Permission denied"), "unreadable", "a/x.nii: cannot be read (Permission"),
    ],
)
def test_exceptions_about_a_case(error: Exception, code: str, text: str) -> None:
    found = refusal(error, ["a/x.nii"])
    assert found is not None
    assert found.code == code
    assert str(found).startswith(text)


def test_exceptions_about_more_than_a_case() -> None:
    with pytest.raises(UnsafeInputError, match="a pickle"):
        refusal(UnsafeInputError("a pickle"), ["x.nii"])
    with pytest.raises(OSError, match="full"):
        refusal(OSError(errno.ENOSPC, "full"), ["x.nii"])
    assert refusal(ZeroDivisionError(), ["x.nii"]) is None


def test_memory_behind_another_error() -> None:
    wrapped = RuntimeError("applying transform")
    wrapped.__cause__ = MemoryError()
    found = refusal(wrapped, ["x.nii"])
    assert found is not None
    assert found.code == "memory"


def test_an_input_that_is_not_there_or_holds_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere does not exist; give a file or a folder"):
        refuse_missing(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="is empty; give a file or a folder"):
        refuse_missing(tmp_path)
    (tmp_path / "file").touch()
    refuse_missing(tmp_path)
