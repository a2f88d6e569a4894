"""The command line `voxelwise`: finds the verb, runs it, and turns whatever goes wrong into one line and an exit code.

Only the file of the verb that was asked for is imported, and a verb imports its stage when it runs, so that help costs
no torch. Exit codes: 0 done, 2 wrong use, 3 some cases stopped, 4 none done, 5 unsafe input, 6 out of disk or memory,
7 folder in use, 130 interrupted, 1 a bug of ours.
"""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NoReturn

import typer

from .. import __version__
from ..errors import VoxelwiseError, unknown
from .terminal import complain, document, listen

# verb -> what it does; the file of the same name beside this one holds its `run`
VERBS = {
    "demo": "The whole job on an archive that it makes: DICOM CT -> label maps, table, pictures.",
    "index": "Inventory of an archive: every series, its geometry, verdict and reason.",
    "convert": "Every usable volume -> NIfTI + JSON sidecar, failures.csv.",
    "dataset": "Images and label maps matched into a data set that plan and train take.",
    "plan": "Fingerprint of a data set and plan, each line with its reason.",
    "preprocess": "The images and labels of a data set as training wants them, in a cache.",
    "train": "A data set -> a model folder.",
    "predict": "A model and images -> label maps on the grids of the images.",
    "export": "A model for elsewhere: MONAI bundle, torch.export, TorchScript, ONNX.",
    "import-model": "A trained model of nnU-Net v2, or a MONAI bundle -> a model folder.",
    "evaluate": "Label maps against references: scores per case and class.",
    "networks": "What networks there are: name, 2D/3D, parameters, paper.",
    "doctor": "Versions, devices, codecs, memory: what works here and what does not.",
}
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    debug = "--debug" in words
    verb = next((word for word in words if not word.startswith("-")), None)
    terminal = listen(quiet="--quiet" in words, debug=debug)
    before = _stop_on_sigterm()
    try:
        if verb is not None and verb not in VERBS:
            raise unknown("verb", verb, VERBS)
        code = application(verb)(args=words, prog_name="voxelwise", standalone_mode=False)
        sys.stdout.flush()
        if code == INTERRUPTED:  # typer turns Ctrl-C into this code and says nothing
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (Exception, KeyboardInterrupt) as error:
        terminal.close()
        if debug:
            traceback.print_exc()
        code, text = explain(error, verb)
        complain(text)
        if "--json" in words:
            document({"command": verb, "exit_code": code, "error": text})
        return code
    finally:
        terminal.close()
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def application(verb: str | None) -> typer.Typer:
    """The typer application, with the options of `verb` alone; the others stand there by name."""
    app = typer.Typer(
        help="Images in, label maps out, on exactly the grid they came in on.",
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    )
    app.callback()(_common)
    for name, summary in VERBS.items():
        function: Callable[..., Any] = _not_loaded
        if name == verb:
            function = importlib.import_module(f".{name.replace('-', '_')}", __package__).run
        app.command(name, help=None if name == verb else summary, short_help=summary)(function)
    return app


def explain(error: BaseException, verb: str | None = None) -> tuple[int, str]:
    """Exit code and line of an error."""
    text = str(error).strip() or type(error).__name__
    if isinstance(error, VoxelwiseError):
        return error.exit_code, text
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        return INTERRUPTED, "interrupted; what was finished is kept, the same command goes on from there"
    if hasattr(error, "format_message"):  # typer's own: a wrong option or a missing argument
        return 2, f"{error.format_message().rstrip('.')} (see voxelwise {f'{verb} ' if verb else ''}--help)"
    if isinstance(error, (ValueError, TypeError)):
        return 2, text
    if isinstance(error, OSError):
        where = error.filename or "output"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return 6, f"{where}: no space left on the disk; make room and run the same command again"
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR):
            return 2, f"{where}: {error.strerror}"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return 6, "out of memory; close other programs, or give fewer --workers or a smaller model or patch"
    return 1, f"{type(error).__name__}: {text} (a bug of ours; run again with --debug for the traceback)"


def _stop_on_sigterm() -> Any:
    """Let SIGTERM end a run as Ctrl-C does, records kept; returns what handled it before."""
    if threading.current_thread() is not threading.main_thread():
        return None
    return signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(number: int, frame: Any) -> NoReturn:
    raise KeyboardInterrupt


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"voxelwise {__version__}")
        raise typer.Exit


def _common(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Images in, label maps out, on exactly the grid they came in on."""


def _not_loaded() -> None:
    raise AssertionError("only the verb of the command line is loaded")


if __name__ == "__main__":
    sys.exit(main())
