"""Calibrates fitted detectors anew on signed scans of now, within a stated distance of where they began.

Whoever may choose what a detector is calibrated on can walk its threshold out of his way. So only scans count that an
enrolled scanner signed, at most a few of each patient, chosen by lot; and however often it is done, thresholds are
compared with those of the first calibration, which every artefact carries along and no recalibration touches.
"""

import hashlib
import json
import math
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor

from detectors.artifact import Promises, recalibrated
from detectors.calibration import ConformalCalibration, TailCalibration
from detectors.ensemble import JOINED, Ensemble, join
from gateway.pixels.decode import decode
from gateway.pixels.decompressor import DisposableDecoder
from gateway.pixels.imaging import Rendering, render
from gateway.pixels.unexaminable import UnexaminableError
from gateway.profile import Profile
from lab.data import FILE_BYTES_MAX, DataError, MovedTooFarError
from lab.seeds import seeds_of
from signing import DicomError, SignatureError, Trust, VerifiedSignature, VerifiedView, read, verify

BOUND = 1.0
"""Largest movement by default, in nats: what lies beyond a threshold may become e times rarer, or more frequent."""
PER_PATIENT = 1
WIDER = 5
"""Thresholds are compared at the false-positive rate and at so many times the rate, where fewer scans decide less."""

_PATIENT_ID, _ISSUER_OF_PATIENT_ID, _STUDY, _INSTANCE = 0x00100020, 0x00100021, 0x0020000D, 0x00080018
_BATCH = 64


@dataclass(frozen=True, slots=True)
class Movement:
    """One threshold, before and after."""

    detector: str
    rate: float
    """The false-positive rate that it stands for."""
    anchor: float
    """Where the first calibration put it, in the detector's own unit."""
    before: float
    """Where the artefact has it that is recalibrated."""
    after: float
    moved: float
    """From anchor to after, in nats of the tail that was fitted with the detector; more is milder."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """Signed scans, rendered, and why others were left out."""

    images: Tensor
    """(N, C, H, W) float32, as the model takes them."""
    sha256: str
    """Digest over the digests of the files, in order."""
    left_out: Mapping[str, int]
    """Number of files by reason."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """New calibrations, and how far they are from the first; nothing is written yet."""

    calibrations: Mapping[str, ConformalCalibration]
    movements: tuple[Movement, ...]


def propose(ensemble: Ensemble, directory: Path, manifest: bytes, chosen: Chosen) -> Proposal:
    """Calibrate a loaded artefact on chosen scans, and compare every threshold with the first calibration's.

    Args:
        ensemble: the artefact's.
        directory: where its files lie.
        manifest: its verified bytes.
        chosen: what to calibrate on.

    Raises:
        InputError: too few scans for the artefact's false-positive rate.
    """
    fpr = float(json.loads(manifest)["fpr"])
    new = {name: ConformalCalibration.fit(values, fpr) for name, values in scores(ensemble, chosen.images).items()}
    return Proposal(new, compare(Promises.read(directory, manifest), new, fpr))


def write(
    directory: Path,
    manifest: bytes,
    chosen: Chosen,
    proposal: Proposal,
    out: Path,
    *,
    bound: float = BOUND,
    accept_movement: bool = False,
) -> bytes:
    """Write the candidate, which nobody has signed yet, and return its manifest.

    Args:
        directory: of the artefact that is recalibrated.
        manifest: its verified bytes.
        chosen: what it was calibrated on.
        proposal: the calibrations.
        out: directory of the candidate.
        bound: largest movement either way, in nats.
        accept_movement: a person's word that a larger one is right.

    Raises:
        MovedTooFarError: a threshold moved further, and nobody has said that it may.
        DataError: the candidate would overwrite what it comes from.
    """
    refuse_far(proposal.movements, bound, accept_movement=accept_movement)
    if out.resolve() == directory.resolve():
        raise DataError(f"{out}: the artefact in use would be overwritten by a candidate that nobody has signed")
    told = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "data_sha256": chosen.sha256,
        "n_b": len(chosen.images),
        "measured": {},
        "recalibrated": {
            "from_sha256": hashlib.sha256(manifest).hexdigest(),
            "bound": bound,
            "accepted_movement": accept_movement,
            "movements": {f"{each.detector}@{each.rate:g}": each.moved for each in proposal.movements},
        },
    }
    return recalibrated(directory, manifest, proposal.calibrations, out, told)


def scores(ensemble: Ensemble, images: Tensor) -> dict[str, Tensor]:
    """(N,) of every detector, and of the whole under `JOINED`."""
    parts: dict[str, list[Tensor]] = {}
    with torch.no_grad():
        for part in torch.split(images, _BATCH):
            seen = ensemble.probe.observe(part, ensemble.needs, seeds=seeds_of(part))
            found = {member.detector.name: member.detector.score(seen).values for member in ensemble.members}
            for name, values in (found | {JOINED: join(ensemble.members, ensemble.channels, found)}).items():
                parts.setdefault(name, []).append(values.cpu())
    return {name: torch.cat(values) for name, values in parts.items()}


def compare(promises: Promises, new: Mapping[str, ConformalCalibration], fpr: float) -> tuple[Movement, ...]:
    """Every threshold's movement from the anchor, at the false-positive rate and at `WIDER` times it."""
    movements = []
    for name, calibration in new.items():
        tail = promises.tails.get(name)  # the joined statistic is in nats already
        for rate in (fpr, min(WIDER * fpr, 0.5)):
            anchor, before, after = (
                each.threshold(rate) for each in (promises.anchor[name], promises.deployed[name], calibration)
            )
            moved = _nats(after, tail) - _nats(anchor, tail)
            movements.append(Movement(name, rate, anchor, before, after, moved))
    return tuple(movements)


