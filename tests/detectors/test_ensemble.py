"""The shared pass, the detectors, the three channels and the artefact, on a small untrained but real model."""

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from detectors import registry
from detectors.artifact import MANIFEST, Artefact
from detectors.calibration import ConformalCalibration, ParetoTail, TailCalibration
from detectors.denoisers.dncnn import DnCNN
from detectors.denoisers.median import Median
from detectors.detector import Detector, Score
from detectors.ensemble import GRADIENT, ROBUST, SENSITIVE, WEIGHTS, Channel, Ensemble, Member, join, loudest
from detectors.errors import ArtefactError, ConversionError, DetectorError, InputError, NotFittedError
from detectors.material import Material
from detectors.methods.fusion import Fusion, features
from detectors.methods.gradient_residual import GradientResidual
from detectors.methods.shifts import PredictionShift
from detectors.methods.twins import COPIED_TWIN, SMALL_TWIN, CopiedTwin, TwinDisagreement
from detectors.methods.uad import FeatureDensity
from detectors.models.outputs import Activation, margin
from detectors.models.reference import Reference
from detectors.models.small import SmallTwin
from detectors.neighbours.defaults import default_neighbours
from detectors.observation import Needs, Observation, Signal, Span
from detectors.probe import Probe
from detectors.testing import check_detector

SPAN = Span((-1.0,), (1.0,))
EVERYTHING = Needs(frozenset(Signal), default_neighbours())
CPU = torch.device("cpu")


class Net(nn.Module):
    def __init__(self, activation: str) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU())
        self.head, self.activation = nn.Linear(8, 3), activation

    def forward(self, x: Tensor) -> Tensor:
        logits = self.head(self.body(x).mean((2, 3))) * 20
        return torch.softmax(logits, 1) if self.activation == "softmax" else logits


def exported(activation: str = "none") -> bytes:
    torch.manual_seed(5)
    file = io.BytesIO()
    torch.onnx.export(
        Net(activation).eval(), (torch.rand(2, 1, 16, 16),), file, dynamo=False, opset_version=17,
        input_names=["image"], output_names=["answer"], dynamic_axes={"image": {0: "n"}},
    )  # fmt: skip
    return file.getvalue()


def scans(count: int, seed: int) -> Tensor:
    """(N, 1, 16, 16) from -1 to 1."""
    return torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture(scope="module")
def model() -> bytes:
    return exported()


@pytest.fixture(scope="module")
def probe(model: bytes) -> Probe:
    reference = Reference.from_onnx(model)
    torch.manual_seed(1)
    twins = {
        COPIED_TWIN: CopiedTwin(Reference.from_onnx(model), Activation.NONE, SPAN).eval(),
        SMALL_TWIN: SmallTwin(1, 3, width=4).eval().requires_grad_(False),
    }
    with torch.no_grad():
        for parameter in twins[COPIED_TWIN].parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return Probe(
        reference, twins, reference.tap_names,
        activation=Activation.NONE, span=SPAN, size=(16, 16),
    )  # fmt: skip


@pytest.fixture(scope="module")
def ensemble(probe: Probe) -> Ensemble:
    """Everything fitted, on noise: the numbers mean nothing, the parts are the real ones."""
    clean, other = probe.observe(scans(320, 1), EVERYTHING), probe.observe(scans(60, 2), EVERYTHING)
    assert clean.input_gradient is not None
    assert other.input_gradient is not None
    shown = [
        torch.cat(pair)
        for pair in ((clean.images[:32], other.images), (clean.input_gradient[:32], other.input_gradient))
    ]
    detectors: list[Detector] = [TwinDisagreement(COPIED_TWIN), TwinDisagreement(SMALL_TWIN)]
    detectors += [PredictionShift(neighbour) for neighbour in default_neighbours()]
    detectors += [
        Fusion.of(features(clean), features(clean), features(other) + 1),
        FeatureDensity.of(clean.twin_features[COPIED_TWIN], clean.groups, 3),
        GradientResidual.trained(
            *shown, torch.arange(len(shown[0])) >= 32, [len(shown[0])], calm=32, seed=0, device=CPU
        ),
    ]
    homes = {COPIED_TWIN: ROBUST, SMALL_TWIN: ROBUST, "fusion": SENSITIVE, "gradient_residual": GRADIENT}
    scores = {each.name: each.score(clean).values for each in detectors}
    members = [
        Member(
            each, TailCalibration.fit(scores[each.name]), ConformalCalibration.fit(scores[each.name], 0.01),
            homes.get(each.name),
        )
        for each in detectors
    ]  # fmt: skip
    channels = [
        Channel(name, weight, ParetoTail.fit(loudest(members, name, scores))) for name, weight in WEIGHTS.items()
    ]
    return Ensemble(probe, members, channels, ConformalCalibration.fit(join(members, channels, scores), 0.01))


