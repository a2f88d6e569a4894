"""The parts of a plan: labels, normalisation, resampling, network, optimiser."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

REGION_LOSSES = ("dice_ce", "dice", "bce", "dice_bce")  # of `networks.losses.LOSSES`, those that regions have too


class Record(BaseModel):
    """Base of the plan's parts: an unknown field is an error, not a silent nothing."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Label(Record):
    """One class; its place in the list is its number, 0 is background.

    `value` is what the label maps hold, `side` says that the class means a side or an end of the body, so that
    mirroring would turn it into another class.
    """

    value: int = Field(ge=0, le=65535)
    name: str
    side: bool = False


class Region(Record):
    """What one channel of the network's output stands for, where these may overlap: a union of label values.

    values: of the label maps that it is made of; writes: the value that its voxels get, over that of regions before it.
    """

    name: str
    values: list[int] = Field(min_length=1)
    writes: int


class Normalisation(Record):
    """How one channel's values become the network's.

    window: clip to [low, high], then (value - mean) / std; zscore: the image's own mean and deviation (zscore_nonzero:
    of its nonzero voxels), clipped to [low, high] afterwards where these are given; zscore_mask: mean and deviation of
    where any channel is not zero, holes filled, and the values beyond as they are; rescale: [low, high] becomes 0..1;
    rescale_own: the image's own range does, then (value - mean) / std; rescale_nonzero: the range of its nonzero voxels
    does, the others becoming what the mean of these becomes; none: as stored.
    """

    kind: Literal[
        "window", "zscore", "zscore_nonzero", "zscore_mask", "rescale", "rescale_own", "rescale_nonzero", "none"
    ]
    low: float | None = None
    high: float | None = None
    mean: float = 0.0
    std: float = Field(default=1.0, gt=0)

    @model_validator(mode="after")
    def _check(self) -> Normalisation:
        if self.kind in ("window", "rescale") and (self.low is None or self.high is None):
            raise ValueError(f"{self.kind} needs low and high")
        unbounded = ("zscore_mask", "rescale_own", "rescale_nonzero", "none")
        if self.kind in unbounded and (self.low is not None or self.high is not None):
            raise ValueError(f"{self.kind} takes neither low nor high")
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError(f"low must be below high, found low {self.low:g} and high {self.high:g}")
        return self


class Resampling(Record):
    """How images come to the plan's spacing, and the scores back.

    kind: linear, where the centres of the first voxels agree (`transforms.resample`); span, the same with as many
    voxels as lie between the first centre and the last; or spline, where the edges of the grids do and normalisation
    comes first (`transforms.spline`; all else here but scores is of this one); separate: whether the coarse axis is
    resampled on its own, by itself where it is more than three times as coarse as the finest (auto); order and
    order_separate: of the spline within the planes and along that axis; scores_*: the same on the way back, where 0 is
    nearest and 1 is linear; scores: what of them is interpolated for the labels.
    """

    kind: Literal["linear", "span", "spline"] = "linear"
    separate: Literal["auto", "always", "never"] = "auto"
    order: int = Field(default=3, ge=0, le=3)
    order_separate: int = Field(default=0, ge=0, le=3)
    scores_separate: Literal["auto", "always", "never"] = "auto"
    scores_order: Literal[1] = 1
    scores_order_separate: Literal[0, 1] = 0
    scores: Literal["logits", "probabilities"] = "logits"


class Start(Record):
    """Weights that a network starts from instead of fresh ones.

    weights: a file, a model folder where `folds` says so, or `imagenet`; sha256: of the file, filled in where it is
    first read and held to from then on; channel_order: `bgr` for weights that were trained on blue, green, red;
    folds: of the model folder, with the SHA-256 of the weights of each; fresh_head: whether what depends on the number
    of classes is not taken, as the classes are others.
    """

    weights: str
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    channel_order: Literal["rgb", "bgr"] = "rgb"
    folds: dict[str, str] = Field(default_factory=dict)
    fresh_head: bool = False

    @model_serializer(mode="wrap")
    def _without_the_usual(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = write(self)
        return {key: value for key, value in values.items() if value or key not in ("folds", "fresh_head")}


class Network(Record):
    """A name that `voxelwise networks` lists, or file.py:Class, its options, and perhaps weights to start from.

    `weights` (and `channel_order`) among the options are moved to `start`: no class of a network takes them.
    """

    name: str
    options: dict[str, Any] = Field(default_factory=dict)
    start: Start | None = None

    @model_validator(mode="before")
    @classmethod
    def _lift(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not isinstance(values.get("options"), dict):
            return values
        start, options = split_start(values["options"])
        if start is None:
            return values
        before = values.get("start") or {}
        same = all(dict(before).get(key, value) == value for key, value in start.items()) and before
        return {**values, "options": options, "start": before if same else start}

    @model_serializer(mode="wrap")
    def _without_nothing(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = write(self)
        return {key: value for key, value in values.items() if key != "start" or value is not None}


def split_start(options: Mapping[str, Any]) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """What options say of the weights to start from, None where they say nothing; and the network's own options."""
    rest = dict(options)
    weights = rest.pop("weights", None)
    if weights is None:
        return None, dict(options)
    start = {"weights": str(weights)}
    if "channel_order" in rest:
        start["channel_order"] = rest.pop("channel_order")
    return start, rest


class Optimizer(Record):
    """What moves the weights; `warmup` is the share of the run's steps in which the rate climbs to `lr`."""

    name: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: float = Field(default=3e-3, gt=0)
    weight_decay: float = Field(default=3e-5, ge=0)
    schedule: Literal["cosine", "poly", "constant"] = "cosine"
    warmup: float = Field(default=0.05, ge=0, lt=1)
