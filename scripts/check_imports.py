"""Holds the house rules that a linter does not know: who imports whom, where imports stand, what is never called.

    python scripts/check_imports.py [PACKAGE FOLDER]

Imports run one way, scripts -> pipeline -> {transforms, networks} -> errors; inside pipeline demo -> training ->
evaluation -> importing -> exporting -> inference -> dataset -> archive -> the single files. They stand at the top of a
module; only `__init__` and scripts may import our own stages inside a function, and heavy or optional libraries stand
where they are used. No circles. No pickle, no way around torch's restricted reader, no shell, no unpacking of archives
without checks.
Reads the source and imports nothing. Each offender is one line; exit code 1 where there is one.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "voxelwise"
# each may import what stands before it
STAGES = ("archive", "dataset", "inference", "exporting", "importing", "evaluation", "training", "demo")
ROOMS = ("transforms", "networks", "pipeline", "scripts")
LATE = {
    "itk",
    "SimpleITK",
    "openvino",
    "mlflow",
    "tensorboard",
    "matplotlib",
    "distributed",
    "dask",
    "triton",
    "cv2",
    "monai",
    "torchvision",
    "segmentation_models_pytorch",
}
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "torch.package"}
FORBIDDEN_ARGUMENTS = {"weights_only=False", "allow_pickle=True", "shell=True"}
FORBIDDEN_CALLS = {
    "extractall",
    "unpack_archive",
    "eval",
    "exec",
    "os.system",
    "os.popen",
    "yaml.load",
    "yaml.unsafe_load",
}
SKIPPED = {"tests", "build", "dist", "benchmarks", "experiments"}


@dataclass(frozen=True)
class Import:
    """One import of a module: what it names, and whether it stands at the top."""

    target: str
    line: int
    top: bool
    typing_only: bool


def main(arguments: Sequence[str]) -> int:
    """Check a package folder and print what offends."""
    root = Path(arguments[0]) if arguments else Path(__file__).resolve().parent.parent
    offences = check(root)
    for offence in offences:
        print(offence)
    print(f"{len(offences)} offences in {sum(1 for _ in sources(root))} files", file=sys.stderr)
    return 1 if offences else 0


def check(root: Path) -> list[str]:
    """One line for each offence below the package folder."""
    offences: list[str] = []
    trees = {path: ast.parse(path.read_text(encoding="utf-8"), str(path)) for path in sources(root)}
    modules = {module_name(path, root) for path in trees}
    graph: dict[str, set[str]] = {}
    for path, tree in trees.items():
        name = module_name(path, root)
        where = path.relative_to(root).as_posix()
        found = [resolved(one, modules) for one in imports(tree, name, path.name == "__init__.py")]
        graph[name] = {one.target for one in found if one.top and not one.typing_only and one.target in modules} - {
            name
        }
        offences += [f"{where}:{one.line}: {why}" for one in found if (why := wrong_import(name, one))]
        offences += [f"{where}:{line}: {why}" for line, why in forbidden(tree)]
    return offences + [f"import circle: {' -> '.join(circle)}" for circle in circles(graph)]


def sources(root: Path) -> Iterator[Path]:
    """The Python files of the package; tests and what is no part of it are left out."""
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if not any(part.startswith(".") or part in SKIPPED or part.endswith(".egg-info") for part in parts):
            yield path


def module_name(path: Path, root: Path) -> str:
    """`pipeline/archive/index.py` -> `voxelwise.pipeline.archive.index`."""
    parts = list(path.relative_to(root).with_suffix("").parts)
    if parts[-1] == "__init__":
        parts.pop()
    return ".".join([PACKAGE, *parts])


def imports(tree: ast.Module, module: str, is_package: bool) -> Iterator[Import]:
    """Every import of a module with absolute names; those under `if TYPE_CHECKING` are for types alone."""

    def walk(node: ast.AST, top: bool, typing_only: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(alias.name, child.lineno, top, typing_only)
            elif isinstance(child, ast.ImportFrom):
                base = child.module or ""
                if child.level:
                    parts = module.split(".")
                    kept = parts[: len(parts) - child.level + int(is_package)]
                    base = ".".join([*kept, *filter(None, [child.module])])
                for alias in child.names:
                    yield Import(f"{base}.{alias.name}", child.lineno, top, typing_only)
            else:
                inside = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
                types = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
                yield from walk(child, top and not inside, typing_only or types)

    return walk(tree, True, False)


def resolved(one: Import, modules: set[str]) -> Import:
    """`from .a import b` names the module a where b is a name inside it."""
    if one.target not in modules and one.target.rpartition(".")[0] in modules:
        return Import(one.target.rpartition(".")[0], one.line, one.top, one.typing_only)
    return one


def wrong_import(module: str, one: Import) -> str | None:
    """Why a module may not import that there; None where it may."""
    package = one.target.split(".")[0]
    room = module.split(".")[1] if module.count(".") else ""
    if one.target in FORBIDDEN_MODULES or package in FORBIDDEN_MODULES:
        return f"{one.target} unpickles or runs what it reads"
    if package in ROOMS:
        return f"{one.target} is imported as if it stood alone; imports inside the package are relative"
    lazy_border = room in ("scripts", "")
    if not one.top and package not in LATE and not lazy_border:
        return f"{one.target} is imported inside a function; imports stand at the top of a module"
    if package == PACKAGE and not _may_import(module, one.target):
        return f"{module} may not import {one.target} (imports run one way)"
    return None


def _may_import(module: str, target: str) -> bool:
    if target in (PACKAGE, f"{PACKAGE}.__version__", f"{PACKAGE}.errors") or target.startswith(f"{PACKAGE}.errors."):
        return module != f"{PACKAGE}.errors"
    if module.count(".") == 0:
        return True  # the package's own __init__ imports lazily what users ask for
    here, there = module.split(".")[1:], target.split(".")[1:]
    if here[0] in ("transforms", "networks"):
        return there[0] == here[0]
    if here[0] != "pipeline":
        return here[0] == "scripts"
    if there[0] != "pipeline":
        return there[0] in ("transforms", "networks")
    return len(there) < 2 or _stage(there) <= _stage(here)


def _stage(parts: Sequence[str]) -> int:
    """Single files first, then the stages from the archive to the demo."""
    return STAGES.index(parts[1]) if len(parts) > 1 and parts[1] in STAGES else -1


def forbidden(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Calls that read pickles, run a shell, or unpack archives as they are."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        if name in FORBIDDEN_CALLS or name.rpartition(".")[2] in ("extractall", "unpack_archive"):
            yield node.lineno, f"{name}(...) is not called in this code"
        for keyword in node.keywords:
            given = f"{keyword.arg}={ast.unparse(keyword.value)}"
            if given in FORBIDDEN_ARGUMENTS:
                yield node.lineno, f"{name}({given}) is not called in this code"
        if name == "torch.load" and not any(keyword.arg == "weights_only" for keyword in node.keywords):
            yield node.lineno, "torch.load(...) without weights_only=True"


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Each circle of modules that import one another at the top, once."""
    found: list[list[str]] = []
    state: dict[str, int] = {}

    def visit(module: str, path: list[str]) -> None:
        state[module] = 1
        for target in sorted(graph.get(module, ())):
            if state.get(target) == 1:
                found.append([*path[path.index(target) :], target])
            elif target not in state:
                visit(target, [*path, target])
        state[module] = 2

    for module in sorted(graph):
        if module not in state:
            visit(module, [module])
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
