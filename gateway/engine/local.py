"""The engine of one machine: a detection process for the device, started, fed, watched and replaced."""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

import numpy as np
import structlog
from numpy.typing import NDArray

from gateway.case import Evidence, Image
from gateway.deadline import Deadline
from gateway.engine.batcher import Batcher, Entry
from gateway.engine.engine import ExaminationError, ExpiredError, GreyZone, WorkerLostError
from gateway.engine.evidence import evidence_of
from gateway.engine.shared import REGIONS, SharedImages
from gateway.errors import ConfigError
from gateway.pixels.decode import FRAMES_MAX
from gateway.protected import ProtectedModel
from gateway.settings.models import EngineConfig
from gateway.telemetry import traces
from gateway.telemetry.metrics import Metrics

QUEUE = "detection"
_BACKOFF_S = (0.1, 30.0)
"""First and longest wait before a worker that died is replaced."""
_START_S_MAX = 300.0
_LEAVE_S_MAX = 5.0
_LOOK_S = 0.5
"""How often a silent worker is looked at."""
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Ticket:
    """What is known here about a submission while the worker has it."""

    pixels: NDArray[np.float32]
    grey: GreyZone | None
    future: Future[Evidence]
    moment: traces.Moment


@dataclass(frozen=True, slots=True)
class _Sent:
    """A batch that the worker has."""

    entries: list[Entry[_Ticket]]
    region: int
    sent_at: float


@dataclass(slots=True)
class _Process:
    """One life of the worker."""

    popen: subprocess.Popen[bytes]
    channel: socket.socket
    connection: Connection
    """Over the same socket; `channel` is kept to end it from another thread."""
    free: list[int] = field(default_factory=lambda: list(range(REGIONS)))
    sent: dict[int, _Sent] = field(default_factory=dict)


