"""An ONNX file becomes a torch module with the same outputs and the same gradients."""

import copy
import importlib.util
import io
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from detectors.errors import ConversionError, InputError
from detectors.models.reference import Reference, conversion_difference


def loaded(name: str) -> ModuleType:
    """A script of benchmarks/, as the module that the other scripts there import."""
    path = Path(__file__).parents[2] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


architectures, conversion = loaded("architectures"), loaded("conversion")
OLDER, NEWER = conversion.OLDER, conversion.NEWER
CASES = [
    case
    for place, shape in enumerate(architectures.SHAPES)
    for case in (
        (shape, OLDER, conversion.WRITTEN_FROM.get((shape, OLDER), 13)),
        (shape, OLDER, 17 if place % 2 else 20),
        (shape, NEWER, 18 if place % 2 else 20),
    )
]


@pytest.mark.parametrize(("shape", "exporter", "opset"), CASES)
def test_outputs_and_gradients_are_those_of_the_original(shape: str, exporter: str, opset: int) -> None:
    """A tenth of the cases of `python benchmarks/conversion.py`."""
    network = architectures.made(shape)

    found = conversion.compare(network, conversion.exported(network, exporter, opset))

    assert found.output < 1e-5
    assert found.gradient < 1e-5


@pytest.fixture(scope="module")
def residual() -> tuple[nn.Module, bytes]:
    network = architectures.made("ResNet")
    return network, conversion.exported(network, OLDER, 17)


def test_the_gradient_agrees_with_finite_differences(residual: tuple[nn.Module, bytes]) -> None:
    reference = Reference.from_onnx(residual[1]).double()
    images = torch.rand(1, 1, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(5)).requires_grad_()
    (gradient,) = torch.autograd.grad(reference(images)[0, 1], images)
    direction = torch.randn(images.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    small = 1e-6

    with torch.no_grad():
        rise = reference(images + small * direction)[0, 1] - reference(images - small * direction)[0, 1]

    assert float(rise / (2 * small)) == pytest.approx(float((gradient * direction).sum()), rel=1e-4)


def test_the_default_taps_end_with_the_last_map_and_its_mean(residual: tuple[nn.Module, bytes]) -> None:
    module, model = residual
    reference = Reference.from_onnx(model)
    images = torch.rand(2, 1, 32, 32)

    _, taps = reference.forward_with_taps(images, reference.tap_names)

    last, pooled = (taps[name] for name in reference.tap_names[-2:])
    expected = module.blocks(module.stem(images))  # type: ignore[operator]
    assert torch.allclose(last, expected, atol=1e-4)
    assert torch.allclose(pooled.flatten(1), expected.mean((2, 3)), atol=1e-4)


EARLY = {"ResNet": 3, "DenseNet": 3, "EfficientNet": 3, "ConvNeXt": 3, "ViT": 3, "Swin": 3, "U-Net": 1}
"""Under the skips of a U-Net only the first layers are an end that everything passes."""


@pytest.mark.parametrize("shape", EARLY)
def test_early_taps_are_values_through_which_everything_passes(shape: str) -> None:
    """What comes after is the same whichever way the tap came to be: its value alone decides the output."""
    network = architectures.made(shape)
    reference = Reference.from_onnx(conversion.exported(network, OLDER, 17))
    images = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(8)).requires_grad_()

    output, taps = reference.forward_with_taps(images, reference.tap_names)

    early = reference.tap_names[: EARLY[shape]]
    seed = torch.randn(output.shape, generator=torch.Generator().manual_seed(9))
    (whole,) = torch.autograd.grad(output, images, seed, retain_graph=True)
    for name in early:
        (at_tap,) = torch.autograd.grad(output, taps[name], seed, retain_graph=True)
        (through,) = torch.autograd.grad(taps[name], images, at_tap, retain_graph=True)
        assert torch.allclose(through, whole, rtol=1e-3, atol=1e-6), name
    assert set(early).isdisjoint(reference.tap_names[len(early) :])


def test_a_tap_that_no_node_gives_is_an_input_error(residual: tuple[nn.Module, bytes]) -> None:
    with pytest.raises(InputError, match="nowhere"):
        Reference.from_onnx(residual[1]).forward_with_taps(torch.rand(1, 1, 32, 32), ["nowhere"])


def test_the_reference_is_frozen_and_a_copy_can_be_trained(residual: tuple[nn.Module, bytes]) -> None:
    reference = Reference.from_onnx(residual[1])
    twin = copy.deepcopy(reference).requires_grad_(True)

    twin(torch.rand(2, 1, 32, 32)).sum().backward()

    assert not any(parameter.requires_grad for parameter in reference.parameters())
    assert all(parameter.grad is not None for parameter in twin.parameters())


@pytest.mark.filterwarnings("ignore")
def test_a_model_frozen_at_one_image_takes_a_batch() -> None:
    module = architectures.made("ResNet")
    file = io.BytesIO()
    torch.onnx.export(module, (torch.rand(1, 1, 32, 32),), file, dynamo=False, opset_version=17)
    images = torch.rand(4, 1, 32, 32)
    reference = Reference.from_onnx(file.getvalue())

    assert not reference.dynamic_batch
    assert torch.allclose(reference(images), module(images), atol=1e-4)
    assert conversion_difference(reference, file.getvalue(), images) < 1e-4


def graph(*nodes: onnx.NodeProto, initializers: tuple[onnx.TensorProto, ...] = (), domain: str = "") -> onnx.ModelProto:
    """A model of the given nodes from `x` to `y`."""
    image = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 1, 4, 4]) for name in ("x", "y")]
    made = helper.make_graph(list(nodes), "g", image[:1], image[1:], list(initializers))
    opsets = [helper.make_opsetid("", 18)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    return helper.make_model(made, opset_imports=opsets)


def external() -> onnx.ModelProto:
    weight = numpy_helper.from_array(np.ones((1, 1, 1, 1), np.float32), "w")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="/etc/passwd")
    return graph(helper.make_node("Conv", ["x", "w"], ["y"]), initializers=(weight,))


def old() -> onnx.ModelProto:
    model = graph(helper.make_node("Relu", ["x"], ["y"]))
    model.opset_import[0].version = 7
    return model


REFUSED: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "unknown operator": (lambda: graph(helper.make_node("NonZero", ["x"], ["y"], name="odd")), "NonZero, node 'odd'"),
    "custom operator": (
        lambda: graph(helper.make_node("Fancy", ["x"], ["y"], name="mine", domain="com.acme"), domain="com.acme"),
        "com.acme.Fancy, node 'mine'",
    ),
    "external data": (external, "'w' lies outside the file"),
    "ancient opset": (old, "opset 7"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_converted_is_named(case: str) -> None:
    build, sentence = REFUSED[case]
    with pytest.raises(ConversionError, match=sentence):
        Reference.from_onnx(build().SerializeToString())


@pytest.mark.parametrize("junk", [b"", b"not a model", b"\x08\x07"])
def test_bytes_that_are_no_model_are_refused(junk: bytes) -> None:
    with pytest.raises(ConversionError):
        Reference.from_onnx(junk)
