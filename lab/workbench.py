"""Where the parts of an artefact are made: one model, one device, one seed, one progress display."""

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager

import torch
from torch import Tensor

from detectors.detector import Detector
from detectors.ensemble import Ensemble
from detectors.material import Material, Wider
from detectors.methods.twins import COPIED_TWIN, SMALL_TWIN, CopiedTwin, Hardening, harden
from detectors.models.model import ReferenceModel
from detectors.models.outputs import Activation, Task, changed, decided, to_logits
from detectors.models.small import SmallTwin
from detectors.observation import LEVEL, Span, union
from detectors.probe import Probe, Twin
from detectors.worth import Scores, Trial
from gateway.profile import Profile
from lab.attacks.adaptive import Adaptive
from lab.attacks.attack import TASKS, Attack, Target
from lab.data import DataError
from lab.development import Attacked, Family, Model, harmless, mirrored, moved, noisy, simulate, transplanted
from lab.progress import Watch
from lab.seeds import seeds_of

BATCH = 64
ATTACKED_MAX = 1500
"""Scans that attacks are simulated on for D: bounds the time and the memory of a fit."""
ATTACK_ROUNDS = 3
"""How often each of them is attacked for every detector."""
ALL_ROUNDS = ATTACK_ROUNDS + 3
"""With those for D alone: along the smoothed gradient, and either way on the scans moved."""
OWN = (*3 * (Family.GRADIENT,), *2 * (Family.SMOOTH,))
"""How each scan of A is attacked through the model alone, for the fusion and again for the trial of the members."""
FAMILY_ROUNDS = len(OWN) + 3
"""With those through each twin, and through all together."""
FEWEST = 2
"""Attacks that must succeed before anything can be said of them."""
INFORMED, INFORMED_LEVELS, INFORMED_STEPS = 64, 4.0, 20
"""Scans, budget and steps of the attacker who holds the detectors, in the trial of the members."""


