"""What a scan is answered with: verdict, prediction, receipt, and the place of the record."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field

from gateway.finding import Finding
from gateway.verdict import Verdict


@dataclass(frozen=True, slots=True)
class Prediction:
    """The protected model's answer."""

    model: str
    version: str
    classes: tuple[str, ...]
    scores: tuple[float, ...]
    """One a class, after the profile's activation: probabilities for multiclass and multilabel."""

    @property
    def label(self) -> str:
        """Class of the largest score."""
        return self.classes[max(range(len(self.scores)), key=self.scores.__getitem__)]

    @property
    def sha256(self) -> str:
        """Digest of the canonical JSON form, by which the receipt binds the prediction."""
        document = {"model": self.model, "version": self.version, "classes": self.classes, "scores": self.scores}
        return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Consequence:
    """What was done because of a verdict: the model asked, the scan held, or neither."""

    prediction: Prediction | None = None
    quarantine_id: str | None = None


@dataclass(frozen=True, slots=True)
class Receipt:
    """Signed proof of what was decided about which bytes."""

    envelope: bytes
    """DSSE envelope (JSON), signed with the gateway's receipt key."""

    @property
    def sha256(self) -> str:
        """Digest of the envelope, by which the audit log binds the receipt."""
        return hashlib.sha256(self.envelope).hexdigest()


@dataclass(frozen=True, slots=True)
class Reply:
    """The whole answer; a door shows of it what the caller's role may see."""

    scan_sha256: str
    verdict: Verdict
    prediction: Prediction | None
    receipt: Receipt
    place: int
    """Index of the record in the audit log."""
    findings: tuple[Finding, ...]
    quarantine_id: str | None = None
    """Under which a held scan lies, or a released one lay; else None."""
    earlier: bool = field(default=False, compare=False)
    """Whether the same call was answered so before; of this delivery, not of the answer."""
