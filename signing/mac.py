"""One signature of a data set: reads its items, recomputes its MAC, checks its value (PS3.3 C.12.1.1.3)."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from signing import canonical, der
from signing.certificates import parse_certificate, signature_value, verify_digest
from signing.dataset import VALUE_BYTES_MAX, DataSet, Element, data_set
from signing.dictionary import (
    DEFLATED,
    DIGITAL_SIGNATURES_SEQUENCE,
    EXPLICIT_BIG_ENDIAN,
    EXPLICIT_LITTLE_ENDIAN,
    IMPLICIT_LITTLE_ENDIAN,
    MAC_PARAMETERS_SEQUENCE,
    NATIVE,
    ORIGINAL_ATTRIBUTES_SEQUENCE,
    keyword,
    name,
)
from signing.elements import Elements
from signing.errors import DicomError, SignatureError
from signing.policy import MACS
from signing.reasons import Reason

if TYPE_CHECKING:
    from hashlib import _Hash

MAC_ID, MAC_TRANSFER_SYNTAX, MAC_ALGORITHM, ELEMENTS_SIGNED = 0x04000005, 0x04000010, 0x04000015, 0x04000020
SIGNATURE_UID, SIGNATURE_DATETIME, CERTIFICATE_TYPE = 0x04000100, 0x04000105, 0x04000110
CERTIFICATE, SIGNATURE = 0x04000115, 0x04000120
TIMESTAMP_TYPE, TIMESTAMP, PURPOSE = 0x04000305, 0x04000310, 0x04000401
_CODE_VALUE = 0x00080100
_OF_BYTES = frozenset((CERTIFICATE, SIGNATURE, TIMESTAMP))

SIGNATURES_MAX = 16
_PARAMETERS_MAX = 256  # some may be left of signatures that were removed; each is read for each signature
CERTIFICATE_BYTES_MAX = 16 * 1024
SIGNATURE_BYTES_MAX = 2 * 1024
_DATETIME = re.compile(r"(\d{14})(?:\.(\d{1,6}))?([+-]\d{4})?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Located:
    """A Digital Signatures item, and the data set that it is about."""

    path: str
    container: DataSet
    item: DataSet


@dataclass(slots=True)
class Examined:
    """A signature as far as cryptography goes; `refused` says what is wrong with it."""

    located: Located
    uid: str = ""
    mac: str = ""
    signed_at: datetime | None = None
    purpose: int | None = None
    certificate: x509.Certificate | None = None
    signature: bytes = b""
    listed: tuple[int, ...] = ()
    covered: tuple[Element, ...] = ()
    digest: str = ""
    refused: list[tuple[Reason, str]] = field(default_factory=list)
    """Before the MAC is known to be right: crypto. After that: what its unsigned parameters claim."""
    intact: bool = False
    """The signature value is this certificate's over these bytes."""


