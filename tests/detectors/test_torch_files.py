"""TorchScript and torch.export files become references too, and can do nothing but compute."""

from __future__ import annotations

import copy
import importlib.util
import io
import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detectors.errors import ConversionError, InputError
from detectors.models.kinds import Kind, difference, rebuilt


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
WAYS = {conversion.TRACED: Kind.TORCHSCRIPT, conversion.PROGRAM: Kind.EXPORTED}
IMAGES = torch.rand(3, 1, 64, 64, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("shape", architectures.SHAPES)
@pytest.mark.parametrize("way", WAYS)
def test_outputs_and_gradients_are_those_of_the_original(shape: str, way: str) -> None:
    network = architectures.made(shape)
    model = conversion.exported(network, way, 0)

    found = conversion.compare(network, model)

    assert Kind.of(model) is WAYS[way]
    assert found.output < 1e-5
    assert found.gradient < 1e-5


@pytest.fixture(scope="module")
def network() -> nn.Module:
    made: nn.Module = architectures.made("ResNet")
    return made


@pytest.fixture(scope="module", params=WAYS)
def model(network: nn.Module, request: pytest.FixtureRequest) -> bytes:
    written: bytes = conversion.exported(network, request.param, 0)
    return written


def test_the_default_taps_end_with_the_last_map_and_its_mean(network: Any, model: bytes) -> None:
    reference = rebuilt(model)

    _, taps = reference.forward_with_taps(IMAGES, reference.tap_names)

    *early, last, pooled = (taps[name] for name in reference.tap_names)
    assert len(early) == 3
    expected = network.blocks(network.stem(IMAGES))
    assert torch.allclose(last, expected, atol=1e-4)
    assert torch.allclose(pooled.flatten(1), expected.mean((2, 3)), atol=1e-4)


def test_a_tap_is_what_was_computed_and_not_what_was_written_over_it(network: Any) -> None:
    """The stem's activation works in place."""
    reference = rebuilt(conversion.exported(network, conversion.PROGRAM, 0))
    given = IMAGES.clone()

    _, taps = reference.forward_with_taps(given, ["batch_norm"])

    assert torch.allclose(taps["batch_norm"], network.stem[1](network.stem[0](IMAGES)), atol=1e-5)
    assert torch.equal(given, IMAGES)


def test_a_tap_that_no_call_gives_is_an_input_error(model: bytes) -> None:
    with pytest.raises(InputError, match="nowhere"):
        rebuilt(model).forward_with_taps(IMAGES, ["nowhere"])


def test_a_copy_can_be_trained_and_follows_the_statistics_of_batches(model: bytes) -> None:
    reference = rebuilt(model)
    twin = copy.deepcopy(reference)
    assert isinstance(twin, nn.Module)
    before = {name: value.clone() for name, value in twin.named_buffers()}

    twin.requires_grad_(True).train()
    twin(IMAGES).sum().backward()

    assert all(parameter.grad is not None for parameter in twin.parameters())
    assert any(not torch.equal(value, before[name]) for name, value in twin.named_buffers())
    assert torch.equal(reference(IMAGES), rebuilt(model)(IMAGES))


def test_two_readings_of_a_file_have_the_same_weights_by_name(model: bytes) -> None:
    """A twin's weights are stored by name."""
    one, other = rebuilt(model), rebuilt(model)
    assert isinstance(one, nn.Module)
    assert isinstance(other, nn.Module)

    mine, theirs = one.state_dict(), other.state_dict()

    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_the_difference_from_torchs_own_run_is_measured_where_there_is_one(model: bytes) -> None:
    apart = difference(rebuilt(model), model, IMAGES)

    assert (apart is None) == (Kind.of(model) is Kind.EXPORTED)
    assert apart is None or apart < 1e-5


def test_images_may_lie_in_memory_as_they_please() -> None:
    class Viewing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.Conv2d(2, 3, 3), nn.Linear(108, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.layer(x)
            return self.head(y.view(y.size(0), -1))

    network, images = Viewing().eval(), torch.rand(2, 2, 8, 8)
    with conversion.quietly():
        reference = rebuilt(saved(torch.jit.trace(network, images)))

    assert torch.allclose(reference(images.to(memory_format=torch.channels_last)), network(images), atol=1e-6)


def test_a_scripted_network_with_branches_is_rebuilt(network: nn.Module) -> None:
    with conversion.quietly():
        model = saved(torch.jit.script(network))

    assert torch.allclose(rebuilt(model)(IMAGES), network(IMAGES), atol=1e-5)


# --- what is refused -------------------------------------------------------------------------------------------------


def saved(module: Any) -> bytes:
    file = io.BytesIO()
    torch.jit.save(module, file)
    return file.getvalue()


class Reaching(nn.Module):
    """Writes a file when it is asked."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.from_file(self.path, True, 4).sum()


class Awake(nn.Module):
    """Has code that runs when the file is opened."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x)

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return self.path, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.path = state[0]
        self.training = state[1]
        torch.from_file(self.path, True, 4)


class Looping(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        while bool(x.sum() < 1e6):
            x = x + torch.relu(x)
        return x


class Drawing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


def hooked() -> nn.Module:
    module = nn.Sequential(nn.ReLU())

    def louder(_module: nn.Sequential, _given: tuple[Tensor], out: Tensor) -> Tensor:
        return out * 2

    module.register_forward_hook(louder)
    return module


REFUSED: dict[str, tuple[Callable[[str], nn.Module], str]] = {
    "reaches a file": (Reaching, "aten::from_file is not in the list"),
    "runs on opening": (Awake, "code outside its graph"),
    "loops": (lambda _path: Looping(), "loop"),
    "draws": (lambda _path: Drawing(), "rand_like is not in the list"),
    "has hooks": (lambda _path: hooked(), "code outside its graph"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_script_that_does_more_than_compute_is_refused_and_has_done_nothing(case: str, tmp_path: Path) -> None:
    build, sentence = REFUSED[case]
    target = tmp_path / "written"
    with conversion.quietly():
        model = saved(torch.jit.script(build(str(target))))
    target.unlink(missing_ok=True)  # compiling may have run it; opening must not

    with pytest.raises(ConversionError, match=sentence):
        rebuilt(model)

    assert not target.exists()


def edited(model: bytes, ending: str, change: Callable[[Any], None]) -> bytes:
    """A torch.export file with one of its JSON documents changed."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(model)) as source, zipfile.ZipFile(out, "w") as target:
        for each in source.infolist():
            content = source.read(each)
            if each.filename.endswith(ending):
                document = json.loads(content)
                change(document)
                content = json.dumps(document).encode()
            target.writestr(each.filename, content)
    return out.getvalue()


def retarget(name: str) -> Callable[[Any], None]:
    def change(document: Any) -> None:
        document["graph_module"]["graph"]["nodes"][0]["target"] = name

    return change


def tensor(**changes: Any) -> Callable[[Any], None]:
    def change(document: Any) -> None:
        entry = document["config"]["head.weight"]
        for key, value in changes.items():
            (entry if key in entry else entry["tensor_meta"])[key] = value

    return change


def forget(document: Any) -> None:
    del document["graph_module"]["graph"]


EDITS: dict[str, tuple[str, Callable[[Any], None], str]] = {
    "custom operator": ("model.json", retarget("torch.ops.acme.fancy.default"), "acme.fancy.default is custom"),
    "a file": ("model.json", retarget("torch.ops.aten.from_file.default"), "from_file is not in the list"),
    "plain Python": ("model.json", retarget("builtins.eval"), "builtins.eval is custom"),
    "no graph": ("model.json", forget, "not a torch.export program"),
    "a pickle": ("weights_config.json", tensor(use_pickle=True), "pickled"),
    "too long": ("weights_config.json", tensor(sizes=[{"as_int": 2**20}, {"as_int": 16}]), "beyond its bytes"),
    "before the start": ("weights_config.json", tensor(storage_offset={"as_int": -4}), "beyond its bytes"),
    "odd type": ("weights_config.json", tensor(dtype=9), "type 9"),
}


@pytest.mark.parametrize("case", EDITS)
def test_a_program_that_is_not_plain_is_refused(case: str, network: nn.Module) -> None:
    ending, change, sentence = EDITS[case]
    model = edited(conversion.exported(network, conversion.PROGRAM, 0), ending, change)

    with pytest.raises(ConversionError, match=sentence):
        rebuilt(model)


def test_a_program_for_one_number_of_images_says_so() -> None:
    file = io.BytesIO()
    torch.export.save(torch.export.export(nn.Conv2d(1, 2, 3), (torch.rand(4, 1, 8, 8),)), file)

    with pytest.raises(ConversionError, match="exported for 4 images at once"):
        rebuilt(file.getvalue())


def bomb() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/code/a.py", bytes(2**26 + 1))
    return file.getvalue()


def twice() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for _ in range(2):
            archive.writestr("model/code/a.py", b"")
    return file.getvalue()


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (bomb, "unpack to more"),
        (twice, "names of their own"),
        (lambda: b"PK\x03\x04" + bytes(100), "not an archive of torch"),
        (lambda: saved(torch.jit.script(nn.ReLU()))[:-200], "not an archive of torch"),
    ],
)
def test_archives_that_are_none_are_refused(build: Callable[[], bytes], sentence: str) -> None:
    with conversion.quietly():
        model = build()

    with pytest.raises(ConversionError, match=sentence):
        rebuilt(model)
