"""[routes] and [[sources]]: who may send what, and what a scan is examined by."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from gateway.settings.fields import AeTitle, Name, SecretFile, Table
from gateway.settings.policy import PolicyConfig

MONITOR_DAYS_MAX = 90
"""How far ahead monitor mode may be dated: it is for the first weeks, and a forgotten one must end by itself."""


class RouteConfig(Table):
    """What a scan sent to one name is examined by, judged by and forwarded to."""

    trust: str
    """Name of a [trust.NAME]."""
    model: str | None = None
    """Name of a [models.NAME]; without it the route examines signatures only."""
    upstream: Literal["embedded", "kserve", "dicom", "none"]
    """Whether the model answers here, or on a server of its own, or the caller asks it once the scan is admitted;
    or the scan goes on to a DICOM destination as it came."""
    destination: str | None = None
    """Name of a [destinations.NAME]; with the upstream "dicom"."""
    policy: PolicyConfig | None = None
    """Replaces the global [policy] as a whole."""


class RoutingConfig(Table):
    """One rule for scans whose sender has several routes and names none; the first that holds counts.

    An absent or empty key holds for any scan; a written one for the values in it alone.
    """

    route: str
    modality: tuple[str, ...] = ()
    """Modality (0008,0060)."""
    body_part: tuple[str, ...] = ()
    """Body Part Examined (0018,0015)."""
    calling_ae: tuple[str, ...] = ()
    """AE title of the sender, at the DICOM door."""


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
    calling_ae: AeTitle | None = None
    """Calling AE title of a DICOM node; no proof without the certificate beside it."""
    enrolled: bool
    """An enrolled source signs all it sends: what arrives unsigned from it has been stripped."""
    routes: Annotated[tuple[str, ...], Field(min_length=1)]
    unsafe_monitor_until: date | None = None
    """Until this day begins (UTC), its scans are decided about and recorded, and none is held or refused but those
    whose signature fails."""

    @field_validator("unsafe_monitor_until")
    @classmethod
    def _soon_over(cls, until: date | None) -> date | None:
        if until is not None and until > datetime.now(UTC).date() + timedelta(days=MONITOR_DAYS_MAX):
            raise ValueError(f"lies more than {MONITOR_DAYS_MAX} days ahead")
        return until

    @model_validator(mode="after")
    def _one_identity(self) -> Self:
        shown = [self.token_file, self.tls_subject, self.tls_san].count(None)
        if shown < 2:
            raise ValueError("needs one of token_file, tls_subject and tls_san, not several")
        if shown == 3 and self.calling_ae is None:
            raise ValueError("needs one of token_file, tls_subject and tls_san, or calling_ae")
        return self
