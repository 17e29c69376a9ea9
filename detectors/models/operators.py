"""The table of ONNX operators: what each computes, in differentiable torch.

A handler receives its node and the node's inputs (None where an optional one is absent) and returns a tensor, or a
tuple for several outputs. Integer tensors carry shapes and stay on the CPU; floating ones live where the images do.
Semantics: the ONNX operator specification, opsets 11 to 23 (https://onnx.ai/onnx/operators/).
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from detectors.errors import ConversionError

Output = Tensor | tuple[Tensor, ...]
Handler = Callable[..., Output]

HANDLERS: dict[str, Handler] = {}


@dataclass(frozen=True, slots=True)
class Node:
    """One node of the graph, read once."""

    operator: str
    name: str
    inputs: tuple[str, ...]
    """Names of values; an empty string where an optional input is absent."""
    outputs: tuple[str, ...]
    attributes: dict[str, Any]
    opset: int

    def get(self, name: str, default: Any = None) -> Any:
        """The value of an attribute, or what the specification takes in its absence."""
        return self.attributes.get(name, default)

    def refuse(self, reason: str) -> ConversionError:
        """An error that says which node cannot be converted, and why."""
        return ConversionError(f"operator {self.operator}, node {self.name!r}: {reason}")


def operator(*names: str) -> Callable[[Handler], Handler]:
    """Enter a handler into the table."""

    def enter(handler: Handler) -> Handler:
        for name in names:
            assert name not in HANDLERS
            HANDLERS[name] = handler
        return handler

    return enter


def numbers(shape: Tensor) -> list[int]:
    """A shape-like tensor as Python integers."""
    return [int(value) for value in shape.tolist()] if shape.ndim else [int(shape)]


# --- elementwise ---------------------------------------------------------------------------------------------------


def _enter_simple() -> None:
    one: dict[str, Callable[..., Tensor]] = {
        "Relu": functional.relu, "Sigmoid": torch.sigmoid, "Tanh": torch.tanh, "Sqrt": torch.sqrt, "Exp": torch.exp,
        "Log": torch.log, "Neg": torch.neg, "Abs": torch.abs, "Erf": torch.erf, "Reciprocal": torch.reciprocal,
        "Floor": torch.floor, "Ceil": torch.ceil, "Round": torch.round, "Sign": torch.sign, "Sin": torch.sin,
        "Cos": torch.cos, "Softplus": functional.softplus, "Softsign": functional.softsign, "Not": torch.logical_not,
        "Mish": functional.mish, "HardSwish": functional.hardswish,
    }  # fmt: skip
    two: dict[str, Callable[..., Tensor]] = {
        "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Pow": torch.pow, "Equal": torch.eq,
        "Greater": torch.gt, "Less": torch.lt, "GreaterOrEqual": torch.ge, "LessOrEqual": torch.le,
        "And": torch.logical_and, "Or": torch.logical_or,
    }  # fmt: skip
    for name, function in one.items():
        operator(name)(functools.partial(_unary, function))
    for name, function in two.items():
        operator(name)(functools.partial(_binary, function))
    many: dict[str, Callable[..., Tensor]] = {"Max": torch.maximum, "Min": torch.minimum, "Sum": torch.add}
    for name, function in many.items():
        operator(name)(functools.partial(_variadic, function))


def _unary(function: Callable[[Tensor], Tensor], _node: Node, x: Tensor) -> Tensor:
    return function(x)


def _binary(function: Callable[[Tensor, Tensor], Tensor], _node: Node, x: Tensor, y: Tensor) -> Tensor:
    return function(*together(x, y))


def _variadic(function: Callable[[Tensor, Tensor], Tensor], _node: Node, *values: Tensor) -> Tensor:
    return functools.reduce(lambda x, y: function(*together(x, y)), values)


def together(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both on one device: a shape computed on the CPU meets images on an accelerator."""
    if x.device == y.device:
        return x, y
    device = y.device if x.device.type == "cpu" else x.device
    return x.to(device), y.to(device)


_enter_simple()


