"""What verifying a signature costs, beside hashing the same bytes and beside DCMTK's dcmsign."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from pydicom.data import get_testdata_file

from lab import phantoms
from report import Table, Target, hand_back, milliseconds, ratio, rounds
from signing import Trust, read, sign, verify
from signing.testing import Hospital

ROUNDS = 15
SHORT_BYTES, SHORT_TIMES = 1 << 20, 20
"""Objects below this are verified that often in a row, as slices of a series are."""
_SLICE = (512, 512)
_MAMMOGRAM = (4096, 3328)
_VOLUME = (10240, 5120)
"""As many stored values as 200 slices of 512 x 512."""


def measure() -> Table:
    """Verify objects of four sizes, in turns with the others."""
    with tempfile.TemporaryDirectory() as folder:
        hospital = Hospital.make(Path(folder) / "pki")
        trust = hospital.trust()
        rows, targets, slice_times = [], [], 0.0
        for name, plain in _objects():
            path = Path(folder) / "signed.dcm"
            path.write_bytes(sign(plain, signer=hospital.signer("ct"), at=datetime.now(UTC)))
            seconds = _compared(path, trust, hospital)
            by_hash = ratio(seconds["scanward"], seconds["sha256"])
            by_dcmsign = ratio(seconds["dcmsign"], seconds["scanward"])
            beyond = 1000 * float(np.median(np.subtract(seconds["scanward"], seconds["sha256"])))
            size = path.stat().st_size / 1e6
            times = (milliseconds(seconds[key]) for key in ("scanward", "sha256", "dcmsign"))
            rows.append([name, f"{size:.2f}", *times, f"{by_hash:.2f}", f"{beyond:.2f}", f"{by_dcmsign:.1f}"])
            targets.append(_target(name, size, by_hash, beyond))
            if name == "CT slice":
                slice_times = by_dcmsign
    start = rounds({"start": lambda: _quiet("--version")}, ROUNDS)["start"]
    targets.append(Target("slices for each one of dcmsign", "at least 20", f"{slice_times:.0f}", slice_times >= 20))
    return Table(
        title="Verifying a signature",
        columns=["object", "MB", "Scanward, ms", "SHA-256, ms", "dcmsign, ms", "by SHA-256", "beyond it, ms", "faster"],
        rows=rows,
        notes=[
            "Scanward: strict parse, canonical stream, digest, signature, chain, revocation, coverage, from bytes in "
            "memory, in a running process that has judged the signer's certificate before, as the gateway has from a "
            "series' second slice on. SHA-256: `hashlib` over the same bytes. dcmsign: `dcmsign --verify` of the file, "
            f"a process, of which {milliseconds(start)} ms are its start; it checks no coverage and no revocation. "
            "The largest objects are one frame.",
        ],
        targets=targets,
    )


def _objects() -> list[tuple[str, bytes]]:
    """Name and bytes of what is signed."""
    noise = np.random.default_rng(0)
    drawn = phantoms.draw(phantoms.seeds("test", 1)[0])
    small = get_testdata_file("CT_small.dcm")
    assert isinstance(small, str)
    objects = [("CT_small", Path(small).read_bytes())]
    for name, shape in (("CT slice", _SLICE), ("mammogram's size", _MAMMOGRAM), ("volume's size", _VOLUME)):
        pixels = noise.integers(0, 4096, shape, dtype=np.uint16)
        objects.append((name, phantoms.to_dicom(replace(drawn, pixels=pixels))))
    return objects


def _compared(path: Path, trust: Trust, hospital: Hospital) -> dict[str, list[float]]:
    data, at = path.read_bytes(), datetime.now(UTC)
    trusted = ["+cf", str(hospital.path("root.pem")), "+cf", str(hospital.path("intermediate.pem"))]
    return rounds(
        {
            "scanward": lambda: verify(read(memoryview(data)), trust, at=at),
            "sha256": lambda: hashlib.sha256(data).digest(),
            "dcmsign": lambda: _quiet("--verify", *trusted, str(path)),
        },
        ROUNDS,
        warm=2,
        times=dict.fromkeys(("scanward", "sha256"), SHORT_TIMES if len(data) < SHORT_BYTES else 1),
    )


def _quiet(*arguments: str) -> None:
    dcmsign = shutil.which("dcmsign")
    if dcmsign is None:
        raise SystemExit("dcmsign (DCMTK) is not installed; `make system` installs it")
    subprocess.run([dcmsign, *arguments], check=True, capture_output=True)


def _target(name: str, size: float, by_hash: float, beyond: float) -> Target:
    if size < 1.0:
        return Target(f"{name}: beyond SHA-256", "under 1 ms", f"{beyond:.2f} ms", beyond < 1.0)
    most = 1.1 if size > 100.0 else 1.3
    return Target(f"{name}: by SHA-256", f"at most {most}", f"{by_hash:.2f}", by_hash <= most)


if __name__ == "__main__":
    hand_back(measure())
