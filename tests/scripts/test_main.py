"""The command line: help, errors as one line and an exit code, JSON and progress where they belong."""

from __future__ import annotations

import errno
import importlib
import inspect
import json
import logging
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import phantoms
import pytest
import typer
import voxelwise
from voxelwise import errors
from voxelwise.pipeline.archive import convert as convert_stage
from voxelwise.scripts.main import VERBS, explain, main
from voxelwise.scripts.options import READING, parse_options
from voxelwise.transforms.read_options import ReadOptions

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _ordinary_logging() -> Iterator[None]:
    """`main` sets the loggers up for a process of its own; other tests get them back as they were."""
    ours = logging.getLogger("voxelwise")
    before = ours.propagate, list(ours.handlers), ours.level
    with warnings.catch_warnings():
        yield
    ours.propagate, ours.handlers[:] = before[0], before[1]
    ours.setLevel(before[2])


@pytest.fixture
def raising(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Let the `convert` stage raise."""

    def set_up(error: BaseException) -> None:
        def convert(*arguments: object, **options: object) -> None:
            raise error

        monkeypatch.setattr(convert_stage, "convert", convert)

    return set_up


def test_help_loads_nothing_heavy() -> None:
    code = "import sys; from voxelwise.scripts.main import main; assert main(['--help']) == 0;"
    code += "print(sorted({'torch', 'monai', 'numpy', 'pydicom', 'rich', 'yaml'} & sys.modules.keys()))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *help_lines, loaded = run.stdout.splitlines()
    assert loaded == "[]"
    text = "\n".join(help_lines)
    assert all(f"\n  {verb} " in text for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_explains_its_options(verb: str, capsys: Capture) -> None:
    assert main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"Usage: voxelwise {verb} ")
    assert "--debug" in text


def test_verbs_load_no_stage_for_their_help() -> None:
    code = "import sys; from voxelwise.scripts.main import main, VERBS;"
    code += "assert all(main([verb, '--help']) == 0 for verb in VERBS);"
    code += "print(sorted({'torch', 'monai', 'numpy', 'pydicom'} & sys.modules.keys()))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "[]"


SHOWN_ONLY = {"as_json", "quiet", "debug", "show", "return"}  # what the command line does with a result
# mappings in Python; the progress bar, which --quiet decides
NOT_OPTIONS = {"evaluate": {"labels"}, "train": {"bar"}, "demo": {"training", "archive"}}
READERS = {"convert", "index", "predict", "dataset"}
WITHOUT = {"dataset": {"phi"}, "predict": {"phi"}}  # nothing of a header stands in what these write
FUNCTIONS = {
    **{verb: verb.replace("-", "_") for verb in VERBS},
    "networks": "describe_networks",
    "export": "export_model",
}


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_options_are_those_of_the_function(verb: str) -> None:
    """One word for one thing: what a verb calls an option is what its function calls it."""
    function = getattr(voxelwise, FUNCTIONS[verb])
    theirs = {name for name, one in inspect.signature(function).parameters.items() if one.kind != one.VAR_KEYWORD}
    ours = set(importlib.import_module(f"voxelwise.scripts.{verb.replace('-', '_')}").run.__annotations__) - SHOWN_ONLY
    if verb in READERS:  # the ways out when a source is refused are one record, `ReadOptions`
        assert ours & set(READING) == set(READING) - WITHOUT.get(verb, set())
        ours = ours - set(READING) | {"options"}
    assert ours == theirs - NOT_OPTIONS.get(verb, set())


def test_each_way_out_of_the_record_is_an_option() -> None:
    assert list(READING) == [field.name for field in fields(ReadOptions)]


WAYS_OUT = {
    "strict": True,
    "gaps": "resample",
    "time": "3",
    "geometry": Path("geometry.json"),
    "affine": "qform",
    "group_by": ("EchoTime", "SeriesNumber"),
    "max_voxels": 9,
    "refuse_lossy": True,
    "refuse_burned_in": True,
    "phi": True,
}
NAMED = {
    "convert": ["in", "out"],
    "index": ["in"],
    "dataset": ["in", "labels", "out"],
    "predict": ["model", "in", "out"],
}


@pytest.mark.parametrize("verb", sorted(READERS))
def test_the_ways_out_reach_the_stage_as_one_record(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("model", "in"):
        (tmp_path / name).mkdir()
    taken: list[ReadOptions] = []

    def stage(*arguments: object, options: ReadOptions, **others: object) -> None:
        taken.append(options)
        raise errors.UsageError("seen")

    monkeypatch.setattr(sys.modules[getattr(voxelwise, verb).__module__], verb, stage)
    values = {name: value for name, value in WAYS_OUT.items() if name not in WITHOUT.get(verb, set())}
    words = [verb, *NAMED[verb]]
    assert main(words) == 2
    for name, value in values.items():
        text = ", ".join(value) if isinstance(value, tuple) else str(value)
        words += [f"--{name.replace('_', '-')}", *([] if value is True else [text])]
    assert main(words) == 2
    assert taken == [ReadOptions(), ReadOptions(**values)]
    assert main([verb, *NAMED[verb], "--gaps", "guess"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "voxelwise: --gaps 'guess': expected one of stop, resample"
    assert len(taken) == 2


@pytest.mark.parametrize("verb", sorted(WITHOUT))
def test_what_a_verb_does_not_write_it_is_not_asked_to_keep(verb: str, capsys: Capture) -> None:
    assert main([verb, *NAMED[verb], "--phi"]) == 2
    assert "No such option: --phi" in capsys.readouterr().err


def test_no_words_show_the_help(capsys: Capture) -> None:
    assert main([]) == 0
    assert "Usage: voxelwise" in capsys.readouterr().out


def test_version(capsys: Capture) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("voxelwise 0.")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["prdict"], "unknown verb 'prdict'; did you mean 'predict'?"),
        (["convert"], "Missing argument 'INPUT' (see voxelwise convert --help)"),
        (["convert", "a", "b", "--ovrwrite"], "No such option: --ovrwrite"),
        (["convert", "a", "b", "--workers", "0"], "Invalid value for '--workers'"),
        (["convert", "nowhere", "out"], "nowhere does not exist; give a file or a folder"),
        (["index", "nowhere"], "nowhere does not exist"),
        (["predict", "nowhere", "in", "out"], "path 'nowhere' does not exist"),
        (["convert", ".", "out", "--name", "x"], "lies inside the input"),
    ],
)
def test_wrong_use_is_one_line(
    words: list[str], message: str, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.err.startswith("voxelwise: ")
    assert (shown.err.count("\n"), shown.out) == (1, "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (errors.UsageError("--x: wrong"), 2, "--x: wrong"),
        (errors.CaseError("a.dcm: cut"), 3, "a.dcm: cut"),
        (errors.NothingDoneError("none"), 4, "none"),
        (errors.UnsafeInputError("w: a pickle"), 5, "w: a pickle"),
        (errors.NoRoomError("full"), 6, "full"),
        (errors.FolderInUseError("in use"), 7, "in use"),
        (errors.InterruptedRunError("stopped"), 130, "stopped"),
        (KeyboardInterrupt(), 130, "interrupted; what was finished is kept"),
        (typer.Abort(), 130, "interrupted"),
        (ValueError("a window needs\n low < high"), 2, "a window needs low < high"),
        (TypeError("not a path"), 2, "not a path"),
        (OSError(errno.ENOSPC, "No space left on device", "x.nii"), 6, "x.nii: no space left on the disk"),
        (PermissionError(errno.EACCES, "Permission denied", "x.nii"), 2, "x.nii: Permission denied"),
        (MemoryError(), 6, "out of memory"),
        (
            ZeroDivisionError("division by zero"),
            1,
            "ZeroDivisionError: division by zero (a bug of ours; run again",
        ),
    ],
)
def test_errors_become_a_line_and_an_exit_code(
    error: BaseException, code: int, message: str, raising: Callable[[BaseException], None], capsys: Capture
) -> None:
    raising(error)
    assert main(["convert", "a", "b"]) == code
    shown = capsys.readouterr()
    assert shown.err.strip().splitlines()[-1].startswith(f"voxelwise: {message}")
    assert "Traceback" not in shown.err
    assert explain(error)[0] == code


def test_debug_shows_the_traceback(raising: Callable[[BaseException], None], capsys: Capture) -> None:
    raising(ZeroDivisionError("division by zero"))
    assert main(["convert", "a", "b", "--debug"]) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_json_of_an_error(raising: Callable[[BaseException], None], capsys: Capture) -> None:
    raising(errors.UsageError("--x: wrong"))
    assert main(["convert", "a", "b", "--json"]) == 2
    assert json.loads(capsys.readouterr().out) == {"command": "convert", "error": "--x: wrong", "exit_code": 2}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    phantoms.ct_series(tmp_path / "archive" / "good", seed=1)
    phantoms.ct_series(tmp_path / "archive" / "bad", seed=2)[3].unlink()
    return tmp_path / "archive"


def test_convert_tells_each_stop_once_and_sums_up(archive: Path, tmp_path: Path, capsys: Capture) -> None:
    assert main(["convert", str(archive), str(tmp_path / "out")]) == 3
    shown = capsys.readouterr()
    assert shown.out == ""
    lines = shown.err.splitlines()
    assert lines[-1] == f"convert: 2 in = 1 done + 1 stopped + 0 skipped -> {tmp_path / 'out'}"
    assert len([line for line in lines if "bad" in line and line.startswith("voxelwise: ")]) == 1
    assert main(["convert", str(archive), str(tmp_path / "out"), "--quiet"]) == 3
    again = capsys.readouterr().err.splitlines()
    assert (len(again), again[-1][:49]) == (2, "convert: 2 in = 0 done + 1 stopped + 1 skipped ->")


def test_convert_exit_codes(archive: Path, tmp_path: Path, capsys: Capture) -> None:
    assert main(["convert", str(archive / "good"), str(tmp_path / "one"), "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert main(["convert", str(archive / "bad"), str(tmp_path / "two")]) == 4
    assert main(["convert", str(archive / "bad"), str(tmp_path / "one")]) == 2
    assert "holds results of other settings (input: " in capsys.readouterr().err


def test_json_is_one_document(archive: Path, tmp_path: Path, capsys: Capture) -> None:
    assert main(["convert", str(archive), str(tmp_path / "out"), "--json"]) == 3
    result = json.loads(capsys.readouterr().out)
    assert result["counts"] == {"in": 2, "done": 1, "skipped": 0, "stopped": 1}
    assert (result["command"], result["exit_code"], result["failures"][0]["code"]) == ("convert", 3, "missing-slice")


def test_a_folder_in_use(archive: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".lock").write_text(json.dumps({"host": "elsewhere", "pid": 1, "start": "then"}))
    assert main(["convert", str(archive), str(tmp_path / "out")]) == 7
    assert "is in use by another run (process 1 on elsewhere)" in capsys.readouterr().err


def test_sigterm_ends_a_run_with_its_records_kept(archive: Path, tmp_path: Path) -> None:
    """The second volume takes for ever; the first is kept, and the same command goes on."""
    phantoms.ct_series(archive / "second", seed=5)
    code = f"""
import sys, time
from voxelwise.pipeline.archive import convert
from voxelwise.scripts.main import main
read, calls = convert.read_source, []
def slow(source, options):
    calls.append(source)
    if len(calls) == 2:
        print("now", flush=True)
        time.sleep(60)
    return read(source, options)
convert.read_source = slow
sys.exit(main(["convert", {str(archive)!r}, {str(tmp_path / "out")!r}]))
"""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as process:  # type: ignore[call-overload]
        assert process.stdout.readline() == "now\n"
        time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=30)
    assert process.returncode == 130
    assert told.strip().splitlines()[-1].startswith("voxelwise: interrupted; what was finished is kept")
    assert not json.loads((tmp_path / "out" / "manifest.json").read_text())["finished"]
    assert main(["convert", str(archive), str(tmp_path / "out"), "--quiet"]) == 3
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 2


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    run = subprocess.run(
        f"{sys.executable} -m voxelwise.scripts.main --help | head -n 1", shell=True, capture_output=True, text=True
    )
    assert (run.stdout, run.stderr) == ("Usage: voxelwise [OPTIONS] COMMAND [ARGS]...\n", "")


def test_odd_names(tmp_path: Path, capsys: Capture) -> None:
    """Spaces, quotes, line breaks, a leading dash, shell words: all are names."""
    root = tmp_path / "in"
    names = ["a b", "ü", "; touch x", "new\nline", "-dash", os.fsdecode(b"\xff")]
    for number, name in enumerate(names):
        phantoms.nifti_file(root / str(number) / f"{name}.nii")
    assert main(["convert", str(root), str(tmp_path / "out")]) == 0
    assert {path.name for path in (tmp_path / "out").glob("*.nii.gz")} == {f"{name}.nii.gz" for name in names}
    assert main(["convert", str(root), str(tmp_path / "out"), "--quiet"]) == 0
    (root / "3" / "new\nline.nii").write_bytes(b"cut")
    assert main(["convert", str(root), str(tmp_path / "out")]) == 3
    assert any("new line.nii" in line or r"new\nline.nii" in line for line in capsys.readouterr().err.splitlines())


def test_options_of_networks() -> None:
    options = parse_options(["widths=[4, 8]", "norm=batch", "deep_supervision=2", "bias=true"])
    assert options == {"widths": [4, 8], "norm": "batch", "deep_supervision": 2, "bias": True}
    with pytest.raises(errors.UsageError, match=r"--option 'norm': expected key=value"):
        parse_options(["norm"])


def test_plan_shows_what_it_looked_at(tmp_path: Path, capsys: Capture) -> None:
    """The fingerprint above the plan; 3 where a case was left out, 4 where none is left."""
    root = phantoms.blob_dataset(tmp_path / "set", cases=3)
    words = ["plan", str(root), "--out", str(tmp_path / "plan.yaml"), "--memory", "4GB", "--gpu-memory", "4GB"]
    assert main([*words, "--quiet"]) == 0
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert lines[0].split() == ["data", "set", "least", "median", "greatest"]
    assert any(line.startswith("shape ") and "24 x 20 x 16" in line for line in lines)
    assert any(line.startswith("class 1, ") and "in 3 cases" in line for line in lines)
    assert shown.err == ""
    assert main(words) == 2  # the file is there, and may have been edited
    (root / "images" / "blob_01.nii.gz").write_bytes(b"cut")
    assert main([*words, "--overwrite"]) == 3
    assert "1 cases left out: blob_01" in capsys.readouterr().err
    assert main([*words, "--overwrite", "--json"]) == 3
    told = json.loads(capsys.readouterr().out)
    assert told["fingerprint"]["cases"] == 2
    assert told["fingerprint"]["left_out"] == [failure["case"] for failure in told["failures"]]
    assert (told["command"], told["exit_code"], told["dims"]) == ("plan", 3, 3)
    for image in (root / "images").iterdir():
        image.write_bytes(b"cut")
    assert main([*words, "--overwrite"]) == 4
    capsys.readouterr()
    assert main([*words[:4], "--memory", "much", "--overwrite"]) == 2
    assert "--memory 'much': expected an amount such as 4GB" in capsys.readouterr().err


def test_networks_says_what_a_class_of_ones_own_must_have(capsys: Capture) -> None:
    assert main(["networks", "--help"]) == 0
    assert "voxelwise.networks.base.SegmentationNetwork" in capsys.readouterr().out
