"""Small signed objects of every kind that the fuzzer starts from, and what a model is shown of each."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import signing
from signing import Trust, TrustPolicy
from signing.dictionary import (
    DEFLATED,
    EXPLICIT_BIG_ENDIAN,
    EXPLICIT_LITTLE_ENDIAN,
    IMPLICIT_LITTLE_ENDIAN,
    LONG_VRS,
)
from signing.testing import Hospital

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
RLE, JPEG_LS, JPEG = "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.70"
CT_CLASS, REPORT_CLASS = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.88.11"

Field = tuple[int, str, "bytes | list[list[Field]]"]


@dataclass(frozen=True, slots=True)
class Encoder:
    """Writes elements in one of the encodings (PS3.5 7)."""

    explicit: bool = True
    order: str = "<"

    def header(self, tag: int, vr: str, length: int) -> bytes:
        halves = struct.pack(self.order + "HH", tag >> 16, tag & 0xFFFF)
        if not self.explicit:
            return halves + struct.pack(self.order + "I", length)
        form = "2s2xI" if vr in LONG_VRS else "2sH"
        return halves + struct.pack(self.order + form, vr.encode(), length)

    def item(self, content: bytes) -> bytes:
        return struct.pack(self.order + "HHI", 0xFFFE, 0xE000, len(content)) + content

    def element(self, tag: int, vr: str, value: bytes | list[list[Field]]) -> bytes:
        if isinstance(value, list):
            value = b"".join(self.item(self.data_set(each)) for each in value)
        elif vr == "US":
            value = struct.pack(f"{self.order}{len(value) // 2}H", *struct.unpack(f"<{len(value) // 2}H", value))
        if len(value) % 2:
            value += b"\0" if vr in {"UI", "OB"} else b" "
        return self.header(tag, vr, len(value)) + value

    def data_set(self, fields: list[Field]) -> bytes:
        return b"".join(self.element(*each) for each in sorted(fields, key=lambda each: each[0]))


def image(uid: str, *extra: Field, frames: int = 1) -> list[Field]:
    """A CT image of 4 x 4 pixels, with a sequence in a sequence and private elements."""
    nested: list[list[Field]] = [[(0x00080100, "SH", b"CODE"), (0x00080104, "LO", b"a meaning")]]
    return [
        (0x00080005, "CS", b"ISO_IR 100"), (0x00080016, "UI", CT_CLASS.encode()), (0x00080018, "UI", uid.encode()),
        (0x00080060, "CS", b"CT"), (0x00081140, "SQ", [[(0x00081155, "UI", b"1.2.9"), (0x0040A170, "SQ", nested)], []]),
        (0x00100010, "PN", b"Fuzz^Y"), (0x00100020, "LO", b"42"), (0x0020000D, "UI", b"1.2.3"),
        (0x0020000E, "UI", b"1.2.4"), (0x00280002, "US", b"\1\0"), (0x00280004, "CS", b"MONOCHROME2"),
        (0x00280008, "IS", str(frames).encode()), (0x00280010, "US", b"\4\0"), (0x00280011, "US", b"\4\0"),
        (0x00280100, "US", b"\x08\0"), (0x00280101, "US", b"\x08\0"), (0x00280102, "US", b"\7\0"),
        (0x00280103, "US", b"\0\0"), *extra,
    ]  # fmt: skip


def report(uid: str) -> list[Field]:
    """A small structured report, four sequences deep."""
    content: list[Field] = [(0x0040A040, "CS", b"TEXT"), (0x0040A160, "UT", b"malignant")]
    for _ in range(3):
        content = [(0x0040A010, "CS", b"CONTAINS"), (0x0040A730, "SQ", [content, content])]
    return [
        (0x00080016, "UI", REPORT_CLASS.encode()), (0x00080018, "UI", uid.encode()), (0x00080060, "CS", b"SR"),
        (0x00100020, "LO", b"42"), (0x0020000D, "UI", b"1.2.3"), (0x0020000E, "UI", b"1.2.4"),
        (0x00290010, "LO", b"VENDOR"), (0x00291001, "LO", b"private"), *content,
    ]  # fmt: skip


def fragments(frames: list[bytes], *, table: bool) -> bytes:
    """Encapsulated Pixel Data (PS3.5 A.4)."""
    encoder = Encoder()
    starts, at = [], 0
    for frame in frames:
        starts.append(at)
        at += 8 + len(frame)
    offsets = struct.pack(f"<{len(starts)}I", *starts) if table else b""
    items = b"".join(encoder.item(each) for each in (offsets, *frames))
    return encoder.header(0x7FE00010, "OB", 0xFFFFFFFF) + items + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)


def file(syntax: str, data_set: bytes, uid: str, sop_class: str) -> bytes:
    """With preamble and file meta information (PS3.10 7.1)."""
    encoder = Encoder()
    meta = encoder.data_set([
        (0x00020002, "UI", sop_class.encode()), (0x00020003, "UI", uid.encode()), (0x00020010, "UI", syntax.encode()),
    ])  # fmt: skip
    length = encoder.element(0x00020000, "UL", struct.pack("<I", len(meta)))
    return bytes(128) + b"DICM" + length + meta + data_set


def unsigned() -> dict[str, bytes]:
    """Every original before it is signed, by name."""
    pixels: Field = (0x7FE00010, "OB", bytes(range(16)))
    words: Field = (0x7FE00010, "OW", bytes(range(16)))
    private: tuple[Field, ...] = ((0x00290010, "LO", b"VENDOR"), (0x00291001, "LO", b"private"))
    rle = struct.pack("<16I", 1, 64, *[0] * 14) + b"\x0f" + bytes(range(16)) + b"\0"
    jpeg = [b"\xff\xd8" + bytes((number,)) * 12 + b"\xff\xd9" for number in (1, 2, 3)]
    little, big, implicit = Encoder(), Encoder(order=">"), Encoder(explicit=False)
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    made = {
        "explicit": (EXPLICIT_LITTLE_ENDIAN, little.data_set([*image("1.2.8.1"), *private, pixels])),
        "implicit": (IMPLICIT_LITTLE_ENDIAN, implicit.data_set([*image("1.2.8.2"), words])),
        "big": (EXPLICIT_BIG_ENDIAN, big.data_set([*image("1.2.8.3"), *private, words])),
        "deflated": (
            DEFLATED,
            deflater.compress(little.data_set([*image("1.2.8.4"), pixels])) + deflater.flush(),
        ),
        "rle": (RLE, little.data_set(image("1.2.8.5", frames=2)) + fragments([rle, rle], table=True)),
        "jpeg": (JPEG, little.data_set(image("1.2.8.6", frames=3)) + fragments(jpeg, table=False)),
        "one": (JPEG_LS, little.data_set(image("1.2.8.7")) + fragments([b"".join(jpeg)], table=False)),
        "report": (EXPLICIT_LITTLE_ENDIAN, little.data_set(report("1.2.8.8"))),
    }
    return {
        name: file(syntax, data, f"1.2.8.{place}", REPORT_CLASS if name == "report" else CT_CLASS)
        for place, (name, (syntax, data)) in enumerate(made.items(), 1)
    }


@dataclass(frozen=True, slots=True)
class Originals:
    """Signed objects, and the two kinds of policy under which they are accepted."""

    objects: tuple[bytes, ...]
    trusts: tuple[Trust, ...]

    @classmethod
    def make(cls, folder: Path) -> Originals:
        hospital = Hospital.make(folder, now=NOW)
        signer = hospital.signer("mr")
        objects = [signing.sign(data, signer=signer, at=NOW) for data in unsigned().values()]
        plain = unsigned()["explicit"]
        twice = signing.sign(objects[0], signer=hospital.signer("ct"), at=NOW, purpose=5)
        objects += [twice, signing.sign(plain, signer=signer, profile="creator", at=NOW)]
        objects.append(signing.sign(plain, signer=signer, at=NOW, tsa=hospital.authority(lambda: NOW)))
        loose = TrustPolicy.from_mapping({"required_profile": "base", "unsigned_attributes": "drop"})
        return cls(tuple(objects), (hospital.trust(), hospital.trust(loose)))
