"""Every conformance vector gets its verdict and its reason."""

from __future__ import annotations

import json
import os
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import signing
from signing import DicomError, Reason, SignatureError, Trust, TrustPolicy

SHARED = Path(os.environ.get("SCANWARD_SHARED", Path(__file__).parents[2] / "../shared")).resolve()
VECTORS = SHARED / "data/signing-vectors"
MANIFEST: dict[str, Any] = (
    json.loads((VECTORS / "manifest.json").read_text()) if (VECTORS / "manifest.json").exists() else {"vectors": []}
)
CRYPTO = {"valid": "passed", "invalid": "failed"}

pytestmark = pytest.mark.skipif(not MANIFEST["vectors"], reason="needs shared data: signing-vectors")


def policy_of(vector: dict[str, Any]) -> TrustPolicy:
    """The manifest's policy block, in the words of our policy file."""
    stated = MANIFEST["policy"]
    radiologist = "Dr Example Radiologist"
    names = [name for name in stated["allowed_signers_cn"] if not name.startswith(radiologist)]
    return TrustPolicy.from_mapping(
        {
            "required_profile": vector.get("profile", "inference"),
            "min_rsa_bits": stated["min_rsa_bits"],
            "mac": stated["mac"],
            "key_usage": stated["key_usage"],
            "required_eku": [stated["required_eku"]],
            "revocation": stated["revocation"],
            "revocation_age_s_max": 10 * 366 * 86400,  # the vectors' lists were issued in 2020
            "timestamp": "required" if "if_timestamp_required" in vector["policy"] else "if-present",
            "allowed_signers": [
                *({"common_name": name} for name in names),
                {"common_name": radiologist, "only_additional": True},
            ],
        }
    )


@cache
def material() -> Trust:
    at = {key: [VECTORS / name for name in MANIFEST[key]] for key in ("trust_roots", "intermediates", "crls")}
    return Trust.load(TrustPolicy(), at["trust_roots"], at["intermediates"], at["crls"])


def verdict(vector: dict[str, Any]) -> tuple[str, Reason, str]:
    shared = material()
    trust = Trust(policy_of(vector), shared.roots, shared.intermediates, shared.revocation)
    at = datetime.fromisoformat(MANIFEST["validation_time"])
    try:
        verified = signing.verify(signing.read((VECTORS / vector["file"]).read_bytes()), trust, at=at)
    except DicomError as error:
        return "not_run", error.reason, error.detail
    except SignatureError as error:
        return error.checks["crypto"], error.reason, error.detail
    return verified.checks["crypto"], Reason.OK, ""


@pytest.mark.parametrize("vector", MANIFEST["vectors"], ids=lambda vector: vector["file"])
def test_a_vector_gets_the_verdict_and_reason_of_the_manifest(vector: dict[str, Any]) -> None:
    crypto, reason, detail = verdict(vector)

    assert (reason, vector["policy"] == "accept") == (Reason(vector["reason"]), reason is Reason.OK), detail
    if vector["crypto"] in CRYPTO:
        assert crypto == CRYPTO[vector["crypto"]], detail
