"""Enhanced multi-frame objects: one record a frame, from its own functional groups before the shared ones.

Only PixelValueTransformationSequence rescales; RealWorldValueMapping is another scale beside it and is not applied.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydicom.dataset import Dataset

from .dicom_diffusion import DIRECTION, diffusion_facts, diffusion_splits
from .dicom_facts import CODE, SHORT_TEXT, nameless, tokens_of
from .dicom_record import Slice
from .dicom_text import DamagedSequenceError, Element, first_number, items_of, raw_elements, tag_of, text_of

SHARED = tag_of("SharedFunctionalGroupsSequence")
PER_FRAME = tag_of("PerFrameFunctionalGroupsSequence")
FRAME_TYPES = ("MRImageFrameTypeSequence", "CTImageFrameTypeSequence", "PETFrameTypeSequence")
# Functional group -> what is taken from it.
GROUPS: dict[str, tuple[str, ...]] = {
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "PixelMeasuresSequence": ("PixelSpacing", "SliceThickness"),
    "PixelValueTransformationSequence": ("RescaleSlope", "RescaleIntercept", "RescaleType"),
    "FrameContentSequence": (*("StackID", "TemporalPositionIndex", "DimensionIndexValues", "FrameAcquisitionNumber"),),
    "TemporalPositionSequence": ("TemporalPositionTimeOffset",),
    "CardiacSynchronizationSequence": ("NominalCardiacTriggerDelayTime",),
    "MREchoSequence": ("EffectiveEchoTime",),
    "MRTimingAndRelatedParametersSequence": ("RepetitionTime", "FlipAngle", "EchoTrainLength"),
    "MRModifierSequence": ("InversionTimes",),
    "MRAveragesSequence": ("NumberOfAverages",),
    "MRImagingModifierSequence": ("PixelBandwidth",),
    "MRDiffusionSequence": ("DiffusionBValue",),
    "CTXRayDetailsSequence": ("KVP",),
    "CTExposureSequence": ("XRayTubeCurrentInmA", "ExposureInmAs"),
    "CTReconstructionSequence": ("ConvolutionKernel",),
    **dict.fromkeys(FRAME_TYPES, ("FrameType", "ComplexImageComponent")),
}
WANTED = {tag_of(group): {tag_of(name): name for name in names} for group, names in GROUPS.items()}
GRADIENT = tag_of("DiffusionGradientDirectionSequence")
FIRST_SPLITS = {
    **{name: name for name in ("StackID", "TemporalPositionIndex", "TemporalPositionTimeOffset", "EffectiveEchoTime")},
    "NominalCardiacTriggerDelayTime": "TriggerTime",
}
OTHER_SPLITS = {
    **{name: name for name in ("FrameAcquisitionNumber", "FrameType", "ComplexImageComponent", "FlipAngle")},
    "InversionTimes": "InversionTime",
    "ConvolutionKernel": "ConvolutionKernel",
}
# Name -> BIDS name and divisor.
FACTS = {
    **{name: (name, 1) for name in ("SliceThickness", "FlipAngle", "EchoTrainLength", "KVP", "NumberOfAverages")},
    "PixelBandwidth": ("PixelBandwidth", 1),
    "RepetitionTime": ("RepetitionTime", 1000),
    "EffectiveEchoTime": ("EchoTime", 1000),
    "InversionTimes": ("InversionTime", 1000),
    "XRayTubeCurrentInmA": ("XRayTubeCurrent", 1),
    "ExposureInmAs": ("Exposure", 1),
}


def frames_of(slice_: Slice, texts: Mapping[int, str], elements: Mapping[int, Element]) -> list[Slice]:
    """One record a frame; or the one record, with the reason for which its series stops."""
    try:
        items = items_of(elements, PER_FRAME)
        shared = {name: text for item in items_of(elements, SHARED)[:1] for name, text in group_texts(item).items()}
        own = [group_texts(item) for item in items]
    except DamagedSequenceError as error:
        found = f"the functional group sequence {error} is cut off or damaged. Copy the file again from its source"
        return [replace(slice_, refusal=(f"{slice_.path}: {found}", "truncated"))]
    if len(own) != slice_.frames:
        found = f"NumberOfFrames is {slice_.frames}, PerFrameFunctionalGroupsSequence has {len(own)} items"
        return [replace(slice_, refusal=(f"{slice_.path}: {found}. Export it again", "frame-count"))]
    tokens = tokens_of(texts)
    return [one_frame(slice_, index, {**shared, **said}, tokens) for index, said in enumerate(own)]


def group_texts(item: Dataset) -> dict[str, str]:
    """The wanted values of all functional groups of one item, by keyword."""
    texts: dict[str, str] = {}
    groups = raw_elements(item)
    for group in groups.keys() & WANTED.keys():
        names = WANTED[group]
        for inner in items_of(groups, group)[:1]:
            elements = raw_elements(inner)
            for tag in elements.keys() & names.keys():
                text = text_of(elements[tag])
                if text is not None:
                    texts[names[tag]] = text
            for gradient in items_of(elements, GRADIENT)[:1]:
                direction = raw_elements(gradient).get(DIRECTION)
                text = None if direction is None else text_of(direction)
                if text is not None:
                    texts["DiffusionGradientOrientation"] = text
    return texts


def one_frame(slice_: Slice, index: int, said: Mapping[str, str], tokens: set[str]) -> Slice:
    """The record of frame `index`."""
    splits, other = (
        {split: said[name] for name, split in table.items() if name in said} for table in (FIRST_SPLITS, OTHER_SPLITS)
    )
    indices = said.get("DimensionIndexValues", "").split("\\")
    dimensions = {f"DimensionIndexValues[{place}]": value for place, value in enumerate(indices) if value}
    objects = {} if slice_.instance is None else {"InstanceNumber": str(slice_.instance)}
    diffusion = {
        tag_of(name): said[name] for name in ("DiffusionBValue", "DiffusionGradientOrientation") if name in said
    }
    return replace(
        slice_,
        frame=index,
        instance=None,
        position=said.get("ImagePositionPatient"),
        orientation=said.get("ImageOrientationPatient"),
        spacing=said.get("PixelSpacing"),
        slope=said.get("RescaleSlope", slice_.slope),
        intercept=said.get("RescaleIntercept", slice_.intercept),
        rescale_type=said.get("RescaleType", slice_.rescale_type).upper(),
        splits={
            **slice_.splits,
            **nameless({**splits, **diffusion_splits(diffusion), **other, **dimensions, **objects}),
        },
        facts={**slice_.facts, **frame_facts(said, tokens), **diffusion_facts(diffusion)},
    )


def frame_facts(said: Mapping[str, str], tokens: set[str]) -> dict[str, Any]:
    """Acquisition facts that functional groups hold, under their BIDS names."""
    facts: dict[str, Any] = {}
    for name in said.keys() & FACTS.keys():
        bids, divisor = FACTS[name]
        value = first_number(said[name])
        if value is not None:
            facts[bids] = value / divisor
    for name, bids, form in (("FrameType", "ImageType", CODE), ("ConvolutionKernel", "ConvolutionKernel", SHORT_TEXT)):
        kept = [part.strip() for part in said.get(name, "").split("\\") if form.fullmatch(part.strip())]
        kept = [part for part in kept if not any(token in part.lower() for token in tokens)]
        if kept:
            facts[bids] = kept if len(kept) > 1 else kept[0]
    return facts
