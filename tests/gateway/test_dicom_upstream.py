"""Handing on to real destinations: byte-identical, never what was held or refused, and nothing lost on the way."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pydicom
import pytest
from pydicom.data import get_testdata_file

from gateway.app.assembly import AUDIT_LOG, OUTBOX
from gateway.audit.sqlite import SqliteReader
from gateway.client.client import Client
from gateway.testing import GatewayProcess, Site
from signing.filemeta import read_file_meta
from waiting import until

CT = Path(str(get_testdata_file("CT_small.dcm")))
J2K = Path(str(get_testdata_file("MR_small_jp2klossless.dcm")))
_WAIT_S = 120.0

ROUTES = """
[routes.forward]
trust = "open"
upstream = "dicom"
destination = "pacs"
[routes.guarded]
trust = "strict"
upstream = "dicom"
destination = "pacs"
[destinations.pacs]
unsafe_plaintext = true
"""


@pytest.fixture
def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site.make(tmp_path_factory.mktemp("base") / "site", routes=["forward", "guarded"])


@pytest.fixture
def site_for(base: Site, tmp_path: Path) -> Callable[[str], Site]:
    """A gateway that hands on to this destination."""
    return lambda destination: base.copy(tmp_path / "site", more=ROUTES + destination)


@pytest.fixture
def site(site_for: Callable[[str], Site], free_port: int) -> Site:
    """A gateway that hands on to an AE on `free_port`, whether anybody is there or not."""
    return site_for(f'address = "127.0.0.1:{free_port}"\nae_title = "PACS"\n')


class Storescp:
    """DCMTK's receiver, which writes each data set exactly as it reads it."""

    def __init__(self, directory: Path, port: int) -> None:
        directory.mkdir(exist_ok=True)
        self.directory = directory
        command = ["storescp", "--fork", "-aet", "PACS", "+B", "+xa", "-od", str(directory), str(port)]
        self._process = subprocess.Popen(command, env={"TCP_NODELAY": "1"}, stderr=subprocess.DEVNULL)

    def __enter__(self) -> Storescp:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()

    def data_sets(self) -> Counter[str]:
        return Counter(data_set(file) for file in self.directory.iterdir())


def data_set(file: Path) -> str:
    data = file.read_bytes()
    return hashlib.sha256(data[read_file_meta(memoryview(data))[1] :]).hexdigest()


@pytest.fixture
def storescp(tmp_path: Path, free_port: int) -> Callable[[], Storescp]:
    if shutil.which("storescp") is None:
        pytest.skip("needs dcmtk")
    return lambda: Storescp(tmp_path / "received", free_port)


def study(tmp_path: Path, count: int) -> Iterator[Path]:
    dataset = pydicom.dcmread(CT)
    for number in range(count):
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.4.5.{number}"
        dataset.save_as(tmp_path / f"{number}.dcm")
        yield tmp_path / f"{number}.dcm"


def send(site: Site, gateway: GatewayProcess, *files: Path, route: str = "forward") -> list[str]:
    with Client(gateway.addresses.grpc, token=site.tokens["scanner"]) as client:
        return [client.protect(file, route).disposition for file in files]


def handed_on(site: Site) -> bool:
    return not list((site.directory / "data" / OUTBOX / "pacs").iterdir())


def forwarded(site: Site) -> list[str]:
    with SqliteReader(site.directory / "data" / AUDIT_LOG) as log:
        bodies = [json.loads(body) for _, body, _ in log.entries() if isinstance(body, bytes)]
    return [body["scan_sha256"] for body in bodies if body["kind"] == "forwarded"]


def test_what_is_admitted_arrives_byte_for_byte_and_what_is_refused_does_not(
    site: Site, storescp: Callable[[], Storescp], tmp_path: Path
) -> None:
    (other,) = study(tmp_path, 1)
    with storescp() as receiver, GatewayProcess(site.config) as gateway:
        assert send(site, gateway, CT, J2K) == ["admit", "admit"]
        assert send(site, gateway, other, route="guarded") == ["reject"]
        until(lambda: handed_on(site))
        assert receiver.data_sets() == Counter([data_set(CT), data_set(J2K)])
        assert len(forwarded(site)) == 2


