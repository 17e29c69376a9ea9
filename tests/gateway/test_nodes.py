"""What an association may is asked again for each of its scans."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gateway.receivers.identity import Credentials
from gateway.receivers.nodes import Nodes
from gateway.receivers.receiver import NotPermitted
from gateway.routing import Routing
from gateway.settings.routes import SourceConfig

CT1: dict[str, Any] = {"name": "ct1", "roles": ("submit",), "calling_ae": "CT1", "routes": ("ct",), "enrolled": False}


def nodes(**changes: Any) -> Nodes:
    return Nodes((SourceConfig(**{**CT1, **changes}),), {"CT": "ct"}, Routing(()))


@pytest.mark.parametrize(
    "changes",
    [{"name": "ct2"}, {"roles": ("review",)}, {"routes": ("mr",)}, {"calling_ae": "CT2"}, {"enrolled": True}],
    ids=lambda changes: next(iter(changes)),
)
def test_an_association_outlives_a_reload_and_its_rights_do_not(make_scan, changes: dict[str, Any]) -> None:
    source = nodes().admit("CT1", route="ct", shown=Credentials())
    scan = replace(make_scan(), source=source)
    assert nodes().direct(scan, Credentials()) == "ct"
    with pytest.raises(NotPermitted):
        nodes(**changes).direct(scan, Credentials())


def test_an_association_ends_with_the_name_in_the_certificate_that_opened_it(make_scan) -> None:
    shown = Credentials(alternative_names=frozenset({"ct1.hospital.example", "192.0.2.1"}))
    known = nodes(tls_san="ct1.hospital.example")
    scan = replace(make_scan(), source=known.admit("CT1", route="ct", shown=shown))
    assert known.direct(scan, shown) == "ct"
    with pytest.raises(NotPermitted):
        nodes(tls_san="ct2.hospital.example").direct(scan, shown)
