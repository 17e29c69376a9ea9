"""The same scan is never answered twice differently, by one process or by the next."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.deadline import Deadline
from gateway.errors import ConfigError, Overloaded
from gateway.finding import Finding, GatewayReason, Outcome
from gateway.reply import Prediction, Receipt, Reply
from gateway.scan import Source
from gateway.store.ledger import TRANSIENT, Ledger
from gateway.verdict import Disposition, Verdict
from signing import Reason

SOON = 30.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger" / "ledger.db"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    ledger = Ledger(path, rows_max=1000, age_s_max=3600.0)
    yield ledger
    ledger.close()


@pytest.fixture
def make_reply(make_case) -> Callable[..., Reply]:
    def make(*extra: Finding, place: int = 7) -> Reply:
        case = make_case()
        verdict = Verdict(Disposition.ADMIT, (), ("signature.unsigned",))
        prediction = Prediction("ct", "1", ("clear", "nodule"), (0.1, 0.1 + 0.2))
        receipt = Receipt(b'{"payload":"e30="}')
        return Reply(case.scan.sha256, verdict, prediction, receipt, place, (*case.findings, *extra))

    return make


def _ask(ledger: Ledger, scan, digests) -> Reply | None:
    with ledger.turn(scan, digests, Deadline.after(SOON)) as turn:
        return turn.earlier


def _answer(ledger: Ledger, scan, digests, reply: Reply) -> None:
    with ledger.turn(scan, digests, Deadline.after(SOON)) as turn:
        assert turn.earlier is None
        turn.settle(reply)


def test_an_answer_is_given_again_exactly(ledger, make_scan, digests, make_reply):
    reply = make_reply(Finding("x", Outcome.PASSED, Reason.OK, score=float("inf"), p_value=1e-300))
    _answer(ledger, make_scan(), digests, reply)
    assert _ask(ledger, make_scan(), digests) == reply


def test_an_answer_survives_a_restart(path, ledger, make_scan, digests, make_reply):
    _answer(ledger, make_scan(), digests, make_reply())
    ledger.close()
    again = Ledger(path, rows_max=1000, age_s_max=3600.0)
    assert _ask(again, make_scan(), digests) == make_reply()
    again.close()


@pytest.mark.parametrize("what", ["bytes", "route", "enrolled", "calling_ae", "tls_subject", "name", "policy", "model"])
def test_another_question_is_not_the_same_scan(ledger, make_scan, digests, make_reply, what):
    _answer(ledger, make_scan(), digests, make_reply())
    source = make_scan().source
    scan, others = {
        "bytes": (make_scan(b"other"), digests),
        "route": (make_scan(route="legacy"), digests),
        "enrolled": (make_scan(source=replace(source, enrolled=False)), digests),
        "calling_ae": (make_scan(source=replace(source, calling_ae="CT1")), digests),
        "tls_subject": (make_scan(source=replace(source, tls_subject="CN=CT1")), digests),
        "name": (make_scan(source=Source("other", enrolled=True)), digests),
        "policy": (make_scan(), replace(digests, policy="66" * 32)),
        "model": (make_scan(), replace(digests, model="66" * 32)),
    }[what]
    assert _ask(ledger, scan, others) is None


@pytest.mark.parametrize("reason", sorted(TRANSIENT))
def test_what_lies_in_the_hour_is_not_remembered(ledger, make_scan, digests, make_reply, reason):
    _answer(ledger, make_scan(), digests, make_reply(Finding("detection", Outcome.INDETERMINATE, reason)))
    assert _ask(ledger, make_scan(), digests) is None


def test_a_stage_skipped_for_the_scans_own_fault_is_remembered(ledger, make_scan, digests, make_reply):
    reply = make_reply(Finding("detection", Outcome.INDETERMINATE, GatewayReason.NOT_RUN))
    _answer(ledger, make_scan(), digests, reply)
    assert _ask(ledger, make_scan(), digests) == reply


def test_a_turn_that_failed_leaves_nothing(ledger, make_scan, digests, make_reply):
    with pytest.raises(RuntimeError):
        _fail(ledger, make_scan(), digests, make_reply())
    assert _ask(ledger, make_scan(), digests) is None


def _fail(ledger: Ledger, scan, digests, reply: Reply) -> None:
    with ledger.turn(scan, digests, Deadline.after(SOON)) as turn:
        turn.settle(reply)
        raise RuntimeError("after the settlement")


def test_of_many_callers_one_examines_and_all_get_its_answer(ledger, make_scan, digests, make_reply):
    examined = []
    started = threading.Barrier(16)

    def call(number: int) -> Reply:
        started.wait()
        with ledger.turn(make_scan(), digests, Deadline.after(SOON)) as turn:
            if turn.earlier is not None:
                return turn.earlier
            examined.append(number)
            reply = make_reply(place=number)
            turn.settle(reply)
        return reply

    with ThreadPoolExecutor(16) as pool:
        replies = list(pool.map(call, range(16)))
    assert len(examined) == 1
    assert {reply.place for reply in replies} == set(examined)


def test_those_who_wait_get_even_an_answer_that_is_not_remembered(ledger, make_scan, digests, make_reply):
    """The waiting caller is stopped where it waits, so that the order is certain."""
    reply = make_reply(Finding("detection", Outcome.INDETERMINATE, GatewayReason.TIMEOUT))
    waits = threading.Event()

    class Watched(Deadline):
        def remaining(self) -> float:
            waits.set()
            return SOON

    def second() -> Reply | None:
        with ledger.turn(make_scan(), digests, Watched(0.0)) as turn:
            return turn.earlier

    with ThreadPoolExecutor(1) as pool:
        with ledger.turn(make_scan(), digests, Deadline.after(SOON)) as turn:
            waiting = pool.submit(second)
            assert waits.wait(SOON)
            turn.settle(reply)
        assert waiting.result() == reply


def test_when_the_first_fails_the_next_takes_over(ledger, make_scan, digests, make_reply):
    first_in, may_fail = threading.Event(), threading.Event()

    def first() -> None:
        with ledger.turn(make_scan(), digests, Deadline.after(SOON)):
            first_in.set()
            may_fail.wait(SOON)
            raise RuntimeError("examination failed")

    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(first)
        first_in.wait(SOON)
        two = pool.submit(_answer, ledger, make_scan(), digests, make_reply(place=2))
        may_fail.set()
        with pytest.raises(RuntimeError):
            one.result()
        two.result()
    assert _ask(ledger, make_scan(), digests).place == 2


def test_waiting_ends_with_the_callers_deadline(ledger, make_scan, digests):
    with (
        ledger.turn(make_scan(), digests, Deadline.after(SOON)),
        pytest.raises(Overloaded, match="another caller"),
        ledger.turn(make_scan(), digests, Deadline.after(0.01)),
    ):
        pass
    assert _ask(ledger, make_scan(), digests) is None


def test_nothing_is_kept_in_memory_after_the_turns(ledger, make_scan, digests, make_reply):
    for number in range(50):
        _answer(ledger, make_scan(str(number).encode()), digests, make_reply())
    assert ledger._turns == {}


def test_old_answers_are_forgotten(path, make_scan, digests, make_reply):
    now = [1000.0]
    ledger = Ledger(path, rows_max=1000, age_s_max=60.0, clock=lambda: now[0])
    _answer(ledger, make_scan(), digests, make_reply())
    now[0] += 59
    assert _ask(ledger, make_scan(), digests) is not None
    now[0] += 2
    assert _ask(ledger, make_scan(), digests) is None
    ledger.close()


def test_the_number_of_rows_is_bounded_and_the_newest_stay(path, make_scan, digests, make_reply):
    now = [0.0]

    def clock() -> float:
        now[0] += 1.0
        return now[0]

    ledger = Ledger(path, rows_max=10, age_s_max=1e9, clock=clock)
    for number in range(1000):
        _answer(ledger, make_scan(str(number).encode()), digests, make_reply())
    rows = sqlite3.connect(path).execute("SELECT count(*) FROM replies").fetchone()[0]
    assert rows <= 10 + 256
    assert _ask(ledger, make_scan(b"999"), digests) is not None
    assert _ask(ledger, make_scan(b"0"), digests) is None
    ledger.close()


def test_a_row_that_cannot_be_read_is_examined_again(path, ledger, make_scan, digests, make_reply):
    _answer(ledger, make_scan(), digests, make_reply())
    database = sqlite3.connect(path)
    database.execute("UPDATE replies SET reply = x'7b7d'")
    database.commit()
    database.close()
    assert _ask(ledger, make_scan(), digests) is None


def test_a_ledger_that_cannot_be_written_answers_nobody(ledger, make_scan, digests, make_reply):
    ledger._database.execute("PRAGMA query_only = ON")
    with pytest.raises(Overloaded, match="cannot be written"):
        _answer(ledger, make_scan(), digests, make_reply())
    ledger._database.execute("PRAGMA query_only = OFF")
    assert _ask(ledger, make_scan(), digests) is None


@pytest.mark.parametrize("content", [b"not a database" * 100, "version"])
def test_a_file_that_is_no_ledger_is_a_configuration_error(path, ledger, content):
    ledger.close()
    if content == "version":
        sqlite3.connect(path).execute("PRAGMA user_version = 9").connection.commit()
    else:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match="ledger"):
        Ledger(path, rows_max=10, age_s_max=1.0)


def test_gateway_and_signature_reasons_cannot_be_taken_for_each_other():
    """Replies name a reason by its word alone."""
    assert not {str(reason) for reason in Reason} & {str(reason) for reason in GatewayReason}
