"""One command turns clean scans into a signed artefact that a gateway can load."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from torch import Tensor

from detectors import registry
from detectors.artifact import MANIFEST, Artefact
from detectors.filters import gaussian
from detectors.methods.gradient_residual import GradientResidual
from detectors.observation import LEVEL, Observation
from detectors.testing import check_detector
from detectors.worth import fewest_to_compare, worth
from gateway.profile import Profile
from gateway.protected import MANIFEST_ENVELOPE, MANIFEST_TYPE
from lab import data, fitting
from lab.cli import main
from lab.development import EPS_HIGH, Attacked, Family, Model, descend, harmless, mirrored, on_grid, simulate
from lab.measuring import flagged
from lab.workbench import Workbench, logits_of
from signing.envelope import load_public_key, open_envelope


def test_the_victim_is_worth_attacking(site: Path, fitted: fitting.Fitted) -> None:
    assert fitted.measured["accuracy"] > 0.95
    assert fitted.measured["pgd"]["8"]["successes"] > 40


def test_the_ensemble_flags_the_attack_and_few_clean_scans(fitted: fitting.Fitted) -> None:
    assert fitted.measured["pgd"]["8"]["tpr"]["ensemble"]["rate"] > 0.9
    assert fitted.measured["fpr"]["ensemble"]["rate"] <= 0.1


def test_the_manifest_is_signed_and_says_what_was_fitted(site: Path, fitted: fitting.Fitted) -> None:
    envelope = (site / "out" / MANIFEST_ENVELOPE).read_bytes()
    opened = open_envelope(envelope, [load_public_key(site / "key.pem.pub")], MANIFEST_TYPE)

    assert opened == fitted.manifest == (site / "out" / MANIFEST).read_bytes()
    facts = json.loads(opened)
    assert facts["guarantee"] == "confident"
    assert (facts["n_fit"] + facts["n_a"], facts["n_b"]) == (240, 300)
    assert 0 <= facts["conversion_max_abs_diff"] < 1e-3
    assert facts["heat_usual"] > 0
    assert facts["data_sha256"] == hashlib.sha256((site / "data.npz").read_bytes()).hexdigest()
    assert set(facts["detectors"]) == {
        "twinM", "twinS", "fusion", "uad", "gradient_residual", "jpeg75", "median3", "rotation3", "mahalanobis",
    }  # fmt: skip
    assert facts["detectors"]["mahalanobis"]["weight"] == 0


def test_what_was_written_is_what_was_fitted(site: Path, fitted: fitting.Fitted) -> None:
    profile = Profile.load(site / "profile.toml")
    test = data.load(site / "data.npz", profile).test
    model = (site / "model.onnx").read_bytes()

    loaded = Artefact.load(site / "out", fitted.manifest, model, profile.sha256, torch.device("cpu"))

    before, after = fitted.ensemble.examine(test.images), loaded.ensemble.examine(test.images)
    assert torch.allclose(before.p_value, after.p_value, atol=0.02)
    for member in loaded.ensemble.members:
        check_detector(registry.method(member.detector.name), member.detector, loaded.ensemble.probe)
    assert list(loaded.denoisers) == ["wavelet", "dncnn"]  # as asked for: the image of the first goes on
    for name, denoise in fitted.denoisers.items():
        assert torch.equal(loaded.denoisers[name](test.images), denoise(test.images))


def test_harmless_changes_are_not_flagged_like_attacks(site: Path, fitted: fitting.Fitted) -> None:
    profile = Profile.load(site / "profile.toml")
    probe = fitted.ensemble.probe
    unit = probe.span.to_unit(data.load(site / "data.npz", profile).test.images)

    flags, _ = flagged(fitted.ensemble, harmless(unit, seed=5), fpr=0.01)

    assert flags["ensemble"].float().mean() < 0.3


def test_simulated_attacks_are_storable_and_within_their_budget(site: Path, fitted: fitting.Fitted) -> None:
    profile = Profile.load(site / "profile.toml")
    probe = fitted.ensemble.probe
    unit = probe.span.to_unit(data.load(site / "data.npz", profile).test.images)
    assert on_grid(unit)

    found = simulate(logits_of(probe), unit, device=torch.device("cpu"), seed=1)
    images, success = descend(logits_of(probe), unit, levels=4, steps=5, device=torch.device("cpu"), seed=1)

    assert len(found.images) > 0
    assert on_grid(found.images)
    assert (found.images - unit[found.sources]).abs().max() <= 8.5 * LEVEL
    assert (images - unit).abs().max() <= 4.01 * LEVEL
    assert bool(success.any())


def test_two_halves_share_no_patient(site: Path) -> None:
    train = data.load(site / "data.npz", Profile.load(site / "profile.toml")).train

    first, second = data.halves(train, 0.8, seed=3)

    assert not set(first.groups) & set(second.groups)
    assert len(first) + len(second) == len(train)
    assert 0.75 * len(train) <= len(first) <= 0.85 * len(train)


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_the_command_scores_with_what_was_fitted(site: Path, fitted: fitting.Fitted) -> None:
    names = ["score", "--model", site / "model.onnx", "--profile", site / "profile.toml"]

    result = run(*names, "--detectors", site / "out", "--data", site / "data.npz", "--json")

    table = json.loads(result.stdout)
    assert result.exit_code == 0
    assert table["ids"][0] == "test-0"
    assert len(table["p"]) == len(table["prediction"]) == len(table["detectors"]["twinM"]) == 60
    assert all(0 < p <= 1 for p in table["p"])


def test_a_detector_that_there_is_not_is_said_before_any_work(site: Path, tmp_path: Path) -> None:
    names = ["fit", "--model", site / "model.onnx", "--profile", site / "profile.toml", "--data", site / "data.npz"]

    result = run(*names, "--out", tmp_path / "out", "--detectors", "jpeg50,magic")

    assert result.exit_code == 2
    assert "no detector is called 'magic'" in result.stderr
    assert not (tmp_path / "out").exists()


def test_asked_for_detectors_come_beside_the_default_ones() -> None:
    assert registry.asked_for("default") == registry.DEFAULT
    assert registry.asked_for("jpeg50,fusion") == (*registry.DEFAULT, "jpeg50")
    assert set(registry.asked_for("all")) >= set(registry.OURS)


@pytest.mark.parametrize("command", ["fit", "score", "evaluate", "denoisers"])
def test_a_device_that_there_is_not_is_said_in_one_sentence(command: str) -> None:
    result = run(command, "--device", "cuda" if not torch.cuda.is_available() else "vulkan")

    assert result.exit_code == 2
    assert "Invalid value for '--device'" in result.stderr


def without(site: Path, folder: Path, **changes: NDArray[np.generic] | None) -> Path:
    """The data set with some arrays replaced or left out."""
    with np.load(site / "data.npz") as file:
        arrays = {name: file[name] for name in file.files} | changes
    np.savez(folder / "changed.npz", **{name: array for name, array in arrays.items() if array is not None})
    return folder / "changed.npz"


CHANGES: dict[str, tuple[dict[str, NDArray[np.generic] | None], str]] = {
    "too few to calibrate": (
        {f"val_{name}": np.zeros((0,), np.int64) for name in ("images", "labels", "groups", "ids")},
        "0 scans to calibrate on",
    ),
    "a patient in two splits": ({"val_groups": np.array(["train0"] * 300)}, "no group may be in two splits"),
    "no patients": ({"train_groups": None}, "train_groups is missing"),
    "16 bits": ({"train_images": np.zeros((240, 32, 32), np.uint16)}, "uint8"),
    "labels lost": ({"train_labels": np.zeros(3, np.int64)}, "train_labels are"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_data_that_cannot_be_fitted_is_refused_in_one_sentence(site: Path, tmp_path: Path, case: str) -> None:
    changes, sentence = CHANGES[case]
    path = without(site, tmp_path, **changes)

    result = run(
        "fit",
        "--model",
        site / "model.onnx",
        "--profile",
        site / "profile.toml",
        "--data",
        path,
        "--out",
        tmp_path / "o",
    )

    assert result.exit_code == 2
    assert sentence in result.stderr
    assert result.stdout == ""


def test_files_that_are_none_are_refused(site: Path, tmp_path: Path) -> None:
    (tmp_path / "junk").write_bytes(b"junk")
    good = {"--model": site / "model.onnx", "--profile": site / "profile.toml", "--data": site / "data.npz"}
    for option in good:
        chosen = [part for pair in (good | {option: tmp_path / "junk"}).items() for part in pair]

        result = run("fit", *chosen, "--out", tmp_path / "o")

        assert result.exit_code == 2
        assert result.stderr.strip().startswith("scanward-lab: ")


def test_a_fit_says_what_each_deciding_detector_adds_and_costs(site: Path, fitted: fitting.Fitted) -> None:
    """At a rate that the few scans of A support; at the artefact's own they are too few to compare on."""
    profile = Profile.load(site / "profile.toml")
    scans = data.load(site / "data.npz", profile).train.images[:60]
    bench = Workbench(fitted.ensemble.probe.reference, profile, torch.device("cpu"), 0, lambda _stage, _share: None)

    trial = bench.trial(fitted.ensemble, scans, 0.05)
    worths = worth(fitted.ensemble.members, fitted.ensemble.channels, trial, 0.05)

    assert set(worths) == {"twinM", "twinS", "fusion", "gradient_residual"}
    assert max(each.alone for each in worths.values()) > 0.5
    assert all(-1 <= each.gain <= each.alone + 0.5 for each in worths.values())
    assert all((each.price is None) == (trial.adaptive is None) for each in worths.values())
    facts = json.loads(fitted.manifest)
    assert (facts["measured"]["members"], facts["n_a"] < fewest_to_compare(facts["fpr"])) == ({}, True)


