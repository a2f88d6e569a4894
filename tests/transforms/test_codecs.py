"""Compressed pixels: what was encoded comes back, and a codec that crashes, hangs or is missing costs one case."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gdcm
import numpy as np
import phantoms
import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.pixels import decoders
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)
from voxelwise.errors import CaseError
from voxelwise.transforms import codec_child, codecs
from voxelwise.transforms.dicom import Slice, read_header
from voxelwise.transforms.readers import read_volume

GREY = phantoms.ramp((36, 40, 2)) % 1500 + 50


@pytest.fixture
def fresh() -> Iterator[None]:
    """No child from before, and none left behind."""
    codecs.stop()
    yield
    codecs.stop()


def encoded(path: Path, syntax: str) -> None:
    """Encode a file with pydicom's encoders, or gdcm's for the JPEG of 1992."""
    dataset = pydicom.dcmread(path)
    if syntax in (RLELossless, JPEG2000Lossless, JPEGLSLossless):
        dataset.compress(syntax, generate_instance_uid=False)
        dataset.save_as(path)
    elif syntax in (JPEGLosslessSV1, JPEGBaseline8Bit):
        by_gdcm(path, syntax)
    else:
        implicit, little = syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian
        if not little:
            dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
        dataset.file_meta.TransferSyntaxUID = syntax
        pydicom.dcmwrite(path, dataset, implicit_vr=implicit, little_endian=little, enforce_file_format=True)


def by_gdcm(path: Path, syntax: str) -> None:
    """Encode a file with gdcm."""
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(str(syntax))))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()


@pytest.mark.parametrize(
    "syntax",
    [
        ImplicitVRLittleEndian,
        ExplicitVRBigEndian,
        DeflatedExplicitVRLittleEndian,
        RLELossless,
        JPEGLosslessSV1,
        JPEGLSLossless,
        JPEG2000Lossless,
    ],
)
@pytest.mark.parametrize("signed", [False, True])
def test_every_lossless_syntax_gives_the_values_that_were_encoded(tmp_path: Path, syntax: str, signed: bool) -> None:
    tags = {"BitsStored": 12, "HighBit": 11} if signed else {}
    for path in phantoms.ct_series(tmp_path, GREY, signed=signed, intercept=0 if signed else -1024, **tags):
        encoded(path, syntax)
        assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == syntax
    np.testing.assert_array_equal(read_volume(tmp_path).array[0], GREY)


@pytest.mark.parametrize("vr", ["OB", "OW"])
def test_bytes_in_big_endian_words_are_swapped(tmp_path: Path, vr: str) -> None:
    grey = (phantoms.ramp((6, 5, 2)) % 200).astype(np.uint8)
    for path in phantoms.mr_series(tmp_path, grey):
        dataset = pydicom.dcmread(path)
        words = np.frombuffer(dataset.PixelData, "<u2").astype(np.uint8)
        dataset.PixelData = (words.view("<u2").byteswap() if vr == "OW" else words).tobytes()
        dataset["PixelData"].VR = vr
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
        dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
        pydicom.dcmwrite(path, dataset, implicit_vr=False, little_endian=False, enforce_file_format=True)
    np.testing.assert_array_equal(read_volume(tmp_path).array[0], grey)


def test_a_lossy_syntax_gives_nearly_the_values_that_were_encoded(tmp_path: Path) -> None:
    grey = np.broadcast_to(np.arange(0, 160, 10)[:, None, None], (16, 8, 2)).astype(np.uint8)
    for path in phantoms.mr_series(tmp_path, grey):
        dataset = pydicom.dcmread(path)
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(np.uint8).tobytes()
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
        dataset["PixelData"].VR = "OB"
        dataset.save_as(path)
        encoded(path, JPEGBaseline8Bit)
    values = read_volume(tmp_path).array[0]
    assert values.dtype == np.uint8
    assert np.abs(values.astype(int) - grey).max() <= 4


def test_a_frame_in_several_fragments_is_one_frame(tmp_path: Path) -> None:
    for path in phantoms.ct_series(tmp_path, GREY):
        dataset = pydicom.dcmread(path)
        dataset.compress(JPEG2000Lossless, generate_instance_uid=False)
        frame = next(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=1))
        dataset.PixelData = encapsulate([frame], fragments_per_frame=3)
        dataset["PixelData"].is_undefined_length = True
        dataset.save_as(path)
    np.testing.assert_array_equal(read_volume(tmp_path).array[0], GREY)


@pytest.mark.parametrize("table", [False, True])
def test_frames_of_one_object_are_asked_for_together(tmp_path: Path, table: bool) -> None:
    path = phantoms.enhanced_ct(tmp_path / "enhanced.dcm", GREY, order=np.array([1, 0]))
    dataset = pydicom.dcmread(path)
    dataset.compress(RLELossless, generate_instance_uid=False)
    frames = list(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=2))
    dataset.PixelData = encapsulate(frames, has_bot=table)
    dataset.save_as(path)
    np.testing.assert_array_equal(read_volume(tmp_path).array[0], GREY)


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless])
def test_many_frames_without_a_table_are_not_each_looked_for_from_the_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, syntax: str
) -> None:
    path = phantoms.enhanced_ct(tmp_path / "enhanced.dcm", phantoms.ramp((8, 8, 60)))
    dataset = pydicom.dcmread(path)
    dataset.compress(syntax, generate_instance_uid=False)
    frames = list(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=60))
    dataset.PixelData = encapsulate(frames, has_bot=False)
    dataset.save_as(path)
    passes: list[int] = []
    walk = pydicom.encaps.parse_fragments

    def counted(*arguments: Any, **options: Any) -> Any:
        passes.append(1)
        return walk(*arguments, **options)

    monkeypatch.setattr(pydicom.encaps, "parse_fragments", counted)
    monkeypatch.setattr(codec_child, "parse_fragments", counted)
    request = {"path": str(path), "bare": False, "syntax": syntax, "frames": list(range(60)), "colour": False}
    found = list(codec_child.decoded({**request, "seconds": 60}))
    np.testing.assert_array_equal(np.array(found).transpose(2, 1, 0), phantoms.ramp((8, 8, 60)) + 1024)
    assert len(passes) == 1


def one_slice(folder: Path, syntax: str = RLELossless) -> Slice:
    """The header of one encoded slice."""
    path = phantoms.ct_series(folder, GREY[:, :, :1])[0]
    encoded(path, syntax)
    return read_header(path)[0]


def process() -> subprocess.Popen[bytes]:
    """The child at work."""
    found = codecs.child()._process
    assert found is not None
    return found


def test_one_child_serves_all_until_it_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash and a hang each stop the case at hand; a child that died between two cases is replaced in silence."""
    one = one_slice(tmp_path)
    list(codecs.decoded_frames([one]))
    first = process()
    assert len(list(codecs.decoded_frames([one, one]))) == 2
    assert process() is first
    first.send_signal(signal.SIGSTOP)
    killer = threading.Timer(0.1, first.kill)
    killer.start()
    with pytest.raises(CaseError, match=r"IM0000\.dcm: the codec for RLE Lossless crashed on PixelData") as caught:
        list(codecs.decoded_frames([one]))
    killer.join()
    assert caught.value.code == "codec-crashed"
    list(codecs.decoded_frames([one]))
    second = process()
    second.kill()
    second.wait()
    list(codecs.decoded_frames([one]))
    third = process()
    third.send_signal(signal.SIGSTOP)
    monkeypatch.setattr(codecs, "SECONDS_A_FRAME", 0.2)
    with pytest.raises(CaseError, match=r"was not decoded within 0\.2 s a frame") as caught:
        list(codecs.decoded_frames([one]))
    assert caught.value.code == "codec-timeout"
    assert third.returncode == -signal.SIGKILL
    assert len({first.pid, second.pid, third.pid}) == 3


