"""The spool takes in objects of any size within its budget, hashes them on the way, and leaves nothing behind."""

from __future__ import annotations

import gc
import hashlib
import os
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from gateway.errors import ConfigError, Overloaded, ScanError
from gateway.store.spool import MEMORY_BYTES_MAX, Spool

MIB = 1 << 20


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool", bytes_max_per_object=8 * MIB, bytes_max_total=12 * MIB)


def _fill(spool: Spool, data: bytes, chunk: int = 256 * 1024) -> tuple[memoryview, str]:
    with spool.open() as writer:
        for start in range(0, len(data), chunk):
            writer.write(data[start : start + chunk])
        return writer.seal(), writer.sha256


@pytest.mark.parametrize("size", [0, 1, 500_000, MEMORY_BYTES_MAX, MEMORY_BYTES_MAX + 1, 5 * MIB + 17])
def test_gives_back_the_bytes_and_their_digest(spool, size):
    data = os.urandom(size)
    view, digest = _fill(spool, data)
    assert view == data
    assert view.readonly
    assert digest == hashlib.sha256(data).hexdigest()


def test_a_large_object_lies_in_a_file_without_a_name(spool):
    with spool.open() as writer:
        writer.write(bytes(2 * MIB))
        status = os.fstat(writer._file.fileno())
        assert list(spool.directory.iterdir()) == []
    assert status.st_nlink == 0
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert stat.S_IMODE(spool.directory.stat().st_mode) == 0o700


def test_room_comes_back_when_the_last_view_is_dropped(spool):
    for size in (1000, 3 * MIB):
        view, _ = _fill(spool, bytes(size))
        part = view[10:20]
        assert spool.bytes_used == size
        del view
        gc.collect()
        assert spool.bytes_used == size, "a slice still uses the object"
        del part
        gc.collect()
        assert spool.bytes_used == 0


def test_room_comes_back_when_a_writer_is_left_or_forgotten(spool):
    with spool.open() as writer:
        writer.write(bytes(2 * MIB))
    assert spool.bytes_used == 0
    forgotten = spool.open()
    forgotten.write(b"abc")
    del forgotten
    gc.collect()
    assert spool.bytes_used == 0


def test_an_object_over_the_largest_size_is_the_callers_mistake(spool):
    with spool.open() as writer:
        writer.write(bytes(8 * MIB))
        with pytest.raises(ScanError, match="larger than 8388608 bytes"):
            writer.write(b"x")
    assert spool.bytes_used == 0


def test_a_claim_over_the_largest_size_is_refused_before_a_byte_came(spool):
    with pytest.raises(ScanError, match="larger than"):
        spool.open(size_hint=3 << 30)


def test_a_claim_reserves_nothing(spool):
    writers = [spool.open(size_hint=8 * MIB) for _ in range(50)]
    assert spool.bytes_used == 0
    assert len(writers) == 50


def test_a_claim_that_does_not_fit_now_is_overload(spool):
    view, _ = _fill(spool, bytes(6 * MIB))
    with pytest.raises(Overloaded):
        spool.open(size_hint=7 * MIB)
    del view


def test_a_full_budget_is_overload_and_passes(spool):
    view, _ = _fill(spool, bytes(8 * MIB))
    with spool.open() as writer:
        writer.write(bytes(4 * MIB))
        with pytest.raises(Overloaded, match="full"):
            writer.write(b"x")
    del view
    gc.collect()
    _fill(spool, bytes(8 * MIB))


def test_a_full_disk_is_overload(tmp_path):
    """RLIMIT_FSIZE makes the kernel refuse the write as a full disk would."""
    script = f"""
        import resource, signal, sys
        from pathlib import Path
        from gateway.errors import Overloaded
        from gateway.store.spool import Spool
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2 << 20, 2 << 20))
        spool = Spool(Path({str(tmp_path)!r}), bytes_max_per_object=8 << 20, bytes_max_total=8 << 20)
        try:
            with spool.open() as writer:
                for _ in range(4):
                    writer.write(bytes(1 << 20))
        except Overloaded as error:
            print(error, spool.bytes_used)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "the spool's disk is full 0"


def test_a_large_object_does_not_sit_in_memory(tmp_path):
    script = f"""
        import resource
        from pathlib import Path
        from gateway.store.spool import Spool
        spool = Spool(Path({str(tmp_path)!r}), bytes_max_per_object=1 << 30, bytes_max_total=1 << 30)
        chunk = bytes(256 * 1024)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with spool.open() as writer:
            for _ in range(400):
                writer.write(chunk)
            view = writer.seal()
        print(len(view), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True)
    size, grown_kib = map(int, done.stdout.split())
    assert size == 100 * MIB
    assert grown_kib * 1024 < 8 * MIB


def test_a_writer_takes_nothing_after_the_seal(spool):
    with spool.open() as writer:
        writer.write(b"abc")
        view = writer.seal()
        with pytest.raises(ValueError, match="sealed"):
            writer.write(b"d")
        with pytest.raises(ValueError, match="sealed"):
            writer.seal()
    assert view == b"abc"


def test_a_directory_that_cannot_be_used_is_a_configuration_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="spool directory"):
        Spool(tmp_path / "file" / "spool", bytes_max_per_object=1, bytes_max_total=1)


def test_no_descriptor_is_left(spool):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        view, _ = _fill(spool, bytes(2 * MIB))
        del view
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before