def facts(model: bytes) -> dict[str, Any]:
    names = "created scanward torch data_sha256 n_fit n_a n_b fpr precision gradients conversion_max_abs_diff measured"
    made: dict[str, Any] = dict.fromkeys(names.split(), 0)
    return made | {"model_sha256": hashlib.sha256(model).hexdigest(), "profile_sha256": "ab" * 32}


@pytest.fixture(scope="module")
def denoiser() -> DnCNN:
    clean = SPAN.to_unit(scans(2, 3))[..., :8, :8]
    return DnCNN.fit(clean, clean, span=SPAN, seed=0, device=CPU)


@pytest.fixture
def written(tmp_path: Path, ensemble: Ensemble, denoiser: DnCNN, model: bytes) -> tuple[Path, bytes]:
    return tmp_path, Artefact.write(tmp_path, ensemble, {"median": Median(), "dncnn": denoiser}, facts(model))


def test_one_pass_sees_what_separate_passes_see(probe: Probe) -> None:
    images = scans(4, 7)
    seen = probe.observe(images, EVERYTHING)

    logits = probe.reference(images)
    assert torch.equal(seen.logits, logits)
    for neighbour in default_neighbours():
        expected = probe.reference(SPAN.from_unit(neighbour(SPAN.to_unit(images))))
        assert torch.allclose(seen.neighbours[neighbour.name], expected, atol=1e-4)
    leaf = SPAN.to_unit(images).requires_grad_()
    lead = margin(probe.reference(SPAN.from_unit(leaf)), seen.decision).sum()
    assert seen.input_gradient is not None
    assert torch.allclose(seen.input_gradient, torch.autograd.grad(lead, leaf)[0], atol=1e-4)
    assert [tuple(value.shape) for value in seen.features.values()] == [(4, 6), (4, 8), (4, 8)]


def test_only_what_is_needed_is_computed(probe: Probe) -> None:
    seen = probe.observe(scans(2, 8), Needs())

    assert not seen.features
    assert not seen.neighbours
    assert not seen.twins
    assert seen.input_gradient is None


def test_probabilities_are_turned_back_into_logits() -> None:
    bare, soft = Reference.from_onnx(exported()), Reference.from_onnx(exported("softmax"))
    parts: dict[str, Any] = {"twins": {}, "taps": (), "span": SPAN, "size": (16, 16)}
    images = scans(3, 9)

    plain = Probe(bare, activation=Activation.NONE, **parts).observe(images, Needs()).logits
    undone = Probe(soft, activation=Activation.SOFTMAX, **parts).observe(images, Needs()).logits

    classes = plain.argmax(1)
    assert torch.allclose(margin(plain, classes), margin(undone, classes), atol=1e-2)


def test_the_graph_reaches_the_pixels(ensemble: Ensemble) -> None:
    images = scans(3, 10).requires_grad_()
    seen = ensemble.probe.observe(images, ensemble.deciding_needs, differentiable=True)

    (gradient,) = torch.autograd.grad(ensemble.statistic(seen).sum(), images)

    assert bool(gradient.isfinite().all())
    assert bool((gradient.abs().amax((1, 2, 3)) > 0).any())


def test_every_detector_keeps_the_contract(ensemble: Ensemble) -> None:
    for member in ensemble.members:
        check_detector(registry.method(member.detector.name), member.detector, ensemble.probe)


class Forgetful:
    """A detector that breaks one promise at a time."""

    name, version = "forgetful", "1"
    needs = Needs()

    def __init__(self, score: Callable[[Observation], Tensor]) -> None:
        self._score = score

    @classmethod
    def fit(cls, _material: Material) -> "Forgetful":
        return cls(lambda seen: seen.logits[:, 0])

    def score(self, seen: Observation) -> Score:
        return Score(self.name, self._score(seen))

    def state(self) -> dict[str, Tensor]:
        return {}

    @classmethod
    def from_state(cls, _state: dict[str, Tensor]) -> "Forgetful":
        return cls(lambda seen: seen.logits[:, 1])


