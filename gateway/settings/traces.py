"""[traces]: where spans go; without this table there are none."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from gateway.settings.fields import Address, File, Table, loopback


class TracesConfig(Table):
    """An OpenTelemetry collector that takes OTLP over gRPC."""

    address: Address
    ca: File | None = None
    """CA of its certificate, PEM; without it the collector must be on this machine."""
    share: Annotated[float, Field(ge=0.0, le=1.0)] = 1.0
    """Of the traces that begin here; a caller that sends `traceparent` has decided for its own."""

    @model_validator(mode="after")
    def _protected(self) -> Self:
        if self.ca is None and not loopback(self.address):
            raise ValueError(f"needs ca, because {self.address} is not this machine")
        return self
