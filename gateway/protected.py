"""A protected model as it is served: its profile, its bytes, and the manifest of the detectors fitted for it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from detectors.artifact import CATEGORIES, COLOUR
from detectors.calibration import Guarantee, smallest
from detectors.errors import ConversionError, InputError
from detectors.models.served import CARD, Card
from detectors.mondrian import Taxonomy
from gateway.errors import ConfigError
from gateway.profile import Profile
from gateway.settings.models import ModelConfig
from gateway.settings.policy import PolicyConfig
from gateway.settings.storage import KeysConfig
from gateway.settings.trust import ArtefactTrust
from signing import EnvelopeError, envelope

MANIFEST = "manifest.json"
"""Of an artefact directory, for people and for unsigned artefacts."""
MANIFEST_ENVELOPE = "manifest.dsse.json"
"""The same bytes in a DSSE envelope, signed by whoever fitted; what the gateway believes."""
MANIFEST_TYPE = "application/vnd.scanward.artefact+json"
"""Payload type of that envelope."""


@dataclass(frozen=True, slots=True)
class ProtectedModel:
    """Everything about a model that is read at start-up; each file once, so that what was checked is what runs."""

    name: str
    """As configured: [models.NAME]."""
    profile: Profile
    onnx: bytes = field(repr=False)
    """The model file, whole; or the card that stands for a model of which only a server has a file."""
    artefact: Path
    """Directory of the detectors' files, each of which the manifest names by digest."""
    manifest: bytes = field(repr=False)
    """The exact bytes that were signed."""
    guarantee: str
    """What the calibration promises: `confident` or `marginal`."""
    false_positive_rate: float
    """The smallest rate that the detectors were calibrated for."""
    rank_min: float
    """The smallest p-value of a detector alone: that of a scan louder than every clean one of the calibration."""
    detectors: frozenset[str]
    """Names of the detectors, deciding and reported."""
    random: bool = False
    """Whether any of them draws at random, from seeds that the gateway gives."""
    taxonomy: Taxonomy | None = None
    """By what scans are told apart, where the detectors are calibrated by category."""
    served_only: bool = False
    """Whether there is no file of it here, so that detectors too ask its server."""

    @classmethod
    def load(cls, name: str, config: ModelConfig, trust: ArtefactTrust) -> Self:
        """Read profile, model and manifest.

        Raises:
            ConfigError: unreadable, unsigned, signed by no configured key, beside another manifest in the clear, or of
                a guarantee that is not served; no model file, and detectors that were fitted for one.
        """
        profile = Profile.load(config.profile)
        where = f"models.{name}.detectors"
        manifest = _believed_manifest(config.detectors, trust, where)
        try:
            facts = json.loads(manifest)
            guarantee, rate = str(facts["guarantee"]), float(facts["fpr"])
            taxonomy = Taxonomy.of(facts[CATEGORIES]) if CATEGORIES in facts else None
            clean = int(facts["n_b"]) if taxonomy is None else max(taxonomy.sizes.values())
            rank_min = smallest(clean, Guarantee(guarantee))
            entries = dict(facts["detectors"])
            random = any(bool(dict(entry).get("random")) for entry in entries.values())
        except (ValueError, KeyError, TypeError, RecursionError, InputError) as error:
            raise ConfigError([f"{where}: the manifest is malformed"]) from error
        if guarantee != "confident" and not trust.unsafe_marginal_guarantee:
            raise ConfigError(
                [f"{where}: its guarantee is {guarantee}; trust.artefacts.unsafe_marginal_guarantee would be needed"]
            )
        model = _read(config.model, f"models.{name}.model") if config.model is not None else _card(name, config, facts)
        names = frozenset(entries)
        return cls(
            name, profile, model, config.detectors, manifest, guarantee, rate, rank_min, names, random, taxonomy,
            served_only=config.model is None,
        )  # fmt: skip

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, rows, columns) of one image."""
        return (self.profile.input.channels, *self.profile.input.size)

    @property
    def colour(self) -> bool:
        """Whether the detectors were fitted on scans in colour; if not, such a scan is none that they can judge."""
        return json.loads(self.manifest).get(COLOUR) is True

    @property
    def model_sha256(self) -> str:
        """Lower-case hexadecimal digest of the model file, or of the card in its place."""
        return hashlib.sha256(self.onnx).hexdigest()

    @property
    def gradients(self) -> bool:
        """Whether the detectors read the model's gradients and features; if not, they compare answers alone."""
        return json.loads(self.manifest).get("gradients") is not False

    @property
    def artefact_sha256(self) -> str:
        """Lower-case hexadecimal digest of the manifest, which names every other file of the artefact by digest."""
        return hashlib.sha256(self.manifest).hexdigest()

    def require_seed(self, keys: KeysConfig) -> None:
        """Raises `ConfigError` where detectors draw and there is no secret: what a stranger can compute is no draw."""
        if self.random and keys.seed is None:
            raise ConfigError([f"keys.seed: required, because detectors of models.{self.name} draw at random"])

    def require_fit_for(self, policy: PolicyConfig, where: str) -> None:
        """A rate that the detectors were not calibrated for would be a promise that nobody measured.

        Raises:
            ConfigError: the policy, written under the key `where`, asks the detectors for what they cannot say.
        """
        detection = policy.detection
        if detection is None:
            return  # named by its key when the file was read
        problems = []
        if detection.false_positive_rate < self.false_positive_rate:
            problems.append(
                f"{where}.detection.false_positive_rate: not calibrated: the detectors of models.{self.name} were "
                f"fitted for {self.false_positive_rate:g}, and {detection.false_positive_rate:g} is asked for"
            )
        if detection.denoise == "if_agree" and not json.loads(self.manifest).get("denoisers"):
            problems.append(
                f'{where}.detection.denoise: "if_agree", and the artefact of models.{self.name} has no denoiser'
            )
        problems += [
            f"{where}.rules.{place}.detectors.{name}: the artefact of models.{self.name} has no such detector"
            for place, rule in enumerate(policy.rules)
            for name in sorted(set(rule.detectors) - self.detectors)
        ]
        problems += [
            f"{where}.rules.{place}.detectors.{name}: met by no p-value: none of a detector of "
            f"models.{self.name} is below {self.rank_min:.4g}, and {at_most:g} is asked for"
            for place, rule in enumerate(policy.rules)
            for name, at_most in sorted(rule.detectors.items())
            if name in self.detectors and at_most < self.rank_min
        ]
        if problems:
            raise ConfigError(problems)


