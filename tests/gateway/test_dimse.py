"""The DICOM door with real senders: what is acknowledged is on disk, examined once, and kept whatever the verdict."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, MRImageStorage
from pynetdicom import AE, Association

from gateway.app.assembly import AUDIT_LOG, INBOX, QUARANTINE
from gateway.audit.sqlite import SqliteReader
from gateway.receivers.dimse import SYNTAXES
from gateway.receivers.part10 import file_meta
from gateway.testing import GatewayProcess, Site
from signing import read
from signing.filemeta import read_file_meta
from waiting import until

CT = Path(str(get_testdata_file("CT_small.dcm")))
MR = Path(str(get_testdata_file("MR_small.dcm")))
J2K = Path(str(get_testdata_file("MR_small_jp2klossless.dcm")))
CT_CLASS, VERIFICATION = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.1"
_WAIT_S = 60.0

DOOR = """
[receivers.dimse]
address = "127.0.0.1:0"
unsafe_plaintext = true
associations_max = 4
request_s_max = 2.0
idle_s_max = 3.0
examiners = 2
[receivers.dimse.routes]
OPEN = "open"
STRICT = "strict"
AUTO = "by-rule"
[[routing]]
modality = ["CT"]
calling_ae = ["CT1", "NARROW"]
route = "strict"
[[sources]]
name = "ct-1"
roles = ["submit"]
calling_ae = "CT1"
enrolled = false
routes = ["open", "strict"]
[[sources]]
name = "open-only"
roles = ["submit"]
calling_ae = "NARROW"
enrolled = false
routes = ["open"]
"""


def needs_dcmtk() -> None:
    if shutil.which("storescu") is None:
        pytest.skip("needs dcmtk")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site.make(tmp_path_factory.mktemp("dimse"), tables=DOOR)


@pytest.fixture(scope="module")
def gateway(site: Site) -> Iterator[GatewayProcess]:
    with GatewayProcess(site.config) as process:
        yield process


def records(site: Site, kind: str) -> list[dict[str, object]]:
    with SqliteReader(site.directory / "data" / AUDIT_LOG) as log:
        bodies = [json.loads(body) for _, body, _ in log.entries() if isinstance(body, bytes)]
    return [body for body in bodies if body["kind"] == kind]


def port(gateway: GatewayProcess) -> int:
    assert gateway.addresses.dimse is not None
    return int(gateway.addresses.dimse.rpartition(":")[2])


def associate(
    gateway: GatewayProcess, calling: str = "CT1", called: str = "OPEN", syntax: str = ExplicitVRLittleEndian
) -> Association:
    entity = AE(ae_title=calling)
    entity.add_requested_context(VERIFICATION)
    entity.add_requested_context(CT_CLASS, syntax)
    entity.add_requested_context(MRImageStorage, syntax)
    return entity.associate("127.0.0.1", port(gateway), ae_title=called)


def store(gateway: GatewayProcess, dataset: pydicom.Dataset, **options: str) -> int:
    association = associate(gateway, **options)
    assert association.is_established
    status = association.send_c_store(dataset)
    association.release()
    return int(status.Status)


def variant(number: int) -> pydicom.FileDataset:
    """A CT slice of its own."""
    dataset = pydicom.dcmread(CT)
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.4.{number}"
    return dataset


def test_echo(gateway: GatewayProcess) -> None:
    association = associate(gateway)
    assert association.send_c_echo().Status == 0x0000
    association.release()


def test_a_stored_scan_is_examined_and_answered_once(site: Site, gateway: GatewayProcess) -> None:
    assert store(gateway, variant(1)) == 0x0000
    until(lambda: any(each["receiver"] == "dimse" for each in records(site, "decided")))
    (decided,) = [each for each in records(site, "decided") if each["receiver"] == "dimse"]
    assert (decided["source"], decided["disposition"], decided["route"]) == ("ct-1", "admit", "open")
    until(lambda: any(each["scan_sha256"] == decided["scan_sha256"] for each in records(site, "answered")))
    assert store(gateway, variant(1)) == 0x0000
    until(lambda: not list((site.directory / "data" / INBOX).iterdir()))
    assert len([each for each in records(site, "answered") if each["scan_sha256"] == decided["scan_sha256"]]) == 1


@pytest.mark.parametrize("syntax", ["-xe", "-xi", "-xb", "-xd"])
def test_storescu_in_every_native_syntax(site: Site, gateway: GatewayProcess, syntax: str, tmp_path: Path) -> None:
    needs_dcmtk()
    scan = tmp_path / "ct.dcm"
    variant(200 + ord(syntax[-1])).save_as(scan)
    before = len(records(site, "answered"))
    command = ["storescu", "-aet", "CT1", "-aec", "OPEN", syntax, "127.0.0.1", str(port(gateway)), str(scan)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    until(lambda: not list((site.directory / "data" / INBOX).iterdir()))
    assert len(records(site, "answered")) == before + 1


def test_the_data_set_is_examined_as_it_was_sent(site: Site, gateway: GatewayProcess) -> None:
    """The digest on record is that of the file head that PS3.10 asks for and the data set's own bytes."""
    data = J2K.read_bytes()
    meta, start = read_file_meta(memoryview(data))
    instance = meta.values[0x00020003].decode()
    association = associate(gateway, syntax=JPEG2000Lossless)
    assert raw_store(association, MRImageStorage, instance, data[start:]) == 0x0000
    association.release()
    digest = hashlib.sha256(file_meta(MRImageStorage, instance, JPEG2000Lossless) + data[start:]).hexdigest()
    until(lambda: any(each["scan_sha256"] == digest for each in records(site, "decided")))


