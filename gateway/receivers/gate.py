"""Who calls: from a bearer token, an identity provider's token or a client certificate to a known caller."""

from __future__ import annotations

import hashlib
import hmac
import threading
from collections.abc import Callable, Iterable, Mapping

from gateway.errors import ConfigError
from gateway.receivers.identity import Caller, Credentials
from gateway.receivers.oidc import Provider, issuer_of
from gateway.receivers.receiver import Unauthenticated
from gateway.receivers.roles import Role
from gateway.scan import Source
from gateway.settings.oidc import OidcConfig
from gateway.settings.routes import SourceConfig

TOKEN_CHARACTERS_MIN = 32
"""128 bits in hexadecimal: beyond guessing, so no lock-out is needed."""
TOKEN_CHARACTERS_MAX = 8192
"""gRPC takes no more in all its headers."""

_LOOK_S = 1.0
"""How often providers' keys are looked at; most looks find nothing to do."""


class Gate:
    """Knows the configured sources and lets nobody else in."""

    def __init__(self, sources: Iterable[SourceConfig], oidc: Mapping[str, OidcConfig] | None = None) -> None:
        """Read tokens and key files; raises `ConfigError` naming each source or provider that cannot serve."""
        self._providers: dict[str, Provider] = {}
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
        for name, provider in (oidc or {}).items():
            try:
                self._providers[provider.issuer] = Provider(name, provider)
            except ConfigError as error:
                problems += error.problems
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

    def look(self) -> None:
        """Read or fetch providers' keys where that is due; for a thread of its own."""
        for provider in self._providers.values():
            provider.keys.look()

    def adopt(self, before: Gate) -> None:
        """Take over the keys that another gate has fetched already."""
        for issuer, provider in self._providers.items():
            if (known := before._providers.get(issuer)) is not None:
                provider.keys.adopt(known.keys)

    def _with_token(self, token: str) -> Caller:
        presented, found = _digest(token[:TOKEN_CHARACTERS_MAX]), None
        for digest, caller in self._by_token.items():  # every one, so that time tells nothing about which
            if hmac.compare_digest(digest, presented):
                found = caller
        if found is not None:
            return found
        if self._providers and token.count(".") == 2 and len(token) <= TOKEN_CHARACTERS_MAX:
            provider = self._providers.get(issuer_of(token) or "")
            if provider is None:
                raise Unauthenticated("no identity provider of this gateway issued the token")
            return provider.caller(token)
        raise Unauthenticated("the bearer token is not known")


class KeyWatch:
    """Keeps the keys of identity providers fresh, from a thread of its own, so that no call waits for them."""

    def __init__(self, gate: Callable[[], Gate]) -> None:
        """`gate`: the one that lets callers in now."""
        self._gate = gate
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="key-watch", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()

    def _run(self) -> None:
        self._gate().look()
        while not self._stop.wait(_LOOK_S):
            self._gate().look()


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
