"""Stored values come out of the view exactly, or the reason why they cannot is named; compressed ones alike."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from gateway.errors import Overloaded
from gateway.finding import GatewayReason
from gateway.pixels.decode import FRAMES_MAX, PixelFormat, Pixels, decode
from gateway.pixels.decompressor import DisposableDecoder
from gateway.pixels.unexaminable import UnexaminableError
from gateway.store.ledger import TRANSIENT
from signing import VerifiedView, read


class _NeverAsked:
    def decompress(self, pixel_format: PixelFormat, transfer_syntax: str, items: memoryview) -> Pixels:
        raise AssertionError("native pixels need no decoder")


def file_of(pixels: NDArray[Any], syntax: UID = ExplicitVRLittleEndian, **attributes: Any) -> bytes:
    """A grey object whose pixel words are `pixels`, (frames, rows, columns), as they are allocated."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["decode"])
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    frames, dataset.Rows, dataset.Columns = pixels.shape
    if frames > 1:
        dataset.NumberOfFrames = frames
    bits = pixels.dtype.itemsize * 8
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    value = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    dataset.PixelData = value + b"\0" * (len(value) % 2)
    dataset["PixelData"].VR = "OB" if bits == 8 else "OW"
    for keyword, attribute in attributes.items():
        if attribute is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, attribute)
    file = BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def decoded(data: bytes) -> Pixels:
    return decode(VerifiedView.of_unsigned(read(data)), _NeverAsked())


def noise(dtype: str, shape: tuple[int, int, int] = (2, 5, 7)) -> NDArray[Any]:
    limits = np.iinfo(np.dtype(dtype))
    return np.random.default_rng(3).integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)


@pytest.mark.parametrize(
    ("syntax", "dtype"),
    [
        (syntax, f"{sign}int{bits}")
        for syntax in (
            ExplicitVRLittleEndian,
            ImplicitVRLittleEndian,
            ExplicitVRBigEndian,
            DeflatedExplicitVRLittleEndian,
        )
        for sign in ("u", "")
        for bits in (8, 16, 32)
        if (syntax, bits) != (ExplicitVRBigEndian, 32)  # refused below
    ],
)
def test_native_values_come_out_exactly(dtype: str, syntax: UID) -> None:
    pixels = noise(dtype)
    got = decoded(file_of(pixels, syntax))
    assert np.array_equal(got, pixels)


def test_words_that_fill_their_bits_are_not_copied() -> None:
    data = file_of(noise("int16"))
    got = decoded(data)
    assert np.shares_memory(got, np.frombuffer(data, np.uint8))


@pytest.mark.parametrize(
    ("stored", "high", "signed"),
    [(12, 11, 0), (12, 11, 1), (12, 15, 0), (12, 15, 1), (10, 12, 1), (1, 0, 0), (16, 15, 1)],
)
def test_bits_beside_the_stored_ones_do_not_count(stored: int, high: int, signed: int) -> None:
    words = noise("uint16")
    got = decoded(file_of(words, BitsStored=stored, HighBit=high, PixelRepresentation=signed))
    expected = (words.astype(np.int64) >> (high + 1 - stored)) & ((1 << stored) - 1)
    if signed:
        expected = np.where(expected >= 1 << (stored - 1), expected - (1 << stored), expected)
    assert np.array_equal(got, expected)


def test_big_endian_bytes_in_words_are_put_back_in_order() -> None:
    """PS3.5 8.1.1: OW swaps the bytes of 8-bit pixels in pairs."""
    pixels = noise("uint8", (1, 4, 6))
    swapped = pixels.reshape(-1, 2)[:, ::-1].tobytes()
    data = file_of(pixels, ExplicitVRBigEndian, PixelData=swapped)
    data = data.replace(b"\x7f\xe0\x00\x10OB", b"\x7f\xe0\x00\x10OW")
    assert np.array_equal(decoded(data), pixels)


