"""Output folders: records, settings that must agree, the lock, what is left after errors and kills."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from voxelwise.errors import CaseError, FolderInUseError, NoRoomError, UsageError
from voxelwise.pipeline.lock import FolderLock, process_start
from voxelwise.pipeline.manifest import Failure, Outcome, OutputFolder, case_id, digest_of, file_digest, salt_of
from voxelwise.transforms.volume import Entry

SETTINGS = {"spacing": 1.0}


def work(
    out: Path, cases: Sequence[str] = ("a", "b"), settings: dict[str, float] | None = None, *, overwrite: bool = False
) -> tuple[Outcome, list[str]]:
    """A stage that writes a text a case; `bad` cannot be done."""
    computed = []
    with OutputFolder(out, "convert", settings or SETTINGS, overwrite) as folder:
        for case in cases:
            if folder.is_done(case, f"digest of {case}"):
                continue
            if case.startswith("bad"):
                folder.fail(case, [Path("in") / f"{case}.dcm"], CaseError(f"{case}.dcm: no pixels", "no-pixels"))
                continue
            computed.append(case)
            path = folder.folder / f"{case}.txt"
            path.write_text(case)
            folder.note(case, Entry("cut", f"{case} was cut"))
            folder.record(case, [path], f"digest of {case}", {"voxels": 7}, seconds=1.25)
        return folder.finish(mean=0.5), computed


def tree(out: Path) -> dict[str, bytes]:
    """Every file but the timings."""
    return {p.name: p.read_bytes() for p in sorted(out.iterdir()) if p.name != "timings.json"}


def test_finished_folder_says_what_was_done(tmp_path: Path) -> None:
    outcome, _ = work(tmp_path / "out", ("a", "bad", "b"))
    assert outcome.done == ("a", "b")
    assert outcome.failures == (Failure("bad", ("bad.dcm",), "no-pixels", "bad.dcm: no pixels"),)
    assert outcome.counts == {"in": 3, "done": 2, "skipped": 0, "stopped": 1}
    assert outcome.notes == {"a": (Entry("cut", "a was cut"),), "b": (Entry("cut", "b was cut"),)}
    assert (outcome.exit_code, outcome.facts) == (3, {"mean": 0.5})
    written = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert written["finished"] is True
    assert (written["command"], written["settings"]) == ("convert", SETTINGS)
    assert written["cases"]["a"] == {
        "files": {"a.txt": file_digest(tmp_path / "out" / "a.txt")},
        "inputs": "digest of a",
        "notes": [{"code": "cut", "detail": "a was cut"}],
        "voxels": 7,
    }
    assert {"voxelwise", "torch", "monai", "pydicom"} <= written["versions"].keys()
    table = (tmp_path / "out" / "failures.csv").read_text()
    assert table == "case,files,code,message\nbad,bad.dcm,no-pixels,bad.dcm: no pixels\n"
    assert json.loads((tmp_path / "out" / "timings.json").read_text())["cases"] == {"a": 1.25, "b": 1.25}
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left == {"a.txt", "b.txt", "manifest.json", "timings.json", "failures.csv"}


@pytest.mark.parametrize(
    ("done", "skipped", "failures", "code"),
    [(1, 0, 0, 0), (0, 1, 0, 0), (1, 0, 1, 3), (0, 1, 1, 3), (0, 0, 1, 4), (0, 0, 0, 4)],
)
def test_exit_code(done: int, skipped: int, failures: int, code: int) -> None:
    failure = Failure("f", (), "x", "y")
    assert Outcome(Path(), ("a",) * done, ("b",) * skipped, (failure,) * failures).exit_code == code


def test_second_run_skips_what_is_done(tmp_path: Path) -> None:
    first, _ = work(tmp_path)
    before = tree(tmp_path)
    second, computed = work(tmp_path)
    assert (computed, second.done, second.skipped, second.exit_code) == ([], (), ("a", "b"), 0)
    assert second.notes == first.notes
    assert tree(tmp_path) == before


@pytest.mark.parametrize("change", ["changed", "removed"])
def test_a_file_that_is_not_what_was_recorded_is_made_again(tmp_path: Path, change: str) -> None:
    work(tmp_path)
    if change == "changed":
        (tmp_path / "a.txt").write_text("cut o")
    else:
        (tmp_path / "a.txt").unlink()
    outcome, computed = work(tmp_path)
    assert (computed, outcome.done, outcome.skipped) == (["a"], ("a",), ("b",))
    assert (tmp_path / "a.txt").read_text() == "a"


def test_other_inputs_are_done_again(tmp_path: Path) -> None:
    work(tmp_path)
    with OutputFolder(tmp_path, "convert", SETTINGS) as folder:
        assert not folder.is_done("a", "digest of another a")
        assert folder.is_done("b", "digest of b")


def test_output_of_a_case_that_now_fails_is_removed(tmp_path: Path) -> None:
    work(tmp_path)
    with OutputFolder(tmp_path, "convert", SETTINGS) as folder:
        folder.fail("a", ["a.dcm"], CaseError("a.dcm: broken", "broken"))
        folder.finish()
    assert not (tmp_path / "a.txt").exists()
    assert json.loads((tmp_path / "manifest.json").read_text())["cases"].keys() == {"b"}


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    work(tmp_path)
    with pytest.raises(UsageError, match=r"holds results of other settings \(spacing: 1.0 -> 2.0\); use"):
        work(tmp_path, settings={"spacing": 2.0})
    with (
        pytest.raises(UsageError, match="holds results of `convert`, not of `predict`"),
        OutputFolder(tmp_path, "predict", SETTINGS),
    ):
        pass
    assert (tmp_path / "a.txt").read_text() == "a"


def test_overwrite_starts_anew(tmp_path: Path) -> None:
    work(tmp_path)
    outcome, computed = work(tmp_path, ("b",), {"spacing": 2.0}, overwrite=True)
    assert (computed, outcome.done) == (["b"], ("b",))
    assert not (tmp_path / "a.txt").exists()


def test_a_filled_folder_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.docx").write_text("years of work")
    with pytest.raises(UsageError, match=r"is not empty \(it holds 'thesis.docx'\) and has no manifest"):
        work(tmp_path)
    work(tmp_path, overwrite=True)
    assert (tmp_path / "thesis.docx").read_text() == "years of work"


def test_a_broken_manifest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(UsageError, match="is no manifest of voxelwise"):
        work(tmp_path)
    assert work(tmp_path, overwrite=True)[0].exit_code == 0


def test_a_manifest_cannot_remove_files_outside(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("kept")
    work(tmp_path / "out")
    path = tmp_path / "out" / "manifest.json"
    path.write_text(path.read_text().replace('"a.txt"', '"../precious.txt"'))
    work(tmp_path / "out", overwrite=True)
    assert (tmp_path / "precious.txt").exists()


def cut_short(out: Path) -> None:
    """A run that is interrupted after its first case."""
    with OutputFolder(out, "convert", SETTINGS) as folder:
        path = folder.folder / "a.txt"
        path.write_text("a")
        folder.note("a", Entry("cut", "a was cut"))
        folder.record("a", [path], "digest of a", {"voxels": 7})
        raise KeyboardInterrupt


def test_equal_runs_leave_equal_bytes_killed_or_not(tmp_path: Path) -> None:
    work(tmp_path / "whole", ("a", "b", "c"))
    with pytest.raises(KeyboardInterrupt):
        cut_short(tmp_path / "cut")
    assert not json.loads((tmp_path / "cut" / "manifest.json").read_text())["finished"]
    _, computed = work(tmp_path / "cut", ("a", "b", "c"))
    assert computed == ["b", "c"]
    assert tree(tmp_path / "cut") == tree(tmp_path / "whole")


def test_records_survive_a_kill(tmp_path: Path) -> None:
    """SIGKILL in the middle of the second case: the first is kept, the part file and the lock are not."""
    script = f"""
