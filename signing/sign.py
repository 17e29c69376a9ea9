"""Signs a DICOM object by splicing: every byte that was there stays as it was (PS3.15 C, PS3.3 C.12.1.1.3)."""

from __future__ import annotations

import struct
import uuid
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from cryptography.hazmat.primitives.serialization import Encoding

from signing import canonical
from signing.dictionary import (
    DEFLATED,
    DIGITAL_SIGNATURES_SEQUENCE,
    EXPLICIT_LITTLE_ENDIAN,
    LONG_VRS,
    MAC_PARAMETERS_SEQUENCE,
    NATIVE,
    name,
    tag_of,
)
from signing.elements import Elements, read
from signing.errors import SignError
from signing.filemeta import read_file_meta
from signing.mac import (
    CERTIFICATE,
    CERTIFICATE_TYPE,
    ELEMENTS_SIGNED,
    MAC_ALGORITHM,
    MAC_ID,
    MAC_TRANSFER_SYNTAX,
    PURPOSE,
    SIGNATURE,
    SIGNATURE_DATETIME,
    SIGNATURE_UID,
    SIGNATURES_MAX,
    TIMESTAMP,
    TIMESTAMP_TYPE,
)
from signing.profiles import profiles
from signing.signers import Signer
from signing.view import require_matching_meta

SIGNING_MACS = ("SHA256", "SHA384", "SHA512")
_PURPOSES = (  # ASTM E2084, in the order of their codes
    "Author's",
    "Coauthor's",
    "Co-participant's",
    "Transcriptionist/Recorder",
    "Verification",
    "Validation",
    "Consent",
    "Signature Witness",
    "Event Witness",
    "Identity Witness",
    "Consent Witness",
    "Interpreter",
    "Review",
    "Source",
    "Addendum",
    "Modification",
    "Administrative (Error/Edit)",
    "Timestamp",
)


class TimestampAuthority(Protocol):
    """Someone who can say when a signature existed."""

    def stamp(self, signature: bytes) -> bytes:
        """An RFC 3161 TimeStampToken over the signature value, in DER."""


def sign(
    data: bytes,
    *,
    signer: Signer,
    profile: str = "inference",
    tags: Iterable[str | int] = (),
    mac: str = "SHA256",
    at: datetime,
    tsa: TimestampAuthority | None = None,
    purpose: int | None = None,
) -> bytes:
    """Add a digital signature to the main data set, beside those that are there.

    Args:
        data: a whole DICOM file.
        signer: makes the signature value.
        profile: which attributes are covered.
        tags: keywords, or tags, of attributes covered beside those of the profile.
        mac: SHA256, SHA384 or SHA512.
        at: Digital Signature DateTime; what the signer claims.
        tsa: where to have it time-stamped.
        purpose: Digital Signature Purpose, a code of ASTM-sigpurpose, 1 to 18.

    Raises:
        DicomError: not a DICOM object.
        SignError: this object cannot be signed so.
    """
    if mac.upper() not in SIGNING_MACS or at.tzinfo is None:
        raise SignError(f"MAC {mac!r} is none of {', '.join(SIGNING_MACS)}" if at.tzinfo else "`at` needs a time zone")
    elements = read(data)  # (1) walk
    require_matching_meta(elements)
    chosen = _choose(elements, profile, tags)  # (2) what
    mac_id = _free_mac_id(elements)

    little = _Writer(explicit=True, order="<")  # (3) bytes
    tail = _signature_item(little, mac_id, at, purpose)
    digest = canonical.new_hash(mac)
    canonical.update(digest, elements, canonical.covered_elements(elements, chosen), explicit=elements.explicit)
    digest.update(tail.canonical())

    value = signer.sign_digest(digest.digest(), mac.upper())  # (4) value
    token = None if tsa is None else tsa.stamp(value)

    writer = _Writer(explicit=elements.explicit, order="<" if elements.little_endian else ">")  # (5) splice
    parameters = [
        (MAC_ID, "US", writer.shorts(mac_id)),
        (MAC_TRANSFER_SYNTAX, "UI", _mac_syntax(elements).encode()),
        (MAC_ALGORITHM, "CS", mac.upper().encode()),
        (ELEMENTS_SIGNED, "AT", writer.shorts(*(half for tag in chosen for half in (tag >> 16, tag & 0xFFFF)))),
    ]
    signed = tail.with_signature(writer, signer.certificate.public_bytes(Encoding.DER), value, token)
    return _spliced(
        data,
        elements,
        (
            _insertion(elements, MAC_PARAMETERS_SEQUENCE, writer.item(parameters), writer),
            _insertion(elements, DIGITAL_SIGNATURES_SEQUENCE, writer.item(signed), writer),
        ),
    )


