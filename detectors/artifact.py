"""A fitted ensemble on disk: one manifest, and safetensors files that it names by digest. Never pickle.

The manifest is signed by whoever fits (DSSE); the caller checks that signature before `Artefact.load` sees the bytes.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from detectors import registry
from detectors.calibration import ConformalCalibration, ParetoTail, TailCalibration
from detectors.denoisers.denoiser import Denoiser
from detectors.denoisers.registry import restored
from detectors.detector import Detector, read_name, spelled
from detectors.ensemble import JOINED, Channel, Ensemble, Member
from detectors.errors import ArtefactError, DetectorError
from detectors.methods.twins import COPIED_TWIN, SMALL_TWIN, CopiedTwin
from detectors.models.answers import Ask
from detectors.models.kinds import answering, rebuilt
from detectors.models.model import ReferenceModel
from detectors.models.outputs import Activation, Task
from detectors.models.served import CARD, put_card
from detectors.models.small import SmallTwin
from detectors.mondrian import Category, Mondrian
from detectors.observation import Span
from detectors.probe import Probe, Twin
from detectors.tensor_files import State, read_file, write_file

SCHEMA = 2
MANIFEST = "manifest.json"
CATEGORIES = "calibrated_by"
"""Of a manifest: by what scans are told apart, and which kinds were calibrated; absent where all are one."""
REMOTE = "remote"
"""Of a manifest: which model of a server's was asked; absent where there is a file of it."""
COLOUR = "colour"
"""Of a manifest: true where clean scans were in colour; absent where all were grey."""
MANIFEST_BYTES_MAX = 2**20

