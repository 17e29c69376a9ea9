"""A scan that was promised to its sender waits until it itself was answered, whoever else sent the same bytes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gateway.audit.record import Answered
from gateway.receivers.inbox import Inbox
from gateway.reply import Receipt
from gateway.scan import Source
from gateway.store.custody import Custody
from gateway.store.kek import RawKek
from gateway.store.spool import Spool

CT1 = Source("ct1", calling_ae="CT1")


@pytest.mark.parametrize(
    ("receiver", "source", "waiting"),
    [("dimse", CT1, 0), ("grpc", Source("stranger"), 1), ("dimse", Source("ct2", calling_ae="CT2"), 1)],
    ids=["itself", "another-door", "another-title"],
)
def test_after_a_start_only_its_own_answer_ends_the_custody_of_a_scan(
    tmp_path: Path, audit, metrics, make_case, receiver: str, source: Source, waiting: int
) -> None:
    """The other's scan may have been refused, and then it is kept nowhere."""

    def opened() -> tuple[Inbox, Custody]:
        custody = Custody(tmp_path / "inbox", RawKek(bytes(32)), bytes_max=1 << 20, objects_max=10)
        spool = Spool(tmp_path / "spool", bytes_max_per_object=1 << 20, bytes_max_total=1 << 20)
        inbox = Inbox(
            custody,
            service=lambda: pytest.fail("nothing is examined before the start"),
            spool=spool,
            audit=audit,
            metrics=metrics,
            examiners=1,
            examine_s_max=1.0,
        )
        return inbox, custody

    case = make_case(b"promised")
    inbox, _ = opened()
    inbox.take(case.scan.data, case.scan.sha256, route=case.scan.route, receiver="dimse", source=CT1)
    inbox.close(1.0)
    answered = replace(case, scan=replace(case.scan, receiver=receiver, source=source))
    audit.append(Answered.of(answered, Receipt(b"{}"))).result()
    inbox, custody = opened()
    try:
        assert len(custody.waiting()) == waiting
    finally:
        inbox.close(1.0)
