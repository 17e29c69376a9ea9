"""[routes] and [[sources]]: who may send what, and what a scan is examined by."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from gateway.settings.fields import Name, SecretFile, Table
from gateway.settings.policy import PolicyConfig


class RouteConfig(Table):
    """What a scan sent to one name is examined by, judged by and forwarded to."""

    trust: str
    """Name of a [trust.NAME]."""
    model: str | None = None
    """Name of a [models.NAME]; without it the route examines signatures only."""
    upstream: Literal["embedded", "kserve", "none"]
    """Whether the model answers here, or on a server of its own, or the caller asks it once the scan is admitted."""
    policy: PolicyConfig | None = None
    """Replaces the global [policy] as a whole."""


class SourceConfig(Table):
    """One sender or reviewer, told by a bearer token or by a name in its client certificate."""

    name: Name
    roles: Annotated[tuple[Literal["submit", "review", "audit", "admin"], ...], Field(min_length=1)]
    """What it may do (docs/identity.md); `review` and `audit` also see findings, exact reasons and p-values."""
    token_file: SecretFile | None = None
    """File with the bearer token alone, at least 32 characters."""
    tls_subject: str | None = None
    """Common name of the client certificate."""
    tls_san: str | None = None
    """One of the client certificate's Subject Alternative Names, whole: a DNS name, an address or a URI."""
    enrolled: bool
    """An enrolled source signs all it sends: what arrives unsigned from it has been stripped."""
    routes: Annotated[tuple[str, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _one_identity(self) -> Self:
        if [self.token_file, self.tls_subject, self.tls_san].count(None) != 2:
            raise ValueError("needs one of token_file, tls_subject and tls_san")
        return self
