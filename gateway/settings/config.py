"""The service's configuration: one TOML file into frozen models, every mistake named by its key."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from pydantic import Field, ValidationError

from gateway.errors import ConfigError
from gateway.settings.audit import AuditConfig
from gateway.settings.coherence import mistakes_between_tables
from gateway.settings.destinations import DestinationConfig
from gateway.settings.document import read, sentences
from gateway.settings.doors import DicomTlsConfig, MetricsConfig, ReceiversConfig, TlsConfig
from gateway.settings.fields import Name, Table
from gateway.settings.limits import LimitsConfig
from gateway.settings.models import DriftConfig, EngineConfig, ModelConfig
from gateway.settings.oidc import OidcConfig
from gateway.settings.policy import PolicyConfig
from gateway.settings.review import ReviewConfig
from gateway.settings.routes import RouteConfig, RoutingConfig, SourceConfig
from gateway.settings.storage import KeysConfig, StorageConfig
from gateway.settings.traces import TracesConfig
from gateway.settings.trust import TrustTable


class Config(Table):
    """The whole configuration."""

    receivers: ReceiversConfig
    metrics: MetricsConfig
    traces: TracesConfig | None = None
    """Without it there are no traces."""
    storage: StorageConfig
    keys: KeysConfig
    audit: AuditConfig = AuditConfig()
    engine: EngineConfig | None = None
    """Required where there are models."""
    models: dict[Name, ModelConfig] = Field(default_factory=dict)
    drift: DriftConfig = DriftConfig()
    destinations: dict[Name, DestinationConfig] = Field(default_factory=dict)
    """Where routes with the upstream "dicom" hand on what they admit."""
    trust: TrustTable
    policy: PolicyConfig
    review: ReviewConfig | None = None
    """Without it nothing that is held can be released."""
    routes: dict[Name, RouteConfig]
    routing: tuple[RoutingConfig, ...] = ()
    """Where scans go whose sender names no route; without a rule that takes them they are refused."""
    sources: tuple[SourceConfig, ...]
    oidc: dict[Name, OidcConfig] = Field(default_factory=dict)
    """Identity providers."""
    limits: dict[Name, LimitsConfig]
    """By source; those under "default" hold for all others."""

    @classmethod
    def load(cls, path: Path) -> Config:
        """Read and check a configuration file.

        Raises:
            ConfigError: names every mistake by its dotted key, those between tables included.
        """
        document = read(path)
        problems: list[str] = []
        try:
            # Through JSON, because there "strict" still takes text for a path and a list for a tuple.
            config = cls.model_validate_json(json.dumps(document, default=str), context={"root": path.parent})
        except ValidationError as error:
            problems = sentences(error.errors(include_url=False))
        problems += mistakes_between_tables(document)
        if problems:
            raise ConfigError(problems)
        return config

    def tls_tables(self) -> Iterator[tuple[str, TlsConfig | DicomTlsConfig]]:
        """Each door's certificates, with the key of their table."""
        doors = self.receivers
        tables = {"receivers.grpc": doors.grpc, "receivers.dimse": doors.dimse, "receivers.stow": doors.stow}
        for name, table in {**tables, "metrics": self.metrics}.items():
            if table is not None and table.tls is not None:
                yield f"{name}.tls", table.tls

    def policy_of(self, route: str) -> PolicyConfig:
        """The service policy that holds for a route: its own, else the global one."""
        return self.routes[route].policy or self.policy