class Workbench:
    """Where the parts are made: one device, one seed, one progress display."""

    def __init__(
        self, reference: ReferenceModel, profile: Profile, device: torch.device, seed: int, watch: Watch
    ) -> None:
        self.reference = reference
        self.device = device
        self.span = span_of(profile)
        self.activation = Activation(profile.already_applied)
        self.task = Task(profile.task)
        self.size = profile.input.size
        self.classes = len(profile.classes)
        self.seed = seed
        self.watch = watch
        self.model: Model = self._answers
        """The protected model: (N, C, H, W), 0 to 1, to logits."""

    def follow(self, guide: Model) -> None:
        """From now on attacks follow the gradient of this model, where the protected one has none."""
        self.model = guided(self._answers, guide)

    def _answers(self, unit: Tensor) -> Tensor:
        return to_logits(self.reference(self.span.from_unit(unit)), self.activation, self.task)

    def twins(self, images: Tensor, recipes: tuple[Hardening, Hardening]) -> dict[str, CopiedTwin | SmallTwin]:
        """Two hardened companions of the model; of one that only answers, the small one alone."""
        unit = self.span.to_unit(images)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            small = SmallTwin(images.shape[1], self._width(images), task=self.task).to(self.device)
        hardened: dict[str, CopiedTwin | SmallTwin] = {}
        if self.reference.gradients:
            copied = CopiedTwin(self.reference, self.activation, self.span, self.task)
            hardened[COPIED_TWIN] = harden(
                copied, self.model, unit, recipe=recipes[0], seed=self.seed + 1, task=self.task,
                progress=lambda share: self.watch("hardening the copied twin", share),
            )  # fmt: skip
        hardened[SMALL_TWIN] = harden(
            small, self.model, unit, recipe=recipes[1], seed=self.seed + 2, task=self.task,
            progress=lambda share: self.watch("hardening the small twin", share),
        )  # fmt: skip
        return hardened

    def _width(self, images: Tensor) -> int:
        """Number of logits that the model gives."""
        with torch.no_grad():
            return self.model(self.span.to_unit(images[:1].to(self.device))).shape[1]

    def probe(self, twins: Mapping[str, CopiedTwin | SmallTwin]) -> Probe:
        """The shared pass over model and twins."""
        return Probe(
            self.reference, twins, self.reference.tap_names,
            activation=self.activation, span=self.span, size=self.size, task=self.task,
        )  # fmt: skip

    def material(self, probe: Probe, images: Tensor, *, wider: bool = True) -> Material:
        """What detectors learn from on the fit part: attacks, and every change that must not alarm.

        (1) attacks, and in `wider` those along the smoothed gradient and those on the scans moved
        (2) the same scans harmlessly changed, noise of an attack's size, and attacks of other scans: what is left to
        tell an attack by is its aim

        Args:
            probe: with the twins.
            images: the fit part, as the model takes them.
            wider: whether anybody learns from `wider`; it is left out where next to no such attack succeeds, too.
        """
        unit = self.span.to_unit(images[:ATTACKED_MAX])
        elsewhere = moved(unit, seed=self.seed + 15) if wider else unit[:0]
        found: list[Attacked] = []  # (1)
        ways = ATTACK_ROUNDS * [(unit, Family.GRADIENT)]
        if wider:
            ways += [(unit, Family.SOFTENED), (elsewhere, Family.GRADIENT), (elsewhere, Family.SOFTENED)]
        with staged(self.watch, "simulating attacks", len(ways)) as done:
            for k, (view, family) in enumerate(ways):
                found.append(self._simulated(view, self.seed + 100 + k, family))
                done()
        sharp, others = _together(found[:ATTACK_ROUNDS]), list(zip(found, ways, strict=True))[ATTACK_ROUNDS:]
        benign = (  # (2)
            harmless(unit, seed=self.seed + 4),
            noisy(unit, seed=self.seed + 5),
            transplanted(sharp, unit, seed=self.seed + 13),
        )
        more = None
        if _count([each for each, _ in others]) >= FEWEST:
            strays = [transplanted(each, view, seed=self.seed + 16 + k) for k, (each, (view, _)) in enumerate(others)]
            more = Wider(torch.cat([elsewhere, *strays]), torch.cat([each.images for each, _ in others]))
        return Material(unit, torch.cat(benign), sharp.images, sharp.sources, probe, self.seed + 6, wider=more)

    def held_out(self, probe: Probe, images: Tensor, *, without: Set[Family] = frozenset()) -> Material:
        """The same on A, whose scans no twin has seen: few scans, so each is attacked in every way.

        `without` leaves families out and changes nothing in the others. Raises DataError where no attack is left.
        """
        unit = self.span.to_unit(images)
        rounds = self._families(probe, unit, without, "simulating attacks on held-out scans", seed=self.seed + 200)
        found = _together(rounds)
        return Material(unit, harmless(unit, seed=self.seed + 12), found.images, found.sources, probe, self.seed + 14)

    def trial(
        self, ensemble: Ensemble, images: Tensor, fpr: float, *, without: Set[Family] = frozenset()
    ) -> Trial | None:
        """How every member scores A clean, attacked by who does not know the detectors, and by who does.

        The scans, at least `fewest_to_compare` of them, are those on which tails and fusion were fitted, so what
        follows compares members and no more; None where hardly an attack succeeds.
        """
        unit = self.span.to_unit(images)
        rounds = self._families(ensemble.probe, unit, without, "trying the members", seed=self.seed + 300)
        if _count(rounds) < FEWEST:
            return None
        attacked = _together(rounds).images
        informed = Adaptive(
            eps=INFORMED_LEVELS, ensemble=ensemble, alpha=fpr, steps=INFORMED_STEPS, restarts=1, seed=self.seed + 16
        )
        evading = self.misread(informed, unit[:INFORMED]) if self.reference.gradients else attacked[:0]
        detectors = [member.detector for member in ensemble.members]

        def scored(each: Tensor) -> Scores:
            return self.scores(ensemble.probe, detectors, self.span.from_unit(each))

        return Trial(scored(unit), scored(attacked), scored(evading) if len(evading) else None)

    @property
    def target(self) -> Target:
        """The model behind images of 8-bit grey levels, for attacks on what is stored."""
        return Target(
            lambda rendered: self.model(self.span.to_unit(rendered)),
            lambda stored: self.span.from_unit(stored * LEVEL),
            1.0, 0.0, 255.0, TASKS[self.task.value],
        )  # fmt: skip

    def misread(self, attack: Attack, unit: Tensor) -> Tensor:
        """(M, C, H, W), 0 to 1: what an attack makes of images and the model decides otherwise, flagged or not."""
        stored = (unit / LEVEL).round().to(self.device)
        with torch.no_grad():
            answer = decided(self.model(stored * LEVEL), self.task)
        found = attack(self.target, stored, answer).images * LEVEL
        with torch.no_grad():
            return found[changed(answer, self.model(found), self.task)].cpu()

    def _families(self, probe: Probe, unit: Tensor, without: Set[Family], stage: str, seed: int) -> list[Attacked]:
        """Rounds of every family: those through the model alone, and one through each twin and through all together.

        A round's seed is its place, whichever others are left out.
        """
        twins: list[Model] = [_answers_of(twin) for twin in probe.twins.values()]

        def all_of(images: Tensor) -> Tensor:
            return torch.stack([self.model(images), *(twin(images) for twin in twins)]).mean(0)

        ways: list[tuple[Family, Model | None]] = [(family, None) for family in OWN]
        ways += [(Family.CARRIED, guide) for guide in (*twins, all_of)]
        shown = [(k, family, guide) for k, (family, guide) in enumerate(ways) if family not in without]
        rounds = []
        with staged(self.watch, stage, len(shown)) as done:
            for k, family, guide in shown:
                rounds.append(self._simulated(unit, seed + k, family, guide))
                done()
        return rounds

    def _simulated(self, unit: Tensor, seed: int, family: Family, guide: Model | None = None) -> Attacked:
        return simulate(
            self.model, unit, device=self.device, seed=seed, task=self.task, family=family, guide=guide
        )  # fmt: skip

    def features(self, unit: Tensor) -> Tensor:
        """What the protected model's last layer before global pooling gives for (N, C, H, W) images, 0 to 1."""
        tap = self.reference.tap_names[-2:][0]
        return self.reference.forward_with_taps(self.span.from_unit(unit), (tap,))[1][tap]

    def usual(self, probe: Probe, detectors: list[Detector], images: Tensor) -> dict[str, Tensor]:
        """By detector, the scores (2N,) of clean images as the model takes them: as they are, and mirrored.

        The model may have been trained on them, and is surer there than on any new scan; on mirrored ones it is less
        so. Tails are fitted on both, since what they are for is new scans.
        """
        other = self.span.from_unit(mirrored(self.span.to_unit(images), seed=self.seed + 17))
        return self.scores(probe, detectors, torch.cat([images, other]))

    def scores(self, probe: Probe, detectors: list[Detector], images: Tensor) -> dict[str, Tensor]:
        """By detector, the scores (N,) of images as the model takes them."""
        needs = union(detector.needs for detector in detectors)
        found: dict[str, list[Tensor]] = {detector.name: [] for detector in detectors}
        seeds = torch.split(seeds_of(images), BATCH)
        for part, chosen in zip(torch.split(images, BATCH), seeds, strict=True):
            seen = probe.observe(part.to(self.device), needs, seeds=chosen.to(self.device))
            for detector in detectors:
                found[detector.name].append(detector.score(seen).values)
        return {name: torch.cat(values) for name, values in found.items()}


