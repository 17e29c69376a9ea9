"""The demo's main job: build a small hospital, send it good and hostile scans, and check every answer."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from rich.console import Console

from gateway.audit.sqlite import SqliteReader
from gateway.audit.verify import verify as verify_audit
from gateway.client.client import Answer, Client, ClientError
from gateway.receipt import ReceiptError, verify_receipt
from gateway.testing import Addresses, GatewayProcess
from lab.counters import grown, scraped
from lab.demo.material import drawn, learned
from lab.demo.pictures import draw_pictures
from lab.demo.prepare import Prepared, prepare
from lab.demo.report import Report, Shown
from lab.demo.rows import ROWS, Preparation, Row
from lab.demo.site import Site, build

PICTURES = Path("demo-output")
"""Where the pictures go when nothing else is kept."""


def run(directory: Path, data: Path | None, *, kept: bool) -> Report:
    """Run every row of the table against a real gateway process; the report says whether all went as it must."""
    console = Console(stderr=True)
    started = time.perf_counter()
    material = drawn() if data is None else learned(data, directory / "model")  # (1) what is protected
    with console.status("making a small hospital: certificates, keys, configuration") as status:
        site = build(directory, material)  # (2) who is trusted
        status.update("preparing scans, hostile ones among them")
        prepared = prepare(site.hospital, material)  # (3) what is sent
        if kept:
            _leave(prepared, directory / "scans")
        status.update("starting the gateway")
        with GatewayProcess(site.configuration, log=directory / "gateway.log") as gateway:
            addresses = gateway.addresses
            status.update("sending")
            before = scraped(addresses.metrics)
            shown = [_send(row, prepared[row.preparation], site, addresses) for row in ROWS]  # (4) the main job
            after = scraped(addresses.metrics)
        status.update("verifying the audit log")
        with SqliteReader(site.audit_log) as log:
            audit = verify_audit(log, [_public(site.checkpoint_key)])  # (5) the proof
        status.update("drawing pictures")
        pictures = draw_pictures(material, prepared, (directory if kept else PICTURES) / "pictures")  # (6) to look at
    return Report(
        title=material.title,
        rows=tuple(shown),
        audit_records=audit.records,
        audit_verified=audit.ok,
        metrics=grown(before, after, SHOWN_METRICS),
        pictures=tuple(pictures),
        configuration=site.configuration if kept else None,
        seconds=time.perf_counter() - started,
    )


def _leave(prepared: Mapping[Preparation, Prepared], directory: Path) -> None:
    """Write the scans as they are sent, for whoever wants to send them again."""
    directory.mkdir(exist_ok=True)
    for row in ROWS:
        (directory / f"{row.name}.dcm").write_bytes(prepared[row.preparation].data)


def _send(row: Row, scan: Prepared, site: Site, addresses: Addresses) -> Shown:
    with Client(addresses.grpc, token=site.token(row.source)) as client:
        started = time.perf_counter()
        try:
            answer = client.protect(scan.data, row.route)
        except ClientError as error:
            return Shown.unanswered(row, scan, str(error))
        ms = (time.perf_counter() - started) * 1e3
    return Shown.of(row, scan, answer, receipt_ok=_receipt_ok(answer, site), ms=ms)


def _receipt_ok(answer: Answer, site: Site) -> bool:
    """Whether the receipt is signed by the gateway's key and speaks of these very bytes."""
    try:
        statement = verify_receipt(answer.receipt, [_public(site.receipt_key)])
    except ReceiptError:
        return False
    return bool(statement["subject"][0]["digest"]["sha256"] == answer.scan_sha256)


def _public(path: Path) -> Ed25519PublicKey:
    key = load_pem_public_key(path.read_bytes())
    assert isinstance(key, Ed25519PublicKey)
    return key


SHOWN_METRICS = (
    "scanward_scans_total",
    "scanward_findings_total",
    "scanward_signatures_total",
    "scanward_unsafe_admissions_total",
    "scanward_quarantine_held",
    "scanward_audit_records_total",
)
