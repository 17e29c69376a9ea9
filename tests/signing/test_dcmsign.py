"""DCMTK's dcmsign and we accept each other's signatures; where not, a named rule says why."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path

import pytest

import signing
from signing import DicomError, Elements, Reason, SignatureError, TrustPolicy, read
from signing.canonical import covered_elements, is_forbidden, is_signable, stream
from signing.dataset import Element
from signing.testing import Hospital

pytestmark = pytest.mark.skipif(shutil.which("dcmsign") is None, reason="needs dcmsign (package dcmtk)")

LENIENT = TrustPolicy(required_profile="none", unsigned_attributes="drop")
UNKNOWN_TO_DCMSIGN = ("1.2.840.10008.1.2.4.20", "1.2.840.10008.1.2.8.")  # High-Throughput JPEG 2000, deflated frames
BUFFER = 16384


def dcmsign(*arguments: str | Path) -> int:
    return subprocess.run(["dcmsign", *map(str, arguments)], capture_output=True, check=False).returncode


def signs(hospital: Hospital, who: str, source: Path, out: Path, *options: str) -> int:
    return dcmsign("+s", hospital.path(f"{who}.key"), hospital.path(f"{who}.pem"), *options, source, out)


def verifies(hospital: Hospital, path: Path) -> int:
    roots = ("+cf", hospital.path("root.pem"), "+uf", hospital.path("intermediate.pem"))
    return dcmsign("--verify", "+rg", *roots, path)


@pytest.fixture(scope="module")
def present(tmp_path_factory: pytest.TempPathFactory) -> Hospital:
    """dcmsign knows no time but now."""
    return Hospital.make(tmp_path_factory.mktemp("present"))


@pytest.fixture
def clock() -> datetime:
    from datetime import UTC

    return datetime.now(UTC)


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm", "MR_small_implicit.dcm", "MR_small_bigendian.dcm"])
@pytest.mark.parametrize(("who", "option", "mac"), [("ct", "+m2", "SHA256"), ("mr", "+m5", "SHA512")])
def test_dcmsign_accepts_ours_and_we_accept_its(
    name: str,
    who: str,
    option: str,
    mac: str,
    present: Hospital,
    clock: datetime,
    tmp_path: Path,
    bundled: Callable[[str], bytes],
) -> None:
    source, ours, theirs = tmp_path / "in.dcm", tmp_path / "ours.dcm", tmp_path / "theirs.dcm"
    source.write_bytes(bundled(name))
    ours.write_bytes(signing.sign(bundled(name), signer=present.signer(who), mac=mac, at=clock, purpose=1))
    assert verifies(present, ours) == 0

    assert signs(present, who, source, theirs, option) == 0
    found = signing.verify(read(theirs.read_bytes()), present.trust(), at=datetime.now(clock.tzinfo))
    assert (found.mac, found.profile) == (mac, "inference")


@pytest.mark.parametrize(("option", "profile"), [("+pb", "base"), ("+pc", "creator"), ("+pa", "authorization")])
def test_what_dcmsign_signs_by_a_profile_satisfies_ours(
    option: str, profile: str, ct: bytes, present: Hospital, clock: datetime, tmp_path: Path
) -> None:
    source, theirs = tmp_path / "in.dcm", tmp_path / "theirs.dcm"
    source.write_bytes(ct)
    assert signs(present, "ct", source, theirs, option, "+m2", "-t", "0008,0018") == 0
    trust = present.trust(TrustPolicy(required_profile=profile))
    assert signing.verify(read(theirs.read_bytes()), trust, at=datetime.now(clock.tzinfo)).profile == profile


@pytest.mark.parametrize(("option", "required"), [("creator", "+rc"), ("authorization", "+ru")])
def test_what_we_sign_by_a_profile_satisfies_dcmsign(
    option: str, required: str, ct: bytes, present: Hospital, clock: datetime, tmp_path: Path
) -> None:
    ours = tmp_path / "ours.dcm"
    ours.write_bytes(signing.sign(ct, signer=present.signer("ct"), profile=option, at=clock))
    roots = ("+cf", present.path("root.pem"), "+uf", present.path("intermediate.pem"))
    assert dcmsign("--verify", required, *roots, ours) == 0


@pytest.mark.parametrize(("option", "mac"), [("+mr", "RIPEMD160"), ("+mm", "MD5"), ("+ms", "SHA1")])
@pytest.mark.parametrize("who", ["ct", "mr"])
def test_what_dcmsign_signs_with_a_weak_mac_is_intact_and_weak(
    option: str, mac: str, who: str, ct: bytes, present: Hospital, clock: datetime, tmp_path: Path
) -> None:
    source, theirs = tmp_path / "in.dcm", tmp_path / "theirs.dcm"
    source.write_bytes(ct)
    assert signs(present, who, source, theirs, option) == 0
    with pytest.raises(SignatureError) as caught:
        signing.verify(read(theirs.read_bytes()), present.trust(), at=datetime.now(clock.tzinfo))
    assert (caught.value.reason, caught.value.checks["crypto"]) == (Reason.WEAK_MAC, "passed")
    assert caught.value.signatures[0].mac == mac


def test_every_shared_object_goes_both_ways_or_a_rule_says_why_not(
    shared: Path, present: Hospital, clock: datetime, tmp_path: Path
) -> None:
    """Rules are those of docs/signatures.md; `unexplained` stays empty."""
    trust, signer = present.trust(LENIENT), present.signer("mr")
    unexplained: list[tuple[str, str, str]] = []
    agreed = {"theirs": 0, "ours": 0}
    for source in sorted((shared / "dicom").glob("*.dcm")):
        try:
            elements = read(source.read_bytes())
        except DicomError:
            continue
        theirs, ours = tmp_path / "theirs.dcm", tmp_path / "ours.dcm"
        if signs(present, "ct", source, theirs, "+m2") == 0:
            try:
                signing.verify(read(theirs.read_bytes()), trust, at=datetime.now(clock.tzinfo))
                agreed["theirs"] += 1
            except SignatureError as error:
                if not explains_refusal(elements, error.reason):
                    unexplained.append((source.name, "theirs", str(error)))
        listed = [each.tag for each in elements if not is_forbidden(each.tag) and is_signable(each)]
        try:
            ours.write_bytes(signing.sign(source.read_bytes(), signer=signer, profile="none", tags=listed, at=clock))
        except (DicomError, signing.SignError):
            continue
        signing.verify(read(ours.read_bytes()), trust, at=clock)
        if verifies(present, ours) == 0:
            agreed["ours"] += 1
        elif not explains_its_refusal(elements, listed):
            unexplained.append((source.name, "ours", "dcmsign refuses it"))
    assert not unexplained
    assert min(agreed.values()) >= 150


def explains_refusal(elements: Elements, reason: Reason) -> bool:
    """Why we may refuse what dcmsign signed."""
    if reason is Reason.FILE_META_MISMATCH:
        return True  # it signs whatever the file meta says
    if reason is Reason.UNSIGNABLE_ELEMENT:
        return not elements.explicit  # it resolves private elements of implicit files by a dictionary of its own
    return reason is Reason.MAC_MISMATCH and overflows(elements)


def explains_its_refusal(elements: Elements, listed: Iterable[int]) -> bool:
    """Why dcmsign may refuse what we signed."""
    unknown = elements.transfer_syntax.startswith(UNKNOWN_TO_DCMSIGN)
    return unknown or overflows(elements) or any(map(is_padded(elements), covered_elements(elements, listed)))


def overflows(elements: Elements) -> bool:
    """Sequences inside sequences lose what is left of them where its stream buffer fills."""
    streamed = 0
    for element in elements:
        if not is_forbidden(element.tag) and is_signable(element):
            chunks = stream(elements, covered_elements(elements, [element.tag]), explicit=elements.explicit)
            streamed += sum(map(len, chunks))
            if has_nested(element) and streamed > BUFFER:
                return True
    return False


def has_nested(element: Element) -> bool:
    return any(inner.items is not None for item in element.items or () for inner in item)


def is_padded(elements: Elements) -> Callable[[Element], bool]:
    """Values with more padding than they need: it trims them before it hashes."""

    def check(element: Element) -> bool:
        if element.items is not None:
            return any(check(inner) for item in element.items for inner in item)
        if element.vr in {"OB", "OW", "OF", "OD", "UN"} or element.fragments is not None:
            return False
        value = bytes(elements.data[element.offset : element.offset + element.length])
        return value.endswith((b"  ", b"\0\0")) or (element.vr != "UI" and value.endswith(b"\0"))

    return check
