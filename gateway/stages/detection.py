"""Whether the image looks attacked: asks the engine's detectors, and compares their p-value with the policy's rate."""

from __future__ import annotations

from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import replace

from detectors.mondrian import Taxonomy
from gateway.case import Case, Evidence
from gateway.deadline import Deadline
from gateway.engine.engine import Engine, EngineError, ExpiredError, GreyZone, WorkerLostError
from gateway.errors import Abandoned
from gateway.finding import Finding, GatewayReason, Outcome
from gateway.policy import DETECTION
from gateway.stages.category import claimable
from gateway.stages.seeds import seeds_of
from signing import Reason


class DetectionStage:
    """Blocks its thread on the engine, which examines the images of many threads together."""

    name = DETECTION
    requires = frozenset({"image"})
    provides = frozenset({"evidence"})

    def __init__(
        self,
        engine: Engine,
        *,
        false_positive_rate: float,
        grey_p: float | None,
        seed_key: bytes | None = None,
        taxonomy: Taxonomy | None = None,
    ) -> None:
        """Find suspect what has p <= `false_positive_rate`; ask for denoised predictions above it up to `grey_p`.

        `seed_key` is for detectors that draw at random; without it they can only fail. `taxonomy` is of detectors that
        are calibrated by category.
        """
        self._engine = engine
        self._seed_key = seed_key
        self._taxonomy = taxonomy
        self._false_positive_rate = false_positive_rate
        self._grey = None if grey_p is None else GreyZone(false_positive_rate, grey_p)

    def run(self, case: Case, deadline: Deadline) -> Case:
        """See `stage.Stage.run`."""
        assert case.image is not None
        claims = None if self._taxonomy is None else claimable(case, self._taxonomy)
        if claims is not None and not claims:
            return self._without(case, GatewayReason.NOT_CALIBRATED, "no clean scans of its kind were calibrated on")
        try:
            caller, seeds = case.scan.source.identity, self._seeds(case, len(case.image.pixels))
            future = self._engine.submit(case.image, deadline, self._grey, caller, seeds, claims)
        except WorkerLostError as error:
            return self._without(case, GatewayReason.WORKER_LOST, str(error))
        try:
            evidence = future.result(timeout=deadline.remaining())
        except FutureTimeoutError:
            if future.cancel():  # it still waited for its turn
                raise Abandoned("the caller's deadline passed before the detectors saw the image") from None
            return self._without(
                case, GatewayReason.TIMEOUT, "the detectors did not answer before the caller's deadline"
            )
        except ExpiredError as error:
            raise Abandoned(str(error)) from None
        except WorkerLostError as error:
            return self._without(case, GatewayReason.WORKER_LOST, str(error))
        except EngineError as error:
            return self._without(case, GatewayReason.DETECTOR_ERROR, str(error))
        category = claims[0] if claims is not None and len(claims) == 1 else None
        return case.with_finding(self._finding(evidence), evidence=replace(evidence, category=category))

    def _seeds(self, case: Case, frames: int) -> tuple[int, ...]:
        if self._seed_key is None:
            return ()
        return seeds_of(self._seed_key, case.digests.artefact, case.scan.sha256, frames)

    def _finding(self, evidence: Evidence) -> Finding:
        suspect = evidence.p_value <= self._false_positive_rate
        return Finding(
            self.name,
            Outcome.FAILED if suspect else Outcome.PASSED,
            GatewayReason.SUSPECT if suspect else Reason.OK,
            f"p {evidence.p_value:.3g}, suspect at {self._false_positive_rate:g} and below",
            score=evidence.statistic,
            p_value=evidence.p_value,
            p_values=dict(evidence.p_values),
        )

    def _without(self, case: Case, reason: GatewayReason, detail: str) -> Case:
        return case.with_finding(Finding(self.name, Outcome.INDETERMINATE, reason, detail))
