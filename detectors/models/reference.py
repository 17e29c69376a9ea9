"""The protected model as a differentiable torch module, built from the very ONNX file that is served."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import onnx
import onnx.inliner
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional

import detectors.models.spatial  # noqa: F401 - enters its operators into the table
from detectors.errors import ConversionError, InputError
from detectors.models.folding import lay_out
from detectors.models.operators import HANDLERS, Node, numbers
from detectors.models.taps import default_taps

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

OPSETS = range(11, 24)
"""Versions of the operator set whose semantics the table implements."""

_REALS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_STATISTICS: dict[str, tuple[int, ...]] = {"BatchNormalization": (3, 4)}
_ARGUMENTS: dict[str, tuple[int, ...]] = {"Resize": (1, 2, 3), "Upsample": (1,), "Clip": (1, 2), "Pad": (2,)}


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a node finds one of its inputs."""

    kind: str
    """`value` computed by an earlier node, `weight` of the module, `constant`, or `absent`."""
    key: str


class Reference(nn.Module):
    """An ONNX graph as a torch module: same outputs, with gradients and feature taps.

    Real-valued initializers of more than one element are parameters (not requiring a gradient until somebody asks
    for it: a twin), batch statistics and scalars are buffers, and integers are constants on the CPU. All arithmetic
    is 32-bit. Limits: no control flow, no custom operators, no external data, one image input.
    """

    gradients = True
    input_name: str
    output_name: str
    tap_names: tuple[str, ...]
    """By default: the ends of some blocks, what the last layer before global pooling gives, and the pooled features."""

    def __init__(self, graph: onnx.GraphProto, opset: int, output: str | None = None) -> None:
        super().__init__()
        self._opset = opset
        self._constants: dict[str, Tensor] = {}
        self._attributes: dict[str, str] = {}
        self._nodes = [_read(node, opset) for node in graph.node]
        self._shape = _input_shape(graph)
        self.input_name = self._shape[0]
        self.output_name = output_of(graph, output)
        self._register(graph)
        self._fold()
        self._places = [self._locate(node) for node in self._nodes]
        self._spent = self._last_uses()
        self.tap_names = default_taps(self._nodes, self.input_name, self._constants)
        self.eval().requires_grad_(False)
        lay_out(self)

    @classmethod
    def from_onnx(cls, model: bytes, output: str | None = None) -> "Reference":
        """Rebuild a model from the bytes of its file.

        Args:
            model: the ONNX file, whole.
            output: name of the output to compute; by default the first.

        Raises:
            ConversionError: not ONNX, external data, an operator or an opset that the table does not have.
        """
        proto = parse(model)
        opset = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 0)
        if opset not in OPSETS:
            raise ConversionError(f"opset {opset} is outside {OPSETS.start} to {OPSETS.stop - 1}")
        return cls(proto.graph, opset, output)

    def forward(self, x: Tensor) -> Tensor:
        """The model's output for (N, C, H, W) images."""
        return self.forward_with_taps(x, ())[0]

    def forward_with_taps(self, x: Tensor, taps: "Sequence[str]") -> tuple[Tensor, dict[str, Tensor]]:
        """The model's output, and the values that the named nodes give on the way.

        Args:
            x: (N, C, H, W) float32.
            taps: names of values of the graph, as `value_names` lists them.

        Returns:
            The output, and each tap as the graph computes it: (N, D), (N, D, H, W) or (N, tokens, D).
        """
        unknown = set(taps) - set(self.value_names)
        if unknown:
            raise InputError(f"no node gives {sorted(unknown)}")
        values: dict[str, Tensor] = {self.input_name: x}
        kept: dict[str, Tensor] = {}
        for node, places, spent in zip(self._nodes, self._places, self._spent, strict=True):
            results = self._run(node, [self._value(place, values) for place in places])
            for name, result in zip(node.outputs, results, strict=False):
                values[name] = result
                if name in taps:
                    kept[name] = result
            for name in spent:
                values.pop(name, None)
        return values[self.output_name], kept

    @property
    def device(self) -> torch.device:
        """Where its weights lie."""
        return next((tensor.device for tensor in (*self.parameters(), *self.buffers())), torch.device("cpu"))

    @property
    def value_names(self) -> tuple[str, ...]:
        """Every value that a tap may name, in the order of computation."""
        return tuple(name for node in self._nodes for name in node.outputs if name)

    @property
    def dynamic_batch(self) -> bool:
        """Whether the file was exported for any number of images at once."""
        return self._shape[1] is None

    def _run(self, node: Node, inputs: list[Tensor | None]) -> tuple[Tensor, ...]:
        """Compute one node."""
        try:
            if node.operator == "BatchNormalization":
                result: Any = self._batch_norm(node, inputs)
            elif node.operator == "Reshape" and self._shape[1] is not None:
                result = HANDLERS["Reshape"](node, *self._any_batch(inputs))
            else:
                result = HANDLERS[node.operator](node, *inputs)
        except ConversionError:
            raise
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise node.refuse(f"cannot be computed: {error}") from error
        return result if isinstance(result, tuple) else (result,)

    def _batch_norm(self, node: Node, inputs: list[Tensor | None]) -> Tensor:
        """Normalise by running statistics; a twin in training mode uses and updates those of the batch."""
        x, scale, bias, mean, variance = inputs
        assert x is not None
        epsilon = node.get("epsilon", 1e-5)
        return functional.batch_norm(x, mean, variance, scale, bias, training=self.training, eps=epsilon)

    def _any_batch(self, inputs: list[Tensor | None]) -> list[Tensor | None]:
        """A shape that an exporter froze for its own batch, set free for this one."""
        x, shape = inputs[0], inputs[1]
        assert x is not None
        assert shape is not None
        lengths = numbers(shape)
        if lengths and lengths[0] == self._shape[1] and -1 not in lengths[1:] and x.shape[0] != lengths[0]:
            lengths = [x.shape[0], *lengths[1:]]
        return [x, torch.tensor(lengths)]

    def _register(self, graph: onnx.GraphProto) -> None:
        """Give every initializer its home: parameter, buffer or constant."""
        arguments = set(_named_inputs(self._nodes, _ARGUMENTS))
        statistics = set(_named_inputs(self._nodes, _STATISTICS))
        for initializer in graph.initializer:
            tensor = torch.from_numpy(numpy_helper.to_array(initializer).copy())
            if tensor.dtype not in _REALS or initializer.name in arguments:
                self._constants[initializer.name] = tensor
                continue
            learned = tensor.numel() > 1 and initializer.name not in statistics
            self._keep(initializer.name, tensor.float(), trainable=learned)

    def _keep(self, name: str, tensor: Tensor, *, trainable: bool) -> None:
        """Register a real-valued tensor under a name that torch accepts."""
        key = re.sub(r"\W", "_", name)
        while key in self._attributes.values() or hasattr(self, key):
            key += "_"
        self._attributes[name] = key
        if trainable:
            self.register_parameter(key, nn.Parameter(tensor, requires_grad=False))
        else:
            self.register_buffer(key, tensor)

    def _fold(self) -> None:
        """Compute once what depends on constants alone."""
        arguments = set(_named_inputs(self._nodes, _ARGUMENTS))
        kept = []
        for node in self._nodes:
            if node.operator == "Constant":
                value = _constant(node)
                if value.dtype in _REALS and value.numel() > 1 and node.outputs[0] not in arguments:
                    self._keep(node.outputs[0], value.float(), trainable=False)
                else:
                    self._constants[node.outputs[0]] = value.float() if value.dtype in _REALS else value
            elif node.inputs and all(name in self._constants or not name for name in node.inputs):
                results = self._run(node, [self._constants[name] if name else None for name in node.inputs])
                self._constants.update(zip(node.outputs, results, strict=False))
            else:
                kept.append(node)
        self._nodes = kept

    def _locate(self, node: Node) -> tuple[_Place, ...]:
        """Where each input of a node comes from."""
        return tuple(self._place(name) for name in node.inputs)

    def _place(self, name: str) -> _Place:
        if not name:
            return _Place("absent", "")
        if name in self._attributes:
            return _Place("weight", self._attributes[name])
        return _Place("constant" if name in self._constants else "value", name)

    def _value(self, place: _Place, values: dict[str, Tensor]) -> Tensor | None:
        if place.kind == "value":
            return values[place.key]
        if place.kind == "weight":
            weight: Tensor = getattr(self, place.key)
            return weight
        return self._constants[place.key] if place.kind == "constant" else None

    def _last_uses(self) -> list[tuple[str, ...]]:
        """For each node, the values that nobody needs after it, so that memory is given back early."""
        last: dict[str, int] = {}
        for place, node in enumerate(self._nodes):
            for name in (*node.inputs, *node.outputs):
                if name:
                    last[name] = place
        last.pop(self.output_name, None)
        spent: list[list[str]] = [[] for _ in self._nodes]
        for name, place in last.items():
            spent[place].append(name)
        return [tuple(names) for names in spent]


