"""The contract of a detector and of its method, as checks that anyone who writes one can run."""

import re
from dataclasses import replace

import onnx
import safetensors.torch
import torch
from onnx import helper, numpy_helper
from torch import Tensor
from torch.nn import functional

from detectors.detector import Detector, Method
from detectors.errors import DetectorError, InputError
from detectors.material import Material, Wider
from detectors.methods.twins import COPIED_TWIN, SMALL_TWIN, CopiedTwin
from detectors.models.outputs import Activation, margin
from detectors.models.reference import Reference
from detectors.models.small import SmallTwin
from detectors.observation import LEVEL, Signal, Span
from detectors.perturb import ascend
from detectors.probe import Probe, Twin

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
    before = [values.clone() for values in _everything(material)]
    detector, again = method.fit(material), method.fit(material)  # (1)
    if not _same(detector.state(), again.state()):
        raise DetectorError(f"{method.name} is another after it was fitted again on the same material")
    if not all(torch.equal(old, new) for old, new in zip(before, _everything(material), strict=True)):  # (2)
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
    (4) its score keeps the graph: attacks on a detector that loses it would be blind
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


def small_material(scans: int = 120, seed: int = 0) -> Material:
    """Material to check a method on where there is no model and no data set; takes a second.

    A small untrained network, read from a file as a protected model is, two twins of it that nobody hardened, and noise
    for scans. What detectors say of it means nothing; whether they keep their promises can be seen.

    Args:
        scans: clean ones, 32 x 32, grey; attacks are as many or fewer, since only successful ones are kept.
        seed: of the network and of everything that is drawn.
    """
    draw, span, size = torch.Generator().manual_seed(seed), Span((-1.0,), (1.0,)), (32, 32)
    clean = (torch.rand(scans, 1, *size, generator=draw) * 255).round() * LEVEL
    reference = Reference.from_onnx(_untrained(span.from_unit(clean), draw))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        small = SmallTwin(1, 3, width=4).eval().requires_grad_(False)
    twins: dict[str, Twin] = {COPIED_TWIN: CopiedTwin(reference, Activation.NONE, span).eval(), SMALL_TWIN: small}
    probe = Probe(reference, twins, reference.tap_names, activation=Activation.NONE, span=span, size=size)

    def answers(unit: Tensor) -> Tensor:
        return probe.logits(reference(span.from_unit(unit)))

    with torch.no_grad():
        decided = answers(clean).argmax(1)
    attacked = ascend(
        clean, lambda unit: -margin(answers(unit), decided), eps=8 * LEVEL, steps=5, size=2 * LEVEL, low=0.0, high=1.0,
        generator=None,
    )  # fmt: skip
    with torch.no_grad():
        sources = (answers(attacked).argmax(1) != decided).nonzero()[:, 0]
    wider = Wider(clean.flip(3), (attacked[sources] - clean[sources] / 2).clamp(0, 1))
    return Material(clean, clean * 0.98, attacked[sources], sources, probe, seed, wider=wider)


def _untrained(images: Tensor, draw: torch.Generator) -> bytes:
    """An ONNX file: two convolutions, their mean, and three classes between which these images lie."""
    first, second = (
        torch.randn(out, into, 3, 3, generator=draw) / (9 * into) ** 0.5 for out, into in ((8, 1), (12, 8))
    )
    deep = torch.relu(functional.conv2d(torch.relu(functional.conv2d(images, first, stride=2)), second, stride=2))
    found = deep.mean((2, 3))
    head = torch.randn(3, 12, generator=draw) / found.std(0).clamp_min(1e-6)
    weights = {"first": first, "second": second, "head": head, "bias": -(head @ found.mean(0))}
    nodes = [
        helper.make_node("Conv", ["image", "first"], ["a"], strides=[2, 2]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "second"], ["c"], strides=[2, 2]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("GlobalAveragePool", ["d"], ["e"]),
        helper.make_node("Flatten", ["e"], ["f"]),
        helper.make_node("Gemm", ["f", "head", "bias"], ["answer"], transB=1),
    ]
    shapes = {"image": ["n", *images.shape[1:]], "answer": ["n", 3]}
    given, wanted = (
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)] for name, shape in shapes.items()
    )
    held = [numpy_helper.from_array(value.numpy(), name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "untrained", given, wanted, held)
    made: bytes = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString()
    return made


def _filed(detector: Detector) -> dict[str, Tensor]:
    """The detector's state as an artefact's file gives it back."""
    state = detector.state()
    for name, value in state.items():
        if not isinstance(value, Tensor) or value.device.type != "cpu" or value.requires_grad:
            raise DetectorError(f"the state of {detector.name} holds {name!r}, which is no plain tensor on the CPU")
    written = {name: value.contiguous().clone() for name, value in state.items()}
    read: dict[str, Tensor] = safetensors.torch.load(safetensors.torch.save(written))
    return read


def _everything(material: Material) -> list[Tensor]:
    wider = [] if material.wider is None else [material.wider.benign, material.wider.attacked]
    return [material.clean, material.benign, material.attacked, material.sources, *wider]


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return set(one) == set(other) and all(torch.equal(value, other[name]) for name, value in one.items())


def _fewer(wider: Wider, count: int) -> Wider:
    return Wider(wider.benign[:count], wider.attacked[:count])


def _check_scarcity(method: Method, material: Material, count: int) -> None:
    """Fit on so many scans of each kind: that must be refused, unless the detector is the same with any."""
    some = replace(
        material, clean=material.clean[:count], benign=material.benign[:count], attacked=material.attacked[:count],
        sources=torch.zeros_like(material.sources[:count]),
        wider=None if material.wider is None else _fewer(material.wider, count),
    )  # fmt: skip
    try:
        detector = method.fit(some)
    except InputError:
        return
    except Exception as error:
        raise DetectorError(f"{method.name}, fitted on {count} scans, raises {error!r} and no InputError") from error
    if not _same(detector.state(), method.fit(material).state()):
        raise DetectorError(f"{method.name} is fitted on {count} scans without a word; that is an InputError")
