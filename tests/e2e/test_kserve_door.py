"""The inference door in a real gateway: what a client of the Open Inference Protocol gets for every kind of scan."""

from __future__ import annotations

import hashlib
import io
import json
import struct
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from pydicom import dcmread
from pydicom.data import get_testdata_file

from gateway.api.kserve.v2 import inference_pb2 as pb
from gateway.api.kserve.v2 import inference_pb2_grpc as rpc
from gateway.app.assembly import AUDIT_LOG
from gateway.audit.sqlite import SqliteReader
from gateway.client.client import Client
from gateway.open_inference import outputs_of
from gateway.pixels.imaging import Rendering, render
from gateway.profile import Profile
from gateway.receipt import verify_receipt
from gateway.testing import GatewayProcess, Site
from signing import VerifiedView, read, sign
from signing.testing import flip_pixel_bit

CT = Path(str(get_testdata_file("CT_small.dcm"))).read_bytes()
STATUS = grpc.StatusCode


class Asker:
    """A caller of the door under one source's name."""

    def __init__(self, site: Site, address: str, source: str) -> None:
        self.channel = grpc.insecure_channel(address)
        self.stub = rpc.GRPCInferenceServiceStub(self.channel)
        self.metadata = (("authorization", f"Bearer {site.tokens[source]}"),)

    def infer(self, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
        answer: pb.ModelInferResponse = self.stub.ModelInfer(request, metadata=self.metadata, timeout=60)
        return answer

    def refused(self, request: pb.ModelInferRequest) -> tuple[grpc.StatusCode, str, dict[str, str | bytes]]:
        with pytest.raises(grpc.RpcError) as caught:
            self.infer(request)
        return caught.value.code(), caught.value.details(), dict(caught.value.trailing_metadata())


@pytest.fixture(scope="module")
def asker(site: Site, gateway: GatewayProcess) -> Iterator[Asker]:
    caller = Asker(site, gateway.addresses.grpc, "scanner")
    with caller.channel:
        yield caller


def of_object(dicom: bytes, model: str = "ct", **more: str) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name=model, **more)
    request.inputs.add(name="DICOM", datatype="BYTES", shape=[1]).contents.bytes_contents.append(dicom)
    return request


def of_tensor(tensor: np.ndarray, model: str = "ct", name: str = "image") -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name=model)
    request.inputs.add(name=name, datatype="FP32", shape=tensor.shape)
    request.raw_input_contents.append(tensor.astype("<f4").tobytes())
    return request


@pytest.fixture(scope="module")
def tensor_of(site: Site) -> Callable[[int], np.ndarray]:
    """The slice as the model takes it, with the noise of another exposure."""
    profile = Profile.load(site.directory / "small" / "profile.toml")
    elements = read(CT)
    pixels = elements.get(0x7FE00010)
    stored = np.frombuffer(CT[pixels.offset : pixels.offset + pixels.length], "<i2").reshape(1, 128, 128)
    rendering = Rendering.of(VerifiedView.of_unsigned(elements), profile)

    def make(seed: int) -> np.ndarray:
        noise = np.random.default_rng(seed).normal(0.0, 4.0, stored.shape)
        return render(torch.from_numpy((stored + noise).astype(np.float32)), rendering, profile).numpy()

    return make


GREY = np.full((1, 1, 64, 64), 0.5, np.float32)


def recorded(site: Site) -> list[dict[str, object]]:
    with SqliteReader(site.directory / "data" / AUDIT_LOG) as log:
        return [json.loads(body) for _, body, _ in log.entries() if isinstance(body, bytes)]