def test_a_refused_scan_of_a_study_is_held_and_the_rest_goes_on(
    site: Site, gateway: GatewayProcess, tmp_path: Path
) -> None:
    """storescu stops at the first failure status: a refusal would lose the slices behind it (PS3.4 B.2.3)."""
    needs_dcmtk()
    for number in range(100, 105):
        variant(number).save_as(tmp_path / f"{number}.dcm")
    before = len(list((site.directory / "data" / QUARANTINE).glob("*.scan")))
    command = ["storescu", "-aet", "CT1", "-aec", "STRICT", "127.0.0.1", str(port(gateway)), "+sd", str(tmp_path)]
    subprocess.run(command, check=True)
    until(lambda: sum(each["route"] == "strict" for each in records(site, "answered")) == 5)
    assert {each["disposition"] for each in records(site, "decided") if each["route"] == "strict"} == {"reject"}
    assert len(list((site.directory / "data" / QUARANTINE).glob("*.scan"))) == before + 5


def test_a_data_set_that_cannot_be_read_is_refused_with_c000_and_on_record(site: Site, gateway: GatewayProcess) -> None:
    association = associate(gateway)
    assert raw_store(association, CT_CLASS, "1.2.3", b"\x10\x00\x10\x00PN\xff\xff cut off") == 0xC000
    assert raw_store(association, CT_CLASS, "1.2.3", encoded(variant(6))) == 0xA900
    assert association.send_c_echo().Status == 0x0000
    association.release()
    refused = [each for each in records(site, "refused") if each["source"] == "ct-1"]
    assert [each["error"] for each in refused[-2:]] == ["ScanError", "Mismatched"]


@pytest.mark.parametrize(
    ("calling", "called", "reason"), [("STRANGER", "OPEN", 3), ("CT1", "NOWHERE", 7), ("NARROW", "STRICT", 3)]
)
def test_unknown_titles_open_no_association(
    site: Site, gateway: GatewayProcess, calling: str, called: str, reason: int
) -> None:
    before = len(records(site, "refused"))
    association = associate(gateway, calling, called)
    assert association.is_rejected
    assert association.acceptor.primitive.diagnostic == reason
    assert len(records(site, "refused")) == before + 1
    assert "STRANGER" not in json.dumps(records(site, "refused"))


def test_other_services_are_refused_by_their_context(gateway: GatewayProcess) -> None:
    entity = AE(ae_title="CT1")
    entity.add_requested_context("1.2.840.10008.5.1.4.1.2.2.1")  # find
    entity.add_requested_context(VERIFICATION)
    entity.add_requested_context("1.3.12.2.1107.5.9.1")  # a manufacturer's own storage
    association = entity.associate("127.0.0.1", port(gateway), ae_title="OPEN")
    assert {str(context.abstract_syntax) for context in association.accepted_contexts} == {
        VERIFICATION,
        "1.3.12.2.1107.5.9.1",
    }
    association.release()


