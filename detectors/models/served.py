"""A protected model that only a server has: what stands for its file, and vouches for the answers."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional

from detectors.errors import AnotherModelError, AnswerError, ConversionError
from detectors.models.answers import Ask
from detectors.models.outputs import Activation, Task, decided, margin, to_logits
from detectors.observation import Span

CARD = "remote.json"
"""Name of a card in the directory of its artefact."""
OPENING = b'{"scanward_remote_model":'
"""With which a card begins, and no model file does."""

_SCHEMA = 1
_AXES = 4
"""Of images; a server that leaves the first one out says nothing about how many."""
_BYTES_MAX = 2**20
_DRAWN = 64
"""Images among which the witness is chosen."""
_CELLS = 8
"""Random greys in a side of a drawn image, smoothed to its size: no texture, so that rounding changes little."""
_SHARE, _LEAST = 0.01, 1e-4
"""Of the spread of the answers, and at the least: by how much another machine's arithmetic may move an answer."""
_AT_ONCE = 8
"""Drawn images in one question: masks are large."""


@dataclass(frozen=True, slots=True)
class Card:
    """What the server said of the model when detectors were fitted, and its answer to one drawn image, the witness.

    Every later question carries the witness along: a model that answers it otherwise is not the one that was fitted
    for, whatever its name and version are. It does not notice a change that moves no answer to that image by more
    than the tolerance.
    """

    described: Mapping[str, Any]
    """The server's description of the model: name, version, platform, inputs, outputs."""
    output: str
    """Name of the output that counts."""
    low: tuple[float, ...]
    """What black is in the model's input, by channel."""
    high: tuple[float, ...]
    """What white is."""
    size: tuple[int, int]
    """Rows and columns."""
    draw: int
    """Number of the witness among those that may be drawn."""
    shape: tuple[int, ...]
    """Of one answer: (outputs,), or of a segmentation (outputs, rows, columns)."""
    answer: tuple[float, ...]
    """The model's own to the witness; of a segmentation, the mean of each output over each of 8 x 8 fields."""
    tolerance: float
    """Largest difference of any of these numbers with which an answer counts as the same."""

    @classmethod
    def made(
        cls, described: Mapping[str, Any], output: str, span: Span, size: tuple[int, int], ask: Ask,
        *, activation: Activation, task: Task,
    ) -> Self:  # fmt: skip
        """Ask about drawn images, and choose as witness the one about which the model is least sure.

        Raises:
            ConversionError: the answers are not finite numbers, as many for each image.
            InputError: the output has another number of axes than a model of this task.
        """
        images = torch.stack([_drawn(k, span, size) for k in range(_DRAWN)])
        shapes, leads, summaries = set(), [], []
        for part in torch.split(images, _AT_ONCE):
            answers = ask(part).float()
            if answers.ndim < 2 or len(answers) != len(part) or not bool(answers.isfinite().all()):
                raise ConversionError("the model on the server did not give finite numbers, one answer an image")
            logits = to_logits(answers, activation, task)
            shapes.add(tuple(answers.shape[1:]))
            leads.append(margin(logits, decided(logits, task), task))
            summaries.append(_summary(answers))
        if len(shapes) > 1:
            raise ConversionError("the model on the server does not give as many numbers for each image")
        summary, chosen = torch.cat(summaries), int(torch.cat(leads).argmin())
        tolerance = max(_LEAST, _SHARE * float(summary.std()))
        witnessed = tuple(summary[chosen].tolist())
        return cls(described, output, span.low, span.high, size, chosen, shapes.pop(), witnessed, tolerance)

    @property
    def images_max(self) -> int | None:
        """How many images the model takes at a time, where it says so; None for any number."""
        return images_at_a_time(self.described)

    @classmethod
    def read(cls, card: bytes) -> Self:
        """A card from its bytes; raises `ConversionError` where it is none."""
        try:
            if len(card) > _BYTES_MAX:
                raise ValueError("too large")
            found = json.loads(card)
            if found["scanward_remote_model"] != _SCHEMA:
                raise ValueError("another schema")
            size, shape = ([int(each) for each in found[name]] for name in ("size", "shape"))
            low, high, answer = (tuple(float(each) for each in found[name]) for name in ("low", "high", "answer"))
            if len(answer) != shape[0] * (_CELLS**2 if len(shape) == Task.SEGMENTATION.axes - 1 else 1):
                raise ValueError("an answer of another shape")
            return cls(
                dict(found["described"]), str(found["output"]), low, high, (size[0], size[1]), int(found["draw"]),
                tuple(shape), answer, float(found["tolerance"]),
            )  # fmt: skip
        except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
            raise ConversionError("not a card of a model on a server") from error

    def written(self) -> bytes:
        """The bytes whose digest stands for the model."""
        rest = {
            "described": dict(self.described), "output": self.output, "low": self.low, "high": self.high,
            "size": self.size, "draw": self.draw, "shape": self.shape, "answer": self.answer,
            "tolerance": self.tolerance,
        }  # fmt: skip
        text = json.dumps({"scanward_remote_model": _SCHEMA, **rest}, separators=(",", ":"), allow_nan=False)
        return text.encode() + b"\n"

    def vouched(self, ask: Ask) -> Ask:
        """The same question with the witness in it.

        What is returned raises `AnotherModelError` where the witness is answered otherwise, and `AnswerError` where
        there is no answer for each image.
        """
        witness = _drawn(self.draw, Span(self.low, self.high), self.size)[None]
        expected = torch.tensor(self.answer)

        def asked(images: Tensor) -> Tensor:
            answers = ask(torch.cat([images, witness]))
            if answers.shape != (len(images) + 1, *self.shape):
                raise AnswerError("the model on the server did not give one answer an image")
            apart = float((_summary(answers[-1:])[0] - expected).abs().max())
            if not apart <= self.tolerance:
                raise AnotherModelError(
                    f"the model on the server is not the one that was fitted for: its answer to the witness is "
                    f"{apart:.3g} off, and {self.tolerance:.3g} is allowed"
                )
            return answers[:-1]

        return asked


def put_card(directory: Path, card: bytes | None) -> None:
    """Put a card beside the other files of an artefact, or None; whatever card lay there before goes away."""
    (directory / CARD).unlink(missing_ok=True)
    if card is not None:
        (directory / CARD).write_bytes(card)


def images_at_a_time(described: Mapping[str, Any]) -> int | None:
    """How many images a model takes at a time by what its server says of it; None for any number, or where unsaid."""
    inputs = described.get("inputs") or [{}]
    shape = [int(length) for length in inputs[0].get("shape") or ()]
    return shape[0] if len(shape) == _AXES and shape[0] > 0 else None


def _summary(answers: Tensor) -> Tensor:
    """(N, S): answers (N, K) themselves; of maps (N, K, H, W) the mean of each field, so that a card stays small."""
    if answers.ndim == Task.MULTICLASS.axes:
        return answers
    return functional.adaptive_avg_pool2d(answers, _CELLS).flatten(1)


def _drawn(number: int, span: Span, size: Sequence[int]) -> Tensor:
    """(C, H, W) soft blobs in the model's range; the same for the same number on every machine."""
    channels = len(span.low)
    greys = hashlib.shake_256(f"scanward witness {number}".encode()).digest(channels * _CELLS * _CELLS)
    cells = torch.tensor(list(greys), dtype=torch.float32).view(1, channels, _CELLS, _CELLS) / 255
    return span.from_unit(functional.interpolate(cells, size=tuple(size), mode="bilinear", align_corners=False))[0]
