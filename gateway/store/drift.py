"""Watches whether each source still sends scans like those that its detectors were calibrated on; survives a restart.

Only scans whose signature passed count, and of each patient only the first: slices of one patient resemble one another
and would pass for a change of the scanner, and nobody who cannot sign as an enrolled scanner can raise an alarm, or
repeat one scan until it is one. Where drift was found the guarantee about false alarms is suspended until another
artefact serves. Nothing here is read by the policy: drift neither holds a scan nor lets one by.

SQLite in WAL mode. A killed process loses nothing; a power cut may lose the last counts, but never a drift, whose
transaction waits for the disk.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Self, TypeAlias

import numpy as np
import structlog

from detectors.artifact import Promises
from detectors.calibration import ConformalCalibration, smallest
from detectors.drift import Drift, Family, Sums, total
from detectors.ensemble import JOINED
from detectors.errors import DetectorError
from detectors.mondrian import Category
from gateway.case import Case
from gateway.errors import ConfigError
from gateway.finding import Finding, Outcome
from gateway.policy import DETECTION, SIGNATURE
from gateway.protected import ProtectedModel
from gateway.telemetry.metrics import Metrics
from signing import VerifiedView

SUSPENDED = "suspended"
"""What stands in receipts in the place of `confident` or `marginal`."""
UNPROVEN = "unproven"
"""The same where detectors are calibrated by category and nobody vouches for which one the scan is of, and where a
series has so many frames that an estimate decides and no rank."""
STREAMS_MAX = 4096
"""Sources times artefacts whose evidence is kept; sources are configured, and artefacts are signed by a person."""

_PATIENT_ID, _ISSUER_OF_PATIENT_ID, _STUDY, _INSTANCE = 0x00100020, 0x00100021, 0x0020000D, 0x00080018
_SCHEMA_VERSION = 1
_PRUNE_EVERY = 1024
_SCHEMA = """
CREATE TABLE IF NOT EXISTS streams (
    number INTEGER PRIMARY KEY, source TEXT NOT NULL, artefact TEXT NOT NULL, patients INTEGER NOT NULL,
    sums TEXT NOT NULL, suspended_at REAL, UNIQUE (source, artefact)
);
CREATE TABLE IF NOT EXISTS seen (
    number INTEGER PRIMARY KEY, artefact TEXT NOT NULL, patient BLOB NOT NULL, UNIQUE (artefact, patient)
);
"""

_log = structlog.get_logger(__name__)
Observe: TypeAlias = Callable[[Case], "Standing"]
_Place: TypeAlias = tuple[str, str]
"""A source's name, and the SHA-256 of an artefact."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What the detectors' promise is worth for a source, after one scan more."""

    guarantee: str
    """`confident`, `marginal`, `suspended` or `unproven`."""
    drifts: tuple[Drift, ...] = ()
    """What this scan brought to light."""


@dataclass(frozen=True, slots=True)
class Calibrated:
    """The detectors of a model, as they were calibrated, and the bets on them."""

    model: str
    artefact: str
    """SHA-256 of the manifest."""
    guarantee: str
    family: Family
    frames_max: int
    """Of a series that ranks can flag, each frame's p-value times their number."""
    kinds: Mapping[Category, Calibrated] = field(default_factory=dict)
    """By category, where they are calibrated so: each has its own scans, bets and evidence."""

    @classmethod
    def of(cls, model: ProtectedModel, patients_between_false_alarms: float) -> Self:
        """Read the calibrations from the artefact; raises `ConfigError`."""
        try:
            promises = Promises.read(model.artefact, model.manifest)
            family = Family(promises.deployed, scans_between_false_alarms=patients_between_false_alarms)
            frames_max = _frames_max(model, promises.deployed)
            kinds = {
                category: cls(
                    model.name,
                    hashlib.sha256(json.dumps([model.artefact_sha256, *category]).encode()).hexdigest(),
                    model.guarantee,
                    Family(tables, scans_between_false_alarms=patients_between_false_alarms),
                    _frames_max(model, tables),
                )
                for category, tables in promises.by_category.items()
            }
        except DetectorError as error:
            raise ConfigError([f"models.{model.name}.detectors: {error}"]) from error
        return cls(model.name, model.artefact_sha256, model.guarantee, family, frames_max, kinds)

    @property
    def each(self) -> tuple[Calibrated, ...]:
        """What is watched: one for each category, or this alone."""
        return tuple(self.kinds.values()) or (self,)

    def kind_of(self, case: Case) -> Calibrated | None:
        """What the case was judged by; None where that was several categories."""
        if not self.kinds:
            return self
        category = None if case.evidence is None else case.evidence.category
        return None if category is None else self.kinds.get(category)