import time
from pathlib import Path
from voxelwise.pipeline.manifest import OutputFolder
with OutputFolder(Path({str(tmp_path)!r}), "convert", {SETTINGS!r}) as folder:
    path = folder.folder / "a.txt"
    path.write_text("a")
    folder.record("a", [path], "digest of a")
    (folder.folder / ".b.txt.0123abcd.part").write_text("half")
    print("now", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "now\n"
        with pytest.raises(FolderInUseError, match=f"in use by another run \\(process {process.pid}\\)"):
            work(tmp_path)
        process.send_signal(signal.SIGKILL)
    outcome, computed = work(tmp_path)
    assert (computed, outcome.skipped) == (["b"], ("a",))
    assert {path.name for path in tmp_path.iterdir()} == {"a.txt", "b.txt", "manifest.json", "timings.json"}


def test_a_torn_record_is_ignored(tmp_path: Path) -> None:
    work(tmp_path)
    whole = json.dumps({"case": "c", "record": {"files": {}, "inputs": "digest of c"}})
    (tmp_path / ".records.jsonl").write_text(f'{whole}\n{{"case": "d", "rec')
    with OutputFolder(tmp_path, "convert", SETTINGS) as folder:
        assert folder.records.keys() == {"a", "b", "c"}


def test_the_folder_is_free_again_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="ours"), OutputFolder(tmp_path, "convert", SETTINGS):
        raise RuntimeError("ours")
    assert work(tmp_path)[0].exit_code == 0


