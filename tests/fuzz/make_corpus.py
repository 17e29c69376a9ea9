"""Writes the corpus that the fuzzer starts from: small objects, one script for each edit, and DER values."""

from __future__ import annotations

from pathlib import Path

from edits import _EDITS
from originals import unsigned

HERE = Path(__file__).resolve().parent / "corpus"
DER = {
    "ecdsa": bytes.fromhex("3006020101020102"),
    "long": bytes.fromhex("308180") + bytes.fromhex("047e") + bytes(126),
    "nested": bytes.fromhex("300a3108300602010a040100"),
    "certificate": b"\xff\0\0",
    "token": b"\xff\2\0",
    "token_changed": b"\xff\2\0\x50\0\x31",
}


def main() -> None:
    """Deterministic, so that a second run changes nothing."""
    for name, data in unsigned().items():
        (HERE / "walker" / name).write_bytes(data)
    for place, edit in enumerate(_EDITS):
        script = bytes((place % 8, 0, place, 3, 0, 1, 0, 1, 0, 7))
        (HERE / "view" / edit.__name__.strip("_")).write_bytes(script)
    for name, data in DER.items():
        (HERE / "der" / name).write_bytes(data)


if __name__ == "__main__":
    main()
