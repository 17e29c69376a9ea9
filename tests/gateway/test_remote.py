"""The remote upstream before a real server in a process of its own: away, slow, wrong, back again."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from gateway.case import Case, Evidence, Image
from gateway.deadline import Deadline
from gateway.errors import UpstreamError
from gateway.profile import Profile
from gateway.settings.models import KServeConfig
from gateway.telemetry.metrics import Metrics
from gateway.upstreams.embedded import EmbeddedUpstream
from gateway.upstreams.remote import RemoteUpstream
from gateway.verdict import Disposition, Verdict
from model_server import ModelServer
from signing.testing import Hospital

ADMIT = Verdict(Disposition.ADMIT, ())
DENOISED = Verdict(Disposition.ADMIT_DENOISED, ())
PIXELS = np.arange(8, dtype=np.float32).reshape(2, 1, 2, 2) / 8
PROFILE = Profile.from_toml(
    b'name="sums"\nversion="7"\ntask="multiclass"\nclasses=["a", "b"]\n'
    b'[input]\nname="image"\nlayout="NCHW"\nchannels=1\nsize=[2, 2]\nrange=[0,1]\n[output]\nname="logits"\n'
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes: the sum of the four pixels, and its opposite."""
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("MatMul", ["flat", "signs"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "sums",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 1, 2, 2])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(np.array([[1, -1]] * 4, np.float32), "signs")],
    )
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


@pytest.fixture
def serve(model: Path, tmp_path: Path) -> Iterator[Callable[..., ModelServer]]:
    started: list[ModelServer] = []

    def start(*options: str) -> ModelServer:
        server = ModelServer(tmp_path, "sums", *options)
        server.start(model)
        started.append(server)
        return server

    yield start
    for server in started:
        server.kill()


@pytest.fixture
def case(make_case: Callable[..., Case]) -> Case:
    evidence = Evidence(1.0, 0.02, {}, {}, np.zeros(2, np.float32), {}, 2 * PIXELS)
    return replace(make_case(), image=Image(PIXELS, "sums"), evidence=evidence)


@contextmanager
def asking(
    address: str, metrics: Metrics | None = None, profile: Profile = PROFILE, **keys: object
) -> Iterator[RemoteUpstream]:
    values = {"unsafe_plaintext": True, "attempt_s_max": 5.0, "failures_max": 2, "pause_s": 0.2, **keys}
    config = KServeConfig(address=address, model="sums", **values)  # type: ignore[arg-type]
    upstream = RemoteUpstream("sums", profile, config, metrics=metrics or Metrics())
    yield upstream
    upstream.close(0.0)


def soon() -> Deadline:
    return Deadline.after(30.0)


def count(metrics: Metrics, outcome: str) -> float:
    labels = {"upstream": "sums", "outcome": outcome}
    return metrics.registry.get_sample_value("scanward_upstream_seconds_count", labels) or 0.0


@pytest.mark.parametrize("verdict", [ADMIT, DENOISED], ids=["admit", "denoised"])
def test_answers_as_the_embedded_model_does(
    serve: Callable[..., ModelServer], model: Path, case: Case, verdict: Verdict
) -> None:
    embedded = EmbeddedUpstream("sums", PROFILE, model.read_bytes(), device="cpu", threads=1, metrics=Metrics())
    with asking(serve().address) as upstream:
        answer = upstream.predict(case, verdict, soon())
    assert answer == embedded.predict(case, verdict, soon())


def test_each_scan_has_its_own_request_id_and_the_denoised_image_another(
    serve: Callable[..., ModelServer], case: Case
) -> None:
    server = serve()
    with asking(server.address) as upstream:
        for verdict in (ADMIT, DENOISED, ADMIT):
            upstream.predict(case, verdict, soon())
    digest = case.scan.sha256
    assert server.answered == [f"{digest}-admit", f"{digest}-admit_denoised", f"{digest}-admit"]


