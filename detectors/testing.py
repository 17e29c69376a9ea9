"""The contract of a detector and of its method, as checks that anyone who writes one can run."""

import re
from dataclasses import replace

import safetensors.torch
import torch
from torch import Tensor

from detectors.detector import Detector, Method
from detectors.errors import DetectorError, InputError
from detectors.material import Material
from detectors.observation import Signal
from detectors.probe import Probe

_NAME = re.compile(r"[A-Za-z0-9_]{1,64}")
"""What a detector may be called: its file in an artefact carries its name."""
_TOO_FEW = (1, 0)


def check_method(method: Method, material: Material, *, draw: int = 0) -> Detector:
    """Check what every method promises, and then its detector.

    (1) the same material gives the same detector
    (2) fitting leaves the material as it was
    (3) one scan and one attack are an `InputError`, and so are none, unless nothing is learned from them
    (4) the fitted detector keeps its own promises

    Args:
        method: what makes the detector.
        material: enough to fit on.
        draw: seed of the images on which the detector is checked.

    Returns:
        The detector.

    Raises:
        DetectorError: names the promise that is not kept.
    """
    before = [values.clone() for values in (material.clean, material.benign, material.attacked, material.sources)]
    detector, again = method.fit(material), method.fit(material)  # (1)
    if not _same(detector.state(), again.state()):
        raise DetectorError(f"{method.name} is another after it was fitted again on the same material")
    after = (material.clean, material.benign, material.attacked, material.sources)  # (2)
    if not all(torch.equal(old, new) for old, new in zip(before, after, strict=True)):
        raise DetectorError(f"{method.name} changes the material that it is fitted on")
    for count in _TOO_FEW:  # (3)
        _check_scarcity(method, material, count)
    check_detector(method, detector, material.probe, draw=draw)  # (4)
    return detector


def check_detector(method: Method, detector: Detector, probe: Probe, *, draw: int = 0) -> None:
    """Check what every fitted detector promises.

    (1) it has a name and a version, and needs signals that exist
    (2) it gives one finite score an image, for one image and for several, also for a constant one
    (3) an image's score does not depend on its neighbours in the batch
    (4) it keeps the graph, or its score does not depend on the pixels in a way that torch can see
    (5) its state is plain tensors on the CPU, and gives the same detector again after it lay in a file, on the device
        of the models

    Args:
        method: what the detector was made by.
        detector: a fitted detector.
        probe: over any model that the detector was fitted for.
        draw: seed of the images.

    Raises:
        DetectorError: names the promise that is not kept.
    """
    if not _NAME.fullmatch(detector.name) or not method.version or method.name != detector.name:  # (1)
        raise DetectorError(
            "a method has a version and a name of letters, digits and underscores, and its detector the same name"
        )
    if not all(isinstance(need, Signal) for need in detector.needs.signals):
        raise DetectorError(f"{detector.name} needs something that is no signal")
    generator = torch.Generator().manual_seed(draw)
    device = probe.device
    unit = torch.rand(3, len(probe.span.low), *probe.size, generator=generator).to(device)
    unit[2] = 0.5
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
    again = method.from_state({name: value.to(device) for name, value in _filed(detector).items()})  # (5)
    repeated = again.score(probe.observe(images, again.needs, seeds=seeds)).values
    if again.name != detector.name or not torch.equal(repeated, whole.values):
        raise DetectorError(f"{detector.name} is not the same after its state was saved")


def _filed(detector: Detector) -> dict[str, Tensor]:
    """The detector's state as an artefact's file gives it back."""
    state = detector.state()
    for name, value in state.items():
        if not isinstance(value, Tensor) or value.device.type != "cpu" or value.requires_grad:
            raise DetectorError(f"the state of {detector.name} holds {name!r}, which is no plain tensor on the CPU")
    written = {name: value.contiguous().clone() for name, value in state.items()}
    read: dict[str, Tensor] = safetensors.torch.load(safetensors.torch.save(written))
    return read


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return set(one) == set(other) and all(torch.equal(value, other[name]) for name, value in one.items())


def _check_scarcity(method: Method, material: Material, count: int) -> None:
    """Fit on so many scans of each kind: that must be refused, unless the detector is the same with any."""
    some = replace(
        material, clean=material.clean[:count], benign=material.benign[:count], attacked=material.attacked[:count],
        sources=torch.zeros_like(material.sources[:count]),
    )  # fmt: skip
    try:
        detector = method.fit(some)
    except InputError:
        return
    except Exception as error:
        raise DetectorError(f"{method.name}, fitted on {count} scans, raises {error!r} and no InputError") from error
    if not _same(detector.state(), method.fit(material).state()):
        raise DetectorError(f"{method.name} is fitted on {count} scans without a word; that is an InputError")
