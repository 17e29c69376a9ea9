"""The denoising stage passes where every denoised image is read as the raw one, and looks in the grey zone only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from gateway.case import Case, Evidence
from gateway.deadline import Deadline
from gateway.finding import Finding, GatewayReason, Outcome
from gateway.profile import Profile
from gateway.stages.denoising import DenoisingStage

RATE, GREY_P = 0.01, 0.05


def profile(task: str, classes: str = '["a", "b", "c"]') -> Profile:
    return Profile.from_toml(
        f'name="m"\nversion="1"\ntask="{task}"\nclasses={classes}\n'
        '[input]\nname="x"\nlayout="NCHW"\nchannels=1\nsize=[2,2]\nrange=[0,1]\n'.encode()
    )


@pytest.fixture
def look(make_case: Callable[..., Case]) -> Callable[..., Finding]:
    """The finding on logits of the raw image and of its denoised forms."""

    def run(raw: list[float], *denoised: list[float], p_value: float = 0.02, used: Profile | None = None) -> Finding:
        outputs = {f"denoiser {place}": np.array(each, np.float32) for place, each in enumerate(denoised)}
        image = np.zeros((1, 1, 2, 2), np.float32) if denoised else None
        evidence = Evidence(1.0, p_value, {}, {}, np.array(raw, np.float32), outputs, image)
        stage = DenoisingStage(used or profile("multiclass"), false_positive_rate=RATE, grey_p=GREY_P)
        return stage.run(replace(make_case(findings=()), evidence=evidence), Deadline.after(60.0)).findings[-1]

    return run


def test_the_same_class_passes_whatever_its_lead(look: Callable[..., Finding]) -> None:
    assert look([0, 3, 1], [0, 0.2, 0.1], [-5, 9, 8]).outcome is Outcome.PASSED


def test_one_denoiser_that_reads_otherwise_is_enough(look: Callable[..., Finding]) -> None:
    finding = look([0, 3, 1], [0, 3, 1], [0, 1, 3])
    assert (finding.outcome, finding.reason) == (Outcome.FAILED, GatewayReason.SUSPECT)
    assert "denoiser 1" in finding.detail
    assert "denoiser 0" not in finding.detail


@pytest.mark.parametrize(
    ("denoised", "outcome"), [([4, -1, 1], Outcome.PASSED), ([4, 1, 1], Outcome.FAILED), ([4, -1, -1], Outcome.FAILED)]
)
def test_a_multilabel_model_must_name_the_same_set(
    denoised: list[float], outcome: Outcome, look: Callable[..., Finding]
) -> None:
    assert look([2, -3, 1], denoised, used=profile("multilabel")).outcome is outcome


def test_one_label_alone_is_the_last_of_its_two_logits(look: Callable[..., Finding]) -> None:
    """Detectors see a single logit against zero."""
    single = profile("multilabel", '["a"]')
    assert look([0, 2], [0, 1], used=single).outcome is Outcome.PASSED
    assert look([0, 2], [0, -1], used=single).outcome is Outcome.FAILED


@pytest.mark.parametrize(("p_value", "side"), [(0.01, "below"), (0.0500001, "above")])
def test_outside_the_grey_zone_nothing_is_compared(p_value: float, side: str, look: Callable[..., Finding]) -> None:
    finding = look([0, 3, 1], [9, 0, 0], p_value=p_value)
    assert finding.outcome is Outcome.PASSED
    assert side in finding.detail


def test_a_missing_denoised_image_is_no_pass(look: Callable[..., Finding]) -> None:
    finding = look([0, 3, 1])
    assert (finding.outcome, finding.reason) == (Outcome.INDETERMINATE, GatewayReason.DETECTOR_ERROR)
