"""Records as DICOM audit messages (PS3.15 A.5, the ones that IHE ATNA carries): for a hospital's audit repository.

Three messages fit what the log holds: Application Activity, Audit Log Used and Security Alert. Those about instances
and studies must name the patient and the study (A.5.3.6, A.5.3.7), which the log never holds; so an admitted scan has
no message here, and the archive that receives it sends its own. Scans are named by digest (RFC 6920).
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any, TextIO
from xml.etree import ElementTree as Xml

from gateway.audit.export import ALWAYS, Period, lines
from gateway.audit.sinks import LogReader
from gateway.errors import AuditError

_APPLICATION_SERVER = "4"
_SYSTEM, _SECURITY_RESOURCE = "2", "13"
_NOMINAL, _MINOR, _SERIOUS = "0", "4", "8"
_OWN_CODES = "99SCANWARD"
"""Private coding scheme (PS3.16 8.2: designators that begin with 99)."""
_ADMITTED = frozenset({"admit", "admit_denoised"})
_STRANGERS = frozenset({"Unauthenticated", "NotPermitted"})
_DETAIL_MAX = 1000


@dataclass(frozen=True, slots=True)
class _Code:
    code: str
    meaning: str
    system: str = "DCM"

    def put(self, parent: Xml.Element, element: str) -> None:
        attributes = {"csd-code": self.code, "codeSystemName": self.system, "originalText": self.meaning}
        Xml.SubElement(parent, element, attributes)


_APPLICATION_ACTIVITY = _Code("110100", "Application Activity")
_AUDIT_LOG_USED = _Code("110101", "Audit Log Used")
_SECURITY_ALERT = _Code("110113", "Security Alert")
_APPLICATION_START = _Code("110120", "Application Start")
_NODE_AUTHENTICATION = _Code("110126", "Node Authentication")
_RESTRICTED_FUNCTION = _Code("110132", "Use of Restricted Function")
_APPLICATION = _Code("110150", "Application")
_SOURCE = _Code("source", "Configured Source", _OWN_CODES)
"""A caller by the name that the configuration gives it; a Node ID would have to be a host name or an address."""
_URI = _Code("12", "URI", "RFC-3881")

_ACTS = frozenset({"shown", "agreed", "confirmed", "released"})
"""What a person did with a held scan."""
_OF_THE_LOG = frozenset({"inspected", "pruned"})
"""What was done with the log itself."""
_ALERTS = frozenset({"decided", "study", "refused", "failed", "alarmed", "drifted", "expired"})
"""What the gateway found or could not do; `decided` and `study` where they were not admitted."""


@dataclass(frozen=True, slots=True)
class Sender:
    """Who says it: AuditSourceIdentification, and the gateway as an ActiveParticipant."""

    source_id: str = "scanward"
    """AuditSourceID, the name by which the hospital knows this gateway."""
    site_id: str | None = None
    """AuditEnterpriseSiteID."""
    ae_titles: tuple[str, ...] = ()
    """By which DICOM nodes know it (AlternativeUserID, PS3.15 A.5.2.2)."""


def message_of(line: dict[str, Any], *, origin: str, sender: Sender) -> bytes | None:
    """The audit message of one exported line, as XML without line breaks; None where none fits.

    Args:
        line: of `export.lines`.
        origin: the log's own name.
        sender: this gateway.
    """
    record = line["record"]
    kind = record.get("kind")
    if kind == "started":
        event = _Event(_APPLICATION_ACTIVITY, "E", _NOMINAL, _APPLICATION_START)
    elif kind == "inspected":
        event = _Event(_AUDIT_LOG_USED, "R", _NOMINAL)
    elif kind == "pruned":
        event = _Event(_SECURITY_ALERT, "E", _NOMINAL, _Code(kind, kind, _OWN_CODES))
    elif kind in _ACTS:
        event = _Event(_SECURITY_ALERT, "E", _NOMINAL, _RESTRICTED_FUNCTION)
    elif kind in _ALERTS and record.get("disposition") not in _ADMITTED:
        stranger = record.get("error") in _STRANGERS
        type_code = _NODE_AUTHENTICATION if stranger else _Code(kind, kind, _OWN_CODES)
        event = _Event(_SECURITY_ALERT, "E", _MINOR if kind == "refused" else _SERIOUS, type_code)
    else:
        return None
    root = event.message(record)
    _participants(root, record, event, sender)
    site = {} if sender.site_id is None else {"AuditEnterpriseSiteID": sender.site_id}
    source = Xml.SubElement(root, "AuditSourceIdentification", {**site, "AuditSourceID": sender.source_id})
    Xml.SubElement(source, "AuditSourceTypeCode", {"csd-code": _APPLICATION_SERVER})
    if event.id is not _APPLICATION_ACTIVITY:
        _object(root, line, event, origin)
    message: bytes = Xml.tostring(root, encoding="utf-8", xml_declaration=False)
    return message


def export_atna(log: LogReader, out: TextIO, period: Period = ALWAYS, *, sender: Sender) -> int:
    """Write a message a line for every record that has one; returns how many."""
    count = 0
    for line in lines(log, period):
        message = message_of(line, origin=log.origin, sender=sender)
        if message is not None:
            out.write(message.decode() + "\n")
            count += 1
    return count


@dataclass(frozen=True, slots=True)
class _Event:
    id: _Code
    action: str
    outcome: str
    type: _Code | None = None

    def message(self, record: dict[str, Any]) -> Xml.Element:
        root = Xml.Element("AuditMessage")
        attributes = {
            "EventActionCode": self.action,
            "EventDateTime": str(record.get("at", "")),
            "EventOutcomeIndicator": self.outcome,
        }
        identification = Xml.SubElement(root, "EventIdentification", attributes)
        self.id.put(identification, "EventID")
        if self.type is not None:
            self.type.put(identification, "EventTypeCode")
        return root


def _participants(root: Xml.Element, record: dict[str, Any], event: _Event, sender: Sender) -> None:
    """The gateway, and before it whoever made it act, by the name that the configuration gives him.

    In a Security Alert the gateway is who reports, and nobody is a requestor (A.5.3.11); else the caller is one.
    """
    if caller := record.get("by") or record.get("source"):
        requestor = "false" if event.id is _SECURITY_ALERT else "true"
        Xml.SubElement(root, "ActiveParticipant", {"UserID": _printable(caller), "UserIsRequestor": requestor})
    titles = {"AlternativeUserID": "AETITLES=" + ";".join(sender.ae_titles)} if sender.ae_titles else {}
    attributes = {"UserID": sender.source_id, **titles, "UserIsRequestor": "false"}
    _APPLICATION.put(Xml.SubElement(root, "ActiveParticipant", attributes), "RoleIDCode")


def _object(root: Xml.Element, line: dict[str, Any], event: _Event, origin: str) -> None:
    """What it is about: the log, a scan by its digest, or else the node that called."""
    record = line["record"]
    if record["kind"] in _OF_THE_LOG:
        identifier, type_code, name = f"urn:{origin.replace('/', ':')}", _URI, "Security Audit Log"
    elif digest := record.get("scan_sha256"):
        identifier, type_code, name = _named_by_digest(str(digest)), _URI, "Scan"
    else:
        identifier, type_code, name = _printable(record.get("source") or origin), _SOURCE, "Source"
    attributes = {
        "ParticipantObjectID": identifier,
        "ParticipantObjectTypeCode": _SYSTEM,
        "ParticipantObjectTypeCodeRole": _SECURITY_RESOURCE,
    }
    described = Xml.SubElement(root, "ParticipantObjectIdentification", attributes)
    type_code.put(described, "ParticipantObjectIDTypeCode")
    Xml.SubElement(described, "ParticipantObjectName").text = name
    if event.id is _SECURITY_ALERT:
        _detail(described, "Alert Description", _sentence(record))
    _detail(described, "Audit Log Index", str(line["index"]))


def _sentence(record: dict[str, Any]) -> str:
    """What happened, in words that come from our code and from the configuration alone: no person's reason."""
    words = [str(record["kind"])]
    words += [str(record[key]) for key in ("disposition", "route", "error", "detector") if record.get(key)]
    words += [str(reason) for reason in record.get("reasons", ())]
    return " ".join(words)[:_DETAIL_MAX]


def _printable(name: object) -> str:
    """A name that XML can hold: an identity provider may put anything into it."""
    return "".join(character if character.isprintable() else "?" for character in str(name))


def _named_by_digest(sha256: str) -> str:
    try:
        digest = bytes.fromhex(sha256)
    except ValueError:
        raise AuditError("a record of the audit log names a scan by something else than a digest") from None
    return "ni:///sha-256;" + base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def _detail(parent: Xml.Element, kind: str, text: str) -> None:
    value = base64.b64encode(text.encode()).decode()
    Xml.SubElement(parent, "ParticipantObjectDetail", {"type": kind, "value": value})
