"""[audit]: where the audit log lies, and how often its end is signed."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from gateway.settings.fields import SecretFile, Table


class AuditConfig(Table):
    """The audit log; without this table it is a file in the storage directory."""

    postgres: SecretFile | None = None
    """File with a libpq connection string: several gateways share the log in that database."""
    checkpoint_records: Annotated[int, Field(ge=1)] = 1000
    """At most about this many records stand without a signed checkpoint over them,"""
    checkpoint_s: Annotated[float, Field(gt=0.0, le=86_400.0)] = 60.0
    """and none for longer than this."""
