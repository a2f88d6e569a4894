"""The preprocessing of a MONAI bundle as fields of a plan.

Ours is one order: turn, crop, resample, normalise. Transforms in another order are taken where the result is the same,
as with a turn behind a crop; else they stand in the way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ...transforms.geometry import ALL_AXIS_CODES
from .bundle_findings import Findings, Step
from .bundle_intensity import READERS, Intensity
from .bundle_words import Expression

# they make the sample what ours is from the start, or move it
QUIET = {
    *("EnsureChannelFirst", "AsChannelFirst", "AddChannel", "ToTensor", "ToDevice", "Identity"),
    *("SelectItems", "DeleteItems", "EnsureType", "CastToType"),
}
TYPES = ("EnsureType", "CastToType")
FLOATS = ("float32", "float64", "float", "double")
POSITIVE, NONZERO = ("lambda x: x > 0", "lambda x: x>0"), ("lambda x: x != 0", "lambda x: x!=0")
LETTERS = [["L", "R"], ["P", "A"], ["I", "S"]]


@dataclass
class Chain:
    """Fields of a plan, as they are found.

    Args:
        channels: of the image.
        patch: of a window, for what is padded to it.
        hounsfield: whether values below 0 are usual.
    """

    channels: int
    patch: Sequence[int] | None
    hounsfield: bool
    key: str = "image"
    orientation: str | None = None
    spacing_mm: list[float | None] | None = None
    crop: str = "none"
    crop_left_out: bool = False
    intensity: Intensity = field(default_factory=Intensity)

    def take(self, step: Step) -> None:
        """One transform more."""
        name = step.name.removesuffix("Dict").removesuffix("D").removesuffix("d")
        keys = step.get("keys", [])
        keys = [keys] if isinstance(keys, str) else list(keys)
        if name == "LoadImage":
            self._load(step, keys)
        elif self.key not in keys:
            step.findings.ignored.append(f"{step.name} of {', '.join(map(str, keys)) or 'nothing'}")
        elif name in READERS:
            self._normalise(step, name)
        elif name in QUIET:
            dtype = str(step.get("dtype", "float32")) if name in TYPES else "float32"
            if dtype.rpartition(".")[2] not in FLOATS:
                step.stop(f"makes the image {dtype}, and here it stays float32")
        elif name in TAKERS:
            TAKERS[name](self, step, keys.index(self.key))
        else:
            step.stop("has no counterpart here")

    def fields(self) -> dict[str, Any]:
        """What a plan says of it."""
        values = self.intensity.values()
        return {
            "orientation": self.orientation,
            "spacing_mm": self.spacing_mm,
            "crop": self.crop,
            "normalisation": [dict(values) for _ in range(self.channels)],
        }

    def _load(self, step: Step, keys: Sequence[str]) -> None:
        if len(keys) != 1:
            step.stop(f"reads {', '.join(map(str, keys)) or 'nothing'}, expected one image")
            return
        self.key = str(keys[0])

    def _normalise(self, step: Step, name: str) -> None:
        before = self.intensity
        self.intensity = before.after(step, self.channels)
        if (
            self.intensity.kind in ("zscore", "rescale_own")
            and self.intensity.kind != before.kind
            and self.crop_left_out
        ):
            step.stop("takes statistics of the image cropped to its foreground, and that crop is not done here")

    def _orient(self, step: Step, at: int) -> None:
        axes = "RAS" if step.get("as_closest_canonical", False) else step.get("axcodes", "")
        codes = "".join(map(str, axes)).upper()
        if codes not in ALL_AXIS_CODES:
            step.stop(f"axcodes is {axes!r:.40}, expected a word such as RAS")
            return
        labels = step.get("labels", LETTERS)
        if labels is not None and [list(pair) for pair in labels] != LETTERS:
            step.stop(f"labels is {labels!r:.60}, and only {LETTERS} is done here")
        if self.spacing_mm is not None:
            step.stop("stands behind Spacingd; here an image is turned first")
        self.orientation = codes

    def _space(self, step: Step, at: int) -> None:
        found = step.numbers("pixdim")
        step.keep(diagonal=False, scale_extent=False, recompute_affine=False, min_pixdim=None, max_pixdim=None)
        if self.intensity.clipped or self.intensity.own:
            step.stop("stands behind a normalisation; here an image is resampled first")
        if self.spacing_mm is not None:
            step.stop("stands there a second time")
        mode, padding = (self._of_image(step.get(key, usual), at) for key, usual in MODES.items())
        if mode not in ("bilinear", 1):
            step.stop(f"mode is {mode!r}, and only 'bilinear' is done here")
        if padding != "border":
            step.stop(f"padding_mode is {padding!r}, and only 'border' is done here")
        if found is None:
            return
        spacing = [*found, *[found[-1]] * 3][:3]
        self.spacing_mm = [side if side > 0 else None for side in spacing]

    def _crop(self, step: Step, at: int) -> None:
        select = step.values.get("select_fn")
        test = " ".join(select.text.split()) if isinstance(select, Expression) else None
        if select is not None and test not in (*POSITIVE, *NONZERO):
            step.stop(f"select_fn is {select}, which is not evaluated")
            return
        if step.get("source_key", self.key) != self.key or step.get("channel_indices") is not None:
            step.stop("is decided by something else than the whole image")
            return
        plain = not any(step.numbers("margin", 0) or [1]) and set(step.numbers("k_divisible", 1) or [0]) == {1}
        nonzero = test in NONZERO
        early = self.spacing_mm is None and self.intensity == Intensity()
        if plain and early and (nonzero or not self.hounsfield):
            self.crop = "nonzero"
            if not nonzero:
                step.differ("the crop keeps all voxels that are not 0; MONAI's keeps those above 0")
            return
        self.crop_left_out = True
        step.differ(
            "the crop to the foreground is not done: windows are laid over the whole image, and what lies outside of "
            "the foreground's box may be labelled too"
        )

    def _pad(self, step: Step, at: int) -> None:
        step.keep(method="symmetric", mode="constant", value=0)
        wanted = step.numbers("spatial_size")
        if wanted is not None and self.patch is not None:
            sides = [*wanted, *[wanted[-1]] * 3][:3]
            if any(side > least for side, least in zip(sides, self.patch, strict=False)):
                step.stop(f"pads to {wanted}, which is more than a window ({list(self.patch)})")

    @staticmethod
    def _of_image(value: Any, at: int) -> Any:
        """What a list says of one of the keys."""
        if isinstance(value, list):
            return value[at] if at < len(value) else value[-1]
        return value


MODES = {"mode": "bilinear", "padding_mode": "border"}
TAKERS = {
    "Orientation": Chain._orient,
    "Spacing": Chain._space,
    "CropForeground": Chain._crop,
    "SpatialPad": Chain._pad,
}


def read_chain(
    steps: Sequence[Step], findings: Findings, *, channels: int, patch: Sequence[int] | None, hounsfield: bool
) -> dict[str, Any]:
    """Fields of a plan that do what the transforms do; what they cannot do is noted.

    Args:
        steps: transforms of the preprocessing, in order.
        findings: for what is noted.
        channels: of the image.
        patch: of a window.
        hounsfield: whether the image is a CT.
    """
    chain = Chain(channels, patch, hounsfield)
    if not steps or not steps[0].name.startswith("LoadImage"):
        findings.obstacles.append("preprocessing does not begin with LoadImaged")
    for step in steps:
        chain.take(step)
    if chain.orientation is None and chain.spacing_mm is not None and len({*chain.spacing_mm}) > 1:
        findings.differs.append(
            "axes are not turned, as the bundle says: its spacing goes by the order of the file's axes, here too"
        )
    return chain.fields()
