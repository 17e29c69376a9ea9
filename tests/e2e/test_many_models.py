"""Several models in one gateway, which come and go while scans keep arriving: no call is dropped."""

from __future__ import annotations

import io
import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file

from gateway.api.kserve.v2 import inference_pb2 as pb
from gateway.api.kserve.v2 import inference_pb2_grpc as rpc
from gateway.testing import GatewayProcess, Site

CT = Path(str(get_testdata_file("CT_small.dcm"))).read_bytes()

SECOND = """
[models.second]
profile = "second/profile.toml"
model = "second/model.onnx"
detectors = "second/detectors"
[routes.second]
trust = "open"
model = "second"
upstream = "embedded"
[routes.second.policy]
indeterminate = "reject"
unexaminable = "reject"
signature = { failed = "reject", unsigned = "unsafe_admit", stripped = "reject" }
detection = { false_positive_rate = 0.02, suspect = "reject", denoise = "never" }
"""


class House:
    """A gateway of its own, and the two configurations between which it changes."""

    def __init__(self, site: Site, gateway: GatewayProcess, config: Path) -> None:
        self.gateway, self.config = gateway, config
        self.one = config.read_text()
        self.two = self.one.replace("[[sources]]", SECOND + "[[sources]]", 1).replace('"ct"]', '"ct", "second"]')
        self.metadata = (("authorization", f"Bearer {site.tokens['scanner']}"),)
        self.channel = grpc.insecure_channel(gateway.addresses.grpc)
        self.stub = rpc.GRPCInferenceServiceStub(self.channel)

    def serve(self, text: str) -> None:
        """Have the configuration taken, and wait until it is."""
        before = len(self.gateway.log())
        self.config.write_text(text)
        self.gateway.reload()
        while not (said := re.search(r'"event": "(serving|reload_refused)"', self.gateway.log()[before:])):
            time.sleep(0.02)
        assert said[1] == "serving", self.gateway.log()[before:]

    def infer(self, model: str, seed: int) -> grpc.StatusCode:
        dataset = dcmread(io.BytesIO(CT))
        noise = np.random.default_rng(seed).normal(0.0, 3.0, dataset.pixel_array.shape)
        dataset.PixelData = (dataset.pixel_array + noise).astype("<i2").tobytes()
        buffer = io.BytesIO()
        dataset.save_as(buffer)
        request = pb.ModelInferRequest(model_name=model)
        request.inputs.add(name="DICOM", datatype="BYTES", shape=[1]).contents.bytes_contents.append(buffer.getvalue())
        try:
            self.stub.ModelInfer(request, metadata=self.metadata, timeout=120)
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()
            return code
        return grpc.StatusCode.OK

    def ready(self, model: str) -> bool:
        return bool(self.stub.ModelReady(pb.ModelReadyRequest(name=model), metadata=self.metadata, timeout=60).ready)


@pytest.fixture(scope="module")
def house(site: Site) -> Iterator[House]:
    shutil.copytree(site.directory / "small", site.directory / "second")
    config = site.directory / "many.toml"
    config.write_text(site.config.read_text().replace('directory = "data"', 'directory = "many"'))
    with GatewayProcess(config) as process:
        house = House(site, process, config)
        yield house
        house.channel.close()


def test_models_come_and_go_and_no_call_is_dropped(house: House) -> None:
    verdicts = {grpc.StatusCode.OK, grpc.StatusCode.FAILED_PRECONDITION}
    heard: list[grpc.StatusCode] = []
    over = threading.Event()

    def keep_calling(first: int) -> None:
        seed = first
        while not over.is_set():
            heard.append(house.infer("ct", seed))
            seed += 2

    callers = [threading.Thread(target=keep_calling, args=(first,)) for first in range(2)]
    for caller in callers:
        caller.start()
    try:
        assert not house.ready("second")
        for _ in range(2):
            house.serve(house.two)
            assert house.ready("second")
            assert house.infer("second", 1) in verdicts
            house.serve(house.one)
            assert not house.ready("second")
            assert house.infer("second", 2) is grpc.StatusCode.PERMISSION_DENIED
    finally:
        over.set()
        for caller in callers:
            caller.join()
    assert len(heard) > 4
    assert set(heard) <= verdicts


def test_each_model_is_judged_by_its_own_policy(house: House) -> None:
    """The same scan that one route holds, the other rejects."""
    house.serve(house.two)
    dataset = dcmread(io.BytesIO(CT))
    del dataset.PixelData
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    told = []
    for model in ("ct", "second"):
        request = pb.ModelInferRequest(model_name=model)
        request.inputs.add(name="DICOM", datatype="BYTES", shape=[1]).contents.bytes_contents.append(buffer.getvalue())
        with pytest.raises(grpc.RpcError) as caught:
            house.stub.ModelInfer(request, metadata=house.metadata, timeout=60)
        told.append(caught.value.details())
    assert told == ["quarantine: unexaminable", "reject: unexaminable"]
