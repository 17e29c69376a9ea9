"""Scans that were promised to their senders before they were examined: on disk first, examined after.

A DICOM sender that hears "success" deletes its copy, and one that hears "failure" for one slice drops the rest of the
study. So the door takes what can be read into custody, says "success" once it is on disk, and every verdict comes
after: a scan that is refused is held in quarantine as well, since nobody else may have it any more.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict

import structlog

from gateway.audit.log import AuditLog
from gateway.deadline import Deadline
from gateway.receivers.receiver import Inflation
from gateway.scan import Scan, Source
from gateway.service import ProtectionService
from gateway.store.custody import Custody, Parcel
from gateway.store.outbox import Outbox
from gateway.store.spool import Spool
from gateway.telemetry.metrics import Metrics

QUEUE = "inbox"
"""Name of the queue in `scanward_queue_depth`."""

_log = structlog.get_logger(__name__)


class Inbox:
    """Takes scans into custody and has them examined; thread-safe."""

    def __init__(
        self,
        custody: Custody,
        *,
        service: Callable[[], ProtectionService],
        spool: Spool,
        audit: AuditLog,
        metrics: Metrics,
        examiners: int,
        examine_s_max: float,
        unsafe: str | None = None,
    ) -> None:
        """What was in custody already is examined first, save what the log says was answered before a crash.

        Args:
            custody: closed by `close`.
            service: asked for at each examination, so that a reload reaches the next one whole.
            spool: where a scan lies while it is examined.
            audit: read once, here.
            metrics: told how many wait.
            examiners: scans examined at once.
            examine_s_max: deadline of one examination.
            unsafe: name of the `unsafe_…` setting without which the door would be closed; counted by admission.
        """
        self._service = service
        self._spool = spool
        self._audit = audit
        self._metrics = metrics
        self._examine_s_max = examine_s_max
        self._unsafe = unsafe
        self._inflation = Inflation()
        _let_go_of_answered(custody, audit)
        self._line = Outbox(QUEUE, custody, self._examine, workers=examiners, metrics=metrics)

    def start(self) -> None:
        """Begin to examine."""
        self._line.start()

    def take(self, data: memoryview, sha256: str, *, route: str, receiver: str, source: Source) -> None:
        """Take a scan into custody; on disk when this returns. The same scan twice while it waits is one.

        Raises:
            Overloaded: there is no room, or the disk is full or fails.
        """
        facts = {
            "sha256": sha256,
            "route": route,
            "receiver": receiver,
            "source": asdict(source),
            "log_size": self._audit.size,
        }
        self._line.put(data, facts, key=json.dumps([sha256, route, receiver, asdict(source)]))

    def close(self, seconds: float) -> None:
        """Give examinations in progress that long; the rest waits for the next start."""
        self._line.close(seconds)

    def _examine(self, parcel: Parcel) -> None:
        facts = parcel.facts
        with self._spool.open() as writer:
            for chunk in parcel.chunks():
                writer.write(chunk)
            sha256, hashed, data = writer.sha256, writer.hashed(), writer.seal()
        deadline = Deadline.after(self._examine_s_max)
        with self._inflation.room(data, deadline):
            scan = Scan.receive(
                data,
                route=facts["route"],
                receiver=facts["receiver"],
                source=Source(**facts["source"]),
                sha256=sha256,
                hashed=hashed,
                acknowledged=True,
            )
            reply = self._service().protect(scan, deadline)
        if self._unsafe is not None and reply.verdict.disposition.admitted:
            self._metrics.unsafe(self._unsafe)


def _let_go_of_answered(custody: Custody, audit: AuditLog) -> None:
    """A crash between the record of an answer and the end of custody must not have the scan answered again."""
    parcels = [custody.parcel(identity) for identity in custody.waiting()]
    if not parcels:
        return
    answered = set(_answers(audit, min(parcel.facts["log_size"] for parcel in parcels)))
    for parcel in parcels:
        facts = parcel.facts
        if (facts["sha256"], facts["route"], facts["receiver"], Source(**facts["source"]).identity) in answered:
            custody.done(parcel.id)
    _log.info("inbox_found", count=len(custody.waiting()))


def _answers(audit: AuditLog, first: int) -> Iterable[tuple[str, str, str, str]]:
    """Scan digest, route, door and sender of each answer recorded at that index or after it.

    Another door may have refused the same bytes, or another sender's may have been kept nowhere: neither answers these.
    """
    with audit.reader() as log:
        for _, written, _ in log.entries(first):
            body = json.loads(written) if isinstance(written, bytes) and written else {}  # empty: pruned
            if body.get("kind") == "answered":
                yield body["scan_sha256"], body["route"], body["receiver"], body["source"]
