"""Whatever line a reviewer's act is killed at, one truth is left, and the same command completes it."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

STRIDE = 11
"""Of the lines that an act runs through, every so many-th is where it is killed; the first differs between acts."""

_SCRIPT = """
    import hashlib, os, shutil, signal, sys, time, traceback
    from dataclasses import dataclass
    from datetime import UTC, datetime
    from pathlib import Path
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from gateway.audit.export import lines
    from gateway.audit.log import AuditLog
    from gateway.audit.sqlite import SqliteReader, SqliteSink
    from gateway.audit.verify import verify
    from gateway.case import Digests
    from gateway.deadline import Deadline
    from gateway.errors import NotHeld, Settled
    from gateway.finding import Finding, GatewayReason, Outcome
    from gateway.telemetry.metrics import Metrics
    from gateway.pipeline import Pipeline
    from gateway.policy import ServicePolicy
    from gateway.callers.persons import Persons
    from gateway.callers.queries import QueryWatch
    from gateway.receipt import Notary
    from gateway.reply import Prediction
    from gateway.review import Person, Review
    from gateway.routing import Routing
    from gateway.scan import Scan, Source
    from gateway.service import ProtectionService, Route
    from gateway.settings.coherence import DEFAULT
    from gateway.settings.policy import PolicyConfig, SignaturePolicy
    from gateway.settings.review import ReviewConfig
    from gateway.store.held import State
    from gateway.store.ledger import Ledger
    from gateway.store.kek import RawKek
    from gateway.store.quarantine import Quarantine
    from gateway.testing import WIDE_LIMITS
    from gateway.callers.throttle import Throttle
    from gateway.verdict import Disposition
    from signing import Reason

    ACT, STRIDE, ROOT = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    POLICY = PolicyConfig(indeterminate="quarantine", unexaminable="quarantine",
                          signature=SignaturePolicy(failed="reject", unsigned="quarantine", stripped="reject"))
    PREDICTION = Prediction("ct", "1", ("clear", "nodule"), (0.25, 0.75))
    STEPPED = ("gateway/review.py", "gateway/service.py", "gateway/store/quarantine.py", "gateway/store/ledger.py",
               "gateway/durable.py")
    PERSON = Person("ann", "seen")
    NOW = datetime(2026, 5, 4, tzinfo=UTC).timestamp()

    class Unsigned:
        name, requires, provides = "signature", frozenset(), frozenset()
        def run(self, case, deadline):
            return case.with_finding(Finding("signature", Outcome.FAILED, Reason.UNSIGNED))

    class Model:
        name, ready, needs_image = "ct", True, False
        def predict(self, case, verdict, deadline):
            return PREDICTION

    class House:
        def __init__(self, root):
            self.root, metrics = root, Metrics()
            clock = lambda: datetime.fromtimestamp(self.now, UTC)
            self.now = NOW
            self.audit = AuditLog(SqliteSink(root / "audit.db"), KEY, metrics=metrics,
                                  checkpoint_file=root / "checkpoint")
            self.ledger = Ledger(root / "ledger.db", rows_max=9, age_s_max=1e9, clock=lambda: self.now)
            self.quarantine = Quarantine(root / "q", RawKek(bytes(32)), name_key=bytes(32), bytes_max=1 << 20,
                                         metrics=metrics)
            stores = dict(quarantine=self.quarantine, ledger=self.ledger, audit=self.audit, metrics=metrics)
            settings = ReviewConfig(four_eyes=False, decided_days_max=1.0, unsafe_undecided_days_max=1.0)
            self.review = Review(settings, persons=Persons(), **stores, clock=clock)
            route = Route("ct", Pipeline([Unsigned()], metrics), ServicePolicy(POLICY), Model(),
                          Digests("", "", "", "", ""))
            self.service = ProtectionService({"ct": route}, **stores, review=self.review, notary=Notary(KEY),
                throttle=Throttle({DEFAULT: WIDE_LIMITS}, threads=8), queries=QueryWatch(), routing=Routing(()),
                clock=clock)
            self.review.resume()

        def protect(self):
            data = b"a scan"
            scan = Scan(memoryview(data), hashlib.sha256(data).hexdigest(), "ct", "grpc", Source("s"), None, None)
            return self.service.protect(scan, Deadline.after(30.0))

        def act(self, identity):
            if ACT == "release":
                return self.service.release(identity, PERSON, Deadline.after(30.0))
            if ACT == "confirm":
                return self.review.confirm(identity, PERSON)
            self.now = NOW + 2 * 86400
            return self.review.expire()

        def records(self):
            with SqliteReader(self.root / "audit.db") as log:
                return [line["record"] for line in lines(log)]

    def killed_after(count):
        left = [count]
        def trace(frame, event, _):
            if not frame.f_code.co_filename.endswith(STEPPED):
                return None
            if event == "line":
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            return trace
        sys.settrace(trace)

    def in_child(work):
        child = os.fork()
        if child == 0:
            try:
                work()
                sys.settrace(None)
                os._exit(0)
            except BaseException:
                sys.settrace(None)
                traceback.print_exc()
                os._exit(1)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def prepared():
        house = House(ROOT / "held")
        house.protect()
        house.audit.close(); house.ledger.close()

    def examine(root):
        house = House(root)
        kinds = [record["kind"] for record in house.records()]
        ids = house.quarantine.ids()
        files = sorted(file.suffix for file in (root / "q").iterdir())
        assert files == ([".case", ".scan"] if ids else []), files
        for identity in ids:
            held = house.quarantine.show(identity)
            assert b"".join(house.quarantine.read(identity)) == b"a scan"
            if held.state is not State.HELD:
                assert kinds.count({"release": "released", "confirm": "confirmed"}[ACT]) >= 1, kinds
            if held.reply is not None:
                assert kinds[-1] == "answered" and kinds[-2] == "released", kinds
                assert house.protect() == held.reply
        if ACT == "expire":
            if ids:
                house.act(ids[0])
            assert house.quarantine.ids() == () and "expired" in [record["kind"] for record in house.records()]
            again = house.protect()
            assert b"".join(house.quarantine.read(again.quarantine_id)) == b"a scan"
        else:
            first = house.act(ids[0])
            settled = [record["kind"] for record in house.records()]
            assert house.act(ids[0]) == first
            assert [record["kind"] for record in house.records()] == settled
            other = house.review.confirm if ACT == "release" else (
                lambda identity, person: house.service.release(identity, person, Deadline.after(30.0)))
            try:
                other(ids[0], PERSON)
            except Settled:
                pass
            else:
                raise AssertionError("decided twice, and differently")
            if ACT == "release":
                assert first.reply.prediction == PREDICTION and house.protect() == first.reply
            else:
                assert house.protect().verdict.disposition is Disposition.QUARANTINE
        house.audit.close()
        with SqliteReader(root / "audit.db") as log:
            report = verify(log, [KEY.public_key()])
        assert report.ok, report.detail

    (ROOT / "held").mkdir()
    assert in_child(prepared) == 0
    count, kills = 1 + ("release", "confirm", "expire").index(ACT) * 3, 0
    while True:
        root = ROOT / str(count)
        shutil.copytree(ROOT / "held", root)
        def attempt():
            house = House(root)
            identity = house.quarantine.ids()[0]
            killed_after(count)
            house.act(identity)
        ended = in_child(attempt)
        assert in_child(lambda: examine(root)) == 0, f"killed after {count} lines"
        if ended == 0:
            break
        assert ended == -signal.SIGKILL, ended
        kills, count = kills + 1, count + STRIDE
        shutil.rmtree(root)
    print(kills)
"""


@pytest.mark.parametrize(("act", "kills"), [("release", 20), ("confirm", 6), ("expire", 6)])
def test_killed_between_any_two_steps_one_truth_is_left(tmp_path: Path, act: str, kills: int) -> None:
    """Real kills (SIGKILL), at lines spread over the whole act; then a restart, and the same command again."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_SCRIPT), act, str(STRIDE), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert int(done.stdout) >= kills
