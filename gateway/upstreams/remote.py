"""The protected model on another server: any that speaks the Open Inference Protocol (KServe v2) over gRPC."""

from __future__ import annotations

import math
import random
import threading
import time
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from gateway.api.kserve.v2 import inference_pb2 as pb
from gateway.api.kserve.v2 import inference_pb2_grpc as rpc
from gateway.case import Case
from gateway.deadline import Deadline
from gateway.errors import ConfigError, UpstreamError
from gateway.open_inference import TensorError, infer_request, outputs_of
from gateway.profile import Profile
from gateway.reply import Prediction
from gateway.settings.models import KServeConfig, KServeTlsConfig
from gateway.telemetry import traces
from gateway.telemetry.metrics import Metrics
from gateway.upstreams.breaker import Breaker
from gateway.upstreams.upstream import admitted, prediction
from gateway.verdict import Verdict

_RETRY_S = 0.05
"""Before the second attempt; each further pause is twice as long, and half of each is chance."""
_RECONNECT_MS_MAX = 2000
"""gRPC's own longest pause between connections, which would else grow to two minutes."""
_NUMBER_BYTES_MAX, _REST_BYTES_MAX = 8, 2**20
"""Of one number of an answer, and of all else in it."""
_MESSAGE_BYTES_MAX = 2**31 - 1
"""What gRPC itself takes."""
_SLOW = grpc.StatusCode.DEADLINE_EXCEEDED
_AWAY = grpc.StatusCode.UNAVAILABLE
_OWN_FAULT = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
    }
)
"""What a healthy server says to a gateway that asks wrongly."""


class RemoteUpstream:
    """A model behind an inference server: of a classifier the predictions, of any model the answers detectors ask for.

    The scores of a series are the mean over its frames of each class's probability, as in the embedded upstream.
    Asking twice does nothing that asking once does not, so a server that is away is asked again within the caller's
    time, under the same request id: the digest of the scan, and whether the image is the denoised one.
    """

    def __init__(self, name: str, profile: Profile, config: KServeConfig, *, metrics: Metrics) -> None:
        """Open a channel; nobody is asked before the first scan, since the server may come up later than the gateway.

        Args:
            name: as configured.
            profile: what the model takes and gives.
            config: where it is, and how long it may take.
            metrics: where answers are timed.

        Raises:
            ConfigError: the certificates cannot be used.
        """
        self._name = name
        self._profile = profile
        self._config = config
        self._metrics = metrics
        self._breaker = Breaker(failures_max=config.failures_max, pause_s=config.pause_s)
        self._channel = _channel(name, config, profile)
        self._stub = rpc.GRPCInferenceServiceStub(self._channel)

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
        """Whether it answered the last time that it was asked, or was never asked."""
        return self._breaker.closed

    def predict(self, case: Case, verdict: Verdict, deadline: Deadline) -> Prediction:
        """See `upstream.Upstream.predict`.

        Raises:
            UpstreamError: as there; `retry_after_s` where the server is left alone for a while.
        """
        assert self._profile.task != "segmentation", "checked between routes and models"
        identity = f"{case.scan.sha256}-{verdict.disposition.label}"
        output = self.answers(admitted(case, verdict), deadline, identity=identity)
        return prediction(self._name, self._profile, output)

    def answers(
        self, images: NDArray[np.float32], deadline: Deadline, *, identity: str = "examination"
    ) -> NDArray[np.float32]:
        """What the model says of images, in as few requests as the server takes.

        Args:
            images: (N, channels, rows, columns), N at least 1.
            deadline: until when somebody waits.
            identity: of the question; the requests of one share it.

        Returns:
            (N, classes) as the graph gives it; of a segmentation model (N, classes, rows, columns), or (N, 1, rows,
            columns) where one number tells two classes apart.

        Raises:
            UpstreamError: no answer, or none that is one; `retry_after_s` as of `predict`.
        """
        found = []
        for start in range(0, len(images), self._config.images_max):
            request = infer_request(
                self._config.model,
                self._config.version,
                self._profile.input.name,
                images[start : start + self._config.images_max],
                identity=identity,
                output=self._profile.output.name,
            )
            found.append(self._scores(self._answer(request, deadline), request))
        return np.concatenate(found)

    def described(self, wait_s: float) -> dict[str, Any]:
        """What the server says of the model, within that many seconds, by the protocol's names; raises `UpstreamError`.

        `inputs` and `outputs` are lists of `name`, `datatype` and `shape`, in which -1 is any length.
        """
        request = pb.ModelMetadataRequest(name=self._config.model, version=self._config.version)
        try:
            response: pb.ModelMetadataResponse = self._stub.ModelMetadata(request, timeout=wait_s)
        except grpc.RpcError as error:
            raise UpstreamError(
                f"the server at {self._config.address} does not describe the model {self._config.model}: "
                f"{error.code().name}"
            ) from None
        inputs, outputs = (
            [{"name": each.name, "datatype": each.datatype, "shape": list(each.shape)} for each in tensors]
            for tensors in (response.inputs, response.outputs)
        )
        about = {"name": response.name, "versions": list(response.versions), "platform": response.platform}
        return {**about, "inputs": inputs, "outputs": outputs}

    def close(self, after_s: float) -> None:
        """Let calls in progress end, for that many seconds at the longest, and close the channel."""
        later = threading.Timer(after_s, self._channel.close)
        later.daemon = True
        later.start()

    def _answer(self, request: pb.ModelInferRequest, deadline: Deadline) -> pb.ModelInferResponse:
        """Ask until there is an answer, the attempts are used up, or nobody waits any more."""
        for attempt in range(self._config.attempts_max):
            if attempt:
                pause = _RETRY_S * 2 ** (attempt - 1) * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
                time.sleep(min(pause, deadline.remaining()))
            try:
                return self._attempt(request, deadline)
            except _AwayError:
                continue
        raise UpstreamError("the protected model's server is not available", retry_after_s=self._config.pause_s)

    def _attempt(self, request: pb.ModelInferRequest, deadline: Deadline) -> pb.ModelInferResponse:
        started, outcome = time.perf_counter(), "error"
        left = deadline.remaining()
        try:
            if left <= 0.0:
                outcome = "timeout"
                raise UpstreamError("the caller's deadline passed before the model was asked")
            try:
                self._breaker.begin()
            except UpstreamError:
                outcome = "open"
                raise
            try:
                response: pb.ModelInferResponse = self._stub.ModelInfer(
                    request, timeout=min(left, self._config.attempt_s_max), metadata=traces.outgoing()
                )
            except grpc.RpcError as error:
                outcome = self._failure(error.code(), whole_time=left >= self._config.attempt_s_max)
                raise (_AwayError if error.code() is _AWAY else UpstreamError)(
                    f"the protected model's server answered {error.code().name}"  # its sentence may hold anything
                ) from None
            self._breaker.succeeded()
            outcome = "ok"
            return response
        finally:
            self._metrics.upstream(self._name, outcome, time.perf_counter() - started)

    def _failure(self, code: grpc.StatusCode, *, whole_time: bool) -> str:
        """Tell the breaker what a failed attempt says about the server; returns the outcome as a label."""
        if code in _OWN_FAULT:
            self._breaker.succeeded()  # it is there, and answers
            return "refused"
        if code is _SLOW and not whole_time:
            self._breaker.abandoned()  # a caller in a hurry must not have everybody's model cut off
            return "timeout"
        self._breaker.failed()
        return {_SLOW: "timeout", _AWAY: "unavailable"}.get(code, "error")

    def _scores(self, response: pb.ModelInferResponse, request: pb.ModelInferRequest) -> NDArray[np.float32]:
        """As `answers` gives them, of one request; raises `UpstreamError` where the answer is none to the question."""
        if response.id not in {"", request.id}:
            raise UpstreamError("the protected model's server answered another request")
        wanted = self._profile.output.name
        try:
            outputs = outputs_of(response)
            tensor = next(iter(outputs.values()), None) if wanted is None else outputs.get(wanted)
            if tensor is None:
                raise UpstreamError("the protected model's server gave no such output as the profile names")
            scores = tensor.floats()
        except TensorError as error:
            raise UpstreamError(f"the protected model's server gave an answer that is none: {error}") from None
        frames = request.inputs[0].shape[0]
        if scores.shape not in {(frames, *one) for one in _shapes(self._profile)}:
            raise UpstreamError(f"the protected model's server gave scores of shape {scores.shape}")
        return scores