def conversion_difference(reference: Reference, model: bytes, images: Tensor) -> float:
    """The largest difference between the reference and onnxruntime on the CPU, over real inputs.

    Args:
        reference: what was rebuilt from `model`.
        model: the ONNX file.
        images: (N, C, H, W) float32, N at least 1.

    Returns:
        Largest absolute difference of any output value.

    Raises:
        ConversionError: onnxruntime cannot run the model.
    """
    import onnxruntime  # noqa: PLC0415 - heavy, and only needed once an artefact

    batches = [images] if reference.dynamic_batch else list(torch.split(images, 1))
    try:
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        expected = [session.run([reference.output_name], {reference.input_name: batch.numpy()})[0] for batch in batches]
    except Exception as error:  # onnxruntime's own errors have no common root
        raise ConversionError("onnxruntime cannot run the model on these images") from error
    with torch.no_grad():
        actual = reference(images.to(reference.device)).cpu()
    return float((actual - torch.cat([torch.from_numpy(part) for part in expected])).abs().max())


def parse(model: bytes) -> onnx.ModelProto:
    """Read and refuse: only plain, self-contained graphs of standard operators pass."""
    try:
        proto = onnx.load_model_from_string(model)
    except Exception as error:
        raise ConversionError("the bytes are not an ONNX model") from error
    if proto.functions:
        proto = onnx.inliner.inline_local_functions(proto)
    if not proto.graph.output or not proto.graph.node:
        raise ConversionError("the model has no graph")
    for graph in _graphs(proto.graph):
        tensors = [*graph.initializer]
        for sparse in graph.sparse_initializer:
            tensors += [sparse.values, sparse.indices]
        for node in graph.node:
            if node.domain not in ("", "ai.onnx"):
                raise ConversionError(f"operator {node.domain}.{node.op_type}, node {node.name!r}: custom, refused")
            tensors += [tensor for attribute in node.attribute for tensor in (attribute.t, *attribute.tensors)]
        for tensor in tensors:
            if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
                raise ConversionError(f"tensor {tensor.name!r} lies outside the file: external data is refused")
    return proto


