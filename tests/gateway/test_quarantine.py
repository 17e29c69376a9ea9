"""A held scan is on disk, unreadable without the key, and comes back unchanged."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gateway import durable
from gateway.errors import ConfigError, Overloaded, ScanError
from gateway.finding import Finding, GatewayReason, Outcome
from gateway.scan import Scan, Source
from gateway.store.held import EXAMINATIONS_MAX, scan_of
from gateway.store.kek import RawKek, VaultError
from gateway.store.quarantine import Quarantine
from gateway.store.vault import CHUNK_BYTES
from gateway.verdict import Disposition, Verdict

KEK, NAME_KEY = RawKek(bytes(range(32))), bytes(range(32, 64))
HELD = Verdict(Disposition.QUARANTINE, (GatewayReason.SUSPECT,))
MIB = 1 << 20


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "quarantine"


@pytest.fixture
def open_quarantine(directory: Path, metrics) -> Iterator[Callable[..., Quarantine]]:
    opened: list[Quarantine] = []

    def open_(kek: RawKek = KEK, *, bytes_max: int = 64 * MIB) -> Quarantine:
        for earlier in opened:
            earlier.close()
        opened[:] = [Quarantine(directory, kek, name_key=NAME_KEY, bytes_max=bytes_max, metrics=metrics)]
        return opened[0]

    yield open_
    for quarantine in opened:
        quarantine.close()


@pytest.fixture
def quarantine(open_quarantine: Callable[..., Quarantine]) -> Quarantine:
    return open_quarantine()


def _bytes(quarantine: Quarantine, identity: str) -> bytes:
    return b"".join(quarantine.read(identity))


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES + 5])
def test_a_held_scan_comes_back_unchanged(open_quarantine, make_case, size):
    data = os.urandom(size)
    identity = open_quarantine().hold(make_case(data), HELD)
    assert _bytes(open_quarantine(), identity) == data  # after a restart


def test_findings_and_verdict_come_back_exactly(open_quarantine, make_case):
    case = make_case()
    identity = open_quarantine().hold(case, HELD)
    held = open_quarantine().show(identity)
    assert (held.scan_sha256, held.bytes, held.route, held.receiver) == (case.scan.sha256, 4, "ct", "grpc")
    assert (held.modality, held.source.name) == ("other", "ct-scanner")
    (examination,) = held.examinations
    assert (examination.verdict, examination.findings) == (HELD, case.findings)
    assert examination.received_at == case.received_at.isoformat()


def test_nothing_is_readable_on_disk(quarantine, directory, make_case):
    case = make_case(b"DOE^JANE" * 100)
    quarantine.hold(case, HELD)
    for file in directory.iterdir():
        content = file.read_bytes()
        for secret in (b"DOE^JANE", b"suspect", case.scan.sha256.encode(), bytes.fromhex(case.scan.sha256)):
            assert secret not in content
            assert secret.hex() not in file.name
        assert case.scan.sha256[:16] not in file.name
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_the_same_scan_is_held_once_and_each_examination_is_kept(quarantine, directory, make_case):
    first = quarantine.hold(make_case(), HELD)
    timeout = Finding("detection", Outcome.INDETERMINATE, GatewayReason.TIMEOUT)
    verdict = Verdict(Disposition.QUARANTINE, (GatewayReason.TIMEOUT,))
    assert quarantine.hold(make_case(findings=(timeout,)), verdict) == first
    assert len(list(directory.iterdir())) == 2
    (held,) = quarantine.list()
    assert [examination.verdict for examination in held.examinations] == [HELD, verdict]


def test_the_number_of_examinations_is_bounded_and_the_first_stays(quarantine, make_case):
    quarantine.hold(make_case(), HELD)
    later = Verdict(Disposition.QUARANTINE, (GatewayReason.TIMEOUT,))
    for _ in range(EXAMINATIONS_MAX + 3):
        quarantine.hold(make_case(), later)
    (held,) = quarantine.list()
    assert len(held.examinations) == EXAMINATIONS_MAX
    assert held.examinations[0].verdict == HELD


def test_the_same_scan_on_another_route_is_another(quarantine, make_case):
    """It is released to another model."""
    assert quarantine.hold(make_case(), HELD) != quarantine.hold(make_case(route="legacy"), HELD)


def test_all_held_scans_are_listed_and_counted(open_quarantine, make_case, metrics):
    quarantine = open_quarantine()
    identities = {quarantine.hold(make_case(str(number).encode()), HELD) for number in range(5)}
    assert metrics.registry.get_sample_value("scanward_quarantine_held") == 5
    metrics.held(0)
    quarantine = open_quarantine()
    assert metrics.registry.get_sample_value("scanward_quarantine_held") == 5
    assert {held.id for held in quarantine.list()} == identities


def test_callers_at_once_hold_one_object(quarantine, directory, make_case):
    data = os.urandom(2 * MIB)
    with ThreadPoolExecutor(8) as pool:
        identities = list(pool.map(lambda _: quarantine.hold(make_case(data), HELD), range(8)))
    assert len(set(identities)) == 1
    assert len(list(directory.iterdir())) == 2
    assert _bytes(quarantine, identities[0]) == data
    assert len(next(quarantine.list()).examinations) == 8
    assert quarantine._used < 2 * MIB + 64 * 1024


@pytest.mark.parametrize("kind", ["scan", "case"])
@pytest.mark.parametrize("place", [0, 10, 30, 70, -1])
def test_a_changed_file_is_not_given_out(quarantine, directory, make_case, kind, place):
    identity = quarantine.hold(make_case(b"x" * 1000), HELD)
    file = directory / f"{identity}.{kind}"
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)
    with pytest.raises(VaultError):
        _bytes(quarantine, identity)


@pytest.mark.parametrize("change", ["cut", "swapped", "repeated", "emptied"])
def test_chunks_cannot_be_cut_swapped_or_repeated(quarantine, directory, make_case, change):
    identity = quarantine.hold(make_case(os.urandom(3 * CHUNK_BYTES)), HELD)
    file = directory / f"{identity}.scan"
    content = file.read_bytes()
    sealed = CHUNK_BYTES + 16
    header, one, two, three = (
        content[: -3 * sealed],
        content[-3 * sealed : -2 * sealed],
        content[-2 * sealed : -sealed],
        content[-sealed:],
    )
    parts = {
        "cut": header + one + two,
        "swapped": header + two + one + three,
        "repeated": header + one + one + two + three,
        "emptied": header,
    }
    file.write_bytes(parts[change])
    with pytest.raises(VaultError, match="changed or moved"):
        _bytes(quarantine, identity)


def test_one_scans_file_does_not_pass_for_anothers(quarantine, directory, make_case):
    one, two = quarantine.hold(make_case(b"one"), HELD), quarantine.hold(make_case(b"two"), HELD)
    (directory / f"{one}.scan").replace(directory / f"{two}.scan")
    with pytest.raises(VaultError, match="changed or moved"):
        _bytes(quarantine, two)
    (directory / f"{one}.case").replace(directory / f"{two}.case")
    with pytest.raises(VaultError, match="changed or moved"):
        quarantine.show(two)


def test_another_kek_is_named_as_the_cause(open_quarantine, make_case):
    identity = open_quarantine().hold(make_case(), HELD)
    with pytest.raises(VaultError, match="another key"):
        open_quarantine(RawKek(bytes(32))).show(identity)


@pytest.mark.parametrize("identity", ["", "00" * 16, "../../etc/passwd", "A" * 32, "0" * 31])
def test_an_unknown_id_is_refused(quarantine, identity):
    with pytest.raises(ScanError, match="no scan of this id"):
        quarantine.show(identity)
    with pytest.raises(ScanError, match="no scan of this id"):
        next(quarantine.read(identity))


def test_a_full_quarantine_is_overload_and_leaves_nothing_behind(open_quarantine, directory, make_case):
    quarantine = open_quarantine(bytes_max=4 * MIB)
    kept = quarantine.hold(make_case(os.urandom(3 * MIB)), HELD)
    with pytest.raises(Overloaded, match="full"):
        quarantine.hold(make_case(os.urandom(2 * MIB)), HELD)
    assert {file.stem for file in directory.iterdir()} == {kept}
    quarantine.hold(make_case(b"small"), HELD)
    with pytest.raises(Overloaded, match="full"):
        open_quarantine(bytes_max=3 * MIB).hold(make_case(b"after a restart"), HELD)


def test_a_name_that_cannot_be_made_durable_leaves_nothing_behind(open_quarantine, directory, make_case, monkeypatch):
    """A case without its scan would promise bytes that are not there."""
    quarantine, sync = open_quarantine(), durable.sync_directory

    def fails(path: Path) -> None:
        monkeypatch.setattr(durable, "sync_directory", sync)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(durable, "sync_directory", fails)
    with pytest.raises(Overloaded, match="EIO"):
        quarantine.hold(make_case(b"a scan"), HELD)
    assert (list(directory.iterdir()), quarantine._used) == ([], 0)
    identity = quarantine.hold(make_case(b"a scan"), HELD)
    assert _bytes(open_quarantine(), identity) == b"a scan"


def test_many_small_scans_count_whole_blocks(open_quarantine, make_case):
    quarantine = open_quarantine(bytes_max=10 * 8192)
    for number in range(10):
        quarantine.hold(make_case(str(number).encode()), HELD)
    with pytest.raises(Overloaded, match="full"):
        quarantine.hold(make_case(b"one more"), HELD)


def test_a_full_disk_is_overload_and_leaves_nothing_behind(tmp_path, directory):
    """RLIMIT_FSIZE makes the kernel refuse the write as a full disk would."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_FULL_DISK), str(directory)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "the quarantine's disk is full 0"
    assert list(directory.iterdir()) == []


