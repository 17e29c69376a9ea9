"""Scans whose sender names no route, at the door: a rule chooses, and gives nobody what is not his."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from pydicom.data import get_testdata_file

from gateway.api.v1 import gateway_pb2 as pb
from gateway.api.v1 import gateway_pb2_grpc as rpc
from gateway.testing import GatewayProcess, Site

CT, MR = (Path(str(get_testdata_file(name))).read_bytes() for name in ("CT_small.dcm", "MR_small.dcm"))
TABLES = """
[[routing]]
modality = ["MR"]
route = "strict"
[[routing]]
modality = ["CT"]
route = "closed"
[routes.closed]
trust = "strict"
upstream = "none"
"""

Call = Callable[..., pb.ProtectReply]


@pytest.fixture(scope="module")
def protect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Call]:
    """MR goes where the unsigned is rejected, CT where no sender of the site may go."""
    site = Site.make(tmp_path_factory.mktemp("ruled"), tables=TABLES)
    metadata = (("authorization", f"Bearer {site.tokens['scanner']}"),)
    with GatewayProcess(site.config) as gateway, grpc.insecure_channel(gateway.addresses.grpc) as channel:
        stub = rpc.ProtectionGatewayStub(channel)

        def call(dicom: bytes, *, streamed: bool = False) -> pb.ProtectReply:
            if not streamed:
                return stub.Protect(pb.ProtectRequest(dicom=dicom), metadata=metadata, timeout=30)
            parts = [pb.ProtectChunk(begin=pb.Begin()), pb.ProtectChunk(data=dicom), pb.ProtectChunk(end=pb.End())]
            return stub.ProtectStream(iter(parts), metadata=metadata, timeout=30)

        yield call


def test_a_rule_chooses_the_route_alike_in_one_message_and_in_a_stream(protect: Call) -> None:
    answers = [protect(MR), protect(MR, streamed=True)]
    assert [answer.disposition for answer in answers] == [pb.DISPOSITION_REJECT] * 2
    assert answers[0].receipt == answers[1].receipt


@pytest.mark.parametrize("streamed", [False, True])
def test_a_rule_gives_nobody_a_route_that_is_not_his(protect: Call, streamed: bool) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        protect(CT, streamed=streamed)
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


def test_what_no_rule_takes_is_refused(protect: Call) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        protect(b"nothing")
    assert (caught.value.code(), caught.value.details()) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "no routing rule takes this scan: name a route",
    )