def without_signatures(data: bytes) -> bytes:
    """A DICOM file without the signature macros of its main data set; every other byte stays as it was.

    Raises:
        DicomError: not a DICOM object.
    """
    elements = read(data)
    present = [elements.get(tag) for tag in (MAC_PARAMETERS_SEQUENCE, DIGITAL_SIGNATURES_SEQUENCE)]
    cuts = [_Insertion(each.start, each.end, b"", each.end, b"") for each in present if each is not None]
    return _spliced(data, elements, cuts) if cuts else bytes(data)


def _choose(elements: Elements, profile: str, tags: Iterable[str | int]) -> tuple[int, ...]:
    if profile not in profiles():
        raise SignError(f"profile {profile!r} is none of {', '.join(profiles())}")
    extra = [tag if isinstance(tag, int) else _tag(tag) for tag in tags]
    chosen = profiles()[profile].select(elements, extra)
    missing = next((tag for tag in extra if tag not in chosen), None)
    if missing is None:
        missing = profiles()[profile].uncovered(elements, frozenset(chosen))
    if missing is not None:
        raise SignError(
            f"{name(missing)} must be signed, but is {'of a kind that cannot be' if missing in elements else 'absent'}"
        )
    if not chosen or 4 * len(chosen) > 65534:
        raise SignError(f"{len(chosen)} attributes to sign; at least 1 and at most 16383 can be")
    return chosen


def _tag(keyword: str) -> int:
    tag = tag_of(keyword)
    if tag is None:
        raise SignError(f"{keyword!r} is not the keyword of an attribute")
    return tag


def _free_mac_id(elements: Elements) -> int:
    taken = {item.integer(MAC_ID) for item in elements.items(MAC_PARAMETERS_SEQUENCE)}
    if len(elements.items(DIGITAL_SIGNATURES_SEQUENCE)) >= SIGNATURES_MAX:
        raise SignError(f"there are {SIGNATURES_MAX} signatures already")
    return next(number for number in range(65536) if number not in taken)


def _mac_syntax(elements: Elements) -> str:
    """The file's own, unless that leaves something open (PS3.15 A.3)."""
    syntax = elements.transfer_syntax
    return EXPLICIT_LITTLE_ENDIAN if syntax in NATIVE - {DEFLATED} else syntax


_Field = tuple[int, str, bytes]


@dataclass(frozen=True, slots=True)
class _Writer:
    """Encodes elements the way the file does (PS3.5 7.1)."""

    explicit: bool
    order: str

    def shorts(self, *numbers: int) -> bytes:
        return struct.pack(f"{self.order}{len(numbers)}H", *numbers)

    def element(self, tag: int, vr: str, value: bytes) -> bytes:
        if len(value) % 2:
            value += b"\0" if vr in {"UI", "OB"} else b" "
        return self.header(tag, vr, len(value)) + value

    def header(self, tag: int, vr: str, length: int) -> bytes:
        halves = self.shorts(tag >> 16, tag & 0xFFFF)
        if not self.explicit:
            return halves + struct.pack(self.order + "I", length)
        form = "2s2xI" if vr in LONG_VRS else "2sH"
        return halves + struct.pack(self.order + form, vr.encode(), length)

    def item(self, fields: Sequence[_Field]) -> bytes:
        content = b"".join(self.element(*each) for each in fields)
        return self.shorts(0xFFFE, 0xE000) + struct.pack(self.order + "I", len(content)) + content


