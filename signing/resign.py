"""Signs anew what was verified, after an object was transcoded without loss (PS3.15 A.2)."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import NoReturn

from signing.dictionary import EXTENDED_OFFSET_TABLE, EXTENDED_OFFSET_TABLE_LENGTHS, PIXEL_DATA, name
from signing.diff import differences
from signing.elements import Elements, read
from signing.errors import NotTheSameError
from signing.fragments import check_structure
from signing.profiles import profiles
from signing.sign import TimestampAuthority, sign, without_signatures
from signing.signers import Signer
from signing.trust import Trust
from signing.verified import VerifiedSignature
from signing.verify import verify
from signing.view import VerifiedView, require_matching_meta

_CODING = frozenset((PIXEL_DATA, EXTENDED_OFFSET_TABLE, EXTENDED_OFFSET_TABLE_LENGTHS))
"""What another coding of the same pixels may change."""


def resign(
    original: bytes | memoryview,
    transcoded: bytes,
    trust: Trust,
    *,
    require_same_pixels: Callable[[VerifiedView, VerifiedView], None],
    signer: Signer,
    mac: str = "SHA256",
    at: datetime,
    tsa: TimestampAuthority | None = None,
) -> tuple[bytes, VerifiedSignature]:
    """Sign a transcoded copy: exactly the attributes whose originals were verified, and nothing else.

    Args:
        original: the signed object.
        transcoded: the same object in another transfer syntax; signatures in it are void, and are left out.
        trust: what the original is verified against.
        require_same_pixels: decodes both and raises NotTheSameError unless they are equal, bit for bit; decoding is not
            done in this package.
        signer: makes the new signature.
        mac: SHA256, SHA384 or SHA512.
        at: now.
        tsa: where to have the new signature time-stamped.

    Returns:
        The copy, signed, and what was verified of the original.

    Raises:
        DicomError: one of them is not a DICOM object.
        SignatureError: the original cannot be believed; says why.
        NotTheSameError: the copy is not the same.
        SignError: it cannot be signed.
    """
    verified = verify(read(original), trust, at=at)  # (1) believe the original
    copy = read(transcoded)
    require_matching_meta(copy)
    listed = _same(verified.view, copy)  # (2) the same attributes
    _require_coverage(copy, listed, trust)
    chosen = tuple(each for each in copy if each.tag in listed)
    if PIXEL_DATA in listed:  # (3) the same pixels
        view = VerifiedView.of_signed(copy, chosen)
        check_structure(view, copy.transfer_syntax)
        require_same_pixels(verified.view, view)
    signed = sign(  # (4) sign what was verified
        without_signatures(transcoded), signer=signer, profile="none", tags=sorted(listed), mac=mac, at=at, tsa=tsa
    )
    return signed, verified


def _same(original: VerifiedView, copy: Elements) -> frozenset[int]:
    """The tags to sign, once all but the coding of pixels is known to be equal."""
    covered = {element.tag for element in original}
    others = {element.tag for element in copy} - covered
    added = others & _CODING
    if PIXEL_DATA in added:
        _refuse("the copy has pixel data that the original's signature does not cover")
    for found in differences(original, copy, without=others | _CODING):
        _refuse(f"{found.path} {name(found.tag)} is not what was verified: {found.kind}")
    if PIXEL_DATA in covered and PIXEL_DATA not in copy:
        _refuse("the copy has no pixel data")
    return frozenset(tag for tag in covered | added if tag in copy)


def _require_coverage(copy: Elements, listed: frozenset[int], trust: Trust) -> None:
    """What was added on the way is not signed, so the policy must be able to do without it."""
    profile = profiles()[trust.policy.required_profile]
    stray = profile.stray(copy, listed) if trust.policy.unsigned_attributes == "reject" else None
    unwanted = profile.uncovered(copy, listed) if stray is None else stray
    if unwanted is not None:
        _refuse(f"{name(unwanted)} is in the copy, and was not verified")


def _refuse(detail: str) -> NoReturn:
    raise NotTheSameError(detail)
