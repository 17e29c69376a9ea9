"""The one table of statuses: total, and in step with the promises that senders rely on."""

from __future__ import annotations

import grpc
import pytest

from gateway import errors
from gateway.receivers.receiver import CutOff, NotPermitted, Unauthenticated
from gateway.receivers.status import ERRORS, VERDICTS, status_of
from gateway.verdict import Disposition


def test_every_disposition_has_a_row() -> None:
    assert set(VERDICTS) == set(Disposition)


def test_every_error_of_the_gateway_has_a_row_of_its_own() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert {*kinds, CutOff, NotPermitted, Unauthenticated} <= set(ERRORS)


@pytest.mark.parametrize("disposition", Disposition)
def test_an_examination_that_ended_is_ok_on_grpc(disposition: Disposition) -> None:
    assert VERDICTS[disposition].grpc is grpc.StatusCode.OK


def test_a_held_scan_is_stored_and_a_rejected_one_is_not() -> None:
    """A C-STORE SCU may delete its copy after 0x0000 (PS3.4 B.2.3)."""
    assert VERDICTS[Disposition.QUARANTINE].dimse == 0x0000
    assert VERDICTS[Disposition.REJECT].dimse & 0xF000 == 0xC000
    assert VERDICTS[Disposition.REJECT].http >= 400


def test_no_error_reads_as_success_on_any_door() -> None:
    for status in ERRORS.values():
        assert status.grpc is not grpc.StatusCode.OK
        assert status.http >= 400
        assert status.dimse != 0x0000


def test_an_unknown_error_takes_the_row_of_its_nearest_parent() -> None:
    class Stranger(errors.Overloaded):
        pass

    assert status_of(Stranger("x")) is ERRORS[errors.Overloaded]
    assert status_of(ZeroDivisionError()).grpc is grpc.StatusCode.INTERNAL


@pytest.mark.parametrize("kind", [errors.Overloaded, errors.UpstreamError, errors.AuditError, CutOff])
def test_what_may_be_repeated_has_a_status_that_clients_repeat(kind: type[errors.GatewayError]) -> None:
    assert not kind.permanent
    assert ERRORS[kind].grpc in {
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.ABORTED,
    }
