"""Colour comes out of the view as red, green and blue, whatever it was stored as; what cannot is named."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as Picture
from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels import pixel_array
from pydicom.pixels.processing import convert_color_space
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

import lesions
from gateway.deadline import Deadline
from gateway.finding import GatewayReason, Outcome
from gateway.pixels import decode as decoding
from gateway.pixels.decode import Pixels, decode
from gateway.pixels.decompressor import DisposableDecoder
from gateway.pixels.imaging import Rendering
from gateway.pixels.unexaminable import UnexaminableError
from gateway.profile import Profile
from gateway.stages.preprocess import PreprocessStage
from lab.demo.written import to_dicom
from signing import VerifiedView, read

ROWS, COLUMNS = 40, 60


@pytest.fixture(scope="module")
def decoder() -> Iterator[DisposableDecoder]:
    with DisposableDecoder() as decoder:
        yield decoder


@pytest.fixture(scope="module")
def picture() -> NDArray[np.uint8]:
    """(rows, columns, 3)."""
    return lesions.lesions(2, COLUMNS, seed=5)[0][1, :ROWS]


def stored(
    picture: NDArray[Any], value: bytes | None = None, syntax: UID = ExplicitVRLittleEndian, **more: Any
) -> bytes:
    """A photograph as an object, its Pixel Data and attributes exchanged."""
    dataset = dcmread(BytesIO(to_dicom(np.moveaxis(picture, 2, 0), name="colour")))
    dataset.file_meta.TransferSyntaxUID = syntax
    for keyword, attribute in more.items():
        if attribute is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, attribute)
    if value is not None:
        dataset.PixelData = encapsulate([value]) if syntax.is_compressed else value + b"\0" * (len(value) % 2)
        dataset["PixelData"].VR = "OW" if dataset.BitsAllocated == 16 else "OB"
        dataset["PixelData"].is_undefined_length = syntax.is_compressed
    return bytes_of(dataset)


def bytes_of(dataset: Dataset) -> bytes:
    file = BytesIO()
    syntax = dataset.file_meta.TransferSyntaxUID
    kept = {"implicit_vr": syntax.is_implicit_VR, "little_endian": syntax.is_little_endian}
    dcmwrite(file, dataset, enforce_file_format=True, **kept)
    return file.getvalue()


def decoded(content: bytes, decoder: DisposableDecoder) -> Pixels:
    return decode(VerifiedView.of_unsigned(read(content)), decoder)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize("planar", [0, 1])
@pytest.mark.parametrize("bits", [8, 16])
def test_native_rgb_comes_out_exactly(
    picture: NDArray[np.uint8], decoder: DisposableDecoder, syntax: UID, planar: int, bits: int
) -> None:
    wide = picture if bits == 8 else picture.astype(np.uint16) * 200
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    value = (np.moveaxis(wide, 2, 0) if planar else wide).astype(f"{order}u{bits // 8}").tobytes()
    attributes = {"PlanarConfiguration": planar, "BitsAllocated": bits, "BitsStored": bits, "HighBit": bits - 1}
    got = decoded(stored(picture, value, syntax, **attributes), decoder)
    assert got.shape == (1, 3, ROWS, COLUMNS)
    assert np.array_equal(got[0], np.moveaxis(wide, 2, 0))


def test_rgb_that_fills_its_bits_is_not_copied(picture: NDArray[np.uint8], decoder: DisposableDecoder) -> None:
    content = stored(picture)
    assert np.shares_memory(decoded(content, decoder), np.frombuffer(content, np.uint8))


@pytest.mark.parametrize("planar", [0, 1])
def test_native_brightness_and_differences_become_rgb(
    picture: NDArray[np.uint8], decoder: DisposableDecoder, planar: int
) -> None:
    ybr = convert_color_space(picture, "RGB", "YBR_FULL")
    value = (np.moveaxis(ybr, 2, 0) if planar else ybr).tobytes()
    content = stored(picture, value, PhotometricInterpretation="YBR_FULL", PlanarConfiguration=planar)
    assert np.abs(decoded(content, decoder)[0].astype(int) - np.moveaxis(picture, 2, 0)).max() <= 2


def test_native_halved_differences_are_those_of_pydicom(picture: NDArray[np.uint8], decoder: DisposableDecoder) -> None:
    ybr = convert_color_space(picture, "RGB", "YBR_FULL")
    pairs = np.concatenate([ybr[:, ::2, :1], ybr[:, 1::2, :1], ybr[:, ::2, 1:]], axis=2)
    content = stored(picture, pairs.tobytes(), PhotometricInterpretation="YBR_FULL_422")
    theirs = pixel_array(dcmread(BytesIO(content)))
    assert np.array_equal(decoded(content, decoder)[0], np.moveaxis(theirs, 2, 0))


def test_a_jpeg_photograph_is_shown_as_any_viewer_shows_it(
    picture: NDArray[np.uint8], decoder: DisposableDecoder
) -> None:
    file = BytesIO()
    Picture.fromarray(picture).save(file, "JPEG", quality=90, subsampling="4:2:2")
    content = stored(picture, file.getvalue(), JPEGBaseline8Bit, PhotometricInterpretation="YBR_FULL_422")
    seen = np.moveaxis(np.asarray(Picture.open(BytesIO(file.getvalue()))), 2, 0)
    got = decoded(content, decoder)
    assert got.shape == (1, 3, ROWS, COLUMNS)
    assert np.abs(got[0].astype(int) - seen).mean() < 2


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
def test_what_codecs_keep_exactly_comes_out_exactly(
    picture: NDArray[np.uint8], decoder: DisposableDecoder, syntax: UID
) -> None:
    dataset = dcmread(BytesIO(stored(picture)))
    if syntax == JPEG2000Lossless:
        dataset.PhotometricInterpretation = "YBR_RCT"
    dataset.compress(syntax, np.ascontiguousarray(picture), generate_instance_uid=False)
    assert np.array_equal(decoded(bytes_of(dataset), decoder)[0], np.moveaxis(picture, 2, 0))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a kind that is not known": ({"PhotometricInterpretation": "HSV"}, "Photometric Interpretation is none of"),
    "grey of three samples": ({"PhotometricInterpretation": "MONOCHROME2"}, "Photometric Interpretation is none of"),
    "no order of samples": ({"PlanarConfiguration": None}, "Planar Configuration"),
    "another order": ({"PlanarConfiguration": 2}, "Planar Configuration"),
    "signed": ({"PixelRepresentation": 1}, "unsigned samples"),
    "bits that lie apart": ({"BitsStored": 6}, "unsigned samples"),
    "differences of 16 bits": (
        {"PhotometricInterpretation": "YBR_FULL", "BitsAllocated": 16, "BitsStored": 16, "HighBit": 15},
        "YBR_FULL is not of 8 bits",
    ),
    "a codec's kind, native": ({"PhotometricInterpretation": "YBR_RCT"}, "JPEG 2000 alone"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_colour_that_cannot_be_followed_is_named(
    picture: NDArray[np.uint8], decoder: DisposableDecoder, case: str
) -> None:
    attributes, said = REFUSED[case]
    with pytest.raises(UnexaminableError, match=said) as caught:
        decoded(stored(picture, **attributes), decoder)
    assert caught.value.reason is GatewayReason.UNSUPPORTED_IMAGE


def test_too_few_bytes_for_three_samples_are_the_wrong_size(
    picture: NDArray[np.uint8], decoder: DisposableDecoder
) -> None:
    with pytest.raises(UnexaminableError) as caught:
        decoded(stored(picture, picture[..., 0].tobytes()), decoder)
    assert caught.value.reason is GatewayReason.WRONG_SIZE


def test_halved_differences_need_pairs_of_columns(picture: NDArray[np.uint8], decoder: DisposableDecoder) -> None:
    content = stored(picture, Columns=59, PhotometricInterpretation="YBR_FULL_422")
    with pytest.raises(UnexaminableError, match="odd number of columns"):
        decoded(content, decoder)


def test_more_colour_than_is_examined_is_refused_by_its_header(
    picture: NDArray[np.uint8], decoder: DisposableDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "COLOUR_PIXELS_MAX", ROWS * COLUMNS - 1)
    with pytest.raises(UnexaminableError, match="at most 2399 are examined"):
        decoded(stored(picture), decoder)


def model(channels: int) -> Profile:
    return Profile.from_toml(
        b'name="skin"\nversion="1"\ntask="multiclass"\nclasses=["a","b"]\n[[window]]\nmodality="XC"\ncenter=9\nwidth=2\n'
        b'[input]\nname="image"\nlayout="NCHW"\nchannels=%d\nsize=[40,60]\nrange=[0.0,1.0]\n' % channels
    )


def shown(content: bytes, profile: Profile, decoder: DisposableDecoder, make_case: Any, *, colour: bool) -> Any:
    case = replace(make_case(findings=()), view=VerifiedView.of_unsigned(read(content)))
    return PreprocessStage("skin", profile, decoder, colour=colour).run(case, Deadline.after(60))


def test_the_model_sees_red_green_and_blue_in_no_window(
    picture: NDArray[np.uint8], decoder: DisposableDecoder, make_case: Any
) -> None:
    case = shown(stored(picture), model(3), decoder, make_case, colour=True)
    assert case.findings[-1].detail == "1 frame of 40 x 60"
    assert np.allclose(case.image.pixels[0], np.moveaxis(picture, 2, 0) / 255, atol=1e-6)


@pytest.mark.parametrize(
    ("channels", "colour", "said"),
    [(3, False, "the detectors were fitted on grey ones"), (1, True, "the model takes one channel of grey")],
)
def test_colour_before_what_knows_grey_alone_is_not_examined(
    picture: NDArray[np.uint8], decoder: DisposableDecoder, make_case: Any, channels: int, colour: bool, said: str
) -> None:
    finding = shown(stored(picture), model(channels), decoder, make_case, colour=colour).findings[-1]
    assert (finding.outcome, finding.reason) == (Outcome.INDETERMINATE, GatewayReason.UNSUPPORTED_IMAGE)
    assert said in finding.detail


def test_grey_stands_in_each_channel_of_a_model_of_colour(
    picture: NDArray[np.uint8], decoder: DisposableDecoder, make_case: Any
) -> None:
    content = to_dicom(picture[np.newaxis, ..., 1], name="grey")
    pixels = shown(content, model(3), decoder, make_case, colour=True).image.pixels
    assert np.allclose(pixels[0], np.repeat(picture[np.newaxis, ..., 1] / 255, 3, axis=0), atol=1e-6)


def test_rescaling_and_windows_of_the_object_are_not_for_colour(picture: NDArray[np.uint8]) -> None:
    content = stored(picture, WindowCenter="10", WindowWidth="2", RescaleSlope="5", RescaleIntercept="7")
    assert Rendering.of(VerifiedView.of_unsigned(read(content)), model(3)) == Rendering()
