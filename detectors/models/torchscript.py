"""Reads a TorchScript file after looking at what is in it."""

import io
import operator
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from detectors.errors import ConversionError
from detectors.models.archive import entries
from detectors.models.aten import PLACE, Argument, AtenReference, Block, Call, Value, Weight, function_of

_RUNS_UNSEEN = re.compile(rb"__setstate__|__forward_(?:pre_)?hooks__")
"""Code that is no part of the graph: it would run when the file is opened, or before and after the model."""
_LEFT_BEHIND = re.compile(r"\.debug_pkl$|^traced_inputs|^extra/")


def from_torchscript(model: bytes) -> AtenReference:
    """Rebuild a model from the bytes of a file that `torch.jit.save` wrote.

    (1) the archive is read, bounded, and written anew with the files that are needed: what was looked at is what
        torch opens
    (2) nothing in its code may run on opening; then torch opens it
    (3) every operator of its graph must be one that only computes; only then are constants folded, which runs some
    (4) the graph is rebuilt call by call

    Torch's reader is C++ made for files that one trusts. What stands here keeps a file from doing anything by design;
    it is no defence against a defect of that reader, so open no TorchScript file of unknown origin.

    Raises:
        ConversionError: not such a file, or one with loops, custom operators or operators that do more than compute.
    """
    graph = opened(model).graph  # (1) to (3)
    images = [value.debugName() for value in graph.inputs()][1:]  # the first is the module itself
    if len(images) != 1:
        raise ConversionError(f"the model takes {len(images)} inputs; one image input is supported")
    reading = _Reading()
    block = reading.block(graph)  # (4)
    return AtenReference(block, reading.weights, images[0])


def opened(model: bytes) -> torch.jit.ScriptModule:
    """The module of a file, checked and frozen: its weights are constants, and what depends on them alone is computed.

    Raises:
        ConversionError: as `from_torchscript`.
    """
    files = entries(model)
    if "data.pkl" not in files or not any(name.startswith("code/") for name in files):
        raise ConversionError("the archive holds no TorchScript module")
    for name, content in files.items():
        if name.startswith("code/") and name.endswith(".py") and _RUNS_UNSEEN.search(content):
            raise ConversionError("the model has code outside its graph, which is refused")
    again = io.BytesIO()
    with zipfile.ZipFile(again, "w", zipfile.ZIP_STORED) as archive:
        for name, content in files.items():
            if not _LEFT_BEHIND.search(name):
                archive.writestr(f"model/{name}", content)
    again.seek(0)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # that TorchScript is in maintenance is no news to who has such a file
            module: torch.jit.ScriptModule = torch.jit.load(again, map_location="cpu")  # type: ignore[no-untyped-call]
            _check(module.inlined_graph, loops=True)  # (3): folding may unroll them
            frozen = torch.jit.freeze(module.eval(), optimize_numerics=False)
            _check(frozen.graph)
            checked: torch.jit.ScriptModule = frozen
            return checked
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise ConversionError("the bytes are not a TorchScript module") from error


class _Reading:
    """Turns a frozen graph into calls, and gathers the tensors that it holds."""

    def __init__(self) -> None:
        self.weights: dict[str, Tensor] = {}
        self._known: dict[str, Argument] = {}
        """What a name of the graph stands for, where it is no computed value."""

    def block(self, graph: Any) -> Block:
        """Calls of a graph, or of one side of a branch."""
        calls = tuple(call for node in graph.nodes() if (call := self._call(node)) is not None)
        returned = graph.return_node() if hasattr(graph, "return_node") else graph.returnNode()
        return Block(calls, tuple(self._argument(value) for value in returned.inputs()))

    def _call(self, node: Any) -> Call | None:
        """One node; None where it only names a literal."""
        kind, outputs = node.kind(), tuple(value.debugName() for value in node.outputs())
        inputs = [self._argument(value) for value in node.inputs()]
        if kind == "prim::Constant":
            self._known[outputs[0]] = self._constant(node.output())
            return None
        if kind == "prim::Uninitialized":
            self._known[outputs[0]] = None
            return None
        if kind in ("prim::ListConstruct", "prim::TupleConstruct"):
            self._known[outputs[0]] = inputs
            return None
        if kind == "prim::If":
            branches = tuple(self.block(side) for side in node.blocks())
            return Call(kind, None, {"condition": inputs[0]}, outputs, branches=branches)
        arguments = {str(place): each for place, each in enumerate(inputs)}
        if kind in _PRIMITIVES:
            return Call(kind, _PRIMITIVES[kind], arguments, outputs, spread=kind.endswith("Unpack"))
        name = node.schema().partition("(")[0].removeprefix("aten::")
        function = function_of(name)
        names = [argument.name for argument in function._schema.arguments]
        return Call(f"aten::{name}", function, dict(zip(names, inputs, strict=False)), outputs, len(outputs) > 1)

    def _argument(self, value: Any) -> Argument:
        name = value.debugName()
        return self._known.get(name, Value(name))

    def _constant(self, value: Any) -> Argument:
        """A literal of the graph; a tensor becomes a weight."""
        literal = value.toIValue()
        if isinstance(literal, Tensor):
            name = f"tensor {len(self.weights)}"
            self.weights[name] = literal
            return Weight(name)
        if isinstance(literal, list) and literal and isinstance(literal[0], Tensor):
            raise ConversionError("a list of tensors as a constant is not supported")
        return PLACE if isinstance(literal, torch.device) else literal


def _refuse(*_arguments: Any) -> None:
    raise ConversionError("the model itself refuses this input")


def _same(value: Any) -> Any:
    return value


_PRIMITIVES: Mapping[str, Callable[..., Any]] = {
    "prim::ListUnpack": _same, "prim::TupleUnpack": _same, "prim::unchecked_cast": _same,
    "prim::NumToTensor": torch.tensor, "prim::RaiseException": _refuse, "prim::dtype": lambda x: x.dtype,
    "prim::min": min, "prim::max": max, "aten::__getitem__": operator.getitem, "aten::len": len,
    "aten::__contains__": operator.contains, "aten::format": str.format, "aten::warn": lambda *_words: None,
}  # fmt: skip
_LITERAL = frozenset(
    (
        "prim::Constant",
        "prim::ListConstruct",
        "prim::TupleConstruct",
        "prim::Uninitialized",
        "prim::If",
        "prim::GetAttr",
    )
)


def _check(graph: Any, *, loops: bool = False) -> None:
    """Refuse a graph with a node that does more than compute, before any of it is run."""
    for node in _nodes(graph):
        kind = node.kind()
        if kind in _LITERAL or kind in _PRIMITIVES:
            continue
        if kind == "prim::Loop":
            if loops:
                continue
            raise ConversionError("the model has a loop; trace it with an example image instead of scripting it")
        if not kind.startswith("aten::"):
            raise ConversionError(f"operator {kind} is custom or not supported, refused")
        function_of(node.schema().partition("(")[0].removeprefix("aten::"))


def _nodes(graph: Any) -> Iterator[Any]:
    for node in graph.nodes():
        yield node
        for side in node.blocks():
            yield from _nodes(side)
