"""The preprocess stage shows the model what the profile asks for, or names the reason why it cannot."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.uid import RLELossless

from gateway.case import Case
from gateway.deadline import Deadline
from gateway.finding import GatewayReason, Outcome
from gateway.pixels.decompressor import DisposableDecoder
from gateway.pixels.imaging import Rendering, render
from gateway.pixels.unexaminable import UnexaminableError
from gateway.profile import Profile
from gateway.stages.preprocess import PreprocessStage
from gateway.stages.tensor import TensorImageStage
from signing import VerifiedView, read

PROFILE = b"""
name = "chest"
version = "1"
task = "multiclass"
classes = ["a", "b"]
[input]
name = "image"
layout = "NCHW"
channels = 3
size = [64, 48]
range = [-1.0, 1.0]
[[window]]
modality = "CT"
center = 40
width = 400
[match]
modality = ["CT"]
"""


@pytest.fixture(scope="module")
def decoder() -> Iterator[DisposableDecoder]:
    with DisposableDecoder() as decoder:
        yield decoder


def ct(**attributes: Any) -> Dataset:
    dataset = dcmread(str(get_testdata_file("CT_small.dcm", download=False)))
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return dataset


def bytes_of(dataset: Dataset) -> bytes:
    file = BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


@pytest.fixture
def examine(make_case: Callable[..., Case], decoder: DisposableDecoder) -> Callable[..., Case]:
    def run(data: bytes, profile: bytes = PROFILE) -> Case:
        case = replace(make_case(findings=()), view=VerifiedView.of_unsigned(read(data)))
        stage = PreprocessStage("chest", Profile.from_toml(profile), decoder)
        return stage.run(case, Deadline.after(60.0))

    return run


def test_shows_the_model_what_the_profile_asks_for(examine: Callable[..., Case]) -> None:
    """CT_small, 128 x 128, in a window of 400 Hounsfield around 40, letterboxed into 64 x 48."""
    case = examine(bytes_of(ct()))
    assert (case.findings[-1].outcome, case.findings[-1].detail) == (Outcome.PASSED, "1 frame of 128 x 128")
    assert case.image is not None
    assert case.image.model == "chest"
    assert case.image.pixels.shape == (1, 3, 64, 48)
    assert case.image.pixels.dtype == np.float32
    dataset, profile = ct(), Profile.from_toml(PROFILE)
    stored = torch.from_numpy(dataset.pixel_array.astype(np.float32))[None]
    own = Rendering((-32768, 32767), float(dataset.RescaleSlope), float(dataset.RescaleIntercept), modality="CT")
    assert np.array_equal(case.image.pixels, render(stored, own, profile).numpy())
    assert (case.image.pixels[:, :, :8] == -1).all()


def test_compressed_and_native_pixels_are_the_same_image(examine: Callable[..., Case]) -> None:
    dataset = ct()
    native = examine(bytes_of(dataset)).image
    dataset.compress(RLELossless, encoding_plugin="pydicom")
    compressed = examine(bytes_of(dataset)).image
    assert native is not None
    assert compressed is not None
    assert np.array_equal(native.pixels, compressed.pixels)


def test_frames_are_rendered_one_by_one(examine: Callable[..., Case]) -> None:
    dataset = ct()
    one = examine(bytes_of(dataset)).image
    dataset.NumberOfFrames = 3
    dataset.PixelData = 3 * dataset.PixelData
    case = examine(bytes_of(dataset))
    assert case.findings[-1].detail == "3 frames of 128 x 128"
    assert one is not None
    assert case.image is not None
    assert np.array_equal(case.image.pixels, np.repeat(one.pixels, 3, axis=0))


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"Modality": "MR"}, GatewayReason.UNSUPPORTED_IMAGE),
        ({"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3}, GatewayReason.UNSUPPORTED_IMAGE),
        ({"Rows": 127}, GatewayReason.WRONG_SIZE),
        ({"NumberOfFrames": 65}, GatewayReason.UNSUPPORTED_IMAGE),
        ({"RescaleSlope": "1e308"}, GatewayReason.NOT_FINITE),
    ],
)
def test_what_cannot_be_examined_is_indeterminate_and_named(
    attributes: dict[str, Any], reason: GatewayReason, examine: Callable[..., Case]
) -> None:
    case = examine(bytes_of(ct(**attributes)))
    finding = case.findings[-1]
    assert (finding.stage, finding.outcome, finding.reason) == ("preprocess", Outcome.INDETERMINATE, reason)
    assert finding.detail
    assert case.image is None


BLANK = bytes(2 * 128 * 128)


@pytest.mark.parametrize("attributes", [{"PixelData": BLANK}, {"RescaleIntercept": "5000"}], ids=["stored", "shown"])
def test_a_picture_of_nothing_is_indeterminate_border_or_not(
    attributes: dict[str, Any], examine: Callable[..., Case]
) -> None:
    """Of one stored value everywhere, or all of it beyond the window."""
    case = examine(bytes_of(ct(**attributes)))
    assert (case.findings[-1].outcome, case.image) == (Outcome.INDETERMINATE, None)
    assert case.findings[-1].reason is GatewayReason.UNSUPPORTED_IMAGE
    assert "same value" in case.findings[-1].detail


def test_a_blank_frame_among_others_is_examined(examine: Callable[..., Case]) -> None:
    case = examine(bytes_of(ct(NumberOfFrames=2, PixelData=BLANK + ct().PixelData)))
    assert case.findings[-1].outcome is Outcome.PASSED


def test_a_tensor_of_nothing_is_refused() -> None:
    stage = TensorImageStage("chest", Profile.from_toml(PROFILE))
    with pytest.raises(UnexaminableError, match="same value"):
        stage.image_of(np.full((1, 3, 64, 48), 0.5, np.float32))


def test_no_pixels_and_unknown_syntaxes_are_named(examine: Callable[..., Case]) -> None:
    dataset = ct()
    del dataset.PixelData
    assert examine(bytes_of(dataset)).findings[-1].reason is GatewayReason.NO_PIXEL_DATA
    dataset = ct()
    dataset.compress(RLELossless, encoding_plugin="pydicom")
    data = bytes_of(dataset).replace(b"1.2.840.10008.1.2.5\0", b"1.2.840.10008.1.2.9\0", 1)
    assert examine(data).findings[-1].reason is GatewayReason.UNSUPPORTED_TRANSFER_SYNTAX


def test_an_empty_match_takes_any_modality(examine: Callable[..., Case]) -> None:
    anything = PROFILE.replace(b'modality = ["CT"]', b"")
    assert examine(bytes_of(ct(Modality="MR")), anything).image is not None
