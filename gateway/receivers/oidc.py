"""From an identity provider's token (OIDC, a JWT of RFC 7519) to a known caller."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jwt

from gateway.receivers.identity import Caller
from gateway.receivers.jwks import KeySet
from gateway.receivers.receiver import Unauthenticated
from gateway.receivers.roles import Role
from gateway.scan import Source
from gateway.settings.oidc import OidcConfig

_PERSON = re.compile(r"[A-Za-z0-9._@|:+-]{1,64}")
"""What may stand in the log as the name of a caller; other subjects would have to be changed to fit a line."""
_DEPTH_MAX = 8
_VALUES_MAX = 256


class Provider:
    """One identity provider."""

    def __init__(self, name: str, config: OidcConfig) -> None:
        """Read the keys where they are in a file; raises `ConfigError`."""
        self._name = name
        self._config = config
        self.keys = KeySet(name, config)

    @property
    def issuer(self) -> str:
        """The `iss` of its tokens."""
        return self._config.issuer

    def caller(self, token: str) -> Caller:
        """Who holds this token, by the clock of now.

        (1) the header names an algorithm that is allowed and a key that is published
        (2) the signature is the key's; issuer, audience and time are right, and none of them is missing
        (3) the subject can be a name
        (4) the roles that follow from the claim

        Raises:
            Unauthenticated: any of it fails; the reason names no value of the token.
        """
        try:
            header = jwt.get_unverified_header(token)  # (1)
            algorithm, kid = header.get("alg"), header.get("kid")
            if algorithm not in self._config.algorithms or not isinstance(kid, str) or "crit" in header:
                raise Unauthenticated("the token's header is none that is taken here")
            key = self.keys.find(kid)
            if key is None or not key.serves(algorithm):
                raise Unauthenticated("the token is signed with a key that its provider does not publish for it")
            claims = jwt.decode(  # (2)
                token,
                key.public,
                algorithms=[algorithm],
                audience=self._config.audience,
                issuer=self._config.issuer,
                leeway=self._config.leeway_s,
                options={"require": ["exp", "nbf", "iss", "aud", "sub"]},
            )
        except jwt.PyJWTError as error:
            raise Unauthenticated(f"the token is not valid: {type(error).__name__}") from None
        person = claims["sub"]  # (3)
        if not isinstance(person, str) or not _PERSON.fullmatch(person):
            raise Unauthenticated("the token's subject cannot be a name")
        source = Source(self._name, self._config.enrolled, person=person)
        return Caller(source, self._roles(claims), self._config.routes)  # (4)

    def _roles(self, claims: Mapping[str, Any]) -> frozenset[Role]:
        found: Any = claims
        for part in self._config.roles_claim.split(".", _DEPTH_MAX):
            found = found.get(part) if isinstance(found, Mapping) else None
        values = found.split() if isinstance(found, str) else found  # OAuth's `scope` is one line of text
        if not isinstance(values, list):
            return frozenset()
        return frozenset(
            Role(role)
            for value in values[:_VALUES_MAX]
            if isinstance(value, str)
            for role in self._config.roles.get(value, ())
        )


def issuer_of(token: str) -> str | None:
    """What the token says of who issued it, believed for nothing but finding the provider that can tell."""
    try:
        claims = jwt.decode(token, options={"verify_signature": False})
    except jwt.PyJWTError:
        return None
    issuer = claims.get("iss")
    return issuer if isinstance(issuer, str) else None