@operator("Div")
def divide(_node: Node, x: Tensor, y: Tensor) -> Tensor:
    """Quotient; integers round towards zero, as shapes need."""
    x, y = together(x, y)
    return torch.div(x, y) if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


@operator("Mod")
def modulo(node: Node, x: Tensor, y: Tensor) -> Tensor:
    """Remainder with the sign of the divisor, or of the dividend (`fmod`)."""
    x, y = together(x, y)
    return torch.fmod(x, y) if node.get("fmod", 0) else torch.remainder(x, y)


@operator("Mean")
def mean_of(_node: Node, *values: Tensor) -> Tensor:
    """Elementwise mean of several tensors."""
    return functools.reduce(torch.add, values) / len(values)


@operator("LeakyRelu")
def leaky_relu(node: Node, x: Tensor) -> Tensor:
    """Slope `alpha` below zero."""
    return functional.leaky_relu(x, node.get("alpha", 0.01))


@operator("PRelu")
def prelu(_node: Node, x: Tensor, slope: Tensor) -> Tensor:
    """A learned slope below zero, broadcast against the input."""
    return torch.where(x >= 0, x, x * slope)


@operator("Elu", "Celu")
def elu(node: Node, x: Tensor) -> Tensor:
    """Exponential below zero; Celu scales its argument so that it stays smooth."""
    function = functional.celu if node.operator == "Celu" else functional.elu
    return function(x, node.get("alpha", 1.0))


@operator("Selu")
def selu(node: Node, x: Tensor) -> Tensor:
    """Scaled exponential unit; the defaults are the specification's."""
    alpha, gamma = node.get("alpha", 1.6732632423543772), node.get("gamma", 1.0507009873554805)
    scaled: Tensor = gamma * (torch.clamp(x, min=0) + torch.clamp(alpha * torch.expm1(torch.clamp(x, max=0)), max=0))
    return scaled


@operator("Gelu")
def gelu(node: Node, x: Tensor) -> Tensor:
    """Gaussian error unit, exact or by tanh."""
    return functional.gelu(x, approximate=node.get("approximate", "none"))


@operator("HardSigmoid")
def hard_sigmoid(node: Node, x: Tensor) -> Tensor:
    """A straight line, clipped to [0, 1]."""
    return torch.clamp(node.get("alpha", 0.2) * x + node.get("beta", 0.5), 0, 1)


