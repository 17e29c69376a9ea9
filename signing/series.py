"""Series manifests: a signed list of a series' objects and their contents, so that a missing slice is noticed.

A DICOM signature covers one object. A series from which slices were taken, or into which those of another were mixed,
consists of objects that are each valid; only a list that was signed with them shows it.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from cryptography import x509

from signing import canonical, certified
from signing.certificates import fingerprint
from signing.dictionary import SOP_CLASS_UID, SOP_INSTANCE_UID, name
from signing.elements import Elements, read
from signing.errors import DicomError, EnvelopeError, SignatureError, SignError
from signing.files import open_bytes
from signing.profiles import is_administrative
from signing.reasons import Reason
from signing.report import Identity, Outcome
from signing.signers import Signer
from signing.trust import Trust

PAYLOAD_TYPE = "application/vnd.scanward.series-manifest.v1+json"
INSTANCES_MAX = 30_000
"""In one series; a manifest of so many stays under the size of an envelope."""

_STUDY_INSTANCE_UID, _SERIES_INSTANCE_UID = 0x0020000D, 0x0020000E


class SeriesReason(StrEnum):
    """What can be wrong with a series."""

    ALTERED = "altered"
    """A listed object says something else than when it was listed."""
    MISSING = "missing"
    """A listed object is not there."""
    EXTRA = "extra"
    """An object of the series is there, and was not listed."""
    MIXED = "mixed"
    """An object of another series is among them."""
    DUPLICATE = "duplicate"
    """A listed object is there more than once."""
    UNREADABLE = "unreadable"
    """A file is not a DICOM object."""


@dataclass(frozen=True, slots=True)
class SeriesFinding:
    """One thing that is wrong."""

    reason: SeriesReason
    sop_instance_uid: str
    """Empty where the file does not say."""
    path: str
    """Empty where there is no file."""
    detail: str = ""

    def as_json(self) -> dict[str, str]:
        """An entry under `findings`."""
        return {
            "reason": str(self.reason), "sop_instance_uid": self.sop_instance_uid, "path": self.path,
            "detail": self.detail,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class SeriesVerdict:
    """What was found about the files, held against a manifest that is believed."""

    listed: int
    """Objects in the manifest."""
    found: int
    """Of them, those that are there unaltered."""
    created: datetime
    """When it was signed, by its signer's claim."""
    signer: Identity
    findings: tuple[SeriesFinding, ...]

    @property
    def verdict(self) -> Outcome:
        """Passed where there is nothing to report."""
        return Outcome.FAILED if self.findings else Outcome.PASSED


class _Instance(NamedTuple):
    sop_class: str
    digest: str


class _Found(NamedTuple):
    """What one file says it is."""

    uid: str
    series: tuple[str, str]
    """Study and Series Instance UID."""
    instance: _Instance


def sign_series(
    paths: Iterable[Path], *, signer: Signer, chain: tuple[x509.Certificate, ...] = (), at: datetime
) -> bytes:
    """A manifest of these files, in a DSSE envelope.

    Raises:
        OSError: a file cannot be read.
        DicomError: one is not a DICOM object.
        SignError: they are not the objects of one series.
    """
    instances: dict[str, _Instance] = {}
    series: tuple[str, str] | None = None
    for path in paths:
        found = _identify(path)
        if series not in (None, found.series):
            raise SignError(f"{path}: of another series than the files before")
        if found.uid in instances:
            raise SignError(f"{path}: an object that is there already")
        if len(instances) >= INSTANCES_MAX:
            raise SignError(f"more than {INSTANCES_MAX} objects")
        series, instances[found.uid] = found.series, found.instance
    if series is None:
        raise SignError("there is no object to list")
    document = {
        "study_instance_uid": series[0],
        "series_instance_uid": series[1],
        "created": at.astimezone(UTC).isoformat(),
        "instances": [
            {"sop_instance_uid": uid, "sop_class_uid": each.sop_class, "sha256": each.digest}
            for uid, each in instances.items()
        ],
    }
    return certified.seal(json.dumps(document, separators=(",", ":")).encode(), PAYLOAD_TYPE, signer, chain)


