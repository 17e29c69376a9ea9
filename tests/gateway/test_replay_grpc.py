"""Replay and stripping, over a real socket to a real gateway: the true scan passes, what pretends to be it does not."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from datetime import UTC, datetime
from io import BytesIO
from itertools import count
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file

import signing
from gateway.client.client import Answer, Client, ClientError
from gateway.testing import GatewayProcess, Site
from signing.testing import flip_pixel_bit, strip_signatures

CT = Path(str(get_testdata_file("CT_small.dcm")))
Send = Callable[..., tuple[str, tuple[str, ...]]]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site.make(tmp_path_factory.mktemp("replay"))


@pytest.fixture(scope="module")
def gateway(site: Site) -> Iterator[GatewayProcess]:
    with GatewayProcess(site.config) as process:
        yield process


@pytest.fixture
def send(site: Site, gateway: GatewayProcess, tmp_path: Path) -> Send:
    def send_(data: bytes, *, route: str = "strict", source: str = "reviewer") -> tuple[str, tuple[str, ...]]:
        file = tmp_path / "scan.dcm"
        file.write_bytes(data)
        with Client(gateway.addresses.grpc, token=site.tokens[source]) as client:
            answer = client.protect(file, route)
        return answer.disposition, answer.reasons

    return send_


_numbers = count(1)


@pytest.fixture
def scan() -> bytes:
    """A CT slice that no other test has."""
    return changed(CT.read_bytes(), SOPInstanceUID=f"1.2.826.0.1.3680043.8.498.{next(_numbers)}")


def changed(data: bytes, **values: object) -> bytes:
    dataset = dcmread(BytesIO(data))
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    file = BytesIO()
    dataset.save_as(file)
    return file.getvalue()


def signed(site: Site, data: bytes, who: str = "ct", **how: object) -> bytes:
    return signing.sign(data, signer=site.hospital.signer(who), at=datetime.now(UTC), **how)  # type: ignore[arg-type]


def test_the_same_scan_may_come_again_in_other_wrapping(site: Site, send: Send, scan: bytes) -> None:
    """Identical bytes get their earlier answer before anything is examined; these are not identical."""
    first = signed(site, scan)
    preamble = b"\1" * 128 + first[128:]
    assert [send(each) for each in (first, first, preamble)] == [("admit", ())] * 3


def test_the_same_scan_signed_again_is_the_same(site: Site, send: Send, scan: bytes) -> None:
    again = [signed(site, scan), signed(site, scan, "mr"), signed(site, scan, mac="SHA512")]
    assert [send(each) for each in [signed(site, scan), *again]] == [("admit", ())] * 4


@pytest.mark.parametrize("who", ["ct", "mr"])
def test_altered_and_signed_again_is_a_replay(site: Site, send: Send, scan: bytes, who: str) -> None:
    true, altered = signed(site, scan), signed(site, flip_pixel_bit(scan), who)
    assert send(true) == ("admit", ())
    assert send(altered) == ("reject", ("replayed",))
    assert send(altered, source="scanner") == ("reject", ("signature",))  # nothing for whoever tunes an attack
    assert send(changed(true, RetrieveAETitle="ARCHIVE")) == ("admit", ())


def test_the_same_instance_for_another_patient_is_a_replay(site: Site, send: Send, scan: bytes) -> None:
    assert send(signed(site, scan)) == ("admit", ())
    assert send(signed(site, changed(scan, PatientID="SOMEBODY-ELSE"))) == ("reject", ("replayed",))


def test_another_route_remembers_the_same(site: Site, send: Send, scan: bytes) -> None:
    assert send(signed(site, scan), route="open") == ("admit", ())
    assert send(signed(site, flip_pixel_bit(scan)), route="strict") == ("reject", ("replayed",))


@pytest.mark.parametrize("forge", ["unsigned", "stranger", "broken"])
def test_a_forgery_that_comes_first_does_not_make_the_true_scan_suspect(
    site: Site, send: Send, scan: bytes, forge: str
) -> None:
    forgery = flip_pixel_bit(scan)
    if forge == "stranger":
        forgery = signed(site, forgery, "stranger")
    elif forge == "broken":
        forgery = flip_pixel_bit(signed(site, scan))
    assert send(forgery, route="open")[0] == ("admit" if forge == "unsigned" else "reject")
    assert send(signed(site, scan)) == ("admit", ())


def test_what_was_stripped_from_a_source_that_signs_is_refused_by_name(site: Site, send: Send, scan: bytes) -> None:
    """On a route that would admit unsigned scans from anybody else."""
    stripped = strip_signatures(signed(site, scan))
    assert send(stripped, route="open", source="reviewer") == ("admit", ())
    assert send(stripped, route="open", source="enrolled") == ("reject", ("signature",))


def test_replays_are_counted(site: Site, gateway: GatewayProcess, send: Send, scan: bytes) -> None:
    send(signed(site, scan))
    send(signed(site, flip_pixel_bit(scan)))
    text = urllib.request.urlopen(f"http://{gateway.addresses.metrics}/metrics", timeout=10).read().decode()
    assert 'scanward_findings_total{outcome="failed",reason="replayed",stage="signature"}' in text


def test_a_gateway_killed_between_memory_and_answer_accepts_the_same_scans_again(tmp_path: Path) -> None:
    site = Site.make(tmp_path / "own")
    files = []
    for number in range(24):
        files.append(tmp_path / f"{number}.dcm")
        files[-1].write_bytes(signed(site, changed(CT.read_bytes(), SOPInstanceUID=f"1.2.3.4.{number}")))
    database = site.directory / "data" / "replay.sqlite"

    with GatewayProcess(site.config) as gateway, ThreadPoolExecutor(24) as pool:

        def protect(file: Path) -> Answer | None:
            with suppress(ClientError), Client(gateway.addresses.grpc, token=site.tokens["reviewer"]) as client:
                return client.protect(file, "strict")
            return None

        calls = [pool.submit(protect, file) for file in files]
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as reader:
            while not reader.execute("SELECT count(*) FROM accepted").fetchone()[0]:
                time.sleep(0.001)
        os.kill(gateway.pid, signal.SIGKILL)
        for call in calls:
            call.cancel()

    with (
        GatewayProcess(site.config) as gateway,
        Client(gateway.addresses.grpc, token=site.tokens["reviewer"]) as client,
    ):
        assert [client.protect(file, "strict").disposition for file in files] == ["admit"] * 24
        files[0].write_bytes(signed(site, flip_pixel_bit(changed(CT.read_bytes(), SOPInstanceUID="1.2.3.4.0"))))
        assert client.protect(files[0], "strict").reasons == ("replayed",)
