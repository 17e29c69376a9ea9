"""The protected model as a fit needs it: rebuilt or asked, and found to be what its profile says."""

import onnx
import torch
from torch import Tensor

from detectors.errors import ConversionError
from detectors.models.answers import Ask
from detectors.models.kinds import Kind, answering, difference, rebuilt
from detectors.models.model import ReferenceModel
from detectors.models.outputs import Task
from detectors.models.reference import parse
from gateway.errors import ConfigError
from gateway.profile import Profile

CONVERSION_TOLERANCE = 1e-3
"""Largest difference from the model's own runtime, as a share of the outputs' spread, with which it is accepted."""
ONE = 1e-3
"""How far from 0 to 1 a probability may lie, and from 1 the sum of some that exclude each other."""
_LOOKED_AT = 16
"""Scans that the model is shown first."""


class MismatchError(ConfigError):
    """A profile that says something else than its model; names the key."""

    def __init__(self, problem: str) -> None:
        super().__init__([problem])


def opened(
    model: bytes, profile: Profile, images: Tensor, device: torch.device, ask: Ask | None
) -> tuple[ReferenceModel, float | None, str | None]:
    """The model, asked about some scans so that what cannot work is refused before anything is trained.

    Args:
        model: its file, or the card of one on a server.
        profile: its profile.
        images: (N, C, H, W) scans as the model takes them; the first few are looked at.
        device: where it shall run.
        ask: the way to that server.

    Returns:
        The reference, how far it is from its own runtime, and None; or what only answers, None, and why.

    Raises:
        ConversionError: a file that nothing here can rebuild or run.
        MismatchError: the model takes or gives something else than the profile says.
    """
    some = images[:_LOOKED_AT]
    if Kind.of(model) is Kind.ONNX:
        _require_input(model, profile)
    reference, apart, answers_only = _opened(model, profile, some, ask)
    with torch.no_grad():
        _require_output(reference(some), profile)
    return reference.to(device), apart, answers_only


def _opened(
    model: bytes, profile: Profile, some: Tensor, ask: Ask | None
) -> tuple[ReferenceModel, float | None, str | None]:
    if ask is not None:
        return answering(model, ask=ask), None, "there is no file of the model, only a server"
    try:
        return *_rebuilt(model, profile, some), None
    except ConversionError as error:
        try:
            return answering(model, profile.output.name), None, str(error)
        except ConversionError:
            raise error from None  # a file that nothing here runs: the first sentence says why


def _rebuilt(model: bytes, profile: Profile, some: Tensor) -> tuple[ReferenceModel, float | None]:
    """The reference, and how far it is from its own runtime."""
    reference = rebuilt(model, profile.output.name)
    apart = difference(reference, model, some)
    with torch.no_grad():
        outputs = reference(some)
    spread = max(float(outputs.std()), 1e-3)
    if apart is not None and not apart <= CONVERSION_TOLERANCE * spread:
        raise ConversionError(
            f"the rebuilt model differs from its own runtime by {apart:.3g}, more than {CONVERSION_TOLERANCE:g} of "
            f"the spread of its outputs ({spread:.3g})"
        )
    return reference, apart


def _require_input(model: bytes, profile: Profile) -> None:
    """What an ONNX file declares of its input against what the profile would send; raises `MismatchError`."""
    graph = parse(model).graph
    weights = {each.name for each in graph.initializer}
    inputs = [each for each in graph.input if each.name not in weights]
    if len(inputs) != 1:
        return  # refused, with a sentence of its own, by whoever opens it
    tensor = inputs[0].type.tensor_type
    if tensor.elem_type not in {onnx.TensorProto.FLOAT, onnx.TensorProto.UNDEFINED}:
        kind = onnx.TensorProto.DataType.Name(tensor.elem_type)
        raise MismatchError(f"model: its input is {kind}, and FLOAT (float32) is what it is given")
    if not tensor.HasField("shape"):
        return
    lengths = [each.dim_value if each.HasField("dim_value") else None for each in tensor.shape.dim]
    wanted = (1, profile.input.channels, *profile.input.size)
    keys = ("model: images at a time", "input.channels", "input.size: rows", "input.size: columns")
    if len(lengths) != len(wanted):
        raise MismatchError(f"model: its input has {len(lengths)} axes; images, channels, rows, columns are wanted")
    for key, length, given in zip(keys, lengths, wanted, strict=True):
        if length not in {None, 0, given}:
            raise MismatchError(f"{key}: the model takes {length}, and would be given {given}")


def _require_output(output: Tensor, profile: Profile) -> None:
    """What the model gives for some scans against what the profile says of it; raises `MismatchError`."""
    task, classes = Task(profile.task), len(profile.classes)
    if output.ndim != task.axes:
        raise MismatchError(f"task: a {task.value} model gives {task.axes} axes, and this one {output.ndim}")
    alone = output.shape[1] == 1 and classes == 2 and task is not Task.MULTILABEL  # one number for two classes
    if output.shape[1] != classes and not alone:
        raise MismatchError(f"classes: {classes} are named, and the model gives {output.shape[1]}")
    if task is Task.SEGMENTATION and tuple(output.shape[2:]) != profile.input.size:
        rows, columns = output.shape[2:]
        raise MismatchError(f"input.size: the model gives masks of {rows} x {columns}; those of its input are wanted")
    if not bool(output.isfinite().all()):
        raise MismatchError("model: on real scans it gives numbers that are not finite")
    low, high = float(output.min()), float(output.max())
    inside = low >= -ONE and high <= 1 + ONE
    if profile.already_applied != "none" and not inside:
        raise MismatchError(
            f"output.activation: probabilities are said to come out of the model, and it gives {low:.3g} to {high:.3g}"
        )
    exclusive = task is not Task.MULTILABEL and not alone
    if profile.already_applied == "none" and exclusive and inside and float((output.sum(1) - 1).abs().max()) < ONE:
        raise MismatchError('output.activation: the model gives probabilities already; the profile must say "none"')
