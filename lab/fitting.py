"""Fits, calibrates and writes a detector artefact from clean scans of one source."""

import hashlib
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from torch import Tensor

from detectors import registry
from detectors.artifact import COLOUR, REMOTE, Artefact
from detectors.calibration import Guarantee, fewest
from detectors.denoisers.denoiser import Denoiser
from detectors.detector import Detector, Method
from detectors.ensemble import JOINED, Channel, Ensemble, join
from detectors.heat import usual
from detectors.material import Material
from detectors.methods.fusion import Fusion
from detectors.methods.gradient_residual import GradientResidual
from detectors.methods.twins import COPIED, COPIED_TWIN, SMALL, Hardening
from detectors.models.answers import Ask
from detectors.models.model import ReferenceModel
from detectors.models.served import CARD, Card, put_card
from detectors.mondrian import Mondrian, calibratable
from detectors.observation import Signal
from detectors.probe import Probe
from detectors.worth import Worth, fewest_to_compare, least_worth, worth
from gateway.profile import Profile
from lab import joining
from lab.categories import Told, categories_of
from lab.data import DataError, Dataset, Split, halves
from lab.denoising import USUAL, check, make
from lab.development import Family, grey
from lab.evaluation.surrogate import surrogate
from lab.forecast import Forecast, Pace, forecast
from lab.measuring import measure
from lab.opening import opened
from lab.progress import Expect, Watch
from lab.promises import promising
from lab.purity import NOBODY, Doubts, doubted
from lab.sealing import put
from lab.sparring import Sparring
from lab.workbench import Workbench, span_of

CPU = torch.device("cpu")
FIT_SHARE = 0.8
"""Of `train`, by patient: what the twins, D and the denoiser learn from. The rest is A, for fusion and tails."""
HELD_OUT = frozenset({Fusion.name})
"""Methods that are fitted on A, or on scans held back for rounds: they weigh the twins, and a twin knows the scans that
it was trained on."""


@dataclass(frozen=True, slots=True)
class Parts:
    """Clean scans by use; no patient is in two of them."""

    fit: Split
    """For what learns: twins, gradient detector, densities, denoiser."""
    a: Split
    """For what orders: the fusion and the tails."""
    b: Split
    """For what promises: the conformal rule, and nothing else."""
    test: Split
    """For measuring; may be empty."""
    sha256: str
    held: Split | None = None
    """For the fusion, where it is fitted in rounds; else it is fitted on A."""
    rounds: int = 0
    """How often the fusion meets who knows it; none without scans held back for it."""

    def __post_init__(self) -> None:
        if bool(self.rounds) != (self.held is not None):
            raise ValueError("rounds of the fusion need scans held back for them, and no others do")

    @property
    def fusing(self) -> Split:
        """What the fusion is fitted on."""
        return self.a if self.held is None else self.held

    @classmethod
    def of(cls, data: Dataset, seed: int) -> "Parts":
        """Split `train` by patient into fit and A; B is `val`."""
        return cls(*halves(data.train, FIT_SHARE, seed), b=data.val, test=data.test, sha256=data.sha256)

    def in_rounds(self, rounds: int, seed: int) -> "Parts":
        """The same for a fusion fitted in so many rounds: they take a fifth, by patient, of what there is to learn
        from; 0 rounds take nothing."""
        if not rounds:
            return self
        fit, held = halves(self.fit, FIT_SHARE, seed)
        return replace(self, fit=fit, held=held, rounds=rounds)


@dataclass(frozen=True, slots=True)
class Fitted:
    """What a fit leaves."""

    ensemble: Ensemble
    denoisers: Mapping[str, Denoiser]
    manifest: bytes
    """The signed bytes."""
    measured: Mapping[str, Any]
    answers_only: str | None = None
    """Why the model could not be rebuilt; None where it was."""
    worths: Mapping[str, Worth] = field(default_factory=dict)
    """By deciding detector: what it adds, on development attacks."""
    doubts: Doubts = NOBODY
    """Scans that were taken for clean and are too loud for it."""