def refuse_far(movements: Sequence[Movement], bound: float, *, accept_movement: bool) -> None:
    """Raise `MovedTooFarError` where a movement exceeds the bound and nobody has taken it."""
    far = [each for each in movements if not abs(each.moved) <= bound]
    if far and not accept_movement:
        worst = max(far, key=lambda each: abs(each.moved) if math.isfinite(each.moved) else math.inf)
        raise MovedTooFarError(
            f"{len(far)} of {len(movements)} thresholds moved further than {bound:g} from the first calibration, "
            f"furthest that of {worst.detector} at {worst.rate:g}: {worst.moved:+.2f}. Find out why before you take "
            f"it with --accept-movement"
        )


def _nats(threshold: float, tail: TailCalibration | None) -> float:
    if tail is None:
        return threshold
    return float(tail.surprise(torch.tensor([threshold], dtype=torch.float64)))


def choose(folder: Path, trust: Trust, profile: Profile, *, per_patient: int, lot: bytes | None = None) -> Chosen:
    """Take signed scans from a folder and its folders.

    Args:
        folder: of DICOM files; what is no scan of an enrolled signer is counted and left out.
        trust: whose policy names the enrolled signers.
        profile: of the model.
        per_patient: most scans of one patient under one signer.
        lot: decides which, so that nobody who sends scans does; drawn afresh where not given.

    Raises:
        DataError: the policy names no signers, or nothing is left.
    """
    if not trust.policy.allowed_signers:
        raise DataError("the trust policy has no allowed_signers: whoever has any certificate would count as enrolled")
    lot = lot if lot is not None else secrets.token_bytes(32)
    quota = _Quota(per_patient)
    images, digests = [], []
    with DisposableDecoder() as decoder:
        for path in sorted(_files(folder), key=lambda path: _digest(lot, _digest(_content(path)))):
            content = _content(path)
            try:
                view = quota.admit(verify(read(content), trust, at=datetime.now(UTC)))
                images.append(_rendered(view, profile, decoder))
            except (SignatureError, DicomError, UnexaminableError) as error:
                quota.left_out[str(error.reason)] += 1
            except _EnoughError as error:
                quota.left_out[str(error)] += 1
            else:
                digests.append(_digest(content))
    if not images:
        raise DataError(f"{folder}: no scan that an enrolled signer signed ({dict(quota.left_out)})")
    return Chosen(torch.stack(images), _digest(*sorted(digests)).hex(), dict(quota.left_out))


class _EnoughError(Exception):
    """The scan is one too many."""


class _Quota:
    """How many scans of each patient were taken under each signer."""

    def __init__(self, per_patient: int) -> None:
        self.left_out: Counter[str] = Counter()
        self._per_patient = per_patient
        self._taken: Counter[tuple[str, bytes, bytes]] = Counter()
        self._instances: set[str] = set()

    def admit(self, signed: VerifiedSignature) -> VerifiedView:
        """What the signature covers, if it may be taken; raises `_EnoughError`."""
        view = signed.view
        number, issuer = (bytes(view.value(tag)).strip(b" \0") for tag in (_PATIENT_ID, _ISSUER_OF_PATIENT_ID))
        patient = (number, issuer) if number else (b"", (view.uid(_STUDY) or "").encode())
        whose = (signed.signer.fingerprint_sha256, *patient)
        instance = view.uid(_INSTANCE) or ""
        if instance in self._instances:
            raise _EnoughError("the same instance again")
        if self._taken[whose] >= self._per_patient:
            raise _EnoughError("enough of this patient")
        self._instances.add(instance)
        self._taken[whose] += 1
        return view


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]


def _digest(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


def _content(path: Path) -> bytes:
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            raise DataError(f"{path}: is larger than {FILE_BYTES_MAX} bytes")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read") from error


def _rendered(view: VerifiedView, profile: Profile, decoder: DisposableDecoder) -> Tensor:
    """(C, H, W): the middle frame of what the signature covers, as the model takes it."""
    frames = decode(view, decoder)
    frame = torch.from_numpy(frames[len(frames) // 2].astype("float32"))
    return render(frame[None], Rendering.of(view, profile), profile)[0]
