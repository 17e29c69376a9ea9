"""OCSP responses come from a real responder that signs them, and only what is better than the old is kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID


@pytest.fixture(autouse=True)
def responders(site: Any) -> None:
    site.configure(crls="[]", ocsp='["ocsp"]', refresh='{ certificates = ["scanner.pem"] }')
    site.server.answers["/ocsp/root"] = site.responder(site.root, site.root, site.device_ca)
    site.server.answers["/ocsp/device-ca"] = site.responder(site.device_ca, site.device_ca, site.scanner)


def test_each_certificate_is_asked_after(site: Any) -> None:
    assert site.outcomes() == (0, [("Device CA", "written", ""), ("CT Scanner 0001", "written", "")])
    for certificate, issuer in ((site.device_ca, site.root), (site.scanner, site.device_ca)):
        found = site.trust().revocation.status(certificate.certificate, issuer.certificate, site.now, 604800)
        assert (found.known, found.revoked_at, found.detail) == (True, None, "OCSP")


def test_a_certified_responder_is_believed(site: Any) -> None:
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.OCSP_SIGNING])
    delegate = site.party("Responder", site.device_ca, usage, ca=False)
    site.server.answers["/ocsp/device-ca"] = site.responder(delegate, site.device_ca, site.scanner)
    assert site.outcomes()[0] == 0


def test_a_newer_answer_replaces_the_older_and_says_revoked(site: Any) -> None:
    site.refresh()
    revoked = site.responder(site.device_ca, site.device_ca, site.scanner, at=-5, word=ocsp.OCSPCertStatus.REVOKED)
    site.server.answers["/ocsp/device-ca"] = revoked
    assert site.outcomes()[1][1] == ("CT Scanner 0001", "written", "")
    assert len(site.stored(site.responses)) == 2
    found = site.trust().revocation.status(site.scanner.certificate, site.device_ca.certificate, site.now, 604800)
    assert found.revoked_at == site.minutes(-5)


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        (lambda site: site.plainly(b"garbage"), "not an OCSP response"),
        (
            lambda site: site.plainly(
                ocsp.OCSPResponseBuilder.build_unsuccessful(ocsp.OCSPResponseStatus.TRY_LATER).public_bytes(
                    Encoding.DER
                )
            ),
            "try_later",
        ),
        (lambda site: site.responder(site.party("X"), site.device_ca, site.scanner, at=-5), "no word"),
        (lambda site: site.responder(site.scanner, site.device_ca, site.scanner, at=-5), "no word"),
        (
            lambda site: site.plainly(
                site.device_ca.ocsp(site.party("Y", site.device_ca).certificate, site.device_ca.certificate, -5)
            ),
            "no word",
        ),
        (
            lambda site: site.responder(
                site.device_ca, site.device_ca, site.scanner, at=-5, word=ocsp.OCSPCertStatus.UNKNOWN
            ),
            "no word",
        ),
        (lambda site: site.responder(site.device_ca, site.device_ca, site.scanner, at=-90), "not newer"),
        (lambda site: site.responder(site.device_ca, site.device_ca, site.scanner, at=90), "in the future"),
    ],
    ids=["garbage", "try later", "stranger", "the certificate itself", "another", "unknown", "older", "future"],
)
def test_what_may_not_be_used_changes_nothing(site: Any, bad: Callable[[Any], Any], word: str) -> None:
    site.refresh()
    before = site.stored(site.responses)
    site.server.answers["/ocsp/device-ca"] = bad(site)
    code, [_, (_, result, detail)] = site.outcomes()
    assert (code, result) == (1, "refused")
    assert word in detail
    assert site.stored(site.responses) == before


def test_an_answer_that_was_replaced_may_not_come_back(site: Any) -> None:
    """Even while the file of the old one is still there."""
    old = site.device_ca.ocsp(site.scanner.certificate, site.device_ca.certificate, -90)
    (site.responses / "by-hand.der").write_bytes(old)
    site.refresh()
    site.server.answers["/ocsp/device-ca"] = site.plainly(old)
    assert site.outcomes()[1][1][1] == "refused"
