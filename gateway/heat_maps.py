"""Pictures for people of where the detectors disagreed about a held scan: drawn once, when there is time, and kept.

A scan is held first and drawn later: a map keeps nobody waiting, and costs the detectors only time in which no scan
waits for them. What could not be drawn then, because too much was held at once or the gateway stopped, is drawn when
somebody asks for it. A map decides nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import numpy as np
import structlog
import torch
from numpy.typing import NDArray

from gateway.audit.log import AuditLog
from gateway.audit.record import Shown
from gateway.case import Image
from gateway.deadline import Deadline
from gateway.engine.engine import Engine, EngineError, ExaminationError, HeatMap
from gateway.errors import GatewayError, NotHeld, Overloaded, Settled
from gateway.finding import Finding
from gateway.pixels.decode import Decompressor
from gateway.pixels.imaging import place_of, shown
from gateway.pixels.overlay import overlay
from gateway.pixels.unexaminable import UnexaminableError
from gateway.policy import DETECTION
from gateway.profile import Profile
from gateway.protected import ProtectedModel
from gateway.scan import Scan
from gateway.settings.routes import RouteConfig
from gateway.stages.preprocess import PreprocessStage
from gateway.stages.tensor import TensorImageStage
from gateway.store.held import Held, scan_of
from gateway.store.quarantine import Quarantine
from gateway.telemetry.metrics import Metrics
from signing import DicomError, VerifiedView

WANTED_MAX = 256
"""Scans that wait to be drawn; what is held beyond is drawn when somebody asks."""
_DRAW_S_MAX = 60.0

_log = structlog.get_logger(__name__)


class Wanted:
    """Which held scans are to be drawn when there is time: bounded, each once; thread-safe, outlives a reload."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._ids: dict[str, None] = {}

    def put(self, identity: str) -> None:
        """Want the map of a held scan; forgotten where too many are wanted already."""
        with self._changed:
            if len(self._ids) < WANTED_MAX:
                self._ids[identity] = None
                self._changed.notify()

    def take(self, seconds: float) -> str | None:
        """The one that was wanted first; None where none was within this time."""
        with self._changed:
            if not self._ids:
                self._changed.wait(seconds)
            identity = next(iter(self._ids), None)
            if identity is not None:
                del self._ids[identity]
            return identity


@dataclass(frozen=True, slots=True)
class Easel:
    """What the scans of one route are drawn with."""

    profile: Profile
    preprocess: PreprocessStage
    tensors: TensorImageStage
    engine: Engine

    @classmethod
    def of(cls, model: ProtectedModel, engine: Engine, decompressor: Decompressor) -> Self:
        """For the scans that this model is asked about."""
        preprocess = PreprocessStage(model.name, model.profile, decompressor, colour=model.colour)
        tensors = TensorImageStage(model.name, model.profile, colour=model.colour)
        return cls(model.profile, preprocess, tensors, engine)

    def draw(self, held: Held, scan: Scan, deadline: Deadline) -> bytes:
        """Draw a scan.

        (1) show it as its examination did: to the model, and to a person
        (2) ask the detectors where they disagree, when they have time
        (3) lay the one over the other

        Raises:
            UnexaminableError: it cannot be shown to a model, so the detectors have not seen it.
            EngineError: the detectors gave no map.
            Overloaded: too many wait for one.
        """
        if scan.tensor is not None:  # (1)
            image, aspect = self.tensors.image_of(scan.tensor), 1.0
            heat = self._explained(image, deadline)  # (2)
            light, values = _stretched(image.pixels[heat.frame]), heat.values
        else:
            frames, rendering = self.preprocess.decoded(_whole(scan))
            image, aspect = self.preprocess.rendered(frames, rendering), rendering.pixel_aspect
            heat = self._explained(image, deadline)
            stored = torch.from_numpy(frames[heat.frame].astype(np.float32)[np.newaxis])
            light = shown(stored, rendering, self.profile)[0].numpy()
            values = heat.values[place_of((light.shape[1], light.shape[2]), aspect, self.profile)]
        note = _note(held, heat, len(image.pixels))
        return overlay(light, values, aspect=aspect, usual=heat.usual, note=note)  # (3)

    def _explained(self, image: Image, deadline: Deadline) -> HeatMap:
        return self.engine.explain(image, deadline).result(timeout=deadline.remaining())


def easels(
    routes: Mapping[str, RouteConfig],
    models: Mapping[str, ProtectedModel],
    engine: Engine | None,
    decompressor: Decompressor,
) -> dict[str, Easel]:
    """By route with a model."""
    if engine is None:
        return {}
    return {
        name: Easel.of(models[route.model], engine, decompressor)
        for name, route in routes.items()
        if route.model is not None
    }


