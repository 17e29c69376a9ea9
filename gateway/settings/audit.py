"""[audit]: where the audit log lies, how often its end is signed, and where those signatures are carried."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from gateway.settings.fields import Address, File, Name, OwnDirectory, SecretFile, Table, Url

Identifier = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[!-~]+( [!-~]+)*$")]
"""What XML and people can read: printable ASCII, single spaces inside."""


class AnchorConfig(Table):
    """A place off this machine that keeps signed checkpoints: a file on another mount, or a URL."""

    name: Name
    file: OwnDirectory | None = None
    """One line of JSON is appended for each; its directory must be there."""
    url: Url | None = None
    """Takes each by POST; they are signed, so that plain HTTP can lose one, not change it."""
    ca: File | None = None
    """Certificates that an https server's must chain to, PEM; without it, those of the system."""

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.file is None) == (self.url is None):
            raise ValueError("needs either file or url")
        if self.ca is not None and not (self.url or "").startswith("https://"):
            raise ValueError("ca has a meaning with an https url only")
        return self


class CollectorConfig(Table):
    """An audit repository (IHE ATNA) that takes audit messages by syslog over TLS; each side has a certificate."""

    name: Name
    address: Address
    """HOST:PORT; the host must stand in the collector's certificate."""
    roots: File
    """Authorities of the collector's certificate, PEM."""
    certificate: File
    """The gateway's own."""
    private_key: SecretFile
    source_id: Identifier
    """AuditSourceID: by which name the hospital knows this gateway."""
    site_id: Identifier | None = None
    """AuditEnterpriseSiteID."""


class AuditConfig(Table):
    """The audit log; without this table it is a file in the storage directory."""

    postgres: SecretFile | None = None
    """File with a libpq connection string: several gateways share the log in that database."""
    checkpoint_records: Annotated[int, Field(ge=1)] = 1000
    """At most about this many records stand without a signed checkpoint over them,"""
    checkpoint_s: Annotated[float, Field(gt=0.0, le=86_400.0)] = 60.0
    """and none for longer than this."""
    retention_days_max: Annotated[float, Field(ge=1.0)] | None = None
    """Records older than this are pruned, on record; without it, all are kept."""
    anchors: tuple[AnchorConfig, ...] = ()
    """Each gets every checkpoint, or the newest of those that it was not there for."""
    collectors: tuple[CollectorConfig, ...] = ()
    """Each gets an audit message for every record that has one. Of several gateways that share a log, one is enough."""

    @model_validator(mode="after")
    def _each_by_its_name(self) -> Self:
        for what, each in (("anchors", self.anchors), ("collectors", self.collectors)):
            names = [one.name for one in each]
            if len(set(names)) < len(names):
                raise ValueError(f"two {what} have one name")
        return self
