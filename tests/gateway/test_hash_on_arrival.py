"""A large object that comes in pieces is judged by what was hashed on the way, and judged the same."""

from __future__ import annotations

import struct
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydicom.data import get_testdata_file

import signing
from gateway.scan import Scan, Source
from gateway.store.spool import MEMORY_BYTES_MAX, Spool
from signing.testing import Hospital, flip_pixel_bit, without

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
PIECE = 256 << 10


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Hospital:
    return Hospital.make(tmp_path_factory.mktemp("pki"), now=NOW)


@pytest.fixture(scope="module")
def large(hospital: Hospital) -> bytes:
    """A signed object of 3 MB: its pixels are noise to anyone but a signature."""
    small = without(Path(str(get_testdata_file("CT_small.dcm"))).read_bytes(), 0x7FE00010, 0xFFFCFFFC)
    pixels = struct.pack("<HH2sxxI", 0x7FE0, 0x0010, b"OW", 3 << 20) + bytes(3 << 20)
    return signing.sign(small + pixels, signer=hospital.signer("mr"), at=NOW)


def received(data: bytes, directory: Path) -> Scan:
    spool = Spool(directory, bytes_max_per_object=8 << 20, bytes_max_total=16 << 20)
    with spool.open() as writer:
        for start in range(0, len(data), PIECE):
            writer.write(data[start : start + PIECE])
        sha256, hashed, view = writer.sha256, writer.hashed(), writer.seal()
    return Scan.receive(view, route="r", receiver="test", source=Source("s"), sha256=sha256, hashed=hashed)


def test_the_verdict_is_that_of_the_whole_object(large: bytes, hospital: Hospital, tmp_path: Path) -> None:
    scan = received(large, tmp_path)
    assert scan.elements is not None
    assert scan.elements.hashed is not None
    found = signing.verify(scan.elements, hospital.trust(), at=NOW)
    assert found.signed_digest == signing.verify(signing.read(large), hospital.trust(), at=NOW).signed_digest


@pytest.mark.parametrize("place", [0, MEMORY_BYTES_MAX, 2 * MEMORY_BYTES_MAX, (3 << 20) - 1])
def test_one_changed_bit_is_noticed_wherever_it_is(
    place: int, large: bytes, hospital: Hospital, tmp_path: Path
) -> None:
    scan = received(flip_pixel_bit(large, place), tmp_path)
    assert scan.elements is not None
    with pytest.raises(signing.SignatureError) as caught:
        signing.verify(scan.elements, hospital.trust(), at=NOW)
    assert caught.value.reason is signing.Reason.MAC_MISMATCH


def test_a_small_object_is_hashed_when_it_is_whole(tmp_path: Path) -> None:
    scan = received(Path(str(get_testdata_file("CT_small.dcm"))).read_bytes(), tmp_path)
    assert scan.elements is not None
    assert scan.elements.hashed is None
