"""What became of the instances of one STOW-RS request: its status, and the response's data set (PS3.18 10.5.3)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from gateway.errors import GatewayError
from gateway.receivers.status import VERDICTS, status_of
from gateway.reply import Reply
from gateway.scan import Scan
from signing import DicomError
from signing.dictionary import SOP_CLASS_UID, SOP_INSTANCE_UID

JSON, XML = "application/dicom+json", "application/dicom+xml"

_FAILED, _REFERENCED = ("00081198", "FailedSOPSequence"), ("00081199", "ReferencedSOPSequence")
_CLASS, _INSTANCE = ("00081150", "ReferencedSOPClassUID"), ("00081155", "ReferencedSOPInstanceUID")
_REASON = ("00081197", "FailureReason")
_ACCEPTED, _CONFLICT = 202, 409


@dataclass(frozen=True, slots=True)
class Stored:
    """What became of one instance."""

    sop_class: str
    sop_instance: str
    http: int
    """As if it had been sent alone."""
    failure: int
    """Failure reason (0008,1197); 0 where it is stored."""

    @classmethod
    def answered(cls, scan: Scan, reply: Reply) -> Stored:
        """An instance that was examined: a refused one is kept nowhere, so nothing may call it stored."""
        status = VERDICTS[reply.verdict.disposition]
        return cls(_uid(scan, SOP_CLASS_UID), _uid(scan, SOP_INSTANCE_UID), status.http, status.dimse)

    @classmethod
    def failed(cls, error: Exception, scan: Scan | None = None) -> Stored:
        """An instance that was not examined."""
        status = status_of(error)
        return cls(_uid(scan, SOP_CLASS_UID), _uid(scan, SOP_INSTANCE_UID), status.http, status.dimse)


def status(stored: Sequence[Stored]) -> int:
    """200 where all are stored and admitted, 202 where some are held or failed, else what all of them failed with."""
    if all(each.http == 200 for each in stored):
        return 200
    if not all(each.failure for each in stored):
        return _ACCEPTED
    alike = {each.http for each in stored}
    return alike.pop() if alike <= {413} or alike <= {503} else _CONFLICT


def body(stored: Sequence[Stored], media_type: str) -> bytes:
    """The Store Instances Response Module, in DICOM JSON or as Native DICOM Model."""
    data_set = []
    for sequence, items in (
        (_FAILED, [each for each in stored if each.failure]),
        (_REFERENCED, [each for each in stored if not each.failure]),
    ):
        if items:
            data_set.append((sequence, "SQ", [_item(each) for each in items]))
    if media_type == XML:
        return f'<?xml version="1.0" encoding="UTF-8"?>\n<NativeDicomModel>{_xml(data_set)}</NativeDicomModel>'.encode()
    return json.dumps(_json(data_set)).encode()


def problem(error: GatewayError) -> bytes:
    """A sentence for a request that was refused as a whole."""
    return f"{error}\n".encode()


def _item(stored: Stored) -> list[Any]:
    uids = ((_CLASS, stored.sop_class), (_INSTANCE, stored.sop_instance))
    item: list[Any] = [(name, "UI", [value]) for name, value in uids if value]
    return [*item, (_REASON, "US", [stored.failure])] if stored.failure else item


def _json(elements: list[Any]) -> dict[str, Any]:
    return {
        tag: {"vr": vr, "Value": [_json(each) for each in values] if vr == "SQ" else values}
        for (tag, _), vr, values in elements
    }


def _xml(elements: list[Any]) -> str:
    written = []
    for (tag, keyword), vr, values in elements:
        kind = "Item" if vr == "SQ" else "Value"
        inner = "".join(
            f'<{kind} number="{number}">{_xml(each) if vr == "SQ" else escape(str(each))}</{kind}>'
            for number, each in enumerate(values, 1)
        )
        attributes = f"tag={quoteattr(tag)} vr={quoteattr(vr)} keyword={quoteattr(keyword)}"
        written.append(f"<DicomAttribute {attributes}>{inner}</DicomAttribute>")
    return "".join(written)


def _uid(scan: Scan | None, tag: int) -> str:
    """The sender's own UID, back to the sender; empty where it is none."""
    try:
        found = scan.elements.text(tag) if scan is not None and scan.elements is not None else None
    except DicomError:
        return ""
    return found if found and set(found) <= set("0123456789.") and len(found) <= 64 else ""
