"""What a call brings to show who makes it, and who that turns out to be, with roles and routes."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.errors import ScanError
from gateway.receivers.receiver import NotPermitted
from gateway.receivers.roles import Role
from gateway.scan import Source


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

    def route(self, wanted: str, *, by_rule: bool = False) -> str:
        """The route a call goes to; a caller with a single one need not name it.

        `by_rule`: where none was named and there are several it is empty, and the routing rules choose.

        Raises:
            ScanError: none was named and there are several.
            NotPermitted: it is not one of the caller's; the same answer whether it exists or not.
        """
        if not wanted:
            if len(self.routes) != 1:
                if by_rule:
                    return ""
                raise ScanError("name a route: this sender has several")
            return self.routes[0]
        if wanted not in self.routes:
            raise NotPermitted("this sender may not use that route")
        return wanted
