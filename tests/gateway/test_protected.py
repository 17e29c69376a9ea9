"""A protected model is served only with detectors that a known key vouches for."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from detectors.models.served import CARD, Card
from gateway.errors import ConfigError
from gateway.protected import MANIFEST, MANIFEST_ENVELOPE, MANIFEST_TYPE, ProtectedModel
from gateway.settings.models import KServeConfig, ModelConfig
from gateway.settings.policy import DetectionPolicy, PolicyConfig, RuleConfig, SignaturePolicy
from gateway.settings.trust import ArtefactTrust
from signing import envelope

KEY, OTHER = (Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in (1, 2))
PROFILE = b"""
name = "m"
version = "1"
task = "multiclass"
classes = ["a", "b"]
[input]
name = "x"
layout = "NCHW"
channels = 1
size = [4, 6]
range = [0, 1]
"""


def manifest(**changes: Any) -> bytes:
    return json.dumps({"guarantee": "confident", "fpr": 0.01, "n_b": 320, "detectors": {"uad": {}}, **changes}).encode()


def policy(**changes: Any) -> PolicyConfig:
    return PolicyConfig(
        indeterminate="quarantine",
        unexaminable="quarantine",
        signature=SignaturePolicy(failed="reject", unsigned="reject", stripped="reject"),
        detection=DetectionPolicy(
            false_positive_rate=changes.get("rate", 0.01),
            suspect="reject",
            denoise="if_agree" if "grey_p" in changes else "never",
            grey_p=changes.get("grey_p"),
        ),
        rules=(
            RuleConfig(
                name="r", disposition="reject", detectors={changes.get("detector", "uad"): changes.get("p", 0.01)}
            ),
        ),
    )


@pytest.fixture
def config(tmp_path: Path) -> ModelConfig:
    (tmp_path / "profile.toml").write_bytes(PROFILE)
    (tmp_path / "model.onnx").write_bytes(b"model")
    (tmp_path / "detectors").mkdir()
    seal(tmp_path / "detectors", manifest())
    return ModelConfig(
        profile=tmp_path / "profile.toml", model=tmp_path / "model.onnx", detectors=tmp_path / "detectors"
    )


def seal(directory: Path, payload: bytes, key: Ed25519PrivateKey = KEY, kind: str = MANIFEST_TYPE) -> None:
    (directory / MANIFEST).write_bytes(payload)
    (directory / MANIFEST_ENVELOPE).write_bytes(envelope.seal(payload, kind, key))


def trust(tmp_path: Path, **settings: bool) -> ArtefactTrust:
    pem = tmp_path / "key.pub"
    pem.write_bytes(KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return ArtefactTrust(public_keys=(pem,), **settings)


@pytest.mark.parametrize(
    ("said", "gradients"), [({}, True), ({"gradients": True}, True), ({"gradients": False}, False)]
)
def test_a_gradient_free_artefact_is_known_as_one(
    config: ModelConfig, tmp_path: Path, said: dict[str, bool], gradients: bool
) -> None:
    seal(config.detectors, manifest(**said))

    assert ProtectedModel.load("m", config, trust(tmp_path)).gradients is gradients


def test_reads_each_part_once_and_names_it_by_digest(config: ModelConfig, tmp_path: Path) -> None:
    model = ProtectedModel.load("ct", config, trust(tmp_path))
    assert model.shape == (1, 4, 6)
    assert model.model_sha256 == hashlib.sha256(b"model").hexdigest()
    assert model.artefact_sha256 == hashlib.sha256(manifest()).hexdigest()
    assert (model.guarantee, model.false_positive_rate) == ("confident", 0.01)


def test_it_says_whether_a_detector_draws_at_random(config: ModelConfig, tmp_path: Path) -> None:
    assert not ProtectedModel.load("ct", config, trust(tmp_path)).random
    seal(config.detectors, manifest(detectors={"uad": {"random": False}, "noise6_0": {"random": True}}))
    assert ProtectedModel.load("ct", config, trust(tmp_path)).random


def test_only_what_was_signed_is_served(config: ModelConfig, tmp_path: Path) -> None:
    """The manifest beside the envelope is for people, and need not be there."""
    (config.detectors / MANIFEST).unlink()
    assert ProtectedModel.load("ct", config, trust(tmp_path)).manifest == manifest()


@pytest.mark.parametrize("unsafe", [False, True])
def test_people_are_not_shown_another_manifest_than_the_signed_one(
    config: ModelConfig, tmp_path: Path, unsafe: bool
) -> None:
    (config.detectors / MANIFEST).write_bytes(manifest(fpr=0.5))
    with pytest.raises(
        ConfigError, match=r"models\.ct\.detectors: manifest\.json is not what manifest\.dsse\.json holds"
    ):
        ProtectedModel.load("ct", config, trust(tmp_path, unsafe_unsigned_artefacts=unsafe))


@pytest.mark.parametrize("change", ["another key", "another type", "no envelope", "no JSON"])
def test_what_no_known_key_signed_is_refused(change: str, config: ModelConfig, tmp_path: Path) -> None:
    directory = config.detectors
    if change == "another key":
        seal(directory, manifest(), OTHER)
    elif change == "another type":
        seal(directory, manifest(), kind="application/vnd.in-toto+json")
    elif change == "no envelope":
        (directory / MANIFEST_ENVELOPE).unlink()
    else:
        (directory / MANIFEST_ENVELOPE).write_bytes(b"{")
    with pytest.raises(ConfigError, match=r"models\.ct\.detectors"):
        ProtectedModel.load("ct", config, trust(tmp_path))


def test_an_unsigned_artefact_needs_its_unsafe_setting(config: ModelConfig, tmp_path: Path) -> None:
    (config.detectors / MANIFEST_ENVELOPE).unlink()
    model = ProtectedModel.load("ct", config, trust(tmp_path, unsafe_unsigned_artefacts=True))
    assert model.manifest == manifest()


def test_that_setting_excuses_no_bad_signature(config: ModelConfig, tmp_path: Path) -> None:
    seal(config.detectors, manifest(), OTHER)
    with pytest.raises(ConfigError):
        ProtectedModel.load("ct", config, trust(tmp_path, unsafe_unsigned_artefacts=True))


def test_a_marginal_guarantee_needs_its_unsafe_setting(config: ModelConfig, tmp_path: Path) -> None:
    seal(config.detectors, manifest(guarantee="marginal"))
    with pytest.raises(ConfigError, match="unsafe_marginal_guarantee"):
        ProtectedModel.load("ct", config, trust(tmp_path))
    model = ProtectedModel.load("ct", config, trust(tmp_path, unsafe_marginal_guarantee=True))
    assert model.guarantee == "marginal"


@pytest.mark.parametrize("payload", [b"[]", b"{}", b"nothing", manifest(fpr="often"), manifest(n_b=0)])
def test_a_malformed_manifest_is_refused(payload: bytes, config: ModelConfig, tmp_path: Path) -> None:
    seal(config.detectors, payload)
    with pytest.raises(ConfigError, match="manifest"):
        ProtectedModel.load("ct", config, trust(tmp_path))


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"rate": 0.001}, "policy.detection.false_positive_rate"),
        ({"grey_p": 0.05}, "policy.detection.denoise"),
        ({"detector": "gone"}, "policy.rules.0.detectors.gone"),
        ({"p": 0.009}, "policy.rules.0.detectors.uad"),  # 320 clean scans, the smallest rank is 0.0093
    ],
)
def test_a_policy_may_not_ask_detectors_for_what_they_cannot_say(
    config: ModelConfig, tmp_path: Path, changes: dict[str, Any], key: str
) -> None:
    model = ProtectedModel.load("m", config, trust(tmp_path))
    model.require_fit_for(policy(), "policy")
    with pytest.raises(ConfigError) as caught:
        model.require_fit_for(policy(**changes), "policy")
    assert [problem.split(": ")[0] for problem in caught.value.problems] == [key]


class TestAModelThatOnlyAServerHas:
    """No file of it is here: what stands for it is the card that the manifest binds."""

    WRITTEN = Card(
        {"inputs": [{"shape": [1, 1, 4, 6]}]}, "", (0.0,), (1.0,), (4, 6), 3, (2,), (0.5, -0.5), 0.01
    ).written()

    @staticmethod
    def served(config: ModelConfig, card: bytes, **changes: Any) -> ModelConfig:
        (config.detectors / CARD).write_bytes(card)
        seal(config.detectors, manifest(model_sha256=hashlib.sha256(card).hexdigest()))
        server = {"address": "127.0.0.1:1", "model": "m", "unsafe_plaintext": True, "images_max": 1} | changes
        return config.model_copy(update={"model": None, "kserve": KServeConfig.model_validate(server)})

    def test_its_card_is_what_is_bound(self, config: ModelConfig, tmp_path: Path) -> None:
        model = ProtectedModel.load("m", self.served(config, self.WRITTEN), trust(tmp_path))

        assert model.served_only
        assert model.onnx == self.WRITTEN
        assert model.model_sha256 == hashlib.sha256(self.WRITTEN).hexdigest()

    def test_a_card_that_was_changed_is_refused(self, config: ModelConfig, tmp_path: Path) -> None:
        found = self.served(config, self.WRITTEN)
        (found.detectors / CARD).write_bytes(self.WRITTEN.replace(b"0.01", b"9.00"))

        with pytest.raises(ConfigError, match=r"remote\.json is not the one that was fitted for"):
            ProtectedModel.load("m", found, trust(tmp_path))

    def test_what_is_no_card_is_refused(self, config: ModelConfig, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="not a card"):
            ProtectedModel.load("m", self.served(config, b'{"scanward_remote_model":1}'), trust(tmp_path))

    def test_detectors_of_a_file_want_that_file(self, config: ModelConfig, tmp_path: Path) -> None:
        found = self.served(config, self.WRITTEN)
        (found.detectors / CARD).unlink()

        with pytest.raises(ConfigError, match=r"models\.m\.model: required"):
            ProtectedModel.load("m", found, trust(tmp_path))

    def test_a_model_that_takes_one_image_at_a_time_is_not_asked_about_many(
        self, config: ModelConfig, tmp_path: Path
    ) -> None:
        with pytest.raises(ConfigError, match=r"models\.m\.kserve\.images_max: .* takes 1 at a time"):
            ProtectedModel.load("m", self.served(config, self.WRITTEN, images_max=8), trust(tmp_path))