def test_an_attack_that_carries_over_fools_the_model_within_its_budget(site: Path, fitted: fitting.Fitted) -> None:
    profile = Profile.load(site / "profile.toml")
    probe = fitted.ensemble.probe
    unit = probe.span.to_unit(data.load(site / "data.npz", profile).val.images[:64])
    model, twin = logits_of(probe), probe.twins["twinS"]

    found = simulate(
        model, unit, device=torch.device("cpu"), seed=1, family=Family.CARRIED,
        guide=lambda images: twin.look(images)[0],
    )  # fmt: skip

    assert len(found.images)
    assert float((found.images - unit[found.sources]).abs().max()) <= EPS_HIGH * LEVEL + 1e-5
    assert not bool((model(found.images).argmax(1) == model(unit[found.sources]).argmax(1)).any())


def test_a_smooth_attack_has_no_fine_detail() -> None:
    """Of a model that asks which half is brighter, and by a pattern of dots at that."""
    unit = (torch.rand(64, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 255).round() * LEVEL
    dots = torch.zeros(32, 32)
    dots[::2, ::2] = 4.0

    def model(images: Tensor) -> Tensor:
        return 50 * torch.stack(
            [(images * dots)[..., :16].mean((1, 2, 3)), (images * dots)[..., 16:].mean((1, 2, 3))], 1
        )

    def fine(family: Family) -> float:
        found = simulate(model, unit, device=torch.device("cpu"), seed=1, family=family)
        assert len(found.images) > 10
        change = found.images - unit[found.sources]
        return float((change - gaussian(change, 1.0)).square().mean() / change.square().mean())

    assert fine(Family.SMOOTH) < fine(Family.GRADIENT) / 2


def test_a_softened_gradient_gives_a_coarser_attack_on_the_model_as_it_is() -> None:
    """Of a model that asks which half is brighter, and by a pattern of dots at that: each step follows its blur."""
    unit = (torch.rand(64, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 255).round() * LEVEL
    dots = torch.zeros(32, 32)
    dots[::2, ::2] = 4.0

    def model(images: Tensor) -> Tensor:
        halves = (images * dots)[..., :16].mean((1, 2, 3)), (images * dots)[..., 16:].mean((1, 2, 3))
        return 50 * torch.stack(halves, 1)

    def fine(family: Family) -> float:
        found = simulate(model, unit, device=torch.device("cpu"), seed=1, family=family)
        change = found.images - unit[found.sources]
        assert len(found.images) > 10
        assert bool((model(found.images).argmax(1) != model(unit[found.sources]).argmax(1)).all())
        return float((change - gaussian(change, 1.0)).square().mean() / change.square().mean())

    assert fine(Family.SOFTENED) < fine(Family.GRADIENT) / 2


def test_d_is_shown_moved_scans_clean_and_attacked(site: Path, fitted: fitting.Fitted) -> None:
    profile = Profile.load(site / "profile.toml")
    probe = fitted.ensemble.probe
    images = data.load(site / "data.npz", profile).train.images[:40]
    unit = probe.span.to_unit(images)
    bench = Workbench(probe.reference, profile, torch.device("cpu"), 0, lambda _stage, _share: None)

    wider = bench.material(probe, images).wider
    assert wider is not None
    elsewhere = wider.benign[:40]

    assert on_grid(elsewhere)
    assert float((elsewhere - unit).abs().mean()) > 2 * LEVEL
    assert 0 < len(wider.attacked) == len(wider.benign) - 40  # each attack once more, on another scan
    apart = [(wider.attacked[:, None] - each[None]).abs().amax((2, 3, 4)).amin(1) for each in (unit, elsewhere)]
    assert float(torch.minimum(*apart).max()) <= 8.5 * LEVEL
    assert all(bool((each <= 8.5 * LEVEL).any()) for each in apart)


def test_the_second_network_sees_what_the_first_is_not_shown() -> None:
    """Of images whose gradient is noise: first that itself is in the attack, then only its blur."""
    draws = torch.Generator().manual_seed(0)

    def kind(count: int, by: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        clean = 0.5 + 0.02 * torch.randn(count, 1, 48, 48, generator=draws)
        gradient = torch.randn(count, 1, 48, 48, generator=draws)
        return (clean + by(gradient)).clamp(0, 1), gradient

    def sharp(gradient: Tensor) -> Tensor:
        return 2 * LEVEL * gradient.sign()

    def softened(gradient: Tensor) -> Tensor:
        return 1.5 * LEVEL * gaussian(gradient, 2.0).sign()

    kinds = [kind(200, torch.zeros_like), kind(200, sharp), kind(200, torch.zeros_like), kind(200, softened)]
    images, gradients = (torch.cat(each) for each in zip(*kinds, strict=True))
    attacked = torch.arange(800) // 200 % 2 == 1
    first, both = (
        GradientResidual.trained(images, gradients, attacked, ends, calm=200, seed=0, device=torch.device("cpu"))
        for ends in ([400], [400, 800])
    )

    def caught(detector: GradientResidual, by: Callable[[Tensor], Tensor]) -> float:
        """Of new attacks, at the threshold that one new clean scan in twenty is beyond."""
        pairs = (kind(400, torch.zeros_like), kind(200, by))
        scores = [
            detector.score(Observation(images, torch.zeros(len(images), 2), input_gradient=gradient)).values
            for images, gradient in pairs
        ]
        return float((scores[1] > scores[0].quantile(0.95)).float().mean())

    assert caught(both, softened) > caught(first, softened) + 0.2
    assert caught(both, sharp) > 0.9
    seen = Observation(images, torch.zeros(len(images), 2), input_gradient=gradients)
    alone = torch.stack([_one_of(both, place).score(seen).values for place in (0, 1)])
    assert torch.allclose(both.score(seen).values, alone.amax(0))
    assert bool((alone[0] > alone[1]).any())
    assert bool((alone[1] > alone[0]).any())


def _one_of(both: GradientResidual, place: int) -> GradientResidual:
    """One network of two, with its own tail."""
    state = both.state()
    mine = {f"0.{name[2:]}": value for name, value in state.items() if name.startswith(f"{place}.")}
    tail = {name: state[name][place : place + 1] for name in ("knots", "scale")}
    return GradientResidual.from_state(mine | tail)


def test_tails_are_of_clean_scans_as_they_are_and_mirrored(
    site: Path, fitted: fitting.Fitted, parts: fitting.Parts
) -> None:
    probe = fitted.ensemble.probe
    bench = Workbench(
        probe.reference, Profile.load(site / "profile.toml"), torch.device("cpu"), 0, lambda _stage, _share: None
    )
    mine = {each.detector.name: each for each in fitted.ensemble.members}

    usual = bench.usual(probe, [each.detector for each in mine.values()], parts.a.images)
    own = bench.scores(probe, [each.detector for each in mine.values()], parts.a.images)

    for name, scores in usual.items():
        assert torch.equal(scores[: len(parts.a)], own[name])
        knots = mine[name].tail.state()["knots"]
        assert torch.allclose(knots[-1], scores.quantile(0.95), atol=1e-4)
        assert not torch.allclose(knots[-1], own[name].quantile(0.95), atol=1e-4)


def test_a_mirrored_scan_has_the_grain_it_had() -> None:
    images = (torch.rand(6, 1, 24, 32, generator=torch.Generator().manual_seed(0)) * 100 + 60).round() * LEVEL

    found = mirrored(images, seed=3)

    gains = (found / images.flip(3)).median(3).values.median(2).values[..., None, None]
    assert on_grid(found)
    assert float((found - images.flip(3) * gains).abs().max()) < 1.1 * LEVEL
    assert float(gains.std()) > 0.02


def test_where_no_softened_attack_succeeds_d_is_one_network(site: Path, fitted: fitting.Fitted) -> None:
    profile = Profile.load(site / "profile.toml")
    probe = fitted.ensemble.probe
    images = data.load(site / "data.npz", profile).train.images[:60]

    class Stubborn(Workbench):
        """Of whose attacks only those on the scans, along the gradient itself, succeed."""

        def _simulated(self, unit: Tensor, seed: int, family: Family, guide: Model | None = None) -> Attacked:
            found = super()._simulated(unit, seed, family, guide)
            return found if seed < 103 else Attacked(found.images[:0], found.sources[:0])

    bench = Stubborn(probe.reference, profile, torch.device("cpu"), 0, lambda _stage, _share: None)
    material = bench.material(probe, images)

    assert material.wider is None
    assert len(GradientResidual.fit(material).state()["knots"]) == 1
