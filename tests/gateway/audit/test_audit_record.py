"""Records hold facts by digest, never a byte of a scan."""

from __future__ import annotations

import io

import pydicom
from pydicom.data import get_testdata_file

from gateway.audit.record import Answered, Decided, Failed, Refused, Started
from gateway.case import Case
from gateway.errors import ScanError, UpstreamError
from gateway.finding import GatewayReason
from gateway.reply import Receipt
from gateway.scan import Scan, Source
from gateway.verdict import Disposition, Verdict

VERDICT = Verdict(Disposition.QUARANTINE, (GatewayReason.SUSPECT,))


def test_a_decision_is_recorded_by_digests(audit, make_case):
    case = make_case()
    verdict = Verdict(Disposition.QUARANTINE, (case.findings[1].reason,))
    record = Decided.of(case, verdict).facts()
    assert record["scan_sha256"] == case.scan.sha256
    assert (record["disposition"], record["reasons"]) == ("quarantine", ("suspect",))
    assert record["findings"][1] == {
        "stage": "detection",
        "outcome": "failed",
        "reason": "suspect",
        "score": 3.1,
        "p_value": 0.001,
        "p_values": {"uad": 0.1 + 0.2, "twin": 1e-5},
    }
    assert len(record["examination_sha256"]) == 64
    assert record["digests"]["policy"] == "44" * 32
    assert audit.append(Decided.of(case, verdict)).result() == 0


def test_every_kind_of_record_can_be_appended(audit, make_case):
    case = make_case()
    records = [
        Started("ab" * 32, "0.1.0"),
        Decided.of(case, VERDICT),
        Failed.of(case, UpstreamError("DOE^JANE is what the remote said")),
        Answered.of(case, Receipt(b"{}")),
        Refused.of(ScanError("there is no such route"), receiver="grpc", source="anonymous"),
    ]
    assert [audit.append(record).result() for record in records] == [0, 1, 2, 3, 4]
    assert "DOE" not in str(records[2])
    assert records[4].detail == "there is no such route"


def test_no_header_value_of_a_scan_is_recorded(make_case):
    """A real scan whose identifying values are canaries."""
    dataset = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    canaries = {"PatientName": "CANARY^ONE", "PatientID": "CANARYTWO", "AccessionNumber": "CANARYTHREE"}
    for keyword, value in canaries.items():
        setattr(dataset, keyword, value)
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    scan = Scan.receive(buffer.getvalue(), route="ct", receiver="grpc", source=Source("scanner", calling_ae="CANARYAE"))
    assert scan.elements is not None
    case = Case(scan, make_case().received_at, make_case().digests, make_case().findings)
    facts = str(Decided.of(case, VERDICT).facts())
    assert "CANARY" not in facts
    assert str(dataset.SOPInstanceUID) not in facts
    assert scan.sop_instance_digest in facts
