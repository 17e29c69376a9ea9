"""What is refused instead of held is counted against its sender all the same."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from gateway.callers import queries
from gateway.callers.throttle import Throttle
from gateway.case import Case, Image
from gateway.deadline import Deadline
from gateway.errors import Overloaded
from gateway.finding import Finding, GatewayReason, Outcome
from gateway.pipeline import Pipeline
from gateway.policy import ServicePolicy
from gateway.service import Route
from gateway.settings.coherence import DEFAULT
from gateway.settings.policy import DetectionPolicy, PolicyConfig, SignaturePolicy
from gateway.testing import WIDE_LIMITS
from gateway.verdict import Disposition

REFUSING = PolicyConfig(
    indeterminate="reject",
    unexaminable="reject",
    signature=SignaturePolicy(failed="reject", unsigned="reject", stripped="reject"),
    detection=DetectionPolicy(false_positive_rate=0.01, suspect="reject", denoise="never"),
)


@dataclass
class Variations:
    """A stage that suspects every scan, and finds one image in it, in a variation that its last byte says."""

    name: str = "detection"
    requires: frozenset[str] = frozenset()
    provides: frozenset[str] = frozenset({"image"})

    def run(self, case: Case, deadline: Deadline) -> Case:
        image = np.random.default_rng(0).random((1, 1, 32, 32), np.float32)
        image[0, 0, 0, 0] += case.scan.data[-1] / 1000
        finding = Finding(self.name, Outcome.FAILED, GatewayReason.SUSPECT, p_value=0.001)
        return case.with_finding(finding, image=Image(image, "ct"))


@pytest.fixture
def refusing(house):
    pipeline = Pipeline([Variations()], house.metrics)
    house.service._routes["refusing"] = Route("refusing", pipeline, ServicePolicy(REFUSING), None, house.digests)
    return house


def test_one_image_in_many_variations_raises_the_alarm_where_each_is_refused(refusing, monkeypatch):
    monkeypatch.setattr(queries, "ALARM_COUNT", 3)
    for number in range(4):
        reply = refusing.protect(f"{number}".encode(), route="refusing")
        assert reply.verdict.disposition is Disposition.REJECT
    assert refusing.kinds().count("alarmed") == 1


def test_a_scan_that_is_refused_and_kept_is_one_of_its_senders_holds(refusing):
    """Else whoever is acknowledged first could fill the quarantine."""
    limits = WIDE_LIMITS.model_copy(update={"holds_per_hour": 1.0, "holds_burst": 1})
    throttle = refusing.service._throttle = Throttle({DEFAULT: limits}, threads=8)
    for data in (b"one", b"two"):
        scan = replace(refusing.make_scan(data, route="refusing"), acknowledged=True)
        throttle.admit(scan.source)
        assert refusing.service.protect(scan, Deadline.after(30.0)).quarantine_id is not None
    with pytest.raises(Overloaded, match="held scans"):
        throttle.admit(scan.source)
