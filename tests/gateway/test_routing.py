"""Where a scan goes whose sender names no route: the first rule that its header and its sender meet, or nowhere."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file

from gateway.errors import ScanError
from gateway.routing import Routing
from gateway.scan import Scan, Source
from gateway.settings.routes import RoutingConfig

RULES = Routing(
    (
        RoutingConfig(route="old-ct", modality=("CT",), calling_ae=("CT1",)),
        RoutingConfig(route="chest", modality=("CR", "CT"), body_part=("CHEST",)),
        RoutingConfig(route="ct", modality=("CT",)),
        RoutingConfig(route="ct-again", modality=("CT",)),
    )
)


def scan(modality: str, body_part: str | None, calling_ae: str | None = None) -> Scan:
    dataset = dcmread(Path(str(get_testdata_file("CT_small.dcm"))))
    dataset.Modality = modality
    if body_part is not None:
        dataset.BodyPartExamined = body_part
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    source = Source("scanner", calling_ae=calling_ae)
    return Scan.receive(buffer.getvalue(), route="", receiver="grpc", source=source)


@pytest.mark.parametrize(
    ("modality", "body_part", "calling_ae", "route"),
    [
        ("CT", "HEAD", "CT1", "old-ct"),
        ("CT", "CHEST", "CT1", "old-ct"),
        ("CT", "CHEST", "CT2", "chest"),
        ("CR", "CHEST", None, "chest"),
        ("CT", "HEAD", None, "ct"),
        ("CT", None, "ct1", "ct"),
    ],
)
def test_the_first_rule_that_holds_counts(
    modality: str, body_part: str | None, calling_ae: str | None, route: str
) -> None:
    assert RULES.route_of(scan(modality, body_part, calling_ae)) == route


@pytest.mark.parametrize(("modality", "body_part"), [("MR", "CHEST"), ("CR", "HAND"), ("CR", None), ("", None)])
def test_what_no_rule_takes_is_refused(modality: str, body_part: str | None) -> None:
    with pytest.raises(ScanError, match="no routing rule takes this scan"):
        RULES.route_of(scan(modality, body_part))


def test_bytes_without_a_header_meet_only_a_rule_for_all() -> None:
    nothing = Scan.receive(b"nothing", route="", receiver="grpc", source=Source("scanner"))
    with pytest.raises(ScanError):
        RULES.route_of(nothing)
    assert Routing((RoutingConfig(route="all"),)).route_of(nothing) == "all"


def test_without_rules_the_sender_must_name_a_route() -> None:
    with pytest.raises(ScanError, match="name a route: this sender has several"):
        Routing(()).route_of(scan("CT", None))
