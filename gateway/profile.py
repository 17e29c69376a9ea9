"""What a protected model takes and gives: one TOML file a model, read once and bound by its digest."""

from __future__ import annotations

import hashlib
import math
import tomllib
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, field_validator, model_validator

from gateway.errors import ConfigError

SIZE_MAX = 4096
"""Rows or columns of a model's input: above this one image in float32 takes more than 64 MiB."""

Task = Literal["multiclass", "multilabel", "segmentation"]
Activation = Literal["none", "softmax", "sigmoid"]
_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Name = Annotated[str, Field(min_length=1, max_length=128)]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def _no_output() -> Output:
    return Output()


def _no_match() -> Match:
    return Match()


class Profile(_Table):
    """How an image becomes the model's input and the model's output becomes probabilities (architecture 5.6)."""

    name: _Name
    version: _Name
    task: Task
    classes: tuple[_Name, ...] = Field(min_length=1, strict=False)
    """One name for each entry of the output's class axis, in its order."""
    input: Input
    output: Output = Field(default_factory=_no_output)
    windows: tuple[ModalityWindow, ...] = Field(default=(), alias="window", strict=False)
    match: Match = Field(default_factory=_no_match)
    _sha256: str = PrivateAttr(default="")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a profile from its file; raises `ConfigError` where it cannot be read or is wrong."""
        try:
            return cls.from_toml(path.read_bytes())
        except OSError as error:
            raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from error
        except ConfigError as error:
            raise ConfigError([f"{path}: {problem}" for problem in error.problems]) from error

    @classmethod
    def from_toml(cls, text: bytes) -> Self:
        """Read a profile from the bytes of its file.

        Raises:
            ConfigError: not TOML, an unknown or missing key, a value out of its range; names every key at fault.
        """
        try:
            document = tomllib.loads(text.decode())
            profile = cls.model_validate(document)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError([f"not a TOML file: {error}"]) from error
        except ValidationError as error:
            raise ConfigError([_problem(problem["loc"], problem["msg"]) for problem in error.errors()]) from error
        profile._sha256 = hashlib.sha256(text).hexdigest()
        return profile

    @property
    def sha256(self) -> str:
        """Lower-case hexadecimal digest of the file's bytes; artefacts and receipts are bound to it."""
        return self._sha256

    @property
    def activation(self) -> Activation:
        """What turns the graph's output into probabilities.

        `none` says that the graph's last node already is a softmax or a sigmoid. Where `[output] activation` is
        absent the output is taken for logits: softmax for multiclass, sigmoid for the others.
        """
        return self.output.activation or ("softmax" if self.task == "multiclass" else "sigmoid")

    @property
    def already_applied(self) -> Activation:
        """What the graph's output went through inside the graph, which a detector undoes to see logits."""
        if self.activation != "none":
            return "none"
        return "softmax" if self.task == "multiclass" else "sigmoid"

    def probabilities(self, output: NDArray[np.float32]) -> NDArray[np.float32]:
        """What the graph's output means: (..., classes) probabilities from (..., classes) as the graph gives it."""
        if self.activation == "softmax":
            powers: NDArray[np.float32] = np.exp(output - output.max(axis=-1, keepdims=True))
            shares: NDArray[np.float32] = powers / powers.sum(axis=-1, keepdims=True)
            return shares
        if self.activation == "sigmoid":  # 1 / (1 + exp(-x)), written so that it never overflows
            chances: NDArray[np.float32] = np.float32(0.5) + np.float32(0.5) * np.tanh(np.float32(0.5) * output)
            return chances
        return output

    def window_for(self, modality: str) -> ModalityWindow | None:
        """The window that the profile fixes for a modality; None leaves it to the object."""
        return next((window for window in self.windows if window.modality == modality), None)

    @field_validator("classes")
    @classmethod
    def _classes_are_distinct(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(classes)) != len(classes):
            raise ValueError("each class needs a name of its own")
        return classes

    @field_validator("windows")
    @classmethod
    def _one_window_a_modality(cls, windows: tuple[ModalityWindow, ...]) -> tuple[ModalityWindow, ...]:
        if len({window.modality for window in windows}) != len(windows):
            raise ValueError("at most one window a modality")
        return windows

    @model_validator(mode="after")
    def _multiclass_has_a_choice(self) -> Self:
        if self.task == "multiclass" and len(self.classes) < 2:
            raise ValueError("classes: a multiclass model has at least two")
        if self.task == "multilabel" and self.output.activation == "softmax":
            raise ValueError(
                "output.activation: the classes of a multilabel model are not exclusive, softmax makes them so"
            )
        return self