class Examiner:
    """Examines the signatures of one object; those that cover the same elements share the work."""

    def __init__(self, elements: Elements) -> None:
        self._elements = elements
        self._prefixes: dict[tuple[int, str, tuple[int, ...]], _Hash] = {}

    def examine(self, located: Located) -> Examined:
        """Read one signature and recompute it; never raises for what the object holds."""
        found = Examined(located)
        try:
            self._examine(found)
        except (SignatureError, DicomError) as error:
            found.refused.append((error.reason, error.detail))
        return found

    def _examine(self, found: Examined) -> None:
        """(1) its certificate (2) its parameters (3) the bytes (4) the value (5) what the parameters claim."""
        item, container = found.located.item, found.located.container
        _read_item(found, item)  # (1)
        parameters = _parameters(container, item)  # (2)
        found.mac = parameters.text(MAC_ALGORITHM) or ""
        if found.mac not in MACS:
            raise SignatureError(Reason.UNSUPPORTED_MAC, f"{name(MAC_ALGORITHM)} is not a known algorithm")
        syntax = self._mac_syntax(parameters)
        found.listed = listed_tags(parameters)

        found.covered = canonical.covered_elements(container, found.listed)  # (3)
        digest = self._data_set_hash(found).copy()
        found.digest = digest.hexdigest()
        canonical.update(digest, item, canonical.signature_tail(item), explicit=self._elements.explicit)

        assert found.certificate is not None  # (4)
        try:
            verify_digest(found.certificate, found.signature, digest.digest(), found.mac)
        except InvalidSignature as error:
            raise SignatureError(Reason.MAC_MISMATCH, "the signed bytes or the signature were changed") from error
        except (ValueError, UnsupportedAlgorithm, KeyError) as error:
            raise SignatureError(Reason.MALFORMED, "the signature does not fit the certificate's key") from error
        found.intact = True

        if syntax != _expected_syntax(self._elements.transfer_syntax):  # (5)
            found.refused.append((Reason.MAC_PARAMETERS_UNSIGNED, f"{name(MAC_TRANSFER_SYNTAX)} is not the file's"))
        if len(found.covered) < len(found.listed):
            absent = next(tag for tag in found.listed if tag not in container)
            detail = f"{name(absent)} is listed as signed, but absent"
            found.refused.append((Reason.DATA_ELEMENTS_SIGNED_MISMATCH, detail))

    def _mac_syntax(self, parameters: DataSet) -> str:
        """The MAC's transfer syntax must be of the file's kind, and one that fixes the bytes (PS3.15 A.3)."""
        syntax = parameters.uid(MAC_TRANSFER_SYNTAX) or ""
        native = self._elements.transfer_syntax in NATIVE
        if syntax in {"", IMPLICIT_LITTLE_ENDIAN, EXPLICIT_BIG_ENDIAN} or (syntax in NATIVE) != native:
            raise SignatureError(Reason.MAC_TRANSFER_SYNTAX, f"{name(MAC_TRANSFER_SYNTAX)} does not fit the file's")
        return syntax

    def _data_set_hash(self, found: Examined) -> _Hash:
        container = found.located.container
        key = id(container), found.mac, found.listed
        digest = self._prefixes.get(key)
        if digest is None:
            try:
                digest = canonical.new_hash(found.mac)
            except ValueError as error:
                raise SignatureError(Reason.UNSUPPORTED_MAC, f"{found.mac} is not available here") from error
            rest = found.covered
            if container is self._elements and self._elements.hashed is not None:
                digest, rest = self._elements.hashed.resume(found.mac, found.listed, rest) or (digest, rest)
            canonical.update(digest, container, rest, explicit=self._elements.explicit)
            self._prefixes[key] = digest
        return digest


def locate(elements: Elements) -> list[Located]:
    """Every signature: the main data set's first, with an empty path; at most 16.

    Raises:
        DicomError: `malformed`, more signatures than that, or not where they should be.
    """
    located = [Located("", elements, item) for item in elements.items(DIGITAL_SIGNATURES_SEQUENCE)]
    for path, container in _nested(elements, ""):
        located.extend(Located(path, container, item) for item in container.items(DIGITAL_SIGNATURES_SEQUENCE))
        if len(located) > SIGNATURES_MAX:
            break
    if len(located) > SIGNATURES_MAX:
        raise DicomError(Reason.MALFORMED, f"more than {SIGNATURES_MAX} signatures")
    return located


def _nested(outer: DataSet, path: str) -> Iterator[tuple[str, DataSet]]:
    """Items that hold signatures; those kept of an earlier state of the object speak of that, not of this."""
    skipped = (ORIGINAL_ATTRIBUTES_SEQUENCE, MAC_PARAMETERS_SEQUENCE, DIGITAL_SIGNATURES_SEQUENCE)
    for element in outer:
        if element.vr != "SQ" or element.items is None or element.tag in skipped:
            continue
        for place, item in enumerate(element.items):
            if not any(inner.items is not None for inner in item):
                continue
            inner_set = data_set(outer.data, item, outer.little_endian, outer.charset)
            inner_path = f"{path}{keyword(element.tag)}[{place}]"
            if DIGITAL_SIGNATURES_SEQUENCE in inner_set:
                yield inner_path, inner_set
            yield from _nested(inner_set, inner_path + ".")


