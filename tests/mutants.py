"""Seeded byte mutations of small sources with a known truth, and the verdict on what our readers make of each.

Every voxel of a source holds one linear function of its place in the world. A volume that is read is right where each
of its voxels equals that function at the place that the volume claims for it, and no slice is lost or added; axis
order, flips, spacing, origin, rescale, mixing and loss are all caught by one number. A mutant is made from (seed, kind,
number) alone.
"""

from __future__ import annotations

import gzip
import io
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import phantoms
import pydicom
from pydicom.datadict import dictionary_keyword, keyword_dict
from voxelwise.errors import CaseError, VoxelwiseError
from voxelwise.transforms.geometry import apply_affine
from voxelwise.transforms.readers import find_sources, read_source
from voxelwise.transforms.volume import Volume

KINDS = ("nifti_header", "nifti_gzip", "dicom_header", "dicom_structure")
SHAPE = (16, 14, 12)
GRADIENT = np.array([3.0, -5.0, 9.0])  # per mm along right, anterior, superior
TOLERANCE = 1.2  # of a value: 0.5 is rounding, and 0.1 mm is 0.9
VERDICTS = ("right", "noted", "refused", "silently wrong", "traceback", "memory", "hang", "crash")
PIXEL_BYTES = SHAPE[0] * SHAPE[1] * 2
PIXELS_ALONE = ("voxels", "voxels exchanged", "zeroed to its end")
Files = dict[str, bytes]

# where the fields of a NIfTI-1 header begin, and the row of the hazard catalogue that may tell to stop for them
NIFTI_FIELDS = (
    *(
        (0, "sizeof_hdr", "N13"),
        (4, "unused text", ""),
        (40, "dim", "N10"),
        (56, "intent", ""),
        (68, "intent_code", "N07"),
    ),
    *(
        (70, "datatype", "N14"),
        (72, "bitpix", ""),
        (74, "slice_start", ""),
        (76, "pixdim", "N01"),
        (108, "vox_offset", "N10"),
    ),
    *((112, "scl_slope", "N15"), (116, "scl_inter", "N15"), (120, "slice_end", ""), (123, "xyzt_units", "N06")),
    *(
        (124, "cal", ""),
        (252, "qform_code", "N02"),
        (254, "sform_code", "N02"),
        (256, "qform", "N01"),
        (280, "sform", "N01"),
    ),
    *((328, "intent_name", ""), (344, "magic", "N13"), (348, "extension flags", "")),
)
# the row that may tell to stop where a tag is changed; of those of `OF_ONE`, where it is changed in one slice alone
DICOM_ROWS = {
    **dict.fromkeys(("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"), "D29"),
    **dict.fromkeys(("Rows", "Columns", "NumberOfFrames"), "D26"),
    **dict.fromkeys(("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel"), "D31"),
    **dict.fromkeys(("RescaleSlope", "RescaleIntercept"), "D16"),
    **dict.fromkeys(("StudyInstanceUID", "SeriesInstanceUID"), "D33"),
    **dict.fromkeys(("SOPClassUID", "MediaStorageSOPClassUID"), "D25"),
    "PhotometricInterpretation": "D18",
    "TransferSyntaxUID": "D19",
    "PixelData": "D23",
}
OF_ONE = {"StudyInstanceUID": "D06", "SeriesInstanceUID": "D06", "FrameOfReferenceUID": "D32", "PatientID": "D32"}
# why nobody can see it: what stands there once, and in no checksum
ONLY_COPY = {
    "nifti scaling": "scl_slope and scl_inter stand in the header once, and nothing covers the header with a checksum",
    "nifti type": "datatype of equal width and bitpix: nothing else says whether voxels are signed",
    "nifti units": "xyzt_units stands in the header once",
    "pixels": "stored voxels: DICOM has no checksum over PixelData",
    "all alike": "the tag is changed alike in every slice, and nothing in the file states it a second time",
    "bits of one": "how the voxels of this slice are stored is said in this slice once",
}


def value_at(places: np.ndarray) -> np.ndarray:
    """The function that every voxel holds."""
    return 100 + places @ GRADIENT


