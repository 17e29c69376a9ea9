"""What breaks around a gateway, each with the outcome that is promised: nothing lost, nothing let by; it goes on."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import resource
import shutil
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pydicom import dcmread
from pydicom.data import get_testdata_file

from gateway.app.assembly import AUDIT_LOG
from gateway.audit.export import show
from gateway.audit.sqlite import SqliteReader
from gateway.audit.verify import verify
from gateway.client.client import Answer, Client, ClientError
from gateway.errors import ConfigError
from gateway.settings.config import Config
from gateway.testing import GatewayFailed, GatewayProcess, Site
from signing import read, sign
from waiting import until

CT = Path(str(get_testdata_file("CT_small.dcm"))).read_bytes()
MIB = 1 << 20
UNTOLD = {"UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"}
"""Statuses after which a sender keeps its copy and tries again."""


def scan(number: int) -> bytes:
    """CT_small with other pixels for each number."""
    pixels = read(CT).get(0x7FE00010)
    assert pixels is not None
    return CT[: pixels.offset] + number.to_bytes(8, "little") + CT[pixels.offset + 8 :]


def public(path: Path) -> Ed25519PublicKey:
    key = load_pem_public_key(path.read_bytes())
    assert isinstance(key, Ed25519PublicKey)
    return key


def ready(gateway: GatewayProcess) -> bool:
    with grpc.insecure_channel(gateway.addresses.grpc) as channel:
        request = health_pb2.HealthCheckRequest(service="ready")
        answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=10)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def untold(client: Client, number: int, route: str = "open") -> bool:
    """Whether the sender hears that it must keep its scan."""
    try:
        client.protect(scan(number), route, timeout_s=5.0)
    except ClientError as error:
        if error.status in UNTOLD:
            return True
        raise
    return False


def assert_recorded(log: Path, site: Site, answers: list[Answer]) -> None:
    """The log is whole, and has the receipt of every answer at the place that the answer names."""
    with SqliteReader(log) as reader:
        assert verify(reader, [public(site.directory / "keys" / "checkpoint.pub")]).ok
        for answer in answers:
            record = show(reader, answer.log_index)["record"]
            assert record["receipt_sha256"] == hashlib.sha256(answer.receipt).hexdigest()


@pytest.fixture
def own(tmp_path: Path) -> Site:
    """A site that a test may break as it likes; it examines signatures alone."""
    return Site.make(tmp_path / "own")


@contextlib.contextmanager
def sending(site: Site, gateway: GatewayProcess) -> Iterator[Client]:
    with Client(gateway.addresses.grpc, token=site.tokens["scanner"]) as client:
        yield client


class TestDisk:
    """The state directory is a file system of its own, which the gateway alone sees."""

    @staticmethod
    def mounted(site: Site, options: str) -> list[str]:
        """A command that mounts it, then becomes the gateway."""
        state = site.directory / "data"
        state.mkdir(mode=0o700, exist_ok=True)
        script = f'mount -t tmpfs -o {options},mode=700 state "{state}" && exec "$@"'
        return ["unshare", "--map-root-user", "--mount", "sh", "-c", script, "sh"]

    def test_full_it_acknowledges_nothing_and_goes_on_once_there_is_room(self, own: Site) -> None:
        with (
            GatewayProcess(own.config, under=self.mounted(own, "size=8m")) as gateway,
            sending(own, gateway) as client,
        ):
            state = Path(f"/proc/{gateway.pid}/root", *(own.directory / "data").parts[1:])
            answers = [client.protect(scan(number), "open") for number in range(5)]
            with contextlib.suppress(OSError), (state / "ballast").open("wb", buffering=0) as ballast:
                while ballast.write(bytes(4096)):
                    pass
            refused = 0
            while refused < 3:  # pages that the log has already are still written
                number = 100 + len(answers) + refused
                if untold(client, number):
                    refused += 1
                else:
                    answers.append(client.protect(scan(number), "open"))
            until(lambda: not ready(gateway))

            (state / "ballast").unlink()

            until(lambda: ready(gateway))
            answers += [client.protect(scan(number), "open") for number in range(200, 205)]
            again = [client.protect(scan(number), "open") for number in range(5)]
            assert again == answers[:5]
            # SQLite asks for a file's true name, which the gateway's own mount hides.
            copy = shutil.copytree(state, own.directory / "copy", ignore=shutil.ignore_patterns("spool"))
            assert_recorded(copy / AUDIT_LOG, own, answers)

    def test_read_only_it_does_not_start_and_says_why(self, own: Site) -> None:
        with pytest.raises(GatewayFailed) as caught, GatewayProcess(own.config, under=self.mounted(own, "ro")):
            pass
        assert "exit code 2" in str(caught.value)
        assert "cannot be served" in str(caught.value)


class TestDatabase:
    """The audit log's file under the gateway's feet."""

    def test_locked_by_another_process_nothing_is_acknowledged_until_it_lets_go(self, own: Site) -> None:
        log = own.directory / "data" / AUDIT_LOG
        with GatewayProcess(own.config) as gateway, sending(own, gateway) as client:
            before = client.protect(scan(1), "open")
            with contextlib.closing(sqlite3.connect(log, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                assert untold(client, 2)
                other.execute("ROLLBACK")
            until(lambda: ready(gateway))
            after = client.protect(scan(2), "open")
        assert_recorded(log, own, [before, after])

    def test_gone_nothing_is_acknowledged_until_it_is_back(self, own: Site) -> None:
        log = own.directory / "data" / AUDIT_LOG
        away = log.with_name("elsewhere")
        with GatewayProcess(own.config) as gateway, sending(own, gateway) as client:
            before = client.protect(scan(1), "open")
            log.rename(away)
            assert untold(client, 2)
            until(lambda: not ready(gateway))
            away.rename(log)
            until(lambda: ready(gateway))
            after = client.protect(scan(2), "open")
        assert_recorded(log, own, [before, after])


class TestConfiguration:
    """A file that was cut off while it was written."""

    def test_no_cut_lets_in_anybody_or_opens_anything(self, own: Site) -> None:
        whole = own.config.read_bytes()
        full = Config.load(own.config)
        loaded = 0
        for cut in range(0, len(whole) - 2, 5):
            own.config.write_bytes(whole[:cut])
            with contextlib.suppress(ConfigError):
                part = Config.load(own.config)
                loaded += 1
                assert part.sources == full.sources[: len(part.sources)]
                assert (part.routes, part.policy, part.trust) == (full.routes, full.policy, full.trust)
        print(f"\n{loaded} cuts lie between two sources and lose the later ones")

    def test_half_written_it_keeps_what_served_before_and_is_not_started_with(self, own: Site) -> None:
        whole = own.config.read_bytes()
        with GatewayProcess(own.config) as gateway, sending(own, gateway) as client:
            own.config.write_bytes(whole[: len(whole) // 2])
            gateway.reload()
            until(lambda: '"reload_refused"' in gateway.log())
            assert client.protect(scan(1), "open").disposition == "admit"
        with pytest.raises(GatewayFailed, match="exit code 2"), GatewayProcess(own.config):
            pass


class TestArtefact:
    """One bit of what the detectors or the model are made of."""

    @pytest.mark.parametrize("suffix", [".safetensors", ".onnx"])
    def test_damaged_it_is_not_started_with(self, site: Site, tmp_path: Path, suffix: str) -> None:
        copy = tmp_path / "site"
        shutil.copytree(site.directory, copy, ignore=shutil.ignore_patterns("data"))
        damaged = max((copy / "small").rglob(f"*{suffix}"), key=lambda path: path.stat().st_size)
        content = bytearray(damaged.read_bytes())
        content[len(content) // 2] ^= 1
        damaged.write_bytes(content)

        with pytest.raises(GatewayFailed) as caught, GatewayProcess(copy / "scanward.toml"):
            pass

        assert "exit code 2" in str(caught.value)
        assert "models.small" in str(caught.value)


class TestClock:
    """The machine's clock steps back by three days while the gateway runs."""

    LIBRARY = next(iter(Path("/usr/lib").glob("*/faketime/libfaketime.so.1")), None)

    def test_answers_stay_what_they_were_and_the_log_whole(self, own: Site, tmp_path: Path) -> None:
        if self.LIBRARY is None:
            pytest.skip("needs faketime")
        clock = tmp_path / "clock"
        clock.write_text("+0")
        environment = {
            "LD_PRELOAD": str(self.LIBRARY), "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }  # fmt: skip
        signed = sign(scan(7), signer=own.hospital.signer("ct"), at=datetime.now(UTC))
        with GatewayProcess(own.config, environment=environment) as gateway, sending(own, gateway) as client:
            before = [client.protect(scan(number), "open") for number in range(3)]
            clock.write_text("-3d")
            again = [client.protect(scan(number), "open") for number in range(3)]
            after = [client.protect(scan(number), "open") for number in range(10, 13)]
            early = client.protect(signed, "strict")
            log = own.directory / "data" / AUDIT_LOG
            with SqliteReader(log) as reader:
                times = [show(reader, answer.log_index)["record"]["at"] for answer in (before[-1], after[-1])]

        assert times[0] > times[1], "the clock did not step back"
        assert again == before
        assert early.disposition != "admit", "a signature from what is now the future proves nothing"
        assert_recorded(log, own, before + after)


class TestMemory:
    """The detection worker gets no more memory, as when a GPU has none left."""

    @pytest.fixture
    def gateway(self, site: Site) -> Iterator[GatewayProcess]:
        """One with a single worker: the session's own may still have that of before a reload."""
        config = site.config.with_name("starved.toml")
        config.write_text(site.config.read_text().replace('directory = "data"', 'directory = "starved"'))
        with GatewayProcess(config) as process:
            yield process

    def test_out_of_memory_scans_are_held_and_a_new_worker_takes_over(
        self, site: Site, gateway: GatewayProcess
    ) -> None:
        def workers() -> list[int]:
            return [pid for pid in gateway.peak_bytes() if b"engine.worker" in command_of(pid)]

        with Client(gateway.addresses.grpc, token=site.tokens["reviewer"]) as client:
            assert client.protect(scan(9001), "ct").admitted
            (worker,) = workers()
            used = int(Path(f"/proc/{worker}/statm").read_text().split()[0]) * resource.getpagesize()
            resource.prlimit(worker, resource.RLIMIT_AS, (used, used))
            starved = [client.protect(tall(number), "ct") for number in range(2)]
            os.kill(worker, 9)
            until(lambda: workers() not in ([], [worker]) and ready(gateway))
            fed = [client.protect(tall(number), "ct") for number in range(2)]

        reasons = {finding.reason for answer in starved for finding in answer.findings if finding.stage == "detection"}
        print(f"\na worker without memory: {reasons}")
        assert {answer.disposition for answer in starved} == {"quarantine"}
        assert reasons <= {"worker_lost", "detector_error"}
        assert all(answer.prediction is None for answer in starved)
        assert {stage.reason for answer in fed for stage in answer.findings if stage.stage == "detection"} <= {
            "ok",
            "suspect",
        }


def command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def tall(number: int) -> bytes:
    """Forty frames, so that one batch needs memory that the worker does not have yet."""
    dataset = dcmread(io.BytesIO(CT))
    dataset.NumberOfFrames = 40
    dataset.PixelData = dataset.PixelData * 39 + scan(number)[-len(dataset.PixelData) :]
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()