class _AwayError(UpstreamError):
    """The server was not reached, or went away: worth another attempt."""


def _shapes(profile: Profile) -> list[tuple[int, ...]]:
    """Those that one answer of the model may have."""
    classes = len(profile.classes)
    if profile.task != "segmentation":
        return [(classes,)]
    return [(outputs, *profile.input.size) for outputs in ((classes, 1) if classes == 2 else (classes,))]


def _channel(name: str, config: KServeConfig, profile: Profile) -> grpc.Channel:
    answers = config.images_max * math.prod(_shapes(profile)[0]) * _NUMBER_BYTES_MAX
    options: list[tuple[str, str | int]] = [
        ("grpc.max_receive_message_length", min(answers + _REST_BYTES_MAX, _MESSAGE_BYTES_MAX)),
        ("grpc.enable_retries", 0),  # ours know the breaker
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", _RECONNECT_MS_MAX),
    ]
    if config.tls is None:
        return grpc.insecure_channel(config.address, options)
    if config.tls.server_name is not None:
        options.append(("grpc.ssl_target_name_override", config.tls.server_name))
    return grpc.secure_channel(config.address, _credentials(name, config.tls), options)


def _credentials(name: str, tls: KServeTlsConfig) -> grpc.ChannelCredentials:
    try:
        return grpc.ssl_channel_credentials(
            tls.roots.read_bytes(),
            tls.private_key.read_bytes() if tls.private_key is not None else None,
            tls.certificate.read_bytes() if tls.certificate is not None else None,
        )
    except OSError as error:
        raise ConfigError([f"models.{name}.kserve.tls: {error.strerror}"]) from error
