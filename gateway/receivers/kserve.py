"""The inference door (KServe v2, Open Inference Protocol): a Triton client points here and asks as it always did.

The model's name is that of a route. The input `DICOM` holds one object, which is examined in full; a model's own input
may also come bare, as the tensor that it takes, and then nobody vouches for it: it is unsigned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import NoReturn

import grpc
import numpy as np

from gateway.api.kserve.v2 import inference_pb2 as pb
from gateway.api.kserve.v2 import inference_pb2_grpc as rpc
from gateway.deadline import Deadline
from gateway.errors import ScanError
from gateway.open_inference import BYTES, FLOATS, Tensor, TensorError, add_floats, add_texts, inputs_of
from gateway.profile import Profile
from gateway.receivers.calls import Calls, current_caller
from gateway.receivers.identity import Caller
from gateway.receivers.receiver import Inflation
from gateway.receivers.status import VERDICTS
from gateway.receivers.wire import reasons_of, sentence
from gateway.reply import Reply
from gateway.scan import Scan
from gateway.service import ProtectionService, Route

RECEIVER = "kserve"
"""Name of this door in metrics and records."""
DICOM = "DICOM"
"""Input tensor, BYTES: one object in DICOM File Format."""
PROBABILITIES, LABEL = "probabilities", "label"
"""Output tensors: one number a class, and the class of the largest."""
SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name


class InferenceServicer(rpc.GRPCInferenceServiceServicer):
    """Converts an inference request into a scan, has it protected, and answers with the prediction or the refusal."""

    def __init__(
        self,
        service: Callable[[], ProtectionService],
        calls: Calls,
        inflation: Inflation,
        ready: Callable[[], bool],
    ) -> None:
        """`service` and `ready` are asked for at each call, so that a reload reaches the next call whole."""
        self._service = service
        self._calls = calls
        self._inflation = inflation
        self._ready = ready

    def ModelInfer(  # noqa: N802
        self, request: pb.ModelInferRequest, context: grpc.ServicerContext
    ) -> pb.ModelInferResponse:
        """Examine what came; the prediction where it is admitted, FAILED_PRECONDITION with the reasons where not."""
        caller = current_caller()
        route, reply = self._calls.run(context, lambda deadline: self._protected(request, caller, deadline))
        facts = _facts(reply, caller)
        if (status := VERDICTS[reply.verdict.disposition].inference) is not None:
            _refuse(context, status, reply, facts)
        return _response(request, route, reply, facts)

    def ServerLive(  # noqa: N802
        self, request: pb.ServerLiveRequest, context: grpc.ServicerContext
    ) -> pb.ServerLiveResponse:
        """Whoever hears this hears a live process."""
        return pb.ServerLiveResponse(live=True)

    def ServerReady(  # noqa: N802
        self, request: pb.ServerReadyRequest, context: grpc.ServicerContext
    ) -> pb.ServerReadyResponse:
        """As the health service says it."""
        return pb.ServerReadyResponse(ready=self._ready())

    def ModelReady(  # noqa: N802
        self, request: pb.ModelReadyRequest, context: grpc.ServicerContext
    ) -> pb.ModelReadyResponse:
        """Whether this caller can have this model now; what it may not use is not ready for it."""
        return pb.ModelReadyResponse(ready=self._model_ready(request, current_caller()))

    def ServerMetadata(  # noqa: N802
        self, request: pb.ServerMetadataRequest, context: grpc.ServicerContext
    ) -> pb.ServerMetadataResponse:
        """Name and version; no extension of the protocol is spoken."""
        return pb.ServerMetadataResponse(name="scanward", version=version("scanward"))

    def ModelMetadata(  # noqa: N802
        self, request: pb.ModelMetadataRequest, context: grpc.ServicerContext
    ) -> pb.ModelMetadataResponse:
        """What a route takes and gives."""
        route = self._route(request.name, request.version, current_caller())
        metadata = pb.ModelMetadataResponse(name=route.name, platform="scanward")
        metadata.inputs.add(name=DICOM, datatype=BYTES, shape=[1])
        if (profile := route.profile) is not None:
            metadata.versions.append(profile.version)
            shape = [1, profile.input.channels, *profile.input.size]
            metadata.inputs.add(name=profile.input.name, datatype=FLOATS, shape=shape)
        for name in _outputs(route):
            datatype, shape = (BYTES, [1]) if name == LABEL else (FLOATS, [1, len(_profile(route).classes)])
            metadata.outputs.add(name=name, datatype=datatype, shape=shape)
        return metadata

    def _protected(self, request: pb.ModelInferRequest, caller: Caller, deadline: Deadline) -> tuple[Route, Reply]:
        route = self._route(request.model_name, request.model_version, caller)
        unknown = {wanted.name for wanted in request.outputs} - set(_outputs(route))
        if unknown:
            raise ScanError(f"this model gives {' and '.join(_outputs(route)) or 'no tensor'}, nothing else")
        name, tensor = _only(request)
        try:
            if name == DICOM:
                return route, self._object(tensor, route, caller, deadline)
            if route.profile is None or name != route.profile.input.name:
                bare = "" if route.profile is None else f" or {route.profile.input.name}"
                raise ScanError(f"the input tensor of this model is {DICOM}{bare}")
            scan = Scan.of_tensor(tensor.floats(), route=route.name, receiver=RECEIVER, source=caller.source)
        except TensorError as error:
            raise ScanError(str(error)) from None
        return route, self._service().protect(scan, deadline)

    def _object(self, tensor: Tensor, route: Route, caller: Caller, deadline: Deadline) -> Reply:
        elements = tensor.elements()
        if len(elements) != 1:
            raise ScanError(f"{len(elements)} objects; a call takes one")
        with self._inflation.room(elements[0], deadline):
            scan = Scan.receive(elements[0], route=route.name, receiver=RECEIVER, source=caller.source)
            return self._service().protect(scan, deadline)

    def _route(self, model: str, wanted: str, caller: Caller) -> Route:
        route = self._service().route(caller.route(model))
        if wanted and (route.profile is None or route.profile.version != wanted):
            raise ScanError("there is no such version of this model")
        return route

    def _model_ready(self, request: pb.ModelReadyRequest, caller: Caller) -> bool:
        try:
            route = self._route(request.name, request.version, caller)
        except ScanError:
            return False
        return self._ready() and (route.upstream is None or route.upstream.ready)


def _only(request: pb.ModelInferRequest) -> tuple[str, Tensor]:
    try:
        tensors = inputs_of(request)
    except TensorError as error:
        raise ScanError(str(error)) from None
    if len(tensors) != 1:
        raise ScanError(f"{len(tensors)} input tensors; a call takes one")
    return next(iter(tensors.items()))


def _profile(route: Route) -> Profile:
    assert route.profile is not None, "only a route with a model gives tensors"
    return route.profile


def _outputs(route: Route) -> tuple[str, ...]:
    """Names of what the route gives.

    Where the model itself ends in probabilities, its client finds them under the model's own name for them.
    """
    if route.profile is None or route.upstream is None:
        return ()
    own = route.profile.output.name if route.profile.activation == "none" else None
    return (own or PROBABILITIES, LABEL)


def _facts(reply: Reply, caller: Caller) -> Mapping[str, str]:
    """What goes with every answer, whichever way it goes."""
    facts = {
        "scanward-disposition": reply.verdict.disposition.label,
        "scanward-reasons": ",".join(reasons_of(reply.verdict, exact=caller.sees_findings)),
    }
    if detail := sentence(reply.findings):
        facts["scanward-detail"] = detail
    return facts


def _refuse(context: grpc.ServicerContext, status: grpc.StatusCode, reply: Reply, facts: Mapping[str, str]) -> NoReturn:
    """A prediction was asked for and none is given; the caller finds out why as well as one who asked for a verdict."""
    context.set_trailing_metadata((*facts.items(), ("scanward-receipt-bin", reply.receipt.envelope)))
    context.abort(status, f"{facts['scanward-disposition']}: {facts['scanward-reasons']}")
    raise AssertionError("abort raises")


def _response(
    request: pb.ModelInferRequest, route: Route, reply: Reply, facts: Mapping[str, str]
) -> pb.ModelInferResponse:
    response = pb.ModelInferResponse(
        model_name=route.name, model_version=route.profile.version if route.profile else "", id=request.id
    )
    for name, fact in facts.items():
        response.parameters[name].string_param = fact
    response.parameters["scanward-receipt-bin"].string_param = reply.receipt.envelope.decode()
    if (prediction := reply.prediction) is None:
        return response
    wanted = {each.name for each in request.outputs}
    for name in _outputs(route):
        if wanted and name not in wanted:
            continue
        if name == LABEL:
            add_texts(response, name, [prediction.label])
        else:
            add_floats(response, name, np.asarray([prediction.scores], np.float32))
    return response
