"""A case's plan: where its sums lie, what is made at a time, and what all of it takes, so that a limit is held.

Everything is counted: the process as it is with its libraries, the weights and the image as read (measured), the label
map, the prepared image, what the network takes for its windows (measured), the sums of the open slab, the scores that
are looked at, the way back to the grid of the image. What costs time is given up last: first the number of scores and
windows at a time, then a prepared image that is kept, then freed memory that is kept, at last the cross-section is cut.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product

from ...errors import CaseError, UsageError
from ...transforms.restore import CHUNK_NUMBERS, working_bytes
from .strips import CrossSection, Strips

FLOAT_BYTES = 4  # of sums, scores and prepared voxels
KEPT_SHARE = 1.6  # of what the network takes, where freed memory is kept for the next window: measured, with holes
KEPT_BYTES = 2**27  # and what the heap then grows by beyond what is asked for, twice (devices.keep_heap)
SLACK_BYTES, SLACK_SHARE = 40 * 10**6, 0.01  # stacks, caches, pages that are half used
CHUNKS = (CHUNK_NUMBERS, CHUNK_NUMBERS >> 2, CHUNK_NUMBERS >> 4)
TRACED_SHARE = 1.4  # of the activations as they are traced: what exact tiles take, kernels included; measured
LEAST_TILE_BYTES = 64 * 10**6
MOST_PARTS = 64  # of a cross-section: beyond them nearly every window is computed many times


@dataclass(frozen=True)
class Limits:
    """What a run may take.

    Args:
        ram: bytes of the process with its children; None where nobody named an amount.
        gpu: bytes on the accelerator; None for what is free.
    """

    ram: int | None = None
    gpu: int | None = None


UNLIMITED = Limits()


def check_gpu_limit(limits: Limits, devices: Iterable[str]) -> None:
    """Refuse an amount for a GPU where none computes.

    Raises:
        UsageError: it is given, and no device is a GPU.
    """
    if limits.gpu is not None and not any(device.startswith("cuda") for device in devices):
        raise UsageError(
            f"--gpu-memory {limits.gpu / 1e9:g}GB: the network runs on the CPU; give --memory, or a GPU with --device"
        )


@dataclass(frozen=True)
class Needs:
    """What is known of a case before its network starts.

    Args:
        held: bytes of RAM that the process holds, the image as read in it.
        held_gpu: bytes on the accelerator, 0 without one.
        image: bytes of the prepared image where it is kept whole.
        in_boxes: whether the prepared image can be made box by box instead.
        preparing: bytes that are made on the way to the prepared image, of all of it at once and of one window.
        labels: bytes of the label map.
        window: of a batch of windows: its bytes of RAM and on the accelerator.
        channels: of what is added up.
        classes: of the scores.
        section: the cross-section of the streamed volume.
        gpu: whether the network runs on an accelerator.
        planes: of sums that are open at a time; as deep as a patch where it is 0.
        beside: bytes of what is made of the scores beside labels: probabilities, uncertainty.
        probable: whether labels come of probabilities, which are copies of the scores.
    """

    held: int
    image: int
    in_boxes: bool
    labels: int
    window: Callable[[int], tuple[int, int]]
    channels: int
    classes: int
    section: CrossSection
    held_gpu: int = 0
    gpu: bool = False
    planes: int = 0
    beside: int = 0
    probable: bool = False
    preparing: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Plan:
    """How a case is done.

    Args:
        strips: parts of the cross-section that are blended on their own.
        window_batch: windows at a time.
        chunk_numbers: scores looked at at a time.
        whole_image: whether the prepared image is kept; else its voxels are made for each window.
        keep_heap: whether freed memory is kept for the next window.
        sums_on_gpu: where the sums lie.
        tile_bytes: for the tiles of exact tiling; None where nothing limits them.
        ram: bytes of RAM by what takes them.
        gpu: bytes on the accelerator by what takes them.
    """

    strips: Strips
    window_batch: int
    chunk_numbers: int = CHUNK_NUMBERS
    whole_image: bool = True
    keep_heap: bool = True
    sums_on_gpu: bool = False
    tile_bytes: int | None = None
    ram: Mapping[str, int] = field(default_factory=dict)
    gpu: Mapping[str, int] = field(default_factory=dict)

    def fits(self, limits: Limits) -> bool:
        """Whether a limit holds it."""
        return _within(self.ram, limits.ram) and _within(self.gpu, limits.gpu)

    def __str__(self) -> str:
        """One line for people."""
        parts = " x ".join(map(str, self.strips.counts))
        more = f", {self.strips.more:.0%} more windows" if self.strips.more else ""
        words = [
            f"windows by {self.window_batch}",
            "cross-section whole" if self.strips.counts == (1, 1) else f"cross-section in {parts} parts{more}",
            "image prepared whole" if self.whole_image else "image prepared window by window",
            *(["sums on the GPU" if self.sums_on_gpu else "sums in RAM"] if self.gpu else []),
        ]
        amounts = [f"{sum(self.ram.values()) / 1e9:.2f} GB of RAM ({_listed(self.ram)})"]
        if self.gpu:
            amounts.append(f"{sum(self.gpu.values()) / 1e9:.2f} GB on the GPU ({_listed(self.gpu)})")
        return f"at most {' and '.join(amounts)}: {', '.join(words)}"


def make_plan(needs: Needs, limits: Limits, window_batch: int) -> Plan:
    """The plan that costs the least time of those that fit.

    Args:
        needs: of the case.
        limits: to stay within.
        window_batch: the most windows at a time.

    Raises:
        CaseError: nothing fits (`memory`); what would is named.
    """
    least: Plan | None = None
    for plan in _plans(needs, window_batch):
        if plan.fits(limits):
            return plan
        least = plan if least is None or _over(plan, limits) < _over(least, limits) else least
    assert least is not None
    raise CaseError(_refused(least, limits), "memory")


def make_tile_plan(needs: Needs, limits: Limits) -> Plan:
    """What exact tiles may take beside everything else; how they are cut is planned by themselves.

    Raises:
        CaseError: nothing is left for them (`memory`).
    """
    least: Plan | None = None
    strips = needs.section.strips((1, 1))
    numbers = needs.classes * math.prod(strips.largest)  # of one plane of scores: they are given out by planes
    for whole, chunk in product((True, False) if needs.in_boxes and needs.image else (not needs.in_boxes,), CHUNKS):
        tile = (0, LEAST_TILE_BYTES) if needs.gpu else (LEAST_TILE_BYTES, 0)
        scored = replace(needs, window=partial(_always, tile), channels=needs.classes)
        ram, gpu = _amounts(scored, strips, 1, chunk, whole=whole, keep=False, on_gpu=False)
        scores = gpu if needs.gpu else ram
        ram.pop("sums", None)
        scores["scores"] += max(numbers, CHUNK_NUMBERS) * FLOAT_BYTES
        plan = Plan(strips, 1, chunk, whole, keep_heap=False, sums_on_gpu=needs.gpu, ram=ram, gpu=gpu)
        least = plan
        limit = limits.gpu if needs.gpu else limits.ram
        if plan.fits(limits):
            left = None if limit is None else limit - sum(scores.values()) + LEAST_TILE_BYTES
            return replace(plan, tile_bytes=None if left is None else round(left / TRACED_SHARE))
    assert least is not None
    raise CaseError(_refused(least, limits), "memory")


def _always(amounts: tuple[int, int], batch: int) -> tuple[int, int]:
    return amounts


def _plans(needs: Needs, window_batch: int) -> Iterator[Plan]:
    """All plans, cheap ones first."""
    batches = [window_batch]
    while batches[-1] > 1:
        batches.append(batches[-1] // 2)
    images = (True, False) if needs.in_boxes and needs.image else (not needs.in_boxes,)
    for strips in needs.section.choices(MOST_PARTS):
        for on_gpu, keep, whole, chunk, batch in product(
            (True, False) if needs.gpu else (False,), (True, False), images, CHUNKS, batches
        ):
            ram, gpu = _amounts(needs, strips, batch, chunk, whole=whole, keep=keep, on_gpu=on_gpu)
            yield Plan(strips, batch, chunk, whole, keep, on_gpu, ram=ram, gpu=gpu)


def _amounts(
    needs: Needs, strips: Strips, batch: int, chunk: int, *, whole: bool, keep: bool, on_gpu: bool
) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes of RAM and on the accelerator, by what takes them."""
    window, window_gpu = needs.window(batch)
    first, second = strips.largest
    plane = needs.channels * first * second * FLOAT_BYTES
    sums = plane * (needs.planes or needs.section.patch[needs.section.axis])
    # the last plane, together with the first of the next ones
    shared = needs.section.shared
    looked_at = working_bytes(needs.classes, needs.channels, chunk, interpolated=shared > 0, probable=needs.probable)
    made = max(window, needs.preparing[0 if whole else 1])  # one after the other
    restoring = looked_at + 3 * plane * shared
    ram = {
        "process and image as read": needs.held,
        "label map": needs.labels,
        "prepared image": needs.image if whole else 0,
        "network" if made == window else "preparing": round(made * (KEPT_SHARE if keep else 1)),
        "sums": 0 if on_gpu else sums,
        "scores": 0 if needs.gpu else restoring,
        "probabilities, uncertainty": needs.beside,
    }
    ram["slack"] = SLACK_BYTES + (KEPT_BYTES if keep else 0) + round(SLACK_SHARE * sum(ram.values()))
    if not needs.gpu:
        return _positive(ram), {}
    gpu = {
        "weights and libraries": needs.held_gpu,
        "network": window_gpu,
        "sums": sums if on_gpu else 0,
        "scores": restoring + needs.beside,
    }
    return _positive(ram), _positive(gpu)


