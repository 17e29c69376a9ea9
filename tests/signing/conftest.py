"""One hospital and a few real objects for all tests of signing."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydicom.data import get_testdata_file

from signing import Reason, SignatureError, Source, Trust, read, sign, verify
from signing.testing import Hospital

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def _bundled(name: str) -> bytes:
    path = get_testdata_file(name, download=False)
    assert path is not None
    return Path(str(path)).read_bytes()


@pytest.fixture(scope="session")
def bundled() -> Callable[[str], bytes]:
    """Reads one of the files that come with pydicom."""
    return _bundled


@pytest.fixture(scope="session")
def now() -> datetime:
    return NOW


@pytest.fixture(scope="session")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Hospital:
    return Hospital.make(tmp_path_factory.mktemp("hospital"), now=NOW)


@pytest.fixture(scope="session")
def ct() -> bytes:
    """A real CT slice, 128 x 128, explicit VR little endian, 257 elements."""
    return _bundled("CT_small.dcm")


@pytest.fixture(scope="session")
def mr() -> bytes:
    """A real MR slice, 64 x 64, explicit VR little endian."""
    return _bundled("MR_small.dcm")


@pytest.fixture(scope="session")
def signed(ct: bytes, hospital: Hospital, now: datetime) -> bytes:
    """The CT slice, signed by the hospital's CT scanner."""
    return sign(ct, signer=hospital.signer("ct"), at=now)


@pytest.fixture
def ward(tmp_path: Path, now: datetime) -> Hospital:
    """A hospital of one's own, to revoke in."""
    return Hospital.make(tmp_path, now=now)


def _outcome(
    data: bytes, trust: Trust, at: datetime, source: Source | None = None
) -> tuple[Reason, dict[str, str], bool]:
    try:
        return Reason.OK, dict(verify(read(data), trust, at=at, source=source).checks), False
    except SignatureError as error:
        return error.reason, dict(error.checks), error.indeterminate


@pytest.fixture(scope="session")
def outcome() -> Callable[..., tuple[Reason, dict[str, str], bool]]:
    """Verifies: reason, checks, and whether the reason leaves it undecided."""
    return _outcome


@pytest.fixture(scope="session")
def shared() -> Path:
    found = Path(os.environ.get("SCANWARD_SHARED", Path(__file__).parents[2] / "../shared")).resolve()
    if not (found / "data").is_dir():
        pytest.skip("needs shared data")
    return found / "data"
