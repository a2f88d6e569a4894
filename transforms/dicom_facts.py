"""Acquisition facts of a header, without anything that could name a person, and on request the names themselves.

Facts are numbers, coded strings, and three short texts that are kept only where they look like what they should be. A
string that holds a word or a number of the patient's name, the identifiers or the referring physician is dropped.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from pydicom.charset import convert_encodings, decode_bytes

from .dicom_text import DamagedSequenceError, Element, first_number, items_of, raw_elements, tag_of, texts_of

# Keyword -> BIDS name and what the number is multiplied by.
NUMBERS: dict[int, tuple[str, float]] = {
    tag_of(keyword): (name, factor)
    for keyword, name, factor in (
        *((name, name, 1.0) for name in ("MagneticFieldStrength", "FlipAngle", "SliceThickness", "EchoTrainLength")),
        *((name, name, 1.0) for name in ("PixelBandwidth", "NumberOfAverages", "KVP", "XRayTubeCurrent", "Exposure")),
        *((name, name, 0.001) for name in ("EchoTime", "RepetitionTime", "InversionTime")),
        ("ActualFrameDuration", "FrameDuration", 0.001),
    )
}
CODED: dict[int, str] = {
    tag_of(keyword): name
    for keyword, name in (
        *((name, name) for name in ("ImageType", "PatientPosition", "BodyPartExamined", "ScanningSequence")),
        *((name, name) for name in ("SequenceVariant", "ScanOptions", "MRAcquisitionType", "ContrastBolusIngredient")),
        ("InPlanePhaseEncodingDirection", "InPlanePhaseEncodingDirectionDICOM"),
        *((name, name) for name in ("Units", "DecayCorrection", "CorrectedImage")),
    )
}
SHORT_TEXTS: dict[int, str] = {
    tag_of("Manufacturer"): "Manufacturer",
    tag_of("ManufacturerModelName"): "ManufacturersModelName",
    tag_of("ConvolutionKernel"): "ConvolutionKernel",
}
RADIOPHARMACEUTICAL = tag_of("RadiopharmaceuticalInformationSequence")
DOSE_NUMBERS = {tag_of(name): name for name in ("RadionuclideHalfLife", "RadionuclideTotalDose")}
IDENTIFIERS = tuple(
    tag_of(name)
    for name in ("PatientName", "PatientID", "OtherPatientNames", "ReferringPhysicianName", "AccessionNumber")
)
PERSONAL = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "PatientAge", "StudyDate", "StudyTime", "StudyID"),
    *("StudyDescription", "SeriesDescription", "ProtocolName", "AccessionNumber", "ReferringPhysicianName"),
    *("InstitutionName", "ContrastBolusAgent", "SequenceName"),
)
CHARACTER_SET = 0x00080005
FACT_TAGS = (*NUMBERS, *CODED, *SHORT_TEXTS, *IDENTIFIERS, RADIOPHARMACEUTICAL)
CODE = re.compile(r"[A-Z0-9 _]{1,16}")
SHORT_TEXT = re.compile(r"[A-Za-z0-9][A-Za-z0-9 .,()/_&+-]{0,63}")
NUMBERS_ONLY = re.compile(r"[-+0-9.,:eE \\]*")
CODED_SPLITS = ("ImageType", "FrameType", "ComplexImageComponent")
TOKEN = re.compile(r"[^\W\d_]{3,}|\d{4,}")


def facts_of(texts: Mapping[int, str], elements: Mapping[int, Element]) -> dict[str, Any]:
    """Acquisition facts under their BIDS names, in BIDS units."""
    facts: dict[str, Any] = {}
    for tag in texts.keys() & NUMBERS.keys():
        name, factor = NUMBERS[tag]
        value = first_number(texts[tag])
        if value is not None:
            facts[name] = value * factor if factor == 1 else value / round(1 / factor)
    tokens = tokens_of(texts)
    for table, form in ((CODED, CODE), (SHORT_TEXTS, SHORT_TEXT)):
        for tag in texts.keys() & table.keys():
            kept = [part for part in map(str.strip, texts[tag].split("\\")) if form.fullmatch(part)]
            kept = [part for part in kept if not any(token in part.lower() for token in tokens)]
            if kept:
                facts[table[tag]] = kept if len(kept) > 1 else kept[0]
    if RADIOPHARMACEUTICAL in elements:
        facts |= dose_facts(elements)
    return {name: facts[name] for name in sorted(facts)}


def nameless(splits: Mapping[str, str]) -> dict[str, str]:
    """Values that part slices, where free text stands as a checksum: it tells parts apart and names nobody."""
    return {
        name: text
        if NUMBERS_ONLY.fullmatch(text) or (name in CODED_SPLITS and all(map(CODE.fullmatch, text.split("\\"))))
        else hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:8]
        for name, text in splits.items()
    }


def tokens_of(texts: Mapping[int, str]) -> set[str]:
    """Words of three letters or more and numbers of four digits or more that may name the patient."""
    return {token for tag in IDENTIFIERS if tag in texts for token in TOKEN.findall(texts[tag].lower())}


def dose_facts(elements: Mapping[int, Element]) -> dict[str, Any]:
    """Half-life (s) and dose of the radiopharmaceutical of a PET, as they are stated."""
    facts = {}
    try:
        items = items_of(elements, RADIOPHARMACEUTICAL)
    except DamagedSequenceError:
        return {}
    for item in items[:1]:
        texts = texts_of(raw_elements(item))
        for tag, name in DOSE_NUMBERS.items():
            value = first_number(texts.get(tag))
            if value is not None:
                facts[name] = value
    return facts


def personal_texts(elements: Mapping[int, Element]) -> dict[str, str]:
    """Names, dates and descriptions, in the character set of the file."""
    charset = elements[CHARACTER_SET].value if CHARACTER_SET in elements else b""
    stated = charset.decode("latin-1").strip(" \0").split("\\") if isinstance(charset, bytes) else []
    texts = {}
    for name in PERSONAL:
        value = elements[tag_of(name)].value if tag_of(name) in elements else None
        if not isinstance(value, bytes):
            continue
        try:
            text = decode_bytes(value, convert_encodings(stated or [""]), {0x5C, 0x5E, 0x3D})
        except (LookupError, ValueError):
            text = value.decode("latin-1")
        text = "".join(letter for letter in text if letter.isprintable()).strip()
        if text:
            texts[name] = text
    return texts