def fit(
    model: bytes,
    profile: Profile,
    parts: Parts,
    out: Path,
    *,
    fpr: float,
    key: Ed25519PrivateKey | None,
    seed: int,
    device: torch.device = CPU,
    methods: Sequence[str] = registry.DEFAULT,
    denoisers: Sequence[str] = USUAL,
    told: Told | None = None,
    recipes: tuple[Hardening, Hardening] = (COPIED, SMALL),
    fusion_rounds: int = 0,
    watch: Watch = lambda _stage, _share: None,
    expect: Expect = lambda _stages: None,
    ask: Ask | None = None,
) -> Fitted:
    """Fit every detector, calibrate, measure and write the artefact.

    (1) rebuild the model and compare it with its own runtime; one that only answers borrows a small network's gradient
    (2) harden two twins, without labels
    (3) simulate attacks; fit the detectors, and the denoisers
    (4) on A: fit what must not see what the twins saw, and every tail; leave out of the decision what only costs
    (5) on B: the conformal rule
    (6) on test: what it is worth; and which scans of A and B are too loud to be clean
    (7) write and sign

    Args:
        model: the file of the protected model, or the card of one on a server, which `ask` is the way to.
        profile: its profile.
        parts: clean scans by use.
        out: directory of the artefact.
        fpr: target false-positive rate.
        key: signs the manifest; None leaves the artefact unsigned, which a gateway loads only as `unsafe_…`.
        seed: of everything that is drawn.
        device: where to fit; by default the CPU.
        methods: names of the detectors; those of the deciding channels must be among them.
        denoisers: names of the denoisers, any or none; the image of the first is the one that goes on.
        told: by what scans are told apart, so that each category is calibrated for itself; None: not at all.
        recipes: how the copied and the small twin are hardened.
        fusion_rounds: how often the fusion meets who knows it, on scans held back from `fit`; 0: fitted once, on A.
        watch: told of progress; `expect`, early, how long each stage will take.

    Raises:
        DataError, TooFewError: too few scans, also of a category, or the data does not say of which one they are.
        ConversionError, ArtefactError: the model can neither be rebuilt nor run; a plug-in breaks its contract.
        MismatchError: it is not what the profile says.
    """
    parts = parts.in_rounds(fusion_rounds, seed)
    _check(profile, parts, fpr, told, denoisers, methods)
    reference, apart, answers_only = opened(model, profile, parts.b.images, device, ask)  # (1)
    bench = _bench(reference, profile, parts.fit.images, device, seed, watch, parts.rounds)
    methods = [name for name in methods if not answers_only or _asks_answers_only(name)]
    expect(_forecast(bench, parts, recipes, methods, denoisers))
    probe = bench.probe(bench.twins(parts.fit.images, recipes))  # (2)
    material = bench.material(probe, parts.fit.images, wider=GradientResidual.name in methods)  # (3)
    detectors = [_fitted(registry.method(name), material, watch) for name in methods if name not in HELD_OUT]
    restorers = make(bench, denoisers, parts.fit.images)
    members, channels, worths = weighed(bench, probe, detectors, methods, parts, fpr)  # (4)
    ensemble = promised(bench, probe, members, channels, parts.b, fpr, told)  # (5)
    measured = measure(ensemble, parts.test, fpr=fpr, seed=seed + 99, model=bench.model, watch=watch)  # (6)
    doubts = doubted(bench, ensemble, parts.a.images, parts.b.images)
    facts = _facts(model, profile, parts, fpr, apart, ensemble, restorers, measured, worths)
    manifest = Artefact.write(out, ensemble, restorers, facts | doubts.document() | _served(out, model, ask))  # (7)
    put(out, manifest, key)
    return Fitted(ensemble, restorers, manifest, measured, answers_only, worths, doubts)


