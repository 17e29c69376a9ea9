"""A protected model that only a server has, asked over gRPC as the gateway asks it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

import torch
from pydantic import ValidationError
from torch import Tensor

from detectors.errors import ArtefactError, ConversionError
from detectors.models.answers import Ask
from detectors.models.outputs import Activation, Task
from detectors.models.served import CARD, Card, images_at_a_time
from gateway.deadline import Deadline
from gateway.errors import ConfigError
from gateway.profile import Profile
from gateway.settings.document import sentences
from gateway.settings.fields import loopback
from gateway.settings.models import KServeConfig
from gateway.telemetry.metrics import Metrics
from gateway.upstreams.remote import RemoteUpstream
from lab.whereabouts import Whereabouts
from lab.workbench import span_of

WAIT_S = 120.0
"""For one answer, however often it takes to reach the server: nobody waits for a fit at a bedside."""
DESCRIBED_S = 10.0
"""For the server to say what its model takes and gives."""


@dataclass(frozen=True, slots=True)
class Model:
    """The bytes that stand for the protected model, and where it is asked."""

    file: bytes
    """The model's file, or the card in its place."""
    ask: Ask | None
    """The way to the server; None for a file."""


def to_fit(at: Whereabouts, profile: Profile) -> Model:
    """The model to fit detectors for; a server is asked to describe its own, and to answer about drawn images.

    Raises:
        ConfigError: no such address, or one that cannot be asked safely.
        UpstreamError: the server does not answer, or not as the profile says.
        ConversionError: the model takes another number of images at a time.
    """
    if isinstance(at.place, Path):
        return Model(at.place.read_bytes(), None)
    described = _server(at, profile).described(DESCRIBED_S)
    if (fixed := images_at_a_time(described)) is not None:
        if fixed != 1:
            raise ConversionError(f"the server says that its model takes {fixed} images at a time: 1 or any is needed")
        at = replace(at, images_max=1)
    ask = _ask(_server(at, profile))
    card = Card.made(
        described, profile.output.name or "", span_of(profile), profile.input.size, ask,
        activation=Activation(profile.already_applied), task=Task(profile.task),
    )  # fmt: skip
    return Model(card.written(), ask)


def as_fitted(at: Whereabouts, profile: Profile, detectors: Path) -> Model:
    """The model to use with the detectors in a directory; of a server's, the card there says what it must answer.

    Raises:
        ArtefactError: there is none: the detectors were fitted for a file.
        ConfigError: as of `to_fit`.
    """
    if isinstance(at.place, Path):
        return Model(at.place.read_bytes(), None)
    try:
        card = (detectors / CARD).read_bytes()
    except OSError as error:
        raise ArtefactError(
            f"{detectors}: its detectors were fitted for a file of the model, not for a server"
        ) from error
    at = replace(at, images_max=Card.read(card).images_max or at.images_max)
    return Model(card, _ask(_server(at, profile)))


def _ask(server: RemoteUpstream) -> Ask:
    def ask(images: Tensor) -> Tensor:
        return torch.from_numpy(server.answers(images.numpy(), Deadline.after(WAIT_S)))

    return ask


def _server(at: Whereabouts, profile: Profile) -> RemoteUpstream:
    """Who is asked, under the rules of the gateway's own `kserve` table."""
    url = urlsplit(str(at.place))
    names = [unquote(part) for part in url.path.strip("/").split("/")]
    if ":" not in url.netloc or not 1 <= len(names) <= 2 or not names[0] or url.query or url.fragment or url.username:
        raise ConfigError([f"--model {at.place}: a server's model is kserve://HOST:PORT/NAME or …/NAME/VERSION"])
    plain = at.authority is None
    if plain and not loopback(url.netloc):
        raise ConfigError([f"--server-ca: required, because {url.netloc} is not this machine"])
    files = {"roots": at.authority, "certificate": at.certificate, "private_key": at.key}
    tls = {name: path for name, path in files.items() if path is not None}
    if plain and tls:
        raise ConfigError(["--server-ca: required, because --server-certificate is at"])
    document = {
        "address": url.netloc, "model": names[0], "version": "".join(names[1:]), "tls": None if plain else tls,
        "unsafe_plaintext": plain, "attempt_s_max": WAIT_S, "attempts_max": 8, "images_max": at.images_max,
    }  # fmt: skip
    try:
        config = KServeConfig.model_validate(document)
    except ValidationError as error:
        raise ConfigError([f"--model {each}" for each in sentences(error.errors(include_url=False))]) from error
    return RemoteUpstream("the model", profile, config, metrics=Metrics())
