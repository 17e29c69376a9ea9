"""An attacker who knows the detectors finds more than one who does not, and always beats a weak detector."""

from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor

from detectors.calibration import ConformalCalibration, ParetoTail, TailCalibration
from detectors.ensemble import SENSITIVE, Channel, Ensemble, Member, join, loudest
from detectors.methods.gradient_residual import GradientResidual
from gateway.profile import Profile
from lab import data, fitting
from lab.attacks.adaptive import Adaptive, Way
from lab.attacks.attack import Target
from lab.attacks.pgd import PGD
from lab.data import StoredScans
from lab.workbench import Workbench, logits_of

FPR = 0.01


@pytest.fixture(scope="module")
def scans(site: Path) -> StoredScans:
    found = data.stored(site / "data.npz", "test", Profile.load(site / "profile.toml"))
    return StoredScans(found.images[:30], found.labels[:30])


@pytest.fixture(scope="module")
def target(site: Path, fitted: fitting.Fitted) -> Target:
    probe = fitted.ensemble.probe
    logits = logits_of(probe)
    return Target.of_uint8(lambda rendered: logits(probe.span.to_unit(rendered)), Profile.load(site / "profile.toml"))


@pytest.fixture(scope="module")
def weak(site: Path, fitted: fitting.Fitted, parts: fitting.Parts) -> Ensemble:
    """D alone, of one network: it catches whoever follows the model's gradient alone, and nobody who holds it."""
    profile, probe = Profile.load(site / "profile.toml"), fitted.ensemble.probe
    bench = Workbench(probe.reference, profile, torch.device("cpu"), 0, lambda _stage, _share: None)
    detector = GradientResidual.fit(bench.material(probe, parts.fit.images, wider=False))
    values = detector.score(probe.observe(parts.b.images, detector.needs)).values
    member = Member(detector, TailCalibration.fit(values), ConformalCalibration.fit(values, FPR), SENSITIVE)
    scores = {detector.name: values}
    channel = Channel(SENSITIVE, 1.0, ParetoTail.fit(loudest([member], SENSITIVE, scores)))
    return Ensemble(probe, [member], [channel], ConformalCalibration.fit(join([member], [channel], scores), FPR))


def evaded(ensemble: Ensemble, target: Target, images: Tensor, labels: Tensor) -> Tensor:
    """(N,) bool: misread and not flagged, judged by what is deployed."""
    calm = ensemble.examine(target.view(images)).p_value > FPR
    return target.judged(images, labels, batch=32).success & calm


@pytest.mark.parametrize("way", get_args(Way))
def test_a_planted_weak_detector_falls(weak: Ensemble, target: Target, scans: StoredScans, way: Way) -> None:
    blind = PGD(eps=8, steps=20)(target, scans.images, scans.labels)
    informed = Adaptive(eps=8, ensemble=weak, steps=40, ways=(way,), restarts=1)(target, scans.images, scans.labels)

    assert evaded(weak, target, blind.images, scans.labels).float().mean() < 0.5
    assert evaded(weak, target, informed.images, scans.labels).float().mean() > 0.9


def test_it_evades_the_whole_more_often_than_an_attack_on_the_model_alone(
    fitted: fitting.Fitted, target: Target, scans: StoredScans
) -> None:
    blind = PGD(eps=8, steps=20)(target, scans.images, scans.labels)
    informed = Adaptive(eps=8, ensemble=fitted.ensemble, steps=40)(target, scans.images, scans.labels)

    assert (
        evaded(fitted.ensemble, target, informed.images, scans.labels).sum()
        > evaded(fitted.ensemble, target, blind.images, scans.labels).sum()
    )


def test_what_it_calls_success_is_what_is_deployed(fitted: fitting.Fitted, target: Target, scans: StoredScans) -> None:
    found = Adaptive(eps=8, ensemble=fitted.ensemble, steps=30)(target, scans.images, scans.labels)

    assert bool(evaded(fitted.ensemble, target, found.images, scans.labels)[found.success].all())


@pytest.mark.parametrize("eps", [2.0, 8.0])
def test_it_stays_within_its_budget_once_stored(
    fitted: fitting.Fitted, target: Target, scans: StoredScans, eps: float
) -> None:
    found = Adaptive(eps=eps, ensemble=fitted.ensemble, steps=5)(target, scans.images, scans.labels)

    assert torch.equal(found.images, found.images.round())
    assert (found.images - scans.images).abs().max() <= eps
    assert found.images.min() >= 0
    assert found.images.max() <= 255


def test_a_boundless_budget_always_evades(fitted: fitting.Fitted, target: Target, scans: StoredScans) -> None:
    found = Adaptive(eps=128, ensemble=fitted.ensemble, steps=120)(target, scans.images[:12], scans.labels[:12])

    assert found.success.float().mean() > 0.9


def test_more_starts_never_evade_less(fitted: fitting.Fitted, target: Target, scans: StoredScans) -> None:
    one = Adaptive(eps=4, ensemble=fitted.ensemble, steps=15, restarts=1)(target, scans.images, scans.labels)
    two = Adaptive(eps=4, ensemble=fitted.ensemble, steps=15, restarts=2)(target, scans.images, scans.labels)

    assert bool((two.margin <= one.margin + 1e-6).all())


def test_it_tells_after_how_many_steps_each_image_fell(
    fitted: fitting.Fitted, target: Target, scans: StoredScans
) -> None:
    short, long = (
        Adaptive(eps=8, ensemble=fitted.ensemble, steps=15, restarts=starts)(target, scans.images, scans.labels)
        for starts in (1, 3)
    )

    assert [len(curve) for curve in long.history] == [16] * 3
    assert torch.equal(short.history[0], long.history[0])
    together = torch.cat(long.history)
    assert bool((together.diff() >= 0).all())
    assert int(together[0]) < int(together[-1]) == int(long.success.sum())


def test_the_last_step_counts_too(fitted: fitting.Fitted, target: Target, scans: StoredScans) -> None:
    found = Adaptive(eps=8, ensemble=fitted.ensemble, steps=6, restarts=1)(target, scans.images, scans.labels)

    assert int(found.history[0][-1]) == int(found.success.sum())