def _read_item(found: Examined, item: DataSet) -> None:
    found.uid = item.uid(SIGNATURE_UID) or ""
    found.signed_at = parse_datetime(item.text(SIGNATURE_DATETIME) or "")
    purposes = item.items(PURPOSE)
    if purposes:
        code = purposes[0].text(_CODE_VALUE) or ""
        found.purpose = int(code) if re.fullmatch("[0-9]{1,3}", code, re.ASCII) else None
    if item.text(CERTIFICATE_TYPE) != "X509_1993_SIG":
        raise SignatureError(Reason.MALFORMED, f"{name(CERTIFICATE_TYPE)} is not X509_1993_SIG")
    stored, value = item.value(CERTIFICATE), item.value(SIGNATURE)
    if any(each.vr != "OB" for each in item if each.tag in _OF_BYTES):
        raise SignatureError(Reason.MALFORMED, "certificate, signature or timestamp is not of VR OB")
    if len(stored) > CERTIFICATE_BYTES_MAX or len(value) > SIGNATURE_BYTES_MAX:
        raise SignatureError(Reason.MALFORMED, f"a certificate of {len(stored)}, a signature of {len(value)} bytes")
    try:
        found.certificate = parse_certificate(der.unpadded(bytes(stored)))
        found.signature = signature_value(found.certificate, bytes(value))
    except ValueError as error:
        raise SignatureError(Reason.MALFORMED, "the certificate or the signature is not well-formed DER") from error


def _parameters(container: DataSet, item: DataSet) -> DataSet:
    """The one MAC Parameters item that the signature refers to."""
    mac_id = item.integer(MAC_ID)
    stated = container.get(MAC_PARAMETERS_SEQUENCE)
    if stated is not None and len(stated.items or ()) > _PARAMETERS_MAX:
        raise SignatureError(Reason.MALFORMED, f"more than {_PARAMETERS_MAX} MAC Parameters items")
    matching = [other for other in container.items(MAC_PARAMETERS_SEQUENCE) if other.integer(MAC_ID) == mac_id]
    if not matching or mac_id is None:
        raise SignatureError(Reason.MAC_PARAMETERS_MISSING, "no MAC Parameters item has the signature's MAC ID Number")
    if len(matching) > 1:
        raise SignatureError(Reason.MAC_PARAMETERS_AMBIGUOUS, "several MAC Parameters items have one MAC ID Number")
    return matching[0]


def listed_tags(parameters: DataSet) -> tuple[int, ...]:
    """Data Elements Signed: at least one tag, in the order of the data set, none twice."""
    element = parameters.get(ELEMENTS_SIGNED)
    value = parameters.value(ELEMENTS_SIGNED)  # in implicit VR it may be as long as the file
    if element is None or element.vr != "AT" or not 0 < len(value) <= VALUE_BYTES_MAX or len(value) % 4:
        raise SignatureError(Reason.DATA_ELEMENTS_SIGNED, f"{name(ELEMENTS_SIGNED)} is not a list of tags")
    halves = struct.unpack(f"{'<' if parameters.little_endian else '>'}{len(value) // 2}H", value)
    tags = tuple([group << 16 | number for group, number in zip(halves[::2], halves[1::2], strict=True)])
    if tags != tuple(sorted(set(tags))):
        raise SignatureError(Reason.DATA_ELEMENTS_SIGNED, f"{name(ELEMENTS_SIGNED)} is not in the data set's order")
    return tags


def _expected_syntax(transfer_syntax: str) -> str:
    """What a signer writes for a file of this syntax."""
    return EXPLICIT_LITTLE_ENDIAN if transfer_syntax in NATIVE - {DEFLATED} else transfer_syntax


def parse_datetime(text: str) -> datetime:
    """A complete DT value as UTC (PS3.5 6.2); without an offset it is read as UTC.

    Raises:
        SignatureError: `malformed`.
    """
    matched = _DATETIME.fullmatch(text)
    try:
        if matched is None:
            raise ValueError
        moment = datetime.strptime(matched[1], "%Y%m%d%H%M%S").replace(tzinfo=UTC)
        if matched[3]:
            minutes = int(matched[3][1:3]) * 60 + int(matched[3][3:5])
            offset = timedelta(minutes=-minutes if matched[3][0] == "-" else minutes)
            moment = moment.replace(tzinfo=timezone(offset)).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise SignatureError(Reason.MALFORMED, f"{name(SIGNATURE_DATETIME)} is not a date and time") from error
    return moment + timedelta(microseconds=int((matched[2] or "0").ljust(6, "0")))