def test_an_admitted_scan_gets_the_prediction_that_protect_gives(
    site: Site, gateway: GatewayProcess, asker: Asker, tmp_path: Path
) -> None:
    answer = asker.infer(of_object(CT, id="one"))
    (tmp_path / "ct.dcm").write_bytes(CT)
    with Client(gateway.addresses.grpc, token=site.tokens["scanner"]) as client:
        other = client.protect(tmp_path / "ct.dcm", "ct")

    found = outputs_of(answer)
    assert (answer.id, answer.model_name, answer.model_version) == ("one", "ct", "1")
    assert found["label"].elements() == [other.prediction.label.encode()]
    assert found["probabilities"].shape == (1, 2)
    assert found["probabilities"].floats().sum() == pytest.approx(1.0)


def test_an_admitted_answer_carries_disposition_and_receipt(site: Site, asker: Asker) -> None:
    parameters = {name: value.string_param for name, value in asker.infer(of_object(CT)).parameters.items()}
    key = load_pem_public_key((site.directory / "keys" / "receipt.pub").read_bytes())

    predicate = verify_receipt(parameters["scanward-receipt-bin"].encode(), [key])["predicate"]

    assert (parameters["scanward-disposition"], parameters["scanward-reasons"]) == ("admit", "")
    assert (predicate["route"], predicate["disposition"]) == ("ct", "admit")


def test_a_rejected_scan_is_a_failed_precondition_with_the_reasons(site: Site, asker: Asker) -> None:
    signed = sign(CT, signer=site.hospital.signer("ct"), at=datetime.now(UTC))
    code, details, trailing = asker.refused(of_object(flip_pixel_bit(signed)))
    key = load_pem_public_key((site.directory / "keys" / "receipt.pub").read_bytes())

    assert (code, details) == (STATUS.FAILED_PRECONDITION, "reject: signature")
    assert (trailing["scanward-disposition"], trailing["scanward-reasons"]) == ("reject", "signature")
    assert verify_receipt(trailing["scanward-receipt-bin"], [key])["predicate"]["disposition"] == "reject"


def test_a_held_scan_is_a_failed_precondition_and_in_quarantine(asker: Asker, site: Site) -> None:
    dataset = dcmread(io.BytesIO(CT))
    del dataset.PixelData
    dataset.ImageComments = "the gateway is shared, and a scan that is held already is not held anew"
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    held = len(list((site.directory / "data" / "quarantine").glob("*.scan")))

    code, details, trailing = asker.refused(of_object(buffer.getvalue()))

    assert (code, details) == (STATUS.FAILED_PRECONDITION, "quarantine: unexaminable")
    assert trailing["scanward-detail"]
    assert len(list((site.directory / "data" / "quarantine").glob("*.scan"))) == held + 1


def test_only_a_reviewer_hears_the_exact_reason(site: Site, gateway: GatewayProcess) -> None:
    reviewer = Asker(site, gateway.addresses.grpc, "reviewer")
    assert reviewer.refused(of_object(CT, "strict"))[1] == "reject: unsigned"
    reviewer.channel.close()


def test_a_bare_tensor_is_examined_and_admitted_only_as_unsigned(
    site: Site, asker: Asker, tensor_of: Callable[[int], np.ndarray]
) -> None:
    answer = asker.infer(of_tensor(tensor_of(1)))
    decided = [body for body in recorded(site) if body["kind"] == "decided"][-1]

    assert answer.parameters["scanward-disposition"].string_param == "admit"
    assert outputs_of(answer)["probabilities"].floats().sum() == pytest.approx(1.0)
    assert [finding["reason"] for finding in decided["findings"][:2]] == ["unsigned", "ok"]
    assert [finding["stage"] for finding in decided["findings"]] == [
        "signature", "preprocess", "detection", "denoising",
    ]  # fmt: skip
    assert (decided["unsafe"], decided["receiver"]) == (["signature.unsigned"], "kserve")


def test_a_bare_tensor_from_a_source_that_signs_all_it_sends_was_stripped(site: Site, gateway: GatewayProcess) -> None:
    enrolled = Asker(site, gateway.addresses.grpc, "enrolled")
    assert enrolled.refused(of_tensor(GREY))[:2] == (STATUS.FAILED_PRECONDITION, "reject: signature")
    enrolled.channel.close()