@pytest.mark.parametrize(
    ("score", "sentence"),
    [
        (lambda seen: seen.logits, "one finite score"),
        (lambda seen: seen.logits[:, 0] * torch.nan, "one finite score"),
        (lambda seen: seen.logits[:, 0] - seen.logits[:, 0].mean(), "other company"),
        (lambda seen: seen.logits[:, 0].detach(), "loses the graph"),
        (lambda seen: seen.logits[:, 0], "after its state"),
    ],
)
def test_a_broken_promise_is_named(probe: Probe, score: Callable[[Observation], Tensor], sentence: str) -> None:
    with pytest.raises(DetectorError, match=sentence):
        check_detector(Forgetful, Forgetful(score), probe)


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "three axes": (lambda: torch.zeros(1, 16, 16), r"\(N, C, H, W\)"),
    "no image": (lambda: torch.zeros(0, 1, 16, 16), "no empty axis"),
    "other size": (lambda: torch.zeros(1, 1, 16, 17), "the model takes"),
    "colour": (lambda: torch.zeros(1, 3, 16, 16), "the model takes"),
    "half precision": (lambda: torch.zeros(1, 1, 16, 16, dtype=torch.float16), "float32"),
    "bytes": (lambda: torch.zeros(1, 1, 16, 16, dtype=torch.uint8), "float32"),
    "another device": (lambda: torch.zeros(1, 1, 16, 16, device="meta"), "lie on meta, the models on cpu"),
    "no tensor": (lambda: np.zeros((1, 1, 16, 16), np.float32), "a tensor, not ndarray"),
    "not a number": (lambda: torch.full((1, 1, 16, 16), torch.nan), "not finite"),
    "infinite": (lambda: torch.full((1, 1, 16, 16), torch.inf), "not finite"),
}


@pytest.mark.parametrize("case", BAD)
def test_images_that_no_detector_may_look_at_are_refused(ensemble: Ensemble, case: str) -> None:
    build, sentence = BAD[case]
    with pytest.raises(InputError, match=sentence):
        ensemble.examine(build())
    with pytest.raises(InputError, match=sentence):
        ensemble.probe.observe(build(), Needs())


@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0])
def test_constant_images_are_examined(ensemble: Ensemble, value: float) -> None:
    found = ensemble.examine(torch.full((2, 1, 16, 16), value))

    assert bool(found.p_value.isfinite().all())
    assert all(bool(score.isfinite().all()) for score in found.scores.values())


def test_p_values_do_not_depend_on_the_batch(ensemble: Ensemble) -> None:
    images = scans(5, 11)
    whole = ensemble.examine(images)
    alone = torch.cat([ensemble.examine(image[None]).p_value for image in images])

    assert torch.allclose(whole.p_value, alone, atol=0.01)
    assert set(whole.p_values) == {member.detector.name for member in ensemble.members}


def test_either_channel_alone_raises_the_alarm(ensemble: Ensemble) -> None:
    calm = {member.detector.name: torch.full((1,), -1e3) for member in ensemble.members}
    for name in (COPIED_TWIN, SMALL_TWIN, "fusion"):
        loud = calm | {name: torch.full((1,), 1e4)}

        assert float(ensemble.conformal.p_value(join(ensemble.members, ensemble.channels, loud))) <= 0.01


def test_reported_members_weigh_nothing(ensemble: Ensemble) -> None:
    calm = {member.detector.name: torch.full((1,), -1e3) for member in ensemble.members}
    loud = calm | {"uad": torch.full((1,), 1e9), "jpeg75": torch.full((1,), 1e9)}

    assert torch.equal(join(ensemble.members, ensemble.channels, calm), join(ensemble.members, ensemble.channels, loud))


def test_a_score_that_is_not_finite_is_an_error_and_never_a_pass(ensemble: Ensemble) -> None:
    broken = Forgetful(lambda seen: seen.logits[:, 0] * torch.nan)
    first = ensemble.members[0]
    members = [Member(broken, first.tail, first.conformal, None), *ensemble.members]

    with pytest.raises(DetectorError, match="forgetful gave a score that is not finite"):
        Ensemble(ensemble.probe, members, ensemble.channels, ensemble.conformal).examine(scans(1, 12))


