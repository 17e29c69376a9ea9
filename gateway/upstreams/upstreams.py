"""All upstreams that a configuration's routes ask, by kind and model; a reload keeps those that it does not touch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from gateway.errors import ConfigError
from gateway.protected import ProtectedModel
from gateway.settings.config import Config
from gateway.settings.models import KServeConfig
from gateway.settings.routes import RouteConfig
from gateway.telemetry.metrics import Metrics
from gateway.upstreams.embedded import EmbeddedUpstream
from gateway.upstreams.remote import RemoteUpstream
from gateway.upstreams.upstream import Upstream

EMBEDDED, KSERVE = "embedded", "kserve"


@dataclass(frozen=True, slots=True)
class _Made:
    made_from: object
    """Equal where the same would be made again."""
    upstream: Upstream


@dataclass(frozen=True, slots=True)
class Upstreams:
    """Who is asked about what was admitted."""

    _made: Mapping[tuple[str, str], _Made] = field(default_factory=dict)
    """By kind, as in a route's `upstream`, and the model's configured name."""

    @classmethod
    def of(
        cls, config: Config, models: Mapping[str, ProtectedModel], metrics: Metrics, *, before: Upstreams | None = None
    ) -> Self:
        """Make what the routes and the detectors want; an embedded model is asked once, a remote one is not.

        Args:
            config: the whole configuration.
            models: those that it names, read.
            metrics: where answers are timed.
            before: what served until now; what would be made again is taken from it.

        Raises:
            ConfigError: a model cannot be served so.
        """
        for name, route in config.routes.items():
            _require_scores(name, route, models)
        wanted: list[tuple[str, str]] = [
            (route.upstream, route.model)
            for route in config.routes.values()
            if route.model is not None and route.upstream in {EMBEDDED, KSERVE}
        ]
        wanted += [(KSERVE, name) for name, model in models.items() if model.served_only]
        made: dict[tuple[str, str], _Made] = {}
        for kind, name in dict.fromkeys(wanted):
            made_from = _made_from(config, models[name], kind)
            found = before._made.get((kind, name)) if before is not None else None
            if found is None or found.made_from != made_from:
                found = _Made(made_from, _make(config, models[name], kind, metrics))
            made[kind, name] = found
        return cls(made)

    def of_route(self, route: RouteConfig) -> Upstream | None:
        """Who is asked for a route; None where nobody is."""
        if route.model is None or route.upstream not in {EMBEDDED, KSERVE}:
            return None
        return self._made[route.upstream, route.model].upstream

    def answering(self, models: Mapping[str, ProtectedModel]) -> Mapping[str, RemoteUpstream]:
        """Whom detectors ask for the answers of models that only a server has, by model."""
        found = {name: self._made[KSERVE, name].upstream for name, model in models.items() if model.served_only}
        return {name: upstream for name, upstream in found.items() if isinstance(upstream, RemoteUpstream)}

    def close(self, *, but: Upstreams, after_s: float) -> None:
        """Let go of all that `but` does not go on with, once calls that began before cannot be using it."""
        kept = {id(each.upstream) for each in but._made.values()}
        for each in self._made.values():
            if id(each.upstream) not in kept:
                each.upstream.close(after_s)


def _require_scores(name: str, route: RouteConfig, models: Mapping[str, ProtectedModel]) -> None:
    """Raises `ConfigError` where a server's masks would have to be a prediction."""
    if route.upstream == KSERVE and route.model is not None and models[route.model].profile.task == "segmentation":
        raise ConfigError(
            [f'routes.{name}.upstream: "kserve" serves no segmentation model, and models.{route.model} is one']
        )


def _make(config: Config, model: ProtectedModel, kind: str, metrics: Metrics) -> Upstream:
    if kind == KSERVE:
        return RemoteUpstream(model.name, model.profile, _kserve(config, model.name), metrics=metrics)
    engine = config.engine
    assert engine is not None, "a configuration with models has an engine"
    return EmbeddedUpstream(
        model.name, model.profile, model.onnx, device=engine.device, threads=engine.threads, metrics=metrics
    )


def _made_from(config: Config, model: ProtectedModel, kind: str) -> object:
    if kind != KSERVE:
        return model.model_sha256, model.profile.sha256, config.engine
    remote = _kserve(config, model.name)
    tls = remote.tls
    files = (tls.roots, tls.certificate, tls.private_key) if tls is not None else ()
    return model.profile.sha256, remote, [_digest(file, model.name) for file in files if file is not None]


def _kserve(config: Config, model: str) -> KServeConfig:
    found = config.models[model].kserve
    assert found is not None, "a route with this upstream has the table"
    return found


def _digest(file: Path, model: str) -> str:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise ConfigError([f"models.{model}.kserve.tls: {file}: {error.strerror}"]) from error
