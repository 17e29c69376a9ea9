"""The contract of a detector, as a check that anyone who writes one can run."""

import torch

from detectors.detector import Detector, Method
from detectors.errors import DetectorError
from detectors.observation import Signal
from detectors.probe import Probe


def check_detector(method: Method, detector: Detector, probe: Probe, *, draw: int = 0) -> None:
    """Check what every detector promises.

    (1) it has a name and a version, and needs signals that exist
    (2) it gives one finite score an image, for one image and for several
    (3) an image's score does not depend on its neighbours in the batch
    (4) it keeps the graph, or its score does not depend on the pixels in a way that torch can see
    (5) its state gives the same detector again

    Args:
        method: what the detector was made by.
        detector: a fitted detector.
        probe: over any model that the detector was fitted for.
        draw: seed of the images.

    Raises:
        DetectorError: names the promise that is not kept.
    """
    if not detector.name or not method.version or method.name != detector.name:  # (1)
        raise DetectorError("a method has a name and a version, and a detector the name of its method")
    if not all(isinstance(need, Signal) for need in detector.needs.signals):
        raise DetectorError(f"{detector.name} needs something that is no signal")
    generator = torch.Generator().manual_seed(draw)
    device = probe.device
    unit = torch.rand(3, len(probe.span.low), *probe.size, generator=generator).to(device)
    images = probe.span.from_unit(unit)
    seeds = torch.arange(3, device=device)

    whole = detector.score(probe.observe(images, detector.needs, seeds=seeds))  # (2)
    if whole.detector != detector.name or whole.values.shape != (3,) or not bool(whole.values.isfinite().all()):
        raise DetectorError(f"{detector.name} does not give one finite score an image")
    alone = torch.cat(
        [
            detector.score(probe.observe(one[None], detector.needs, seeds=seed[None])).values
            for one, seed in zip(images, seeds, strict=True)
        ]
    )  # (3)
    if not torch.allclose(whole.values, alone, rtol=1e-3, atol=1e-3):
        raise DetectorError(f"{detector.name} scores an image differently in other company")
    leaf = images.clone().requires_grad_(True)  # (4)
    values = detector.score(probe.observe(leaf, detector.needs, seeds=seeds, differentiable=True)).values
    if not values.requires_grad:
        raise DetectorError(f"{detector.name} loses the graph: attacks on it would be blind")
    again = method.from_state(detector.state())  # (5)
    repeated = again.score(probe.observe(images, again.needs, seeds=seeds)).values
    if again.name != detector.name or not torch.equal(repeated, whole.values):
        raise DetectorError(f"{detector.name} is not the same after its state was saved")