def test_an_ensemble_without_a_staffed_channel_is_refused(ensemble: Ensemble) -> None:
    with pytest.raises(NotFittedError, match="channel"):
        Ensemble(ensemble.probe, [], ensemble.channels, ensemble.conformal)
    with pytest.raises(NotFittedError, match="channel"):
        Ensemble(ensemble.probe, ensemble.members, [], ensemble.conformal)


def test_an_artefact_gives_the_same_ensemble_again(
    written: tuple[Path, bytes], ensemble: Ensemble, model: bytes
) -> None:
    directory, manifest = written
    loaded = Artefact.load(directory, manifest, model, "ab" * 32, CPU)
    images = scans(6, 13)

    before, after = ensemble.examine(images), loaded.ensemble.examine(images)

    assert torch.allclose(before.p_value, after.p_value, atol=0.01)
    for name, scores in before.scores.items():
        assert torch.allclose(scores, after.scores[name], rtol=1e-3, atol=1e-3), name
    assert set(loaded.denoisers) == {"median", "dncnn"}
    assert manifest == (directory / MANIFEST).read_bytes()
    weights = {name: entry["weight"] for name, entry in loaded.manifest["detectors"].items()}
    assert weights["twinM"] == weights["twinS"] == WEIGHTS[ROBUST]
    assert weights["uad"] == 0


def changed(manifest: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    facts = json.loads(manifest)
    change(facts)
    return json.dumps(facts).encode()


TAMPERED: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "other model": (lambda m: m.update(model_sha256="00"), "another model"),
    "other profile": (lambda m: m.update(profile_sha256="00"), "another profile"),
    "other schema": (lambda m: m.update(schema=3), "schema"),
    "lost key": (lambda m: m.pop("fpr"), "lacks"),
    "climbs out": (lambda m: m["detectors"]["uad"].update(file="../uad.safetensors"), "not a file name"),
    "absolute": (lambda m: m["detectors"]["uad"].update(file="/etc/passwd"), "not a file name"),
    "missing file": (lambda m: m["detectors"]["uad"].update(file="none.safetensors"), "missing"),
    "other digest": (lambda m: m["detectors"]["uad"].update(sha256="00"), "not the file that was fitted"),
    "swapped file": (lambda m: m["detectors"].update(uad=m["detectors"]["fusion"]), "uad"),
    "lost detector": (lambda m: m["detectors"].pop("twinM"), "other detectors"),
    "no table": (lambda m: m.update(detectors=[]), "file and a digest"),
    "better promise": (lambda m: m.update(guarantee="marginal"), "another guarantee"),
    "other version": (lambda m: m["detectors"]["fusion"].update(version="0"), "version 0"),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_an_artefact_that_was_changed_is_refused(written: tuple[Path, bytes], model: bytes, case: str) -> None:
    change, sentence = TAMPERED[case]
    with pytest.raises((ArtefactError, NotFittedError), match=sentence):
        Artefact.load(written[0], changed(written[1], change), model, "ab" * 32, CPU)


def test_a_changed_or_linked_file_is_refused(written: tuple[Path, bytes], model: bytes, tmp_path: Path) -> None:
    directory, manifest = written
    weights = directory / "twinM.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ArtefactError, match="not the file that was fitted"):
        Artefact.load(directory, manifest, model, "ab" * 32, CPU)
    weights.unlink()
    (tmp_path / "elsewhere").write_bytes(whole)
    weights.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtefactError, match="not a regular file"):
        Artefact.load(directory, manifest, model, "ab" * 32, CPU)


@pytest.mark.parametrize("junk", [b"", b"[]", b"{}", b"\xff", b"[" * 100_000])
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, model: bytes, junk: bytes) -> None:
    with pytest.raises(ArtefactError):
        Artefact.load(tmp_path, junk, model, "ab" * 32, CPU)


def test_an_artefact_for_a_model_that_cannot_be_read_is_refused(written: tuple[Path, bytes]) -> None:
    def other(m: dict[str, Any]) -> None:
        m["model_sha256"] = hashlib.sha256(b"junk").hexdigest()

    with pytest.raises(ConversionError):
        Artefact.load(written[0], changed(written[1], other), b"junk", "ab" * 32, CPU)