def _bench(
    reference: ReferenceModel, profile: Profile, images: Tensor, device: torch.device, seed: int, watch: Watch,
    rounds: int,
) -> Workbench:  # fmt: skip
    """The bench of a model; where it has no gradient, a small network taught by its answers lends attacks its own."""
    bench = Workbench(reference, profile, device, seed, watch)
    if not reference.gradients:
        if rounds:
            raise DataError("rounds of the fusion need the model's gradient, and this one gives answers alone")
        guide = surrogate(bench.probe({}), images, seed=seed + 20, watch=watch)
        bench.follow(lambda unit: guide(bench.span.from_unit(unit)))
    return bench


def _forecast(
    bench: Workbench,
    parts: Parts,
    recipes: tuple[Hardening, Hardening],
    methods: Sequence[str],
    denoisers: Sequence[str],
) -> Forecast:
    """How long each stage will take, by a few timed passes."""
    pace, gradients = Pace.of(bench, parts.fit.images, denoisers), bench.reference.gradients
    return forecast(
        pace, fit=len(parts.fit), held=len(parts.fusing), a=len(parts.a), test=len(parts.test),
        gradients=gradients, recipes=recipes, methods=methods, rounds=parts.rounds,
    )  # fmt: skip


def _fitted(method: Method, material: Material, watch: Watch) -> Detector:
    """One detector, with its own stage of the progress."""
    stage = f"fitting {method.name}"
    watch(stage, 0.0)
    detector = method.fit(replace(material, progress=lambda share: watch(stage, share)))
    watch(stage, 1.0)
    return detector


def _check(
    profile: Profile, parts: Parts, fpr: float, told: Told | None, denoisers: Sequence[str], methods: Sequence[str]
) -> None:
    """Refuse what cannot be fitted before any work is done."""
    check(denoisers)
    least = fewest(fpr, Guarantee.MARGINAL)
    if len(parts.b) < least:
        raise DataError(
            f"{len(parts.b)} scans to calibrate on cannot support a false-positive rate of {fpr:g}: at least {least} "
            f"are needed, {fewest(fpr, Guarantee.CONFIDENT)} for a guarantee with 95 % confidence"
        )
    if told is not None:
        calibratable(told.attributes, categories_of(parts.b, told.attributes), fpr, told.asked)
    rounds = ("the rounds of the fusion", parts.fusing, 20)
    for name, part, least in (("fit", parts.fit, 40), ("A", parts.a, 40), rounds):
        if len(part) < least:
            raise DataError(f"{len(part)} scans for {name} are too few; at least {least} are needed")
    promising(methods)


def _served(out: Path, model: bytes, ask: Ask | None) -> dict[str, Any]:
    """The manifest's entry on a model that only a server has, whose card is put beside it; none where there is a file.

    Whatever card an earlier fit left goes away.
    """
    out.mkdir(parents=True, exist_ok=True)
    put_card(out, None if ask is None else model)
    if ask is None:
        return {}
    described = Card.read(model).described
    return {REMOTE: {"card": CARD, **{name: described[name] for name in ("name", "versions") if name in described}}}


def _asks_answers_only(name: str) -> bool:
    """Whether a method does without gradients, features and a copy of the model."""
    shown = {Signal.INPUT_GRADIENT, Signal.FEATURES, Signal.NEIGHBOUR_FEATURES}
    return name != COPIED_TWIN and not registry.method(name).needs.signals & shown


def weighed(
    bench: Workbench,
    probe: Probe,
    learned: Sequence[Detector],
    methods: Sequence[str],
    parts: Parts,
    fpr: float,
    *,
    without: Set[Family] = frozenset(),
) -> tuple[list[joining.Tailed], list[Channel], dict[str, Worth]]:
    """On A: fit what must not see what the twins saw, and every tail; leave out of the decision what only costs.

    Args:
        bench: of the model.
        probe: with the twins.
        learned: the detectors that were fitted on the fit part.
        methods: names of all; those of `HELD_OUT` are fitted here.
        parts: clean scans by use.
        fpr: target false-positive rate.
        without: families of simulated attacks that neither the fusion nor the choice of members is shown.
    """
    material = bench.held_out(probe, parts.fusing.images, without=without)
    made = {name: registry.method(name) for name in methods if name in HELD_OUT}
    if parts.rounds and Fusion.name in made:
        made[Fusion.name] = Sparring(bench, parts.rounds, fpr)
    fitted = [_fitted(method, material, bench.watch) for method in made.values()]
    return _chosen(bench, probe, [*learned, *fitted], parts.a.images, fpr, without)


