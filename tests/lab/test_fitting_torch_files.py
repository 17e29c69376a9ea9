"""A TorchScript and a torch.export file from the fit to a gateway, of another shape; and what does not fit."""

from __future__ import annotations

import copy
import io
import json
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn
from torch.nn import functional

from blob_gateway import CT, QUICK, tables
from detectors.errors import ConversionError
from detectors.models.kinds import Kind
from gateway.api.v1 import gateway_pb2 as pb
from gateway.api.v1 import gateway_pb2_grpc as rpc
from gateway.app.life import check
from gateway.errors import ConfigError
from gateway.profile import Profile
from gateway.settings.config import Config
from gateway.testing import GatewayProcess, Site, write_signing_key
from lab import data, fitting
from lab.cli import main
from lab.opening import MismatchError, opened
from model_server import ModelServer

SIDE = 32


class DenseNet(nn.Module):
    """Two layers that each see all before them, a transition, and two more."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, 2, 1)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 8, 3, 1, 1)) for width in (8, 16, 12, 20)
        )
        self.between = nn.Sequential(nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 12, 1), nn.AvgPool2d(2))
        self.norm, self.head = nn.BatchNorm2d(28), nn.Linear(28, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        for place, layer in enumerate(self.layers):
            y = torch.cat([self.between(y) if place == 2 else y, layer(self.between(y) if place == 2 else y)], 1)
        logits: Tensor = self.head(functional.relu(self.norm(y)).mean((2, 3)))
        return logits


@dataclass(frozen=True, slots=True)
class Fit:
    """A trained network, the file that was fitted, and what came of it."""

    network: nn.Module
    file: Path
    out: Path
    fitted: fitting.Fitted


def trained(images: Tensor, labels: Tensor) -> nn.Module:
    draws = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = DenseNet()
    optimizer = torch.optim.AdamW(network.parameters(), 4e-3)
    for _ in range(25):
        for chosen in torch.split(torch.randperm(len(images), generator=draws), 24):
            loss = functional.cross_entropy(network(images[chosen]), labels[chosen])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
    return network.eval().requires_grad_(False)


def scripted(network: nn.Module, kind: torch.dtype = torch.float32) -> bytes:
    file, images = io.BytesIO(), torch.zeros(2, 1, SIDE, SIDE, dtype=kind)
    torch.jit.save(torch.jit.trace(network, images, check_trace=False), file)
    return file.getvalue()


def program(network: nn.Module) -> bytes:
    file = io.BytesIO()
    shapes = ({0: torch.export.Dim("n")},)
    torch.export.save(torch.export.export(network, (torch.zeros(2, 1, SIDE, SIDE),), dynamic_shapes=shapes), file)
    return file.getvalue()


def graph(network: nn.Module, *, channels: int = 1, batch: int | None = None, half: bool = False) -> bytes:
    """The ONNX file of a network, for any number of images at once or for `batch`."""
    file, kind = io.BytesIO(), torch.float16 if half else torch.float32
    axes = {"image": {0: "n"}} if batch is None else None
    torch.onnx.export(
        network, (torch.zeros(batch or 2, channels, SIDE, SIDE, dtype=kind),), file, dynamo=False, opset_version=17,
        input_names=["image"], output_names=["scores"], dynamic_axes=axes,
    )  # fmt: skip
    return file.getvalue()


@pytest.fixture(scope="module", params=["TorchScript", "torch.export"])
def fit(site: Path, profile: Profile, parts: fitting.Parts, request: pytest.FixtureRequest) -> Fit:
    train = data.load(site / "data.npz", profile).train
    network = trained(train.images, train.labels)
    out = site / str(request.param)
    out.mkdir()
    file = out / "model.file"
    file.write_bytes(scripted(network) if request.param == "TorchScript" else program(network))
    fitted = fitting.fit(
        file.read_bytes(), profile, parts, out, fpr=0.01, key=write_signing_key(out / "key.pem"), seed=0,
        recipes=(QUICK, QUICK), denoisers=("median",),
    )  # fmt: skip
    return Fit(network, file, out, fitted)


def test_detectors_of_another_shape_fire_on_attacks(fit: Fit) -> None:
    found = fit.fitted.measured["pgd"]["8"]

    assert json.loads(fit.fitted.manifest)["gradients"] is True
    assert fit.fitted.measured["accuracy"] > 0.9
    assert found["successes"] > 20
    assert found["tpr"]["ensemble"]["rate"] > 0.9
    assert fit.fitted.measured["fpr"]["ensemble"]["rate"] <= 0.1


def test_score_takes_the_file(site: Path, fit: Fit) -> None:
    names = {
        "--model": fit.file,
        "--profile": site / "profile.toml",
        "--detectors": fit.out,
        "--data": site / "data.npz",
    }
    result = CliRunner().invoke(main, ["score", "--json", *(str(part) for pair in names.items() for part in pair)])

    assert result.exit_code == 0, result.output
    flags = [p <= 0.01 for p in json.loads(result.stdout)["p"]]
    assert sum(flags) / len(flags) == fit.fitted.measured["fpr"]["ensemble"]["rate"]


def asking(fit: Fit, address: str) -> str:
    """The tables of a gateway that has the file."""
    return tables(fit.out.parent / "profile.toml", fit.out, fit.out / "key.pub", address, model=fit.file)


def test_a_gateway_examines_with_the_file_and_a_server_answers(fit: Fit, tmp_path: Path) -> None:
    served = tmp_path / "served.onnx"
    served.write_bytes(graph(fit.network))
    with ModelServer(tmp_path) as server:
        server.start(served)
        hospital = Site.make(tmp_path / "hospital", tables=asking(fit, server.address), routes=["ct"])
        with (
            GatewayProcess(hospital.config, environment={"OMP_NUM_THREADS": "1"}) as gateway,
            grpc.insecure_channel(gateway.addresses.grpc) as channel,
        ):
            metadata = (("authorization", f"Bearer {hospital.tokens['reviewer']}"),)
            stub = rpc.ProtectionGatewayStub(channel)
            reply = stub.Protect(pb.ProtectRequest(dicom=CT, route="ct"), metadata=metadata, timeout=100)

    (found,) = (each for each in reply.findings if each.stage == "detection")
    assert found.outcome in {"passed", "failed"}
    assert set(dict(found.p_values)) == set(json.loads(fit.fitted.manifest)["detectors"])
    assert (len(reply.prediction.scores) == 2) == (found.outcome == "passed")


def test_a_file_that_only_a_server_runs_is_not_embedded(fit: Fit, tmp_path: Path) -> None:
    embedded = asking(fit, "127.0.0.1:1").replace('upstream = "kserve"', 'upstream = "embedded"')
    hospital = Site.make(tmp_path / "hospital", tables=embedded, routes=["ct"])
    kind = Kind.of(fit.file.read_bytes()).value

    with pytest.raises(ConfigError, match=rf"models\.blobs\.model: {kind}, and only ONNX answers here"):
        check(Config.load(hospital.config))


class TestAModelThatIsNotWhatItsProfileSays:
    """Refused by name before anything is trained; what can be fitted is opened."""

    @pytest.fixture(scope="class")
    def network(self) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return DenseNet().eval().requires_grad_(False)

    @staticmethod
    def open(model: bytes, profile: Profile, images: Tensor) -> None:
        reference, _, answers_only = opened(model, profile, images, torch.device("cpu"), None)
        assert reference(images[:3]).shape == (3, 2)
        assert answers_only is None

    def test_one_image_at_a_time_and_half_precision_inside_are_taken(
        self, network: nn.Module, profile: Profile, parts: fitting.Parts
    ) -> None:
        for model in (graph(network, batch=1), graph(Halved(network))):
            self.open(model, profile, parts.test.images)

    def test_probabilities_are_taken_where_the_profile_says_so_and_only_there(
        self, network: nn.Module, profile: Profile, parts: fitting.Parts
    ) -> None:
        sure = graph(nn.Sequential(network, nn.Softmax(1)).eval())
        says = profile.model_copy(update={"output": profile.output.model_copy(update={"activation": "none"})})

        self.open(sure, says, parts.test.images)
        with pytest.raises(MismatchError, match=r"output\.activation: the model gives probabilities already"):
            self.open(sure, profile, parts.test.images)
        with pytest.raises(MismatchError, match=r"output\.activation: probabilities are said to come out"):
            self.open(graph(nn.Sequential(network, Doubled()).eval()), says, parts.test.images)

    def test_a_color_model_sees_the_grey_image_in_each_channel(
        self, network: nn.Module, profile: Profile, parts: fitting.Parts
    ) -> None:
        wide = profile.model_copy(update={"input": profile.input.model_copy(update={"channels": 3})})
        model = graph(nn.Sequential(nn.Conv2d(3, 1, 1), network).eval(), channels=3)

        self.open(model, wide, parts.test.images.expand(-1, 3, -1, -1).contiguous())
        with pytest.raises(MismatchError, match=r"input\.channels: the model takes 3, and would be given 1"):
            self.open(model, profile, parts.test.images)

    def test_what_cannot_be_asked_is_named(self, network: nn.Module, profile: Profile, parts: fitting.Parts) -> None:
        three = replace_classes(profile, ("a", "b", "c"))
        for model, says, problem in (
            (graph(network, batch=4), profile, "images at a time: the model takes 4"),
            (graph(Halved(network, whole=True), half=True), profile, "its input is FLOAT16"),
            (graph(network), three, "classes: 3 are named, and the model gives 2"),
        ):
            with pytest.raises(MismatchError, match=problem):
                self.open(model, says, parts.test.images)
        with pytest.raises(ConversionError, match="torch itself cannot run the model"):
            self.open(scripted(copy.deepcopy(network).half(), torch.float16), profile, parts.test.images)


class Halved(nn.Module):
    """A network whose weights are float16; unless `whole`, between float32 at both ends."""

    def __init__(self, network: nn.Module, *, whole: bool = False) -> None:
        super().__init__()
        self.network: nn.Module = copy.deepcopy(network).half()
        self.whole = whole

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.network(x.half())
        return out if self.whole else out.float()


class Doubled(nn.Module):
    """Numbers that are no probabilities."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x + 3


def replace_classes(profile: Profile, classes: tuple[str, ...]) -> Profile:
    return profile.model_copy(update={"classes": classes})