def _answers_of(twin: Twin) -> Model:
    return lambda images: twin.look(images)[0]


def _together(rounds: Sequence[Attacked]) -> Attacked:
    """All attacks of several rounds; raises DataError where hardly any succeeded."""
    if _count(rounds) < FEWEST:
        raise DataError("no simulated attack changed the model's answer: there is nothing to learn detection from")
    return Attacked(torch.cat([r.images for r in rounds]), torch.cat([r.sources for r in rounds]))


def _count(rounds: Sequence[Attacked]) -> int:
    return sum(len(each.images) for each in rounds)


def logits_of(probe: Probe) -> Model:
    """The protected model as a function from images, 0 to 1, to logits; without a gradient, it lends the twin's."""

    def answers(unit: Tensor) -> Tensor:
        return probe.logits(probe.reference(probe.span.from_unit(unit)))

    twin = probe.twins.get(SMALL_TWIN)
    if probe.reference.gradients or twin is None:
        return answers
    return guided(answers, lambda unit: twin.look(unit)[0])


def guided(model: Model, guide: Model) -> Model:
    """The answers of one model with the gradient of another.

    Papernot et al. 2017, arXiv:1602.02697 (attacks on a substitute); Athalye et al. 2018, arXiv:1802.00420, section
    4.1 (a backward pass that only approximates).
    """

    def ask(unit: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return model(unit)
        followed = guide(unit)
        return followed + (model(unit) - followed).detach()

    return ask


def span_of(profile: Profile) -> Span:
    """What black and white are in the model's input."""
    low, high = profile.input.range
    means = profile.input.mean or (0.0,) * profile.input.channels
    stds = profile.input.std or (1.0,) * profile.input.channels
    ends = [((low - mean) / std, (high - mean) / std) for mean, std in zip(means, stds, strict=True)]
    return Span(tuple(end[0] for end in ends), tuple(end[1] for end in ends))


@contextmanager
def staged(watch: Watch, stage: str, parts: int) -> Iterator[Callable[[], None]]:
    """Report a stage of a known number of equal parts."""
    watch(stage, 0.0)
    finished = 0

    def done() -> None:
        nonlocal finished
        finished += 1
        watch(stage, finished / parts)

    yield done