class HeatMaps:
    """Draws held scans and shows the pictures, each of which is on record before it is given out; thread-safe."""

    def __init__(
        self,
        easels: Mapping[str, Easel],
        *,
        wanted: Wanted,
        quarantine: Quarantine,
        audit: AuditLog,
        metrics: Metrics,
    ) -> None:
        """`easels`: by route; one without detectors has none."""
        self._easels = easels
        self._wanted = wanted
        self._quarantine = quarantine
        self._audit = audit
        self._metrics = metrics
        self._one = threading.Lock()

    def want(self, identity: str) -> None:
        """Have a scan drawn when there is time."""
        self._wanted.put(identity)

    def draw_wanted(self, identity: str) -> None:
        """Draw a scan that was wanted; what goes wrong is logged, and tried again when somebody asks."""
        try:
            self._draw(self._quarantine.show(identity), Deadline.after(_DRAW_S_MAX))
        except GatewayError as error:
            _log.warning("heat_map_not_drawn", quarantine_id=identity, error=type(error).__name__)

    def read(self, identity: str, by: str, deadline: Deadline) -> bytes:
        """The picture of a held scan, a PNG file; drawn now where that was not done yet.

        Raises:
            NotHeld: there is none of that id.
            Settled: no detectors have seen it, or they cannot explain it.
            Overloaded: the detectors have no time for it now.
            AuditError: that somebody saw it could not be recorded, so nobody does.
        """
        held = self._quarantine.show(identity)
        picture = self._draw(held, deadline)
        self._audit.append(Shown(held.id, held.scan_sha256, held.route, by, "")).result()
        self._metrics.acted(Shown.kind)
        return picture

    def _draw(self, held: Held, deadline: Deadline) -> bytes:
        with self._turn(deadline):
            if (kept := self._quarantine.map_of(held)) is not None:
                return kept
            easel = self._easels.get(held.route)
            if easel is None:
                raise Settled("there is no heat map of this scan: its route has no detectors")
            if _looked_at(held) is None:
                raise Settled("there is no heat map of this scan: no detector has looked at it")
            scan = scan_of(held, b"".join(self._quarantine.read(held.id)))
            try:
                picture = easel.draw(held, scan, deadline)
            except UnexaminableError as error:
                raise Settled(f"there is no heat map of this scan: {error.reason}") from None
            except ExaminationError as error:
                raise Settled(f"there is no heat map of this scan: {error}") from None
            except (EngineError, FutureTimeoutError):
                raise Overloaded("the detectors have no time for a heat map now") from None
            try:
                self._quarantine.keep_map(held, picture)
            except (NotHeld, Overloaded) as error:  # whoever asked may see it all the same
                _log.warning("heat_map_not_kept", quarantine_id=held.id, error=type(error).__name__)
            return picture

    @contextmanager
    def _turn(self, deadline: Deadline) -> Iterator[None]:
        """One scan at a time: its frames lie in memory meanwhile."""
        if not self._one.acquire(timeout=max(0.0, deadline.remaining())):
            raise Overloaded("other heat maps are being drawn")
        try:
            yield
        finally:
            self._one.release()


def _whole(scan: Scan) -> VerifiedView:
    """All elements of an object: a reviewer may see what no signature covers."""
    if scan.elements is None:
        raise Settled("there is no heat map of this scan: it cannot be read")
    try:
        return VerifiedView.of_unsigned(scan.elements)
    except DicomError as error:
        raise Settled(f"there is no heat map of this scan: {error.reason}") from None


def _stretched(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """A model's input, (channels, rows, columns), from 0 to 1: it came without a window."""
    low, high = float(pixels.min()), float(pixels.max())
    return (pixels - low) / (high - low) if high > low else np.zeros_like(pixels)


def _looked_at(held: Held) -> Finding | None:
    """What the detectors found when they last looked at the scan; None where they never did."""
    found = [each for examination in held.examinations for each in examination.findings if each.stage == DETECTION]
    return next((each for each in reversed(found) if each.p_value is not None), None)


def _note(held: Held, heat: HeatMap, frames: int) -> str:
    """Facts for the legend; nothing about the patient."""
    finding = _looked_at(held)
    parts = [f"held as {held.id[:8]}"]
    if frames > 1:
        parts.append(f"frame {heat.frame + 1} of {frames}")
    if finding is not None:
        parts.append(f"p {finding.p_value:.2g}: about so large a share of clean scans looks as suspicious")
    return "; ".join(parts)
