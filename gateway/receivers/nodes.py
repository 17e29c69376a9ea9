"""DICOM nodes among the configured sources: who may open an association, and which route it leads to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

from gateway.receivers.identity import Credentials
from gateway.receivers.receiver import NotPermitted, Unauthenticated
from gateway.receivers.roles import Role
from gateway.routing import Routing
from gateway.scan import Scan, Source
from gateway.settings.coherence import BY_RULE
from gateway.settings.config import Config
from gateway.settings.routes import SourceConfig


@dataclass(frozen=True, slots=True)
class Nodes:
    """Knows the AE titles. A title is no proof: the certificate beside it is, where the source has one configured."""

    sources: Iterable[SourceConfig]
    routes: Mapping[str, str]
    """Route by called AE title."""
    routing: Routing
    """Chooses for the titles whose route is `by-rule`."""

    @classmethod
    def of(cls, config: Config, routes: Mapping[str, str]) -> Self:
        """By the configuration of now; `routes` are those of the door, which a reload does not change."""
        return cls(config.sources, routes, Routing(config.routing))

    def route(self, called_ae: str) -> str:
        """The route behind a called AE title, or `by-rule`; raises NotPermitted where there is none."""
        try:
            return self.routes[called_ae]
        except KeyError:
            raise NotPermitted("the called AE title belongs to no route") from None

    def admit(self, calling_ae: str, *, route: str, shown: Credentials) -> Source:
        """The source with this AE title, which may use the route.

        Raises:
            Unauthenticated: no source has it, or the certificate is another's.
            NotPermitted: it may not send scans, or not to this route.
        """
        found = self._source(calling_ae, shown)
        if Role.SUBMIT not in found.roles or route not in (*found.routes, BY_RULE):
            raise NotPermitted("this source may not use that route")
        return _source(found)

    def direct(self, scan: Scan, shown: Credentials) -> str:
        """The route that a scan takes: that of its association, or the one that the rules choose.

        Asked for each scan: an association that was opened before a reload has no more rights than a new one, and
        what its sender `shown` when it was opened is looked at again.

        Raises:
            ScanError: no rule takes it.
            NotPermitted: its source may not use that route, or is not any more what it was.
        """
        chosen = scan.route if scan.route != BY_RULE else self.routing.route_of(scan)
        try:
            found = self._source(scan.source.calling_ae, shown)
        except Unauthenticated:
            raise NotPermitted("the sender is not any more whom it was taken for") from None
        if _source(found) != scan.source or Role.SUBMIT not in found.roles or chosen not in found.routes:
            raise NotPermitted("this source may not use that route")
        return chosen

    def _source(self, calling_ae: str | None, shown: Credentials) -> SourceConfig:
        """The source with this AE title and this certificate; raises Unauthenticated."""
        found = next((each for each in self.sources if calling_ae is not None and each.calling_ae == calling_ae), None)
        if found is None:
            raise Unauthenticated("the calling AE title belongs to no configured source")
        subject_differs = found.tls_subject is not None and found.tls_subject != shown.common_name
        name_differs = found.tls_san is not None and found.tls_san not in shown.alternative_names
        if subject_differs or name_differs:
            raise Unauthenticated("the client certificate is not that of the calling AE title")
        return found


def _source(configured: SourceConfig) -> Source:
    return Source(
        configured.name, configured.enrolled, calling_ae=configured.calling_ae, tls_subject=configured.tls_subject
    )
