"""Bad input over real gRPC: each gets its status and a sentence, the gateway goes on, and the log has the attempt."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from hashlib import sha256
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from gateway.api.v1 import gateway_pb2 as pb
from gateway.api.v1 import gateway_pb2_grpc as rpc
from gateway.app.assembly import AUDIT_LOG
from gateway.audit.sqlite import SqliteReader
from gateway.client.client import Answer, Client, ClientError
from gateway.testing import GatewayProcess, Site
from signing import read

CT = Path(str(get_testdata_file("CT_small.dcm"))).read_bytes()
MPEG2 = UID("1.2.840.10008.1.2.4.100")
MIB = 1 << 20
GROWTH_BYTES_MAX = 700 * MIB
"""Over what a gateway needs that has answered one scan. The largest part is the inflated data set that is refused."""


@pytest.fixture(scope="module")
def client(site: Site, gateway: GatewayProcess) -> Iterator[Client]:
    with Client(gateway.addresses.grpc, token=site.tokens["scanner"]) as client:
        yield client


@pytest.fixture(scope="module")
def reviewer(site: Site, gateway: GatewayProcess) -> Iterator[Client]:
    with Client(gateway.addresses.grpc, token=site.tokens["reviewer"]) as client:
        yield client


@pytest.fixture(scope="module", autouse=True)
def memory(gateway: GatewayProcess, client: Client) -> Iterator[None]:
    """Peak memory of the gateway and its processes stays bounded over everything in this file."""
    assert client.protect(CT, "ct").admitted
    before = gateway.peak_bytes()
    yield
    after = gateway.peak_bytes()
    for pid, peak in after.items():
        grown = peak - before.get(pid, peak)
        role = "gateway" if pid == gateway.pid else "its worker"
        print(f"\npeak RSS of {role}: {peak / MIB:.0f} MiB, {grown / MIB:.0f} MiB more than after one good scan")
        assert grown < GROWTH_BYTES_MAX


@pytest.fixture(autouse=True)
def goes_on(gateway: GatewayProcess, client: Client) -> Iterator[None]:
    """After each test the gateway is ready, and a good scan is answered by the model."""
    yield
    with grpc.insecure_channel(gateway.addresses.grpc) as channel:
        request = health_pb2.HealthCheckRequest(service="ready")
        health = health_pb2_grpc.HealthStub(channel).Check(request, timeout=10)
    assert health.status == health_pb2.HealthCheckResponse.SERVING
    answer = client.protect(CT, "ct")
    assert answer.prediction is not None


def changed(**attributes: object) -> bytes:
    """CT_small with other attributes, written by pydicom; None takes one away."""
    dataset = dcmread(io.BytesIO(CT))
    for keyword, value in attributes.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    return written(dataset)


def written(dataset: Dataset) -> bytes:
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


def of_transfer_syntax(uid: UID) -> bytes:
    dataset = dcmread(io.BytesIO(CT))
    dataset.PixelData = encapsulate([dataset.PixelData])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = uid
    return written(dataset)


def deflate_bomb(station: str = "CT") -> bytes:
    """A valid head whose deflated data set goes on for 2 GiB of zeros, in 2 MB."""
    dataset = dcmread(io.BytesIO(CT))
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    del dataset.PixelData
    head = written(dataset)
    meta_end = 128 + 4 + 12 + struct.unpack_from("<I", head, 128 + 4 + 8)[0]
    elements = struct.pack("<HH2sH", 0x0008, 0x1010, b"SH", len(station)) + station.encode()
    elements += struct.pack("<HH2s2xI", 0x7FE0, 0x0010, b"OW", 2 << 30)
    # A full flush lets pieces of a deflate stream be put together: the same 16 MiB of zeros, 128 times.
    return head[:meta_end] + _deflated(elements) + _deflated(bytes(16 * MIB)) * 128 + b"\x03\0"


@cache
def _deflated(piece: bytes) -> bytes:
    compressor = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    return compressor.compress(piece) + compressor.flush(zlib.Z_FULL_FLUSH)


def claiming_3_gib() -> bytes:
    """1 KB whose last element says that it is 3 GiB long."""
    element = read(CT).get(0x7FE00010)
    assert element is not None
    head = CT[: element.start]
    return head[:1000] + struct.pack("<HH2s2xI", 0x7FE0, 0x0010, b"OW", 3 << 30) + bytes(16)


def with_slope(text: bytes) -> bytes:
    """The Rescale Slope's bytes replaced: no library writes such a number."""
    marked = changed(RescaleSlope="1.0" + "0" * (len(text) - 3 if len(text) > 3 else 1))
    element = read(marked).get(0x00281053)
    assert element is not None
    padded = text.ljust(element.length)
    assert len(padded) == element.length
    return marked[: element.offset] + padded + marked[element.offset + element.length :]


