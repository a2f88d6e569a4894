"""The fields of an nnU-Net's plans.json that decide predictions, checked; what it inherits is filled in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...errors import UsageError, unknown

CASCADE_FIELD, PARENT_FIELD = "previous_stage", "inherits_from"
ANISOTROPY = 3.0  # ratio of spacings from which on the coarse axis goes apart; ours and theirs


class Part(BaseModel):
    """Base of the parts: fields that are not listed matter to nobody here."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


Kind = TypeVar("Kind", bound=Part)


class ResampleArguments(Part):
    """Arguments of nnU-Net's resampling function; None for `force_separate_z` lets the spacing decide."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    is_seg: bool = False
    order: int = 3
    order_z: int = 0
    force_separate_z: bool | None = False
    separate_z_anisotropy_threshold: float = ANISOTROPY


class Configuration(Part):
    """One configuration; sizes in nnU-Net's order of axes, two numbers for a network of slices."""

    patch_size: list[int] = Field(min_length=2, max_length=3)
    spacing: list[float] = Field(min_length=2, max_length=3)
    batch_size: int = Field(default=2, ge=1)
    preprocessor_name: str = "DefaultPreprocessor"
    normalization_schemes: list[str] = Field(min_length=1)
    use_mask_for_norm: list[bool]
    resampling_fn_data: str
    resampling_fn_data_kwargs: dict[str, Any] = {}
    resampling_fn_probabilities: str
    resampling_fn_probabilities_kwargs: dict[str, Any] = {}
    previous_stage: str | None = None


class Intensities(Part):
    """What the foreground of one channel looked like in training."""

    mean: float
    std: float
    percentile_00_5: float
    percentile_99_5: float
    median: float | None = None


class Plans(Part):
    """What all configurations share."""

    dataset_name: str = "nnU-Net"
    plans_name: str = ""
    transpose_forward: list[int] = Field(min_length=3, max_length=3)
    image_reader_writer: str = "SimpleITKIO"
    label_manager: str = "LabelManager"
    configurations: dict[str, dict[str, Any]]
    foreground_intensity_properties_per_channel: dict[str, dict[str, Any]] | None = None
    foreground_intensity_properties_by_modality: dict[str, dict[str, Any]] | None = None

    @property
    def intensities(self) -> Mapping[str, Mapping[str, Any]]:
        """By channel, under either of the names that the field had."""
        own, old = self.foreground_intensity_properties_per_channel, self.foreground_intensity_properties_by_modality
        return own or old or {}


def checked(kind: type[Kind], values: Any, where: str) -> Kind:
    """Values as one of the parts.

    Raises:
        UsageError: names the first field that is missing or wrong.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the whole"
        found = "it is missing" if first["type"] == "missing" else f"found {str(first['input'])[:60]!r}"
        raise UsageError(f"{where}: {field}: {found}, {first['msg'][:1].lower()}{first['msg'][1:]}") from error


def inherited(plans: Plans, name: str, where: str) -> dict[str, Any]:
    """A configuration with the fields that it takes over from others.

    Raises:
        UsageError: no such configuration, or a circle.
    """
    chain: list[str] = []
    following: Any = name
    while following is not None:
        if following not in plans.configurations:
            raise unknown(f"configuration in {where}:", str(following), plans.configurations)
        if following in chain:
            raise UsageError(f"{where}: configurations inherit in a circle ({' -> '.join([*chain, following])})")
        chain.append(following)
        following = plans.configurations[following].get(PARENT_FIELD)
    found: dict[str, Any] = {}
    for one in reversed(chain):
        found |= plans.configurations[one]
    return found
