"""Revocation lists come from real servers over real sockets, and only what is better than the old is kept."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from gateway.cli import refreshing


def test_lists_come_from_the_addresses_that_certificates_name(site: Any) -> None:
    assert site.outcomes() == (0, [("Root CA", "written", ""), ("Device CA", "written", "")])
    assert len(site.stored()) == 2
    assert all(file.stat().st_mode & 0o777 == 0o644 for file in site.crls.iterdir())
    found = site.trust().revocation.status(site.scanner.certificate, site.device_ca.certificate, site.now, 604800)
    assert (found.known, found.revoked_at) == (True, None)


def test_what_did_not_change_is_not_written_again(site: Any) -> None:
    site.refresh()
    before = {file: file.stat().st_mtime_ns for file in site.crls.iterdir()}
    assert site.outcomes() == (0, [("Root CA", "unchanged", ""), ("Device CA", "unchanged", "")])
    assert {file: file.stat().st_mtime_ns for file in site.crls.iterdir()} == before


def test_a_newer_list_replaces_the_older_and_a_pem_file_is_as_good(site: Any) -> None:
    site.refresh()
    newer = x509.load_der_x509_crl(site.device_ca.crl(-5, revoked=site.scanner.certificate))
    site.server.answers["/device-ca.crl"] = site.plainly(newer.public_bytes(Encoding.PEM))
    assert site.outcomes()[1][1] == ("Device CA", "written", "")
    assert len(site.stored()) == 2
    found = site.trust().revocation.status(site.scanner.certificate, site.device_ca.certificate, site.now, 604800)
    assert found.revoked_at == site.minutes(-5)


@pytest.mark.parametrize(
    ("bad", "result", "word"),
    [
        (lambda site: site.plainly(b"<html>not found</html>"), "refused", "not a certificate revocation list"),
        (lambda site: site.plainly(b""), "refused", "not a certificate revocation list"),
        (lambda site: site.plainly(site.device_ca.crl(-5)[:-9]), "refused", "not a certificate revocation list"),
        (lambda site: site.plainly(site.root.crl(-5)), "refused", "not signed by the authority"),
        (lambda site: site.plainly(site.party("Device CA").crl(-5)), "refused", "not signed by the authority"),
        (lambda site: site.plainly(site.scanner.crl(-5)), "refused", "not signed by the authority"),
        (lambda site: site.plainly(site.device_ca.crl(-120)), "refused", "not newer than the list of"),
        (lambda site: site.plainly(site.device_ca.crl(-60, number=0)), "refused", "not newer than the list of"),
        (lambda site: site.plainly(site.device_ca.crl(60)), "refused", "in the future"),
        (lambda site: site.plainly(site.device_ca.crl(-5, number=2, delta=1)), "refused", "delta"),
        (lambda site: site.endless, "unreachable", "larger than 65536 bytes"),
        (lambda site: site.trickling, "unreachable", "not done after 0.5 s"),
        (lambda site: site.cut_off, "unreachable", "cut off"),
        (lambda site: site.status(500), "unreachable", "HTTP status 500"),
        (lambda site: site.status(302, "file:///etc/hostname"), "unreachable", "HTTP status 302"),
        (lambda site: site.status(302, "ftp://127.0.0.1/device-ca.crl"), "unreachable", "neither http nor https"),
    ],
    ids=[
        "page", "empty", "cut short", "another authority", "same name", "no authority", "older", "lower number",
        "future", "delta", "oversize", "slow", "cut off", "error", "file", "ftp",
    ],
)  # fmt: skip
def test_what_may_not_be_used_changes_nothing(
    site: Any, monkeypatch: pytest.MonkeyPatch, bad: Callable[[Any], Any], result: str, word: str
) -> None:
    monkeypatch.setattr(refreshing, "MATERIAL_BYTES_MAX", 65536)
    site.refresh()
    before = site.stored()
    site.server.answers["/device-ca.crl"] = site.server.answers["/mirror.crl"] = bad(site)
    code, [first, (about, found, detail)] = site.outcomes()
    assert (code, first) == (1, ("Root CA", "unchanged", ""))
    assert (about, found) == ("Device CA", result)
    assert word in detail
    assert site.stored() == before


def test_the_next_address_of_a_list_is_asked_when_the_first_fails(site: Any) -> None:
    site.server.answers["/mirror.crl"] = site.server.answers["/device-ca.crl"]
    site.server.answers["/device-ca.crl"] = site.status(503)
    assert site.outcomes() == (0, [("Root CA", "written", ""), ("Device CA", "written", "")])


def test_a_redirect_over_http_is_followed(site: Any) -> None:
    site.server.answers["/moved.crl"] = site.server.answers["/device-ca.crl"]
    site.server.answers["/device-ca.crl"] = site.status(301, site.server["/moved.crl"])
    assert site.outcomes()[0] == 0


def test_a_list_that_is_out_of_date_is_taken_for_its_revocations_and_reported(site: Any) -> None:
    site.server.answers["/device-ca.crl"] = site.plainly(
        site.device_ca.crl(-60, until=-1, revoked=site.scanner.certificate)
    )
    assert site.outcomes() == (1, [("Root CA", "written", ""), ("Device CA", "written", "out of date")])
    found = site.trust().revocation.status(site.scanner.certificate, site.device_ca.certificate, site.now, 604800)
    assert found.revoked_at == site.minutes(-60)


def test_a_newer_list_that_somebody_put_there_by_hand_is_not_undone(site: Any) -> None:
    (site.crls / "by-hand.crl").write_bytes(site.device_ca.crl(-1, revoked=site.scanner.certificate))
    code, [_, (_, result, detail)] = site.outcomes()
    assert (code, result) == (1, "refused")
    assert "not newer" in detail


def test_addresses_may_be_configured_and_are_asked_once(site: Any) -> None:
    urls = json.dumps([site.server[path] for path in ("/root.crl", "/device-ca.crl")])
    site.configure(refresh=f"{{ crl_urls = {urls} }}")
    assert site.outcomes() == (0, [("Root CA", "written", ""), ("", "written", "")])
    assert site.server.asked == ["/root.crl", "/device-ca.crl"]


def test_a_file_that_cannot_be_read_is_named(site: Any) -> None:
    (site.crls / "garbage.crl").write_bytes(b"garbage")
    code, [(_, result, detail), *rest] = site.outcomes()
    assert (code, result, len(rest)) == (1, "unreadable", 2)
    assert "garbage.crl: not a certificate revocation list" in detail


def test_a_person_reads_one_line_a_source(site: Any) -> None:
    site.server.answers["/device-ca.crl"] = site.status(404)
    lines = site.refresh().stdout.splitlines()
    issued = f"issued {site.minutes(-60):%Y-%m-%d %H:%M}Z"
    assert lines == [
        f"hospital: crl: Root CA {site.server['/root.crl']}: written ({issued})",
        f"hospital: crl: Device CA {site.server['/mirror.crl']}: unreachable (HTTP status 404)",
    ]


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"crls": '["root.pem"]'}, "trust.hospital.crls: none of them is a folder"),
        ({"crls": "[]"}, "no certificate names an http address"),
        ({"refresh": '{ crl_urls = ["ldap://x"] }'}, "trust.hospital.refresh.crl_urls.0: must begin with http"),
        ({"refresh": '{ certificates = ["policy.toml"] }'}, "trust.hospital.refresh.certificates: "),
        ({"roots": '["policy.toml"]'}, "trust.hospital: "),
        ({"policy": '"gone.toml"'}, "trust.hospital.policy: there is no file"),
    ],
    ids=["no folder", "nothing to do", "ldap", "no certificate", "no root", "no policy"],
)
def test_a_configuration_that_cannot_be_worked_with_is_2(site: Any, changes: dict[str, str], word: str) -> None:
    site.configure(**changes)
    ended = site.refresh("--json")
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert word in ended.stderr


def test_it_needs_nothing_of_the_gateway_but_the_trust_table(site: Any) -> None:
    """The process that talks to the network must not be able to read the gateway's keys."""
    keys = '[keys]\nreceipt = "gone.pem"\ncheckpoint = "gone.pem"\nquarantine = "gone.key"\n'
    site.config.write_text(keys + site.config.read_text())
    assert site.outcomes()[0] == 0


def test_without_once_it_goes_on_until_it_is_told_to_stop(site: Any) -> None:
    command = [sys.executable, "-m", "gateway.cli", "trust", "refresh", "--config", str(site.config), "--every", "1"]
    with subprocess.Popen([*command, "--json"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        passes = [json.loads(process.stdout.readline()) for _ in range(2)]
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert [[each["result"] for each in one["sources"]] for one in passes] == [["written"] * 2, ["unchanged"] * 2]