@pytest.mark.parametrize(("dtype", "vr"), [("uint32", b"OW"), ("uint16", b"OB"), ("uint16", b"OL")])
def test_big_endian_pixels_whose_signed_unit_is_another_are_refused(dtype: str, vr: bytes) -> None:
    """A MAC covers OW by 16-bit words and OB by bytes, so rewriting in big endian would show other pixels."""
    pixels = noise(dtype, (1, 4, 6))
    data = file_of(pixels, ExplicitVRBigEndian).replace(b"\x7f\xe0\x00\x10OW", b"\x7f\xe0\x00\x10" + vr)
    with pytest.raises(UnexaminableError) as caught:
        decoded(data)
    assert caught.value.reason is GatewayReason.UNSUPPORTED_IMAGE


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"PixelData": None}, GatewayReason.NO_PIXEL_DATA),
        ({"Rows": 6}, GatewayReason.WRONG_SIZE),
        ({"NumberOfFrames": 3}, GatewayReason.WRONG_SIZE),
        ({"NumberOfFrames": 0}, GatewayReason.WRONG_SIZE),
        ({"Columns": 0}, GatewayReason.WRONG_SIZE),
        ({"Rows": 65535, "Columns": 65535}, GatewayReason.UNSUPPORTED_IMAGE),
        ({"NumberOfFrames": FRAMES_MAX + 1}, GatewayReason.UNSUPPORTED_IMAGE),
        ({"NumberOfFrames": 2_000_000_000}, GatewayReason.UNSUPPORTED_IMAGE),
        ({"PixelData": bytes(2 * 2 * 5 * 7 + 2)}, GatewayReason.WRONG_SIZE),
        ({"Rows": None}, GatewayReason.UNSUPPORTED_IMAGE),
        ({"SamplesPerPixel": 3}, GatewayReason.UNSUPPORTED_IMAGE),
        ({"SamplesPerPixel": None}, GatewayReason.UNSUPPORTED_IMAGE),
        ({"PhotometricInterpretation": "RGB"}, GatewayReason.UNSUPPORTED_IMAGE),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, GatewayReason.UNSUPPORTED_IMAGE),
        ({"PhotometricInterpretation": "YBR_FULL"}, GatewayReason.UNSUPPORTED_IMAGE),
        ({"BitsAllocated": 12}, GatewayReason.UNSUPPORTED_IMAGE),
        ({"BitsAllocated": 1}, GatewayReason.UNSUPPORTED_IMAGE),
        ({"BitsStored": 17}, GatewayReason.UNSUPPORTED_IMAGE),
        ({"BitsStored": 0}, GatewayReason.UNSUPPORTED_IMAGE),
        ({"HighBit": 16}, GatewayReason.UNSUPPORTED_IMAGE),
        ({"BitsStored": 12, "HighBit": 3}, GatewayReason.UNSUPPORTED_IMAGE),
        ({"PixelRepresentation": 2}, GatewayReason.UNSUPPORTED_IMAGE),
        ({"Rows": [5, 5]}, GatewayReason.UNSUPPORTED_IMAGE),
    ],
)
def test_names_what_is_wrong_with_the_pixels(attributes: dict[str, Any], reason: GatewayReason) -> None:
    with pytest.raises(UnexaminableError) as caught:
        decoded(file_of(noise("uint16"), **attributes))
    assert caught.value.reason is reason


# -- compressed --

_ENCODERS = {RLELossless: "pydicom", JPEGLSLossless: "pyjpegls", JPEG2000Lossless: "pylibjpeg"}


@pytest.fixture(scope="module")
def decoder() -> Iterator[DisposableDecoder]:
    with DisposableDecoder(at_once=2, seconds_max=10.0) as decoder:
        yield decoder


def compressed(pixels: NDArray[Any], syntax: UID) -> bytes:
    dataset = dcmread(BytesIO(file_of(pixels)))
    dataset.compress(syntax, encoding_plugin=_ENCODERS[syntax])
    file = BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


@pytest.mark.parametrize(
    ("syntax", "dtype"),
    [
        (RLELossless, "uint8"),
        (RLELossless, "uint16"),
        (RLELossless, "int16"),
        (JPEGLSLossless, "uint8"),
        (JPEGLSLossless, "uint16"),
        (JPEG2000Lossless, "uint8"),
        (JPEG2000Lossless, "uint16"),
        (JPEG2000Lossless, "int16"),
    ],
    ids=str,
)
def test_lossless_values_come_out_exactly(dtype: str, syntax: UID, decoder: DisposableDecoder) -> None:
    pixels = noise(dtype, (3, 64, 63))
    got = decode(VerifiedView.of_unsigned(read(compressed(pixels, syntax))), decoder)
    assert np.array_equal(got, pixels)


@pytest.mark.parametrize("name", ["MR_small_jp2klossless.dcm", "MR_small_RLE.dcm", "MR_small_jpeg_ls_lossless.dcm"])
def test_files_of_other_makers_decode(name: str, decoder: DisposableDecoder) -> None:
    original = get_testdata_file("MR_small.dcm", download=False)
    path = get_testdata_file(name, download=False)
    assert isinstance(path, str)
    got = decode(VerifiedView.of_unsigned(read(Path(path).read_bytes())), decoder)
    assert np.array_equal(got[0], dcmread(str(original)).pixel_array)