def test_what_was_admitted_while_the_destination_was_down_arrives_when_it_is_back_after_a_kill(
    site: Site, storescp: Callable[[], Storescp], tmp_path: Path
) -> None:
    files = list(study(tmp_path, 12))
    with GatewayProcess(site.config) as gateway:
        assert set(send(site, gateway, *files)) == {"admit"}
        gateway.kill()
    with storescp() as receiver, GatewayProcess(site.config):
        until(lambda: handed_on(site))
        assert receiver.data_sets() == Counter(map(data_set, files))
    assert sorted(forwarded(site)) == sorted(hashlib.sha256(file.read_bytes()).hexdigest() for file in files)


def test_an_answer_is_the_same_and_is_not_handed_on_twice(site: Site, storescp: Callable[[], Storescp]) -> None:
    with storescp() as receiver, GatewayProcess(site.config) as gateway:
        assert send(site, gateway, CT, CT, CT) == ["admit"] * 3
        until(lambda: handed_on(site))
        assert receiver.data_sets() == Counter([data_set(CT)])
    assert len(forwarded(site)) == 1


def test_orthanc_receives_and_gives_back_the_same_data_set(
    tmp_path: Path, site_for: Callable[[str], Site], orthanc: Callable[..., object]
) -> None:
    with orthanc() as server:  # type: ignore[attr-defined]
        site = site_for(f'address = "127.0.0.1:{server.dicom}"\nae_title = "ORTHANC"\n')
        with GatewayProcess(site.config) as gateway:
            assert send(site, gateway, CT) == ["admit"]
            until(lambda: handed_on(site))
        (instance,) = json.loads(server.get("instances"))
        (tmp_path / "back.dcm").write_bytes(server.get(f"instances/{instance}/file"))
    assert data_set(tmp_path / "back.dcm") == data_set(CT)


def test_orthanc_receives_by_stow(
    tmp_path: Path, site_for: Callable[[str], Site], orthanc: Callable[..., object]
) -> None:
    with orthanc() as server:  # type: ignore[attr-defined]
        if b"dicom-web" not in server.get("plugins"):
            pytest.skip("needs orthanc-dicomweb")
        url = f"http://127.0.0.1:{server.http}/dicom-web/studies"
        site = site_for(f'stow_url = "{url}"\n')
        with GatewayProcess(site.config) as gateway:
            assert send(site, gateway, CT, J2K) == ["admit", "admit"]
            until(lambda: handed_on(site))
        for instance in json.loads(server.get("instances")):
            (tmp_path / f"{instance}.dcm").write_bytes(server.get(f"instances/{instance}/file"))
    received = {file.read_bytes() for file in tmp_path.glob("*.dcm")}
    assert received == {CT.read_bytes(), J2K.read_bytes()}


def test_what_a_destination_never_takes_is_put_aside_and_the_rest_goes_on(
    tmp_path: Path, free_port: int, site: Site
) -> None:
    """storescp without +xa takes no JPEG 2000."""
    if shutil.which("storescp") is None:
        pytest.skip("needs dcmtk")
    (tmp_path / "received").mkdir()
    command = ["storescp", "-aet", "PACS", "+B", "-od", str(tmp_path / "received"), str(free_port)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as receiver, GatewayProcess(site.config) as gateway:
        assert send(site, gateway, J2K, CT) == ["admit", "admit"]
        until(lambda: len(forwarded(site)) == 1)
        until(lambda: '"permanent"' in gateway.log() or "not_handed_on" in gateway.log())
        receiver.terminate()
    assert [data_set(file) for file in (tmp_path / "received").iterdir()] == [data_set(CT)]
    assert len(list((site.directory / "data" / OUTBOX / "pacs").iterdir())) == 1
