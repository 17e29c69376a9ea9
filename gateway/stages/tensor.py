"""The first two stages of a scan that came as a bare tensor: nobody vouches for it, and nothing is left to render."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gateway.case import Case, Image
from gateway.deadline import Deadline
from gateway.finding import Finding, GatewayReason, Outcome
from gateway.pixels.imaging import require_content
from gateway.pixels.unexaminable import UnexaminableError
from gateway.policy import SIGNATURE
from gateway.profile import Profile
from gateway.telemetry.metrics import Metrics
from signing import Reason

_SLACK = 1e-4
"""Of the profile's range: what 32-bit arithmetic on either side may add."""


class BareTensorStage:
    """Finds what there is to find about the origin of a tensor: it carries no signature, so it is unsigned.

    From a source that signs all it sends it is an object that was stripped of its signature, and of all the rest.
    """

    name = SIGNATURE
    requires: frozenset[str] = frozenset()
    provides: frozenset[str] = frozenset()

    def __init__(self, required_profile: str, metrics: Metrics) -> None:
        """`required_profile`: of the route's trust policy, under which the missing signature is counted."""
        self._required_profile = required_profile
        self._metrics = metrics

    def run(self, case: Case, deadline: Deadline) -> Case:
        """See `stage.Stage.run`."""
        reason = Reason.STRIPPED if case.scan.source.enrolled else Reason.UNSIGNED
        self._metrics.signature(Outcome.FAILED, reason, self._required_profile)
        return case.with_finding(Finding(self.name, Outcome.FAILED, reason, "a bare tensor carries no signature"))


class TensorImageStage:
    """Takes a tensor for the model's input where rendering could have made it, or says why it could not."""

    name = "preprocess"
    requires: frozenset[str] = frozenset()
    provides = frozenset({"image"})

    def __init__(self, model: str, profile: Profile, *, colour: bool = False) -> None:
        """Compare with the `profile` of the configured `model`; `colour`: whether its detectors were fitted on any."""
        self._model = model
        self._colour = colour
        self._profile = profile

    def run(self, case: Case, deadline: Deadline) -> Case:
        """See `stage.Stage.run`."""
        tensor = case.scan.tensor
        assert tensor is not None
        try:
            image = self.image_of(tensor)
        except UnexaminableError as error:
            return case.with_finding(Finding(self.name, Outcome.INDETERMINATE, error.reason, error.detail))
        return case.with_finding(
            Finding(self.name, Outcome.PASSED, Reason.OK, "one image as the model takes it"), image=image
        )

    def image_of(self, tensor: NDArray[np.float32]) -> Image:
        """What the model is shown; raises `UnexaminableError`."""
        self._require_possible(tensor)
        return Image(tensor, self._model)

    def _require_possible(self, tensor: NDArray[np.float32]) -> None:
        """The detectors were fitted on such images within the profile's range; others are not theirs to judge."""
        given = self._profile.input
        wanted = (1, given.channels, *given.size)
        if tensor.shape != wanted:
            shape = " x ".join(map(str, wanted))
            raise UnexaminableError(GatewayReason.WRONG_SIZE, f"the tensor is not of {shape}: one image a call")
        if not np.isfinite(tensor).all():
            raise UnexaminableError(GatewayReason.NOT_FINITE, "the tensor has values that are not finite")
        low, high = given.range
        means = np.asarray(given.mean or (0.0,) * given.channels, np.float32).reshape(1, -1, 1, 1)
        stds = np.asarray(given.std or (1.0,) * given.channels, np.float32).reshape(1, -1, 1, 1)
        light = (tensor * stds + means - low) / (high - low)
        if light.min() < -_SLACK or light.max() > 1.0 + _SLACK:
            detail = "the tensor has values outside the model's range"
            raise UnexaminableError(GatewayReason.UNSUPPORTED_IMAGE, detail)
        require_content(tensor)
        if not self._colour and np.ptp(light, axis=1).max() > _SLACK:
            detail = "the tensor's channels differ, and the detectors were fitted on grey images"
            raise UnexaminableError(GatewayReason.UNSUPPORTED_IMAGE, detail)
