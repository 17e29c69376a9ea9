"""Who may sign what, from where, and how long ago."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

import pytest
from cryptography.hazmat.primitives import hashes

import signing
from signing import (
    AllowedSigner,
    Binding,
    Reason,
    Source,
    TrustPolicy,
)
from signing.testing import Hospital

Verdict = tuple[Reason, dict[str, str], bool]
DAY = timedelta(days=1)


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ((AllowedSigner(common_name="CT Scanner 0001"),), Reason.OK),
        ((AllowedSigner(subject="CN=CT Scanner 0001,O=Scanward Demo Hospital"),), Reason.OK),
        ((AllowedSigner(issuer="CN=Scanward Demo Device CA,O=Scanward Demo Hospital"),), Reason.OK),
        ((AllowedSigner(common_name="CT Scanner 0001", sop_classes=("1.2.840.10008.5.1.4.1.1.2",)),), Reason.OK),
        ((AllowedSigner(common_name="MR Scanner 0001"),), Reason.SIGNER_NOT_ALLOWED),
        ((AllowedSigner(common_name="CT Scanner 0001", issuer="CN=Other"),), Reason.SIGNER_NOT_ALLOWED),
        ((AllowedSigner(common_name="CT Scanner 0001", sop_classes=("1.2.3",)),), Reason.SIGNER_NOT_ALLOWED),
        ((AllowedSigner(common_name="CT Scanner 0001", only_additional=True),), Reason.SIGNER_NOT_ALLOWED),
        ((), Reason.SIGNER_NOT_ALLOWED),
    ],
)
def test_only_allowed_signers_are_accepted(
    outcome: Callable[..., Verdict],
    entries: tuple[AllowedSigner, ...],
    expected: Reason,
    signed: bytes,
    hospital: Hospital,
    now: datetime,
) -> None:
    assert outcome(signed, hospital.trust(TrustPolicy(allowed_signers=entries)), now)[0] is expected


def test_a_signer_is_known_by_fingerprint(
    outcome: Callable[..., Verdict], signed: bytes, hospital: Hospital, now: datetime
) -> None:
    digits = hospital.certificate("ct").fingerprint(hashes.SHA256()).hex(":").upper()
    policy = TrustPolicy(allowed_signers=(AllowedSigner(fingerprint_sha256=digits),))
    assert outcome(signed, hospital.trust(policy), now)[0] is Reason.OK


CT1 = Source(calling_ae="CT1")


@pytest.mark.parametrize(
    ("binding", "source", "expected"),
    [
        (Binding(signers=("CT Scanner 0001",), modality="CT"), None, Reason.OK),
        (Binding(signers=("CT Scanner 0001",), calling_ae="CT1", manufacturer="GE MEDICAL SYSTEMS"), CT1, Reason.OK),
        (Binding(signers=("CT Scanner 0001",), calling_ae="CT1"), None, Reason.OK),
        (Binding(signers=("CT Scanner 0001",), calling_ae="CT2"), CT1, Reason.BINDING_MISMATCH),
        (Binding(signers=("CT Scanner 0001",), modality="MR"), None, Reason.BINDING_MISMATCH),
        (Binding(signers=("MR Scanner 0001",), modality="CT"), None, Reason.BINDING_MISMATCH),
        (Binding(signers=("CT Scanner 0001",), tls_subject="CN=ct1"), CT1, Reason.BINDING_MISMATCH),
    ],
)
def test_a_source_is_bound_to_its_signers(
    outcome: Callable[..., Verdict],
    binding: Binding,
    source: Source | None,
    expected: Reason,
    signed: bytes,
    hospital: Hospital,
    now: datetime,
) -> None:
    assert outcome(signed, hospital.trust(TrustPolicy(bindings=(binding,))), now, source)[0] is expected


@pytest.mark.parametrize(("age", "expected"), [(100, Reason.OK), (4000, Reason.TOO_OLD), (-4000, Reason.NOT_YET_VALID)])
def test_a_stale_signature_is_not_fresh(
    outcome: Callable[..., Verdict], age: int, expected: Reason, ct: bytes, hospital: Hospital, now: datetime
) -> None:
    signed = signing.sign(ct, signer=hospital.signer("ct"), at=now - timedelta(seconds=age))
    reason, checks, _ = outcome(signed, hospital.trust(TrustPolicy(age_s_max=3600)), now)
    assert (reason, checks["freshness"]) == (expected, "passed" if expected is Reason.OK else "failed")