def test_never_asks_about_what_was_not_admitted(serve: Callable[..., ModelServer], case: Case) -> None:
    server = serve()
    with asking(server.address) as upstream:
        for disposition in (Disposition.QUARANTINE, Disposition.REJECT):
            with pytest.raises(UpstreamError):
                upstream.predict(case, Verdict(disposition, ()), soon())
    assert server.answered == []


def test_a_server_that_is_away_is_asked_again_and_then_left_alone_until_it_is_back(
    serve: Callable[..., ModelServer], case: Case
) -> None:
    server, metrics = serve(), Metrics()
    with asking(server.address, metrics, attempts_max=2, pause_s=600.0) as upstream:
        upstream.predict(case, ADMIT, soon())
        server.kill()
        with pytest.raises(UpstreamError, match="not available"):
            upstream.predict(case, ADMIT, soon())
        assert not upstream.ready
        with pytest.raises(UpstreamError, match="left alone") as caught:
            upstream.predict(case, ADMIT, soon())
    assert caught.value.retry_after_s is not None
    assert 500.0 < caught.value.retry_after_s <= 600.0
    assert [count(metrics, each) for each in ("ok", "unavailable", "open")] == [1, 2, 1]


def test_it_is_found_again_after_a_restart(serve: Callable[..., ModelServer], model: Path, case: Case) -> None:
    server = serve()
    with asking(server.address, failures_max=1) as upstream:
        server.kill()
        with pytest.raises(UpstreamError):
            upstream.predict(case, ADMIT, soon())
        server.start(model)
        answer = None
        while answer is None:
            try:
                answer = upstream.predict(case, ADMIT, soon())
            except UpstreamError:
                threading.Event().wait(0.1)
        assert upstream.ready
    assert server.answered == [f"{case.scan.sha256}-admit"]


def test_a_server_that_hangs_opens_the_breaker_and_is_asked_once_a_scan(
    serve: Callable[..., ModelServer], case: Case
) -> None:
    server, metrics = serve(), Metrics()
    with asking(server.address, metrics, attempt_s_max=0.3, pause_s=600.0) as upstream:
        upstream.predict(case, ADMIT, soon())
        server.send(signal.SIGSTOP)
        for _ in range(2):
            with pytest.raises(UpstreamError, match="DEADLINE_EXCEEDED"):
                upstream.predict(case, ADMIT, soon())
        with pytest.raises(UpstreamError, match="left alone"):
            upstream.predict(case, ADMIT, soon())
        server.send(signal.SIGCONT)
    assert [count(metrics, each) for each in ("timeout", "open")] == [2, 1]


def test_a_caller_in_a_hurry_does_not_cut_everybody_off(serve: Callable[..., ModelServer], case: Case) -> None:
    server = serve()
    with asking(server.address, failures_max=1) as upstream:
        server.send(signal.SIGSTOP)
        with pytest.raises(UpstreamError):
            upstream.predict(case, ADMIT, Deadline.after(0.2))
        assert upstream.ready
        with pytest.raises(UpstreamError, match="deadline passed"):
            upstream.predict(case, ADMIT, Deadline.after(0.0))
        server.send(signal.SIGCONT)


@pytest.mark.parametrize(
    ("options", "profile", "sentence"),
    [
        (["--answer", "nan"], PROFILE, "not finite"),
        (["--answer", "wide"], PROFILE, "scores of shape"),
        (["--answer", "misnamed"], PROFILE, "no such output"),
        (["--fail", "INTERNAL"], PROFILE, "INTERNAL"),
        (["--fail", "RESOURCE_EXHAUSTED"], PROFILE, "RESOURCE_EXHAUSTED"),
    ],
)
def test_an_answer_that_is_no_prediction_is_an_error_and_not_repeated(
    serve: Callable[..., ModelServer], case: Case, options: list[str], profile: Profile, sentence: str
) -> None:
    server, metrics = serve(*options), Metrics()
    with asking(server.address, metrics, profile) as upstream, pytest.raises(UpstreamError, match=sentence):
        upstream.predict(case, ADMIT, soon())
    assert count(metrics, "ok") + count(metrics, "error") == 1