def test_no_room_is_an_error_of_its_own(tmp_path: Path) -> None:
    with (
        pytest.raises(NoRoomError, match=r"x.nii: no space left on the disk \(\d+ MB free\); make room"),
        OutputFolder(tmp_path, "convert", SETTINGS),
    ):
        raise OSError(errno.ENOSPC, "No space left on device", "x.nii")


def test_no_room_for_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with OutputFolder(tmp_path, "convert", SETTINGS) as folder:
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(NoRoomError, match="no space left"):
            folder.record("a", [], "digest of a")
        monkeypatch.undo()
    assert not list(tmp_path.glob(".*.part"))
    assert work(tmp_path)[0].exit_code == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_rights_is_wrong_use(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UsageError, match="cannot write there"):
        work(tmp_path / "out")
    tmp_path.chmod(0o700)


def test_a_file_in_the_way_is_wrong_use(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UsageError, match=r"out: cannot write there"):
        work(tmp_path / "out")


def test_one_file_as_output_keeps_its_books_beside_it(tmp_path: Path) -> None:
    out = tmp_path / "liver.nii.gz"
    (tmp_path / "other.nii.gz").write_text("not ours")
    with OutputFolder(out, "predict", SETTINGS) as folder:
        out.write_text("labels")
        folder.record("liver", [out], "digest")
        folder.finish()
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"liver.nii.gz", "other.nii.gz", "liver.manifest.json", "liver.timings.json"}
    with OutputFolder(out, "predict", SETTINGS) as folder:
        assert folder.is_done("liver", "digest")
    with (
        pytest.raises(UsageError, match=r"other.nii.gz exists and has no manifest beside it"),
        OutputFolder(tmp_path / "other.nii.gz", "predict", SETTINGS),
    ):
        pass


def test_two_runs_on_one_folder(tmp_path: Path) -> None:
    with OutputFolder(tmp_path, "convert", SETTINGS):
        with pytest.raises(FolderInUseError, match=re.escape(f"{tmp_path} is in use by another run")):
            work(tmp_path)
        assert (tmp_path / ".lock").exists()
    assert not (tmp_path / ".lock").exists()


