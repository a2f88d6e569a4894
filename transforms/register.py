"""One volume aligned to another: rigid or affine, by mutual information, through SimpleITK.

Mattes et al., IEEE TMI 2003. Sampling is seeded and the arithmetic runs in one thread, so that equal inputs give equal
matrices.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import CaseError
from .dicom_series import LPS_TO_RAS
from .geometry import apply_affine
from .volume import Geometry

KINDS = ("rigid", "affine")
SEED = 20260
BINS = 32
SAMPLED = 20_000  # voxels that the metric looks at; all of a small volume
STEPS = 200
SMALLEST_SIDE = 12  # voxels that an axis keeps when it is made coarser


def register(
    moving: np.ndarray, moving_geometry: Geometry, fixed: np.ndarray, fixed_geometry: Geometry, kind: str = "rigid"
) -> np.ndarray:
    """The place in the world of `fixed` -> the place in the world of `moving` that shows the same.

    Args:
        moving: (X, Y, Z), to be aligned.
        moving_geometry: its place.
        fixed: (X, Y, Z), stays.
        fixed_geometry: its place.
        kind: "rigid" (turn and shift) or "affine" (also stretch and shear).

    Returns:
        (4, 4) float64, RAS+ mm.

    Raises:
        CaseError: the volumes do not overlap, one is constant or oblique beyond right angles, or no better place is
            found than the one that the headers say.
    """
    if kind not in KINDS:
        raise ValueError(f"--register {kind!r}: expected one of {', '.join(KINDS)}")
    import SimpleITK as sitk

    images = [_image(sitk, array, geometry) for array, geometry in ((fixed, fixed_geometry), (moving, moving_geometry))]
    centre = _centre(fixed_geometry)
    start: Any = sitk.Euler3DTransform() if kind == "rigid" else sitk.AffineTransform(3)
    start.SetCenter([float(value) for value in centre])
    method = sitk.ImageRegistrationMethod()
    method.SetNumberOfThreads(1)
    method.SetMetricAsMattesMutualInformation(BINS)
    share = min(1.0, SAMPLED / max(1, fixed.size))
    method.SetMetricSamplingStrategy(method.RANDOM if share < 1 else method.NONE)
    method.SetMetricSamplingPercentage(share, SEED)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-4, STEPS, 0.5)
    method.SetOptimizerScalesFromPhysicalShift()
    levels = [level for level in (4, 2, 1) if level == 1 or min(fixed.shape) // level >= SMALLEST_SIDE]
    method.SetShrinkFactorsPerLevel(levels)
    method.SetSmoothingSigmasPerLevel([float(level // 2) * min(fixed_geometry.spacing_mm) for level in levels])
    method.SetInitialTransform(start, inPlace=False)
    threads = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)  # sums in another order end in other last bits
    try:
        before = method.MetricEvaluate(*images)
        found = method.Execute(*images)
        method.SetInitialTransform(found, inPlace=False)
        after = method.MetricEvaluate(*images)
    except RuntimeError as error:
        raise CaseError(
            f"cannot be aligned ({_reason(str(error))}); leave --register out, or the case",
            "registration-failed",
        ) from error
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    if not after <= before + 1e-3 * abs(before):
        raise CaseError(
            f"no better place was found than the one of the headers (mutual information {-after:.4f}, {-before:.4f} "
            "before); leave --register out, or the case",
            "registration-failed",
        )
    points = np.concatenate([np.zeros((1, 3)), np.eye(3)])
    places = np.array([found.TransformPoint([float(value) for value in point]) for point in points])
    matrix = np.eye(4)
    matrix[:3, 3] = places[0]
    matrix[:3, :3] = (places[1:] - places[0]).T
    return np.asarray(LPS_TO_RAS @ matrix @ LPS_TO_RAS)


def _image(sitk: Any, array: np.ndarray, geometry: Geometry) -> Any:
    values = np.ascontiguousarray(array.T, dtype=np.float32)
    if not np.isfinite(values).all() or values.min() == values.max():
        raise CaseError(
            "cannot be aligned: a channel is constant or holds voxels that are not finite", "registration-failed"
        )
    image = sitk.GetImageFromArray(values)
    affine = LPS_TO_RAS @ geometry.affine
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    directions = affine[:3, :3] / spacing
    if np.abs(directions.T @ directions - np.eye(3)).max() > 1e-3:
        raise CaseError("cannot be aligned: its grid is sheared (a tilted gantry); leave --register out", "sheared")
    image.SetSpacing([float(value) for value in spacing])
    image.SetDirection([float(value) for value in directions.ravel()])
    image.SetOrigin([float(value) for value in affine[:3, 3]])
    return image


def _centre(geometry: Geometry) -> np.ndarray:
    middle = (np.array(geometry.shape[:3], dtype=np.float64) - 1) / 2
    return np.asarray(apply_affine(LPS_TO_RAS @ geometry.affine, middle))


def _reason(text: str) -> str:
    return "the volumes do not overlap" if "samples map outside" in text else "the registration gave no result"