def _positive(amounts: Mapping[str, int]) -> dict[str, int]:
    return {name: amount for name, amount in amounts.items() if amount}


def _within(amounts: Mapping[str, int], limit: int | None) -> bool:
    return limit is None or sum(amounts.values()) <= limit


def _over(plan: Plan, limits: Limits) -> float:
    """How far the worse of the two limits is overstepped."""
    pairs = ((sum(plan.ram.values()), limits.ram), (sum(plan.gpu.values()), limits.gpu))
    return max((total / limit for total, limit in pairs if limit is not None), default=0.0)


def _refused(least: Plan, limits: Limits) -> str:
    for option, amounts, limit in (("--memory", least.ram, limits.ram), ("--gpu-memory", least.gpu, limits.gpu)):
        if limit is not None and not _within(amounts, limit):
            needed = sum(amounts.values())
            return (
                f"needs at least {needed / 1e9:.2f} GB ({_listed(amounts)}), {option} is {limit / 1e9:.2f} GB; give "
                f"{option} {rounded_up(needed)} or more, or a model with smaller windows"
            )
    raise ValueError("the plan fits")


def rounded_up(amount: int) -> str:
    """An amount that is no less, as one gives it to an option."""
    return f"{-(-amount // 10**8) / 10:g}GB"


def _listed(amounts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {amount / 1e9:.2f}" for name, amount in amounts.items())