@pytest.mark.parametrize("held", ["", "rubbish", '{"host": 1}'])
def test_a_lock_that_is_none_is_taken_over(tmp_path: Path, held: str) -> None:
    (tmp_path / ".lock").write_text(held)
    lock = FolderLock(tmp_path / ".lock", tmp_path)
    lock.acquire()
    lock.release()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_of_another_machine_is_respected(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text(json.dumps({"host": "elsewhere", "pid": 1, "start": "then"}))
    with pytest.raises(FolderInUseError, match=r"\(process 1 on elsewhere\); if that run is dead, delete .*\.lock"):
        work(tmp_path)


def test_a_pid_that_was_given_out_again_is_another_process() -> None:
    assert process_start(os.getpid()) == process_start(os.getpid())
    assert process_start(2**22 + 7) is None
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        time.sleep(0.01)
        assert process_start(process.pid) != process_start(os.getpid())


def test_ids_hide_what_they_are_made_of(tmp_path: Path) -> None:
    assert case_id("salt", "1.2.3", "0") == case_id(b"salt", "1.2.3", "0")
    assert re.fullmatch(r"case-[0-9a-f]{12}", case_id("salt", "../x"))
    assert (
        len({case_id("salt", "1.2"), case_id("pepper", "1.2"), case_id("salt", "1", "2"), case_id("salt", "1.3")}) == 4
    )


def test_salt_is_made_once(tmp_path: Path) -> None:
    salt = salt_of(tmp_path)
    assert (len(salt), salt_of(tmp_path)) == (32, salt)
    assert salt_of(tmp_path / "other", tmp_path / "salt.txt") == salt
    (tmp_path / "short").write_text("abc\n")
    with pytest.raises(UsageError, match="holds 3 characters, a salt needs 8 or more"):
        salt_of(tmp_path, tmp_path / "short")
    with pytest.raises(UsageError, match=r"--salt .*none: cannot be read as text"):
        salt_of(tmp_path, tmp_path / "none")


def test_digests(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(b"abc")
    second.write_bytes(b"")
    assert file_digest(first) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert digest_of([first, second]) != digest_of([second, first])


def test_names_that_are_no_text_do_not_stop_the_books(tmp_path: Path) -> None:
    odd = os.fsdecode(b"bad\xff\n.dcm")
    outcome, _ = work(tmp_path, ("a", odd))
    assert outcome.failures[0].message == r"bad\udcff\n.dcm.dcm: no pixels"
    assert (tmp_path / "failures.csv").read_text().count("\n") == 2


def test_wrong_use_leaves_a_new_folder_as_it_was(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="wrong"), OutputFolder(tmp_path / "a" / "b", "convert", SETTINGS) as folder:  # noqa: PT012
        (folder.folder / "salt.txt").write_text("made by the run")
        raise UsageError("wrong")
    assert not (tmp_path / "a").exists()


def test_wrong_use_leaves_earlier_books_as_they_were(tmp_path: Path) -> None:
    work(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UsageError, match="wrong"), OutputFolder(tmp_path, "convert", SETTINGS):
        raise UsageError("wrong")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_state_of_the_inputs_is_known_to_the_next_run(tmp_path: Path) -> None:
    """Also to one that follows a broken run, and it stands in no manifest."""
    with pytest.raises(ZeroDivisionError), OutputFolder(tmp_path, "convert", SETTINGS) as folder:  # noqa: PT012
        (tmp_path / "a.txt").write_text("a")
        folder.record("a", {tmp_path / "a.txt": file_digest(tmp_path / "a.txt")}, "inputs", stamp="state of a")
        raise ZeroDivisionError
    with OutputFolder(tmp_path, "convert", SETTINGS) as folder:
        assert (folder.stamp_of("a"), folder.stamp_of("b")) == ("state of a", None)
        assert folder.is_done("a", "inputs")
        folder.finish()
    with OutputFolder(tmp_path, "convert", SETTINGS) as folder:
        assert folder.stamp_of("a") == "state of a"
    assert "state of a" not in (tmp_path / "manifest.json").read_text()