def _graphs(graph: onnx.GraphProto) -> "Iterator[onnx.GraphProto]":
    """The graph, and those of its branches and loops."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node or inner.initializer:
                    yield from _graphs(inner)


def _read(node: onnx.NodeProto, opset: int) -> Node:
    """One node as the table's handlers see it."""
    attributes: dict[str, Any] = {}
    for attribute in node.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        if isinstance(value, onnx.TensorProto):
            value = torch.from_numpy(numpy_helper.to_array(value).copy())
        attributes[attribute.name] = value.decode() if isinstance(value, bytes) else value
    read = Node(node.op_type, node.name, tuple(node.input), tuple(node.output), attributes, opset)
    if node.op_type not in HANDLERS and node.op_type not in ("BatchNormalization", "Constant"):
        raise read.refuse("is not in the table of supported operators")
    return read


def _named_inputs(nodes: list[Node], places: dict[str, tuple[int, ...]]) -> list[str]:
    """Names of the values that stand at the given places of the given operators."""
    return [
        node.inputs[place]
        for node in nodes
        for place in places.get(node.operator, ())
        if place < len(node.inputs) and node.inputs[place]
    ]


def _constant(node: Node) -> Tensor:
    """The value of a Constant node, in any of its spellings."""
    for name in ("value", "value_float", "value_floats", "value_int", "value_ints"):
        if name in node.attributes:
            value = node.attributes[name]
            return value if isinstance(value, Tensor) else torch.tensor(value)
    raise node.refuse("only numbers are supported")


def _input_shape(graph: onnx.GraphProto) -> tuple[str, int | None]:
    """Name of the image input, and its frozen batch size (None: any)."""
    known = {initializer.name for initializer in graph.initializer}
    images = [value for value in graph.input if value.name not in known]
    if len(images) != 1:
        raise ConversionError(f"the model takes {len(images)} inputs; one image input is supported")
    axes = images[0].type.tensor_type.shape.dim
    batch = axes[0].dim_value if len(axes) and axes[0].HasField("dim_value") else 0
    return images[0].name, batch or None


def output_of(graph: onnx.GraphProto, name: str | None) -> str:
    """The output to compute."""
    names = [value.name for value in graph.output]
    if name is not None and name not in names:
        raise ConversionError(f"the model has no output {name!r}; it has {names}")
    return name or names[0]
