"""The gateway's life: read, open, start, serve, reload, drain; in an order in which nothing is promised too early."""

from __future__ import annotations

import json
import queue
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from types import FrameType

import structlog

from gateway import durable
from gateway.app import service_manager
from gateway.app.assembly import Records, build_service, exporting, start_engine
from gateway.app.doors import open_dicom_door, open_web_door
from gateway.app.plan import Plan
from gateway.app.preconditions import DISTRIBUTION, allow_descriptors, refuse_foreign_owners
from gateway.app.trusted import revocation_files
from gateway.app.watches import Draughtsman, Expiry, MaterialWatch, tend
from gateway.audit.collectors import Collector
from gateway.audit.record import Started
from gateway.engine.local import LocalEngine
from gateway.errors import ConfigError, GatewayError
from gateway.pixels.decode import Decompressor
from gateway.pixels.decompressor import DisposableDecoder
from gateway.receivers.gate import Gate, KeyWatch
from gateway.receivers.grpc_server import GrpcReceiver
from gateway.receivers.scraping import MetricsDoor
from gateway.service import ProtectionService
from gateway.settings.config import Config
from gateway.telemetry import logs
from gateway.telemetry.metrics import Metrics
from gateway.upstreams.upstreams import Upstreams

_LOOK_S = 0.5
"""How often readiness is looked at while nothing else happens."""
_MATERIAL = 0
"""Among signals, which begin at 1: revocation files have changed."""
_FIXED = ("receivers", "metrics", "traces", "storage", "keys", "audit", "engine", "drift", "destinations")
"""Tables that a reload cannot change: ports, files and processes that are in use."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Served:
    """What a reload replaces as a whole: who may call, and what their scans meet."""

    plan: Plan
    engine: LocalEngine | None
    upstreams: Upstreams
    service: ProtectionService


class App:
    """One gateway process."""

    def __init__(self, path: Path, *, ready_file: Path | None = None) -> None:
        """`path`: the configuration; `ready_file` gets the addresses once calls are taken."""
        self._path = path
        self._ready_file = ready_file
        self._served: Served | None = None
        self._engines: list[LocalEngine] = []
        self._signals: queue.SimpleQueue[int] = queue.SimpleQueue()

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT.

        (1) read the configuration and everything that it names
        (2) open the log, the ledger, the quarantine
        (3) start the detection worker, before any gRPC object exists
        (4) build the routes
        (5) listen
        (6) say that it is ready
        (7) serve, reading the configuration again on SIGHUP, and revocation material when its files change
        (8) drain: unready first, then no new calls, then the end of those in progress, then the log's last checkpoint

        Raises:
            ConfigError: the configuration cannot be served.
        """
        logs.configure()
        refuse_foreign_owners()
        with self._signalled(), ExitStack() as closing:
            plan = Plan.of(Config.load(self._path))  # (1)
            allow_descriptors(plan.config.receivers.grpc.connections_max)
            records = Records.open(plan)  # (2)
            closing.callback(records.close)
            decompressor = closing.enter_context(DisposableDecoder())
            closing.callback(self._close_engines)
            self._serve(plan, records, decompressor)  # (3) (4)
            self._service().review.resume()
            closing.enter_context(exporting(plan.config.traces))
            metrics = closing.enter_context(MetricsDoor(plan.config.metrics, records.metrics.registry))
            grpc = plan.config.receivers.grpc
            closing.enter_context(KeyWatch(self._gate))
            receiver = GrpcReceiver(
                grpc, service=self._service, gate=self._gate, spool=records.spool, throttle=records.throttle
            )
            closing.callback(receiver.drain, grpc.drain_s_max)
            for destination in records.destinations.values():
                destination.start()
                closing.callback(destination.close, grpc.drain_s_max)
            dimse = open_dicom_door(self._plan, records, self._service, closing)
            http = open_web_door(plan, records, self._service, self._gate, closing)
            addresses = {"grpc": receiver.start(), "http": http, "dimse": dimse, "metrics": metrics.address}  # (5)
            receiver.ready(True)
            records.metrics.ready(True)
            closing.enter_context(Expiry(lambda: self._service().review))
            closing.enter_context(tend(plan, records))
            closing.enter_context(Draughtsman(records.wanted, lambda: self._service().heat_maps))
            closing.enter_context(MaterialWatch(self._plan, lambda: self._signals.put(_MATERIAL)))
            self._say_ready(addresses)  # (6)
            closing.callback(self._say_unready)
            self._until_told_to_stop(receiver, records, decompressor)  # (7)
            records.metrics.ready(False)
            service_manager.notify(service_manager.STOPPING)
            _log.info("stopping")  # (8) is the stack's, in reverse

    def _serve(self, plan: Plan, records: Records, decompressor: Decompressor) -> None:
        """Build what the plan says and put it in the place of what served before; a failure changes nothing."""
        before = self._served
        if before is not None:
            plan.gate.adopt(before.plan.gate)
        upstreams = Upstreams.of(
            plan.config, plan.models, records.metrics, before=before.upstreams if before is not None else None
        )
        kept = before is not None and _examined_alike(before, plan, upstreams)
        engine = before.engine if before is not None and kept else start_engine(plan, records.metrics, upstreams)
        if engine is not None and not kept:
            self._engines.append(engine)
        service = build_service(plan, records, engine=engine, upstreams=upstreams, decompressor=decompressor)
        settings = sha256(plan.config.model_dump_json().encode()).hexdigest()
        records.audit.append(Started(settings, version(DISTRIBUTION))).result()
        self._served = Served(plan, engine, upstreams, service)
        records.throttle.configure(plan.config.limits)
        _say_age(records.metrics, plan)
        for model in _gradient_free(plan):
            _log.warning("gradient_free", model=model)
        _log.info("serving", config_sha256=settings, count=len(plan.config.routes))
        if before is not None:
            self._retire(before, plan.config.receivers.work_s_max)

    def _retire(self, before: Served, after_s: float) -> None:
        """Let go of what does not serve any more: calls that began before still use it, until their deadline."""
        assert self._served is not None
        before.upstreams.close(but=self._served.upstreams, after_s=after_s)
        if before.engine is not None and before.engine is not self._served.engine:
            last = threading.Timer(after_s, before.engine.close)
            last.daemon = True
            last.start()

    def _reload(self, records: Records, decompressor: Decompressor) -> None:
        assert self._served is not None
        try:
            config = Config.load(self._path)
            before = self._served.plan.config
            if moved := [table for table in _FIXED if getattr(config, table) != getattr(before, table)]:
                raise ConfigError([f"{table}: changes only with a restart" for table in moved])
            self._serve(Plan.of(config), records, decompressor)
        except ConfigError as error:
            _log.error("reload_refused", problems=error.problems)
        except GatewayError as error:
            _log.error("reload_refused", problems=[str(error)])

    def _take_material(self, records: Records, decompressor: Decompressor) -> None:
        """Judge by the revocation files of now, everything else as it was; what cannot be read stays as it was."""
        assert self._served is not None
        before = self._served
        trusts = dict(before.plan.trusts)
        for name, config in before.plan.config.trust.policies.items():
            if revocation_files(config) == trusts[name].seen:
                continue
            try:
                trusts[name] = trusts[name].refreshed(name, config)
                _log.info("material_taken", trust=name, trust_sha256=trusts[name].sha256)
            except ConfigError as error:
                _log.error("material_refused", problems=error.problems)
        plan = replace(before.plan, trusts=trusts)
        service = build_service(
            plan, records, engine=before.engine, upstreams=before.upstreams, decompressor=decompressor
        )
        self._served = Served(plan, before.engine, before.upstreams, service)
        _say_age(records.metrics, plan)

    def _plan(self) -> Plan:
        assert self._served is not None
        return self._served.plan

    def _until_told_to_stop(self, receiver: GrpcReceiver, records: Records, decompressor: Decompressor) -> None:
        ready = True
        while True:
            with suppress(queue.Empty):
                number = self._signals.get(timeout=_LOOK_S)
                if number == _MATERIAL:
                    self._take_material(records, decompressor)
                elif number == signal.SIGHUP:
                    self._reload(records, decompressor)
                else:
                    return
            engine = self._served.engine if self._served is not None else None
            if ready != (now := records.audit.healthy and (engine is None or engine.ready)):
                ready = now
                receiver.ready(ready)
                records.metrics.ready(ready)
                _log.warning("ready_again" if ready else "not_ready")

    @contextmanager
    def _signalled(self) -> Iterator[None]:
        """Signals go to the queue; before calls are taken, one to stop ends the start at once."""

        def note(number: int, _frame: FrameType | None) -> None:
            if self._served is None and number != signal.SIGHUP:
                sys.exit(0)
            self._signals.put(number)

        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        before = {number: signal.signal(number, note) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _say_ready(self, addresses: dict[str, str | None]) -> None:
        if self._ready_file is not None:
            try:
                durable.replace(self._ready_file, json.dumps(addresses).encode())
            except OSError as error:
                raise ConfigError([f"--ready-file {self._ready_file}: {error.strerror}"]) from error
        service_manager.notify(service_manager.READY)
        for door, address in addresses.items():
            if address:
                _log.info("listening", receiver=door, address=address)

    def _say_unready(self) -> None:
        if self._ready_file is not None:
            with suppress(OSError):  # whoever made the folder may have taken it away
                self._ready_file.unlink()

    def _service(self) -> ProtectionService:
        assert self._served is not None
        return self._served.service

    def _gate(self) -> Gate:
        assert self._served is not None
        return self._served.plan.gate

    def _close_engines(self) -> None:
        for engine in self._engines:
            engine.close()


def check(config: Config) -> list[str]:
    """Find whatever would keep `serve` from starting, short of ports and the detection worker; writes nothing.

    Returns:
        Sentences on what can be served, and should be known.

    Raises:
        ConfigError: names each mistake by its key.
    """
    plan = Plan.of(config)
    Upstreams.of(config, plan.models, Metrics())
    for collector in config.audit.collectors:
        Collector.of(collector)
    return [
        f"models.{name}: gradient-free: its detectors compare answers alone (docs/models.md)"
        for name in _gradient_free(plan)
    ]


def _examined_alike(before: Served, plan: Plan, upstreams: Upstreams) -> bool:
    """Whether the detection worker has the plan's models already, and asks the servers that it names."""
    if before.plan.models != plan.models:
        return False
    return before.upstreams.answering(before.plan.models) == upstreams.answering(plan.models)


def _gradient_free(plan: Plan) -> list[str]:
    """Names of the models whose detectors were fitted without gradients: weaker, so nobody shall overlook it."""
    return [name for name, model in plan.models.items() if not model.gradients]


def _say_age(metrics: Metrics, plan: Plan) -> None:
    metrics.revocation({name: trusted.updated for name, trusted in plan.trusts.items()})
