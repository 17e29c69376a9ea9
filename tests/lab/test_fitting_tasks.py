"""Models of several labels and models of every pixel are fitted, calibrated and guarded as those of one class are."""

import io
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import grpc
import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from onnx import numpy_helper
from pydicom.data import get_testdata_file
from torch import Tensor, nn

from detectors import registry
from detectors.artifact import Artefact
from detectors.ensemble import Ensemble
from detectors.errors import AnotherModelError
from detectors.methods.twins import Hardening
from detectors.models.outputs import Task
from detectors.testing import check_detector
from gateway.api.v1 import gateway_pb2 as pb
from gateway.api.v1 import gateway_pb2_grpc as rpc
from gateway.cli import main as scanward
from gateway.profile import Profile
from gateway.testing import GatewayProcess, Site, write_signing_key
from lab import data, fitting, served
from lab.data import DataError
from lab.whereabouts import Whereabouts
from model_server import ModelServer
from site_tables import ENGINE, route

QUICK = (Hardening(0.5, 6.0, 48, 3e-3, batch=16), Hardening(1.0, 6.0, 48, 6e-3, batch=16))
SIDE = 32
Made = tuple[NDArray[np.uint8], NDArray[np.int64]]


def scenes(count: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """Grey noise with a disc or none, with faint stripes or none; which (N, 2), and where the disc lies (N, H, W)."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    images, labels = np.empty((count, SIDE, SIDE), np.uint8), rng.integers(0, 2, (count, 2))
    masks = np.zeros((count, SIDE, SIDE), np.int64)
    for k, (disc, stripes) in enumerate(labels):
        y, x, radius = *rng.uniform(9, 23, 2), rng.uniform(4, 7)
        masks[k] = disc * (np.hypot(rows - y, columns - x) < radius)
        waves = stripes * 14 * np.sin(2 * np.pi * (rows + rng.uniform(0, 4)) / 4)
        images[k] = np.clip(90 + 16 * masks[k] + waves + rng.normal(0, 4, (SIDE, SIDE)), 0, 255)
    return images, labels.astype(np.int64), masks


class Labeller(nn.Sequential):
    """Two logits."""

    def __init__(self) -> None:
        super().__init__(*_layers((1, 8, 16, 16), 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2))


class Segmenter(nn.Sequential):
    """One logit a pixel."""

    def __init__(self) -> None:
        super().__init__(
            *_layers((1, 12, 12), 2), nn.Conv2d(12, 1, 3, 1, 1), nn.Upsample(scale_factor=4, mode="bilinear")
        )


def _layers(widths: tuple[int, ...], stride: int) -> list[nn.Module]:
    return [
        layer
        for before, after in itertools.pairwise(widths)
        for layer in (nn.Conv2d(before, after, 3, stride, 1), nn.BatchNorm2d(after), nn.ReLU())
    ]


KINDS: dict[Task, Callable[[], nn.Module]] = {Task.MULTILABEL: Labeller, Task.SEGMENTATION: Segmenter}


@cache
def trained(task: Task) -> nn.Module:
    images, labels, masks = scenes(384, 9)
    inputs = torch.from_numpy(images).float()[:, None] / 127.5 - 1
    wanted = torch.from_numpy(labels if task is Task.MULTILABEL else masks[:, None]).float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = KINDS[task]()
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
        for _ in range(12):
            for chosen in torch.split(torch.randperm(len(inputs)), 32):
                loss = nn.functional.binary_cross_entropy_with_logits(model(inputs[chosen]), wanted[chosen])
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
    return model.eval()


def profile_of(task: Task) -> bytes:
    classes = '["disc", "stripes"]' if task is Task.MULTILABEL else '["background", "disc"]'
    return f"""
name = "scenes"
version = "1"
task = "{task.value}"
classes = {classes}
[input]
name = "image"
layout = "NCHW"
channels = 1
size = [{SIDE}, {SIDE}]
range = [-1.0, 1.0]
[output]
name = "answer"
activation = "sigmoid"
""".encode()


def site_of(task: Task, folder: Path) -> Path:
    (folder / "profile.toml").write_bytes(profile_of(task))
    arrays: dict[str, NDArray[np.generic]] = {}
    for place, (split, count) in enumerate({"train": 220, "val": 120, "test": 60}.items()):
        images, labels, masks = scenes(count, place)
        arrays |= {f"{split}_images": images, f"{split}_labels": labels if task is Task.MULTILABEL else masks}
        arrays[f"{split}_groups"] = np.array([f"{split}{k}" for k in range(count)])
    np.savez(folder / "data.npz", **arrays)
    file = io.BytesIO()
    torch.onnx.export(
        trained(task), (torch.zeros(2, 1, SIDE, SIDE),), file, dynamo=False, opset_version=17,
        input_names=["image"], output_names=["answer"], dynamic_axes={"image": {0: "n"}},
    )  # fmt: skip
    (folder / "model.onnx").write_bytes(file.getvalue())
    return folder


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small are slower on many threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=[Task.MULTILABEL, Task.SEGMENTATION], ids=lambda task: task.value)
def fitted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, fitting.Fitted]:
    site = site_of(request.param, tmp_path_factory.mktemp(request.param.value))
    profile = Profile.load(site / "profile.toml")
    parts = fitting.Parts.of(data.load(site / "data.npz", profile), seed=0)
    model = (site / "model.onnx").read_bytes()
    return site, fitting.fit(model, profile, parts, site / "out", fpr=0.01, key=None, seed=0, recipes=QUICK)


def test_the_model_is_worth_guarding_and_attacks_change_its_decision(fitted: tuple[Path, fitting.Fitted]) -> None:
    measured = fitted[1].measured

    assert measured["accuracy"] > 0.9
    assert measured["pgd"]["8"]["successes"] > 20


def test_attacks_are_flagged_and_clean_scans_are_not(fitted: tuple[Path, fitting.Fitted]) -> None:
    measured = fitted[1].measured

    assert measured["pgd"]["8"]["tpr"]["ensemble"]["rate"] > 0.6
    assert measured["fpr"]["ensemble"]["rate"] <= 0.1


def test_what_was_written_is_what_was_fitted(fitted: tuple[Path, fitting.Fitted]) -> None:
    site, found = fitted
    profile = Profile.load(site / "profile.toml")
    test = data.load(site / "data.npz", profile).test.images[:8]
    model = (site / "model.onnx").read_bytes()

    loaded = Artefact.load(site / "out", found.manifest, model, profile.sha256, torch.device("cpu")).ensemble

    assert loaded.probe.task is found.ensemble.probe.task
    before, after = found.ensemble.examine(test), loaded.examine(test)
    assert torch.allclose(before.p_value, after.p_value, atol=0.02)
    assert torch.equal(before.predictions, after.predictions)
    for member in loaded.members:
        check_detector(registry.method(member.detector.name), member.detector, loaded.probe)


# -- where only a server has the model --


@dataclass(frozen=True, slots=True)
class Remote:
    """The same model, known by the answers of its server alone."""

    site: Path
    server: ModelServer
    profile: Profile
    fitted: fitting.Fitted

    def asked(self) -> Ensemble:
        """What was written, and asks that server."""
        model = served.as_fitted(at(self.server.url), self.profile, self.site / "served")
        digest, cpu = self.profile.sha256, torch.device("cpu")
        return Artefact.load(
            self.site / "served", self.fitted.manifest, model.file, digest, cpu, ask=model.ask
        ).ensemble


def at(place: str) -> Whereabouts:
    return Whereabouts(place, authority=None, certificate=None, key=None, images_max=64)


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Remote]:
    """Of masks, the largest answers."""
    site = site_of(Task.SEGMENTATION, tmp_path_factory.mktemp("remote"))
    profile = Profile.load(site / "profile.toml")
    with ModelServer(tmp_path_factory.mktemp("server"), "scenes") as server:
        server.start(site / "model.onnx")
        model = served.to_fit(at(server.url), profile)
        parts = fitting.Parts.of(data.load(site / "data.npz", profile), seed=0)
        found = fitting.fit(
            model.file, profile, parts, site / "served", ask=model.ask,
            fpr=0.01, key=write_signing_key(site / "served.pem"), seed=0, recipes=QUICK, denoisers=(),
        )  # fmt: skip
        yield Remote(site, server, profile, found)


def test_a_servers_answers_are_enough_to_flag_attacks_and_few_clean_scans(remote: Remote) -> None:
    measured = remote.fitted.measured

    assert remote.fitted.answers_only is not None
    assert measured["pgd"]["8"]["successes"] > 5
    assert measured["pgd"]["8"]["tpr"]["ensemble"]["rate"] > 0.5
    assert measured["fpr"]["ensemble"]["rate"] <= 0.1


def test_what_was_fitted_asks_the_server_again_and_notices_another_model_there(remote: Remote) -> None:
    test = data.load(remote.site / "data.npz", remote.profile).test.images[:8]
    ensemble = remote.asked()
    before, after = remote.fitted.ensemble.examine(test), ensemble.examine(test)
    assert torch.allclose(before.p_value, after.p_value, atol=0.02)
    assert torch.equal(before.predictions, after.predictions)

    proto = onnx.load(remote.site / "model.onnx")
    for tensor in proto.graph.initializer:
        if len(tensor.dims) > 1:
            values = numpy_helper.to_array(tensor) * np.float32(1.1)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(proto, remote.site / "retrained.onnx")
    remote.server.kill()
    remote.server.start(remote.site / "retrained.onnx")
    try:
        with pytest.raises(AnotherModelError):
            remote.asked().examine(test)
    finally:
        remote.server.kill()
        remote.server.start(remote.site / "model.onnx")


def tables_of(remote: Remote, upstream: str) -> str:
    return f"""{ENGINE}
[models.scenes]
profile = "{remote.site}/profile.toml"
detectors = "{remote.site}/served"
[models.scenes.kserve]
address = "{remote.server.address}"
model = "scenes"
unsafe_plaintext = true
[trust.artefacts]
public_keys = ["{remote.site}/served.pub"]
unsafe_marginal_guarantee = true
{route("ct", model="scenes", upstream=upstream)}"""


def test_a_gateway_examines_by_a_servers_masks_and_takes_none_for_a_prediction(remote: Remote, tmp_path: Path) -> None:
    asked = Site.make(tmp_path / "asked", tables=tables_of(remote, "kserve"), routes=["ct"])
    refused = CliRunner().invoke(scanward, ["check-config", str(asked.config)])
    assert refused.exit_code == 2
    assert 'routes.ct.upstream: "kserve" serves no segmentation model' in refused.stderr

    hospital = Site.make(tmp_path / "hospital", tables=tables_of(remote, "none"), routes=["ct"])
    with (
        GatewayProcess(hospital.config, environment={"OMP_NUM_THREADS": "1"}) as gateway,
        grpc.insecure_channel(gateway.addresses.grpc) as channel,
    ):
        metadata = (("authorization", f"Bearer {hospital.tokens['reviewer']}"),)
        scan = Path(str(get_testdata_file("CT_small.dcm"))).read_bytes()
        request = pb.ProtectRequest(dicom=scan, route="ct")
        reply = rpc.ProtectionGatewayStub(channel).Protect(request, metadata=metadata, timeout=100)

    (found,) = [each for each in reply.findings if each.stage == "detection"]
    assert found.outcome in {"passed", "failed"}
    assert set(dict(found.p_values)) == set(json.loads(remote.fitted.manifest)["detectors"])


LABELS: dict[str, tuple[Task, Callable[[Tensor], Tensor], str]] = {
    "one number for several labels": (Task.MULTILABEL, lambda labels: labels[:, 0], "a multilabel model needs"),
    "one number for every pixel": (Task.SEGMENTATION, lambda labels: labels[:, 0, 0], "a segmentation model needs"),
    "a class too many": (Task.SEGMENTATION, lambda labels: labels + 2, "outside the classes"),
    "fractions": (Task.MULTILABEL, lambda labels: labels / 2, "whole numbers"),
}


@pytest.mark.parametrize("case", LABELS)
def test_labels_of_another_form_are_refused(tmp_path: Path, case: str) -> None:
    task, change, sentence = LABELS[case]
    (tmp_path / "profile.toml").write_bytes(profile_of(task))
    images, labels, masks = scenes(4, 0)
    wrong = change(torch.from_numpy(labels if task is Task.MULTILABEL else masks)).numpy()
    np.savez(tmp_path / "data.npz", train_images=images, train_labels=wrong, train_groups=np.arange(4))

    with pytest.raises(DataError, match=sentence):
        data.load(tmp_path / "data.npz", Profile.load(tmp_path / "profile.toml"))