@pytest.mark.parametrize(
    ("tensor", "detail"),
    [
        (3 * GREY, "the tensor has values outside the model's range"),
        (np.full((1, 1, 64, 64), np.nan, np.float32), "the tensor has values that are not finite"),
        (np.zeros((1, 1, 32, 32), np.float32), "the tensor is not of 1 x 1 x 64 x 64: one image a call"),
        (np.zeros((2, 1, 64, 64), np.float32), "the tensor is not of 1 x 1 x 64 x 64: one image a call"),
        (np.zeros((0, 1, 64, 64), np.float32), "the tensor is not of 1 x 1 x 64 x 64: one image a call"),
        (np.zeros((), np.float32), "the tensor is not of 1 x 1 x 64 x 64: one image a call"),
    ],
)
def test_a_tensor_that_no_scan_could_become_is_held(asker: Asker, tensor: np.ndarray, detail: str) -> None:
    code, details, trailing = asker.refused(of_tensor(tensor))
    assert (code, details) == (STATUS.FAILED_PRECONDITION, "quarantine: unexaminable")
    assert trailing["scanward-detail"] == detail


def test_the_digest_of_a_tensor_is_that_of_its_npy_file(site: Site, asker: Asker) -> None:
    asker.refused(of_tensor(0.9 * GREY))
    file = io.BytesIO()
    np.save(file, 0.9 * GREY)
    decided = [body for body in recorded(site) if body["kind"] == "decided"][-1]
    assert decided["scan_sha256"] == hashlib.sha256(file.getvalue()).hexdigest()


def test_the_file_of_an_admitted_tensor_sent_as_an_object_is_another_scan(
    asker: Asker, tensor_of: Callable[[int], np.ndarray]
) -> None:
    """The bytes are the same, so their digest is; the answer must not be."""
    asker.infer(of_tensor(tensor_of(2)))
    file = io.BytesIO()
    np.save(file, tensor_of(2))
    assert asker.refused(of_object(file.getvalue()))[1] == "reject: malformed"


def raw(dicom: bytes, lie: int = 0) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="ct")
    request.inputs.add(name="DICOM", datatype="BYTES", shape=[1, 1])
    request.raw_input_contents.append(struct.pack("<I", len(dicom) + lie) + dicom)
    return request


def test_raw_and_typed_contents_are_the_same_scan(asker: Asker) -> None:
    receipts = {
        asker.infer(request).parameters["scanward-receipt-bin"].string_param for request in (raw(CT), of_object(CT))
    }
    assert len(receipts) == 1


def two_objects() -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="ct")
    request.inputs.add(name="DICOM", datatype="BYTES", shape=[2]).contents.bytes_contents.extend([CT, CT])
    return request


