"""A gateway that runs does with its log what its configuration says."""

from __future__ import annotations

import socket
import ssl
import time
from datetime import UTC, datetime, timedelta

import pytest

from gateway.app.assembly import AUDIT_LOG, CHECKPOINT
from gateway.app.keys import Keys
from gateway.app.life import check
from gateway.audit.log import AuditLog
from gateway.audit.places import open_reader
from gateway.audit.record import Started
from gateway.audit.sqlite import SqliteSink
from gateway.audit.verify import AuditReport, verify
from gateway.errors import ConfigError
from gateway.settings.config import Config
from gateway.telemetry.metrics import Metrics
from gateway.testing import GatewayProcess, Site, write_certificate


def _with(site: Site, audit: str) -> Site:
    site.config.write_text(site.config.read_text() + f"\n[audit]\n{audit}\n")
    return site


def _written_long_ago(site: Site, records: int) -> list:
    """A log of ten days ago where the site's gateway will find it; returns its public keys."""
    config = Config.load(site.config)
    keys, data = Keys.load(config.keys), config.storage.directory
    log = AuditLog(
        SqliteSink(data / AUDIT_LOG),
        keys.checkpoint,
        metrics=Metrics(),
        checkpoint_file=data / CHECKPOINT,
        clock=lambda: datetime.now(UTC) - timedelta(days=10),
    )
    for number in range(records):
        log.append(Started(f"old-{number}", "test")).result()
    log.close()
    return list(keys.checkpoints)


@pytest.mark.parametrize(("days", "pruned"), [(30, 0), (7, 5)])
def test_a_gateway_keeps_records_for_as_long_as_it_is_told(tmp_path, days, pruned):
    site = _with(Site.make(tmp_path / "site"), f"retention_days_max = {days}\ncheckpoint_s = 0.2")
    keys = _written_long_ago(site, 5)

    def report() -> AuditReport:
        with open_reader(str(site.directory / "data" / AUDIT_LOG)) as log:
            return verify(log, keys)

    with GatewayProcess(site.config):
        while report().pruned < pruned:
            time.sleep(0.1)
    found = report()
    assert (found.ok, found.pruned) == (True, pruned)


def test_a_gateway_tells_its_collectors_what_it_records(tmp_path):
    site = Site.make(tmp_path / "site")
    authority = write_certificate(tmp_path / "site", "ca", None)
    for name in ("collector", "gateway"):
        write_certificate(tmp_path / "site", name, authority)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(site.directory / "ca.pem"))
    tls.verify_mode = ssl.CERT_REQUIRED
    tls.load_cert_chain(site.directory / "collector.pem", site.directory / "collector.key")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        _with(
            site,
            '[[audit.collectors]]\nname = "arr"\nroots = "ca.pem"\nsource_id = "gateway-1"\n'
            'certificate = "gateway.pem"\nprivate_key = "gateway.key"\n'
            f'address = "127.0.0.1:{listener.getsockname()[1]}"',
        )
        with GatewayProcess(site.config), tls.wrap_socket(listener.accept()[0], server_side=True) as connection:
            heard = b""
            while more := connection.recv(65536):
                heard += more
            connection.unwrap()
            listener.close()
    assert b'AuditSourceID="gateway-1"' in heard
    assert b'csd-code="110120"' in heard  # Application Start


def test_check_config_reads_a_collectors_certificates(tmp_path):
    site = Site.make(tmp_path / "site")
    write_certificate(site.directory, "gateway", None)
    (site.directory / "ca.pem").write_text("nothing")
    _with(
        site,
        '[[audit.collectors]]\nname = "arr"\nroots = "ca.pem"\nsource_id = "gateway-1"\naddress = "127.0.0.1:6514"\n'
        'certificate = "gateway.pem"\nprivate_key = "gateway.key"',
    )
    with pytest.raises(ConfigError, match="arr: certificates cannot be used"):
        check(Config.load(site.config))
