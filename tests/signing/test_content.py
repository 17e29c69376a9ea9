"""Signatures have the same content exactly where a model would be shown the same object."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from io import BytesIO

import pytest
from pydicom import dcmread
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

import signing
from signing.content import content_digest
from signing.testing import Hospital, flip_pixel_bit, replace_value

PATIENT_ID, RETRIEVE_AE_TITLE = 0x00100020, 0x00080054


@pytest.fixture
def content(hospital: Hospital, now: datetime) -> Callable[..., str]:
    def of(data: bytes, *, who: str = "ct", policy: signing.TrustPolicy | None = None, **how: object) -> str:
        signed = signing.sign(data, signer=hospital.signer(who), at=now, **how)  # type: ignore[arg-type]
        return content_digest(signing.verify(signing.read(signed), hospital.trust(policy), at=now))

    return of


def edited(data: bytes, syntax: str = ExplicitVRLittleEndian, **values: object) -> bytes:
    dataset = dcmread(BytesIO(data))
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    dataset.file_meta.TransferSyntaxUID = syntax
    file = BytesIO()
    dataset.save_as(file, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=True)
    return file.getvalue()


def test_signing_again_is_the_same_content_whoever_signs_with_whatever_hash(
    ct: bytes, content: Callable[..., str]
) -> None:
    assert len({content(ct), content(ct, who="mr"), content(ct, mac="SHA512"), content(ct, mac="SHA384")}) == 1


def test_what_archives_add_does_not_count_signed_or_not(ct: bytes, content: Callable[..., str]) -> None:
    assert content(edited(ct, RetrieveAETitle="ARCHIVE")) == content(edited(ct)) == content(ct)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
def test_another_native_encoding_is_the_same_content(content: Callable[..., str], mr: bytes, syntax: str) -> None:
    dataset = dcmread(BytesIO(mr))
    dataset.remove_private_tags()  # their VRs are lost in implicit VR, and with them what can be signed
    file = BytesIO()
    dataset.save_as(file)
    assert content(edited(file.getvalue(), syntax)) == content(file.getvalue())


@pytest.mark.parametrize(
    "change",
    [
        flip_pixel_bit,
        lambda data: replace_value(data, PATIENT_ID, b"2CT1"),
        lambda data: edited(data, WindowCenter="40"),
        lambda data: edited(data, StudyDescription="added"),
    ],
    ids=["pixel", "patient", "window", "added attribute"],
)
def test_whatever_a_model_could_see_counts(ct: bytes, content: Callable[..., str], change: Callable[[bytes], bytes]):
    assert content(change(ct)) != content(ct)


def test_a_narrower_coverage_is_other_content(ct: bytes, content: Callable[..., str]) -> None:
    policy = signing.TrustPolicy.from_mapping({"required_profile": "creator", "unsigned_attributes": "drop"})
    assert content(ct, profile="creator", policy=policy) != content(ct, policy=policy)