_FULL_DISK = """
    import hashlib, resource, signal, sys
    from datetime import UTC, datetime
    from pathlib import Path
    from gateway.case import Case, Digests
    from gateway.errors import Overloaded
    from gateway.finding import GatewayReason
    from gateway.telemetry.metrics import Metrics
    from gateway.scan import Scan, Source
    from gateway.store.kek import RawKek
    from gateway.store.quarantine import Quarantine
    from gateway.verdict import Disposition, Verdict
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    quarantine = Quarantine(
        Path(sys.argv[1]), RawKek(bytes(32)), name_key=bytes(32), bytes_max=1 << 30, metrics=Metrics()
    )
    data = bytes(4 << 20)
    scan = Scan(memoryview(data), hashlib.sha256(data).hexdigest(), "ct", "grpc", Source("s"), None, None)
    try:
        quarantine.hold(
            Case(scan, datetime.now(UTC), Digests("", "", "", "", "")),
            Verdict(Disposition.QUARANTINE, (GatewayReason.SUSPECT,)),
        )
    except Overloaded as error:
        print(error, quarantine._used)
"""


def test_what_a_crash_left_half_written_is_thrown_away(open_quarantine, directory, make_case):
    quarantine = open_quarantine()
    kept = quarantine.hold(make_case(b"kept"), HELD)
    lost = quarantine.hold(make_case(b"lost"), HELD)
    (directory / f"{lost}.case").unlink()  # the crash came between the two files
    (directory / f"{lost}.0011.part").write_bytes(b"half")
    quarantine = open_quarantine()
    assert {file.stem for file in directory.iterdir()} == {kept}
    assert quarantine.hold(make_case(b"lost"), HELD) == lost


