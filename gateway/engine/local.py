"""The engine of one machine: a detection process for the device, started, fed, watched and replaced."""

from __future__ import annotations

import contextlib
import json
import math
import socket
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from types import MappingProxyType, TracebackType
from typing import Any, Self

import numpy as np
import structlog

from detectors.mondrian import Category
from gateway.case import Evidence, Image
from gateway.deadline import Deadline
from gateway.engine.answers import Answering, attend
from gateway.engine.batcher import Batcher, Entry
from gateway.engine.engine import ExaminationError, ExpiredError, GreyZone, HeatMap, WorkerLostError
from gateway.engine.evidence import evidence_of
from gateway.engine.process import LOOK_S, START_S_MAX, Process, Sent, Ticket, Wish
from gateway.engine.shared import SharedImages
from gateway.errors import ConfigError, Overloaded
from gateway.pixels.decode import FRAMES_MAX
from gateway.protected import ProtectedModel
from gateway.settings.models import EngineConfig
from gateway.telemetry import traces
from gateway.telemetry.metrics import Metrics

QUEUE = "detection"
_BACKOFF_S = (0.1, 30.0)
"""First and longest wait before a worker that died is replaced."""
_LEAVE_S_MAX = 5.0
_WISHES_MAX = 16
"""Images that wait to be explained."""
_log = structlog.get_logger(__name__)


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
        servers: Mapping[str, Answering] = MappingProxyType({}),
        batch_s_max: float = 120.0,
    ) -> None:
        """Prepare; nothing runs before `start`.

        Args:
            models: what the worker holds, each under its configured name.
            settings: of the engine.
            metrics: where batches and the queue are counted.
            servers: by model, whom the worker asks where only a server has it.
            batch_s_max: a batch that takes longer is taken for a hang, and the worker replaced.
        """
        self._models = {model.name: model for model in models}
        self._settings = settings
        self._metrics = metrics
        self._servers = servers
        self._batch_s_max = batch_s_max
        self._batcher: Batcher[Ticket] = Batcher(
            size_max=settings.batch_size_max,
            wait_s_max=settings.batch_wait_ms_max / 1000,
            queue_max=settings.queue_max,
        )
        images = max(settings.batch_size_max, FRAMES_MAX)
        self._values = images * max(math.prod(model.shape) for model in models)
        self._shared = SharedImages.create(self._values)
        self._wishes: deque[Entry[Wish]] = deque()
        self._changed = threading.Condition()
        self._process: Process | None = None
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
            self._changed.wait_for(lambda: self._process is not None or self._refusal is not None, START_S_MAX)
            if self._process is not None:
                return
            refusal = self._refusal or f"the detection worker was not ready after {START_S_MAX:g} s"
        self.close()
        raise ConfigError([refusal])

    def submit(
        self,
        image: Image,
        deadline: Deadline,
        grey: GreyZone | None,
        caller: str = "",
        seeds: Sequence[int] = (),
        claims: tuple[Category, ...] | None = None,
    ) -> Future[Evidence]:
        """See `engine.Engine.submit`."""
        self._require_shape(image)
        if seeds and len(seeds) != len(image.pixels):
            raise ValueError(f"{len(seeds)} seeds for {len(image.pixels)} frames")
        future: Future[Evidence] = Future()
        ticket = Ticket(image.pixels, grey, tuple(seeds), claims, future, traces.here())
        with self._changed:
            if self._closing:
                raise WorkerLostError("the engine is closed")
            self._batcher.put(Entry(image.model, len(image.pixels), deadline, time.monotonic(), ticket, caller))
            self._metrics.queue(QUEUE, self._batcher.depth)
            self._changed.notify_all()
        return future

    def explain(self, image: Image, deadline: Deadline) -> Future[HeatMap]:
        """See `engine.Engine.explain`."""
        self._require_shape(image)
        wish = Wish(image.pixels, Future())
        with self._changed:
            if self._closing:
                raise WorkerLostError("the engine is closed")
            if len(self._wishes) >= _WISHES_MAX:
                raise Overloaded(f"{_WISHES_MAX} images wait to be explained already")
            self._wishes.append(Entry(image.model, len(image.pixels), deadline, time.monotonic(), wish))
            self._changed.notify_all()
        return wish.future

    def _require_shape(self, image: Image) -> None:
        shape = self._models[image.model].shape
        if image.pixels.shape[1:] != shape or not 1 <= len(image.pixels) <= FRAMES_MAX:
            raise ValueError(f"images are {image.pixels.shape}, model {image.model} takes 1 to {FRAMES_MAX} of {shape}")

    def close(self) -> None:
        """End the worker; whatever still waits is lost."""
        with self._changed:
            if self._closing:
                return
            self._closing = True
            waiting: list[Entry[Ticket] | Entry[Wish]] = [*self._batcher.take_all(), *self._wishes]
            self._wishes.clear()
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
            process = Process.spawn(self._shared, self._settings.threads)
            attend(process.questions, self._servers, partial(self._deadline, process))
            refusal = process.introduce(self._models, self._settings, self._values, lambda: self._closing)
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

    def _listen(self, process: Process) -> None:
        """Hand out answers until the worker is gone, hangs, or is told to leave and does not."""
        leaves_by = math.inf
        while True:
            if self._closing:
                leaves_by = min(leaves_by, time.monotonic() + _LEAVE_S_MAX)
            try:
                if process.connection.poll(LOOK_S):
                    self._settle(process, json.loads(process.connection.recv_bytes()))
                    continue
            except (EOFError, OSError):
                return
            now = time.monotonic()
            oldest = min((sent.sent_at for sent in tuple(process.sent.values())), default=now)
            if now > leaves_by or now - oldest > self._batch_s_max:
                return

    def _settle(self, process: Process, report: dict[str, Any]) -> None:
        """Turn one answer of the worker into the evidence of each submission of its batch."""
        with self._changed:
            sent = process.sent[report["batch"]]
        if sent.wish is not None:
            self._settle_wish(process, report, sent, sent.wish)
            return
        task = self._models[sent.entries[0].model].profile.task
        outgoing = self._shared.outgoing(sent.region, self._place(sent.entries))
        answers: list[Evidence | ExaminationError] = []
        start = 0
        for entry, case in zip(sent.entries, report["cases"], strict=True):
            answers.append(evidence_of(case, outgoing[start : start + entry.images], task))
            start += entry.images
        self._free(process, report["batch"])
        now, images = time.monotonic(), sum(entry.images for entry in sent.entries)
        for entry, answer in zip(sent.entries, answers, strict=True):
            traces.past("queue", entry.payload.moment, entry.arrived_at, sent.sent_at)
            traces.past("batch", entry.payload.moment, sent.sent_at, now, images=images)
            if isinstance(answer, Evidence):
                entry.payload.future.set_result(answer)
            else:
                entry.payload.future.set_exception(answer)

    def _settle_wish(self, process: Process, report: dict[str, Any], sent: Sent, wish: Entry[Wish]) -> None:
        """Copy a map out of the place of the first of its image's channels."""
        case = report["cases"][0]
        values = self._shared.outgoing(sent.region, self._models[wish.model].shape)[0].copy()
        self._free(process, report["batch"])
        if "error" in case:
            wish.payload.future.set_exception(ExaminationError(f"the detectors failed with {case['error']}"))
        else:
            wish.payload.future.set_result(HeatMap(case["frame"], values, case["usual"]))

    def _free(self, process: Process, batch: int) -> None:
        with self._changed:
            process.free.append(process.sent.pop(batch).region)
            self._changed.notify_all()

    def _deadline(self, process: Process) -> Deadline:
        """Until when somebody waits for the batch that the worker has in hand: the one that it was sent first."""
        with self._changed:
            entries = process.sent[min(process.sent)].everything if process.sent else ()
            return max((entry.deadline for entry in entries), key=Deadline.remaining, default=Deadline.after(0.0))

    def _bury(self, process: Process) -> None:
        """Make sure that the worker is gone, and fail what it had."""
        with self._changed:
            self._process = None
            lost = [entry for sent in process.sent.values() for entry in sent.everything]
            process.sent.clear()
        process.end()
        for entry in lost:
            entry.payload.future.set_exception(WorkerLostError("the detection worker died with the batch"))

    # -- the feeding thread --

    def _feed(self) -> None:
        """Close batches as the worker can take them, and copy them to where it reads."""
        while (taken := self._next()) is not None:
            process, number, sent = taken
            entries = sent.everything
            images = self._shared.incoming(sent.region, self._place(entries))
            np.concatenate([entry.payload.pixels for entry in entries], out=images)
            request = {
                "batch": number,
                "model": entries[0].model,
                "region": sent.region,
                "shape": images.shape if sent.wish is not None else images.shape[1:],
                "explain": sent.wish is not None,
                "cases": [
                    {
                        "frames": entry.images,
                        "grey": entry.payload.grey,
                        "seeds": entry.payload.seeds,
                        "claims": entry.payload.claims,
                    }
                    for entry in sent.entries
                ],
            }
            if sent.wish is None:
                self._metrics.batch(len(images))
            with contextlib.suppress(OSError):  # the worker has died; the watching thread will see it and say so
                process.connection.send_bytes(json.dumps(request).encode())

    def _next(self) -> tuple[Process, int, Sent] | None:
        """Wait for a batch that the worker can take; None once the engine closes."""
        with self._changed:
            while not self._closing:
                process, due_at = self._process, None
                if process is not None and process.free:
                    idle = not process.sent
                    entries = self._batcher.take(time.monotonic(), idle=idle)
                    entries = [entry for entry in entries if entry.payload.future.set_running_or_notify_cancel()]
                    self._metrics.queue(QUEUE, self._batcher.depth)
                    wish = self._next_wish() if idle and not entries and not self._batcher.depth else None
                    if entries or wish is not None:
                        self._batches += 1
                        sent = Sent(entries, process.free.pop(), time.monotonic(), wish)
                        process.sent[self._batches] = sent
                        return process, self._batches, sent
                    due_at = self._batcher.due_at() if idle else None
                _fail(self._batcher.take_dropped(), ExpiredError("the caller's deadline passed in the queue"))
                self._changed.wait(None if due_at is None else max(0.0, due_at - time.monotonic()))
        return None

    def _next_wish(self) -> Entry[Wish] | None:
        """The image that is explained while no scan waits to be examined."""
        while self._wishes:
            wish = self._wishes.popleft()
            if not wish.payload.future.set_running_or_notify_cancel():
                continue
            if not wish.deadline.expired:
                return wish
            wish.payload.future.set_exception(ExpiredError("the deadline passed before the worker had time"))
        return None

    def _place(self, entries: Sequence[Entry[Ticket] | Entry[Wish]]) -> tuple[int, ...]:
        return (sum(entry.images for entry in entries), *self._models[entries[0].model].shape)


def _fail(entries: Sequence[Entry[Ticket] | Entry[Wish]], error: Exception) -> None:
    """Give submissions that never reached the worker their error, unless their callers have left already."""
    for entry in entries:
        if entry.payload.future.set_running_or_notify_cancel():
            entry.payload.future.set_exception(error)
