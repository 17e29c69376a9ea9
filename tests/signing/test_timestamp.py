"""Time stamps: they keep a signature, and one that is there and wrong breaks it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtensionOID

import signing
from signing import (
    Reason,
    TrustPolicy,
    read,
)
from signing.testing import Hospital

Verdict = tuple[Reason, dict[str, str], bool]
DAY = timedelta(days=1)


def test_a_time_stamp_keeps_a_signature_beyond_its_certificate(
    outcome: Callable[..., Verdict], ct: bytes, ward: Hospital, now: datetime
) -> None:
    later = now + 5000 * DAY
    plain = signing.sign(ct, signer=ward.signer("ct"), at=now)
    stamped = signing.sign(ct, signer=ward.signer("ct"), at=now, tsa=ward.authority(lambda: now))
    trust = ward.trust(TrustPolicy(revocation="unsafe_off"))
    assert outcome(plain, trust, later)[0] is Reason.EXPIRED
    assert outcome(stamped, trust, later)[0] is Reason.OK
    assert signing.verify(read(stamped), trust, at=later).timestamp == now


@pytest.mark.parametrize(("revoked_after", "expected"), [(1, Reason.OK), (-1, Reason.REVOKED)])
def test_a_revocation_counts_from_its_date_against_the_time_stamp(
    outcome: Callable[..., Verdict], revoked_after: int, expected: Reason, ct: bytes, ward: Hospital, now: datetime
) -> None:
    stamped = signing.sign(ct, signer=ward.signer("ct"), at=now, tsa=ward.authority(lambda: now))
    ward.issue_crls(now=now + 3 * DAY, revoked={"ct": now + revoked_after * DAY})
    assert outcome(stamped, ward.trust(), now + 3 * DAY)[0] is expected


def test_a_time_stamp_can_be_required(
    outcome: Callable[..., Verdict], signed: bytes, hospital: Hospital, now: datetime
) -> None:
    reason, checks, _ = outcome(signed, hospital.trust(TrustPolicy(timestamp="required")), now)
    assert (reason, checks["timestamp"]) == (Reason.TIMESTAMP_MISSING, "failed")


class Forger:
    """Stamps with whatever it is told."""

    def __init__(self, make: Callable[[bytes], bytes]) -> None:
        self._make = make

    def stamp(self, signature: bytes) -> bytes:
        return self._make(signature)


class Endless(datetime):
    """A time whose fraction reads as infinite seconds."""

    def astimezone(self, _: object = None) -> Endless:
        return self

    def strftime(self, _: str) -> str:
        return "20260301000000.1e999Z"


def with_unknown_names(hospital: Hospital) -> x509.Certificate:
    """One that anybody can make: its alternative name is of a kind that the library gives up on (x400Address)."""
    key, model = hospital.key("mr"), hospital.certificate("tsa")
    names = x509.UnrecognizedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, b"\x30\x04\xa3\x02\x05\x00")
    builder = x509.CertificateBuilder(model.subject, model.subject, key.public_key(), 5)
    builder = builder.not_valid_before(model.not_valid_before_utc).not_valid_after(model.not_valid_after_utc)
    return builder.add_extension(names, critical=False).sign(key, hashes.SHA256())


def test_a_time_stamp_that_is_there_and_wrong_always_fails(
    outcome: Callable[..., Verdict], ct: bytes, hospital: Hospital, now: datetime
) -> None:
    authority = hospital.authority(lambda: now)
    wrong_key = signing.testing.LocalAuthority(hospital.certificate("tsa"), hospital.key("mr"), lambda: now)
    not_one = signing.testing.LocalAuthority(hospital.certificate("mr"), hospital.key("mr"), lambda: now)
    for make in (
        lambda _: b"garbage!",
        lambda _: authority.stamp(b"another signature"),
        lambda value: authority.stamp(value)[:-4],
        lambda value: authority.stamp(value) + b"\0\0",
        lambda value: b"\x30\x84\xff\xff\xff\xff" + authority.stamp(value),
        wrong_key.stamp,
        not_one.stamp,
        hospital.authority(lambda: now + DAY).stamp,
        hospital.authority(lambda: Endless(2026, 3, 1)).stamp,
        signing.testing.LocalAuthority(with_unknown_names(hospital), hospital.key("mr"), lambda: now).stamp,
    ):
        stamped = signing.sign(ct, signer=hospital.signer("mr"), at=now, tsa=Forger(make))
        reason, checks, _ = outcome(stamped, hospital.trust(), now)
        assert (reason, checks["crypto"], checks["timestamp"]) == (Reason.TIMESTAMP_INVALID, "passed", "failed")
