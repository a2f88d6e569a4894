"""Prediction beside its peers: the goals G1, G2, G3, G4, G8 and G9, each figure with its gate, "done" and "aim".

    python scripts/benchmarks/inference.py                         all goals, 5 rounds, 2 threads
    python scripts/benchmarks/inference.py --goals G1,G3 --classes 25 --rounds 3

G1  labels on the source grid, from logits of a coarser one    nnU-Net's default export, MONAI, TotalSegmentator cropped
G2  peak memory from image to labels, 384x160x160              MONAI
G3  stitching, with a network that costs nothing, 192x192x96   MONAI, nnU-Net
G4  image to labels on a CPU, same weights, 192x192x96         MONAI, nnU-Net
G8  exact tiling, batch norm, 256x128x128                      MONAI at overlap 0.5, one forward of the whole
G9  .nii.gz to .nii.gz on the source grid                      the bare forward of its windows, by the same engine

Peers: `pip install voxelwise[bench]`; one that is not there is named and left out. Their settings are as shipped.
"(kept heap)": with the allocator setting that `voxelwise predict` uses. Each way has a process of its own; the ways
are timed in turn. Peak is resident memory above what the process holds with its inputs. A share of equal labels is
that of the first way named in the table. Exit code 1: a goal's "done" was missed.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from inference_rounds import KEPT, Result, equal, race, ratio, show, verdict

GOALS = ("G1", "G2", "G3", "G4", "G8", "G9")


@dataclass(frozen=True)
class Options:
    """How it is measured."""

    rounds: int
    threads: int
    classes: tuple[int, ...]
    shipped: bool

    def peers(self, *names: str) -> tuple[str, ...]:
        """Peers as shipped, and with our allocator setting."""
        return names if self.shipped else (*names, *(name + KEPT for name in names))


def main() -> int:
    """Print the tables; 1 where a goal was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--goals", default=",".join(GOALS))
    parser.add_argument("--classes", default="2,25,105")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--shipped", action="store_true", help="leave out peers with our allocator setting")
    given = parser.parse_args()
    goals = given.goals.split(",")
    if unknown := set(goals) - set(GOALS):
        parser.error(f"unknown goals {', '.join(sorted(unknown))}; there are {', '.join(GOALS)}")
    options = Options(given.rounds, given.threads, tuple(int(part) for part in given.classes.split(",")), given.shipped)
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    bf16 = "avx512_bf16" in flags or "amx_bf16" in flags
    print(f"{os.cpu_count()} cores, {options.threads} threads, {options.rounds} rounds; ", end="")
    print("bf16 instructions" if bf16 else "no bf16 instructions: no bf16 rows")
    measures: dict[str, Callable[[Options], bool]] = {"G1": g1, "G2": g2, "G3": g3}
    reached = []
    for goal in goals:
        if goal in measures:
            reached.append(measures[goal](options))
        else:
            from inference_networks import measure

            reached.append(measure(goal, options.rounds, options.threads, options.classes, bf16=bf16))
        sys.stdout.flush()
    return 0 if all(reached) else 1


def g1(options: Options) -> bool:
    """Restoring labels to the source grid."""
    kept = True
    peers = {"nnU-Net": (0.05, 0.02), "MONAI": (0.12, 0.05), "TotalSegmentator": (0.6, 0.25)}
    for classes in options.classes:
        print(f"G1  {classes} classes, 64x112x112 -> 96x192x192")
        whole = "full trilinear + argmax"
        ways = (whole, "ours", "ours" + KEPT, *options.peers(*peers))
        found = race(
            "inference_stitching", "G1", classes, ways, rounds=options.rounds, threads=options.threads, once=(whole,)
        )
        show(found, found[whole].labels)
        if classes > 2:
            kept &= _times(found, peers)
            kept &= _memory(found, "nnU-Net", 0.1, 0.05)
        kept &= _gate(found["ours"], found[whole], 0.99999)
    return kept


def g2(options: Options) -> bool:
    """Peak memory."""
    if 105 not in options.classes:
        return True
    print("G2  105 classes, 32 features, 384x160x160, peaks")
    found: dict[str, Result] = {}
    for goal, way in (("G2", "MONAI"), ("G2", "ours"), ("G2", "ours, without a head"), ("G2 short", "ours")):
        one = race("inference_stitching", goal, 105, (way,), rounds=0, threads=options.threads)[way]
        found[way if goal == "G2" else f"{way}, depth 128"] = one
    show(found, found["MONAI"].labels)
    kept = _memory(found, "MONAI", 0.12, 0.07)
    kept &= _memory(found, "MONAI", 0.25, 0.07, ours="ours, without a head")
    kept &= _memory(found, "ours, depth 128", 1.05, 1.0)
    return kept and _gate(found["ours"], found["MONAI"], 0.9999)


def g3(options: Options) -> bool:
    """Stitching."""
    kept = True
    goals = {25: {"MONAI": (0.6, 0.35), "nnU-Net": (0.42, 0.25)}, 105: {"MONAI": (0.3, 0.15), "nnU-Net": (0.2, 0.1)}}
    for classes in options.classes:
        print(f"G3  {classes} classes, {'32 features and a head' if classes >= 105 else 'logits'}, 192x192x96")
        ways = ("ours", "ours" + KEPT, *options.peers("MONAI", "nnU-Net", "copies"))
        found = race("inference_stitching", "G3", classes, ways, rounds=options.rounds, threads=options.threads)
        show(found, found["MONAI"].labels)
        kept &= _times(found, goals.get(classes, {}))
        kept &= _gate(found["ours"], found["MONAI"], 0.9999)
    return kept


def _times(found: dict[str, Result], goals: dict[str, tuple[float, float]]) -> bool:
    """Ours under the setting that it is shipped with, to each peer as shipped and under the same."""
    kept, mine = True, found["ours" + KEPT]
    for peer, (done, aim) in goals.items():
        for heap in ("", KEPT):
            theirs = found.get(peer + heap, Result())
            if not theirs.seconds or not mine.seconds:
                continue
            copies = found.get("copies" + heap, Result()).seconds
            middle, least, most = ratio(mine.seconds, theirs.seconds, copies)
            reached = verdict(f"time / {peer}{heap}", middle, done, aim, f"({least:.3f} to {most:.3f})")
            kept &= reached or bool(heap)  # the goal is against peers as shipped
    return kept


def _memory(found: dict[str, Result], peer: str, done: float, aim: float, ours: str = "ours") -> bool:
    mine, theirs = found[ours].peak, found[peer].peak
    if mine is None or theirs is None:
        return True
    return verdict(f"memory of {ours} / {peer}", mine / theirs, done, aim)


def _gate(ours: Result, reference: Result, least: float) -> bool:
    share = equal(ours.labels, reference.labels)
    if share is None:
        return True
    print(f"    gate: {share:.6f} of labels equal, wanted {least:g}: {'holds' if share >= least else 'BROKEN'}")
    return share >= least


if __name__ == "__main__":
    sys.exit(main())
