"""One life of the detection process: started afresh, told what to load, and what it has in hand."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from detectors.mondrian import Category
from gateway.case import Evidence
from gateway.engine.batcher import Entry
from gateway.engine.engine import GreyZone, HeatMap
from gateway.engine.shared import REGIONS, SharedImages
from gateway.protected import ProtectedModel
from gateway.settings.models import EngineConfig
from gateway.telemetry import traces

START_S_MAX = 300.0
KEPT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**30)}
"""Has the C library keep what a batch used for the next one, up to a GiB: by its own choice it gives most of it back
and is given empty pages again, which takes a tenth of the time of a batch of 16."""
LOOK_S = 0.5
"""How often a silent worker is looked at."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """What is known here about an image that is to be examined, while the worker has it."""

    pixels: NDArray[np.float32]
    grey: GreyZone | None
    seeds: tuple[int, ...] = field(repr=False)
    claims: tuple[Category, ...] | None
    future: Future[Evidence]
    moment: traces.Moment


@dataclass(frozen=True, slots=True)
class Wish:
    """The same of an image that is to be explained."""

    pixels: NDArray[np.float32]
    future: Future[HeatMap]


@dataclass(frozen=True, slots=True)
class Sent:
    """A batch that the worker has: images to examine, or a single one to explain."""

    entries: list[Entry[Ticket]]
    region: int
    sent_at: float
    wish: Entry[Wish] | None = None

    @property
    def everything(self) -> list[Entry[Ticket] | Entry[Wish]]:
        """Whatever waits for the worker's answer."""
        return [*self.entries, *([] if self.wish is None else [self.wish])]


@dataclass(slots=True)
class Process:
    """The worker, as its gateway sees it."""

    popen: subprocess.Popen[bytes]
    channel: socket.socket
    connection: Connection
    """Over the same socket; `channel` is kept to end it from another thread."""
    questions: Connection
    """A line of its own, on which the worker asks about models that only a server has."""
    free: list[int] = field(default_factory=lambda: list(range(REGIONS)))
    sent: dict[int, Sent] = field(default_factory=dict)

    @classmethod
    def spawn(cls, shared: SharedImages, threads: int) -> Self:
        """A fresh interpreter, never a fork: this process has threads and locks that a copy would inherit broken."""
        (ours, theirs), (questions, asked) = socket.socketpair(), socket.socketpair()
        with theirs, asked:
            descriptors = (theirs.fileno(), asked.fileno(), shared.descriptor)
            popen = subprocess.Popen(  # noqa: S603 - this interpreter, a module of our own
                [sys.executable, "-P", "-m", "gateway.engine.worker", *map(str, descriptors), str(os.getpid())],
                pass_fds=descriptors,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={**os.environ, **_arithmetic(threads), **KEPT_MEMORY},
            )
        return cls(popen, ours, Connection(os.dup(ours.fileno())), Connection(questions.detach()))

    def introduce(
        self, models: Mapping[str, ProtectedModel], settings: EngineConfig, values: int, leaving: Callable[[], bool]
    ) -> str | None:
        """Tell the worker what to load; None once it is ready, else why it never will be."""
        told = {
            "device": settings.device,
            "threads": settings.threads,
            "batch_size_max": settings.batch_size_max,
            "values": values,
            "models": [
                {
                    "name": model.name,
                    "artefact": str(model.artefact),
                    "profile_sha256": model.profile.sha256,
                    "shape": model.shape,
                    "served_only": model.served_only,
                }
                for model in models.values()
            ],
        }
        try:
            self.connection.send_bytes(json.dumps(told).encode())
            for model in models.values():
                self.connection.send_bytes(model.manifest)
                self.connection.send_bytes(model.onnx)
            given_up_at = time.monotonic() + START_S_MAX
            while not self.connection.poll(LOOK_S):
                if leaving() or time.monotonic() > given_up_at:
                    return "the detection worker did not become ready"
            answer: dict[str, Any] = json.loads(self.connection.recv_bytes())
        except (EOFError, OSError):
            return "the detection worker died while it loaded its models"
        refusal: str | None = answer.get("refused")
        return refusal

    def end(self) -> None:
        """Make sure that it is gone."""
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait()
        self.connection.close()
        self.channel.close()


def _arithmetic(threads: int) -> dict[str, str]:
    """Environment of the worker: its threads sleep while they wait, since a busy gateway needs the cores itself."""
    team = str(threads)
    return {
        "OMP_NUM_THREADS": team,
        "OMP_WAIT_POLICY": "PASSIVE",
        "MKL_NUM_THREADS": team,
        "OPENBLAS_NUM_THREADS": "1",
    }
