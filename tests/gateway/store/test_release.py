"""A held scan goes on only because people say so: on record first, once, and with one truth whatever fails."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gateway import documents
from gateway.callers.persons import Persons
from gateway.errors import AuditError, GatewayError, NotHeld, Overloaded, ScanError, Settled, UpstreamError
from gateway.receipt import verify_receipt
from gateway.reply import Prediction
from gateway.review import Person
from gateway.scan import Source
from gateway.settings.review import ReviewConfig
from gateway.store.held import State
from gateway.verdict import Disposition

RECEIPT_KEY = Ed25519PrivateKey.from_private_bytes(bytes(31) + b"\x01")
PREDICTION = Prediction("ct", "1", ("clear", "nodule"), (0.25, 0.75))
ONE, TWO_EYES = (ReviewConfig(four_eyes=eyes, decided_days_max=30.0) for eyes in (False, True))
ANN, BEN = Person("ann", "an artefact of the table"), Person("ben", "seen it too")


def test_a_released_scan_gets_its_prediction_and_the_log_says_who_let_it_go(house):
    identity = house.hold()
    held = house.release(identity)
    assert (held.state, held.reply.prediction) == (State.RELEASED, PREDICTION)
    predicate = verify_receipt(held.reply.receipt.envelope, [RECEIPT_KEY.public_key()])["predicate"]
    assert (predicate["disposition"], predicate["releasedBy"]) == ("released_by", ["ann"])
    assert (predicate["quarantineId"], predicate["prediction"]) == (identity, {"sha256": PREDICTION.sha256})
    released, answered = house.records()[2:]
    assert released["released_by"] == ["ann"]
    assert (released["reason"], released["quarantine_id"]) == (ANN.reason, identity)
    assert released["examination_sha256"] == predicate["examination"]["sha256"]
    assert released["examination_sha256"] == documents.examination_sha256(held.reply.findings, held.reply.verdict)
    assert answered["receipt_sha256"] == held.reply.receipt.sha256


def test_the_release_is_durable_before_the_model_is_asked(house):
    house.release(house.hold())
    assert house.model.seen == [["decided", "answered", "released"]]


def test_without_a_durable_record_nothing_is_released(house):
    identity = house.hold()
    house.sink.commits_left = 0
    for act in (lambda: house.release(identity), lambda: house.review.confirm(identity, ANN)):
        with pytest.raises(AuditError):
            act()
    assert house.quarantine.show(identity).state is State.HELD
    assert house.model.seen == []


def test_without_a_durable_answer_nobody_is_answered_and_the_same_call_goes_on(house):
    identity = house.hold()
    house.sink.commits_left = 1
    with pytest.raises(AuditError):
        house.release(identity)
    assert house.protect().verdict.disposition is Disposition.QUARANTINE
    house.sink.commits_left = float("inf")
    assert house.release(identity, BEN).reply.verdict.released_by == ("ann",)


def test_the_same_bytes_are_answered_as_the_release_was(house):
    first = house.protect()
    reply = house.release(first.quarantine_id).reply
    again = house.protect()
    assert (again, again.earlier, first.earlier) == (reply, True, False)
    house.reopen()
    assert house.protect() == reply


def test_a_release_repeated_by_whomever_is_the_same_answer_and_no_new_record(house):
    identity = house.hold()
    first = house.release(identity)
    records = house.kinds()
    assert house.release(identity) == house.release(identity, BEN) == first
    assert (house.kinds(), len(house.model.seen)) == (records, 1)


def test_an_answer_that_a_crash_kept_from_the_ledger_is_given_after_the_start(house, monkeypatch):
    identity = house.hold()
    monkeypatch.setattr(house.ledger, "revise", lambda *_: None)
    reply = house.release(identity).reply
    assert house.protect().verdict.disposition is Disposition.QUARANTINE
    house.reopen()
    assert house.protect() == reply


def test_a_confirmed_scan_stays_out_and_a_released_one_is_gone(house):
    stays, goes = house.hold(b"a stays"), house.hold(b"a goes")
    confirmed = house.review.confirm(stays, ANN)
    records = house.kinds()
    assert house.review.confirm(stays, BEN) == confirmed
    assert house.kinds() == records
    with pytest.raises(Settled, match="stay out"):
        house.release(stays)
    house.release(goes)
    with pytest.raises(Settled, match="cannot be taken back"):
        house.review.confirm(goes, ANN)


def test_an_unknown_id_is_not_held(house):
    for act in (house.release, lambda identity: house.review.confirm(identity, ANN)):
        with pytest.raises(NotHeld):
            act("00" * 16)


@pytest.mark.parametrize("reason", ["", "  ", "two\nlines", "x" * 501, "\x1b[31mred"])
def test_a_reason_is_one_line_of_text(reason):
    with pytest.raises(ScanError, match="a reason is needed"):
        Person("ann", reason)


def test_without_a_review_table_nothing_is_released(house):
    identity = house.hold()
    house.serve(None)
    with pytest.raises(Settled, match=r"\[review\]"):
        house.release(identity)


@pytest.mark.parametrize("data", [b"r scan", b"i scan"])
def test_a_signature_that_does_not_hold_needs_an_unsafe_setting_and_is_counted(house, data):
    identity = house.hold(data, route="archive")
    with pytest.raises(Settled, match="unsafe_release_failed_signatures"):
        house.release(identity)
    assert house.kinds() == ["decided", "answered"]
    house.serve(ONE.model_copy(update={"unsafe_release_failed_signatures": True}))
    setting = "review.unsafe_release_failed_signatures"
    assert house.release(identity).reply.verdict.unsafe == (setting,)
    assert house.records()[2]["unsafe"] == [setting]
    assert house.value("scanward_unsafe_admissions_total", setting=setting) == 1


def test_a_scan_without_any_signature_may_be_released(house):
    assert house.release(house.hold(b"u scan", source=Source("old"))).reply.prediction == PREDICTION


def test_a_stripped_scan_is_not_whitewashed_by_another_source_that_sends_it_too(house):
    identity = house.hold(b"u scan")
    with pytest.raises(Settled, match="unsafe_release_failed_signatures"):
        house.release(identity)
    assert house.hold(b"u scan", source=Source("old")) == identity
    with pytest.raises(Settled, match="unsafe_release_failed_signatures"):
        house.release(identity)
    assert house.model.seen == []


def test_what_cannot_be_shown_to_the_model_is_not_released_to_it(house):
    identity = house.hold(b"r scan")
    house.serve(ONE.model_copy(update={"unsafe_release_failed_signatures": True}))
    with pytest.raises(Settled, match="cannot be shown to a model: mac_mismatch"):
        house.release(identity)
    assert house.quarantine.show(identity).state is State.HELD


class TestFourEyes:
    """Two different callers must agree."""

    @pytest.fixture(autouse=True)
    def two(self, house):
        house.serve(TWO_EYES)

    def test_the_first_is_recorded_and_the_scan_stays_held(self, house):
        identity = house.hold()
        held = house.release(identity)
        assert (held.state, [act.by for act in held.acts], held.reply) == (State.HELD, ["ann"], None)
        assert (house.kinds()[2:], house.model.seen) == (["agreed"], [])

    def test_the_second_releases_it(self, house):
        identity = house.hold()
        house.release(identity)
        house.reopen(TWO_EYES)
        assert house.release(identity, BEN).reply.verdict.released_by == ("ann", "ben")
        assert house.records()[3]["released_by"] == ["ann", "ben"]

    def test_the_same_one_twice_is_refused(self, house):
        identity = house.hold()
        house.release(identity)
        with pytest.raises(Settled, match="another reviewer"):
            house.release(identity, replace(ANN, reason="really"))
        assert house.kinds()[2:] == ["agreed"]

    def test_an_agreement_does_not_stand_for_what_was_not_asked(self, house, digests):
        identity = house.hold()
        house.release(identity)
        house.serve(TWO_EYES, replace(digests, policy="99" * 32))
        house.hold()
        assert house.release(identity, BEN).state is State.HELD

    def test_two_credentials_of_one_person_are_not_two_people(self, house):
        house.persons = Persons({"ann": "ann", "hospital/ann@x": "ann", "hospital/ben@x": "ben"}, complete=True)
        house.serve(TWO_EYES)
        identity = house.hold()
        house.release(identity)
        with pytest.raises(Settled, match="another reviewer"):
            house.release(identity, replace(ANN, name="hospital/ann@x"))
        with pytest.raises(Settled, match=r"no \[\[review.persons\]\]"):
            house.release(identity, replace(ANN, name="hospital/carl@x"))
        assert house.kinds()[2:] == ["agreed"]
        assert house.release(identity, replace(BEN, name="hospital/ben@x")).state is State.RELEASED

    def test_who_is_no_person_any_more_has_not_agreed(self, house):
        identity = house.hold()
        house.release(identity)
        house.persons = Persons({"ben": "ben", "carl": "carl"}, complete=True)
        house.serve(TWO_EYES)
        assert house.release(identity, BEN).state is State.HELD
        assert house.release(identity, replace(BEN, name="carl")).reply.verdict.released_by == ("ben", "carl")

    def test_a_confirmation_needs_one(self, house):
        assert house.review.confirm(house.hold(), ANN).state is State.CONFIRMED


def test_a_model_that_does_not_answer_leaves_the_scan_released_and_is_asked_again(house):
    identity = house.hold()
    house.model.fails = True
    with pytest.raises(UpstreamError):
        house.release(identity)
    house.reopen()
    assert house.quarantine.show(identity).state is State.RELEASED
    with pytest.raises(Settled):
        house.review.confirm(identity, BEN)
    assert house.release(identity, BEN).reply.verdict.released_by == ("ann",)
    assert house.kinds()[2:] == ["released", "failed", "released", "answered"]


def test_reviewers_at_once_release_a_scan_once(house):
    identity = house.hold()

    def act(number: int) -> GatewayError | None:
        try:
            house.release(identity, Person(f"reviewer-{number}", "at once"))
        except GatewayError as error:
            return error
        return None

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(act, range(8)))
    assert outcomes.count(None) >= 1
    assert all(isinstance(outcome, Overloaded) for outcome in outcomes if outcome is not None)
    assert house.kinds().count("released") == len(house.model.seen) == 1


def test_the_answer_covers_what_it_was_given_on_as_well(house, digests):
    """The policy changed while the scan was held: the same bytes under the new one are released too."""
    identity = house.hold()
    house.serve(ONE, replace(digests, policy="99" * 32))
    reply = house.release(identity).reply
    assert house.protect() == reply


def test_a_new_question_about_a_released_scan_holds_it_again(house, digests):
    identity = house.hold()
    first = house.release(identity).reply
    house.serve(ONE, replace(digests, model="99" * 32))
    assert house.hold() == identity
    assert house.quarantine.show(identity).state is State.HELD
    house.serve(ONE)
    assert house.protect() == first  # what was answered stays answered
    assert house.protect(source=Source("another")).verdict.disposition is Disposition.QUARANTINE


def test_a_release_answers_nobody_who_asked_while_the_model_worked(house):
    """People let the scan go for those who had sent it; another source is another question, and waits for them."""
    identity, another = house.hold(), Source("another")
    house.model.meanwhile = lambda: house.hold(source=another)
    reply = house.release(identity).reply
    assert house.protect() == reply
    assert house.protect(source=another).verdict.disposition is Disposition.QUARANTINE
    house.model.meanwhile = lambda: None
    waiting = house.quarantine.show(identity)
    assert (waiting.state, waiting.acts, waiting.reply) == (State.HELD, (), None)
    house.reopen()
    assert house.protect(source=another).verdict.disposition is Disposition.QUARANTINE
    assert house.release(identity, BEN).reply.verdict.released_by == ("ben",)
    assert house.protect(source=another).verdict.released_by == ("ben",)


def test_an_agreement_is_not_one_to_what_was_asked_at_that_moment(house):
    house.serve(TWO_EYES)
    identity, decide = house.hold(), house.quarantine.decide

    def late(*arguments):
        house.quarantine.decide = decide
        house.hold(source=Source("another"))
        return decide(*arguments)

    house.quarantine.decide = late
    house.release(identity)
    assert house.quarantine.show(identity).acts == ()
    assert house.release(identity, BEN).state is State.HELD


def test_the_bytes_are_given_out_only_on_record(house):
    identity = house.hold()
    house.sink.commits_left = 0
    with pytest.raises(AuditError):
        house.review.read(identity, "ann")
    house.sink.commits_left = 1
    assert b"".join(house.review.read(identity, "ann")) == b"a scan"
    shown = house.records()[-1]
    assert (shown["kind"], shown["by"], shown["scan_sha256"]) == ("shown", "ann", hashlib.sha256(b"a scan").hexdigest())


def test_a_full_quarantine_does_not_hinder_the_decisions_that_empty_it(house):
    identity = house.hold(b"a" + bytes(1_000_000))
    house.quarantine._bytes_max = house.quarantine._used
    assert house.review.confirm(identity, ANN).state is State.CONFIRMED
