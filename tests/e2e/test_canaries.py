"""Patient data: random marks in every attribute of scans come back in no log line, metric, error or stored file.

The marks are looked for as they are, in capitals and small letters, in UTF-16, hexadecimal, base64 and percent
encoding. What the audit log holds instead of identifiers are digests: of the scan, of its SOP Instance UID, of what
was found.
"""

from __future__ import annotations

import base64
import io
import secrets
import string
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest
from pydicom import Dataset, Sequence, dcmread
from pydicom.data import get_testdata_file
from pydicom.datadict import DicomDictionary, keyword_for_tag

from gateway.api.kserve.v2 import inference_pb2 as inference
from gateway.api.kserve.v2 import inference_pb2_grpc as inference_rpc
from gateway.client.client import Client, ClientError
from gateway.testing import GatewayProcess, Site
from signing import sign
from signing.testing import flip_pixel_bit

CT = Path(str(get_testdata_file("CT_small.dcm"))).read_bytes()

LETTERS = "".join(secrets.choice(string.ascii_uppercase) for _ in range(8))
DIGITS = "9" + "".join(secrets.choice(string.digits) for _ in range(11))
"""The two marks: one for text, one for UIDs and numbers. Another pair for each run."""

TEXT = {"AE", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT", "CS"}
KEPT = {"SpecificCharacterSet", "SOPClassUID", "Modality", "PhotometricInterpretation", "ImageType"}
"""Attributes without which a scan is another kind of object; `HOSTILE` has each in turn."""


def needles() -> dict[bytes, str]:
    """Every form in which a mark could be written, and what to call it."""
    forms: dict[bytes, str] = {}
    for mark in (LETTERS, LETTERS.lower(), DIGITS):
        raw = mark.encode()
        forms[raw] = f"{mark} as it is"
        forms[mark.encode("utf-16-le")] = forms[mark.encode("utf-16-be")] = f"{mark} in UTF-16"
        forms[raw.hex().encode()] = forms[raw.hex().upper().encode()] = f"{mark} in hexadecimal"
        forms["".join(f"%{byte:02X}" for byte in raw).encode()] = f"{mark} in percent encoding"
        for shift in range(3):
            encoded = base64.b64encode(bytes(shift) + raw)
            inner = encoded[(0, 2, 3)[shift] : (shift + len(raw)) * 8 // 6]
            forms[inner] = forms[inner.replace(b"+", b"-").replace(b"/", b"_")] = f"{mark} in base64"
    return forms


NEEDLES = needles()


def found_in(data: bytes) -> set[str]:
    return {name for needle, name in NEEDLES.items() if needle in data}


def test_the_search_finds_a_mark_in_every_disguise() -> None:
    name = f"DOE^{LETTERS}=x".encode()
    for data in (name, name.lower(), name.hex().encode(), name.decode().encode("utf-16-le")):
        assert found_in(b"before " + data + b" after")
    for shift in range(3):
        assert found_in(base64.b64encode(bytes(shift) + name))
    assert found_in(f"1.2.{DIGITS}.7".encode())
    assert not found_in(CT)


def marked(**others: object) -> Dataset:
    """CT_small with a mark in every text and UID attribute of the patient's and the study's modules, and elsewhere."""
    dataset = dcmread(io.BytesIO(CT))
    for tag, (vr, multiplicity, _, retired, keyword) in DicomDictionary.items():
        if tag >> 16 not in {0x0008, 0x0010, 0x0018, 0x0020, 0x0032, 0x0038, 0x0040} or retired or keyword in KEPT:
            continue
        if vr in TEXT and multiplicity.startswith("1") and keyword:
            setattr(dataset, keyword, f"{LETTERS}^{tag:08X}" if vr == "PN" else f"{LETTERS}{tag & 0xFFFF:04X}")
        elif vr == "UI" and keyword:
            setattr(dataset, keyword, f"1.2.{DIGITS}.{tag}")
    dataset.PatientAddress = f"{LETTERS} street 5"
    block = dataset.private_block(0x0011, f"{LETTERS} CREATOR", create=True)
    block.add_new(0x01, "LO", f"{LETTERS} private")
    block.add_new(0x02, "UN", f"{LETTERS} unknown".encode())
    inner = Dataset()
    inner.ScheduledProcedureStepDescription = f"{LETTERS} nested"
    dataset.RequestAttributesSequence = Sequence([inner])
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.SourceApplicationEntityTitle = f"{LETTERS}AE"
    dataset.file_meta.ImplementationVersionName = f"{LETTERS}IV"
    dataset.file_meta.PrivateInformationCreatorUID = f"1.2.{DIGITS}.1"
    dataset.file_meta.PrivateInformation = f"{LETTERS}".encode()
    for keyword, value in others.items():
        setattr(dataset, keyword, value)
    return dataset


def written(dataset: Dataset) -> bytes:
    buffer = io.BytesIO()
    dataset.preamble = f"{LETTERS} preamble".encode().ljust(128, b"\0")
    dataset.save_as(buffer, enforce_file_format=False)
    return buffer.getvalue()


def cut(share: float) -> bytes:
    data = written(marked())
    return data[: int(share * len(data))]


def with_text_for(keyword: str) -> bytes:
    """A mark, written by hand, where a number or a term must be: what is told of it could quote it."""
    value = {"RescaleSlope": "1." + DIGITS[:10], "WindowCenter": "4" + DIGITS[:9], "PixelSpacing": "0." + DIGITS[:8]}
    data = written(marked(**{keyword: value.get(keyword, LETTERS)}))
    return data.replace(value[keyword].encode(), LETTERS.ljust(len(value[keyword]), "x").encode()) if value else data


HOSTILE: dict[str, Callable[[], bytes]] = {
    "another modality": lambda: written(marked(Modality=LETTERS)),
    "another photometric interpretation": lambda: written(marked(PhotometricInterpretation=LETTERS)),
    "another character set": lambda: written(marked(SpecificCharacterSet=LETTERS)),
    "another SOP class": lambda: written(marked(SOPClassUID=f"1.2.{DIGITS}.3")),
    "another image type": lambda: written(marked(ImageType=[LETTERS, LETTERS])),
    "a slope that is no number": lambda: with_text_for("RescaleSlope"),
    "a window that is no number": lambda: with_text_for("WindowCenter"),
    "cut in the header": lambda: cut(0.05),
    "cut in the pixels": lambda: cut(0.9),
    "another transfer syntax": lambda: written(marked()).replace(
        b"1.2.840.10008.1.2.1\0", f"1.2.{DIGITS}.5".encode().ljust(20, b"\0")
    ),
    "marks after the end": lambda: written(marked()) + f"{LETTERS}{DIGITS}".encode() * 9,
    "nothing but marks": lambda: bytes(128) + b"DICM" + f"{LETTERS}{DIGITS}".encode() * 99,
}


@pytest.fixture(scope="module")
def told(site: Site, gateway: GatewayProcess) -> dict[str, bytes]:
    """Everything that senders were told, by what they sent."""
    said: dict[str, bytes] = {}
    plain = written(marked())
    signed = sign(plain, signer=site.hospital.signer("ct"), at=datetime.now(UTC))
    scans = {
        "unsigned": plain, "signed": signed, "changed": flip_pixel_bit(signed),
        "signed by a stranger": sign(plain, signer=site.hospital.signer("stranger"), at=datetime.now(UTC)),
        **{name: build() for name, build in HOSTILE.items()},
    }  # fmt: skip
    for name, scan in scans.items():
        assert found_in(scan), f"{name}: has no mark"
        for source in ("scanner", "reviewer", "enrolled"):
            for route in ("ct", "strict", f"{LETTERS}-route"):
                said[f"{name}, {source}, {route}"] = told_of(gateway, site.tokens[source], scan, route)
    said["a stranger's token"] = told_of(gateway, LETTERS * 8, plain, "ct")
    said["KServe"] = told_by_kserve(gateway, site.tokens["scanner"], plain)
    return said


def told_of(gateway: GatewayProcess, token: str, scan: bytes, route: str) -> bytes:
    with Client(gateway.addresses.grpc, token=token) as client:
        try:
            return repr(client.protect(scan, route)).encode()
        except ClientError as error:
            return repr((str(error), error.status, error.message)).encode()


def told_by_kserve(gateway: GatewayProcess, token: str, scan: bytes) -> bytes:
    request = inference.ModelInferRequest(model_name="ct", id=LETTERS, model_version=LETTERS)
    request.inputs.add(name="DICOM", datatype="BYTES", shape=[1]).contents.bytes_contents.append(scan)
    metadata = (("authorization", f"Bearer {token}"), ("x-patient", LETTERS), ("user-agent", LETTERS))
    with grpc.insecure_channel(gateway.addresses.grpc) as channel:
        stub = inference_rpc.GRPCInferenceServiceStub(channel)
        try:
            answer = stub.ModelInfer(request, metadata=metadata, timeout=60)
        except grpc.RpcError as error:
            return repr((error.details(), error.trailing_metadata())).encode()
        answer.id = ""  # the protocol gives the caller's own id back to it
        return bytes(answer.SerializeToString())


def stored(site: Site) -> Iterator[Path]:
    return (path for path in (site.directory / "data").rglob("*") if path.is_file())


def test_no_sender_is_told_what_its_scan_says(told: dict[str, bytes]) -> None:
    assert {name: found for name, said in told.items() if (found := found_in(said))} == {}
    print(f"\n{len(told)} answers searched for {len(NEEDLES)} forms of {len((LETTERS, DIGITS))} marks")


def test_all_ways_out_were_taken(told: dict[str, bytes]) -> None:
    text = b"".join(told.values())
    for word in (b"'admit'", b"'quarantine'", b"'reject'", b"UNAUTHENTICATED", b"PERMISSION_DENIED"):
        assert word in text, word


def test_no_log_line_has_a_mark(told: dict[str, bytes], gateway: GatewayProcess) -> None:
    log = gateway.log().encode()
    assert log
    assert found_in(log) == set()


def test_no_metric_has_a_mark(told: dict[str, bytes], gateway: GatewayProcess) -> None:
    with urllib.request.urlopen(f"http://{gateway.addresses.metrics}/metrics", timeout=10) as reply:
        metrics = reply.read()
    assert b'modality="other"' in metrics
    assert found_in(metrics) == set()


def test_no_stored_file_has_a_mark(told: dict[str, bytes], site: Site) -> None:
    """The audit log, the ledgers and the quarantine, which holds whole scans, encrypted; their names as well."""
    files = list(stored(site))
    assert any(path.suffix == ".scan" for path in files), "nothing was held"
    assert {str(path): found for path in files if (found := found_in(str(path).encode() + path.read_bytes()))} == {}


def test_every_marked_attribute_is_one(told: dict[str, bytes]) -> None:
    """The marks stand where patients are: this list does not shrink unseen."""
    dataset = marked()
    attributes = {keyword_for_tag(element.tag) for element in dataset if found_in(str(element.value).encode())}
    assert len(attributes) > 200
    assert {"PatientName", "PatientID", "OtherPatientNames", "PatientComments", "AccessionNumber", "StudyInstanceUID",
            "SOPInstanceUID", "InstitutionName", "ReferringPhysicianName", "RetrieveAETitle", "OperatorsName"} <= attributes  # fmt: skip  # noqa: E501