def test_an_unknown_transfer_syntax_is_named(decoder: DisposableDecoder) -> None:
    data = compressed(noise("uint8"), RLELossless)
    data = data.replace(b"1.2.840.10008.1.2.5\0", b"1.2.840.10008.1.2.9\0", 1)
    with pytest.raises(UnexaminableError) as caught:
        decode(VerifiedView.of_unsigned(read(data)), decoder)
    assert caught.value.reason is GatewayReason.UNSUPPORTED_TRANSFER_SYNTAX


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless], ids=lambda syntax: syntax.keyword)
def test_a_damaged_stream_hurts_nobody_else(syntax: UID, decoder: DisposableDecoder) -> None:
    """Whatever the decoder makes of it, the object after it decodes."""
    good = compressed(noise("uint16", (1, 64, 64)), syntax)
    start = good.rindex(b"\xfe\xff\x00\xe0") + 8
    random = np.random.default_rng(5)
    for _ in range(5):
        bad = bytearray(good)
        for place in random.integers(start, len(good) - 16, 30):
            bad[place] = random.integers(256)
        with contextlib.suppress(UnexaminableError):
            assert decode(VerifiedView.of_unsigned(read(bytes(bad))), decoder).shape == (1, 64, 64)
    assert decode(VerifiedView.of_unsigned(read(good)), decoder).shape == (1, 64, 64)


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"Rows": 65, "Columns": 63}, None),
        ({"Rows": 5000, "Columns": 6000, "NumberOfFrames": 64}, GatewayReason.UNSUPPORTED_IMAGE),
        ({"NumberOfFrames": 2}, None),
    ],
)
def test_a_header_that_lies_about_a_stream_is_refused(
    attributes: dict[str, Any], reason: GatewayReason | None, decoder: DisposableDecoder
) -> None:
    dataset = dcmread(BytesIO(compressed(noise("uint16", (1, 64, 64)), JPEG2000Lossless)))
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    file = BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    with pytest.raises(UnexaminableError) as caught:
        decode(VerifiedView.of_unsigned(read(file.getvalue())), decoder)
    assert reason is None or caught.value.reason is reason


def test_a_stream_without_frames_is_refused(decoder: DisposableDecoder) -> None:
    data = file_of(noise("uint8"), RLELossless, PixelData=encapsulate([bytes(2)], has_bot=False)[:8])
    with pytest.raises(UnexaminableError):
        decode(VerifiedView.of_unsigned(read(data)), decoder)


def test_a_decoder_that_takes_too_long_is_stopped() -> None:
    pixels = PixelFormat(1, 4, 4, 8, 8, 7, False, "MONOCHROME2")
    with DisposableDecoder(seconds_max=0.001) as decoder, pytest.raises(UnexaminableError, match="stopped") as caught:
        decoder.decompress(pixels, RLELossless, memoryview(bytes(1 << 22)))
    assert caught.value.reason in TRANSIENT, "the machine may have been slow: the scan must not be remembered for it"


def test_nobody_waits_for_a_decoder_longer_than_one_may_take() -> None:
    """Else a few slow streams would hold every handler thread, far beyond its call's deadline."""
    pixels = PixelFormat(1, 4, 4, 8, 8, 7, False, "MONOCHROME2")
    with DisposableDecoder(at_once=0, seconds_max=0.01) as decoder, pytest.raises(Overloaded):
        decoder.decompress(pixels, RLELossless, memoryview(bytes(64)))


def test_the_process_that_stands_by_is_replaced_when_it_dies(decoder: DisposableDecoder) -> None:
    data = compressed(noise("uint8"), RLELossless)
    view = VerifiedView.of_unsigned(read(data))
    decode(view, decoder)
    assert decoder._process is not None
    decoder._process.kill()
    decoder._process.wait()
    assert np.array_equal(decode(view, decoder), noise("uint8"))


def test_closing_leaves_no_process() -> None:
    decoder = DisposableDecoder()
    view = VerifiedView.of_unsigned(read(compressed(noise("uint8"), RLELossless)))
    decode(view, decoder)
    process = decoder._process
    assert process is not None
    started = time.monotonic()
    decoder.close()
    assert process.poll() == 0, time.monotonic() - started