@operator("Clip")
def clip(node: Node, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """Bounds as attributes up to opset 10, as inputs since."""
    lower = node.get("min") if low is None else low.item()
    upper = node.get("max") if high is None else high.item()
    return x if lower is None and upper is None else torch.clamp(x, lower, upper)


@operator("Where")
def where(_node: Node, condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Choose by condition."""
    x, y = together(x, y)
    return torch.where(condition.to(x.device), x, y)


@operator("Cast", "CastLike")
def cast(node: Node, x: Tensor, like: Tensor | None = None) -> Tensor:
    """Change of type; 16- and 64-bit reals become 32-bit, which is what the whole reference computes in."""
    if like is not None:
        return x.to(like.dtype)
    kinds = {1: torch.float32, 10: torch.float32, 11: torch.float32, 16: torch.float32, 9: torch.bool}
    kinds |= {2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64}
    if node.get("to") not in kinds:
        raise node.refuse(f"type {node.get('to')} is not supported")
    return x.to(kinds[node.get("to")])


@operator("Identity", "Dropout")
def identity(_node: Node, x: Tensor, *_unused: Tensor | None) -> Tensor:
    """The input itself: at inference, dropout does nothing."""
    return x


@operator("Softmax", "LogSoftmax")
def softmax(node: Node, x: Tensor) -> Tensor:
    """Over one axis; before opset 13 over all axes from `axis` on."""
    function = torch.softmax if node.operator == "Softmax" else torch.log_softmax
    if node.opset >= 13:
        return function(x, node.get("axis", -1))
    axis = node.get("axis", 1) % max(x.ndim, 1)
    return function(x.flatten(axis), -1).reshape(x.shape)


# --- reductions ----------------------------------------------------------------------------------------------------


def _enter_reductions() -> None:
    reductions: dict[str, Callable[[Tensor, list[int], bool], Tensor]] = {
        "ReduceMean": lambda x, axes, keep: x.mean(axes, keepdim=keep),
        "ReduceSum": lambda x, axes, keep: x.sum(axes, keepdim=keep),
        "ReduceMax": lambda x, axes, keep: x.amax(axes, keepdim=keep),
        "ReduceMin": lambda x, axes, keep: x.amin(axes, keepdim=keep),
        "ReduceL1": lambda x, axes, keep: x.abs().sum(axes, keepdim=keep),
        "ReduceL2": lambda x, axes, keep: x.square().sum(axes, keepdim=keep).sqrt(),
        "ReduceSumSquare": lambda x, axes, keep: x.square().sum(axes, keepdim=keep),
        "ReduceLogSumExp": lambda x, axes, keep: torch.logsumexp(x, axes, keepdim=keep),
    }
    for name, function in reductions.items():
        operator(name)(functools.partial(_reduce, function))


def _reduce(function: Callable[..., Tensor], node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Axes as an attribute up to opset 17 (ReduceSum: 12), as an input since."""
    chosen = node.get("axes") if axes is None else numbers(axes)
    if not chosen:
        if node.get("noop_with_empty_axes", 0):
            return x
        chosen = list(range(x.ndim))
    return function(x, chosen, bool(node.get("keepdims", 1)))


_enter_reductions()


@operator("ReduceProd")
def reduce_product(node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Product, as shape arithmetic uses it."""
    chosen = node.get("axes") if axes is None else numbers(axes)
    keep = bool(node.get("keepdims", 1))
    for axis in sorted(((axis % x.ndim) for axis in chosen or range(x.ndim)), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


@operator("ArgMax")
def argmax(node: Node, x: Tensor) -> Tensor:
    """Place of the largest value; carries no gradient."""
    return x.argmax(node.get("axis", 0), keepdim=bool(node.get("keepdims", 1)))


# --- linear algebra ------------------------------------------------------------------------------------------------


@operator("Gemm")
def gemm(node: Node, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """Alpha A B + beta C, with optional transposes."""
    a = a.transpose(0, 1) if node.get("transA", 0) else a
    b = b.transpose(0, 1) if node.get("transB", 0) else b
    alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)
    product = a @ b if alpha == 1 else alpha * (a @ b)
    if c is None:
        return product
    return product + (c if beta == 1 else beta * c)


@operator("MatMul")
def matmul(_node: Node, a: Tensor, b: Tensor) -> Tensor:
    """Matrix product with numpy's broadcasting."""
    return a @ b


@operator("Einsum")
def einsum(node: Node, *values: Tensor) -> Tensor:
    """Sum of products over named axes."""
    return torch.einsum(node.get("equation").replace(" ", ""), *values)


# --- normalisation -------------------------------------------------------------------------------------------------


@operator("LayerNormalization")
def layer_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """Over all axes from `axis` on."""
    axis = node.get("axis", -1) % x.ndim
    shape = list(x.shape[axis:])
    bias = None if bias is None else bias.expand(shape)
    return functional.layer_norm(x, shape, scale.expand(shape), bias, node.get("epsilon", 1e-5))


@operator("InstanceNormalization")
def instance_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Each channel of each image by itself."""
    return functional.instance_norm(x, weight=scale, bias=bias, eps=node.get("epsilon", 1e-5))


@operator("GroupNormalization")
def group_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Scale and bias one a group up to opset 20, one a channel since."""
    groups = node.get("num_groups")
    if len(scale) != x.shape[1]:
        scale, bias = (value.repeat_interleave(x.shape[1] // groups) for value in (scale, bias))
    return functional.group_norm(x, groups, scale, bias, node.get("epsilon", 1e-5))


@operator("LpNormalization")
def lp_norm(node: Node, x: Tensor) -> Tensor:
    """Divide by the norm along one axis."""
    return functional.normalize(x, p=float(node.get("p", 2)), dim=node.get("axis", -1), eps=math.ulp(0.0))
