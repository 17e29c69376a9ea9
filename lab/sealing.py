"""Artefacts and the signatures under them: believed before anything is opened, signed only where all is whole."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from detectors.artifact import MANIFEST, Artefact, check_files
from detectors.ensemble import Ensemble
from detectors.errors import ArtefactError
from detectors.models.answers import Ask
from gateway.app.trusted import Trusted
from gateway.errors import ConfigError
from gateway.profile import Profile
from gateway.protected import MANIFEST_ENVELOPE, MANIFEST_TYPE, require_alike
from gateway.settings.trust import TrustTable
from signing import Trust
from signing.envelope import load_public_key, open_envelope, parse, seal
from signing.errors import EnvelopeError


def sign(directory: Path, key: Ed25519PrivateKey) -> dict[str, Any]:
    """Sign the manifest as it lies there, and return what it says.

    Raises:
        ArtefactError: it is malformed, or a file is not the one that it names.
    """
    manifest = _read(directory / MANIFEST)
    check_files(directory, manifest)
    put(directory, manifest, key)
    facts: dict[str, Any] = json.loads(manifest)
    return facts


def put(directory: Path, manifest: bytes, key: Ed25519PrivateKey | None) -> None:
    """Put the signature beside the manifest; an unsigned artefact leaves no old signature behind."""
    place = directory / MANIFEST_ENVELOPE
    place.unlink(missing_ok=True)
    if key is not None:
        place.write_bytes(seal(manifest, MANIFEST_TYPE, key))


def believed(directory: Path, public_keys: Sequence[Path]) -> bytes:
    """The manifest's exact bytes, once one of the keys has signed them.

    Raises:
        ArtefactError: there is no envelope, or no key has signed it.
        ConfigError: manifest.json says something else.
        EnvelopeError: a key cannot be read.
    """
    keys = [load_public_key(path) for path in public_keys]
    place = directory / MANIFEST_ENVELOPE
    try:
        manifest = open_envelope(_read(place), keys, MANIFEST_TYPE)
    except EnvelopeError as error:
        raise ArtefactError(f"{place}: {error}") from error
    require_alike(directory, manifest, str(directory))
    return manifest


def unchecked(directory: Path) -> bytes:
    """The manifest's exact bytes where no key is at hand: nobody vouches for them, and whoever asks must say so.

    Raises:
        ArtefactError: there is none, or what lies beside it is no envelope.
        ConfigError: an envelope lies beside it that holds another one.
    """
    manifest, place = _read(directory / MANIFEST), directory / MANIFEST_ENVELOPE
    if not place.exists():
        return manifest
    try:
        sealed, _ = parse(_read(place), MANIFEST_TYPE)
    except EnvelopeError as error:
        raise ArtefactError(f"{place}: {error}") from error
    require_alike(directory, sealed, str(directory))
    return sealed


def opened(
    directory: Path, manifest: bytes, model: bytes, profile: Profile, device: torch.device, ask: Ask | None = None
) -> Ensemble:
    """The ensemble of a believed manifest; `ask` is the way to a model that only a server has.

    Raises:
        ArtefactError: it is not for this model and this profile, or a file is not the one that was fitted.
    """
    return Artefact.load(directory, manifest, model, profile.sha256, device, ask=ask).ensemble


def trust_of(config: Path, name: str) -> Trust:
    """The trust policy of that name in a gateway's configuration, of which nothing else is read.

    Raises:
        ConfigError: there is none, or it cannot be used.
    """
    policies = TrustTable.load(config.resolve()).policies
    if name not in policies:
        raise ConfigError([f"trust.{name}: there is no such trust policy in {config}"])
    return Trusted.load(name, policies[name]).trust


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ArtefactError(f"{path}: cannot be read") from error
