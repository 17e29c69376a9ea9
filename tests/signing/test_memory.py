"""Verification holds nothing of a large object: only what is mapped from its file grows with it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from signing.testing import Hospital

PIXEL_BYTES = 256 * 2**20
PRIVATE_BYTES_MAX = 64 * 2**20

MAKE = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from pydicom.data import get_testdata_file
import signing
from signing.testing import Hospital, without

pki, out, size = Hospital(Path(sys.argv[1])), Path(sys.argv[2]), int(sys.argv[3])
small = without(Path(get_testdata_file("CT_small.dcm")).read_bytes(), 0x7FE00010, 0xFFFCFFFC)
large = small + b"\\xe0\\x7f\\x10\\0OW\\0\\0" + size.to_bytes(4, "little") + bytes(size)
out.write_bytes(signing.sign(large, signer=pki.signer("ct"), at=datetime.now(UTC)))
"""
VERIFY = """
import resource, sys
from datetime import UTC, datetime
from pathlib import Path
from signing.files import verify_file
from signing.testing import Hospital

trust = Hospital(Path(sys.argv[1])).trust()
used = 1024 * int(Path("/proc/self/status").read_text().split("VmData:")[1].split()[0])
allowed = used + int(sys.argv[3])  # of private memory; a mapping that is only read does not count
resource.setrlimit(resource.RLIMIT_DATA, (allowed, allowed))
print(verify_file(sys.argv[2], trust, datetime.now(UTC)).reason)
"""


def test_a_large_object_takes_no_memory_of_its_own(tmp_path: Path) -> None:
    Hospital.make(tmp_path / "pki")
    files = [str(tmp_path / "pki"), str(tmp_path / "large.dcm")]
    subprocess.run([sys.executable, "-c", MAKE, *files, str(PIXEL_BYTES)], check=True)
    command = [sys.executable, "-c", VERIFY, *files, str(PRIVATE_BYTES_MAX)]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)

    assert (ended.stdout, ended.returncode) == ("ok\n", 0), ended.stderr
