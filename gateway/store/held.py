"""What is known about one held scan, in memory and as JSON: why it is held, who decided about it, what came of that."""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np

from gateway import documents
from gateway.case import Case
from gateway.finding import Finding
from gateway.reply import Reply
from gateway.scan import Scan, Source
from gateway.store.ledger import question
from gateway.verdict import Verdict

EXAMINATIONS_MAX = 16
"""Kept for one scan: the first, and the newest of the others."""

_SCHEMA = 2


class State(StrEnum):
    """Where a held scan stands; a decision is taken once, and only a new question about the scan opens it again."""

    HELD = "held"
    RELEASED = "released"
    """People let it go on to its model; `Held.reply` says what the model answered, once it has."""
    CONFIRMED = "confirmed"
    """A person looked at it, and it stays out."""


@dataclass(frozen=True, slots=True)
class Act:
    """What one person said about a held scan."""

    by: str
    """`Source.identity` of the caller."""
    reason: str
    """The person's own words."""
    at: str
    """RFC 3339, UTC."""


@dataclass(frozen=True, slots=True)
class Examination:
    """What one examination of a held scan found, and why it was held."""

    received_at: str
    """RFC 3339, UTC."""
    verdict: Verdict
    findings: tuple[Finding, ...]
    source: Source
    """Who sent it then."""
    question: str
    """Under which the ledger remembers the answer (`ledger.question`)."""

    @classmethod
    def of(cls, case: Case, verdict: Verdict) -> Examination:
        """What is kept of an examined case."""
        asked = question(case.scan, case.digests)
        return cls(case.received_at.isoformat(), verdict, case.findings, case.scan.source, asked)


@dataclass(frozen=True, slots=True)
class Held:
    """One scan in quarantine."""

    id: str
    """32 hexadecimal digits; says nothing about the scan to whoever lacks the name key."""
    scan_sha256: str
    bytes: int
    modality: str
    route: str
    receiver: str
    bare: bool
    """Not an object but a model's input that came without one; its bytes are an .npy file."""
    since: str
    """RFC 3339, UTC: it waits for a decision from then on."""
    examinations: tuple[Examination, ...]
    """In order of time; at least one."""
    state: State = State.HELD
    acts: tuple[Act, ...] = ()
    """Of those who decided; while it is held, of those who agreed to its release so far."""
    reply: Reply | None = None
    """Of a released scan: its answer. None until the model has given one."""

    @property
    def source(self) -> Source:
        """Who sent it last."""
        return self.examinations[-1].source

    @property
    def questions(self) -> frozenset[str]:
        """Under which the ledger remembers what was said of the scan; of those examinations that are kept."""
        return frozenset(examination.question for examination in self.examinations)

    def with_examination(self, examination: Examination) -> Held:
        """The case with one examination more, of which the first and the newest are kept."""
        examinations = (*self.examinations, examination)
        if len(examinations) > EXAMINATIONS_MAX:
            examinations = (examinations[0], *examinations[2:])
        return replace(self, examinations=examinations)

    def examined_again(self, examination: Examination) -> Held:
        """The case of a scan that is to be held once more.

        What people said stands for the questions that they were asked. A release whose answer went out is over, so a
        scan that is held after it needs a new one; what was confirmed to be bad stays so.
        """
        known = examination.question in self.questions
        again = self.with_examination(examination)
        if self.state is State.CONFIRMED or (known and self.reply is None):
            return again
        since = self.since if self.state is State.HELD else examination.received_at
        return replace(again, state=State.HELD, acts=(), reply=None, since=since)


def scan_of(held: Held, data: bytes) -> Scan:
    """The scan as it was received, made of its bytes."""
    if held.bare:
        tensor = np.load(io.BytesIO(data), allow_pickle=False)
        return Scan.of_tensor(tensor, route=held.route, receiver=held.receiver, source=held.source)
    return Scan.receive(data, route=held.route, receiver=held.receiver, source=held.source, sha256=held.scan_sha256)


def of_held(held: Held) -> documents.Document:
    """Every field but the id, under which the document lies."""
    return {
        "schema": _SCHEMA,
        "scan_sha256": held.scan_sha256,
        "bytes": held.bytes,
        "modality": held.modality,
        "route": held.route,
        "receiver": held.receiver,
        "bare": held.bare,
        "since": held.since,
        "examinations": [
            {
                "received_at": examination.received_at,
                "verdict": documents.of_verdict(examination.verdict),
                "findings": [documents.of_finding(finding) for finding in examination.findings],
                "source": asdict(examination.source),
                "question": examination.question,
            }
            for examination in held.examinations
        ],
        "state": str(held.state),
        "acts": [{"by": act.by, "reason": act.reason, "at": act.at} for act in held.acts],
        "reply": None if held.reply is None else documents.of_reply(held.reply),
    }


def to_held(identity: str, document: dict[str, Any]) -> Held:
    """What `of_held` wrote; raises KeyError, TypeError or ValueError on anything else."""
    if document["schema"] != _SCHEMA:
        raise ValueError(f"a held case has schema {document['schema']}, this is {_SCHEMA}")
    reply = document["reply"]
    return Held(
        identity,
        document["scan_sha256"],
        document["bytes"],
        document["modality"],
        document["route"],
        document["receiver"],
        document["bare"],
        document["since"],
        tuple(
            Examination(
                examination["received_at"],
                documents.to_verdict(examination["verdict"]),
                tuple(documents.to_finding(finding) for finding in examination["findings"]),
                Source(**examination["source"]),
                examination["question"],
            )
            for examination in document["examinations"]
        ),
        State(document["state"]),
        tuple(Act(act["by"], act["reason"], act["at"]) for act in document["acts"]),
        None if reply is None else documents.to_reply(reply),
    )
