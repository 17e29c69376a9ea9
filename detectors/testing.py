"""The contract of a detector, as a check that anyone who writes one can run."""

import torch

from detectors.detector import Detector
from detectors.errors import DetectorError
from detectors.observation import Signal
from detectors.probe import Probe


def check_detector(detector: Detector, probe: Probe, *, seed: int = 0) -> None:
    """Check what every detector promises.

    (1) it has a name, a version, and needs signals that exist
    (2) it gives one finite score an image, for one image and for several
    (3) an image's score does not depend on its neighbours in the batch
    (4) it keeps the graph, or its score does not depend on the pixels in a way that torch can see
    (5) its state gives the same detector again

    Args:
        detector: a fitted detector.
        probe: over any model that the detector was fitted for.
        seed: of the images.

    Raises:
        DetectorError: names the promise that is not kept.
    """
    if not detector.name or not detector.version:  # (1)
        raise DetectorError("a detector has a name and a version")
    if not all(isinstance(need, Signal) for need in detector.needs):
        raise DetectorError(f"{detector.name} needs something that is no signal")
    generator = torch.Generator().manual_seed(seed)
    device = next(probe.reference.parameters()).device
    unit = torch.rand(3, len(probe.span.low), *probe.size, generator=generator).to(device)
    images = probe.span.from_unit(unit)

    whole = detector.score(probe.observe(images, detector.needs))  # (2)
    if whole.detector != detector.name or whole.values.shape != (3,) or not bool(whole.values.isfinite().all()):
        raise DetectorError(f"{detector.name} does not give one finite score an image")
    alone = torch.cat([detector.score(probe.observe(one[None], detector.needs)).values for one in images])  # (3)
    if not torch.allclose(whole.values, alone, rtol=1e-3, atol=1e-3):
        raise DetectorError(f"{detector.name} scores an image differently in other company")
    leaf = images.clone().requires_grad_(True)  # (4)
    values = detector.score(probe.observe(leaf, detector.needs, differentiable=True)).values
    if not values.requires_grad:
        raise DetectorError(f"{detector.name} loses the graph: attacks on it would be blind")
    again = type(detector).from_state(detector.state())  # (5)
    repeated = again.score(probe.observe(images, again.needs)).values
    if again.name != detector.name or not torch.equal(repeated, whole.values):
        raise DetectorError(f"{detector.name} is not the same after its state was saved")
