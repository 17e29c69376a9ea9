"""A profile is read whole or refused with the key that is at fault."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from gateway.errors import ConfigError
from gateway.profile import Profile

COMPLETE = """
name = "chest"
version = "1.2"
task = "multiclass"
classes = ["normal", "nodule"]
[input]
name = "image"
layout = "NCHW"
channels = 3
size = [128, 96]
range = [0.0, 1.0]
mean = [0.5, 0.5, 0.5]
std = [0.25, 0.25, 0.25]
interpolation = "bicubic"
aspect = "stretch"
[output]
name = "logits"
activation = "softmax"
[[window]]
modality = "CT"
center = 40
width = 400
[match]
modality = ["CT"]
body_part = ["CHEST"]
sop_classes = ["1.2.840.10008.5.1.4.1.1.2"]
"""


def test_reads_every_key_and_is_named_by_the_digest_of_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "profile.toml"
    path.write_text(COMPLETE)
    profile = Profile.load(path)
    assert profile.sha256 == hashlib.sha256(COMPLETE.encode()).hexdigest()
    assert profile.input.size == (128, 96)
    assert profile.match.modality == ("CT",)
    window = profile.window_for("CT")
    assert window is not None
    assert (window.center, window.width) == (40.0, 400.0)
    assert profile.window_for("MR") is None


def test_the_minimum_is_enough() -> None:
    profile = Profile.from_toml(
        b'name="m"\nversion="1"\ntask="multilabel"\nclasses=["a"]\n'
        b'[input]\nname="x"\nlayout="NCHW"\nchannels=1\nsize=[8,8]\nrange=[-1,1]\n'
    )
    assert profile.activation == "sigmoid"
    assert profile.output.name is None
    assert profile.windows == ()


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ('version = "1.2"', "", "version"),
        ('name = "chest"', 'name = "chest"\nsurprise = 1', "surprise"),
        ('layout = "NCHW"', 'layout = "NHWC"', "input.layout"),
        ("channels = 3", "channels = 2", "input.channels"),
        ("size = [128, 96]", "size = [128, 0]", "input.size"),
        ("size = [128, 96]", "size = [128, 100000]", "input.size"),
        ("range = [0.0, 1.0]", "range = [1.0, 0.0]", "input.range"),
        ("range = [0.0, 1.0]", "range = [0.0, nan]", "input.range"),
        ("mean = [0.5, 0.5, 0.5]", "mean = [0.5]", "mean"),
        ("std = [0.25, 0.25, 0.25]", "std = [0.25, 0.0, 0.25]", "std"),
        ("width = 400", "width = 0", "window.0.width"),
        ("width = 400", "width = -4", "window.0.width"),
        ("width = 400", "width = inf", "window.0.width"),
        ('modality = "CT"', 'modality = "ct"', "window.0.modality"),
        ('"nodule"', '"normal"', "classes"),
        ('task = "multiclass"', 'task = "regression"', "task"),
        ('task = "multiclass"', 'task = "multilabel"', "output.activation"),
        ('activation = "softmax"', 'activation = "relu"', "output.activation"),
        ('interpolation = "bicubic"', 'interpolation = "lanczos"', "input.interpolation"),
    ],
)
def test_names_the_key_at_fault(old: str, new: str, key: str) -> None:
    assert COMPLETE.count(old) >= 1
    with pytest.raises(ConfigError) as caught:
        Profile.from_toml(COMPLETE.replace(old, new, 1).encode())
    assert any(key in problem for problem in caught.value.problems)


@pytest.mark.parametrize("text", [b"name = ", b"\xff\xfe", b""])
def test_what_is_no_profile_is_refused(text: bytes) -> None:
    with pytest.raises(ConfigError):
        Profile.from_toml(text)


def test_names_the_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml"):
        Profile.load(tmp_path / "absent.toml")


def test_refuses_two_windows_for_one_modality() -> None:
    with pytest.raises(ConfigError, match="window"):
        Profile.from_toml((COMPLETE + '[[window]]\nmodality = "CT"\ncenter = 0\nwidth = 1\n').encode())
