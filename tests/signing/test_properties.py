"""No byte of the verified view may change while the verdict stays accepted."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import signing
from signing import Trust, TrustPolicy, VerifiedView, read
from signing.canonical import update
from signing.testing import Hospital

OBJECTS = ("CT_small.dcm", "MR_small_implicit.dcm", "MR_small_bigendian.dcm", "SC_rgb_rle_2frame.dcm", "test-SR.dcm")
MODEST = settings(
    max_examples=250,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="session")
def trust(hospital: Hospital) -> Trust:
    """As lenient as a policy can be without being called unsafe: only a changed view may then refuse."""
    return hospital.trust(TrustPolicy(required_profile="none", unsigned_attributes="drop"))


class Objects(dict[str, bytes]):
    """Signed objects by name."""

    def __repr__(self) -> str:
        return f"Objects({', '.join(self)})"


@pytest.fixture(scope="session")
def objects(hospital: Hospital, now: datetime, bundled: Callable[[str], bytes]) -> Objects:
    signer = hospital.signer("mr")
    return Objects({name: signing.sign(bundled(name), signer=signer, at=now) for name in (*OBJECTS, "image_dfl.dcm")})


def content(view: VerifiedView) -> str:
    """Everything that a reader of the view can come to see."""
    digest = hashlib.sha256(view.transfer_syntax.encode())
    update(digest, view, view.elements, explicit=view.transfer_syntax != "1.2.840.10008.1.2")
    digest.update(repr([(each.tag, each.vr, each.length) for each in view]).encode())
    digest.update(repr([len(part) for part in view.fragments()]).encode())
    return digest.hexdigest()


def accepted(data: bytes, trust: Trust, at: datetime) -> str | None:
    try:
        return content(signing.verify(read(data), trust, at=at).view)
    except signing.SigningError:
        return None


@MODEST
@given(st.sampled_from((*OBJECTS, "image_dfl.dcm")), st.floats(0, 1, exclude_max=True), st.integers(1, 255))
def test_no_single_byte_can_be_changed_in_what_is_accepted(
    objects: Objects, trust: Trust, now: datetime, name: str, where: float, change: int
) -> None:
    data = bytearray(objects[name])
    before = accepted(bytes(data), trust, now)
    assert before is not None
    data[int(where * len(data))] ^= change
    assert accepted(bytes(data), trust, now) in (None, before)


@MODEST
@given(
    st.sampled_from(OBJECTS),
    st.sampled_from(("delete", "repeat", "insert", "swap", "move")),
    st.floats(0, 1, exclude_max=True),
    st.floats(0, 1, exclude_max=True),
    st.binary(min_size=1, max_size=40),
)
def test_no_element_can_be_moved_removed_or_added_in_what_is_accepted(
    objects: Objects,
    trust: Trust,
    now: datetime,
    name: str,
    kind: str,
    where: float,
    other: float,
    extra: bytes,
) -> None:
    data = objects[name]
    before = accepted(data, trust, now)
    elements = read(data).elements
    one, two = (elements[int(place * len(elements))] for place in (where, other))
    first, second = data[one.start : one.end], data[two.start : two.end]
    head, tail = data[: one.start], data[one.end :]
    changed = {
        "delete": head + tail,
        "repeat": head + first + first + tail,
        "insert": head + extra + first + tail,
        "swap": head + second + tail,
        "move": (head + tail)[: two.start] + first + (head + tail)[two.start :],
    }[kind]
    after = accepted(changed, trust, now)
    if changed != data and after is not None:
        assert after == before


@MODEST
@given(st.binary(max_size=600), st.booleans())
def test_no_bytes_do_more_than_be_refused(ct: bytes, noise: bytes, as_data_set: bool) -> None:
    data = ct[:340] + noise if as_data_set else noise
    try:
        elements = read(data)
    except signing.DicomError:
        return
    assert elements.elements[-1].end <= len(data)


@MODEST
@given(st.binary(max_size=300))
def test_no_token_makes_more_than_a_token_error(noise: bytes) -> None:
    from signing.timestamp import TokenError, read_token

    for token in (noise, b"\x30\x82" + len(noise).to_bytes(2, "big") + noise):
        with pytest.raises(TokenError):
            read_token(token, b"signature", [])


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
def test_every_bit_of_the_signature_macros_counts_or_says_nothing(
    objects: Objects, trust: Trust, now: datetime
) -> None:
    data = objects["MR_small_implicit.dcm"]
    before = accepted(data, trust, now)
    spans = [element for element in read(data) if element.tag in {0x4FFE0001, 0xFFFAFFFA}]
    for element in spans:
        for place in range(element.start, element.end):
            changed = bytearray(data)
            changed[place] ^= 1 << place % 8
            assert accepted(bytes(changed), trust, now) in (None, before)