def test_a_caller_that_leaves_half_way_disturbs_nobody(tmp_path: Path) -> None:
    one = one_slice(tmp_path)
    frames = codecs.decoded_frames([one] * 9)
    next(frames)
    frames.close()
    np.testing.assert_array_equal(next(codecs.decoded_frames([one])).T, GREY[:, :, 0] + 1024)


def test_threads_wait_for_each_other(tmp_path: Path) -> None:
    one = one_slice(tmp_path)
    found: list[int] = []

    def ask() -> None:
        found.append(len(list(codecs.decoded_frames([one] * 5))))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [5, 5, 5]


def test_a_fork_gets_a_child_of_its_own(tmp_path: Path) -> None:
    one = one_slice(tmp_path)
    list(codecs.decoded_frames([one]))
    ours = process().pid
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        list(codecs.decoded_frames([one]))
        os.write(writer, str(process().pid).encode())
        codecs.stop()
        os._exit(0)
    os.waitpid(pid, 0)
    assert int(os.read(reader, 20)) != ours
    os.close(reader)
    os.close(writer)
    assert process().poll() is None
    assert len(list(codecs.decoded_frames([one]))) == 1


def test_the_child_ends_with_its_parent(tmp_path: Path) -> None:
    one_slice(tmp_path)
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from voxelwise.transforms import codecs; from voxelwise.transforms.dicom import read_header\n"
        "list(codecs.decoded_frames(read_header(Path(sys.argv[1]))))\n"
        "print(codecs.child()._process.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path / "IM0000.dcm")], capture_output=True, check=False)
    pid, end = int(run.stdout), time.monotonic() + 5
    while time.monotonic() < end and Path(f"/proc/{pid}/stat").exists():
        if Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
            break
        time.sleep(0.02)
    else:
        assert not Path(f"/proc/{pid}/stat").exists()


