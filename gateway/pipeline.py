"""Walks a case through the stages; whatever a stage does, the case gains exactly one finding for it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import structlog

from gateway.case import Case
from gateway.deadline import Deadline
from gateway.errors import Abandoned, ConfigError, Overloaded
from gateway.finding import Finding, GatewayReason, Outcome
from gateway.stages.stage import Stage
from gateway.telemetry import traces
from gateway.telemetry.metrics import Metrics

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Pipeline:
    """An ordered chain of stages; checked at start-up to be one that can run."""

    stages: Sequence[Stage]
    metrics: Metrics

    def __post_init__(self) -> None:
        there: set[str] = set()
        for stage in self.stages:
            if missing := stage.requires - there:
                raise ConfigError([f"stage {stage.name}: no earlier stage provides {', '.join(sorted(missing))}"])
            there |= stage.provides

    def run(self, case: Case, deadline: Deadline) -> Case:
        """Examine the case; every stage leaves one finding, run or not.

        Raises:
            Overloaded: a stage had no room for the scan; it was not examined, and is not held.
            Abandoned: nobody waits for the answer any more; under load, work for those who left would cost those who
                stay, and holding their scans would fill the quarantine.
        """
        for stage in self.stages:
            with traces.span(f"stage {stage.name}"):
                case = self._step(stage, case, deadline)
                found = case.findings[-1]
                traces.note(outcome=str(found.outcome), reason=str(found.reason))
            self.metrics.found(found)
        return case

    def _step(self, stage: Stage, case: Case, deadline: Deadline) -> Case:
        started = time.perf_counter()
        if deadline.expired:
            raise Abandoned(f"the caller's deadline had passed before {stage.name}")
        if missing := sorted(product for product in stage.requires if not case.has(product)):
            detail = f"skipped: an earlier stage left no {' and no '.join(missing)}"
            return case.with_finding(Finding(stage.name, Outcome.INDETERMINATE, GatewayReason.NOT_RUN, detail))
        try:
            after = stage.run(case, deadline)
            if len(after.findings) != len(case.findings) + 1 or after.findings[:-1] != case.findings:
                raise RuntimeError(f"stage {stage.name} must add exactly one finding")
            if after.findings[-1].stage != stage.name:
                raise RuntimeError(f"stage {stage.name} must speak in its own name")
        except (Overloaded, Abandoned):  # nothing was examined, so there is nothing to decide: the sender may try again
            raise
        except Exception as error:  # whatever it raised: a stage that crashes must not read as a pass
            _log.error("stage_crashed", stage=stage.name, error=type(error).__name__, scan_sha256=case.scan.sha256)
            detail = f"the stage failed with {type(error).__name__}"
            after = case.with_finding(Finding(stage.name, Outcome.INDETERMINATE, GatewayReason.DETECTOR_ERROR, detail))
        seconds = time.perf_counter() - started
        return replace(after, findings=(*after.findings[:-1], replace(after.findings[-1], seconds=seconds)))
