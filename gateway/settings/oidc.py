"""[oidc]: identity providers whose tokens (JWT) tell who calls."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from gateway.settings.fields import File, Table, Url

Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
"""Asymmetric ones alone: with a shared secret whoever verifies could also sign."""


class OidcConfig(Table):
    """One identity provider, and what its people and programs may do here."""

    issuer: Annotated[str, Field(min_length=1)]
    """The `iss` of its tokens, to the letter."""
    audience: Annotated[str, Field(min_length=1)]
    """The `aud` of tokens that are meant for this gateway."""
    algorithms: Annotated[tuple[Algorithm, ...], Field(min_length=1)]
    jwks_file: File | None = None
    """Its public keys (RFC 7517); read again when the file changes."""
    jwks_url: Url | None = None
    """Where it publishes them; fetched outside of calls."""
    jwks_ca: File | None = None
    """Certificates that the URL's server is believed by, PEM; without it the system's."""
    jwks_s_max: Annotated[float, Field(ge=60.0, le=30 * 86400.0)] = 86400.0
    """Keys from the URL are believed this long after they were last fetched."""
    leeway_s: Annotated[float, Field(ge=0.0, le=300.0)]
    """By how much the clocks may differ."""
    roles_claim: Annotated[str, Field(min_length=1)]
    """Where a token says what its bearer is; dots go down into objects, such as `realm_access.roles`."""
    roles: Annotated[dict[str, tuple[Literal["submit", "review", "audit", "admin"], ...]], Field(min_length=1)]
    """What follows from each value there; values that are not named mean nothing."""
    routes: Annotated[tuple[str, ...], Field(min_length=1)]
    enrolled: bool
    """As for sources: who is enrolled signs all it sends."""

    @model_validator(mode="after")
    def _keys_from_somewhere(self) -> Self:
        if (self.jwks_file is None) == (self.jwks_url is None):
            raise ValueError("needs either jwks_file or jwks_url")
        if self.jwks_url is not None and not self.jwks_url.startswith(("https://", "http://127.0.0.1", "http://[::1]")):
            raise ValueError("jwks_url: must begin with https://, since whoever changes the keys lets anybody in")
        if self.jwks_ca is not None and self.jwks_url is None:
            raise ValueError("jwks_ca has no meaning without jwks_url")
        return self
