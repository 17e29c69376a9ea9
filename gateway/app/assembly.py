"""Opens what outlives a reload, and builds the service from what was planned."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Self

from gateway import documents
from gateway.app.plan import Plan
from gateway.audit.anchors import Anchoring
from gateway.audit.log import AuditLog
from gateway.audit.places import open_sink
from gateway.callers.queries import QueryWatch
from gateway.callers.throttle import Throttle
from gateway.case import Digests
from gateway.engine.engine import Engine
from gateway.engine.local import LocalEngine
from gateway.errors import ConfigError
from gateway.heat_maps import HeatMaps, Wanted, easels
from gateway.pipeline import Pipeline
from gateway.pixels.decode import Decompressor
from gateway.policy import ServicePolicy, effective
from gateway.receipt import Notary
from gateway.review import Review
from gateway.routing import Routing
from gateway.service import ProtectionService, Route
from gateway.settings.policy import PolicyConfig
from gateway.settings.traces import TracesConfig
from gateway.stages.denoising import DenoisingStage
from gateway.stages.detection import DetectionStage
from gateway.stages.preprocess import PreprocessStage
from gateway.stages.signature import SignatureStage
from gateway.stages.stage import Stage
from gateway.stages.tensor import BareTensorStage, TensorImageStage
from gateway.store.custody import Custody
from gateway.store.drift import DriftWatch
from gateway.store.ledger import Ledger
from gateway.store.quarantine import Quarantine
from gateway.store.replay import ReplayLedger
from gateway.store.spool import Spool
from gateway.telemetry import traces
from gateway.telemetry.metrics import Metrics
from gateway.upstreams.dicom import DicomUpstream
from gateway.upstreams.upstreams import Upstreams

AUDIT_LOG, CHECKPOINT, LEDGER, REPLAY = "audit.sqlite", "checkpoint.note", "ledger.sqlite", "replay.sqlite"
DRIFT = "drift.sqlite"
"""Files in the storage directory."""
QUARANTINE, SPOOL, INBOX, OUTBOX = "quarantine", "spool", "inbox", "outbox"
"""Folders in the storage directory."""
CUSTODY_OBJECTS_MAX = 1_000_000
"""Objects that one queue on disk may hold: what it keeps in memory about each is some hundred bytes."""

_SECONDS_A_DAY = 86_400.0


@dataclass(frozen=True, slots=True)
class Records:
    """What outlives a reload: the log, the answers given, the scans held, and the metrics."""

    metrics: Metrics
    audit: AuditLog
    anchoring: Anchoring
    ledger: Ledger
    replay: ReplayLedger
    drift: DriftWatch
    quarantine: Quarantine
    spool: Spool
    notary: Notary
    throttle: Throttle
    queries: QueryWatch
    inbox: Custody | None
    """Scans acknowledged and not examined yet; None without a DICOM door."""
    destinations: Mapping[str, DicomUpstream]
    """By name; each with what was admitted and not handed on yet."""
    wanted: Wanted
    """Held scans whose heat maps are to be drawn."""

    @classmethod
    def open(cls, plan: Plan) -> Self:
        """Open or create all of it under the storage directory; raises `ConfigError`."""
        storage, keys, metrics = plan.config.storage, plan.keys, Metrics()
        root = storage.directory
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError([f"storage.directory: {root}: {error.strerror}"]) from error
        anchoring = Anchoring(plan.config.audit.anchors, metrics)
        audit = AuditLog(
            open_sink(root / AUDIT_LOG, plan.config.audit.postgres),
            keys.checkpoint,
            metrics=metrics,
            checkpoint_file=root / CHECKPOINT,
            retired=keys.retired_checkpoints,
            checkpoint_records=plan.config.audit.checkpoint_records,
            checkpoint_s=plan.config.audit.checkpoint_s,
            carry_off=anchoring.take,
        )
        replay_s_max = None if storage.replay_days_max is None else storage.replay_days_max * _SECONDS_A_DAY
        try:
            return cls(
                metrics,
                audit,
                anchoring,
                Ledger(
                    root / LEDGER, rows_max=storage.ledger_rows_max, age_s_max=storage.ledger_days_max * _SECONDS_A_DAY
                ),
                ReplayLedger(root / REPLAY, keys.replay, age_s_max=replay_s_max, metrics=metrics),
                DriftWatch(root / DRIFT, keys.drift, patients_max=plan.config.drift.patients_max, metrics=metrics),
                Quarantine(
                    root / QUARANTINE,
                    keys.quarantine,
                    name_key=keys.quarantine_names,
                    bytes_max=storage.quarantine_bytes_max,
                    metrics=metrics,
                ),
                Spool(
                    root / SPOOL,
                    bytes_max_per_object=plan.config.receivers.grpc.object_bytes_max,
                    bytes_max_total=storage.spool_bytes_max,
                ),
                Notary(keys.receipt),
                Throttle(plan.config.limits, threads=plan.config.receivers.grpc.threads),
                QueryWatch(),
                _inbox(plan),
                _destinations(plan, audit, metrics),
                Wanted(),
            )
        except ConfigError:
            audit.close()
            anchoring.close()
            raise

    def close(self) -> None:
        """Let go of what is on disk, last of the log, with a checkpoint over its end."""
        if self.inbox is not None:
            self.inbox.close()
        self.ledger.close()
        self.replay.close()
        self.drift.close()
        self.quarantine.close()
        self.audit.close()
        self.anchoring.close()


def _inbox(plan: Plan) -> Custody | None:
    dimse = plan.config.receivers.dimse
    if dimse is None:
        return None
    directory = plan.config.storage.directory / INBOX
    return Custody(directory, plan.keys.custody, bytes_max=dimse.inbox_bytes_max, objects_max=CUSTODY_OBJECTS_MAX)


def _destinations(plan: Plan, audit: AuditLog, metrics: Metrics) -> Mapping[str, DicomUpstream]:
    root = plan.config.storage.directory
    return {
        name: DicomUpstream(
            name,
            config,
            Custody(
                root / OUTBOX / name,
                plan.keys.custody,
                bytes_max=config.outbox_bytes_max,
                objects_max=CUSTODY_OBJECTS_MAX,
            ),
            audit=audit,
            metrics=metrics,
            directory=root / SPOOL,
        )
        for name, config in plan.config.destinations.items()
    }


def start_engine(plan: Plan, metrics: Metrics, upstreams: Upstreams) -> LocalEngine | None:
    """Start the detection worker and wait for it; None where no model needs one. Raises `ConfigError`."""
    if not plan.models:
        return None
    assert plan.config.engine is not None
    servers = upstreams.answering(plan.models)
    engine = LocalEngine(tuple(plan.models.values()), plan.config.engine, metrics, servers=servers)
    engine.start()
    return engine


def exporting(config: TracesConfig | None) -> AbstractContextManager[None]:
    """Send spans where the configuration says, for the block; nowhere without it. Raises `ConfigError`."""
    if config is None:
        return nullcontext()
    try:
        ca = config.ca.read_bytes() if config.ca is not None else None
    except OSError as error:
        raise ConfigError([f"traces.ca: {error.strerror}"]) from error
    return traces.exporting(config.address, ca=ca, share=config.share)


def build_service(
    plan: Plan,
    records: Records,
    *,
    engine: Engine | None,
    upstreams: Upstreams,
    decompressor: Decompressor,
) -> ProtectionService:
    """The service with a pipeline, a policy and an upstream for each route."""
    routes, clock = {}, partial(datetime.now, UTC)
    monitored = {each.name: each.unsafe_monitor_until for each in plan.config.sources if each.unsafe_monitor_until}
    for name, configured in plan.config.routes.items():
        policy = effective_policy(plan, name)
        stages = _stages(plan, name, policy, records=records, engine=engine, decompressor=decompressor)
        routes[name] = Route(
            name,
            Pipeline(stages, records.metrics),
            ServicePolicy(policy),
            records.destinations[configured.destination]
            if configured.destination is not None
            else upstreams.of_route(configured),
            _digests_of(plan, name, policy),
            plan.models[configured.model].profile if configured.model is not None else None,
            _tensors(plan, name, stages, records.metrics),
            monitored=monitored,
            drift=records.drift.on(plan.calibrated[configured.model]) if configured.model else None,
        )
    return ProtectionService(
        routes,
        ledger=records.ledger,
        audit=records.audit,
        quarantine=records.quarantine,
        review=Review(
            plan.config.review,
            persons=plan.persons,
            quarantine=records.quarantine,
            ledger=records.ledger,
            audit=records.audit,
            metrics=records.metrics,
            clock=clock,
        ),
        notary=records.notary,
        metrics=records.metrics,
        throttle=records.throttle,
        queries=records.queries,
        routing=Routing(plan.config.routing),
        clock=clock,
        heat_maps=HeatMaps(
            easels(plan.config.routes, plan.models, engine, decompressor),
            wanted=records.wanted,
            quarantine=records.quarantine,
            audit=records.audit,
            metrics=records.metrics,
        ),
    )


def effective_policy(plan: Plan, route: str) -> PolicyConfig:
    """The service policy that a route is judged by."""
    configured = plan.config.routes[route]
    unsigned = plan.trusts[configured.trust].trust.policy.unsigned
    return effective(plan.config.policy_of(route), trust_unsigned=unsigned, has_model=configured.model is not None)


def _stages(
    plan: Plan,
    route: str,
    policy: PolicyConfig,
    *,
    records: Records,
    engine: Engine | None,
    decompressor: Decompressor,
) -> tuple[Stage, ...]:
    configured = plan.config.routes[route]
    signature = SignatureStage(plan.trusts[configured.trust].trust, records.replay, records.metrics)
    if configured.model is None:
        return (signature,)
    assert engine is not None
    assert policy.detection is not None
    model, rate, grey_p = plan.models[configured.model], policy.detection.false_positive_rate, policy.detection.grey_p
    seed = plan.keys.seed
    stages: tuple[Stage, ...] = (
        signature,
        PreprocessStage(model.name, model.profile, decompressor, colour=model.colour),
        DetectionStage(engine, false_positive_rate=rate, grey_p=grey_p, seed_key=seed, taxonomy=model.taxonomy),
    )
    if grey_p is None or configured.destination is not None:
        return stages  # a destination takes what came and nothing else, so nothing goes on for its denoised form
    return (*stages, DenoisingStage(model.profile, false_positive_rate=rate, grey_p=grey_p))


def _tensors(plan: Plan, route: str, stages: tuple[Stage, ...], metrics: Metrics) -> Pipeline | None:
    """The pipeline of bare tensors: other first stages, the same detectors."""
    configured = plan.config.routes[route]
    if configured.model is None or configured.destination is not None:
        return None
    model, trust = plan.models[configured.model], plan.trusts[configured.trust].trust
    tensors = TensorImageStage(model.name, model.profile, colour=model.colour)
    first = (BareTensorStage(trust.policy.required_profile, metrics), tensors)
    return Pipeline((*first, *stages[len(first) :]), metrics)


def _digests_of(plan: Plan, route: str, policy: PolicyConfig) -> Digests:
    configured = plan.config.routes[route]
    model = plan.models[configured.model] if configured.model is not None else None
    decides: dict[str, object] = {"policy": policy.model_dump(mode="json"), "upstream": configured.upstream}
    if configured.destination is not None:
        decides["destination"] = configured.destination
    if configured.upstream == "kserve" and configured.model is not None:
        remote = plan.config.models[configured.model].kserve
        assert remote is not None
        decides["server"] = [remote.address, remote.model, remote.version]
    return Digests(
        model=model.model_sha256 if model else "",
        profile=model.profile.sha256 if model else "",
        artefact=model.artefact_sha256 if model else "",
        policy=hashlib.sha256(documents.canonical(decides)).hexdigest(),
        trust=plan.trusts[configured.trust].sha256,
    )
