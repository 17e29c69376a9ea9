"""Tensors in the messages of the Open Inference Protocol (KServe v2), read strictly and written one way."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from gateway.api.kserve.v2 import inference_pb2 as pb

BYTES, FLOATS = "BYTES", "FP32"
"""Datatypes that the gateway takes and gives."""
DIMENSIONS_MAX = 8
"""Of a tensor; the models have four."""

_FLOATING: Mapping[str, str] = MappingProxyType({"FP16": "<f2", "FP32": "<f4", "FP64": "<f8"})
_LENGTH = struct.Struct("<I")


class TensorError(ValueError):
    """A message is not what the protocol says; the sentence holds names and sizes, never content."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a message, with its content wherever the message kept it."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    _raw: bytes | None
    _contents: pb.InferTensorContents

    def floats(self) -> NDArray[np.float32]:
        """The content as float32, of this shape; raises `TensorError` where it is none or does not fill the shape."""
        if self.datatype not in _FLOATING:
            raise TensorError(f"tensor {self.name}: datatype {self.datatype!r}; floating point is wanted")
        if self._raw is None:
            typed = self._contents.fp32_contents or self._contents.fp64_contents
            values = np.asarray(typed, np.float32)
        elif len(self._raw) % np.dtype(_FLOATING[self.datatype]).itemsize:
            raise TensorError(f"tensor {self.name}: {len(self._raw)} bytes are no whole number of {self.datatype}")
        else:
            values = np.frombuffer(self._raw, _FLOATING[self.datatype]).astype(np.float32, copy=False)
        self._require(values.size)
        return values.reshape(self.shape)

    def elements(self) -> list[bytes]:
        """The elements of a BYTES tensor, row-major; raises `TensorError` where it is none."""
        if self.datatype != BYTES:
            raise TensorError(f"tensor {self.name}: datatype {self.datatype!r}; BYTES is wanted")
        found = list(self._contents.bytes_contents) if self._raw is None else list(_split(self._raw, self.name))
        self._require(len(found))
        return found

    def _require(self, count: int) -> None:
        if count != (wanted := math.prod(self.shape)):
            raise TensorError(f"tensor {self.name}: {count} elements for a shape of {wanted}")


def inputs_of(request: pb.ModelInferRequest) -> Mapping[str, Tensor]:
    """The request's tensors by name; raises `TensorError`."""
    return _paired(request.inputs, request.raw_input_contents)


def outputs_of(response: pb.ModelInferResponse) -> Mapping[str, Tensor]:
    """The response's tensors by name; raises `TensorError`."""
    return _paired(response.outputs, response.raw_output_contents)


def infer_request(
    model: str, version: str, name: str, values: NDArray[np.float32], *, identity: str, output: str | None
) -> pb.ModelInferRequest:
    """Ask `model` about one float tensor; `identity` comes back with the answer, `output` names what is wanted."""
    request = pb.ModelInferRequest(model_name=model, model_version=version, id=identity)
    request.inputs.add(name=name, datatype=FLOATS, shape=values.shape)
    request.raw_input_contents.append(np.ascontiguousarray(values, "<f4").tobytes())
    if output is not None:
        request.outputs.add(name=output)
    return request


def add_floats(response: pb.ModelInferResponse, name: str, values: NDArray[np.float32]) -> None:
    """Append a float tensor to an answer."""
    response.outputs.add(name=name, datatype=FLOATS, shape=values.shape)
    response.raw_output_contents.append(np.ascontiguousarray(values, "<f4").tobytes())


def add_texts(response: pb.ModelInferResponse, name: str, texts: Sequence[str]) -> None:
    """Append a tensor of texts, UTF-8, to an answer."""
    response.outputs.add(name=name, datatype=BYTES, shape=(len(texts),))
    packed = [text.encode() for text in texts]
    response.raw_output_contents.append(b"".join(_LENGTH.pack(len(text)) + text for text in packed))


def _paired(
    declared: Sequence[pb.ModelInferRequest.InferInputTensor | pb.ModelInferResponse.InferOutputTensor],
    raw: Sequence[bytes],
) -> Mapping[str, Tensor]:
    if raw and len(raw) != len(declared):
        raise TensorError(f"{len(raw)} raw contents for {len(declared)} tensors")
    contents: Iterable[bytes | None] = raw or [None] * len(declared)
    tensors: dict[str, Tensor] = {}
    for tensor, content in zip(declared, contents, strict=True):
        name, shape = _name(tensor.name), tuple(tensor.shape)
        if name in tensors:
            raise TensorError(f"tensor {name} comes twice")
        if len(shape) > DIMENSIONS_MAX or any(length < 0 for length in shape):
            raise TensorError(f"tensor {name}: a shape has up to {DIMENSIONS_MAX} lengths, none below 0")
        if content is not None and tensor.contents.ByteSize():  # MLServer leaves an empty one beside the raw content
            raise TensorError(f"tensor {name}: its content comes raw and typed")
        tensors[name] = Tensor(name, tensor.datatype[:16], shape, content, tensor.contents)
    return tensors


def _split(raw: bytes, name: str) -> Iterator[bytes]:
    at = 0
    while at < len(raw):
        if at + _LENGTH.size > len(raw):
            raise TensorError(f"tensor {name}: it ends within the length of an element")
        (length,) = _LENGTH.unpack_from(raw, at)
        at += _LENGTH.size
        if at + length > len(raw):
            raise TensorError(f"tensor {name}: it ends within an element")
        yield raw[at : at + length]
        at += length


def _name(name: str) -> str:
    """The name as a sentence may show it."""
    if len(name) > 128 or not name.isprintable():
        raise TensorError("a tensor's name has up to 128 printable characters")
    return name
