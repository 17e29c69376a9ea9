"""The kinds of file that a protected model may be, and how each becomes something that detectors can ask."""

import io
import zipfile
from enum import Enum, unique

import torch
from torch import Tensor

from detectors.errors import ConversionError
from detectors.models.answers import AnswersOnly, Ask
from detectors.models.exported import from_export
from detectors.models.model import ReferenceModel
from detectors.models.reference import Reference, conversion_difference
from detectors.models.served import OPENING, Card
from detectors.models.torchscript import from_torchscript, opened

_ARCHIVE = b"PK\x03\x04"


@unique
class Kind(Enum):
    """What a model file is."""

    ONNX = "onnx"
    TORCHSCRIPT = "torchscript"
    EXPORTED = "torch.export"
    SERVED = "card of a model on a server"

    @classmethod
    def of(cls, model: bytes) -> "Kind":
        """The kind, by what the bytes are and not by a name."""
        if model.startswith(OPENING):
            return cls.SERVED
        if not model.startswith(_ARCHIVE):
            return cls.ONNX
        try:
            with zipfile.ZipFile(io.BytesIO(model)) as archive:
                code = any("/code/" in name for name in archive.namelist())
        except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError):
            code = False
        return cls.TORCHSCRIPT if code else cls.EXPORTED


def rebuilt(model: bytes, output: str | None = None) -> ReferenceModel:
    """A model with gradients and taps, from the bytes of its file.

    Args:
        model: the file, whole: ONNX, TorchScript or torch.export.
        output: name of the output of an ONNX graph; by default the first. The other kinds have one.

    Raises:
        ConversionError: no such file, or one that cannot be rebuilt.
    """
    kind = Kind.of(model)
    if kind is Kind.SERVED:
        raise ConversionError("there is no file of the model here, only a server that answers for it")
    if kind is Kind.TORCHSCRIPT:
        return from_torchscript(model)
    return from_export(model) if kind is Kind.EXPORTED else Reference.from_onnx(model, output)


def answering(model: bytes, output: str | None = None, ask: Ask | None = None) -> ReferenceModel:
    """A model that answers and no more: a file that cannot be rebuilt, or a server's.

    Args:
        model: the file, or the card of a model on a server.
        output: name of the output of an ONNX graph; by default the first.
        ask: the way to the server, for a card.

    Raises:
        ConversionError: no ONNX file, or one with external data or custom operators, which nothing here runs; or a
            card, and no way to the server.
    """
    kind = Kind.of(model)
    if kind is Kind.SERVED:
        if ask is None:
            raise ConversionError("the model is known by its server's answers alone: say where that server is")
        card = Card.read(model)
        return AnswersOnly(card.vouched(ask), card.output)
    if kind is not Kind.ONNX:
        raise ConversionError(f"a {kind.value} file that cannot be rebuilt cannot be run here either")
    return AnswersOnly.from_onnx(model, output)


def difference(reference: ReferenceModel, model: bytes, images: Tensor) -> float | None:
    """The largest difference between a rebuilt model and the runtime of its kind of file, on the CPU.

    Args:
        reference: what was rebuilt from `model`.
        model: the file.
        images: (N, C, H, W) float32, as the model takes them; N at least 1.

    Returns:
        Largest absolute difference of any output value; None for a model that only answers, and for torch.export,
        whose graph has no other runtime here: the reference calls the very operators that the file names.

    Raises:
        ConversionError: the runtime cannot run the model on these images.
    """
    if not reference.gradients:
        return None
    kind = Kind.of(model)
    if kind is Kind.ONNX:
        assert isinstance(reference, Reference)
        return conversion_difference(reference, model, images)
    if kind is Kind.EXPORTED:
        return None
    with torch.no_grad():
        try:
            expected = opened(model)(images)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise ConversionError(f"torch itself cannot run the model on these images: {reason}") from error
        return float((reference(images.to(reference.device)).cpu() - expected).abs().max())