class Input(_Table):
    """The model's input tensor."""

    name: _Name
    """Name of the graph's input."""
    layout: Literal["NCHW"]
    channels: Literal[1, 3]
    """3: red, green, blue; a grey image stands in each of them."""
    size: tuple[int, int] = Field(strict=False)
    """Rows, columns."""
    range: tuple[_Finite, _Finite] = Field(strict=False)
    """What the lower and the upper end of the window become, before `mean` and `std`."""
    mean: tuple[_Finite, ...] | None = Field(default=None, strict=False)
    """One a channel, subtracted after scaling to `range`; absent: 0."""
    std: tuple[_Finite, ...] | None = Field(default=None, strict=False)
    """One a channel, divided by after `mean`; absent: 1."""
    interpolation: Literal["bilinear", "bicubic", "nearest"] = "bilinear"
    """bilinear and bicubic are antialiased, as a reduction of a radiograph must be."""
    aspect: Literal["letterbox", "stretch"] = "letterbox"
    """letterbox keeps the anatomy's proportions (pixel spacing heeded) and fills with the window's lower end;
    stretch is for models that were trained on stretched images."""

    @field_validator("size")
    @classmethod
    def _size_is_bounded(cls, size: tuple[int, int]) -> tuple[int, int]:
        if not all(1 <= length <= SIZE_MAX for length in size):
            raise ValueError(f"rows and columns lie between 1 and {SIZE_MAX}")
        return size

    @field_validator("range")
    @classmethod
    def _range_ascends(cls, ends: tuple[float, float]) -> tuple[float, float]:
        if not ends[0] < ends[1]:
            raise ValueError("the lower end comes first and is smaller")
        return ends

    @model_validator(mode="after")
    def _one_number_a_channel(self) -> Self:
        for key, numbers in (("mean", self.mean), ("std", self.std)):
            if numbers is not None and len(numbers) != self.channels:
                raise ValueError(f"{key}: needs one number for each of the {self.channels} channels")
        if self.std is not None and min(self.std) <= 0:
            raise ValueError("std: must be above 0")
        return self


class Output(_Table):
    """The model's output tensor."""

    name: _Name | None = None
    """Absent: the graph's first output."""
    activation: Activation | None = None


class ModalityWindow(_Table):
    """A window fixed for a modality, in units of the modality LUT's output (Hounsfield for CT).

    It maps centre - width/2 to the lower and centre + width/2 to the upper end of `range` (LINEAR_EXACT of PS3.3
    C.11.2.1.3.2), which is how training code writes a window; DICOM's default, LINEAR, lies half a unit beside.
    """

    modality: Annotated[str, Field(pattern=r"^[A-Z]{2,16}$")]
    center: _Finite
    width: _Finite

    @field_validator("width")
    @classmethod
    def _has_width(cls, width: float) -> float:
        if not (width > 0 and math.isfinite(1 / width)):
            raise ValueError("must be above 0")
        return width


class Match(_Table):
    """Which objects the model was made for; an empty list takes any."""

    modality: tuple[str, ...] = Field(default=(), strict=False)
    body_part: tuple[str, ...] = Field(default=(), strict=False)
    sop_classes: tuple[str, ...] = Field(default=(), strict=False)


def _problem(location: tuple[int | str, ...], message: str) -> str:
    """A validation message in front of which stands the key as the file spells it."""
    return f"{'.'.join(str(step) for step in location) or 'profile'}: {message.removeprefix('Value error, ')}"


Profile.model_rebuild()