BAD: dict[str, tuple[Callable[[], bytes], str, str, str]] = {
    # name: (object, disposition, coarse reason, part of the sentence)
    "empty": (lambda: b"", "reject", "malformed", "DICM"),
    "one byte": (lambda: b"\0", "reject", "malformed", "DICM"),
    "not DICOM": (lambda: b"\x89PNG\r\n\x1a\n" + bytes(4096), "reject", "malformed", "DICM"),
    "text": (lambda: b"GET / HTTP/1.1\r\n" * 100, "reject", "malformed", "DICM"),
    "prefix alone": (lambda: bytes(128) + b"DICM", "reject", "malformed", ""),
    "3 GiB claimed in 1 KB": (claiming_3_gib, "reject", "malformed", ""),
    "deflate bomb": (deflate_bomb, "reject", "malformed", "expand"),
    "no pixel data": (lambda: changed(PixelData=None), "quarantine", "unexaminable", "no Pixel Data"),
    "unsupported transfer syntax": (lambda: of_transfer_syntax(MPEG2), "quarantine", "unexaminable", "transfer syntax"),
    "colour where grey is expected": (
        lambda: changed(SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0),
        "quarantine",
        "unexaminable",
        "a colour image",
    ),
    "fewer pixels than claimed": (lambda: changed(Rows=4096, Columns=4096), "quarantine", "unexaminable", "Pixel Data"),
    "no rows": (lambda: changed(Rows=0), "quarantine", "unexaminable", ""),
    "more frames than pixels": (lambda: changed(NumberOfFrames=60), "quarantine", "unexaminable", "Pixel Data"),
    "slope that is no number": (lambda: with_slope(b"NaN"), "quarantine", "unexaminable", ""),
    "slope that overflows": (lambda: with_slope(b"1e400"), "quarantine", "unexaminable", ""),
    "slope that leads to no number": (lambda: with_slope(b"-inf"), "quarantine", "unexaminable", ""),
}


@pytest.mark.parametrize("name", BAD)
def test_gets_its_status_its_reason_and_a_sentence(name: str, client: Client, reviewer: Client) -> None:
    build, disposition, reason, part = BAD[name]
    scan = build()

    told = client.protect(scan, "ct")
    shown = reviewer.protect(scan, "ct")

    assert (told.disposition, told.reasons) == (disposition, (reason,)), told
    assert part in told.detail
    assert told.detail
    assert told.prediction is None
    assert not told.findings
    assert told.detail in [finding.detail for finding in shown.findings]


