"""A model that torch itself wrote, as a differentiable module: its graph of torch's own operators, call by call.

TorchScript and torch.export files both hold such a graph; `torchscript` and `exported` read them. Only operators that
compute tensors from tensors are called, so that a model file can neither reach a file nor run code.
"""

import operator
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from detectors.errors import ConversionError, InputError
from detectors.models.taps import Step, with_block_ends

Argument = Any
"""A literal, a `Value`, a `Weight`, `PLACE`, or a list of them."""

_LINEAR = frozenset({"aten::linear", "aten::addmm", "aten::matmul"})
_LEARNED = _LINEAR | {"aten::conv2d", "aten::_convolution", "aten::convolution", "aten::conv_transpose2d"}


@dataclass(frozen=True, slots=True)
class Value:
    """What an earlier call gave."""

    name: str


@dataclass(frozen=True, slots=True)
class Weight:
    """A tensor that the file holds."""

    name: str


@dataclass(frozen=True, slots=True)
class _Place:
    """Stands for the device of the images, where the file names the one that it was written on."""


PLACE = _Place()


@dataclass(frozen=True, slots=True)
class Block:
    """Calls in order, and which values leave."""

    calls: tuple["Call", ...]
    returns: tuple[Argument, ...]


@dataclass(frozen=True, slots=True)
class Call:
    """One step of the graph."""

    name: str
    """As the file writes it, for errors: `aten::conv2d`."""
    function: Callable[..., Any] | None
    """None for a branch."""
    arguments: Mapping[str, Argument]
    """By the names of torch's schema; a plain function takes them in order."""
    outputs: tuple[str, ...]
    spread: bool = False
    """Whether the result is a sequence that the outputs share."""
    branches: tuple[Block, ...] = field(default=())
    """What to do if the one argument is true, and if not."""


