"""What is installed is what is there."""

from __future__ import annotations

from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("transforms", "networks", "pipeline", "scripts")


def test_every_package_is_listed() -> None:
    """One that is not would be missing in a wheel, and nowhere else."""
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    folders = [path.parent.relative_to(ROOT) for room in ROOMS for path in (ROOT / room).rglob("__init__.py")]
    assert sorted(setup["options"]["packages"].split()) == sorted(
        ["voxelwise", *(".".join(["voxelwise", *folder.parts]) for folder in folders)]
    )