class LocalEngine:
    """Feeds one detection process; see `engine.Engine`.

    Start it before any gRPC object exists. One thread starts the process, listens to it and replaces it; another
    closes batches and copies them into shared memory; callers only queue and wait.
    """

    def __init__(
        self,
        models: Sequence[ProtectedModel],
        settings: EngineConfig,
        metrics: Metrics,
        *,
        batch_s_max: float = 120.0,
    ) -> None:
        """Prepare; nothing runs before `start`.

        Args:
            models: what the worker holds, each under its configured name.
            settings: of the engine.
            metrics: where batches and the queue are counted.
            batch_s_max: a batch that takes longer is taken for a hang, and the worker replaced.
        """
        self._models = {model.name: model for model in models}
        self._settings = settings
        self._metrics = metrics
        self._batch_s_max = batch_s_max
        self._batcher: Batcher[_Ticket] = Batcher(
            size_max=settings.batch_size_max,
            wait_s_max=settings.batch_wait_ms_max / 1000,
            queue_max=settings.queue_max,
        )
        images = max(settings.batch_size_max, FRAMES_MAX)
        self._values = images * max(math.prod(model.shape) for model in models)
        self._shared = SharedImages.create(self._values)
        self._changed = threading.Condition()
        self._process: _Process | None = None
        self._refusal: str | None = None
        self._closing = False
        self._batches = 0
        self._threads = [
            threading.Thread(target=target, name=f"engine-{name}", daemon=True)
            for name, target in (("watch", self._watch), ("feed", self._feed))
        ]

    @property
    def ready(self) -> bool:
        """Whether a worker has loaded every model and answers."""
        return self._process is not None

    @property
    def worker_pid(self) -> int | None:
        """Process id of the worker, for operators; None while there is none."""
        process = self._process
        return None if process is None else process.popen.pid

    def start(self) -> None:
        """Start the worker and wait until it is ready.

        Raises:
            ConfigError: it refused the device, an artefact or a model, or died.
        """
        for thread in self._threads:
            thread.start()
        with self._changed:
            self._changed.wait_for(lambda: self._process is not None or self._refusal is not None, _START_S_MAX)
            if self._process is not None:
                return
            refusal = self._refusal or f"the detection worker was not ready after {_START_S_MAX:g} s"
        self.close()
        raise ConfigError([refusal])

    def submit(self, image: Image, deadline: Deadline, grey: GreyZone | None, caller: str = "") -> Future[Evidence]:
        """See `engine.Engine.submit`."""
        shape = self._models[image.model].shape
        if image.pixels.shape[1:] != shape or not 1 <= len(image.pixels) <= FRAMES_MAX:
            raise ValueError(f"images are {image.pixels.shape}, model {image.model} takes 1 to {FRAMES_MAX} of {shape}")
        future: Future[Evidence] = Future()
        ticket = _Ticket(image.pixels, grey, future, traces.here())
        with self._changed:
            if self._closing:
                raise WorkerLostError("the engine is closed")
            self._batcher.put(Entry(image.model, len(image.pixels), deadline, time.monotonic(), ticket, caller))
            self._metrics.queue(QUEUE, self._batcher.depth)
            self._changed.notify_all()
        return future

    def close(self) -> None:
        """End the worker; whatever still waits is lost."""
        with self._changed:
            if self._closing:
                return
            self._closing = True
            waiting = self._batcher.take_all()
            if self._process is not None:
                self._process.channel.shutdown(socket.SHUT_WR)  # end of file: the worker leaves
            self._changed.notify_all()
        _fail(waiting, WorkerLostError("the engine was closed"))
        for thread in self._threads:
            if thread.is_alive():
                thread.join()
        self._shared.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- the watching thread --

    def _watch(self) -> None:
        """Start the worker, listen to it until it is gone, and start over, with growing patience."""
        backoff = _BACKOFF_S[0]
        first = True
        while not self._closing:
            process = self._spawn()
            refusal = self._introduce(process)
            if refusal is None:
                started = time.monotonic()
                with self._changed:
                    self._process = process
                    self._changed.notify_all()
                self._listen(process)
                backoff = _BACKOFF_S[0] if time.monotonic() - started > _BACKOFF_S[1] else backoff
            self._bury(process)
            with self._changed:
                if self._closing:
                    return
                if first and refusal is not None:
                    self._refusal = refusal
                    self._changed.notify_all()
                    return
                first = False
                _log.error("worker_lost", refusal=refusal, next_start_s=backoff)
                self._changed.wait_for(lambda: self._closing, backoff)
            backoff = min(2 * backoff, _BACKOFF_S[1])

    def _spawn(self) -> _Process:
        """A fresh interpreter, never a fork: this process has threads and locks that a copy would inherit broken."""
        ours, theirs = socket.socketpair()
        with theirs:
            descriptors = (theirs.fileno(), self._shared.descriptor)
            popen = subprocess.Popen(  # noqa: S603 - this interpreter, a module of our own
                [sys.executable, "-P", "-m", "gateway.engine.worker", *map(str, descriptors), str(os.getpid())],
                pass_fds=descriptors,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={**os.environ, **_arithmetic(self._settings.threads)},
            )
        return _Process(popen, ours, Connection(os.dup(ours.fileno())))

    def _introduce(self, process: _Process) -> str | None:
        """Tell the worker what to load; None once it is ready, else why it never will be."""
        settings = {
            "device": self._settings.device,
            "threads": self._settings.threads,
            "batch_size_max": self._settings.batch_size_max,
            "values": self._values,
            "models": [
                {
                    "name": model.name,
                    "artefact": str(model.artefact),
                    "profile_sha256": model.profile.sha256,
                    "shape": model.shape,
                }
                for model in self._models.values()
            ],
        }
        try:
            process.connection.send_bytes(json.dumps(settings).encode())
            for model in self._models.values():
                process.connection.send_bytes(model.manifest)
                process.connection.send_bytes(model.onnx)
            given_up_at = time.monotonic() + _START_S_MAX
            while not process.connection.poll(_LOOK_S):
                if self._closing or time.monotonic() > given_up_at:
                    return "the detection worker did not become ready"
            answer = json.loads(process.connection.recv_bytes())
        except (EOFError, OSError):
            return "the detection worker died while it loaded its models"
        refusal: str | None = answer.get("refused")
        return refusal

    def _listen(self, process: _Process) -> None:
        """Hand out answers until the worker is gone, hangs, or is told to leave and does not."""
        leaves_by = math.inf
        while True:
            if self._closing:
                leaves_by = min(leaves_by, time.monotonic() + _LEAVE_S_MAX)
            try:
                if process.connection.poll(_LOOK_S):
                    self._settle(process, json.loads(process.connection.recv_bytes()))
                    continue
            except (EOFError, OSError):
                return
            now = time.monotonic()
            oldest = min((sent.sent_at for sent in tuple(process.sent.values())), default=now)
            if now > leaves_by or now - oldest > self._batch_s_max:
                return

    def _settle(self, process: _Process, report: dict[str, Any]) -> None:
        """Turn one answer of the worker into the evidence of each submission of its batch."""
        with self._changed:
            sent = process.sent[report["batch"]]
        task = self._models[sent.entries[0].model].profile.task
        outgoing = self._shared.outgoing(sent.region, self._place(sent.entries))
        answers: list[Evidence | ExaminationError] = []
        start = 0
        for entry, case in zip(sent.entries, report["cases"], strict=True):
            answers.append(evidence_of(case, outgoing[start : start + entry.images], task))
            start += entry.images
        with self._changed:
            del process.sent[report["batch"]]
            process.free.append(sent.region)
            self._changed.notify_all()
        now, images = time.monotonic(), sum(entry.images for entry in sent.entries)
        for entry, answer in zip(sent.entries, answers, strict=True):
            traces.past("queue", entry.payload.moment, entry.arrived_at, sent.sent_at)
            traces.past("batch", entry.payload.moment, sent.sent_at, now, images=images)
            if isinstance(answer, Evidence):
                entry.payload.future.set_result(answer)
            else:
                entry.payload.future.set_exception(answer)

    def _bury(self, process: _Process) -> None:
        """Make sure that the worker is gone, and fail what it had."""
        with self._changed:
            self._process = None
            lost = [entry for sent in process.sent.values() for entry in sent.entries]
            process.sent.clear()
        if process.popen.poll() is None:
            process.popen.kill()
        process.popen.wait()
        process.connection.close()
        process.channel.close()
        for entry in lost:
            entry.payload.future.set_exception(WorkerLostError("the detection worker died with the batch"))

    # -- the feeding thread --

    def _feed(self) -> None:
        """Close batches as the worker can take them, and copy them to where it reads."""
        while (taken := self._next()) is not None:
            process, number, sent = taken
            images = self._shared.incoming(sent.region, self._place(sent.entries))
            np.concatenate([entry.payload.pixels for entry in sent.entries], out=images)
            request = {
                "batch": number,
                "model": sent.entries[0].model,
                "region": sent.region,
                "shape": images.shape[1:],
                "cases": [{"frames": entry.images, "grey": entry.payload.grey} for entry in sent.entries],
            }
            self._metrics.batch(len(images))
            with contextlib.suppress(OSError):  # the worker has died; the watching thread will see it and say so
                process.connection.send_bytes(json.dumps(request).encode())

    def _next(self) -> tuple[_Process, int, _Sent] | None:
        """Wait for a batch that the worker can take; None once the engine closes."""
        with self._changed:
            while not self._closing:
                process, due_at = self._process, None
                if process is not None and process.free:
                    idle = not process.sent
                    entries = self._batcher.take(time.monotonic(), idle=idle)
                    entries = [entry for entry in entries if entry.payload.future.set_running_or_notify_cancel()]
                    self._metrics.queue(QUEUE, self._batcher.depth)
                    if entries:
                        self._batches += 1
                        sent = _Sent(entries, process.free.pop(), time.monotonic())
                        process.sent[self._batches] = sent
                        return process, self._batches, sent
                    due_at = self._batcher.due_at() if idle else None
                _fail(self._batcher.take_dropped(), ExpiredError("the caller's deadline passed in the queue"))
                self._changed.wait(None if due_at is None else max(0.0, due_at - time.monotonic()))
        return None

    def _place(self, entries: Sequence[Entry[_Ticket]]) -> tuple[int, ...]:
        return (sum(entry.images for entry in entries), *self._models[entries[0].model].shape)


def _arithmetic(threads: int) -> dict[str, str]:
    """Environment of the worker: its threads sleep while they wait, since a busy gateway needs the cores itself."""
    team = str(threads)
    return {
        "OMP_NUM_THREADS": team,
        "OMP_WAIT_POLICY": "PASSIVE",
        "MKL_NUM_THREADS": team,
        "OPENBLAS_NUM_THREADS": "1",
    }


def _fail(entries: Sequence[Entry[_Ticket]], error: Exception) -> None:
    """Give submissions that never reached the worker their error, unless their callers have left already."""
    for entry in entries:
        if entry.payload.future.set_running_or_notify_cancel():
            entry.payload.future.set_exception(error)