def truth() -> tuple[np.ndarray, np.ndarray]:
    """Array (X, Y, Z) of whole numbers and its affine."""
    affine = phantoms.oblique((0.8, 1.1, 2.5))
    index = np.stack(np.meshgrid(*(np.arange(size) for size in SHAPE), indexing="ij"), axis=-1)
    return np.rint(value_at(apply_affine(affine, index))).astype(np.int16), affine


def is_right(volume: Volume) -> bool:
    """Whether every voxel has the value of the place that the volume claims for it."""
    if volume.array.shape[0] != 1 or len(volume.geometry.shape) not in (2, 3) or not volume.geometry.has_world:
        return False
    shape = (*volume.geometry.shape, 1)[:3]
    index = np.stack(np.meshgrid(*(np.arange(size) for size in shape), indexing="ij"), axis=-1)
    wanted = value_at(apply_affine(volume.geometry.affine, index))
    with np.errstate(invalid="ignore", over="ignore"):
        return bool(np.all(np.abs(volume.array[0].reshape(shape).astype(np.float64) - wanted) <= TOLERANCE))


@dataclass(frozen=True, eq=False)
class Mutant:
    """One damaged source.

    Args:
        name: kind and number.
        files: what was changed; None takes a file away.
        what: field or tag, and how it was changed.
        rows: rows of the hazard catalogue that may tell to stop for it; none where the mutant is right in truth.
        once: key of `ONLY_COPY` where nothing can show the change.
    """

    name: str
    files: Mapping[str, bytes | None]
    what: str
    rows: tuple[str, ...] = ()
    once: str = ""


@dataclass(frozen=True)
class Verdict:
    """What came of one mutant: the word, and what was said."""

    name: str
    word: str
    what: str
    said: str = ""
    rows: tuple[str, ...] = ()
    once: str = ""

    @property
    def false_alarm(self) -> bool:
        """Refused, right in truth, and no row tells to stop."""
        return self.word == "refused" and not self.rows


