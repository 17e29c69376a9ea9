"""Who calls: from a bearer token or a client certificate to a known caller with its roles and routes."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass

from gateway.errors import ConfigError, ScanError
from gateway.receivers.receiver import NotPermitted, Unauthenticated
from gateway.receivers.roles import Role
from gateway.scan import Source
from gateway.settings.routes import SourceConfig

TOKEN_CHARACTERS_MIN = 32
"""128 bits in hexadecimal: beyond guessing, so no lock-out is needed."""
TOKEN_CHARACTERS_MAX = 4096


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a call brought to show who makes it."""

    token: str | None = None
    """Bearer token; None where none was sent."""
    common_name: str | None = None
    """Of the verified client certificate."""
    alternative_names: frozenset[str] = frozenset()
    """Subject Alternative Names of the verified client certificate."""


@dataclass(frozen=True, slots=True)
class Caller:
    """A known sender, reviewer, auditor or administrator."""

    source: Source
    roles: frozenset[Role]
    routes: tuple[str, ...]

    @property
    def sees_findings(self) -> bool:
        """Whether exact reasons and p-values are for this caller."""
        return not self.roles.isdisjoint({Role.REVIEW, Role.AUDIT})

    def require(self, roles: frozenset[Role]) -> None:
        """Raises `NotPermitted` where the caller has none of them."""
        if self.roles.isdisjoint(roles):
            raise NotPermitted("this caller has no role that may do that")

    def route(self, wanted: str) -> str:
        """The route a call goes to; a caller with a single one need not name it.

        Raises:
            ScanError: none was named and there are several.
            NotPermitted: it is not one of the caller's; the same answer whether it exists or not.
        """
        if not wanted:
            if len(self.routes) != 1:
                raise ScanError("name a route: this sender has several")
            return self.routes[0]
        if wanted not in self.routes:
            raise NotPermitted("this sender may not use that route")
        return wanted


class Gate:
    """Knows the configured sources and lets nobody else in."""

    def __init__(self, sources: Iterable[SourceConfig]) -> None:
        """Read the tokens; raises `ConfigError` naming each source whose token cannot serve."""
        self._by_token: dict[bytes, Caller] = {}
        self._by_name: dict[tuple[str, str], Caller] = {}
        problems = []
        for index, configured in enumerate(sources):
            source = Source(configured.name, configured.enrolled, tls_subject=configured.tls_subject)
            caller = Caller(source, frozenset(map(Role, configured.roles)), configured.routes)
            if configured.tls_subject is not None:
                self._by_name["subject", configured.tls_subject] = caller
            if configured.tls_san is not None:
                self._by_name["san", configured.tls_san] = caller
            if configured.token_file is not None:
                token = configured.token_file.read_text("ascii", errors="replace").strip()
                if not TOKEN_CHARACTERS_MIN <= len(token) <= TOKEN_CHARACTERS_MAX or not token.isascii():
                    problems.append(
                        f"sources.{index}.token_file: needs {TOKEN_CHARACTERS_MIN} ASCII characters at least"
                    )
                elif (digest := _digest(token)) in self._by_token:
                    problems.append(f"sources.{index}.token_file: holds the same token as another source")
                else:
                    self._by_token[digest] = caller
        if problems:
            raise ConfigError(problems)

    def admit(self, shown: Credentials) -> Caller:
        """The caller with this token, or, where none was sent, with this client certificate.

        Raises:
            Unauthenticated: no source has it; a wrong token is not saved by a good certificate.
        """
        if shown.token is not None:
            return self._with_token(shown.token)
        names = [("san", name) for name in shown.alternative_names]
        if shown.common_name is not None:
            names.append(("subject", shown.common_name))
        if not names:
            raise Unauthenticated("the call carries neither a bearer token nor a client certificate")
        found = {caller.source.name: caller for name in names if (caller := self._by_name.get(name)) is not None}
        if len(found) != 1:
            said = "no configured source" if not found else "several configured sources"
            raise Unauthenticated(f"the client certificate belongs to {said}")
        return found.popitem()[1]

    def _with_token(self, token: str) -> Caller:
        presented, found = _digest(token[:TOKEN_CHARACTERS_MAX]), None
        for digest, caller in self._by_token.items():  # every one, so that time tells nothing about which
            if hmac.compare_digest(digest, presented):
                found = caller
        if found is None:
            raise Unauthenticated("the bearer token is not known")
        return found


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
