"""Counts and times what happens, for Prometheus: a notification of what was done, never in the path of a decision.

The names and labels are API (docs/metrics.md). Every label takes its values from code, from the configuration or from
a fixed list, so that no sender can add a series, and none can carry patient data.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.process_collector import ProcessCollector

from gateway.finding import Finding
from gateway.verdict import Verdict

SIGNATURE_PROFILES = frozenset({"base", "creator", "authorization", "sr", "sr-verified", "inference", "none"})
"""Values of `required_profile` in a trust policy that may become a label; anything else is `other`."""

_P_VALUE_BUCKETS = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0)
_STAGE_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_PROTECT_BUCKETS = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """All of the gateway's metrics, in a registry of their own."""

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        """`clock` gives seconds since the epoch; the age of the last checkpoint is read from it at each scrape."""
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._clock = clock
        self._checkpointed_at: float | None = None
        self._scans = Counter(
            "scanward_scans", "Scans answered", ["receiver", "modality", "disposition"], registry=registry
        )
        self._studies = Counter(
            "scanward_studies", "Whole studies answered", ["receiver", "disposition"], registry=registry
        )
        self._stage = Histogram(
            "scanward_stage_seconds", "Wall time of a stage", ["stage"], buckets=_STAGE_BUCKETS, registry=registry
        )
        self._protect = Histogram(
            "scanward_protect_seconds",
            "Wall time from a scan's parse to its answer",
            ["receiver", "disposition"],
            buckets=_PROTECT_BUCKETS,
            registry=registry,
        )
        self._findings = Counter(
            "scanward_findings", "Security findings", ["stage", "outcome", "reason"], registry=registry
        )
        self._p_value = Histogram(
            "scanward_detector_p_value",
            "Calibrated p-value of each detector",
            ["detector"],
            buckets=_P_VALUE_BUCKETS,
            registry=registry,
        )
        self._signatures = Counter(
            "scanward_signatures", "Signatures examined", ["outcome", "reason", "profile"], registry=registry
        )
        self._upstream = Histogram(
            "scanward_upstream_seconds",
            "Wall time of the protected model's answer",
            ["upstream", "outcome"],
            buckets=_STAGE_BUCKETS,
            registry=registry,
        )
        self._batch = Histogram(
            "scanward_batch_size", "Images examined in one batch", buckets=_BATCH_BUCKETS, registry=registry
        )
        self._queue = Gauge("scanward_queue_depth", "Entries that wait in a queue", ["queue"], registry=registry)
        self._held = _Held(registry)
        self._unsafe = Counter(
            "scanward_unsafe_admissions", "Scans admitted only by an unsafe setting", ["setting"], registry=registry
        )
        self._query_alarms = Counter(
            "scanward_query_alarms",
            "Times that many scans of a source looked like one of its held scans",
            ["source"],
            registry=registry,
        )
        self._replay_rows = Gauge(
            "scanward_replay_ledger_rows", "Instances remembered with who signed them", registry=registry
        )
        self._revocation = Gauge(
            "scanward_revocation_age_seconds",
            "Age of the oldest revocation material in use; NaN where there is none",
            ["trust"],
            registry=registry,
        )
        self._revocation_of: frozenset[str] = frozenset()
        self._watch_drift()
        self._of_the_log(registry)
        self._of_itself(registry)

    def _of_the_log(self, registry: CollectorRegistry) -> None:
        self._records = Counter("scanward_audit_records", "Records made durable in the audit log", registry=registry)
        self._collector_lag = Gauge(
            "scanward_audit_collector_lag_seconds",
            "Age of the oldest record that this collector of audit messages does not have; 0 where it has all",
            ["collector"],
            registry=registry,
        )
        self._anchored = Gauge(
            "scanward_audit_anchor_age_seconds",
            "Seconds since the newest checkpoint that this anchor holds was signed; NaN before the first",
            ["anchor"],
            registry=registry,
        )
        age = Gauge(
            "scanward_audit_checkpoint_age_seconds",
            "Seconds since the last signed checkpoint of the audit log; NaN before the first",
            registry=registry,
        )
        age.set_function(self._checkpoint_age)

    def _of_itself(self, registry: CollectorRegistry) -> None:
        self._ready = Gauge("scanward_ready", "1 while calls should come here, else 0", registry=registry)
        build = Gauge("scanward_build_info", "The version that runs; always 1", ["version"], registry=registry)
        build.labels(version("scanward")).set(1)

    def _watch_drift(self) -> None:
        self._drift = Gauge(
            "scanward_drift_martingale",
            "Evidence that a source has changed, as a share of the threshold for an alarm",
            ["detector", "source", "model"],
            registry=self.registry,
        )
        self._suspended = Gauge(
            "scanward_drift_suspended",
            "1 where drift has suspended the detectors' guarantee",
            ["source", "model"],
            registry=self.registry,
        )

    # -- scans --

    def found(self, finding: Finding) -> None:
        """Count one stage's finding, its time, and each detector's p-value."""
        self._findings.labels(finding.stage, str(finding.outcome), str(finding.reason)).inc()
        if finding.seconds > 0.0:
            self._stage.labels(finding.stage).observe(finding.seconds)
        for detector, p_value in finding.p_values.items():
            self._p_value.labels(detector).observe(p_value)

    def answered(self, receiver: str, modality: str, verdict: Verdict, seconds: float) -> None:
        """Count one answered scan, and each unsafe setting that let it by; `modality` as `Scan.modality` bounds it."""
        disposition = verdict.disposition.label
        self._scans.labels(receiver, modality, disposition).inc()
        self._protect.labels(receiver, disposition).observe(seconds)
        for setting in verdict.unsafe:
            self._unsafe.labels(setting).inc()

    def study_answered(self, receiver: str, verdict: Verdict) -> None:
        """Count one study that was sent as a whole and answered."""
        self._studies.labels(receiver, verdict.disposition.label).inc()

    def unsafe(self, setting: str) -> None:
        """Count one scan admitted only because of an unsafe setting that no verdict names."""
        self._unsafe.labels(setting).inc()

    def signature(self, outcome: str, reason: str, profile: str) -> None:
        """Count one examined signature under the trust policy's required profile."""
        label = profile if profile in SIGNATURE_PROFILES else "other"
        self._signatures.labels(str(outcome), str(reason), label).inc()

    def query_alarm(self, source: str) -> None:
        """Count one alarm; `source` is its configured name."""
        self._query_alarms.labels(source).inc()

    def upstream(self, upstream: str, outcome: str, seconds: float) -> None:
        """Time one call of the protected model; `upstream` is its configured name, `outcome` `ok` or an error's."""
        self._upstream.labels(upstream, outcome).observe(seconds)

    # -- the engine, the quarantine and the audit log --

    def batch(self, size: int) -> None:
        """Count one batch of the engine."""
        self._batch.observe(size)

    def queue(self, name: str, depth: int) -> None:
        """Set how many entries wait in the queue of that name."""
        self._queue.labels(name).set(depth)

    def ready(self, ready: bool) -> None:
        """Set whether calls should come here, as the health service says it."""
        self._ready.set(ready)

    def held(self, count: int) -> None:
        """Set how many scans wait for a decision in quarantine."""
        self._held.waiting.set(count)

    def quarantine(self, used: Callable[[], tuple[int, int]], waiting_since: Callable[[], float | None]) -> None:
        """Read at each scrape: bytes taken, bytes there are; and since when the oldest scan waits."""
        self._held.bytes.set_function(lambda: used()[0])
        self._held.bytes_max.set_function(lambda: used()[1])
        self._held.oldest.set_function(lambda: self._age(waiting_since()))

    def acted(self, act: str, unsafe: Sequence[str] = ()) -> None:
        """Count one act on a held scan, and each unsafe setting that it needed.

        `act` is its kind of record, or `given_up` where a scan expired that nobody had decided about.
        """
        self._held.acts.labels(act).inc()
        for setting in unsafe:
            self._unsafe.labels(setting).inc()

    def audit_records(self, count: int) -> None:
        """Count records that have become durable."""
        self._records.inc(count)

    def checkpointed_at(self, seconds: float) -> None:
        """Note when the last checkpoint was signed, in seconds since the epoch."""
        self._checkpointed_at = seconds

    def anchored_at(self, anchor: str, seconds: float | None) -> None:
        """Note when the newest checkpoint that a configured anchor holds was signed, in seconds since the epoch."""
        self._anchored.labels(anchor).set_function(partial(self._age, seconds))

    def collector_lag(self, collector: str, since: Callable[[], float | None]) -> None:
        """Read at each scrape how long a configured collector has been waiting for a record; 0 where it has all."""
        self._collector_lag.labels(collector).set_function(lambda: 0.0 if (at := since()) is None else self._age(at))

    def replay_rows(self, count: int) -> None:
        """Set how many rows the replay ledger has."""
        self._replay_rows.set(count)

    def drift(self, source: str, model: str, evidence: Mapping[str, float], *, suspended: bool) -> None:
        """Set each detector's evidence that a configured source has changed, and whether its guarantee holds."""
        for detector, share in evidence.items():
            self._drift.labels(detector, source, model).set(share)
        self._suspended.labels(source, model).set(float(suspended))

    def drift_forgotten(self, model: str) -> None:
        """Another artefact serves the model: what was found under the earlier one is no longer said."""
        for family in (self._drift, self._suspended):
            family.remove_by_labels({"model": model})

    def revocation(self, updated: Mapping[str, float | None]) -> None:
        """Set when the oldest revocation material in use was issued, in seconds since the epoch, by trust policy.

        A policy that is not named any more loses its series.
        """
        for gone in self._revocation_of - updated.keys():
            self._revocation.remove(gone)
        self._revocation_of = frozenset(updated)
        for name, seconds in updated.items():
            self._revocation.labels(name).set_function(partial(self._age, seconds))

    def _checkpoint_age(self) -> float:
        return self._age(self._checkpointed_at)

    def _age(self, since: float | None) -> float:
        return float("nan") if since is None else max(0.0, self._clock() - since)


class _Held:
    """What is known about the quarantine."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"scanward_quarantine_{name}", text, registry=registry)

        self.waiting = gauge("held", "Held scans that wait for a decision")
        self.oldest = gauge("oldest_seconds", "Age of the scan that waits longest in quarantine; NaN where none waits")
        self.bytes = gauge("bytes", "Bytes on disk of everything in quarantine")
        self.bytes_max = gauge("bytes_max", "Bytes that the quarantine may take")
        self.acts = Counter(
            "scanward_quarantine_acts", "What was done with scans in quarantine", ["act"], registry=registry
        )
