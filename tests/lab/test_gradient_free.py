"""A model that cannot be rebuilt is fitted, measured and served without gradients, and everybody is told."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from detectors.artifact import Artefact
from detectors.errors import ConversionError, InputError
from detectors.heat import between
from detectors.methods.twins import Hardening
from detectors.models.answers import AnswersOnly
from detectors.models.kinds import answering, rebuilt
from detectors.models.reference import Reference
from detectors.observation import Needs, Signal
from gateway.profile import Profile
from lab import fitting
from lab.data import DataError

QUICK = Hardening(1.0, 6.0, 72, 4e-3, batch=16)


@pytest.fixture(scope="module")
def opaque(site: Path) -> bytes:
    """The model of the site with an operator at its end that changes nothing, and that no table has."""
    proto = onnx.load_model_from_string((site / "model.onnx").read_bytes())
    (answer,) = proto.graph.output
    last = next(node for node in proto.graph.node if answer.name in node.output)
    last.output[list(last.output).index(answer.name)] = "before"
    proto.graph.node.append(helper.make_node("Shrink", ["before"], [answer.name], name="odd", lambd=0.0, bias=0.0))
    return bytes(proto.SerializeToString())


@pytest.fixture(scope="module")
def blind(site: Path, opaque: bytes, profile: Profile, parts: fitting.Parts) -> fitting.Fitted:
    return fitting.fit(opaque, profile, parts, site / "blind", fpr=0.01, key=None, seed=0, recipes=(QUICK, QUICK))


def test_the_artefact_says_that_it_is_gradient_free_and_why(blind: fitting.Fitted) -> None:
    facts = json.loads(blind.manifest)

    assert facts["gradients"] is False
    assert facts["conversion_max_abs_diff"] is None
    assert blind.answers_only is not None
    assert "operator Shrink, node 'odd'" in blind.answers_only
    assert set(facts["detectors"]) == {"twinS", "fusion", "uad", "jpeg75", "median3", "rotation3"}
    assert sum(entry["weight"] for name, entry in facts["detectors"].items() if name != "uad") == pytest.approx(1)


def test_who_knows_the_fusion_cannot_be_met_without_a_gradient(
    opaque: bytes, profile: Profile, parts: fitting.Parts, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="rounds of the fusion need the model's gradient"):
        fitting.fit(opaque, profile, parts, tmp_path, fpr=0.01, key=None, seed=0, fusion_rounds=1)


def test_it_still_flags_attacks_and_few_clean_scans(blind: fitting.Fitted) -> None:
    """Attacks follow a network that was taught by the model's answers, so fewer of them succeed."""
    found = blind.measured["pgd"]["8"]

    assert found["successes"] > 5
    assert found["tpr"]["ensemble"]["rate"] > 0.5
    assert blind.measured["fpr"]["ensemble"]["rate"] <= 0.1


def test_what_was_written_is_what_was_fitted(
    site: Path, blind: fitting.Fitted, opaque: bytes, parts: fitting.Parts
) -> None:
    profile = Profile.load(site / "profile.toml")

    loaded = Artefact.load(site / "blind", blind.manifest, opaque, profile.sha256, torch.device("cpu")).ensemble

    assert not loaded.probe.reference.gradients
    before, after = (each.examine(parts.test.images) for each in (blind.ensemble, loaded))
    assert torch.allclose(before.p_value, after.p_value, atol=0.02)


def test_it_answers_as_the_served_model_does(site: Path, opaque: bytes, parts: fitting.Parts) -> None:
    reference = answering(opaque)

    expected = Reference.from_onnx((site / "model.onnx").read_bytes())(parts.test.images)

    assert torch.allclose(reference(parts.test.images), expected, atol=1e-4)


def test_nobody_gets_a_gradient_or_a_feature_from_it(blind: fitting.Fitted, parts: fitting.Parts) -> None:
    probe = blind.ensemble.probe

    with pytest.raises(ConversionError, match="no input gradient"):
        probe.observe(parts.test.images, Needs(frozenset({Signal.INPUT_GRADIENT})))
    with pytest.raises(InputError, match="answers alone"):
        probe.reference.forward_with_taps(parts.test.images, ["somewhere"])
    with pytest.raises(ConversionError, match="no copy"):
        probe.reference.load_state_dict({})


def test_a_heat_map_is_drawn_by_exchanging_squares(blind: fitting.Fitted, parts: fitting.Parts) -> None:
    images = parts.test.images[:2]
    denoised = blind.denoisers["median"](images)

    shown = between(blind.ensemble.probe, images, denoised)

    assert shown.shape == (2, 32, 32)
    assert bool((shown >= 0).all())
    assert float(shown.max()) > 0


@pytest.mark.parametrize("answer", [torch.zeros(1, 2), torch.full((2, 2), torch.nan), torch.tensor(1.0)])
def test_an_answer_that_is_none_is_refused(answer: torch.Tensor) -> None:
    """Whoever answers may be a server on the other end of a line."""
    reference = AnswersOnly(lambda _images: answer, "scores")

    with pytest.raises(ConversionError, match="one finite answer an image"):
        reference(torch.zeros(2, 1, 4, 4))


def test_what_is_forbidden_is_not_run_for_answers_either(opaque: bytes) -> None:
    proto = onnx.load_model_from_string(opaque)
    proto.graph.node[-1].domain = "com.acme"
    proto.opset_import.append(helper.make_opsetid("com.acme", 1))
    custom = proto.SerializeToString()

    for way in (rebuilt, answering):
        with pytest.raises(ConversionError, match=r"com\.acme"):
            way(custom)


@pytest.mark.parametrize("what", ["operator", "data"])
def test_what_is_forbidden_is_not_run_inside_a_branch_either(what: str) -> None:
    """onnxruntime would open the file that a branch names."""
    weight = numpy_helper.from_array(np.ones(1, np.float32), "w")
    if what == "data":
        weight.data_location = TensorProto.EXTERNAL
        weight.external_data.add(key="location", value="weights.bin")
    node = helper.make_node(
        "Add" if what == "data" else "Fancy", ["x", "w"], ["z"], domain="" if what == "data" else "a"
    )
    out = helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 2])
    side = helper.make_graph([node], "side", [], [out], [weight])
    always = numpy_helper.from_array(np.array(True), "always")
    fork = helper.make_node("If", ["always"], ["y"], then_branch=side, else_branch=side)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in ("x", "y")]
    whole = helper.make_graph([fork], "g", ends[:1], ends[1:], [always])
    model = helper.make_model(whole, opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("a", 1)])

    with pytest.raises(ConversionError, match="refused"):
        answering(model.SerializeToString())
