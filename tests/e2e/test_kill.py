"""kill -9 under load, again and again: what was acknowledged is in the log exactly once, and on disk or answered.

Ten kills here; `SCANWARD_KILLS` says another number, and `make soak` says 200.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from pydicom.data import get_testdata_file

from gateway.app.assembly import AUDIT_LOG, QUARANTINE
from gateway.audit.sqlite import SqliteReader
from gateway.audit.verify import verify
from gateway.client.client import Answer, Client, ClientError
from gateway.receipt import verify_receipt
from gateway.testing import GatewayProcess, Site
from signing import read

KILLS = int(os.environ.get("SCANWARD_KILLS", "10"))
IN_FLIGHT = 8
CT = Path(str(get_testdata_file("CT_small.dcm"))).read_bytes()
ROUTES = {"open": "admit", "strict": "reject", "held": "quarantine"}
"""What becomes of an unsigned scan on each route: all three ways out are killed."""

HELD = """
[routes.held]
trust = "open"
upstream = "none"
[routes.held.policy]
indeterminate = "quarantine"
unexaminable = "quarantine"
signature = { failed = "reject", unsigned = "quarantine", stripped = "reject" }
"""


class Sender:
    """Keeps calls in flight, and remembers what was acknowledged."""

    def __init__(self, token: str) -> None:
        self.acknowledged: dict[int, Answer] = {}
        self._token = token
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._under_way = 0

    @contextmanager
    def sending(self, address: str) -> Iterator[threading.Event]:
        """Send from `IN_FLIGHT` threads until the event is set, or until nobody answers any more."""
        stop = threading.Event()
        with Client(address, token=self._token) as client, ThreadPoolExecutor(IN_FLIGHT) as pool:
            threads = [pool.submit(self._send, client, stop) for _ in range(IN_FLIGHT)]
            try:
                yield stop
            finally:
                stop.set()
                for thread in threads:
                    thread.result(60)

    def wait_for(self, answers: int) -> int:
        """Wait for that many answers, then for every thread's call to be under way; returns how many are."""
        give_up_at = time.monotonic() + 120
        while len(self.acknowledged) < answers or self._under_way < IN_FLIGHT:
            assert time.monotonic() < give_up_at, "too few answers, or calls in flight"
            time.sleep(0.001)
        return self._under_way

    def _send(self, client: Client, stop: threading.Event) -> None:
        while not stop.is_set():
            number = next(self._numbers)
            with self._lock:
                self._under_way += 1
            try:
                answer = client.protect(scan(number), route_of(number), timeout_s=30.0)
            except ClientError:
                return
            finally:
                with self._lock:
                    self._under_way -= 1
            self.acknowledged[number] = answer


def scan(number: int) -> bytes:
    """CT_small with other pixels for each number."""
    pixels = read(CT).get(0x7FE00010)
    assert pixels is not None
    return CT[: pixels.offset] + number.to_bytes(8, "little") + CT[pixels.offset + 8 :]


def route_of(number: int) -> str:
    return list(ROUTES)[number % len(ROUTES)]


def public(path: Path) -> Ed25519PublicKey:
    key = load_pem_public_key(path.read_bytes())
    assert isinstance(key, Ed25519PublicKey)
    return key


@pytest.mark.timeout(60 + 60 * KILLS)
def test_what_was_acknowledged_survives_every_kill(tmp_path: Path) -> None:
    site = Site.make(tmp_path / "site", tables=HELD, routes=["held"])
    sender = Sender(site.tokens["scanner"])
    chance = random.Random(9)  # noqa: S311 - when to kill, not a secret
    landed = []
    for _ in range(KILLS):
        with GatewayProcess(site.config) as gateway, sender.sending(gateway.addresses.grpc):
            landed.append(sender.wait_for(len(sender.acknowledged) + chance.randint(1, 60)))
            time.sleep(chance.uniform(0.0, 0.02))
            os.kill(gateway.pid, signal.SIGKILL)
    answers = dict(sender.acknowledged)
    print(f"\n{KILLS} kills, {len(answers)} scans acknowledged")

    with GatewayProcess(site.config) as gateway, Client(gateway.addresses.grpc, token=site.tokens["scanner"]) as client:
        again = {number: client.protect(scan(number), route_of(number)) for number in answers}

    assert landed == [IN_FLIGHT] * KILLS
    assert again == answers
    assert {answer.disposition for answer in answers.values()} == set(ROUTES.values())
    log = site.directory / "data" / AUDIT_LOG
    with SqliteReader(log) as reader:
        assert verify(reader, [public(site.directory / "keys" / "checkpoint.pub")]).ok
    assert_once_in(log, answers)
    assert_on_disk(site, answers)


def assert_once_in(log: Path, answers: dict[int, Answer]) -> None:
    """One decision and one answer for each acknowledged scan, with the receipt that the sender has."""
    with SqliteReader(log) as reader:
        records = [json.loads(body) for _, body, _ in reader.entries() if isinstance(body, bytes)]
    decided = Counter(record["scan_sha256"] for record in records if record["kind"] == "decided")
    answered = Counter(
        (record["scan_sha256"], record["receipt_sha256"]) for record in records if record["kind"] == "answered"
    )
    of_scan = Counter(digest for digest, _ in answered.elements())
    for answer in answers.values():
        receipt = hashlib.sha256(answer.receipt).hexdigest()
        assert (decided[answer.scan_sha256], of_scan[answer.scan_sha256]) == (1, 1)
        assert answered[answer.scan_sha256, receipt] == 1


def assert_on_disk(site: Site, answers: dict[int, Answer]) -> None:
    """Every held scan that was acknowledged is in quarantine under the name in its receipt."""
    key = public(site.directory / "keys" / "receipt.pub")
    held = [answer for answer in answers.values() if answer.disposition == "quarantine"]
    names = {verify_receipt(answer.receipt, [key])["predicate"]["quarantineId"] for answer in held}
    stored = {path.stem for path in (site.directory / "data" / QUARANTINE).glob("*.scan") if path.stat().st_size}
    assert len(names) == len(held)
    assert names <= stored
