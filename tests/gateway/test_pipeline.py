"""Whatever a stage does, the case gains exactly one finding for it, and a failure never reads as a pass."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest

from gateway.case import Case, Evidence, Image
from gateway.deadline import Deadline
from gateway.errors import Abandoned, ConfigError, Overloaded
from gateway.finding import Finding, GatewayReason, Outcome
from gateway.pipeline import Pipeline
from signing import Reason

IMAGE = Image(np.zeros((1, 1, 2, 2), np.float32), "ct")
EVIDENCE = Evidence(0.0, 0.5, {}, {}, np.zeros(2, np.float32), {}, None)


@dataclass(frozen=True)
class Step:
    """A stage that does what the test tells it."""

    name: str
    does: Callable[[Case], Case] | None = None
    requires: frozenset[str] = frozenset()
    provides: frozenset[str] = frozenset()

    def run(self, case: Case, deadline: Deadline) -> Case:
        return self.does(case) if self.does else case.with_finding(Finding(self.name, Outcome.PASSED, Reason.OK))


@pytest.fixture
def empty_case(make_case) -> Case:
    return make_case(findings=())


def _run(metrics, case: Case, *stages: Step, seconds: float = 60.0) -> Case:
    return Pipeline(stages, metrics).run(case, Deadline.after(seconds))


def _crash(case: Case) -> Case:
    raise RuntimeError("DOE^JANE")


def _exit(case: Case) -> Case:
    raise MemoryError


CRASHES = {
    "raises": _crash,
    "runs out of memory": _exit,
    "adds none": lambda case: case,
    "adds two": lambda case: case.with_finding(Finding("s", Outcome.PASSED, Reason.OK)).with_finding(
        Finding("s", Outcome.PASSED, Reason.OK)
    ),
    "takes one away": lambda case: replace(case, findings=case.findings[:-1]),
    "rewrites an earlier one": lambda case: replace(
        case,
        findings=(
            replace(case.findings[0], outcome=Outcome.PASSED, reason=Reason.OK),
            Finding("s", Outcome.PASSED, Reason.OK),
        ),
    ),
    "speaks in another's name": lambda case: case.with_finding(Finding("signature", Outcome.PASSED, Reason.OK)),
    "returns nothing": lambda case: None,
}


@pytest.mark.parametrize("what", CRASHES)
def test_a_stage_that_breaks_its_contract_is_indeterminate(metrics, empty_case, what):
    failed = Step("signature", lambda case: case.with_finding(Finding("signature", Outcome.FAILED, Reason.UNSIGNED)))
    after = _run(metrics, empty_case, failed, Step("s", CRASHES[what]), Step("later"))
    assert [(finding.stage, finding.outcome) for finding in after.findings] == [
        ("signature", Outcome.FAILED),
        ("s", Outcome.INDETERMINATE),
        ("later", Outcome.PASSED),
    ]
    assert after.findings[1].reason is GatewayReason.DETECTOR_ERROR
    assert "DOE" not in after.findings[1].detail


def test_a_product_that_is_set_twice_is_a_crash(metrics, empty_case):
    def make(case: Case) -> Case:
        return case.with_finding(Finding("s", Outcome.PASSED, Reason.OK), image=IMAGE)

    after = _run(metrics, empty_case, Step("s", make), Step("s", make))
    assert [finding.outcome for finding in after.findings] == [Outcome.PASSED, Outcome.INDETERMINATE]


def test_a_stage_whose_product_is_missing_is_skipped(metrics, empty_case):
    provides, requires = frozenset({"image"}), frozenset({"image"})
    after = _run(metrics, empty_case, Step("maker", provides=provides), Step("user", requires=requires))
    assert after.findings[1].reason is GatewayReason.NOT_RUN
    assert "image" in after.findings[1].detail
    assert after.findings[1].seconds == 0.0


def test_a_product_reaches_the_stage_that_needs_it(metrics, empty_case):
    def make(case: Case) -> Case:
        return case.with_finding(Finding("maker", Outcome.PASSED, Reason.OK), image=IMAGE)

    def use(case: Case) -> Case:
        assert case.image is IMAGE
        return case.with_finding(Finding("user", Outcome.PASSED, Reason.OK), evidence=EVIDENCE)

    maker = Step("maker", make, provides=frozenset({"image"}))
    user = Step("user", use, requires=frozenset({"image"}))
    after = _run(metrics, empty_case, maker, user)
    assert [finding.outcome for finding in after.findings] == [Outcome.PASSED, Outcome.PASSED]
    assert (after.image, after.evidence) == (IMAGE, EVIDENCE)


def test_after_the_deadline_no_stage_is_run(metrics, empty_case):
    with pytest.raises(Abandoned, match="before one"):
        _run(metrics, empty_case, Step("one", _crash), Step("two", _crash), seconds=0.0)


def test_a_caller_who_hung_up_stops_the_rest(metrics, empty_case):
    gone = []

    def hang_up(case: Case) -> Case:
        gone.append(True)
        return case.with_finding(Finding("one", Outcome.PASSED, Reason.OK))

    pipeline = Pipeline([Step("one", hang_up), Step("two", _crash)], metrics)
    with pytest.raises(Abandoned, match="before two"):
        pipeline.run(empty_case, Deadline(math.inf, cancelled=lambda: bool(gone)))


def test_an_empty_chain_finds_nothing(metrics, empty_case):
    assert _run(metrics, empty_case).findings == ()


def test_every_finding_is_timed_and_counted(metrics, empty_case):
    after = _run(metrics, empty_case, Step("one"), Step("two", _crash))
    assert all(finding.seconds > 0.0 for finding in after.findings)
    labels = {"stage": "two", "outcome": "indeterminate", "reason": "detector_error"}
    assert metrics.registry.get_sample_value("scanward_findings_total", labels) == 1


def test_a_chain_that_cannot_run_is_refused_at_start_up(metrics):
    with pytest.raises(ConfigError, match=r"stage user: no earlier stage provides image, view"):
        Pipeline(
            [Step("user", requires=frozenset({"view", "image"})), Step("maker", provides=frozenset({"view"}))], metrics
        )


def test_a_case_grows_only_by_findings_and_each_product_once(empty_case):
    finding = Finding("s", Outcome.PASSED, Reason.OK)
    with_image = empty_case.with_finding(finding, image=IMAGE)
    assert (empty_case.findings, empty_case.has("image")) == ((), False)
    assert (with_image.findings, with_image.has("image")) == ((finding,), True)
    with pytest.raises(ValueError, match="image is already set"):
        with_image.with_finding(finding, image=IMAGE)
    with pytest.raises(AttributeError):
        with_image.findings = ()


def test_a_stage_without_room_is_the_senders_to_try_again_and_no_finding(metrics, empty_case):
    def full(case: Case) -> Case:
        raise Overloaded("64 scans wait for the detectors already")

    with pytest.raises(Overloaded):
        _run(metrics, empty_case, Step("s", full))
