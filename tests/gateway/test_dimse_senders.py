"""Real DICOM senders against a real gateway: Orthanc, mutual TLS, a stop and a kill in the middle of a study."""

from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pydicom
import pytest
from pydicom.data import get_testdata_file

from gateway.app.assembly import AUDIT_LOG, INBOX
from gateway.audit.sqlite import SqliteReader
from gateway.testing import GatewayProcess, Site, write_certificate
from waiting import until

CT = Path(str(get_testdata_file("CT_small.dcm")))
KILLS = 3

DOOR = """
[receivers.dimse]
address = "127.0.0.1:0"
{security}
[receivers.dimse.routes]
OPEN = "open"
[[sources]]
name = "ct-1"
roles = ["submit"]
calling_ae = "CT1"
{identity}
enrolled = false
routes = ["open"]
"""
PLAIN = DOOR.format(security="unsafe_plaintext = true", identity="")


@pytest.fixture(autouse=True)
def dcmtk() -> None:
    if shutil.which("storescu") is None:
        pytest.skip("needs dcmtk")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site.make(tmp_path_factory.mktemp("base") / "site")


@pytest.fixture
def study(tmp_path: Path) -> Callable[[str, int], Path]:
    """Writes a folder of CT slices of its own."""

    def write(name: str, count: int) -> Path:
        folder = tmp_path / "studies" / name
        folder.mkdir(parents=True)
        dataset = pydicom.dcmread(CT)
        for number in range(count):
            uid = f"1.2.3.{int.from_bytes(name.encode(), 'big')}.{number}"
            dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid
            dataset.save_as(folder / f"{uid}.dcm")
        return folder

    return write


def bodies(site: Site) -> Iterator[dict[str, str]]:
    with SqliteReader(site.directory / "data" / AUDIT_LOG) as log:
        for _, body, _ in log.entries():
            assert isinstance(body, bytes)
            yield json.loads(body)


def answers(site: Site) -> Counter[str]:
    """How often each instance was answered, by the digest of its UID."""
    instance, found = {}, Counter[str]()
    for body in bodies(site):
        if body["kind"] == "decided":
            instance[body["scan_sha256"]] = body["sop_instance_digest"]
        elif body["kind"] == "answered":
            found[instance[body["scan_sha256"]]] += 1
    return found


def drained(site: Site) -> None:
    until(lambda: not list((site.directory / "data" / INBOX).iterdir()))


def storescu(gateway: GatewayProcess, folder: Path, *options: str) -> subprocess.Popen[str]:
    assert gateway.addresses.dimse is not None
    port = gateway.addresses.dimse.rpartition(":")[2]
    command = ["storescu", "-v", "-aet", "CT1", "-aec", "OPEN", *options, "127.0.0.1", port, "+sd", str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def acknowledged(output: str) -> set[str]:
    """Digests of the instances that storescu heard success for."""
    sent = re.findall(r"Sending file: \S*/([\d.]+)\.dcm(?:(?!Sending file).)*?Response \(Success\)", output, re.S)
    return {hashlib.sha256(uid.encode()).hexdigest() for uid in sent}


def test_orthanc_sends_a_study(
    tmp_path: Path, base: Site, study: Callable[[str, int], Path], orthanc: Callable[..., object]
) -> None:
    site = base.copy(tmp_path / "site", more=PLAIN.replace("CT1", "ORTHANC"))
    with GatewayProcess(site.config) as gateway:
        assert gateway.addresses.dimse is not None
        port = int(gateway.addresses.dimse.rpartition(":")[2])
        with orthanc({"scanward": ["OPEN", "127.0.0.1", port]}) as server:  # type: ignore[attr-defined]
            ids = [json.loads(server.post("instances", file.read_bytes()))["ID"] for file in study("o", 5).iterdir()]
            done = json.loads(server.post("modalities/scanward/store", json.dumps(ids).encode()))
        assert (done["InstancesCount"], done["FailedInstancesCount"]) == (5, 0)
        drained(site)
    assert sorted(answers(site).values()) == [1] * 5


class TestMutualTls:
    """A title is let in with its own certificate, and with no other or none."""

    @pytest.fixture(scope="class")
    @staticmethod
    def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
        pki = tmp_path_factory.mktemp("tls")
        issuer = write_certificate(pki, "ca", None)
        for leaf in ("server", "ct-1", "ct-2"):
            write_certificate(pki, leaf, issuer)
        security = (
            f'[receivers.dimse.tls]\ncertificate = "{pki}/server.pem"\nprivate_key = "{pki}/server.key"\n'
            f'client_ca = "{pki}/ca.pem"'
        )
        tables = DOOR.format(security=security, identity='tls_subject = "ct-1"')
        return Site.make(pki / "site", tables=tables)

    @pytest.fixture(scope="class")
    @staticmethod
    def gateway(site: Site) -> Iterator[GatewayProcess]:
        with GatewayProcess(site.config) as process:
            yield process

    @pytest.mark.parametrize(("certificate", "accepted"), [("ct-1", True), ("ct-2", False), (None, False)])
    def test_a_title_needs_its_certificate(
        self,
        site: Site,
        gateway: GatewayProcess,
        study: Callable[[str, int], Path],
        certificate: str | None,
        accepted: bool,
    ) -> None:
        pki = site.directory.parent
        tls = ("+tls", f"{pki}/{certificate}.key", f"{pki}/{certificate}.pem", "+cf", f"{pki}/ca.pem")
        sender = storescu(gateway, study(f"{certificate}", 1), *(tls if certificate else ()))
        output, _ = sender.communicate()
        assert (sender.returncode == 0) == accepted, output


def test_a_stop_ends_after_the_message_and_what_was_acknowledged_is_examined_at_the_next_start(
    tmp_path: Path, base: Site, study: Callable[[str, int], Path]
) -> None:
    site = base.copy(tmp_path / "site", more=PLAIN)
    with GatewayProcess(site.config) as gateway:
        sender = storescu(gateway, study("stop", 80))
        assert sender.stdout is not None
        output = "".join(sender.stdout.readline() for _ in range(30))
        assert gateway.stop() == 0
        output += sender.communicate()[0]
    with GatewayProcess(site.config):
        drained(site)
    found = answers(site)
    told = acknowledged(output)
    assert told
    assert {digest: found[digest] for digest in told} == dict.fromkeys(told, 1)


def test_every_acknowledged_scan_is_answered_once_however_often_the_gateway_is_killed(
    tmp_path: Path, base: Site, study: Callable[[str, int], Path]
) -> None:
    """SIGKILL in the middle of three studies, again and again."""
    site = base.copy(tmp_path / "site", more=PLAIN)
    chance = random.Random(6)  # noqa: S311 - no secret
    told: set[str] = set()
    for kill in range(KILLS):
        folders = [study(f"{kill}{sender}", 30) for sender in range(3)]
        with GatewayProcess(site.config) as gateway:
            senders = [storescu(gateway, folder) for folder in folders]
            first = senders[0].stdout
            assert first is not None
            output = "".join(first.readline() for _ in range(chance.randrange(20, 140)))
            gateway.kill()
            told |= acknowledged(output + senders[0].communicate()[0])
            for sender in senders[1:]:
                told |= acknowledged(sender.communicate()[0])
    with GatewayProcess(site.config):
        drained(site)
    found = answers(site)
    assert len(told) > KILLS
    assert {digest: found[digest] for digest in told} == dict.fromkeys(told, 1)
    assert set(found.values()) == {1}