_FACTS = (
    "created", "scanward", "torch", "model_sha256", "profile_sha256", "data_sha256", "n_fit", "n_a", "n_b", "fpr",
    "precision", "gradients", "conversion_max_abs_diff", "measured",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Artefact:
    """What `fit` leaves and the detection worker runs."""

    ensemble: Ensemble
    denoisers: Mapping[str, Denoiser]
    manifest: Mapping[str, Any]
    """The manifest as it was read; its keys are those of the architecture, section 5.7."""

    @classmethod
    def load(
        cls,
        directory: Path,
        manifest: bytes,
        model: bytes,
        profile_sha256: str,
        device: torch.device,
        *,
        ask: Ask | None = None,
    ) -> Self:
        """Open an artefact whose manifest was verified.

        (1) the manifest is well-formed and speaks of this model and this profile
        (2) every file has the digest that the manifest states, before anything in it is read
        (3) the parts are put together on the device

        Args:
            directory: where the files lie.
            manifest: the exact bytes that were signed.
            model: the file of the protected model, or the card of one on a server.
            profile_sha256: digest of the running profile, lower-case hexadecimal.
            device: where to run.
            ask: the way to that server.

        Raises:
            ArtefactError: malformed, changed, or fitted for another model or profile.
            ConversionError: the model cannot be rebuilt, or where the manifest says `gradients: false`, not be run.
        """
        facts = _read_manifest(manifest)  # (1)
        if facts["model_sha256"] != hashlib.sha256(model).hexdigest():
            raise ArtefactError("the artefact was fitted for another model")
        if facts["profile_sha256"] != profile_sha256:
            raise ArtefactError("the artefact was fitted for another profile")
        states = {  # (2)
            section: {name: read_file(directory, entry, name) for name, entry in facts[section].items()}
            for section in ("detectors", "denoisers", "ensemble")
        }
        try:  # (3)
            shared = states["ensemble"][JOINED]
            output = read_name(shared["output"]) or None
            reference = answering(model, output, ask) if facts["gradients"] is False else rebuilt(model, output)
            reference = reference.to(device)
            ensemble = _assemble(facts["detectors"], states["detectors"], shared, reference, device)
            denoisers = {
                name: restored(name, entry.get("version"), _to(states["denoisers"][name], device))
                for name, entry in sorted(facts["denoisers"].items(), key=lambda each: each[1].get("place", 0))
            }
        except DetectorError:
            raise
        except (KeyError, RuntimeError, ValueError, TypeError, IndexError) as error:
            raise ArtefactError(f"the artefact does not fit together: {error}") from error
        if ensemble.guarantee.value != facts["guarantee"]:
            raise ArtefactError("the manifest promises another guarantee than the calibration gives")
        if _taxonomy(ensemble).get(CATEGORIES) != facts.get(CATEGORIES):
            raise ArtefactError("the manifest names other categories than were calibrated")
        return cls(ensemble, denoisers, facts)

    @staticmethod
    def write(
        directory: Path, ensemble: Ensemble, denoisers: Mapping[str, Denoiser], facts: Mapping[str, Any]
    ) -> bytes:
        """Write the files and the manifest.

        Args:
            directory: made if missing; files of an earlier fit are replaced.
            ensemble: the fitted detectors.
            denoisers: by name; the image of the first is the one that goes on.
            facts: the manifest's entries on model, profile, data and counts, and any that a reader may do without.

        Returns:
            The bytes of the manifest, which the caller signs.
        """
        if missing := set(_FACTS) - set(facts):
            raise ArtefactError(f"the manifest lacks {sorted(missing)}")
        directory.mkdir(parents=True, exist_ok=True)
        weights = {channel.name: channel.weight for channel in ensemble.channels}
        detectors = {}
        for member in ensemble.members:
            state = {f"detector.{key}": value for key, value in member.detector.state().items()}
            twin = ensemble.probe.twins.get(member.detector.name)
            if isinstance(twin, nn.Module):
                network = twin.network if isinstance(twin, CopiedTwin) else twin
                state |= {f"network.{key}": value for key, value in network.state_dict().items()}
            entry: dict[str, Any] = {
                "version": registry.method(member.detector.name).version,
                "random": member.detector.needs.random,
            }
            entry |= write_file(directory, member.detector.name, state)
            detectors[member.detector.name] = entry | {"weight": weights.get(member.channel or "", 0.0)}
        manifest = {
            "schema": SCHEMA,
            **facts,
            "guarantee": ensemble.guarantee.value,
            **_taxonomy(ensemble),
            "detectors": detectors,
            "denoisers": {
                name: {"version": denoiser.version, "place": place}
                | write_file(directory, f"denoiser_{name}", denoiser.state())
                for place, (name, denoiser) in enumerate(denoisers.items())
            },
            "ensemble": {JOINED: write_file(directory, JOINED, _shared_state(ensemble))},
        }
        text = json.dumps(manifest, indent=2, sort_keys=True, allow_nan=False).encode() + b"\n"
        (directory / MANIFEST).write_bytes(text)
        return text


@dataclass(frozen=True, slots=True)
class Promises:
    """The conformal calibrations of an artefact: by detector, and under `JOINED` the one that decides."""

    deployed: Mapping[str, ConformalCalibration]
    """Those that judge scans."""
    anchor: Mapping[str, ConformalCalibration]
    """Those that were fitted with the detectors, which no recalibration moves."""
    tails: Mapping[str, TailCalibration]
    """By detector; fitted once, so that they are one scale for old thresholds and new ones."""
    by_category: Mapping[Category, Mapping[str, ConformalCalibration]] = field(default_factory=dict)
    """Those that judge scans where detectors are calibrated by category; then the deployed ones judge none."""

    @classmethod
    def read(cls, directory: Path, manifest: bytes) -> Self:
        """Read them from an artefact whose manifest was verified; raises `ArtefactError`."""
        facts = _read_manifest(manifest)
        shared = _shared_of(directory, facts)
        try:
            names = [*_in_order(shared, facts["detectors"]), JOINED]
            deployed = {name: _under(shared, _calibrated_at(name)) for name in names}
            anchor = {name: _under(shared, f"anchor.{name}.") or deployed[name] for name in names}
            return cls(
                {name: ConformalCalibration.from_state(state) for name, state in deployed.items()},
                {name: ConformalCalibration.from_state(state) for name, state in anchor.items()},
                {name: TailCalibration.from_state(_under(shared, f"member.{name}.tail.")) for name in names[:-1]},
                Mondrian.from_state(_under(shared, "mondrian.")).tables if CATEGORIES in facts else {},
            )
        except (KeyError, RuntimeError, ValueError, TypeError, IndexError) as error:
            raise ArtefactError(f"the calibrations cannot be read: {error}") from error


def recalibrated(
    source: Path, manifest: bytes, calibrations: Mapping[str, ConformalCalibration], out: Path, facts: Mapping[str, Any]
) -> bytes:
    """Write an artefact that differs from a verified one in its conformal calibrations alone.

    Args:
        source: directory of the verified artefact.
        manifest: the exact bytes that were signed.
        calibrations: for every detector and `JOINED`.
        out: directory to write; made if missing.
        facts: entries of the manifest that change.

    Returns:
        The bytes of the new manifest, which nobody has signed yet.

    Raises:
        ArtefactError: the source was changed, or a calibration is missing.
    """
    before, old = Promises.read(source, manifest), _read_manifest(manifest)
    if CATEGORIES in old:
        raise ArtefactError("an artefact that is calibrated by category is not recalibrated as a whole: fit it anew")
    if set(calibrations) != set(before.deployed):
        raise ArtefactError("every detector needs a calibration, and so does the whole")
    shared, card = _shared_of(source, old), _card_of(source, old)
    for name, calibration in calibrations.items():
        shared |= {f"anchor.{name}.{key}": value for key, value in before.anchor[name].state().items()}
        shared |= {f"{_calibrated_at(name)}{key}": value for key, value in calibration.state().items()}
    out.mkdir(parents=True, exist_ok=True)
    for section in ("detectors", "denoisers"):
        for name, entry in old[section].items():
            write_file(out, Path(entry["file"]).stem, read_file(source, entry, name))
    put_card(out, card)
    new = old | {
        **facts,
        "guarantee": calibrations[JOINED].guarantee.value,
        "ensemble": {JOINED: write_file(out, JOINED, shared)},
    }
    text = json.dumps(new, indent=2, sort_keys=True, allow_nan=False).encode() + b"\n"
    (out / MANIFEST).write_bytes(text)
    return text


def check_files(directory: Path, manifest: bytes) -> None:
    """Raise `ArtefactError` unless every file that the manifest names is there and has its digest."""
    facts = _read_manifest(manifest)
    for section in ("detectors", "denoisers", "ensemble"):
        for name, entry in facts[section].items():
            read_file(directory, entry, name)
    _card_of(directory, facts)


def _card_of(directory: Path, facts: Mapping[str, Any]) -> bytes | None:
    """The card of a model that only a server has, as the manifest binds it; None where there is a file of the model."""
    if REMOTE not in facts:
        return None
    try:
        card = (directory / CARD).read_bytes()
    except OSError as error:
        raise ArtefactError(f"{CARD} cannot be read") from error
    if hashlib.sha256(card).hexdigest() != facts["model_sha256"]:
        raise ArtefactError(f"{CARD} is not the one that was fitted for")
    return card


def _calibrated_at(name: str) -> str:
    """Where the conformal calibration of a detector, or of the whole, lies in the shared state."""
    return "conformal." if name == JOINED else f"member.{name}.conformal."


def _shared_of(directory: Path, facts: Mapping[str, Any]) -> State:
    if JOINED not in facts["ensemble"]:
        raise ArtefactError("the manifest names no calibrations of the whole")
    return read_file(directory, facts["ensemble"][JOINED], JOINED)


def _assemble(
    entries: Mapping[str, Any],
    states: Mapping[str, State],
    shared: State,
    reference: ReferenceModel,
    device: torch.device,
) -> Ensemble:
    """Rebuild the ensemble from its files."""
    activation, task = Activation(read_name(shared["activation"])), Task(read_name(shared["task"]))
    span = Span(*(tuple(ends) for ends in shared["span"].tolist()))
    twins: dict[str, Twin] = {}
    members = []
    for name in _in_order(shared, entries):
        method = registry.method(name)
        if entries[name]["version"] != method.version:
            raise ArtefactError(f"{name} was fitted by version {entries[name]['version']}, not {method.version}")
        state, calibration = _to(states[name], device), _under(shared, f"member.{name}.")
        network = _under(state, "network.")
        if name == COPIED_TWIN:
            twin = CopiedTwin(reference, activation, span, task)
            twin.network.load_state_dict(network)
            twins[name] = twin.eval()
        elif name == SMALL_TWIN:
            twins[name] = SmallTwin.from_state(network).to(device).eval().requires_grad_(False)
        member = _member(method.from_state(_under(state, "detector.")), _to(calibration, device))
        if bool(entries[name].get("random")) != member.detector.needs.random:
            raise ArtefactError(f"{name}: the manifest is wrong about whether it draws at random")
        members.append(member)
    channels = [
        Channel(name, float(part["weight"]), ParetoTail.from_state(_to(_under(part, "tail."), device)))
        for name in sorted({member.channel for member in members if member.channel})
        for part in (_under(shared, f"channel.{name}."),)
    ]
    rows, columns = (int(length) for length in shared["size"])
    probe = Probe(
        reference, twins, reference.tap_names, activation=activation, span=span, size=(rows, columns), task=task
    )
    conformal = ConformalCalibration.from_state(_to(_under(shared, "conformal."), device))
    mondrian = Mondrian.from_state(told) if (told := _to(_under(shared, "mondrian."), device)) else None
    return Ensemble(probe, members, channels, conformal, mondrian)


def _taxonomy(ensemble: Ensemble) -> dict[str, Any]:
    """The manifest's entry on categories; none where there are none."""
    return {} if ensemble.mondrian is None else {CATEGORIES: ensemble.mondrian.taxonomy.document()}


def _member(detector: Detector, state: State) -> Member:
    """A member with its calibrations."""
    tail = TailCalibration.from_state(_under(state, "tail."))
    conformal = ConformalCalibration.from_state(_under(state, "conformal."))
    return Member(detector, tail, conformal, read_name(state["channel"]) or None)


def _shared_state(ensemble: Ensemble) -> State:
    """Everything that is no single detector's: span, size, channels, calibrations."""
    probe = ensemble.probe
    state: State = {
        "span": torch.tensor([probe.span.low, probe.span.high], dtype=torch.float64),
        "size": torch.tensor(probe.size),
        "activation": spelled(probe.activation.value),
        "output": spelled(probe.reference.output_name),
        "task": spelled(probe.task.value),
        "order": spelled(" ".join(member.detector.name for member in ensemble.members)),
    }
    for member in ensemble.members:
        prefix = f"member.{member.detector.name}."
        state[f"{prefix}channel"] = spelled(member.channel or "")
        state |= {f"{prefix}tail.{key}": value for key, value in member.tail.state().items()}
        state |= {f"{prefix}conformal.{key}": value for key, value in member.conformal.state().items()}
    for channel in ensemble.channels:
        state[f"channel.{channel.name}.weight"] = torch.tensor(channel.weight, dtype=torch.float64)
        state |= {f"channel.{channel.name}.tail.{key}": value for key, value in channel.tail.state().items()}
    by_category = {} if ensemble.mondrian is None else ensemble.mondrian.state()
    state |= {f"mondrian.{key}": value for key, value in by_category.items()}
    return state | {f"conformal.{key}": value for key, value in ensemble.conformal.state().items()}


def _in_order(shared: State, entries: Mapping[str, Any]) -> list[str]:
    """The members as they were joined; the manifest and the calibrations must name the same."""
    order = read_name(shared["order"]).split()
    if sorted(order) != sorted(entries):
        raise ArtefactError("the manifest names other detectors than the calibrations")
    return order


def _read_manifest(manifest: bytes) -> dict[str, Any]:
    """Parse and check the shape of a manifest."""
    if len(manifest) > MANIFEST_BYTES_MAX:
        raise ArtefactError(f"the manifest is larger than {MANIFEST_BYTES_MAX} bytes")
    try:
        facts = json.loads(manifest)
    except (ValueError, RecursionError) as error:
        raise ArtefactError("the manifest is not JSON") from error
    if not isinstance(facts, dict) or facts.get("schema") != SCHEMA:
        raise ArtefactError(f"the manifest is not of schema {SCHEMA}")
    if missing := {*_FACTS, "guarantee", "detectors", "denoisers", "ensemble"} - set(facts):
        raise ArtefactError(f"the manifest lacks {sorted(missing)}")
    for section in ("detectors", "denoisers", "ensemble"):
        entries = facts[section]
        whole = isinstance(entries, dict) and all(
            isinstance(entry, dict) and isinstance(entry.get("file"), str) and isinstance(entry.get("sha256"), str)
            for entry in entries.values()
        )
        if not whole:
            raise ArtefactError(f"the manifest's {section} do not each name a file and a digest")
    return facts


def _under(state: State, prefix: str) -> State:
    """The part of a state below a prefix, which is cut off."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _to(state: State, device: torch.device) -> State:
    """The same state on a device."""
    return {key: value.to(device) for key, value in state.items()}
