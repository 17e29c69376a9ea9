"""The errors of `signing`.

SigningError
├── DicomError          the bytes are not a DICOM object that can be examined
├── SignatureError      examined, and no acceptable signature was found
├── TrustError          trust material or a trust policy cannot be used
├── SignError           the object, key or profile asked for cannot be signed with
│   └── NotTheSameError a copy differs from what was verified, so it is not signed anew
└── EnvelopeError       a DSSE envelope is malformed, foreign or altered
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from signing.reasons import Reason
from signing.report import SignatureReport


class SigningError(Exception):
    """The root of this package's errors."""


class DicomError(SigningError):
    """The bytes are not a DICOM object that can be examined.

    `detail` names tags, lengths and offsets, never a value: it may be logged.
    `tag` and `fault` (`odd_length`, `disorder`) are given where the rule broken has a name of its own.
    """

    def __init__(self, reason: Reason, detail: str, *, tag: int | None = None, fault: str = "") -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.tag = tag
        self.fault = fault


class SignatureError(SigningError):
    """The object was examined, and no acceptable signature was found.

    Attributes:
        reason: the first reason that applies, in the order of `Reason`.
        detail: a sentence for a person; tags and certificate facts, never a patient's data.
        checks: outcome of each of the eight checks, by name.
        signatures: what was found in every signature of the object.
        indeterminate: nothing was found wrong, but something could not be established.
    """

    def __init__(
        self,
        reason: Reason,
        detail: str,
        checks: Mapping[str, str] | None = None,
        signatures: tuple[SignatureReport, ...] = (),
        *,
        indeterminate: bool = False,
    ) -> None:
        super().__init__(f"{reason}: {detail}" if detail else str(reason))
        self.reason = reason
        self.detail = detail
        self.checks: Mapping[str, str] = MappingProxyType(dict(checks or {}))
        self.signatures = signatures
        self.indeterminate = indeterminate


class TrustError(SigningError):
    """A trust policy or a piece of trust material cannot be used; says which key or file."""


class SignError(SigningError):
    """This object cannot be signed as asked."""


class NotTheSameError(SignError):
    """A copy differs from the original that was verified; says where, never with a value."""


class EnvelopeError(SigningError):
    """A DSSE envelope is malformed, of another type, or signed by no known key."""
