"""The protected model in this process, run by onnxruntime from the very bytes that were hashed."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from detectors.models.kinds import Kind
from gateway.case import Case
from gateway.deadline import Deadline
from gateway.errors import ConfigError, UpstreamError
from gateway.profile import Profile
from gateway.reply import Prediction
from gateway.telemetry.metrics import Metrics
from gateway.upstreams.upstream import admitted, prediction
from gateway.verdict import Verdict

_STANDARD_DOMAINS = ("", "ai.onnx")
_ERRORS_ONLY = 3
_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
_PROVIDERS = {"cpu": (_CPU,), "cuda": (_CUDA, _CPU)}
"""By device, the wanted one first: what CUDA has no kernel for runs on the CPU, node by node."""


class EmbeddedUpstream:
    """An ONNX classifier in this process.

    The scores of a series are the mean over its frames of each class's probability.
    """

    def __init__(
        self, name: str, profile: Profile, model: bytes, *, device: str, threads: int, metrics: Metrics
    ) -> None:
        """Load the model and ask it once, so that what cannot work refuses to start.

        Args:
            name: as configured.
            profile: what the model takes and gives.
            model: the ONNX file, whole; one file.
            device: `cpu` or `cuda`.
            threads: of one inference, on the CPU.
            metrics: where answers are timed.

        Raises:
            ConfigError: not ONNX, external data, custom operators, another device than asked for, or a model that
                does not fit its profile.
        """
        if profile.task == "segmentation":
            raise ConfigError([f"models.{name}.profile: the embedded upstream serves no segmentation model"])
        _refuse_foreign_parts(model, name)
        self._name = name
        self._profile = profile
        self._metrics = metrics
        self._session = _session(model, name, device, threads)
        self._output = profile.output.name or self._session.get_outputs()[0].name
        self._fixed_batch = self._check(name)

    @property
    def name(self) -> str:
        """The configured name."""
        return self._name

    @property
    def needs_image(self) -> bool:
        """See `upstream.Upstream.needs_image`."""
        return True

    @property
    def ready(self) -> bool:
        """It was asked once when it was loaded, and it is in this process."""
        return True

    def close(self, after_s: float) -> None:
        """Nothing is held but memory, which goes with the last call."""

    def predict(self, case: Case, verdict: Verdict, deadline: Deadline) -> Prediction:
        """See `upstream.Upstream.predict`."""
        started = time.perf_counter()
        outcome = "error"
        try:
            pixels = admitted(case, verdict)
            if deadline.expired:
                outcome = "timeout"
                raise UpstreamError("the caller's deadline passed before the model was asked")
            answer = prediction(self._name, self._profile, self._run(pixels))
            outcome = "ok"
            return answer
        finally:
            self._metrics.upstream(self._name, outcome, time.perf_counter() - started)

    def _run(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """(frames, classes) as the graph gives it."""
        parts = np.split(pixels, len(pixels)) if self._fixed_batch else [pixels]
        try:
            outputs = [self._bound(part) for part in parts]
        except Exception as error:  # onnxruntime raises classes of its own that share no public root
            raise UpstreamError(f"the model failed with {type(error).__name__}") from error
        return np.concatenate(outputs).astype(np.float32, copy=False)

    def _bound(self, part: NDArray[np.float32]) -> Any:
        """One inference with input and output bound: to a GPU go the pixels once, and back comes one output alone."""
        binding = self._session.io_binding()
        binding.bind_cpu_input(self._profile.input.name, np.ascontiguousarray(part))
        binding.bind_output(self._output)
        self._session.run_with_iobinding(binding)
        return binding.copy_outputs_to_cpu()[0]

    def _check(self, name: str) -> bool:
        """Whether the graph takes one image at a time; refuses a graph that does not fit the profile."""
        inputs = {value.name: value.shape for value in self._session.get_inputs()}
        if list(inputs) != [self._profile.input.name]:
            raise ConfigError([f"models.{name}.profile: input.name: the model's inputs are {sorted(inputs)}"])
        if self._output not in [value.name for value in self._session.get_outputs()]:
            raise ConfigError([f"models.{name}.profile: output.name: the model has no output {self._output!r}"])
        batch = inputs[self._profile.input.name][0]
        if isinstance(batch, int) and batch != 1:
            raise ConfigError([f"models.{name}.model: takes {batch} images at a time; 1 or any number is needed"])
        self._fixed_batch = isinstance(batch, int)
        blank = np.zeros((1, self._profile.input.channels, *self._profile.input.size), np.float32)
        try:
            output = self._run(blank)
        except UpstreamError as error:
            raise ConfigError([f"models.{name}.model: {error} on a blank image of the profile's size"]) from error
        if output.shape != (1, len(self._profile.classes)):
            wanted = len(self._profile.classes)
            raise ConfigError([f"models.{name}.profile: classes: {wanted} are named, the output is {output.shape}"])
        return self._fixed_batch


def _session(model: bytes, name: str, device: str, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    try:
        session = onnxruntime.InferenceSession(model, options, providers=list(_PROVIDERS[device]))
    except Exception as error:
        raise ConfigError([f"models.{name}.model: onnxruntime refuses it with {type(error).__name__}"]) from error
    given = session.get_providers()  # the only one that tells the truth: a missing device is no exception
    if _PROVIDERS[device][0] not in given:
        raise ConfigError([f'engine.device: "{device}" was asked for, and onnxruntime gives {", ".join(given)}'])
    return session


def _refuse_foreign_parts(model: bytes, name: str) -> None:
    """A model is one file of standard operators: it names no other file, and runs no code but onnxruntime's own."""
    where = f"models.{name}.model"
    if (kind := Kind.of(model)) is not Kind.ONNX:
        raise ConfigError(
            [f'{where}: {kind.value}, and only ONNX answers here; upstream = "kserve" asks a server for it']
        )
    try:
        proto = onnx.load_model_from_string(model)
    except Exception as error:  # protobuf's error class differs between its implementations
        raise ConfigError([f"{where}: not an ONNX file"]) from error
    local = {(function.domain, function.name) for function in proto.functions}
    graphs = [proto.graph, *(function for function in proto.functions)]
    while graphs:
        graph = graphs.pop()
        tensors = list(getattr(graph, "initializer", ()))
        tensors += [sparse.values for sparse in getattr(graph, "sparse_initializer", ())]
        for node in graph.node:
            if node.domain not in _STANDARD_DOMAINS and (node.domain, node.op_type) not in local:
                raise ConfigError([f"{where}: custom operator {node.domain}.{node.op_type} is refused"])
            for attribute in node.attribute:
                tensors += [attribute.t, *attribute.tensors]
                graphs += [inner for inner in (attribute.g, *attribute.graphs) if inner.node]
        if any(tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data for tensor in tensors):
            raise ConfigError([f"{where}: data outside the file is refused"])
