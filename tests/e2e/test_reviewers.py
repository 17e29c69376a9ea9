"""A held scan, released by a reviewer, reaches the model of a real gateway, and stays released through a kill -9."""

from __future__ import annotations

import os
import shutil
import signal
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from pydicom.data import get_testdata_file

from gateway.app.assembly import AUDIT_LOG
from gateway.audit.sqlite import SqliteReader
from gateway.audit.verify import verify
from gateway.client.client import Answer, ClientError
from gateway.client.reviewer import Reviewer
from gateway.receipt import verify_receipt
from gateway.testing import GatewayProcess, Site
from signing import sign
from signing.testing import flip_pixel_bit
from site_tables import SMALL, route

CT = Path(str(get_testdata_file("CT_small.dcm"))).read_bytes()
REVIEW = """
[review]
four_eyes = false
decided_days_max = 30
unsafe_release_failed_signatures = true
"""


@pytest.fixture(scope="module")
def hospital(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A site of its own with the small model, whose route `holds` holds what is unsigned or wrongly signed."""
    routes = {"admits": "unsafe_admit", "holds": "quarantine"}
    tables = [SMALL, REVIEW, *(route(name, unsigned=word, failed="quarantine") for name, word in routes.items())]
    made = Site.make(tmp_path_factory.mktemp("reviewers"), tables="".join(tables), routes=list(routes))
    shutil.copytree(site.directory / "small", made.directory / "small")
    return made


@pytest.fixture
def running(hospital: Site) -> Iterator[GatewayProcess]:
    with GatewayProcess(hospital.config) as process:
        yield process


def as_reviewer(hospital: Site, process: GatewayProcess) -> Reviewer:
    return Reviewer(process.addresses.grpc, token=hospital.tokens["reviewer"])


def scores(answer: Answer) -> dict[str, float]:
    assert answer.prediction is not None
    return {score.name: score.score for score in answer.prediction.scores}


def test_a_released_scan_gets_the_prediction_that_an_admitted_one_gets_and_keeps_it_through_a_kill(
    hospital: Site, running: GatewayProcess
) -> None:
    with as_reviewer(hospital, running) as reviewer:
        admitted, held = reviewer.protect(CT, "admits"), reviewer.protect(CT, "holds")
        assert (held.disposition, held.prediction) == ("quarantine", None)
        released = reviewer.release(held.quarantine_id, "the phantom of the morning check")
        assert released.state == "released"
        again = reviewer.protect(CT, "holds")
    assert (again.disposition, again.released_by, again.earlier) == ("admit", ("reviewer",), True)
    assert scores(again) == scores(admitted)
    key = load_pem_public_key((hospital.directory / "keys" / "receipt.pub").read_bytes())
    predicate = verify_receipt(again.receipt, [key])["predicate"]  # type: ignore[list-item]
    assert (predicate["disposition"], predicate["quarantineId"]) == ("released_by", held.quarantine_id)

    os.kill(running.pid, signal.SIGKILL)
    with GatewayProcess(hospital.config) as restarted:
        with as_reviewer(hospital, restarted) as reviewer:
            assert reviewer.protect(CT, "holds") == again
            assert reviewer.release(held.quarantine_id, "once more").reply.receipt == again.receipt
            with pytest.raises(ClientError, match="cannot be taken back") as caught:
                reviewer.confirm(held.quarantine_id, "on second thoughts")
            assert caught.value.status == "FAILED_PRECONDITION"
        checkpoint = load_pem_public_key((hospital.directory / "keys" / "checkpoint.pub").read_bytes())
        assert restarted.stop() == 0
        with SqliteReader(hospital.directory / "data" / AUDIT_LOG) as log:
            assert verify(log, [checkpoint]).ok  # type: ignore[list-item]


def test_a_scan_whose_signature_failed_reaches_the_model_only_by_the_unsafe_setting_and_is_counted(
    hospital: Site, running: GatewayProcess
) -> None:
    changed = flip_pixel_bit(sign(CT, signer=hospital.hospital.signer("ct"), at=datetime.now(UTC)))
    with as_reviewer(hospital, running) as reviewer:
        held = reviewer.protect(changed, "holds")
        assert (held.disposition, held.reasons) == ("quarantine", ("mac_mismatch", "not_run"))
        released = reviewer.release(held.quarantine_id, "compared with the archive")
    assert sum(score.score for score in released.reply.prediction.scores) == pytest.approx(1.0)
    with urllib.request.urlopen(f"http://{running.addresses.metrics}/metrics", timeout=10) as page:
        text = page.read().decode()
    assert 'scanward_unsafe_admissions_total{setting="review.unsafe_release_failed_signatures"} 1.0' in text
    assert 'scanward_quarantine_acts_total{act="released"} 1.0' in text