def changed(change: Callable[[pb.ModelInferRequest], object]) -> pb.ModelInferRequest:
    request = of_object(CT)
    change(request)
    return request


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        (
            changed(lambda it: it.inputs.add(name="image", datatype="FP32", shape=[0])),
            "2 input tensors; a call takes one",
        ),
        (changed(lambda it: it.inputs.add(name="DICOM", datatype="BYTES", shape=[0])), "tensor DICOM comes twice"),
        (changed(lambda it: it.ClearField("inputs")), "0 input tensors; a call takes one"),
        (two_objects(), "2 objects; a call takes one"),
        (changed(lambda it: it.inputs[0].shape.append(2)), "tensor DICOM: 1 elements for a shape of 2"),
        (
            changed(lambda it: setattr(it.inputs[0], "datatype", "FP32")),
            "tensor DICOM: datatype 'FP32'; BYTES is wanted",
        ),
        (changed(lambda it: it.raw_input_contents.append(CT)), "tensor DICOM: its content comes raw and typed"),
        (
            changed(lambda it: setattr(it.inputs[0], "name", "picture")),
            "the input tensor of this model is DICOM or image",
        ),
        (changed(lambda it: it.outputs.add(name="logits")), "this model gives probabilities and label, nothing else"),
        (changed(lambda it: setattr(it, "model_version", "2")), "there is no such version of this model"),
        (raw(CT, lie=1), "tensor DICOM: it ends within an element"),
        (raw(CT, lie=-3), "tensor DICOM: it ends within the length of an element"),
        (of_tensor(GREY, "open"), "the input tensor of this model is DICOM"),
        (of_tensor(GREY, "open", "DICOM"), "tensor DICOM: datatype 'FP32'; BYTES is wanted"),
    ],
)
def test_a_request_that_breaks_the_rules_gets_a_sentence_and_a_record(
    site: Site, asker: Asker, request_: pb.ModelInferRequest, sentence: str
) -> None:
    assert asker.refused(request_)[:2] == (STATUS.INVALID_ARGUMENT, sentence)
    last = recorded(site)[-1]
    assert (last["kind"], last["detail"]) == ("refused", sentence)


def test_a_route_without_a_model_answers_with_the_verdict_alone(asker: Asker) -> None:
    answer = asker.infer(of_object(CT, "open"))
    assert answer.parameters["scanward-disposition"].string_param == "admit"
    assert not answer.outputs


def test_the_caller_gets_the_outputs_that_it_asked_for(asker: Asker) -> None:
    request = of_object(CT)
    request.outputs.add(name="label")
    assert list(outputs_of(asker.infer(request))) == ["label"]


def test_the_server_is_live_and_ready_and_says_what_it_is(asker: Asker) -> None:
    metadata = asker.metadata
    assert asker.stub.ServerLive(pb.ServerLiveRequest(), metadata=metadata).live
    assert asker.stub.ServerReady(pb.ServerReadyRequest(), metadata=metadata).ready
    assert asker.stub.ServerMetadata(pb.ServerMetadataRequest(), metadata=metadata).name == "scanward"


@pytest.mark.parametrize(
    ("name", "version", "ready"),
    [("ct", "", True), ("ct", "1", True), ("ct", "2", False), ("strict", "", True), ("elsewhere", "", False)],
)
def test_a_model_is_ready_where_the_caller_may_ask_it(asker: Asker, name: str, version: str, ready: bool) -> None:
    request = pb.ModelReadyRequest(name=name, version=version)
    assert asker.stub.ModelReady(request, metadata=asker.metadata).ready is ready


def test_metadata_say_what_a_model_takes_and_gives(asker: Asker) -> None:
    answer = asker.stub.ModelMetadata(pb.ModelMetadataRequest(name="ct"), metadata=asker.metadata)
    tensors = {each.name: (each.datatype, list(each.shape)) for each in (*answer.inputs, *answer.outputs)}
    assert (answer.name, list(answer.versions), answer.platform) == ("ct", ["1"], "scanward")
    assert tensors == {
        "DICOM": ("BYTES", [1]),
        "image": ("FP32", [1, 1, 64, 64]),
        "probabilities": ("FP32", [1, 2]),
        "label": ("BYTES", [1]),
    }


def test_a_model_that_the_caller_may_not_use_has_no_metadata(asker: Asker) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        asker.stub.ModelMetadata(pb.ModelMetadataRequest(name="elsewhere"), metadata=asker.metadata)
    assert caught.value.code() is STATUS.PERMISSION_DENIED


def test_strangers_are_refused(asker: Asker) -> None:
    for call, request in (
        (asker.stub.ModelInfer, of_object(CT)),
        (asker.stub.ServerMetadata, pb.ServerMetadataRequest()),
        (asker.stub.ModelReady, pb.ModelReadyRequest(name="ct")),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            call(request)
        assert caught.value.code() is STATUS.UNAUTHENTICATED