@dataclass(eq=False)
class Bench:
    """A folder in which one mutant after the other is put in the place of its source.

    Args:
        folder: made here; each kind has a subfolder.
    """

    folder: Path
    sources: dict[str, Files] = field(default_factory=dict)
    usual: dict[str, frozenset[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        array, affine = truth()
        made = self.folder / "made"
        raw = phantoms.nifti_file(made / "image.nii", array, affine).read_bytes()
        self.sources["nifti_header"] = {"image.nii": raw}
        self.sources["nifti_gzip"] = {"image.nii.gz": gzip.compress(raw, compresslevel=6, mtime=0)}
        normal = np.cross(affine[:3, 0], affine[:3, 1])
        series = phantoms.ct_series(
            made / "series",
            array,
            affine,
            ImagesInAcquisition=SHAPE[2],
            SliceLocation=lambda k: f"{float(affine[:3] @ [0, 0, k, 1] @ normal / np.linalg.norm(normal)):.6g}",
            SeriesDescription="chest, soft tissue",
            WindowCenter="40",
            WindowWidth="400",
        )
        files = {path.name: path.read_bytes() for path in series}
        self.sources["dicom_header"] = self.sources["dicom_structure"] = files
        for kind in KINDS:
            place = self.folder / kind
            place.mkdir(parents=True)
            for name, data in self.sources[kind].items():
                (place / name).write_bytes(data)
            volumes, said, stopped = read_all(place)
            if stopped or len(volumes) != 1 or not is_right(volumes[0]):
                raise AssertionError(f"the source of {kind} is not read rightly: {stopped}")
            self.usual[kind] = frozenset(said)

    def judge(self, kind: str, seed: int, number: int) -> Verdict:
        """Make one mutant, read it, and put the source back."""
        mutant = MAKERS[kind](self.sources[kind], np.random.default_rng([seed, KINDS.index(kind), number]), number)
        place = self.folder / kind
        try:
            for name, data in mutant.files.items():
                if data is None:
                    (place / name).unlink()
                else:
                    (place / name).write_bytes(data)
            word, said = self.verdict(place, kind)
        finally:
            for name in mutant.files:
                if name in self.sources[kind]:
                    (place / name).write_bytes(self.sources[kind][name])
                else:
                    (place / name).unlink(missing_ok=True)
        return Verdict(mutant.name, word, mutant.what, said, mutant.rows, mutant.once)

    def verdict(self, place: Path, kind: str) -> tuple[str, str]:
        """The word for what was read, and what was said with it."""
        try:
            volumes, said, stopped = read_all(place)
        except MemoryError as error:
            return "memory", str(error)
        except VoxelwiseError as error:
            return "refused", str(error)
        except Exception as error:  # any other exception is what is looked for
            return "traceback", f"{type(error).__name__}: {error}"
        new = sorted(said - self.usual[kind])
        if stopped:
            return "refused", stopped[0].replace(str(place), "")
        slices = sum((*volume.geometry.shape, 1)[2] for volume in volumes)
        if slices == SHAPE[2] and all(is_right(volume) for volume in volumes):
            return ("noted" if new else "right"), ", ".join(new)
        return ("noted", f"wrong: {', '.join(new)}") if new else ("silently wrong", "")


def read_all(place: Path) -> tuple[list[Volume], set[str], list[str]]:
    """Every volume behind a folder, the codes of all repairs and notes and of what was listed, and the refusals."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = find_sources(place)
        stopped = [one.message for one in found.stopped]
        volumes = []
        for source in found.sources:
            try:
                volumes.append(read_source(source))
            except CaseError as error:
                stopped.append(str(error))
    said = {entry.code for volume in volumes for entry in (*volume.repairs, *volume.notes)}
    said |= {f"listed: {one.reason}" for one in found.listed}
    return volumes, said, stopped


def overwritten(data: bytes, at: int, end: int, rng: np.random.Generator) -> tuple[bytes, str]:
    """One bit turned, or one to four bytes before `end` replaced."""
    changed = bytearray(data)
    if rng.random() < 0.5:
        changed[at] ^= 1 << int(rng.integers(8))
        return bytes(changed), "a bit turned"
    count = min(int(rng.integers(1, 5)), end - at)
    changed[at : at + count] = rng.bytes(count)
    return bytes(changed), f"{count} bytes replaced"


def nifti_header(files: Files, rng: np.random.Generator, number: int) -> Mutant:
    """Bytes of the first 352; every second one is packed again."""
    raw = files["image.nii"]
    at = int(rng.integers(352))
    data, how = overwritten(raw, at, 352, rng)
    touched = [index for index in range(352) if raw[index] != data[index]]
    fields = {max((one for one in NIFTI_FIELDS if one[0] <= index), key=lambda one: one[0]) for index in touched}
    names = sorted(one[1] for one in fields)
    rows = tuple(sorted({one[2] for one in fields} - {""}))
    once = ""
    if {"scl_slope", "scl_inter"} & set(names):
        once = "nifti scaling"
    elif "datatype" in names:
        once = "nifti type"
    elif "xyzt_units" in names:
        once = "nifti units"
    what = f"{', '.join(names) or 'nothing'} at byte {at}: {how}"
    if number % 2:
        changed: dict[str, bytes | None] = {"image.nii": None, "image.nii.gz": gzip.compress(data, 1, mtime=0)}
    else:
        changed = {"image.nii": data}
    return Mutant(f"nifti_header-{number}", changed, what, rows, once)


def nifti_gzip(files: Files, rng: np.random.Generator, number: int) -> Mutant:
    """Bytes of the packed stream, or its end cut off."""
    packed = files["image.nii.gz"]
    if rng.random() < 0.15:
        length = int(rng.integers(len(packed)))
        data, what = packed[:length], f"cut at byte {length} of {len(packed)}"
    else:
        at = int(rng.integers(18)) if rng.random() < 0.2 else int(rng.integers(len(packed)))
        data, how = overwritten(packed, at, len(packed), rng)
        what = f"byte {at} of {len(packed)}: {how}"
    return Mutant(f"nifti_gzip-{number}", {"image.nii.gz": data}, what, () if unpacks_to(data, packed) else ("N09",))


def unpacks_to(data: bytes, packed: bytes) -> bool:
    """Whether Python's gzip, which compares all checksums, still gives the same bytes."""
    try:
        return gzip.decompress(data) == gzip.decompress(packed)
    except (OSError, EOFError, ValueError, struct.error, zlib.error):
        return False


@dataclass(frozen=True)
class Element:
    """One element of an explicit VR little endian file: its tag, and where it lies."""

    tag: int
    start: int
    end: int

    @property
    def keyword(self) -> str:
        """DICOM's word for it."""
        try:
            return dictionary_keyword(self.tag) or f"{self.tag:08x}"
        except KeyError:
            return f"{self.tag:08x}"


def elements(data: bytes) -> Iterator[Element]:
    """All elements of a file that has no sequences."""
    at = 132
    while at < len(data):
        group, number, code = struct.unpack_from("<HH2s", data, at)
        if code in (b"OB", b"OW", b"SQ", b"UN", b"UT", b"OF", b"OD"):
            length, head = struct.unpack_from("<I", data, at + 8)[0], 12
        else:
            length, head = struct.unpack_from("<H", data, at + 6)[0], 8
        yield Element(group << 16 | number, at, at + head + length)
        at += head + length


def dicom_header(files: Files, rng: np.random.Generator, number: int) -> Mutant:
    """Bytes before the voxels, in one slice or alike in all of them."""
    names = sorted(files)
    one = names[int(rng.integers(len(names)))]
    found = [element for element in elements(files[one]) if element.keyword != "PixelData"]
    at = int(rng.integers(132, found[-1].end))
    element = next(each for each in found if each.start <= at < each.end)
    state = rng.bit_generator.state
    changed: dict[str, bytes] = {}
    alike = rng.random() < 0.5
    for name in names if alike else [one]:
        if name == one:
            where = at
        else:
            other = next(each for each in elements(files[name]) if each.tag == element.tag)
            where = other.start + min(at - element.start, other.end - other.start - 1)
        rng.bit_generator.state = state
        rng.random()
        changed[name], how = overwritten(files[name], where, len(files[name]) - PIXEL_BYTES - 12, rng)
    tags = set().union(*(changed_tags(files[name], data) for name, data in changed.items()))
    known = DICOM_ROWS if alike else {**DICOM_ROWS, **OF_ONE}
    rows = {"D24"} if "structure" in tags else {known[tag] for tag in tags if tag in known}
    what = f"{element.keyword} of {'all slices' if alike else one} (byte {at - element.start}): {how}"
    if tags - {element.keyword}:
        what += f"; changes {', '.join(sorted(tags))}"
    once = "all alike" if alike and "structure" not in tags else ""
    if not alike and tags & {"BitsStored", "HighBit", "PixelRepresentation"}:
        once = "bits of one"
    return Mutant(f"dicom_header-{number}", dict(changed), what, tuple(sorted(rows)), once)


def changed_tags(before: bytes, after: bytes) -> set[str]:
    """Keywords of the elements that pydicom, which is lenient, reads otherwise now; "structure" where it cannot."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tables = [values_of(data) for data in (before, after)]
    except Exception:  # whatever a parser says of rubbish
        return {"structure"}
    tags = {tag for tag in {*tables[0], *tables[1]} if tables[0].get(tag) != tables[1].get(tag)}
    lost = set(tables[0]) - set(tables[1])
    if len(lost) > 1 or len(set(tables[1]) - set(tables[0])) > 1:
        return {"structure"}
    return {Element(tag, 0, 0).keyword for tag in tags}


@lru_cache(maxsize=64)
@lru_cache(maxsize=64)
def values_of(data: bytes) -> dict[int, str]:
    """Value representation and stored value of all elements of a file."""
    dataset = pydicom.dcmread(io.BytesIO(data), force=True)
    return {
        int(tag): f"{part.get_item(tag).VR} {part.get_item(tag).value!r}"
        for part in (dataset.file_meta, dataset)
        for tag in sorted(part.keys())
    }


def dicom_structure(files: Files, rng: np.random.Generator, number: int) -> Mutant:
    """Whole slices lost, cut, doubled or exchanged, and voxels changed."""
    names = sorted(files)
    first, second = (names[int(index)] for index in rng.choice(len(names), 2, replace=False))
    what = str(rng.choice(list(STRUCTURE), p=[weight for weight, _, _ in STRUCTURE.values()]))
    _, rows, change = STRUCTURE[what]
    changed, detail = change(files, first, second, rng)
    whole = all(
        data is None or data[: len(data) - PIXEL_BYTES] in {one[: len(one) - PIXEL_BYTES] for one in files.values()}
        for data in changed.values()
    )
    once = "pixels" if what in PIXELS_ALONE and whole else ""
    return Mutant(f"dicom_structure-{number}", changed, f"{what}: {detail}", rows, once)


Change = Callable[[Files, str, str, np.random.Generator], tuple[dict[str, bytes | None], str]]


def _cut(files: Files, first: str, second: str, rng: np.random.Generator) -> tuple[dict[str, bytes | None], str]:
    length = int(rng.integers(len(files[first])))
    return {first: files[first][:length]}, f"{first} at byte {length} of {len(files[first])}"


def _lost(files: Files, first: str, second: str, rng: np.random.Generator) -> tuple[dict[str, bytes | None], str]:
    return {first: None}, first


def _doubled(files: Files, first: str, second: str, rng: np.random.Generator) -> tuple[dict[str, bytes | None], str]:
    return {f"copy_{first}": files[first]}, first


def _renamed(files: Files, first: str, second: str, rng: np.random.Generator) -> tuple[dict[str, bytes | None], str]:
    return {first: files[second], second: files[first]}, f"{first} and {second}"


def _voxels(files: Files, first: str, second: str, rng: np.random.Generator) -> tuple[dict[str, bytes | None], str]:
    start = len(files[first]) - PIXEL_BYTES
    at = int(rng.integers(start, len(files[first])))
    data, how = overwritten(files[first], at, len(files[first]), rng)
    return {first: data}, f"{first} at byte {at}: {how}"


def _zeroed(files: Files, first: str, second: str, rng: np.random.Generator) -> tuple[dict[str, bytes | None], str]:
    at = int(rng.integers(132, len(files[first]) - 64))
    data = files[first][:at] + bytes(len(files[first]) - at)
    return {first: data}, f"{first} from byte {at} to its end"


def _exchanged(*keywords: str) -> Change:
    def change(files: Files, first: str, second: str, rng: np.random.Generator) -> tuple[dict[str, bytes | None], str]:
        parts = []
        for name in (first, second):
            dataset = pydicom.dcmread(io.BytesIO(files[name]))
            parts.append(dataset)
        for keyword in keywords:
            one, two = parts[0][keyword_dict[keyword]].value, parts[1][keyword_dict[keyword]].value
            setattr(parts[0], keyword, two)
            setattr(parts[1], keyword, one)
        changed: dict[str, bytes | None] = {}
        for name, dataset in zip((first, second), parts, strict=True):
            buffer = io.BytesIO()
            dataset.save_as(buffer)
            changed[name] = buffer.getvalue()
        return changed, f"{', '.join(keywords)} of {first} and {second}"

    return change


# how often, the rows that tell to stop or to note, and what is done
STRUCTURE: dict[str, tuple[float, tuple[str, ...], Change]] = {
    "cut": (0.25, ("D23",), _cut),
    "zeroed to its end": (0.1, ("D23", "D24"), _zeroed),
    "lost": (0.15, ("D01", "D02"), _lost),
    "doubled": (0.1, (), _doubled),
    "file names exchanged": (0.1, (), _renamed),
    "places exchanged": (0.1, ("D12",), _exchanged("ImagePositionPatient", "SliceLocation")),
    "positions alone exchanged": (0.05, ("D12",), _exchanged("ImagePositionPatient")),
    "voxels": (0.1, ("D04",), _voxels),
    "voxels exchanged": (0.05, ("D04",), _exchanged("PixelData")),
}
MAKERS: dict[str, Callable[[Files, np.random.Generator, int], Mutant]] = {
    "nifti_header": nifti_header,
    "nifti_gzip": nifti_gzip,
    "dicom_header": dicom_header,
    "dicom_structure": dicom_structure,
}


def unexplained(verdict: Verdict) -> bool:
    """Silently wrong although something could show it."""
    return verdict.word == "silently wrong" and not verdict.once