def test_more_associations_than_allowed_are_refused_for_now(gateway: GatewayProcess) -> None:
    held: list[Association] = []
    try:
        while len(held) < 4:  # one that was just released may still be on its way out
            if (association := associate(gateway)).is_established:
                held.append(association)
        refused = associate(gateway)
        primitive = refused.acceptor.primitive
        assert (primitive.result, primitive.result_source, primitive.diagnostic) == (2, 3, 2)
    finally:
        for association in held:
            association.release()


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x01\x00\xff\xff\xff\xff",
        b"\x01\x00\x00\x00\x00\x44" + bytes(68),
        b"\x04\x00\x00\x00\x00\x06\x00\x00\x00\x02\x01\x03",
        b"",
        b"\x01",
    ],
    ids=["http", "huge", "empty-request", "data-first", "silence", "one-byte"],
)
def test_who_does_not_speak_the_protocol_is_hung_up_on(gateway: GatewayProcess, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port(gateway))) as connection:
        connection.settimeout(_WAIT_S)
        connection.sendall(sent)
        answer = b"".join(iter(lambda: connection.recv(100), b""))
        assert answer in {b"", b"\x07\x00\x00\x00\x00\x04\x00\x00\x02" + answer[9:10]}


def test_connections_that_only_wait_keep_nobody_out(gateway: GatewayProcess) -> None:
    waiting = [socket.create_connection(("127.0.0.1", port(gateway))) for _ in range(40)]
    try:
        until(lambda: associate_and_release(gateway))
    finally:
        for connection in waiting:
            connection.close()


def associate_and_release(gateway: GatewayProcess) -> bool:
    association = associate(gateway)
    if association.is_established:
        association.release()
        return True
    return False


def test_an_object_over_the_limit_is_out_of_resources_and_the_association_goes_on(tmp_path: Path) -> None:
    site = Site.make(tmp_path / "small", tables=DOOR)
    text = site.config.read_text()
    site.config.write_text(
        text.replace("concurrent_calls_max = 32", "concurrent_calls_max = 32\nobject_bytes_max = 1048576")
    )
    with GatewayProcess(site.config) as gateway:
        association = associate(gateway)
        assert raw_store(association, CT_CLASS, "1.2.3", bytes(1_500_000)) == 0xA700
        assert association.send_c_echo().Status == 0x0000
        association.release()
        assert records(site, "refused")[-1]["error"] == "TooLarge"


def encoded(dataset: pydicom.FileDataset) -> bytes:
    from pynetdicom.dsutils import encode

    data = encode(dataset, False, True)
    assert data is not None
    return data


def raw_store(association: Association, sop_class: str, instance: str, data: bytes) -> int:
    """C-STORE of any bytes."""
    from io import BytesIO

    from pynetdicom.dimse_primitives import C_STORE

    request = C_STORE()
    request.MessageID, request.Priority = 1, 2
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = sop_class, instance
    request.DataSet = BytesIO(data)
    context = next(each for each in association.accepted_contexts if each.abstract_syntax == sop_class)
    association._reactor_checkpoint.clear()
    while not association._is_paused:
        time.sleep(0.001)
    association.dimse.send_msg(request, context.context_id)
    _, response = association.dimse.get_msg(block=True)
    association._reactor_checkpoint.set()
    return int(response.Status)


def test_the_head_of_a_file_is_what_ps3_10_asks_for() -> None:
    data = file_meta(CT_CLASS, "1.2.3", ExplicitVRLittleEndian) + encoded(variant(7))
    elements = read(memoryview(file_meta(CT_CLASS, "1.2.3.4.7", ExplicitVRLittleEndian) + encoded(variant(7))))
    assert elements.transfer_syntax == ExplicitVRLittleEndian
    assert struct.unpack("<I", data[140:144])[0] == read_file_meta(memoryview(data))[1] - 144
    assert pydicom.dcmread(__import__("io").BytesIO(data)).file_meta.MediaStorageSOPInstanceUID == "1.2.3"


def test_every_syntax_of_the_standard_is_taken_but_those_that_stream() -> None:
    assert len(SYNTAXES) == len(set(SYNTAXES)) > 30


def test_a_rule_chooses_the_route_of_each_object_and_gives_no_source_what_is_not_its(
    site: Site, gateway: GatewayProcess
) -> None:
    ct, mr = pydicom.dcmread(CT), pydicom.dcmread(MR)
    before = len(records(site, "decided"))

    assert store(gateway, ct, called="AUTO") == 0x0000
    assert store(gateway, mr, called="AUTO") == 0xC000
    assert store(gateway, ct, called="AUTO", calling="NARROW") == 0x0124

    until(lambda: len(records(site, "decided")) > before)
    assert [record["route"] for record in records(site, "decided")[before:]] == ["strict"]
    assert [record["error"] for record in records(site, "refused")[-2:]] == ["ScanError", "NotPermitted"]
