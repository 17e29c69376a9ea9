"""A dry run says what another policy would have made of the log, and changes nothing where the policy is the same."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gateway.audit.export import export_jsonl, lines
from gateway.audit.log import AuditLog
from gateway.audit.record import Decided
from gateway.audit.sqlite import SqliteReader, SqliteSink
from gateway.case import Case
from gateway.cli import main
from gateway.finding import Finding, GatewayReason, Outcome
from gateway.policy import DENOISING, DETECTION, SIGNATURE, Context, ServicePolicy
from gateway.policy_replay import EXAMPLES_MAX, Judges, ReplayReport, replay
from gateway.scan import Source
from gateway.settings.config import Config
from gateway.settings.policy import DetectionPolicy, PolicyConfig, RuleConfig, SignaturePolicy
from gateway.telemetry.metrics import Metrics
from gateway.testing import Site
from gateway.verdict import Disposition
from signing import Reason

POLICY = PolicyConfig(
    indeterminate="quarantine",
    unexaminable="quarantine",
    signature=SignaturePolicy(failed="reject", unsigned="quarantine", stripped="reject"),
    detection=DetectionPolicy(false_positive_rate=0.01, suspect="quarantine", denoise="if_agree", grey_p=0.05),
)
SIGNED = Finding(SIGNATURE, Outcome.PASSED, Reason.OK, "a sentence that the log leaves out", seconds=0.5)
UNSIGNED = Finding(SIGNATURE, Outcome.FAILED, Reason.UNSIGNED)
SIGNATURES = (
    SIGNED,
    UNSIGNED,
    Finding(SIGNATURE, Outcome.FAILED, Reason.STRIPPED),
    Finding(SIGNATURE, Outcome.FAILED, Reason.MAC_MISMATCH),
    Finding(SIGNATURE, Outcome.INDETERMINATE, Reason.REVOCATION_UNKNOWN),
)
LOOKED_AT = (
    Finding(DENOISING, Outcome.PASSED, Reason.OK, score=0.0),
    Finding(DENOISING, Outcome.FAILED, GatewayReason.SUSPECT, score=1.0),
)
NOT_LOOKED_AT = Finding(DENOISING, Outcome.PASSED, Reason.OK)


def detected(p_value: float) -> Finding:
    suspect = p_value <= 0.01
    outcome, reason = (Outcome.FAILED, GatewayReason.SUSPECT) if suspect else (Outcome.PASSED, Reason.OK)
    return Finding(DETECTION, outcome, reason, score=1.0, p_value=p_value, p_values={"uad": p_value})


def found(p_value: float) -> list[tuple[Finding, ...]]:
    """What the stages may leave of an image with this p-value."""
    denoising = LOOKED_AT if 0.01 < p_value <= 0.05 else (NOT_LOOKED_AT,)
    return [(signature, detected(p_value), each) for signature in SIGNATURES for each in denoising]


CASES = [case for p_value in (0.5, 0.03, 0.008, 0.004) for case in found(p_value)]


@pytest.fixture
def logged(tmp_path: Path, checkpoint_key: Ed25519PrivateKey, make_case: Callable[..., Case]) -> Callable[..., Path]:
    """A real log of decisions by a policy."""

    def log(
        cases: list[tuple[Finding, ...]], *, route: str = "ct", source: str = "ct-1", policy: PolicyConfig = POLICY
    ) -> Path:
        path = tmp_path / "audit.sqlite"
        audit = AuditLog(SqliteSink(path), checkpoint_key, metrics=Metrics(), checkpoint_file=tmp_path / "checkpoint")
        for number, findings in enumerate(cases):
            case = make_case(str(number).encode(), route=route, findings=findings)
            case = replace(case, scan=replace(case.scan, source=Source(source)))
            audit.append(Decided.of(case, ServicePolicy(policy).decide(findings, Context.of(case)))).result()
        audit.close()
        return path

    return log


def replayed(
    log: Path, policy: PolicyConfig, *, route: str = "ct", monitored: frozenset[str] = frozenset()
) -> ReplayReport:
    with SqliteReader(log) as reader:
        return replay(lines(reader), Judges({route: policy}, monitored))


def changes(report: ReplayReport) -> list[tuple[str, str, int]]:
    return [(change.before.label, change.after.label, change.count) for change in report.changes]


def changed(**detection: Any) -> PolicyConfig:
    assert POLICY.detection is not None
    return POLICY.model_copy(update={"detection": POLICY.detection.model_copy(update=detection)})


def test_the_same_policy_changes_nothing(logged):
    report = replayed(logged(CASES), POLICY)
    assert (report.replayed, report.changes, report.skipped, report.opens) == (len(CASES), [], {}, False)
    assert sum(report.unchanged.values()) == len(CASES)


def test_what_is_replayed_is_what_the_policy_would_have_decided(logged):
    """Over many policies, against the policy itself on the findings as its stages would have worded them."""
    log = logged(CASES)
    for unsigned, suspect, rate in product(("reject", "unsafe_admit"), ("reject", "quarantine"), (0.005, 0.01)):
        other = changed(suspect=suspect, false_positive_rate=rate, denoise="never", grey_p=None)
        other = other.model_copy(update={"signature": POLICY.signature.model_copy(update={"unsigned": unsigned})})
        expected = [
            ServicePolicy(other).decide((signature, _worded(detection, rate)), Context()).disposition
            for signature, detection, _ in CASES
        ]
        was = [ServicePolicy(POLICY).decide(case, Context()).disposition for case in CASES]
        report = replayed(log, other)
        assert sum(change.count for change in report.changes) == sum(
            after is not before for before, after in zip(was, expected, strict=True)
        )
        for change in report.changes:
            for index in change.examples:
                assert (was[index], expected[index]) == (change.before, change.after)


def _worded(detection: Finding, rate: float) -> Finding:
    assert detection.p_value is not None
    if detection.p_value <= rate:
        return replace(detection, outcome=Outcome.FAILED, reason=GatewayReason.SUSPECT)
    return replace(detection, outcome=Outcome.PASSED, reason=Reason.OK)


def test_the_first_records_of_each_change_are_named(logged):
    report = replayed(
        logged([(UNSIGNED, detected(0.5), NOT_LOOKED_AT)] * 20), POLICY.model_copy(update={"rules": RULES})
    )
    (change,) = report.changes
    assert (change.before, change.after, change.count) == (Disposition.QUARANTINE, Disposition.REJECT, 20)
    assert change.examples == tuple(range(EXAMPLES_MAX))
    assert not report.opens


RULES = (RuleConfig(name="unsigned-ct", disposition="reject", signature=("unsigned",), source=("ct-1",)),)


def test_a_policy_that_opens_says_so(logged):
    open_ = POLICY.model_copy(update={"signature": POLICY.signature.model_copy(update={"unsigned": "unsafe_admit"})})
    report = replayed(logged([(UNSIGNED, detected(0.5), NOT_LOOKED_AT)]), open_)
    assert (changes(report), report.opens) == ([("quarantine", "admit", 1)], True)


def test_a_grey_zone_that_nobody_looked_at_is_held(logged):
    """Whether the denoised reading would have agreed is not known."""
    report = replayed(logged([(SIGNED, detected(0.08), NOT_LOOKED_AT)]), changed(grey_p=0.1))
    assert changes(report) == [("admit", "quarantine", 1)]


def test_monitor_mode_is_replayed_as_of_today(logged):
    log = logged([(UNSIGNED, detected(0.5), NOT_LOOKED_AT), (SIGNATURES[3], detected(0.5), NOT_LOOKED_AT)])
    report = replayed(log, POLICY, monitored=frozenset({"ct-1"}))
    assert changes(report) == [("quarantine", "admit", 1)]
    assert replayed(log, POLICY, monitored=frozenset({"another"})).changes == []


def test_without_the_model_only_the_signature_counts(logged):
    report = replayed(logged([(SIGNED, detected(0.001), NOT_LOOKED_AT)]), POLICY.model_copy(update={"detection": None}))
    assert changes(report) == [("quarantine", "admit", 1)]


def test_what_cannot_be_replayed_is_counted_by_why(logged):
    log = logged([(SIGNED,)] * 2, policy=POLICY.model_copy(update={"detection": None}))
    assert replayed(log, POLICY).skipped == {"lacking": 2}
    assert replayed(log, POLICY, route="mr").skipped == {"no_route": 2}
    out = io.StringIO()
    with SqliteReader(log) as reader:
        export_jsonl(reader, out)
    old = [json.loads(line) for line in out.getvalue().splitlines()]
    for line in old:
        del line["record"]["modality"]
    assert replay(old, Judges({"ct": POLICY.model_copy(update={"detection": None})}, frozenset())).skipped == {
        "lacking": 2
    }


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site.make(tmp_path / "site")


def test_the_command_shows_what_would_change_and_exits_1_where_that_opens(logged, site):
    log = logged([(UNSIGNED,)] * 3, route="open", policy=POLICY.model_copy(update={"detection": None}))
    asked = ["policy", "replay", "--log", str(log), "--config", str(site.config)]
    result = CliRunner().invoke(main, [*asked, "--json"])
    assert (result.exit_code, json.loads(result.stdout)) == (
        1,
        {
            "replayed": 3,
            "unchanged": {},
            "changes": [{"route": "open", "from": "quarantine", "to": "admit", "count": 3, "examples": [0, 1, 2]}],
            "skipped": {},
            "ok": False,
        },
    )
    told = CliRunner().invoke(main, asked).stdout
    assert "open: 3 from quarantine to admit (opens); records 0, 1, 2" in told
    site.config.write_text(site.config.read_text().replace('unsigned = "unsafe_admit"', 'unsigned = "quarantine"'))
    result = CliRunner().invoke(main, [*asked, "--json"])
    assert (result.exit_code, json.loads(result.stdout)["unchanged"]) == (0, {"quarantine": 3})


def test_the_trust_policys_word_counts_as_when_it_serves(site):
    judges = Judges.of(Config.load(site.config))
    assert {name: policy.signature.unsigned for name, policy in judges.policies.items()} == {
        "strict": "reject",
        "open": "unsafe_admit",
    }


@pytest.mark.parametrize(("days", "monitored"), [(1, {"scanner"}), (0, set())])
def test_monitor_mode_that_is_over_is_over(site, days, monitored):
    until = datetime.now(UTC).date() + timedelta(days=days)
    text = site.config.read_text().replace('name = "scanner"', f'name = "scanner"\nunsafe_monitor_until = {until}')
    site.config.write_text(text)
    assert Judges.of(Config.load(site.config)).monitored == monitored
    assert Judges.of(Config.load(site.config), today=date(2999, 1, 1)).monitored == set()


@pytest.mark.parametrize("log", ["gone.sqlite", "scanward.toml"])
def test_what_is_no_log_cannot_be_replayed(site, log):
    result = CliRunner().invoke(
        main, ["policy", "replay", "--log", str(site.directory / log), "--config", str(site.config)]
    )
    assert result.exit_code == 2