@dataclass(slots=True)
class _Stream:
    """One source under one artefact."""

    patients: int = 0
    sums: Mapping[str, Sums] = field(default_factory=dict)
    suspended_at: float | None = None


class DriftWatch:
    """The evidence by source and artefact, on disk; thread-safe."""

    def __init__(
        self,
        path: Path,
        key: bytes,
        *,
        patients_max: int,
        metrics: Metrics,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`key` hides patients; of more than `patients_max` the first are forgotten. Raises `ConfigError`."""
        self._key = key
        self._patients_max = patients_max
        self._metrics = metrics
        self._clock = clock
        self._lock = threading.Lock()
        self._database = _open(path)
        self._streams = _load(self._database, path)

    def on(self, calibrated: Calibrated) -> Observe:
        """What a route whose detectors these are calls with each case that it has examined."""
        with self._lock:
            self._metrics.drift_forgotten(calibrated.model)
            watched = {each.artefact for each in calibrated.each}
            for source in {source for source, artefact in self._streams if artefact in watched}:
                self._tell(source, calibrated)
        return partial(self._observe, calibrated)

    def close(self) -> None:
        """Close the database; the watch cannot be used after."""
        with self._lock:
            self._database.close()

    def _observe(self, calibrated: Calibrated, case: Case) -> Standing:
        """Count the scan if it counts, and say what the guarantee is worth; what cannot be kept is worth nothing."""
        source, kind = case.scan.source.name, calibrated.kind_of(case)
        if kind is None:
            return Standing(UNPROVEN)
        finding = _countable(case, kind.family)
        try:
            with self._lock:
                drifts = () if finding is None else self._count(kind, case, finding)
                if finding is not None:
                    self._tell(source, calibrated)
                stream = self._streams.get((source, kind.artefact))
        except sqlite3.Error as error:
            _log.error("drift_not_recorded", source=source, error=type(error).__name__)
            return Standing(SUSPENDED)
        for drift in drifts:
            _log.error(
                "drift", source=source, model=calibrated.model, detector=drift.detector, direction=drift.direction
            )
        if stream is not None and stream.suspended_at is not None:
            return Standing(SUSPENDED, drifts)
        estimated = case.image is not None and len(case.image.pixels) > kind.frames_max
        return Standing(UNPROVEN if estimated else calibrated.guarantee, drifts)

    def _count(self, calibrated: Calibrated, case: Case, finding: Finding) -> tuple[Drift, ...]:
        assert case.view is not None
        assert finding.p_value is not None
        source, patient = case.scan.source.name, self._patient(case.view)
        known = "SELECT 1 FROM seen WHERE artefact = ? AND patient = ?"
        if self._database.execute(known, (calibrated.artefact, patient)).fetchone() is not None:
            return ()
        place = (source, calibrated.artefact)
        before = self._streams.get(place, _Stream())
        sums, drifts = calibrated.family.after(
            before.sums or calibrated.family.start(), {**finding.p_values, JOINED: finding.p_value}
        )
        suspended_at = self._clock() if drifts and before.suspended_at is None else before.suspended_at
        stream = _Stream(before.patients + 1, sums, suspended_at)
        self._write(place, patient, stream, durable=bool(drifts))
        return tuple(drifts)

    def _write(self, place: _Place, patient: bytes, stream: _Stream, *, durable: bool) -> None:
        """Count the patient and keep the evidence; past `STREAMS_MAX` the one that was idle for longest goes."""
        sums = json.dumps({name: values.tolist() for name, values in stream.sums.items()})
        idle = next(iter(self._streams)) if place not in self._streams and len(self._streams) >= STREAMS_MAX else None
        self._database.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
        with self._database:
            self._database.execute("INSERT INTO seen (artefact, patient) VALUES (?, ?)", (place[1], patient))
            if idle is not None:
                self._database.execute("DELETE FROM streams WHERE source = ? AND artefact = ?", idle)
            self._database.execute(
                "INSERT OR REPLACE INTO streams (source, artefact, patients, sums, suspended_at)"
                " VALUES (?, ?, ?, ?, ?)",
                (*place, stream.patients, sums, stream.suspended_at),
            )
            if stream.patients % _PRUNE_EVERY == 0:
                self._database.execute(
                    "DELETE FROM seen WHERE number <= (SELECT max(number) FROM seen) - ?", (self._patients_max,)
                )
        if idle is not None:
            del self._streams[idle]
        self._streams.pop(place, None)  # so that the order stays that of the last use, as it is on disk
        self._streams[place] = stream

    def _tell(self, source: str, calibrated: Calibrated) -> None:
        """The strongest evidence among the categories, and whether any of them is suspended."""
        evidence: dict[str, float] = {}
        suspended = False
        for each in calibrated.each:
            stream = self._streams.get((source, each.artefact), _Stream())
            suspended |= stream.suspended_at is not None
            for name, sums in stream.sums.items():
                evidence[name] = max(evidence.get(name, 0.0), total(sums) / each.family.threshold)
        self._metrics.drift(source, calibrated.model, evidence, suspended=suspended)

    def _patient(self, view: VerifiedView) -> bytes:
        """Who a scan is of, as nobody without the key can tell; without a number, the study or the instance."""
        number = bytes(view.value(_PATIENT_ID)).strip(b" \0")
        issuer = bytes(view.value(_ISSUER_OF_PATIENT_ID)).strip(b" \0")
        if not number:
            number, issuer = (view.uid(_STUDY) or view.uid(_INSTANCE) or "").encode(), b"\0"
        message = b"".join(len(part).to_bytes(4, "big") + part for part in (number, issuer))
        return hmac.digest(self._key, message, "sha256")


def _frames_max(model: ProtectedModel, calibrations: Mapping[str, ConformalCalibration]) -> int:
    """At the smallest rate that the detectors were calibrated for, at least 1."""
    calibration = calibrations[JOINED]
    return max(1, int(model.false_positive_rate / smallest(calibration.size, calibration.guarantee)))


def _countable(case: Case, family: Family) -> Finding | None:
    """The detectors' finding on a scan that counts: signed, and of one image, whose p-values nothing has corrected."""
    findings = {finding.stage: finding for finding in case.findings}
    signature, detection = findings.get(SIGNATURE), findings.get(DETECTION)
    if signature is None or signature.outcome is not Outcome.PASSED or detection is None or detection.p_value is None:
        return None
    if case.view is None or case.image is None or len(case.image.pixels) != 1:
        return None
    return detection if set(family.detectors) <= {*detection.p_values, JOINED} else None


def _open(path: Path) -> sqlite3.Connection:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
        database = sqlite3.connect(path, check_same_thread=False, timeout=5.0)
        database.execute("PRAGMA journal_mode = WAL")
        found = database.execute("PRAGMA user_version").fetchone()[0]
        if found not in (0, _SCHEMA_VERSION):
            raise ConfigError([f"drift watch {path}: schema version {found}, this is version {_SCHEMA_VERSION}"])
        database.executescript(_SCHEMA)
        database.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
    except (OSError, sqlite3.Error) as error:
        raise ConfigError([f"drift watch {path}: cannot be opened ({type(error).__name__})"]) from None
    return database


def _load(database: sqlite3.Connection, path: Path) -> dict[_Place, _Stream]:
    streams = {}
    try:
        rows = database.execute("SELECT source, artefact, patients, sums, suspended_at FROM streams ORDER BY number")
        for source, artefact, patients, sums, suspended_at in rows:
            values = {name: np.asarray(each, np.float64) for name, each in json.loads(sums).items()}
            streams[source, artefact] = _Stream(patients, values, suspended_at)
    except (sqlite3.Error, ValueError, AttributeError) as error:
        raise ConfigError([f"drift watch {path}: cannot be read ({type(error).__name__})"]) from None
    return streams
