"""A configuration with everything it names, read and checked before anything is started or written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Self, TypeVar

from gateway.app.keys import Keys
from gateway.app.trusted import Trusted
from gateway.callers.persons import Persons
from gateway.errors import ConfigError
from gateway.protected import ProtectedModel
from gateway.receivers.gate import Gate
from gateway.receivers.tls import socket_handshakes
from gateway.settings.config import Config
from gateway.store.drift import Calibrated

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Plan:
    """A configuration with everything it names read and checked; nothing is started and nothing written."""

    config: Config
    keys: Keys
    gate: Gate
    persons: Persons
    models: Mapping[str, ProtectedModel]
    trusts: Mapping[str, Trusted]
    calibrated: Mapping[str, Calibrated]
    """By model: what drift is measured against."""

    @classmethod
    def of(cls, config: Config) -> Self:
        """Read all that the configuration names.

        Raises:
            ConfigError: names each mistake by its key, as far as one does not hide another.
        """
        gather = _Gather()
        keys = gather(lambda: Keys.load(config.keys))
        for where, tls in config.tls_tables():
            gather(partial(socket_handshakes, where, tls))
        gate = gather(lambda: Gate(config.sources, config.oidc))
        persons = gather(lambda: Persons.of(config))
        models = {name: gather(partial(_model, config, name)) for name in config.models}
        trusts = {name: gather(partial(Trusted.load, name, trust)) for name, trust in config.trust.policies.items()}
        between = config.drift.patients_between_false_alarms
        calibrated = {
            name: gather(partial(Calibrated.of, model, between)) for name, model in models.items() if model is not None
        }
        for name, route in config.routes.items():
            if route.model is not None and (model := models[route.model]) is not None:
                where = f"routes.{name}.policy" if route.policy is not None else "policy"
                gather(partial(model.require_fit_for, config.policy_of(name), where))
        gather.finish()
        assert keys is not None
        assert gate is not None
        assert persons is not None
        return cls(
            config,
            keys,
            gate,
            persons,
            {name: model for name, model in models.items() if model is not None},
            {name: trust for name, trust in trusts.items() if trust is not None},
            {name: each for name, each in calibrated.items() if each is not None},
        )


def _model(config: Config, name: str) -> ProtectedModel:
    if config.trust.artefacts is None:
        raise ConfigError(["trust.artefacts: required, because there are models"])
    model = ProtectedModel.load(name, config.models[name], config.trust.artefacts)
    model.require_seed(config.keys)
    return model


class _Gather:
    """Runs several loads and keeps what each of them finds wrong, so that one run names it all."""

    def __init__(self) -> None:
        self._problems: list[str] = []

    def __call__(self, load: Callable[[], T]) -> T | None:
        try:
            return load()
        except ConfigError as error:
            self._problems += error.problems
            return None

    def finish(self) -> None:
        if self._problems:
            raise ConfigError(list(dict.fromkeys(self._problems)))
