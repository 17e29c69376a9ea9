"""STOW-RS with a real client: per-instance results, who may store, and bodies that are not what they say."""

from __future__ import annotations

import http.client
import json
import select
import socket
import xml.etree.ElementTree as Xml
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest
import requests
from dicomweb_client.api import DICOMwebClient
from pydicom.data import get_testdata_file

from gateway.app.assembly import AUDIT_LOG
from gateway.audit.sqlite import SqliteReader
from gateway.errors import ScanError
from gateway.receivers.multipart import HEADER_BYTES_MAX, Aside, Begin, Data, End, Multipart, boundary_of
from gateway.testing import GatewayProcess, Site

CT = Path(str(get_testdata_file("CT_small.dcm")))
MR = Path(str(get_testdata_file("MR_small.dcm")))
TYPE = 'multipart/related; type="application/dicom"; boundary=XX'

DOOR = """
[receivers.stow]
address = "127.0.0.1:0"
unsafe_plaintext = true
instances_max = 10
idle_s_max = 3.0
[limits.enrolled]
scans_per_s = 1000.0
scans_burst = 1000
bytes_per_s = 1.0
bytes_burst = 1048576
holds_per_hour = 1000.0
holds_burst = 1000
calls_share = 1.0
spool_share = 1.0
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    site = Site.make(tmp_path_factory.mktemp("stow"), tables=DOOR)
    text = site.config.read_text()
    limit = "concurrent_calls_max = 32\nobject_bytes_max = 1048576"
    site.config.write_text(text.replace("concurrent_calls_max = 32", limit))
    return site


@pytest.fixture(scope="module")
def gateway(site: Site) -> Iterator[GatewayProcess]:
    with GatewayProcess(site.config) as process:
        yield process


def post(
    site: Site,
    gateway: GatewayProcess,
    *parts: bytes,
    path: str = "/open/studies",
    token: str | None = None,
    **headers: str,
) -> http.client.HTTPResponse:
    assert gateway.addresses.http is not None
    body = b"".join(b"--XX\r\nContent-Type: application/dicom\r\n\r\n" + part + b"\r\n" for part in parts) + b"--XX--"
    connection = http.client.HTTPConnection(gateway.addresses.http, timeout=60)
    sent = {"Content-Type": TYPE, "Authorization": f"Bearer {token or site.tokens['scanner']}"}
    connection.request("POST", path, body, sent | {name.replace("_", "-"): value for name, value in headers.items()})
    return connection.getresponse()


def records(site: Site, kind: str) -> list[dict[str, object]]:
    with SqliteReader(site.directory / "data" / AUDIT_LOG) as log:
        bodies = [json.loads(body) for _, body, _ in log.entries() if isinstance(body, bytes)]
    return [body for body in bodies if body["kind"] == kind]


def test_dicomweb_client_stores_a_study(site: Site, gateway: GatewayProcess) -> None:
    session = requests.Session()
    session.headers["Authorization"] = f"Bearer {site.tokens['scanner']}"
    client = DICOMwebClient(f"http://{gateway.addresses.http}/open", session=session)
    answer = client.store_instances([pydicom.dcmread(CT), pydicom.dcmread(MR)])
    assert [item.ReferencedSOPInstanceUID for item in answer.ReferencedSOPSequence] == [
        pydicom.dcmread(CT).SOPInstanceUID,
        pydicom.dcmread(MR).SOPInstanceUID,
    ]
    assert "FailedSOPSequence" not in answer
    assert {each["receiver"] for each in records(site, "decided")} == {"stow"}


def test_each_instance_has_its_own_result(site: Site, gateway: GatewayProcess) -> None:
    answer = post(site, gateway, CT.read_bytes(), b"no DICOM at all", bytes(1_500_000))
    assert answer.status == 202
    module = json.loads(answer.read())
    assert len(module["00081199"]["Value"]) == 1
    assert [item["00081197"]["Value"] for item in module["00081198"]["Value"]] == [[0xC001], [0xA700]]


def test_what_is_refused_is_a_conflict_and_says_so_in_xml_too(site: Site, gateway: GatewayProcess) -> None:
    answer = post(site, gateway, CT.read_bytes(), path="/strict/studies", Accept="application/dicom+xml")
    assert (answer.status, answer.headers["Content-Type"]) == (409, "application/dicom+xml")
    root = Xml.fromstring(answer.read())  # noqa: S314 - our own gateway's
    assert [each.get("keyword") for each in root] == ["FailedSOPSequence"]
    assert root.findtext(".//*[@keyword='FailureReason']/Value") == str(0xC001)
    assert root.findtext(".//*[@keyword='ReferencedSOPInstanceUID']/Value") == pydicom.dcmread(CT).SOPInstanceUID


def test_an_instance_of_another_study_is_not_stored_in_this_one(site: Site, gateway: GatewayProcess) -> None:
    study = pydicom.dcmread(CT).StudyInstanceUID
    assert post(site, gateway, CT.read_bytes(), path=f"/open/studies/{study}").status == 200
    answer = post(site, gateway, CT.read_bytes(), path="/open/studies/1.2.3")
    assert answer.status == 409
    assert json.loads(answer.read())["00081198"]["Value"][0]["00081197"]["Value"] == [0xA900]


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"token": "0" * 64}, 401),
        ({"token": "auditor"}, 403),
        ({"path": "/other/studies"}, 403),
        ({"path": "/open/instances"}, 404),
        ({"Content_Type": "application/dicom"}, 415),
        ({"Content_Type": 'multipart/related; type="application/dicom+json"; boundary=XX'}, 415),
        ({"Content_Type": TYPE.replace("=XX", "=YY")}, 400),
    ],
)
def test_a_request_that_is_wrong_as_a_whole(
    site: Site, gateway: GatewayProcess, change: dict[str, str], status: int
) -> None:
    if change.get("token") == "auditor":
        change = {"token": site.tokens["auditor"]}
    assert post(site, gateway, CT.read_bytes(), **change).status == status


def test_more_instances_than_a_request_may_have_are_too_many(site: Site, gateway: GatewayProcess) -> None:
    assert post(site, gateway, *[MR.read_bytes()] * 11).status == 413


HEAD, END = b"--XX\r\nContent-Type: application/dicom\r\n\r\n", b"\r\n--XX--"


def post_without_end(site: Site, gateway: GatewayProcess, body: bytes) -> tuple[int | None, int]:
    """A body that goes on in zeros for as long as it is taken; returns the status and how much was taken.

    The status is None where the answer was lost: whoever goes on sending to a connection that was closed resets it.
    """
    assert gateway.addresses.http is not None
    connection = http.client.HTTPConnection(gateway.addresses.http, timeout=60)
    connection.putrequest("POST", "/open/studies")
    for name, value in (("Content-Type", TYPE), ("Authorization", f"Bearer {site.tokens['scanner']}")):
        connection.putheader(name, value)
    connection.putheader("Transfer-Encoding", "chunked")
    connection.endheaders()
    taken, piece = 0, bytes(65536)
    connection.send(b"%x\r\n%s\r\n" % (len(body), body))
    try:
        while not select.select([connection.sock], [], [], 0)[0]:
            connection.send(b"10000\r\n" + piece + b"\r\n")
            taken += len(piece)
        return connection.getresponse().status, taken
    except (ConnectionError, http.client.HTTPException):
        return None, taken


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"a preamble", 400),
        (HEAD, 413),
        (HEAD.replace(b"dicom", b"text"), 413),
        (HEAD + CT.read_bytes() + END, 200),
    ],
    ids=["preamble", "oversize part", "foreign part", "epilogue"],
)
def test_what_is_thrown_away_is_not_read_without_end(
    site: Site, gateway: GatewayProcess, body: bytes, status: int
) -> None:
    answered, taken = post_without_end(site, gateway, body)
    assert answered in {status, None}
    assert taken < 32 << 20  # twice an object, and what waits in sockets and buffers


@pytest.mark.parametrize(
    "body",
    [HEAD + bytes(1_500_000) + END, HEAD.replace(b"dicom", b"text") + bytes(500_000) + END],
    ids=["oversize part", "foreign part"],
)
def test_bytes_that_become_no_scan_are_paid_for_as_well(site: Site, body: bytes, tmp_path: Path) -> None:
    """The source has a megabyte, and gets a byte back each second."""
    site = site.copy(tmp_path / "own")
    with GatewayProcess(site.config) as gateway:
        assert gateway.addresses.http is not None
        sent = {"Content-Type": TYPE, "Authorization": f"Bearer {site.tokens['enrolled']}"}
        codes = []
        for _ in range(4):
            connection = http.client.HTTPConnection(gateway.addresses.http, timeout=60)
            connection.request("POST", "/open/studies", body, sent)
            codes.append(connection.getresponse().status)
        assert codes[0] in {409, 413}
        assert codes[-1] == 503


@pytest.mark.parametrize(
    ("token", "path"), [("auditor", "/open/studies"), ("scanner", "/other/studies")], ids=["role", "route"]
)
def test_a_refusal_of_a_known_caller_names_it_on_record(
    site: Site, gateway: GatewayProcess, token: str, path: str
) -> None:
    assert post(site, gateway, CT.read_bytes(), path=path, token=site.tokens[token]).status == 403
    assert records(site, "refused")[-1]["source"] == token


def test_a_body_that_is_cut_off_is_on_record(site: Site, gateway: GatewayProcess) -> None:
    body = b"--XX\r\nContent-Type: application/dicom\r\n\r\n" + CT.read_bytes()
    assert gateway.addresses.http is not None
    connection = http.client.HTTPConnection(gateway.addresses.http, timeout=60)
    token = {"Content-Type": TYPE, "Authorization": f"Bearer {site.tokens['scanner']}"}
    connection.request("POST", "/open/studies", body, token)
    assert connection.getresponse().status == 400
    assert records(site, "refused")[-1]["error"] == "CutOff"


def silent(site: Site, gateway: GatewayProcess) -> http.client.HTTPConnection:
    """A request whose body stops at the first delimiter."""
    assert gateway.addresses.http is not None
    connection = http.client.HTTPConnection(gateway.addresses.http, timeout=60)
    connection.putrequest("POST", "/open/studies")
    for name, value in (("Content-Type", TYPE), ("Authorization", f"Bearer {site.tokens['scanner']}")):
        connection.putheader(name, value)
    connection.putheader("Content-Length", "1000")
    connection.endheaders()
    connection.send(b"--XX\r\n")
    return connection


def test_a_sender_that_falls_silent_is_hung_up_on(site: Site, gateway: GatewayProcess) -> None:
    assert silent(site, gateway).getresponse().status == 400


def test_one_sender_has_no_more_requests_in_progress_than_calls(site: Site, gateway: GatewayProcess) -> None:
    """The site gives each caller all of its eight handler threads."""
    connections = [silent(site, gateway) for _ in range(12)]
    assert sorted(each.getresponse().status for each in connections) == 8 * [400] + 4 * [503]


def test_strangers_that_only_connect_take_few_places_and_keep_nobody_out(site: Site, gateway: GatewayProcess) -> None:
    assert gateway.addresses.http is not None
    host, _, port = gateway.addresses.http.rpartition(":")
    waiting = [socket.create_connection((host, int(port)), timeout=5) for _ in range(100)]
    try:
        neighbour = http.client.HTTPConnection(host, int(port), timeout=60, source_address=("127.0.0.2", 0))
        neighbour.request("POST", "/nothing")
        assert neighbour.getresponse().status == 404
        hung_up, _, _ = select.select(waiting, [], [], 0)
        assert len(hung_up) >= 84
    finally:
        for connection in waiting:
            connection.close()


def read(body: bytes, boundary: str, size: int) -> list[object]:
    parts, events = Multipart(boundary), []
    for at in range(0, len(body), size):
        events += list(parts.feed(body[at : at + size]))
    assert parts.whole
    joined: list[object] = []
    for event in (event for event in events if not isinstance(event, Aside)):
        if isinstance(event, Data) and joined and isinstance(joined[-1], bytes):
            joined[-1] += event.data
        else:
            joined.append(event.data if isinstance(event, Data) else event)
    return joined


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_parts_are_the_same_however_the_body_is_cut(size: int) -> None:
    body = (
        b"preamble\r\n--b\r\nContent-Type: application/dicom; x=y\r\n\r\none\r\n-\r\n--a\r\n"
        b"--b\r\n\r\n\r\n--b\r\nX: 1\r\ncontent-type:TEXT/plain\r\n\r\n\r\n--b--\r\nepilogue\r\n--b\r\n\r\n"
    )
    assert read(body, "b", size) == [
        *(Begin("application/dicom"), b"one\r\n-\r\n--a", End()),
        *(Begin(""), End()),
        *(Begin("text/plain"), End()),
    ]


def test_a_header_without_an_end_is_refused() -> None:
    with pytest.raises(ScanError, match="header"):
        list(Multipart("b").feed(b"--b\r\n" + b"x" * HEADER_BYTES_MAX))


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        ('multipart/related; type="application/dicom"; boundary="a b"', "a b"),
        ("Multipart/Related; boundary=x; TYPE=application/dicom", "x"),
        ('multipart/related; type="application/dicom"', None),
        ("multipart/form-data; boundary=x", None),
        ("", None),
        (f'multipart/related; type="application/dicom"; boundary={"x" * 71}', None),
    ],
)
def test_the_boundary_of_a_content_type(content_type: str, boundary: str | None) -> None:
    assert boundary_of(content_type) == boundary