def test_the_server_does_not_know_the_model_and_that_says_nothing_about_its_health(
    serve: Callable[..., ModelServer], case: Case
) -> None:
    server, metrics = serve("--name", "others"), Metrics()
    with asking(server.address, metrics, failures_max=1) as upstream:
        with pytest.raises(UpstreamError, match="NOT_FOUND"):
            upstream.predict(case, ADMIT, soon())
        assert upstream.ready
    assert count(metrics, "refused") == 1


class TestTls:
    """Both sides show a certificate of the same hospital."""

    @pytest.fixture
    def pki(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp("pki")
        hospital = Hospital.make(folder)
        (folder / "chain.pem").write_bytes(
            (folder / "ct.pem").read_bytes() + (folder / "intermediate.pem").read_bytes()
        )
        for name in ("ct.key", "stranger.key"):
            hospital.path(name).chmod(0o600)
        return folder

    def tls(self, pki: Path, **keys: object) -> dict[str, object]:
        return {"unsafe_plaintext": False, "tls": {"roots": pki / "root.pem", "server_name": "CT Scanner 0001", **keys}}

    def test_answers_over_mutual_tls(self, serve: Callable[..., ModelServer], case: Case, pki: Path) -> None:
        server = serve("--tls", str(pki / "chain.pem"), str(pki / "ct.key"), str(pki / "root.pem"))
        keys = self.tls(pki, certificate=pki / "chain.pem", private_key=pki / "ct.key")
        with asking(server.address, **keys) as upstream:
            assert upstream.predict(case, ADMIT, soon()).label == "a"

    @pytest.mark.parametrize("change", [{"roots": "stranger-root.pem"}, {"server_name": "elsewhere"}, {}])
    def test_a_server_of_another_name_or_hospital_is_not_told_anything(
        self, serve: Callable[..., ModelServer], case: Case, pki: Path, change: dict[str, str]
    ) -> None:
        server = serve("--tls", str(pki / "chain.pem"), str(pki / "ct.key"), str(pki / "root.pem"))
        own = {} if not change else {"certificate": pki / "chain.pem", "private_key": pki / "ct.key"}
        changed = {key: pki / value if key == "roots" else value for key, value in change.items()}
        with asking(server.address, **self.tls(pki, **{**own, **changed})) as upstream, pytest.raises(UpstreamError):
            upstream.predict(case, ADMIT, soon())
        assert server.answered == []


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"address": "10.0.0.1:8001", "unsafe_plaintext": True}, "loopback address only, not to 10.0.0.1:8001"),
        ({"address": "127.0.0.1:8001"}, "needs either a tls table or unsafe_plaintext"),
    ],
)
def test_plaintext_is_said_and_stays_on_this_machine(keys: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        KServeConfig(model="sums", **keys)  # type: ignore[arg-type]


def test_masks_are_answered_however_large_they_are(tmp_path: Path) -> None:
    """A message of gRPC's own largest size, 4 MiB, would not hold these."""
    side = 256
    taken = PROFILE.input.model_copy(update={"size": (side, side)})
    profile = PROFILE.model_copy(update={"task": "segmentation", "input": taken})
    images = np.random.default_rng(0).random((10, 1, side, side), np.float32)
    with ModelServer(tmp_path, "sums") as server:
        server.start(doubles(tmp_path / "doubles.onnx", side))
        with asking(server.address, profile=profile) as upstream:
            answers = upstream.answers(images, soon())
        narrow = profile.model_copy(update={"classes": ("a", "b", "c")})
        with asking(server.address, profile=narrow) as upstream, pytest.raises(UpstreamError, match="scores of shape"):
            upstream.answers(images[:1], soon())

    assert np.array_equal(answers, np.concatenate([images, images], 1))


def doubles(path: Path, side: int) -> Path:
    """A model whose masks are the image, twice."""
    image, answer = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", channels, side, side])]
        for name, channels in (("image", 1), ("logits", 2))
    )
    graph = helper.make_graph([helper.make_node("Concat", ["image", "image"], ["logits"], axis=1)], "d", image, answer)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path