class AtenReference(nn.Module):
    """A graph of torch's operators as a module: same outputs, with gradients and feature taps.

    Real-valued tensors of more than one element are parameters, except the statistics of batches; all others are
    buffers. Limits: no loops, no custom operators, one image input, one tensor out, any number of images at once.
    """

    gradients = True

    def __init__(
        self, block: Block, weights: Mapping[str, Tensor], input_name: str, *, fixed: Set[str] = frozenset()
    ) -> None:
        """Hold a graph and its tensors; `fixed` names those that no training moves, besides the statistics."""
        super().__init__()
        self._block = block
        self.input_name = input_name
        (returned,) = block.returns
        if not isinstance(returned, Value):
            raise ConversionError("the model must give one tensor that it computed")
        self.output_name = returned.name
        self._mutates = _mutates(block)
        fixed = fixed | _statistics(block)
        self._keys = {name: f"w{place}" for place, name in enumerate(weights)}
        for name, tensor in weights.items():
            real = tensor.is_floating_point()
            tensor = tensor.detach().clone().float() if real else tensor.detach().clone()  # noqa: PLW2901
            if real and tensor.numel() > 1 and name not in fixed:
                self.register_parameter(self._keys[name], nn.Parameter(tensor, requires_grad=False))
            else:
                self.register_buffer(self._keys[name], tensor)
        self.tap_names = with_block_ends(_steps(block), input_name, _last_taps(block))
        self.eval()

    @property
    def device(self) -> torch.device:
        """Where its weights lie."""
        return next((tensor.device for tensor in (*self.parameters(), *self.buffers())), torch.device("cpu"))

    def forward(self, x: Tensor) -> Tensor:
        """The model's output for (N, C, H, W) images."""
        return self.forward_with_taps(x, ())[0]

    def forward_with_taps(self, x: Tensor, taps: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """The model's output, and the values that the named calls give on the way.

        Args:
            x: (N, C, H, W) float32.
            taps: names of values of the graph, as `value_names` lists them.

        Returns:
            The output, and each tap as the graph computes it.
        """
        unknown = set(taps) - set(self.value_names)
        if unknown:
            raise InputError(f"no call gives {sorted(unknown)}")
        x = x.contiguous()  # a file may look at memory as it lies: `view`
        values: dict[str, Any] = {self.input_name: x.clone() if self._mutates else x}
        kept: dict[str, Tensor] = {}
        for call in self._block.calls:
            self._run(call, values, x.device)
            for name in call.outputs:
                if name in taps:
                    # a later call may write over it
                    kept[name] = values[name].clone() if self._mutates else values[name]
        output = values[self.output_name]
        if not isinstance(output, Tensor):
            raise ConversionError("the model gives something that is no tensor")
        return output, kept

    @property
    def value_names(self) -> tuple[str, ...]:
        """Every value that a tap may name, in the order of computation."""
        return tuple(name for call in self._block.calls for name in call.outputs)

    def _run(self, call: Call, values: dict[str, Any], device: torch.device) -> None:
        """Compute one call into the values."""
        arguments = {name: self._filled(each, values, device) for name, each in call.arguments.items()}
        if call.branches:
            (condition,) = arguments.values()
            chosen = call.branches[0 if condition else 1]
            for each in chosen.calls:
                self._run(each, values, device)
            results: Any = [self._filled(each, values, device) for each in chosen.returns]
            values.update(zip(call.outputs, results, strict=True))
            return
        assert call.function is not None
        if self.training and "training" in arguments and call.name.startswith("aten::batch_norm"):
            arguments["training"] = True  # a twin uses and updates the statistics of the batch
        try:
            if isinstance(call.function, torch._ops.OpOverload):
                result = call.function(**arguments)
            else:
                result = call.function(*arguments.values())
        except (RuntimeError, ValueError, TypeError, IndexError, KeyError) as error:
            raise ConversionError(f"{call.name} cannot be computed: {str(error).splitlines()[0]}") from error
        if call.spread:
            values.update(zip(call.outputs, result, strict=True))
        elif call.outputs:
            values[call.outputs[0]] = result

    def _filled(self, argument: Argument, values: dict[str, Any], device: torch.device) -> Any:
        """The argument with values, weights and device put in."""
        if isinstance(argument, Value):
            return values[argument.name]
        if isinstance(argument, Weight):
            return getattr(self, self._keys[argument.name])
        if isinstance(argument, list):
            return [self._filled(each, values, device) for each in argument]
        return device if argument is PLACE else argument


def function_of(name: str) -> torch._ops.OpOverload[..., Any]:
    """The operator that a file names, `conv2d.default` of the namespace aten.

    Raises:
        ConversionError: torch has no such operator, or it is not one of those that only compute.
    """
    base, _, overload = name.partition(".")
    if base.removesuffix("_") not in COMPUTING and base not in COMPUTING:
        raise ConversionError(f"operator aten::{base} is not in the list of those that only compute")
    try:
        found: torch._ops.OpOverload[..., Any] = getattr(getattr(torch.ops.aten, base), overload or "default")
    except AttributeError as error:
        raise ConversionError(f"torch has no operator aten::{name}") from error
    return found


COMPUTING = frozenset(
    """
    _convolution abs adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool2d add addcmul addmm
    alias alpha_dropout amax amin arange argmax avg_pool1d avg_pool2d avg_pool3d baddbmm batch_norm bmm broadcast_to cat
    ceil celu chunk clamp clamp_max clamp_min clone constant_pad_nd contiguous conv1d conv2d conv3d conv_transpose1d
    conv_transpose2d conv_transpose3d cos cumsum detach div dropout einsum elu embedding eq erf exp expand expand_as
    feature_dropout flatten flip floor floor_divide full full_like gather ge gelu glu group_norm gt hardsigmoid
    hardswish hardtanh index index_select instance_norm isnan layer_norm le leaky_relu lerp lift_fresh_copy linalg_norm
    linalg_vector_norm linear log log1p log_softmax logical_and logical_not logical_or logit logsumexp lt masked_fill
    matmul max max_pool1d max_pool2d max_pool3d maximum mean meshgrid min minimum mish mm movedim mul narrow ne neg
    new_full new_ones new_zeros norm normalize ones ones_like pad permute pixel_shuffle pixel_unshuffle pow prelu
    reciprocal reflection_pad1d reflection_pad2d reflection_pad3d relu relu6 remainder repeat repeat_interleave
    replication_pad1d replication_pad2d replication_pad3d reshape reshape_as rms_norm roll round rsqrt rsub
    scaled_dot_product_attention select selu sigmoid sign silu sin slice softmax softplus softsign split
    split_with_sizes sqrt square squeeze stack std sub sum t tan tanh tensor_split threshold to topk transpose tril triu
    true_divide type_as unbind unflatten unfold unsafe_chunk unsafe_split unsqueeze upsample_bicubic2d
    upsample_bilinear2d upsample_linear1d upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_trilinear3d
    _upsample_nearest_exact2d var var_mean view view_as where zeros zeros_like
    Int Float Bool IntImplicit FloatImplicit ScalarImplicit __getitem__ __not__ __is__ __isnot__ __and__ __or__ dim len
    size sym_size floordiv numel item format
    """.split()  # noqa: SIM905 - a table reads best without quotes
)
"""Operators of torch that compute from their arguments alone: no file, no process, no state, no randomness in use."""

ARITHMETIC: Mapping[str, Callable[..., Any]] = {
    name: getattr(operator, name)
    for name in ("add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "eq", "ne", "lt", "le", "gt", "ge")
}
"""Arithmetic of lengths, as torch.export writes it."""


def _calls(block: Block) -> list[Call]:
    """Every call, those of branches too."""
    inner = [each for call in block.calls for branch in call.branches for each in _calls(branch)]
    return [*block.calls, *inner]


def _mutates(block: Block) -> bool:
    """Whether a call writes over one of its arguments."""
    schemas = (getattr(call.function, "_schema", None) for call in _calls(block))
    return any(schema.is_mutable for schema in schemas if schema is not None)


def _statistics(block: Block) -> set[str]:
    """Weights that are the running mean or variance of batches."""
    given = (call.arguments.get(name) for call in _calls(block) for name in ("running_mean", "running_var"))
    return {each.name for each in given if isinstance(each, Weight)}


def _steps(block: Block) -> list[Step]:
    """The graph as the rule for taps sees it."""

    def values(argument: Argument) -> list[str]:
        if isinstance(argument, Value):
            return [argument.name]
        return [name for each in argument for name in values(each)] if isinstance(argument, list | tuple) else []

    return [
        Step(
            tuple(name for argument in call.arguments.values() for name in values(argument)),
            call.outputs,
            call.name.partition(".")[0] in _LEARNED,
        )
        for call in block.calls
    ]


def _last_taps(block: Block) -> tuple[str, ...]:
    """Input and output of the last pooling over all of space; without one, the input of the last linear layer."""
    for call in reversed(block.calls):
        source = next(iter(call.arguments.values()), None)
        if isinstance(source, Value) and _pools_space(call):
            return source.name, call.outputs[0]
    for call in reversed(block.calls):
        if call.name.partition(".")[0] in _LINEAR:
            source = next((each for each in call.arguments.values() if isinstance(each, Value)), None)
            if source is not None:
                return (source.name,)
    last = [each for each in block.calls[-1].arguments.values() if isinstance(each, Value)] if block.calls else []
    if not last:
        raise ConversionError("the model's graph has no value that could be a feature")
    return (last[0].name,)


def _pools_space(call: Call) -> bool:
    base = call.name.partition(".")[0]
    if base == "aten::adaptive_avg_pool2d":
        return list(call.arguments.get("output_size", ())) == [1, 1]
    axes = call.arguments.get("dim")
    return base == "aten::mean" and isinstance(axes, list) and sorted(a % 4 for a in axes if a is not None) == [2, 3]
