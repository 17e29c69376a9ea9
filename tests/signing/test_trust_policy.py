"""The policy file: strict by default, and no mistake in it goes unnoticed."""

from __future__ import annotations

from pathlib import Path

import pytest

from signing import AllowedSigner, Binding, TrustError, TrustPolicy

REFERENCE = Path(__file__).parents[2] / "deploy/trust-policy.toml"


def test_the_reference_file_states_the_defaults() -> None:
    assert TrustPolicy.load(REFERENCE) == TrustPolicy()


def test_every_key_of_the_policy_stands_in_the_reference_file() -> None:
    text = REFERENCE.read_text()
    for key in (*TrustPolicy.__slots__, *AllowedSigner.__slots__, *Binding.__slots__):
        assert key in text


def test_tables_are_read(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(
        '[[allowed_signers]]\ncommon_name = "CT"\nonly_additional = true\nsop_classes = ["1.2"]\n'
        '[[bindings]]\ncalling_ae = "CT1"\nsigners = ["CT"]\n'
    )
    policy = TrustPolicy.load(path)
    assert policy.allowed_signers == (AllowedSigner(common_name="CT", only_additional=True, sop_classes=("1.2",)),)
    assert policy.bindings == (Binding(signers=("CT",), calling_ae="CT1"),)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("nonsense = 1", "nonsense"),
        ('required_profile = "everything"', "required_profile"),
        ('unsigned = "admit"', "unsigned"),
        ('mac = ["SHA256", "CRC32"]', "mac"),
        ("mac = []", "mac"),
        ('mac = "SHA256"', "mac"),
        ("min_rsa_bits = 512", "min_rsa_bits"),
        ('min_rsa_bits = "2048"', "min_rsa_bits"),
        ("min_rsa_bits = true", "min_rsa_bits"),
        ("age_s_max = -1", "age_s_max"),
        ('revocation = "off"', "revocation"),
        ('timestamp = "maybe"', "timestamp"),
        ('key_usage = ["signing"]', "key_usage"),
        ("required_eku = [1]", "required_eku"),
        ('required_eku = ["not an oid"]', "required_eku"),
        ('allowed_signers = "CT"', "allowed_signers"),
        ("[[allowed_signers]]\nonly_additional = true", "allowed_signers"),
        ('[[allowed_signers]]\nname = "CT"', "allowed_signers"),
        ('[[allowed_signers]]\nsubject = "no name"', "no name"),
        ('[[bindings]]\ncalling_ae = "CT1"', "bindings"),
        ("= 1", "policy.toml"),
    ],
)
def test_a_mistake_is_named(text: str, names: str, tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(text)
    with pytest.raises(TrustError, match=names):
        TrustPolicy.load(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrustError, match=r"none\.toml"):
        TrustPolicy.load(tmp_path / "none.toml")


def test_the_service_can_make_a_key_mandatory() -> None:
    with pytest.raises(TrustError, match="unsigned"):
        TrustPolicy.from_mapping({}, mandatory=frozenset(("unsigned",)))
    assert TrustPolicy.from_mapping({"unsigned": "quarantine"}, mandatory=frozenset(("unsigned",)))
