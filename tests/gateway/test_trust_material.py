"""A running gateway takes fresh revocation material by itself: a withdrawn certificate is refused without a restart."""

from __future__ import annotations

import http.server
import json
import re
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
from pydicom.data import get_testdata_file

import signing
from gateway.client.client import Client
from gateway.testing import GatewayProcess, Site
from waiting import until

CT = Path(str(get_testdata_file("CT_small.dcm")))


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """Its gateway reads lists from a folder; `trust refresh` fills that from the hospital's web server."""
    return Site.make(tmp_path / "site")


@pytest.fixture
def refresh(site: Site) -> Iterator[Callable[[], None]]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None: ...  # noqa: A002

    handler = partial(Quiet, directory=str(site.hospital.directory))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        urls = [f"http://127.0.0.1:{server.server_port}/{name}.crl" for name in ("root", "intermediate")]
        folder = f'crls = ["crls"]\nrefresh = {{ crl_urls = {json.dumps(urls)} }}'
        (site.directory / "crls").mkdir()
        text = site.config.read_text()
        site.config.write_text(text.replace('crls = ["pki/root.crl", "pki/intermediate.crl"]', folder))

        def run() -> None:
            command = [sys.executable, "-m", "gateway.cli", "trust", "refresh", "--once", "--config", str(site.config)]
            subprocess.run(command, check=True)

        yield run
        server.shutdown()


def ages(gateway: GatewayProcess) -> dict[str, float]:
    text = urllib.request.urlopen(f"http://{gateway.addresses.metrics}/metrics", timeout=10).read().decode()
    lines = [line.split() for line in text.splitlines() if line.startswith("scanward_revocation_age_seconds{")]
    return {name: float(value) for name, value in lines}


def test_a_certificate_is_refused_once_its_revocation_was_fetched(
    site: Site, refresh: Callable[[], None], tmp_path: Path
) -> None:
    scan = tmp_path / "scan.dcm"
    scan.write_bytes(signing.sign(CT.read_bytes(), signer=site.hospital.signer("ct"), at=datetime.now(UTC)))
    with (
        GatewayProcess(site.config) as gateway,
        Client(gateway.addresses.grpc, token=site.tokens["reviewer"]) as client,
    ):

        def reasons() -> tuple[str, ...]:
            return client.protect(scan, "strict").reasons

        assert reasons() == ("revocation_unknown",)  # the folder is empty

        refresh()
        until(lambda: reasons() == ())
        assert all(3600 <= age < 5400 for age in ages(gateway).values())  # the hospital dates its lists an hour back
        assert len(ages(gateway)) == 2

        now = datetime.now(UTC)
        site.hospital.issue_crls(now=now + timedelta(minutes=30), revoked={"ct": now - timedelta(hours=1)})
        refresh()
        until(lambda: reasons() == ("revoked",))  # of the same bytes, which had been admitted
        until(lambda: all(1800 <= age < 3600 for age in ages(gateway).values()))

        (site.directory / "crls" / "garbage.crl").write_text("garbage")
        refused = partial(re.findall, '"event": "material_refused"')
        until(lambda: len(refused(gateway.log())) == 2)  # of the policies `strict` and `open`
        assert "garbage.crl: not a certificate revocation list" in gateway.log()
        assert reasons() == ("revoked",)
        assert len(refused(gateway.log())) == 2  # said once, not every time it looks


def test_a_file_that_is_still_being_written_is_not_read(site: Site, refresh: Callable[[], None]) -> None:
    refresh()
    (site.directory / "crls" / "device-ca.crl.abc.part").write_bytes(b"0\x82")
    with GatewayProcess(site.config) as gateway:
        assert len(ages(gateway)) == 2