def _chosen(
    bench: Workbench, probe: Probe, detectors: list[Detector], images: Tensor, fpr: float, without: Set[Family]
) -> tuple[list[joining.Tailed], list[Channel], dict[str, Worth]]:
    """The members that decide, each with its worth; one that only costs is reported and weighs nothing."""
    scores = bench.usual(probe, detectors, images)
    own = {name: values[: len(images)] for name, values in scores.items()}  # by which the trial is judged, too
    members = joining.tails(detectors, scores)
    deciding = [member for member in members if member[2]]
    if len(images) < fewest_to_compare(fpr):
        return members, joining.channels(members, scores), {}
    ensemble = joining.calibrated(probe, deciding, joining.channels(deciding, scores), own, fpr)
    trial = bench.trial(ensemble, images, fpr, without=without)
    if trial is None:
        return members, joining.channels(members, scores), {}
    while True:
        ensemble = joining.calibrated(probe, deciding, joining.channels(deciding, scores), own, fpr)
        worths = worth(ensemble.members, ensemble.channels, trial, fpr)
        idle = least_worth(ensemble.members, worths)
        if idle is None or len(images) < fewest(fpr, Guarantee.CONFIDENT):  # fewer cannot tell half a point
            break
        deciding = [member for member in deciding if member[0].name != idle]
    kept = {each.name for each, *_ in deciding}
    members = [(each, tail, home if each.name in kept else None) for each, tail, home in members]
    return members, joining.channels(members, scores), worths


def promised(
    bench: Workbench,
    probe: Probe,
    members: list[joining.Tailed],
    channels: list[Channel],
    scans: Split,
    fpr: float,
    told: Told | None = None,
) -> Ensemble:
    """On B: the conformal rule of each member and of the whole, and of each category."""
    scores = bench.scores(probe, [each for each, *_ in members], scans.images)
    ensemble = joining.calibrated(probe, members, channels, scores, fpr)
    if told is None:
        return ensemble
    joined = join(ensemble.members, channels, scores)
    categories = categories_of(scans, told.attributes)
    mondrian = Mondrian.fit(told.attributes, categories, scores | {JOINED: joined}, fpr, told.asked)
    return Ensemble(probe, ensemble.members, channels, ensemble.conformal, mondrian)


def _facts(
    model: bytes,
    profile: Profile,
    parts: Parts,
    fpr: float,
    apart: float | None,
    ensemble: Ensemble,
    denoisers: Mapping[str, Denoiser],
    measured: Mapping[str, Any],
    worths: Mapping[str, Worth],
) -> dict[str, Any]:
    """The manifest's entries on what was fitted, on what, and what it is worth."""
    more: dict[str, Any] = {} if grey(span_of(profile).to_unit(parts.fit.images)) else {COLOUR: True}
    if parts.rounds:
        more |= {"fusion_rounds": parts.rounds, "n_rounds": len(parts.fusing)}
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "scanward": version("scanward"),
        "torch": torch.__version__,
        "model_sha256": hashlib.sha256(model).hexdigest(),
        "profile_sha256": profile.sha256,
        "data_sha256": parts.sha256,
        "n_fit": len(parts.fit),
        "n_a": len(parts.a),
        "n_b": len(parts.b),
        "fpr": fpr,
        "precision": "float32",
        "gradients": ensemble.probe.reference.gradients,
        "conversion_max_abs_diff": apart,
        "heat_usual": usual(ensemble.probe, parts.b.images, denoisers),
        "measured": {**measured, "members": {name: asdict(each) for name, each in worths.items()}},
    } | more