def test_a_missing_codec_is_named_before_any_child_is_asked(
    tmp_path: Path, fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = one_slice(tmp_path, JPEGLosslessSV1)
    monkeypatch.setattr(decoders.JPEGLosslessSV1Decoder, "_available", {})
    monkeypatch.setattr(decoders.JPEGLosslessSV1Decoder, "_unavailable", {"gdcm": ("gdcm>=3.0.10",)})
    with pytest.raises(
        CaseError, match=r"no codec for transfer syntax JPEG Lossless.*gdcm - requires gdcm>=3"
    ) as caught:
        list(codecs.decoded_frames([one]))
    assert caught.value.code == "codec-missing"
    assert codecs.child()._process is None


@pytest.mark.parametrize("claim", [{"rows": 65535, "columns": 65535}, {"frames": 10**6, "rows": 512, "columns": 512}])
@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, DeflatedExplicitVRLittleEndian])
def test_a_claim_that_so_few_bytes_cannot_hold_is_refused(
    tmp_path: Path, fresh: None, syntax: str, claim: dict[str, Any]
) -> None:
    one = replace(one_slice(tmp_path, syntax), **claim)
    with pytest.raises(CaseError, match=r"claim \d+ bytes from \d+ compressed ones") as caught:
        list(codecs.decoded_frames([one]))
    assert caught.value.code == "pixel-length"
    assert codecs.child()._process is None


def test_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A deflated data set that unpacks to far more than its pixels is refused in the child."""
    path = phantoms.ct_series(tmp_path, GREY[:, :, :1])[0]
    encoded(path, DeflatedExplicitVRLittleEndian)
    one = read_header(path)[0]
    dataset = pydicom.dcmread(path)
    dataset.add_new(0x00091010, "OB", bytes(48 << 20))
    dataset.save_as(path)
    monkeypatch.setattr(codecs, "SLACK_BYTES", 32 << 20)
    with pytest.raises(CaseError, match=r"more memory than its size explains|crashed"):
        list(codecs.decoded_frames([one]))


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless, JPEGLosslessSV1])
def test_a_codestream_that_is_cut_off_or_of_another_size_is_refused(tmp_path: Path, syntax: str) -> None:
    """Codecs take both without a word."""
    path = phantoms.ct_series(tmp_path, GREY[:, :, :1])[0]
    encoded(path, syntax)
    dataset = pydicom.dcmread(path)
    frame = next(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=1))
    for data, rows, said in ((frame[:-90], 40, "has no end"), (frame, 41, r"says \(40, 36\), the header \(41, 36\)")):
        dataset.PixelData, dataset.Rows = encapsulate([data]), rows
        dataset["PixelData"].is_undefined_length = True
        dataset.save_as(path)
        with pytest.raises(CaseError, match=rf"IM0000\.dcm: .*cannot be decoded: .*{said}"):
            list(codecs.decoded_frames(read_header(path)))


def test_what_a_library_quotes_of_a_header_is_not_passed_on(tmp_path: Path) -> None:
    path = phantoms.ct_series(tmp_path, GREY[:, :, :1])[0]
    encoded(path, RLELossless)
    dataset = pydicom.dcmread(path)
    dataset.PhotometricInterpretation = "CANARY QUETZAL"
    dataset.save_as(path)
    with pytest.raises(CaseError, match=r"'Photometric Interpretation' value '\.\.\.'"):
        read_volume(tmp_path)


def test_garbage_is_refused_in_words(tmp_path: Path) -> None:
    for path in phantoms.ct_series(tmp_path, GREY):
        encoded(path, JPEGLSLossless)
    list(codecs.decoded_frames(read_header(path)))
    dataset = pydicom.dcmread(path)
    dataset.PixelData = encapsulate([b"\xff\xd8" + bytes(range(256)) * 4 + b"\xff\xd9"])
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(path)
    before = process()
    with pytest.raises(CaseError, match=r"IM0001\.dcm: .*(cannot be decoded|the codec gave|crashed)"):
        read_volume(tmp_path)
    assert process() is before  # an answer in words ends no process
