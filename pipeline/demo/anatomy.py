"""A made-up abdomen: CT values, and the label map that is true by construction.

The body is drawn in polar coordinates around its axis. Surfaces are radii as functions of angle and height: the skin,
the outer and the inner face of the muscle ring. Fat between skin and ring is SAT, fat inside the ring is VAT, and where
the ring has a gap, filled with fat of the same HU, the border is the ring's mid surface carried on across the gap. So
the truth is a matter of geometry, and no voxel value tells the two apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

BACKGROUND, SAT, VAT = 0, 1, 2
CLASSES = {BACKGROUND: "background", SAT: "SAT", VAT: "VAT"}
AIR_HU, SKIN_HU, BONE_HU, MARROW_HU, GAS_HU, TABLE_HU, FOAM_HU = -1000, 25, 420, 170, -800, 60, -880
SKIN_MM = 2.0
BACK = -np.pi / 2
ANGLES = 1440  # resolution of the tables of radii: 0.7 mm along the skin

# organ: middle (left, front, up), half axes, HU. The cavity is a disc of radius 1 here, its height runs from 0 to 1.
ORGANS = (
    ((-0.48, 0.12, 0.85), (0.44, 0.60, 0.45), 58),  # liver
    ((0.66, -0.22, 0.92), (0.21, 0.29, 0.28), 50),  # spleen
    ((-0.47, -0.40, 0.45), (0.16, 0.20, 0.24), 38),  # kidneys
    ((0.47, -0.40, 0.52), (0.16, 0.20, 0.24), 38),
    ((0.26, 0.45, 0.85), (0.32, 0.24, 0.24), 42),  # stomach
    ((0.08, -0.34, 0.50), (0.07, 0.08, 9.0), 45),  # aorta and vena cava
    ((-0.12, -0.32, 0.50), (0.08, 0.08, 9.0), 45),
)


@dataclass(frozen=True)
class Gap:
    """A hole in the muscle ring.

    Args:
        angle: where, in radians from the patient's left towards the front.
        width_mm: along the ring.
        middle_mm: height of its middle above the lowest slice.
        half_height_mm: half its height.
    """

    angle: float
    width_mm: float
    middle_mm: float
    half_height_mm: float


@dataclass(frozen=True, eq=False)
class Abdomen:
    """One subject as scanned.

    Args:
        image: (X, Y, Z) int16 HU; X runs to the patient's left, Y to the back, Z upwards, as DICOM stores it.
        labels: (X, Y, Z) uint8, values of `CLASSES`.
        spacing_mm: voxel size.
        gaps: holes in the muscle ring.
    """

    image: np.ndarray
    labels: np.ndarray
    spacing_mm: tuple[float, float, float]
    gaps: tuple[Gap, ...]


@dataclass(frozen=True, eq=False)
class Body:
    """Where each voxel lies, and the radii of the surfaces at its angle and height; arrays (X, Y, Z) in mm."""

    left: np.ndarray
    front: np.ndarray
    height: np.ndarray
    radius: np.ndarray
    skin: np.ndarray
    outer: np.ndarray
    inner: np.ndarray
    rind: np.ndarray
    along_ring: np.ndarray
    angle: np.ndarray

    @property
    def middle(self) -> np.ndarray:
        """Where SAT ends and VAT begins: half way through the ring."""
        return 0.5 * (self.outer + self.inner)


def abdomen(
    rng: np.random.Generator, *, shape: tuple[int, int, int] = (128, 112, 32), thin: bool = False, gaps: int = 0
) -> Abdomen:
    """Draw one subject.

    Args:
        rng: where all its randomness comes from.
        shape: columns, rows, slices.
        thin: hardly any fat under the skin.
        gaps: number of holes in the muscle ring.
    """
    in_plane = round(float(rng.uniform(355, 390)) / shape[0], 3)
    spacing = (in_plane, in_plane, round(float(rng.uniform(170, 205)) / shape[2], 2))
    body = _body(rng, shape, spacing, thin)
    holes = _draw_gaps(rng, gaps, shape[2] * spacing[2])
    hu, fat = _tissues(rng, body, holes, thin)
    labels = np.where(fat, np.where(body.radius >= body.middle, SAT, VAT), BACKGROUND).astype(np.uint8)
    return Abdomen(_scanned(rng, hu), labels, spacing, holes)


def _body(
    rng: np.random.Generator, shape: tuple[int, int, int], spacing: tuple[float, float, float], thin: bool
) -> Body:
    """Draw the surfaces as tables over angle and height, and look them up for each voxel."""
    angle = np.linspace(-np.pi, np.pi, ANGLES, endpoint=False)[:, None]
    rise = ((np.arange(shape[2]) + 0.5) / shape[2])[None, :]
    fill = rng.uniform(0.74, 0.80) if thin else rng.uniform(0.84, 0.92)
    wide = fill * 0.5 * shape[0] * spacing[0] * (1 + 0.02 * _wave(rng, rise))
    deep = wide * rng.uniform(0.62, 0.74) * (1 + 0.02 * _wave(rng, rise))
    power = rng.uniform(2.2, 2.6)
    oval = (np.abs(np.cos(angle) / wide) ** power + np.abs(np.sin(angle) / deep) ** power) ** (-1 / power)
    skin = oval * (1 + _ripple(rng, angle, rise, orders=range(2, 7), size=0.008))
    fat_mm = rng.uniform(6.5, 8.5) if thin else rng.uniform(14, 34)
    under_skin = fat_mm * (1 + _ripple(rng, angle, rise, orders=range(1, 6), size=0.09))
    outer = skin - SKIN_MM - np.maximum(under_skin, 5.0)
    back = np.exp(-(((np.abs(_turn(angle - BACK)) - 0.38) / 0.24) ** 2)) + np.exp(-((_turn(angle - BACK) / 0.3) ** 2))
    wall = rng.uniform(9, 14) * (1 + _ripple(rng, angle, rise, orders=range(1, 7), size=0.07))
    inner = outer - np.maximum(wall, 6.0) - rng.uniform(20, 26) * np.minimum(back, 1.1)
    rind = rng.uniform(3, 6) * (1 + _ripple(rng, angle, rise, orders=range(1, 9), size=0.3))
    middle = 0.5 * (outer + inner)
    along = np.hypot(middle, np.gradient(middle, 2 * np.pi / ANGLES, axis=0))

    centre = 3.0 * _wave(rng, rise[0]), 3.0 * _wave(rng, rise[0])
    left = ((np.arange(shape[0]) - (shape[0] - 1) / 2) * spacing[0])[:, None, None] - centre[0]
    front = -((np.arange(shape[1]) - (shape[1] - 1) / 2 + 4) * spacing[1])[None, :, None] - centre[1]
    left, front = np.broadcast_arrays(left.astype(np.float32), front.astype(np.float32))
    turned = np.arctan2(front, left)
    place = np.rint((turned + np.pi) * (ANGLES / (2 * np.pi))).astype(np.intp) % ANGLES
    slices = np.arange(shape[2])[None, None, :]
    tables = {"skin": skin, "outer": outer, "inner": inner, "rind": rind, "along_ring": along}
    looked_up = {name: table.astype(np.float32)[place, slices] for name, table in tables.items()}
    height = np.broadcast_to((rise[0] * shape[2] * spacing[2]).astype(np.float32), shape)
    return Body(left, front, height, np.hypot(left, front), angle=turned, **looked_up)


def _draw_gaps(rng: np.random.Generator, number: int, height_mm: float) -> tuple[Gap, ...]:
    """Holes anywhere but at the back, apart from one another."""
    slots = rng.permutation(np.linspace(-0.15 * np.pi, 1.15 * np.pi, 7))[:number]
    return tuple(
        Gap(
            angle=float(_turn(slot + rng.uniform(-0.15, 0.15))),
            width_mm=float(rng.uniform(3, 15)),
            middle_mm=float(rng.uniform(0.25, 0.75) * height_mm),
            half_height_mm=float(rng.uniform(0.15, 0.4) * height_mm),
        )
        for slot in slots
    )


def _tissues(rng: np.random.Generator, body: Body, gaps: Sequence[Gap], thin: bool) -> tuple[np.ndarray, np.ndarray]:
    """HU of each voxel before the scanner, and which voxels are fat."""
    fat_hu, muscle_hu = rng.uniform(-106, -96), rng.uniform(48, 60)
    hu = np.full(body.radius.shape, AIR_HU, dtype=np.float32)
    _add_table(hu, body)
    edge_mm = abs(float(body.left[1, 0, 0] - body.left[0, 0, 0]))
    hu += np.clip((body.skin - body.radius) / edge_mm + 0.5, 0, 1) * (SKIN_HU - hu)  # a voxel is part skin, part air
    fat = body.radius < body.skin - SKIN_MM
    muscle = (body.radius < body.outer) & (body.radius >= body.inner)
    near_gap = np.zeros(muscle.shape, dtype=bool)
    for gap in gaps:
        aside = np.abs(_turn(body.angle - gap.angle)) * body.along_ring
        open_here = np.abs(body.height - gap.middle_mm) < gap.half_height_mm
        muscle &= ~(open_here & (aside < gap.width_mm / 2))
        near_gap |= open_here & (aside < gap.width_mm / 2 + 3)
    hu += np.clip((body.skin - SKIN_MM - body.radius) / edge_mm + 0.5, 0, 1) * (fat_hu - hu)
    hu[muscle] = muscle_hu
    solid = muscle | _add_organs(rng, hu, body, near_gap, fullness=1.2 if thin else rng.uniform(0.8, 1.1))
    solid |= _add_spine(rng, hu, body, muscle_hu)
    return hu, fat & ~solid


def _add_table(hu: np.ndarray, body: Body) -> None:
    """The couch: two shells with foam between them, a little hollow, below the patient."""
    lowest = body.front[body.radius < body.skin].min() - 9.0
    depth = lowest + 0.0006 * body.left**2 - body.front
    hu[(depth > 0) & (depth < 26)] = FOAM_HU
    hu[((depth > 0) & (depth < 4)) | ((depth > 22) & (depth < 26))] = TABLE_HU


def _add_organs(
    rng: np.random.Generator, hu: np.ndarray, body: Body, near_gap: np.ndarray, fullness: float
) -> np.ndarray:
    """Paint organs and bowel into the cavity, later ones over earlier ones; return where they are."""
    depth = body.inner - body.radius
    inside = (depth > body.rind) & ~(near_gap & (depth < 9))
    left, front = (body.left / body.inner)[inside], (body.front / body.inner)[inside]
    up = (body.height / (body.height.max() + body.height.min()))[inside]
    values, painted = hu[inside], np.zeros(hu.shape, dtype=bool)
    covered = np.zeros(values.shape, dtype=bool)
    loops = [_bowel_loop(rng) for _ in range(round(float(rng.uniform(22, 30)) * fullness**2))]
    for number, (middle, half, value) in enumerate([*ORGANS, *loops]):
        at = np.array(middle) + rng.normal(0, 0.03, 3)
        size = np.array(half) * fullness * rng.uniform(0.88, 1.12, 3)
        flat = ((left - at[0]) / size[0]) ** 2 + ((front - at[1]) / size[1]) ** 2
        distance = flat + ((up - at[2]) / size[2]) ** 2
        organ = distance < 1
        values[organ] = value + rng.uniform(-4, 4)
        covered |= organ
        if number >= len(ORGANS) and rng.random() < 0.1:  # gas rises to the front of the loop
            values[(distance < 0.35) & (front > at[1])] = GAS_HU
    hu[inside], painted[inside] = values, covered
    return painted


def _bowel_loop(rng: np.random.Generator) -> tuple[tuple[float, ...], tuple[float, ...], float]:
    """Somewhere in the front two thirds of the cavity, in the form of `ORGANS`."""
    away, around = 0.85 * np.sqrt(rng.uniform()), rng.uniform(-0.15 * np.pi, 1.15 * np.pi)
    middle = (away * np.cos(around), away * np.sin(around), rng.uniform(-0.05, 0.9))
    half = (rng.uniform(0.1, 0.24), rng.uniform(0.1, 0.2), rng.uniform(0.08, 0.3))
    return middle, half, float(rng.uniform(28, 48))


def _add_spine(rng: np.random.Generator, hu: np.ndarray, body: Body, muscle_hu: float) -> np.ndarray:
    """A vertebral column with its arch, and the psoas beside it; return where they are."""
    straight_back = np.abs(_turn(body.angle - BACK)) < 0.06
    near = float(body.inner[straight_back].mean())
    middle = -(near - rng.uniform(6, 12))
    wide, deep = rng.uniform(20, 24), rng.uniform(15, 18)
    psoas = ((np.abs(body.left) - wide - 14) / 17) ** 2 + ((body.front - middle + 4) / 19) ** 2 < 1
    psoas &= body.radius < body.inner
    vertebra = (body.left / wide) ** 2 + ((body.front - middle) / deep) ** 2
    arch = (np.abs(body.left) < 5) & (body.front < middle - deep) & (body.front > middle - deep - 34)
    arch &= body.radius < body.outer - 3
    hu[psoas] = muscle_hu
    hu[vertebra < 1] = BONE_HU
    hu[vertebra < 0.72] = MARROW_HU
    hu[arch] = BONE_HU
    return psoas | (vertebra < 1) | arch


def _scanned(rng: np.random.Generator, hu: np.ndarray) -> np.ndarray:
    """What the scanner makes of it: a little blur, and noise of 21 to 26 HU, slightly correlated in the plane."""
    noise = gaussian_filter(rng.standard_normal(hu.shape, dtype=np.float32), (0.5, 0.5, 0), truncate=3)
    noise *= rng.uniform(21, 26) / noise.std()
    seen = gaussian_filter(hu, (0.4, 0.4, 0.25), truncate=3) + noise
    return np.clip(np.rint(seen), -1024, 3071).astype(np.int16)


def _turn(angle: np.ndarray) -> np.ndarray:
    """An angle in [-pi, pi)."""
    return (angle + np.pi) % (2 * np.pi) - np.pi


def _wave(rng: np.random.Generator, rise: np.ndarray) -> np.ndarray:
    """A smooth curve over the height between about -1 and 1."""
    first, second = rng.uniform(0, 2 * np.pi, 2)
    return 0.7 * np.sin(np.pi * rise + first) + 0.3 * np.sin(3 * np.pi * rise + second)


def _ripple(rng: np.random.Generator, angle: np.ndarray, rise: np.ndarray, *, orders: range, size: float) -> np.ndarray:
    """Waves around the body that turn a little on the way up."""
    total = np.zeros(np.broadcast_shapes(angle.shape, rise.shape))
    for order in orders:
        phase, twist, height = rng.uniform(0, 2 * np.pi), rng.normal(0, 1.2), rng.normal(0, size)
        total += height * np.cos(order * angle + phase + twist * rise)
    return total
