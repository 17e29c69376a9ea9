"""A dry run: what another policy would have made of the scans that the audit log holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from typing import Any

from gateway import documents
from gateway.audit.record import Decided
from gateway.errors import ConfigError
from gateway.finding import Finding, GatewayReason, Outcome
from gateway.policy import DENOISING, DETECTION, SIGNATURE, Context, ServicePolicy, effective
from gateway.settings.config import Config
from gateway.settings.policy import PolicyConfig
from gateway.verdict import Disposition
from signing import Reason, TrustError, TrustPolicy

EXAMPLES_MAX = 5
"""Records named for each kind of change; the first in the log."""
NO_ROUTE, LACKING = "no_route", "lacking"
"""Why a decision cannot be replayed: no such route any more; the record lacks a fact that the policy asks for."""


@dataclass(frozen=True, slots=True)
class Change:
    """Scans of one route that would be treated otherwise."""

    route: str
    before: Disposition
    after: Disposition
    count: int
    examples: tuple[int, ...]
    """Index of the first few records."""

    @property
    def opens(self) -> bool:
        """Whether the model would be asked about scans that were held or refused."""
        return self.after.admitted and not self.before.admitted


@dataclass(frozen=True, slots=True)
class ReplayReport:
    """What would change."""

    replayed: int
    unchanged: Mapping[Disposition, int]
    changes: Sequence[Change]
    """By route, then the gravest first."""
    skipped: Mapping[str, int]
    """Decisions that cannot be replayed, by why."""

    @property
    def opens(self) -> bool:
        """Whether anything would be admitted that was not."""
        return any(change.opens for change in self.changes)


@dataclass(frozen=True, slots=True)
class Judges:
    """The policies of a configuration, by route and source, without anything that would serve them."""

    policies: Mapping[str, PolicyConfig]
    monitored: frozenset[str]
    """Sources in monitor mode on the day of the dry run."""

    @classmethod
    def of(cls, config: Config, today: date | None = None) -> Judges:
        """Those of a configuration; raises `ConfigError` where a trust policy cannot be read."""
        today = today or datetime.now(UTC).date()
        mandatory = frozenset({"unsigned"})
        policies = {}
        for name, route in config.routes.items():
            try:
                trust = TrustPolicy.load(config.trust.policies[route.trust].policy, mandatory=mandatory)
            except TrustError as error:
                raise ConfigError([f"trust.{route.trust}: {error}"]) from error
            policies[name] = effective(
                config.policy_of(name), trust_unsigned=trust.unsigned, has_model=route.model is not None
            )
        until = {each.name: each.unsafe_monitor_until for each in config.sources}
        return cls(policies, frozenset(name for name, day in until.items() if day is not None and today < day))


def replay(lines: Iterable[Mapping[str, Any]], judges: Judges) -> ReplayReport:
    """Decide again about every scan in the log (`audit.export.lines`), by what was found in it then.

    Nothing is examined again: another trust policy, model or detector might have found something else.
    """
    replayed, unchanged, skipped = 0, Counter[Disposition](), Counter[str]()
    changed: dict[tuple[str, Disposition, Disposition], list[int]] = {}
    counts = Counter[tuple[str, Disposition, Disposition]]()
    for line in lines:
        record = line["record"]
        if record.get("kind") != Decided.kind:
            continue
        after = _decided(record, judges)
        if isinstance(after, str):
            skipped[after] += 1
            continue
        replayed += 1
        before = Disposition[record["disposition"].upper()]
        if after is before:
            unchanged[before] += 1
            continue
        kind = (record["route"], before, after)
        counts[kind] += 1
        if len(examples := changed.setdefault(kind, [])) < EXAMPLES_MAX:
            examples.append(line["index"])
    changes = [Change(*kind, counts[kind], tuple(examples)) for kind, examples in changed.items()]
    changes.sort(key=lambda change: (change.route, -change.after, -change.before))
    return ReplayReport(replayed, unchanged, changes, skipped)


def _decided(record: Mapping[str, Any], judges: Judges) -> Disposition | str:
    """What would become of one recorded scan, or why that cannot be said."""
    policy = judges.policies.get(record["route"])
    if policy is None:
        return NO_ROUTE
    try:
        findings = [documents.to_finding({**each, "detail": "", "seconds": 0.0}) for each in record["findings"]]
        context = Context(record["modality"], record["source"], record["study_held"])
    except (KeyError, TypeError, ValueError):
        return LACKING
    if policy.detection is not None and all(finding.stage != DETECTION for finding in findings):
        return LACKING  # the route had no model then
    monitor = context.source in judges.monitored
    return ServicePolicy(policy, monitor).decide(list(_as_it_would_be(findings, policy)), context).disposition


def _as_it_would_be(findings: Sequence[Finding], policy: PolicyConfig) -> Iterator[Finding]:
    """The findings as the stages would word them under this policy's rates."""
    detection = policy.detection
    for finding in findings:
        if detection is None:
            if finding.stage == SIGNATURE:
                yield finding  # without a model no other stage is run
        elif finding.stage == DETECTION and finding.p_value is not None:
            suspect = not finding.p_value > detection.false_positive_rate
            outcome, reason = (Outcome.FAILED, GatewayReason.SUSPECT) if suspect else (Outcome.PASSED, Reason.OK)
            yield replace(finding, outcome=outcome, reason=reason)
        elif finding.stage == DENOISING and (detection.denoise == "never" or _not_looked_at(finding)):
            continue  # in a grey zone that was not looked at then, nothing is known to agree
        else:
            yield finding


def _not_looked_at(finding: Finding) -> bool:
    return finding.outcome is Outcome.PASSED and finding.score is None
