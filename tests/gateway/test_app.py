"""A gateway process from start to stop: what it refuses to start with, what a reload changes, how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pydicom.data import get_testdata_file

from gateway.api.v1 import gateway_pb2 as pb
from gateway.api.v1 import gateway_pb2_grpc as rpc
from gateway.app import preconditions
from gateway.app.assembly import AUDIT_LOG, effective_policy
from gateway.app.plan import Plan
from gateway.audit.sqlite import SqliteReader
from gateway.client.client import Client, ClientError
from gateway.errors import ConfigError
from gateway.settings.config import Config
from gateway.testing import GatewayFailed, GatewayProcess, Site

CT = Path(str(get_testdata_file("CT_small.dcm")))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site.make(tmp_path_factory.mktemp("app"))


@pytest.fixture(scope="module")
def gateway(site: Site) -> Iterator[GatewayProcess]:
    """One process for all that only look at it, or put back what they change."""
    with GatewayProcess(site.config) as process:
        yield process


@pytest.fixture
def own(tmp_path: Path) -> Site:
    """A site that a test may start and stop as it likes."""
    return Site.make(tmp_path / "own")


def disposition(site: Site, gateway: GatewayProcess, route: str = "open", source: str = "scanner") -> str:
    with Client(gateway.addresses.grpc, token=site.tokens[source]) as client:
        return client.protect(CT, route).disposition


def reload(gateway: GatewayProcess) -> str:
    """Have the configuration read again; returns what came of it, `serving` or `reload_refused`."""
    before = gateway.log()
    gateway.reload()
    for _ in range(1000):
        since = gateway.log()[len(before) :]
        if found := re.search(r'"event": "(serving|reload_refused)"', since):
            return found[1]
        time.sleep(0.02)
    raise AssertionError(f"no word of a reload in {gateway.log()}")


def kinds(site: Site) -> list[str]:
    with SqliteReader(site.directory / "data" / AUDIT_LOG) as log:
        return [json.loads(body)["kind"] for _, body, _ in log.entries() if isinstance(body, bytes)]


def test_it_is_ready_when_it_says_so(site: Site, gateway: GatewayProcess) -> None:
    with grpc.insecure_channel(gateway.addresses.grpc) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        for service in ("", "ready"):
            answer = check(health_pb2.HealthCheckRequest(service=service), timeout=10)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_metrics_are_served_and_count_the_unsafe_setting(site: Site, gateway: GatewayProcess) -> None:
    assert disposition(site, gateway) == "admit"
    text = urllib.request.urlopen(f"http://{gateway.addresses.metrics}/metrics", timeout=10).read().decode()
    assert 'scanward_scans_total{disposition="admit",modality="CT",receiver="grpc"} 1.0' in text
    assert 'scanward_unsafe_admissions_total{setting="signature.unsigned"} 1.0' in text


def test_it_stops_with_a_checkpoint_over_every_record_and_answers_alike_after_a_restart(own: Site) -> None:
    receipts = []
    for _ in range(2):
        with GatewayProcess(own.config) as gateway:
            with Client(gateway.addresses.grpc, token=own.tokens["scanner"]) as client:
                receipts.append(client.protect(CT, "open").receipt)
            assert gateway.stop() == 0
    assert receipts[0] == receipts[1]
    assert kinds(own) == ["started", "decided", "answered", "started"]
    database = sqlite3.connect(own.directory / "data" / AUDIT_LOG)
    assert database.execute("SELECT max(size) FROM checkpoints").fetchone() == (4,)
    database.close()


def test_a_call_in_progress_is_finished_before_it_stops(own: Site) -> None:
    told_to_stop = threading.Event()

    def parts() -> Iterator[pb.ProtectChunk]:
        yield pb.ProtectChunk(begin=pb.Begin(route="open"))
        yield pb.ProtectChunk(data=CT.read_bytes()[:1000])
        told_to_stop.wait(30)
        yield pb.ProtectChunk(data=CT.read_bytes()[1000:])
        yield pb.ProtectChunk(end=pb.End())

    metadata = (("authorization", f"Bearer {own.tokens['scanner']}"),)
    with GatewayProcess(own.config) as gateway, grpc.insecure_channel(gateway.addresses.grpc) as channel:
        stub = rpc.ProtectionGatewayStub(channel)
        stub.Protect(pb.ProtectRequest(route="open"), metadata=metadata)
        call = stub.ProtectStream.future(parts(), metadata=metadata, timeout=60)
        while gateway.log().count("stopping") == 0:
            time.sleep(0.2)  # first so that the stream has begun
            os.kill(gateway.pid, signal.SIGTERM)
        with pytest.raises(grpc.RpcError):
            stub.Protect(pb.ProtectRequest(route="open"), metadata=metadata)
        told_to_stop.set()
        assert call.result().disposition == pb.DISPOSITION_ADMIT
        assert gateway.stop() == 0
    assert kinds(own)[-2:] == ["decided", "answered"]


def test_a_second_gateway_on_the_same_records_does_not_start(site: Site, gateway: GatewayProcess) -> None:
    with pytest.raises(GatewayFailed, match=r"(?s)exit code 2.*another process"), GatewayProcess(site.config):
        pass


class TestReload:
    """SIGHUP changes policy, trust and sources together, or nothing."""

    @pytest.fixture(autouse=True)
    def put_back(self, site: Site, gateway: GatewayProcess) -> Iterator[None]:
        files = (site.config, site.directory / "unsafe_admit.toml")
        before = [file.read_text() for file in files]
        yield
        for file, text in zip(files, before, strict=True):
            file.write_text(text)
        assert reload(gateway) == "serving"
        assert disposition(site, gateway) == "admit"

    def test_a_new_policy_holds_for_the_next_call(self, site: Site, gateway: GatewayProcess) -> None:
        site.config.write_text(site.config.read_text().replace('unsigned = "unsafe_admit"', 'unsigned = "quarantine"'))
        started = kinds(site).count("started")
        assert reload(gateway) == "serving"
        assert disposition(site, gateway) == "quarantine"
        assert kinds(site).count("started") == started + 1

    def test_a_new_trust_policy_holds_too(self, site: Site, gateway: GatewayProcess) -> None:
        (site.directory / "unsafe_admit.toml").write_text('unsigned = "reject"\n')
        assert reload(gateway) == "serving"
        assert disposition(site, gateway) == "reject"

    def test_a_source_that_was_taken_out_may_no_longer_call(self, site: Site, gateway: GatewayProcess) -> None:
        text = site.config.read_text()
        site.config.write_text(text[: text.index('[[sources]]\nname = "reviewer"')])
        assert reload(gateway) == "serving"
        assert disposition(site, gateway) == "admit"
        with pytest.raises(ClientError, match="UNAUTHENTICATED"):
            disposition(site, gateway, source="reviewer")

    @pytest.mark.parametrize(
        ("old", "new", "key"),
        [
            ('unsigned = "unsafe_admit"', 'unsigned = "admit"', "policy.signature.unsigned"),
            ("threads = 8", "threads = 9", "receivers: changes only with a restart"),
            ('roots = ["pki/root.pem"]', 'roots = ["reject.toml"]', "trust.strict"),
        ],
    )
    def test_a_mistake_keeps_what_was_there(
        self, site: Site, gateway: GatewayProcess, old: str, new: str, key: str
    ) -> None:
        site.config.write_text(site.config.read_text().replace(old, new))
        assert reload(gateway) == "reload_refused"
        assert key in gateway.log()
        assert disposition(site, gateway) == "admit"


def test_it_does_not_start_with_a_mistake_and_names_it(own: Site) -> None:
    (own.directory / "keys" / "receipt.pem").write_text("no key")
    with pytest.raises(GatewayFailed, match=r"(?s)exit code 2.*keys\.receipt: "), GatewayProcess(own.config):
        pass


def test_it_does_not_start_where_another_distribution_owns_its_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    owners = {"gateway": ["scanward", "some-gateway"], "detectors": ["scanward"], "numpy": ["numpy"]}
    monkeypatch.setattr(preconditions, "packages_distributions", lambda: owners)
    with pytest.raises(ConfigError) as caught:
        preconditions.refuse_foreign_owners()
    assert caught.value.problems == ["the package 'gateway' belongs to some-gateway as well: uninstall it"]


def test_no_other_distribution_here_owns_its_packages() -> None:
    preconditions.refuse_foreign_owners()


@pytest.mark.parametrize(
    ("service", "trust", "worse"),
    [
        ("unsafe_admit", "unsafe_admit", "unsafe_admit"),
        ("unsafe_admit", "quarantine", "quarantine"),
        ("unsafe_admit", "reject", "reject"),
        ("quarantine", "unsafe_admit", "quarantine"),
        ("reject", "quarantine", "reject"),
    ],
)
def test_of_two_words_about_unsigned_scans_the_worse_holds(own: Site, service: str, trust: str, worse: str) -> None:
    own.config.write_text(own.config.read_text().replace('unsigned = "unsafe_admit"', f'unsigned = "{service}"'))
    (own.directory / "unsafe_admit.toml").write_text(f'unsigned = "{trust}"\n')
    plan = Plan.of(Config.load(own.config))
    assert effective_policy(plan, "open").signature.unsigned == worse


def test_the_trust_digest_follows_the_content_and_not_the_names_of_files(own: Site) -> None:
    before = Plan.of(Config.load(own.config)).trusts["strict"].sha256
    pki = own.directory / "pki"
    (pki / "anchor.pem").write_bytes((pki / "root.pem").read_bytes())
    own.config.write_text(own.config.read_text().replace("root.pem", "anchor.pem"))
    assert Plan.of(Config.load(own.config)).trusts["strict"].sha256 == before
    own.hospital.issue_crls()
    assert Plan.of(Config.load(own.config)).trusts["strict"].sha256 != before