def verify_series(paths: Iterable[Path], manifest: bytes, trust: Trust, *, at: datetime) -> SeriesVerdict:
    """Hold files against a manifest, in the order (1) believe it (2) each file (3) what is not there.

    Raises:
        EnvelopeError: it is not a series manifest.
        SignatureError: it is altered, or its signer is not believed.
    """
    payload, certificate = certified.open_envelope(manifest, PAYLOAD_TYPE, trust, at=at)  # (1)
    series, created, instances = _parsed(payload)
    _require_allowed(certificate, instances.values(), trust)
    findings: list[SeriesFinding] = []
    seen: dict[str, bool] = {}
    for path in paths:  # (2)
        try:
            found = _identify(path)
        except (DicomError, OSError) as error:
            detail = error.detail if isinstance(error, DicomError) else error.strerror or str(error)
            findings.append(SeriesFinding(SeriesReason.UNREADABLE, "", str(path), detail))
            continue
        reason = _judge(found, series, instances.get(found.uid), again=found.uid in seen)
        if found.uid in instances and found.series == series:
            seen[found.uid] = seen.get(found.uid, False) or reason is None
        if reason is not None:
            findings.append(SeriesFinding(reason, found.uid, str(path)))
    findings += [SeriesFinding(SeriesReason.MISSING, uid, "") for uid in instances if uid not in seen]  # (3)
    subject, issuer = certificate.subject.rfc4514_string(), certificate.issuer.rfc4514_string()
    identity = Identity(subject, issuer, fingerprint(certificate))
    return SeriesVerdict(len(instances), sum(seen.values()), created, identity, tuple(findings))


def _judge(found: _Found, series: tuple[str, str], listed: _Instance | None, *, again: bool) -> SeriesReason | None:
    if found.series != series:
        return SeriesReason.MIXED
    if listed is None:
        return SeriesReason.EXTRA
    if found.instance != listed:
        return SeriesReason.ALTERED
    return SeriesReason.DUPLICATE if again else None


def _identify(path: Path) -> _Found:
    with open_bytes(path) as data:
        elements = read(data)
        tags = (SOP_INSTANCE_UID, _STUDY_INSTANCE_UID, _SERIES_INSTANCE_UID, SOP_CLASS_UID)
        uids = []
        for tag in tags:
            uid = elements.uid(tag)
            if uid is None:
                raise DicomError(Reason.MALFORMED, f"{name(tag)} is absent", tag=tag)
            uids.append(uid)
        return _Found(uids[0], (uids[1], uids[2]), _Instance(uids[3], instance_digest(elements)))


def instance_digest(elements: Elements) -> str:
    """SHA-256 over what any signature of the object could cover, but what archives add or rewrite.

    That is the canonical stream, followed by the lengths of compressed fragments, which the stream leaves open.
    """
    chosen = [each for each in elements if canonical.is_signable(each) and not is_administrative(each.tag)]
    digest = canonical.new_hash("SHA256")
    whole = canonical.covered_elements(elements, [each.tag for each in chosen])
    canonical.update(digest, elements, whole, explicit=elements.explicit)
    for fragment in elements.fragments():
        digest.update(struct.pack("<Q", len(fragment)))
    return digest.hexdigest()


def _parsed(payload: bytes) -> tuple[tuple[str, str], datetime, Mapping[str, _Instance]]:
    """The signer is believed by now; that the document is one of ours is still to be seen."""
    try:
        document: dict[str, Any] = json.loads(payload)
        series = str(document["study_instance_uid"]), str(document["series_instance_uid"])
        created = datetime.fromisoformat(document["created"])
        listed = list(_instances(document["instances"]))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise EnvelopeError("not a series manifest") from error
    instances = dict(listed)
    if not 0 < len(instances) == len(listed) <= INSTANCES_MAX:
        raise EnvelopeError("the manifest lists no object, one of them twice, or too many")
    return series, created, instances


def _instances(entries: list[dict[str, str]]) -> Iterator[tuple[str, _Instance]]:
    for entry in entries:
        yield str(entry["sop_instance_uid"]), _Instance(str(entry["sop_class_uid"]), str(entry["sha256"]))


def _require_allowed(certificate: x509.Certificate, instances: Iterable[_Instance], trust: Trust) -> None:
    """Whoever may not sign an object alone may not sign the list of them."""
    allowed = trust.policy.allowed_signers
    if allowed is None:
        return
    entries = [entry for entry in allowed if not entry.only_additional]
    for sop_class in {instance.sop_class for instance in instances}:
        if not any(entry.matches(certificate, sop_class) for entry in entries):
            raise SignatureError(Reason.SIGNER_NOT_ALLOWED, "the signer is not on the list of allowed signers")