def _card(name: str, config: ModelConfig, facts: Mapping[str, Any]) -> bytes:
    """The card of a model that only a server has, as the manifest binds it."""
    assert config.kserve is not None, "checked between the tables"
    if not (config.detectors / CARD).exists():
        raise ConfigError([f"models.{name}.model: required: its detectors were fitted for a file of the model"])
    card = _read(config.detectors / CARD, f"models.{name}.detectors")
    if hashlib.sha256(card).hexdigest() != facts.get("model_sha256"):
        raise ConfigError([f"models.{name}.detectors: {CARD} is not the one that was fitted for"])
    try:
        images = Card.read(card).images_max
    except ConversionError as error:
        raise ConfigError([f"models.{name}.detectors: {CARD}: {error}"]) from error
    if images is not None and images != config.kserve.images_max:
        raise ConfigError([f"models.{name}.kserve.images_max: the server said that its model takes {images} at a time"])
    return card


def require_alike(directory: Path, sealed: bytes, where: str) -> None:
    """Nobody shall read one manifest and be served another: where one lies beside the envelope, it is the same.

    Raises:
        ConfigError: manifest.json differs from what the envelope holds; `where` names the artefact.
    """
    plain = directory / MANIFEST
    if plain.exists() and _read(plain, where) != sealed:
        raise ConfigError([f"{where}: {MANIFEST} is not what {MANIFEST_ENVELOPE} holds: one of the two was changed"])


def _believed_manifest(directory: Path, trust: ArtefactTrust, where: str) -> bytes:
    """The manifest, out of an envelope that a configured key signed."""
    sealed_at = directory / MANIFEST_ENVELOPE
    if not sealed_at.exists() and trust.unsafe_unsigned_artefacts:
        return _read(directory / MANIFEST, where)
    try:
        manifest = envelope.open_envelope(_read(sealed_at, where), _public_keys(trust), MANIFEST_TYPE)
    except EnvelopeError as error:
        raise ConfigError([f"{where}: {MANIFEST_ENVELOPE}: {error}"]) from error
    require_alike(directory, manifest, where)
    return manifest


def _public_keys(trust: ArtefactTrust) -> list[Ed25519PublicKey]:
    try:
        return [envelope.load_public_key(path) for path in trust.public_keys]
    except EnvelopeError as error:
        raise ConfigError([f"trust.artefacts.public_keys: {error}"]) from error


def _read(path: Path, where: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError([f"{where}: {path}: {error.strerror}"]) from error
