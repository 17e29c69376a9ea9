"""A bare tensor is the model's input, or it is said why it cannot be; colour only before detectors that know it."""

from __future__ import annotations

import numpy as np
import pytest

from gateway.finding import GatewayReason
from gateway.pixels.unexaminable import UnexaminableError
from gateway.profile import Profile
from gateway.stages.tensor import TensorImageStage

PROFILE = Profile.from_toml(
    b'name="skin"\nversion="1"\ntask="multiclass"\nclasses=["a","b"]\n[input]\nname="image"\nlayout="NCHW"\nchannels=3\n'
    b"size=[4,5]\nrange=[0.0,1.0]\nmean=[0.5,0.4,0.3]\nstd=[0.2,0.3,0.4]\n"
)
MEAN = np.array([0.5, 0.4, 0.3], np.float32).reshape(1, 3, 1, 1)
STD = np.array([0.2, 0.3, 0.4], np.float32).reshape(1, 3, 1, 1)
LIGHT = np.random.default_rng(0).random((1, 3, 4, 5), np.float32)


def test_colour_is_taken_where_the_detectors_know_it() -> None:
    tensor = (LIGHT - MEAN) / STD
    assert np.array_equal(TensorImageStage("skin", PROFILE, colour=True).image_of(tensor).pixels, tensor)
    with pytest.raises(UnexaminableError, match="channels differ") as caught:
        TensorImageStage("skin", PROFILE).image_of(tensor)
    assert caught.value.reason is GatewayReason.UNSUPPORTED_IMAGE


def test_grey_is_taken_where_they_do_not() -> None:
    tensor = (np.repeat(LIGHT[:, :1], 3, axis=1) - MEAN) / STD
    assert np.array_equal(TensorImageStage("skin", PROFILE).image_of(tensor).pixels, tensor)
