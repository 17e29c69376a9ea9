"""Audit messages are valid by the standard's schema, follow its tables, and say no more than the log does."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import pytest
from lxml import etree

from gateway.audit.atna import Sender, export_atna, message_of
from gateway.audit.places import open_reader
from gateway.audit.record import Inspected, Refused, Started

SCHEMA = etree.RelaxNG(etree.parse(str(Path(__file__).with_name("audit-message.rng"))))
SENDER = Sender("gateway-1", "hospital", ("SCANWARD", "SCANWARD_ARCH"))
AT = "2026-05-04T12:00:00.123456Z"
DIGEST = "00ff" * 16
SCAN = {"scan_sha256": DIGEST, "route": "chest", "source": "ct-1"}
ACT = {**SCAN, "source": None, "by": "dr-w", "quarantine_id": "q", "reason": "Jane Doe's scan is fine"}

# PS3.15 A.5.3.1, A.5.3.2 and Security Alert: EventID, EventActionCode, EventOutcomeIndicator, EventTypeCode.
MESSAGES = {
    "started": ({"config_sha256": DIGEST, "version": "1"}, ("110100", "E", "0", "110120")),
    "inspected": ({"source": "auditor", "first": 0, "records": 9}, ("110101", "R", "0", None)),
    "pruned": ({"first": 0, "end": 9, "before": AT, "days_max": 30.0}, ("110113", "E", "0", "pruned")),
    "released": ({**ACT, "released_by": ["dr-w"]}, ("110113", "E", "0", "110132")),
    "shown": (ACT, ("110113", "E", "0", "110132")),
    "refused": (
        {"receiver": "grpc", "source": "anonymous", "error": "Unauthenticated", "detail": "Jane Doe"},
        ("110113", "E", "4", "110126"),
    ),
    "decided": ({**SCAN, "disposition": "quarantine", "reasons": ["suspect"]}, ("110113", "E", "8", "decided")),
    "failed": ({**SCAN, "error": "UpstreamError"}, ("110113", "E", "8", "failed")),
    "alarmed": ({**SCAN, "held_sha256": DIGEST, "count": 9}, ("110113", "E", "8", "alarmed")),
    "drifted": ({**SCAN, "detector": "uad", "direction": "calm"}, ("110113", "E", "8", "drifted")),
    "expired": ({**SCAN, "state": "held", "since": AT}, ("110113", "E", "8", "expired")),
}


def _message(kind: str, facts: dict) -> etree._Element | None:
    line = {"index": 7, "leaf": DIGEST, "record": {"schema": 1, "kind": kind, "at": AT, **facts}}
    made = message_of(line, origin="scanward-audit/one", sender=SENDER)
    return None if made is None else etree.fromstring(made)


@pytest.mark.parametrize("kind", MESSAGES)
def test_a_message_is_valid_and_says_what_the_tables_ask_for(kind):
    facts, (event, action, outcome, type_code) = MESSAGES[kind]
    message = _message(kind, facts)
    SCHEMA.assertValid(message)
    identification = message.find("EventIdentification")
    assert identification.find("EventID").get("csd-code") == event
    assert (identification.get("EventActionCode"), identification.get("EventDateTime")) == (action, AT)
    assert identification.get("EventOutcomeIndicator") == outcome
    assert [code.get("csd-code") for code in identification.findall("EventTypeCode")] == [type_code] * bool(type_code)
    assert message.find("AuditSourceIdentification").get("AuditSourceID") == "gateway-1"
    gateway = message.findall("ActiveParticipant")[-1]
    assert (gateway.get("UserID"), gateway.find("RoleIDCode").get("csd-code")) == ("gateway-1", "110150")


def test_the_schema_refuses_what_is_no_audit_message():
    message = _message("started", MESSAGES["started"][0])
    message.find("EventIdentification").attrib.pop("EventOutcomeIndicator")
    assert not SCHEMA.validate(message)


def test_a_start_has_no_object_and_the_log_is_one_of_its_readers():
    assert _message("started", MESSAGES["started"][0]).find("ParticipantObjectIdentification") is None
    log = _message("inspected", MESSAGES["inspected"][0]).find("ParticipantObjectIdentification")
    assert (log.get("ParticipantObjectTypeCode"), log.get("ParticipantObjectTypeCodeRole")) == ("2", "13")
    assert log.find("ParticipantObjectIDTypeCode").get("csd-code") == "12"
    assert log.find("ParticipantObjectName").text == "Security Audit Log"


def test_a_scan_is_named_by_its_digest_and_an_act_by_its_person():
    message = _message("released", MESSAGES["released"][0])
    scan = message.find("ParticipantObjectIdentification")
    digest = scan.get("ParticipantObjectID").removeprefix("ni:///sha-256;")
    assert base64.urlsafe_b64decode(digest + "=").hex() == DIGEST
    person = message.find("ActiveParticipant")
    assert person.get("UserID") == "dr-w"


@pytest.mark.parametrize("kind", MESSAGES)
def test_nobody_is_the_requestor_of_an_alert_and_a_reader_is_of_his_reading(kind):
    """A.5.3.11: UserIsRequestor of those who performed what is reported shall be false."""
    found = [each.get("UserIsRequestor") for each in _message(kind, MESSAGES[kind][0]).findall("ActiveParticipant")]
    assert found[-1] == "false"
    assert found[:-1] == ["true" if kind == "inspected" else "false"] * (len(found) - 1)


def test_the_gateway_names_its_ae_titles_and_its_site():
    """A.5.3.1 and A.5.2.2: a process that speaks DICOM names its AE titles."""
    message = _message("started", MESSAGES["started"][0])
    assert message.find("ActiveParticipant").get("AlternativeUserID") == "AETITLES=SCANWARD;SCANWARD_ARCH"
    assert message.find("AuditSourceIdentification").get("AuditEnterpriseSiteID") == "hospital"


def test_a_caller_is_the_subject_by_its_configured_name():
    """A Node ID would have to be a host name or an address, which the log does not hold (A.5.3.11)."""
    subject = _message("refused", MESSAGES["refused"][0]).find("ParticipantObjectIdentification")
    code = subject.find("ParticipantObjectIDTypeCode")
    assert (code.get("csd-code"), code.get("codeSystemName")) == ("source", "99SCANWARD")
    assert subject.get("ParticipantObjectID") == "anonymous"


def test_an_alert_says_what_happened_and_where_it_stands_in_the_log():
    details = _message("decided", MESSAGES["decided"][0]).iter("ParticipantObjectDetail")
    said = {detail.get("type"): base64.b64decode(detail.get("value")).decode() for detail in details}
    assert said == {"Alert Description": "decided quarantine chest suspect", "Audit Log Index": "7"}


@pytest.mark.parametrize("kind", ["released", "shown", "refused"])
def test_nobodys_own_words_are_passed_on(kind):
    """A person's reason, and what an error says, might name a patient."""
    message = etree.tostring(_message(kind, MESSAGES[kind][0]))
    values = b"".join(base64.b64decode(value) for value in etree.fromstring(message).xpath("//@value"))
    assert b"Jane" not in message + values


@pytest.mark.parametrize("kind", ["decided", "study", "answered"])
def test_what_was_admitted_has_no_message(kind):
    assert _message(kind, {**SCAN, "disposition": "admit"}) is None


def test_a_name_that_xml_cannot_hold_becomes_one_that_it_can():
    message = _message("inspected", {"source": "a\x00\x1b<&>\n", "first": 0, "records": 1})
    SCHEMA.assertValid(message)
    assert message.find("ActiveParticipant").get("UserID") == "a??<&>?"


def test_a_log_is_exported_a_message_a_line(open_log, sqlite_place):
    log = open_log()
    for record in (Started(DIGEST, "1"), Inspected("auditor", 0, 1), Refused("grpc", "ct-1", "ScanError", "too large")):
        log.append(record).result()
    log.close()
    out = io.StringIO()
    with open_reader(sqlite_place.name) as reader:
        assert export_atna(reader, out, sender=SENDER) == 3
    messages = [etree.fromstring(line) for line in out.getvalue().splitlines()]
    assert [message.find("EventIdentification/EventID").get("csd-code") for message in messages] == [
        "110100", "110101", "110113",
    ]  # fmt: skip
    for message in messages:
        SCHEMA.assertValid(message)