def test_a_held_scan_survives_kill_9(directory, open_quarantine):
    """The process is killed the moment it said that the scan is held."""
    script = _FULL_DISK.replace("resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))", "").replace(
        "try:\n        quarantine.hold(", "try:\n        identity = quarantine.hold("
    )
    script = textwrap.dedent(script) + "import os\nprint(identity, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)\n"
    done = subprocess.run(
        [sys.executable, "-c", script, str(directory)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == -9, done.stderr
    quarantine = Quarantine(directory, RawKek(bytes(32)), name_key=bytes(32), bytes_max=1 << 30, metrics=_metrics())
    assert _bytes(quarantine, done.stdout.strip()) == bytes(4 << 20)
    quarantine.close()


def _metrics():
    from gateway.telemetry.metrics import Metrics

    return Metrics()


def test_a_large_scan_does_not_sit_in_memory(tmp_path):
    script = """
        import hashlib, mmap, resource, sys, tempfile
        from datetime import UTC, datetime
        from pathlib import Path
        from gateway.case import Case, Digests
        from gateway.finding import GatewayReason
        from gateway.telemetry.metrics import Metrics
        from gateway.scan import Scan, Source
        from gateway.store.kek import RawKek
        from gateway.store.quarantine import Quarantine
        from gateway.verdict import Disposition, Verdict
        def anonymous():
            for line in open("/proc/self/status"):
                if line.startswith("RssAnon"):
                    return int(line.split()[1])
        file = tempfile.TemporaryFile(dir=sys.argv[1])
        file.truncate(200 << 20)
        data = mmap.mmap(file.fileno(), 200 << 20, prot=mmap.PROT_READ)
        scan = Scan(memoryview(data), "00" * 32, "ct", "grpc", Source("s"), None, None)
        quarantine = Quarantine(
            Path(sys.argv[1]) / "q", RawKek(bytes(32)), name_key=bytes(32), bytes_max=1 << 30, metrics=Metrics()
        )
        held = Verdict(Disposition.QUARANTINE, (GatewayReason.SUSPECT,))
        before = anonymous()
        identity = quarantine.hold(Case(scan, datetime.now(UTC), Digests("", "", "", "", "")), held)
        count = sum(len(chunk) for chunk in quarantine.read(identity))
        print(count, anonymous() - before)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)], capture_output=True, text=True, check=True
    )
    count, grown_kib = map(int, done.stdout.split())
    assert count == 200 * MIB
    assert grown_kib * 1024 < 24 * MIB


def test_a_directory_in_use_is_refused(quarantine, directory, metrics):
    with pytest.raises(ConfigError, match="another process"):
        Quarantine(directory, KEK, name_key=NAME_KEY, bytes_max=MIB, metrics=metrics)


def test_a_short_key_is_refused(directory, metrics):
    with pytest.raises(ConfigError, match="32 bytes"):
        Quarantine(directory, KEK, name_key=b"short", bytes_max=MIB, metrics=metrics)


def test_a_bare_tensor_comes_back_as_the_scan_that_it_was(quarantine, make_case):
    tensor = np.arange(12, dtype=np.float32).reshape(1, 1, 3, 4)
    scan = Scan.of_tensor(tensor, route="ct", receiver="kserve", source=Source("s"))
    assert scan.modality == "bare"
    identity = quarantine.hold(replace(make_case(), scan=scan), HELD)
    again = scan_of(quarantine.show(identity), _bytes(quarantine, identity))
    assert (again.sha256, again.receiver, again.source) == (scan.sha256, "kserve", scan.source)
    assert again.tensor is not None
    assert np.array_equal(again.tensor, tensor)
    assert quarantine.hold(make_case(bytes(scan.data)), HELD) != identity  # the same bytes, sent as an object