@dataclass(frozen=True, slots=True)
class _Tail:
    """The part of a Digital Signatures item that its MAC covers."""

    mac_id: int
    plain: tuple[_Field, ...]
    purpose: tuple[_Field, ...]

    def canonical(self) -> bytes:
        """As the MAC sees it."""
        writer = _Writer(explicit=True, order="<")
        stream = b"".join(writer.element(*each) for each in ((MAC_ID, "US", writer.shorts(self.mac_id)), *self.plain))
        if not self.purpose:
            return stream
        inner = b"".join(writer.element(*each) for each in self.purpose)
        tag = writer.shorts(PURPOSE >> 16, PURPOSE & 0xFFFF)
        return stream + tag + b"SQ\0\0" + b"\xfe\xff\x00\xe0" + inner + b"\xfe\xff\xdd\xe0"

    def with_signature(self, writer: _Writer, certificate: bytes, value: bytes, token: bytes | None) -> list[_Field]:
        """All of the item, as the file stores it."""
        fields = [(MAC_ID, "US", writer.shorts(self.mac_id)), *self.plain]
        fields += [(CERTIFICATE, "OB", certificate), (SIGNATURE, "OB", value)]
        if token is not None:
            fields += [(TIMESTAMP_TYPE, "CS", b"CMS_TSP"), (TIMESTAMP, "OB", token)]
        if self.purpose:
            fields.append((PURPOSE, "SQ", writer.item(self.purpose)))
        return fields


def _signature_item(writer: _Writer, mac_id: int, at: datetime, purpose: int | None) -> _Tail:
    moment = at.astimezone(UTC).strftime("%Y%m%d%H%M%S.%f+0000")
    plain: tuple[_Field, ...] = (
        (SIGNATURE_UID, "UI", f"2.25.{uuid.uuid4().int}".encode()),
        (SIGNATURE_DATETIME, "DT", moment.encode()),
        (CERTIFICATE_TYPE, "CS", b"X509_1993_SIG"),
    )
    if purpose is None:
        return _Tail(mac_id, plain, ())
    if not 1 <= purpose <= len(_PURPOSES):
        raise SignError(f"purpose {purpose} is not a code from 1 to {len(_PURPOSES)}")
    code: tuple[_Field, ...] = (
        (0x00080100, "SH", str(purpose).encode()),
        (0x00080102, "SH", b"ASTM-sigpurpose"),
        (0x00080104, "LO", f"{_PURPOSES[purpose - 1]} Signature".encode()),
    )
    return _Tail(mac_id, plain, code)


@dataclass(frozen=True, slots=True)
class _Insertion:
    """Replace the header bytes at `start` (none, if `start` = `header_end`), and insert `item` at `at`."""

    start: int
    header_end: int
    header: bytes
    at: int
    item: bytes


def _insertion(elements: Elements, tag: int, item: bytes, writer: _Writer) -> _Insertion:
    """A new sequence at its place among the tags, or a new last item of the one that is there."""
    present = elements.get(tag)
    if present is None:
        following = next((element.start for element in elements if element.tag > tag), len(elements.data))
        return _Insertion(following, following, writer.header(tag, "SQ", len(item)), following, item)
    if present.vr != "SQ":
        raise SignError(f"{name(tag)} is there, but is not a sequence")
    end_of_items = present.offset + present.length
    if present.end != end_of_items:  # of undefined length
        return _Insertion(present.start, present.start, b"", end_of_items, item)
    header = writer.header(tag, "SQ", present.length + len(item))
    return _Insertion(present.start, present.offset, header, end_of_items, item)


def _spliced(data: bytes, elements: Elements, insertions: Sequence[_Insertion]) -> bytes:
    parts: list[bytes | memoryview] = []
    done = 0
    for insertion in insertions:
        parts += [
            elements.data[done : insertion.start],
            insertion.header,
            elements.data[insertion.header_end : insertion.at],
            insertion.item,
        ]
        done = insertion.at
    parts.append(elements.data[done:])
    if not elements.deflated:
        return b"".join(parts)
    _, start = read_file_meta(memoryview(data))
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    deflated = b"".join(compressor.compress(part) for part in parts) + compressor.flush()
    return data[:start] + deflated + b"\0" * (len(deflated) % 2)