def test_truncated_anywhere_it_is_never_read_as_whole(client: Client) -> None:
    """Cut at a boundary of elements an object may still be well-formed; without its pixels it is then held."""
    pixels = read(CT).get(0x7FE00010)
    assert pixels is not None
    cuts = {
        *range(0, len(CT), 997),
        *range(120, 160),
        *(len(CT) - n for n in range(1, 40)),
        pixels.start,
        pixels.offset,
    }
    boundaries = 0
    for cut in sorted(cuts):
        answer = client.protect(CT[:cut], "ct")
        if cut >= pixels.end:
            assert answer.admitted or answer.reasons == ("malformed",), (cut, answer)
        else:
            assert (answer.disposition, answer.reasons) in {
                ("reject", ("malformed",)),
                ("quarantine", ("unexaminable",)),
            }, (cut, answer)
            boundaries += answer.disposition == "quarantine"
        assert answer.admitted or answer.detail
    assert boundaries >= 1, "no cut hit a boundary of elements, so that case was not tested"


def test_every_malformed_file_is_answered(client: Client, shared: Path) -> None:
    """Admitted, held or refused: each one is a successful examination with an entry in the log."""
    files = sorted((shared / "malformed").iterdir())
    assert len(files) > 100
    answers: dict[Path, Answer] = {}
    for result in client.screen(files, "ct"):
        assert result.answer is not None, (result.path, result.error)
        answers[result.path] = result.answer
    for path, answer in answers.items():
        if set(answer.reasons) & {"malformed", "unexaminable"}:
            assert answer.detail, path
        else:
            assert answer.admitted or answer.reasons in {("suspect",), ("signature",)}, (path, answer)
    counts = Counter(answer.disposition for answer in answers.values())
    print(f"\n{len(files)} malformed files: {dict(counts)}")


def test_a_stream_that_claims_3_gib_is_refused_before_its_data(site: Site, gateway: GatewayProcess) -> None:
    metadata = (("authorization", f"Bearer {site.tokens['scanner']}"),)
    taken = 0

    def parts() -> Iterator[pb.ProtectChunk]:
        nonlocal taken
        yield pb.ProtectChunk(begin=pb.Begin(route="ct", size_hint=3 << 30))
        for _ in range(3 << 12):
            taken += 1
            yield pb.ProtectChunk(data=bytes(256 << 10))

    with grpc.insecure_channel(gateway.addresses.grpc) as channel, pytest.raises(grpc.RpcError) as caught:
        rpc.ProtectionGatewayStub(channel).ProtectStream(parts(), metadata=metadata, timeout=60)

    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "larger than" in caught.value.details()
    assert taken < 1000


def test_many_deflate_bombs_at_once_take_no_more_memory_than_a_few(client: Client) -> None:
    """Each is another object, so that each is examined; the fixture above looks at the memory."""
    bombs = [deflate_bomb(f"CT{number:02}") for number in range(6)]
    with ThreadPoolExecutor(len(bombs)) as pool:
        answers = list(pool.map(lambda bomb: client.protect(bomb, "ct"), bombs))
    assert {answer.disposition for answer in answers} == {"reject"}


def test_an_unknown_route_is_refused(client: Client) -> None:
    with pytest.raises(ClientError, match="PERMISSION_DENIED"):
        client.protect(CT, "nowhere")


def test_every_attempt_is_in_the_log(site: Site, client: Client) -> None:
    scans = {name: build() for name, (build, *_) in BAD.items()}
    for scan in scans.values():
        client.protect(scan, "ct")
    with SqliteReader(site.directory / "data" / AUDIT_LOG) as log:
        records = [json.loads(body) for _, body, _ in log.entries() if isinstance(body, bytes)]
    decided = {(r["scan_sha256"], r["source"], r["disposition"]) for r in records if r["kind"] == "decided"}
    for name, scan in scans.items():
        assert (sha256(scan).hexdigest(), "scanner", BAD[name][1]) in decided, name
    assert any(record["kind"] == "refused" and "larger than" in record["detail"] for record in records)


def test_no_header_value_reaches_the_gateways_log(gateway: GatewayProcess) -> None:
    dataset = dcmread(io.BytesIO(CT))
    log = gateway.log()
    for keyword in ("PatientName", "PatientID", "StudyInstanceUID", "SOPInstanceUID"):
        assert str(dataset[keyword].value) not in log
