"""An ONNX file becomes a torch module with the same outputs and the same gradients."""

import copy
import io
from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from detectors.errors import ConversionError, InputError
from detectors.models.reference import Reference, conversion_difference


class Block(nn.Module):
    """Two convolutions and a way around them."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.Conv2d(b, b, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(b), nn.BatchNorm2d(b)])
        self.around = nn.Conv2d(a, b, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norms[0](self.first(x)))
        return torch.relu(self.norms[1](self.second(y)) + self.around(x))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 5, 2, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        self.blocks = nn.Sequential(Block(8, 12), Block(12, 16))
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.flatten(self.pool(self.blocks(self.stem(x))), 1))


class Dense(nn.Module):
    """Concatenation, average pooling, mean over space."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(7, 6, 3, padding=1)
        self.norm, self.pool, self.head = nn.BatchNorm2d(13), nn.AvgPool2d(2, 2), nn.Linear(13, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([x, torch.nn.functional.leaky_relu(self.a(x), 0.2)], 1)
        y = torch.cat([y, torch.nn.functional.hardswish(self.b(y))], 1)
        return self.head(self.pool(self.norm(y)).clamp(-1, 4).mean((2, 3)))


class UNet(nn.Module):
    """Down, up by transposed convolution and by resizing, with a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.low = nn.Conv2d(1, 6, 3, 2, 1), nn.Conv2d(6, 6, 3, 1, 1)
        self.norm, self.up, self.out = (
            nn.InstanceNorm2d(6, affine=True),
            nn.ConvTranspose2d(6, 4, 2, 2),
            nn.Conv2d(11, 2, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = torch.sigmoid(self.norm(self.low(torch.nn.functional.pad(self.down(x), (0, 0, 0, 0)))))
        wide = torch.nn.functional.interpolate(y, scale_factor=2.0, mode="bilinear", align_corners=False)
        near = torch.nn.functional.interpolate(x, scale_factor=0.5, mode="nearest")
        near = torch.nn.functional.interpolate(near, scale_factor=2.0, mode="nearest")
        return self.out(torch.cat([self.up(y), wide, near], 1))


class Attention(nn.Module):
    """One transformer block on patches, with a class token."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 16, 8, 8)
        self.token, self.places = nn.Parameter(torch.randn(1, 1, 16)), nn.Parameter(torch.randn(1, 17, 16))
        self.norms = nn.ModuleList([nn.LayerNorm(16), nn.LayerNorm(16)])
        self.qkv, self.out, self.head = nn.Linear(16, 48), nn.Linear(16, 16), nn.Linear(16, 3)
        self.wide = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))

    def forward(self, x: Tensor) -> Tensor:
        y = self.patches(x).flatten(2).transpose(1, 2)
        y = torch.cat([self.token.expand(y.shape[0], -1, -1), y], 1) + self.places
        q, k, v = self.qkv(self.norms[0](y)).reshape(y.shape[0], -1, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
        attended = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        y = y + self.out(attended.transpose(1, 2).flatten(2))
        y = y + self.wide(self.norms[1](y))
        return self.head(y[:, 0])


def scramble(module: nn.Module) -> nn.Module:
    """Weights and statistics that no two tensors share: exporters merge equal ones."""
    torch.manual_seed(3)
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            tensor.data = torch.randn(tensor.shape) * 0.3 + (1.0 if tensor.ndim == 1 else 0.0)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_var = torch.rand(part.num_features) + 0.5
    return module.eval()


def export(module: nn.Module, *, dynamo: bool, opset: int) -> bytes:
    file = io.BytesIO()
    images = torch.rand(2, 1, 32, 32)
    if dynamo:
        shapes = ({0: torch.export.Dim("n")},)
        program = torch.onnx.export(
            module, (images,), dynamo=True, opset_version=opset, dynamic_shapes=shapes, verbose=False
        )
        program.save(file)
    else:
        torch.onnx.export(
            module, (images,), file, dynamo=False, opset_version=opset, input_names=["x"], output_names=["y"],
            dynamic_axes={"x": {0: "n"}},
        )  # fmt: skip
    return file.getvalue()


SHAPES = {"residual": Residual, "dense": Dense, "unet": UNet, "attention": Attention}
EXPORTS = [(False, 13), (False, 17), (True, 18), (True, 20)]
CASES = [(shape, *how) for shape in SHAPES for how in EXPORTS if (shape, *how) != ("attention", False, 13)]
"""torch's older exporter writes fused attention from opset 14 on."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("shape", "dynamo", "opset"), CASES)
def test_outputs_and_gradients_are_those_of_the_original(shape: str, dynamo: bool, opset: int) -> None:
    module = scramble(SHAPES[shape]())
    model = export(module, dynamo=dynamo, opset=opset)
    images = torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(1))

    reference = Reference.from_onnx(model)
    mine, theirs = images.clone().requires_grad_(), images.clone().requires_grad_()
    out, original = reference(mine), module(theirs)
    out.square().sum().backward()
    original.square().sum().backward()

    assert mine.grad is not None
    assert theirs.grad is not None
    assert torch.allclose(out, original, rtol=1e-4, atol=1e-4)
    assert torch.allclose(mine.grad, theirs.grad, rtol=1e-3, atol=1e-3 * float(theirs.grad.abs().max()))
    assert conversion_difference(reference, model, images) < 1e-3 * float(original.abs().max())


@pytest.fixture(scope="module")
def residual() -> tuple[nn.Module, bytes]:
    module = scramble(Residual())
    return module, export(module, dynamo=False, opset=17)


def test_the_gradient_agrees_with_finite_differences(residual: tuple[nn.Module, bytes]) -> None:
    reference = Reference.from_onnx(residual[1]).double()
    images = torch.rand(1, 1, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(5)).requires_grad_()
    (gradient,) = torch.autograd.grad(reference(images)[0, 1], images)
    direction = torch.randn(images.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    small = 1e-6

    with torch.no_grad():
        rise = reference(images + small * direction)[0, 1] - reference(images - small * direction)[0, 1]

    assert float(rise / (2 * small)) == pytest.approx(float((gradient * direction).sum()), rel=1e-4)


def test_the_default_taps_are_the_last_map_and_its_mean(residual: tuple[nn.Module, bytes]) -> None:
    module, model = residual
    reference = Reference.from_onnx(model)
    images = torch.rand(2, 1, 32, 32)

    _, taps = reference.forward_with_taps(images, reference.tap_names)

    last, pooled = (taps[name] for name in reference.tap_names)
    expected = module.blocks(module.stem(images))  # type: ignore[operator]
    assert torch.allclose(last, expected, atol=1e-4)
    assert torch.allclose(pooled.flatten(1), expected.mean((2, 3)), atol=1e-4)


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
    module = scramble(Residual())
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
