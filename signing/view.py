"""What a signature vouches for: a read-only view over exactly the byte ranges that were hashed."""

from __future__ import annotations

from dataclasses import dataclass

from signing.dataset import VALUE_BYTES_MAX, DataSet, Element, codec_of, index
from signing.dictionary import SOP_CLASS_UID, SOP_INSTANCE_UID, name
from signing.elements import Elements
from signing.errors import DicomError
from signing.filemeta import MEDIA_STORAGE_SOP_CLASS_UID, MEDIA_STORAGE_SOP_INSTANCE_UID
from signing.reasons import Reason


@dataclass(frozen=True, slots=True, eq=False)
class VerifiedView(DataSet):
    """The elements that may go on to preprocessing and to a model; what is not in it does not exist."""

    transfer_syntax: str
    """How encapsulated pixel data is coded, and how native values are ordered."""
    signed: bool
    """False only for routes that admit unsigned objects by name."""

    @classmethod
    def of_signed(cls, elements: Elements, covered: tuple[Element, ...]) -> VerifiedView:
        """Only what the MAC covered."""
        return cls._over(elements, covered, signed=True)

    @classmethod
    def of_unsigned(cls, elements: Elements) -> VerifiedView:
        """Everything, vouched for by nobody."""
        require_matching_meta(elements)
        return cls._over(elements, elements.elements, signed=False)

    @classmethod
    def _over(cls, whole: Elements, chosen: tuple[Element, ...], *, signed: bool) -> VerifiedView:
        charset = codec_of(whole.data, chosen)
        return cls(whole.data, chosen, whole.little_endian, charset, index(chosen), whole.transfer_syntax, signed)


def require_matching_meta(elements: Elements) -> None:
    """The file meta information is never signed, so it must not name another object (PS3.10 7.1).

    Raises:
        DicomError: `file_meta_mismatch`.
    """
    for ours, theirs in (
        (SOP_CLASS_UID, MEDIA_STORAGE_SOP_CLASS_UID),
        (SOP_INSTANCE_UID, MEDIA_STORAGE_SOP_INSTANCE_UID),
    ):
        named, value = elements.meta.get(theirs), elements.value(ours)
        if named is None or ours not in elements:
            continue
        if len(value) > VALUE_BYTES_MAX or bytes(value).rstrip(b" \0") != named:
            raise DicomError(Reason.FILE_META_MISMATCH, f"{name(theirs)} of the file meta differs from {name(ours)}")
