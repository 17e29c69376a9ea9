"""A model that only a server has: detectors are fitted on its answers, and ask that server in the gateway as well."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import grpc
import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import numpy_helper

from blob_gateway import CT, QUICK, tables
from detectors.errors import ConversionError
from detectors.models.kinds import Kind, answering
from detectors.models.served import CARD, Card
from gateway.api.v1 import gateway_pb2 as pb
from gateway.api.v1 import gateway_pb2_grpc as rpc
from gateway.errors import ConfigError, UpstreamError
from gateway.profile import Profile
from gateway.testing import GatewayProcess, Site, write_signing_key
from lab import fitting, phantoms, served
from lab.cli import main
from lab.whereabouts import Whereabouts
from model_server import ModelServer
from signing import sign
from waiting import until

FPR, SCANS = 0.05, 24


@pytest.fixture(scope="module")
def server(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    with ModelServer(tmp_path_factory.mktemp("server")) as server:
        server.start(site / "model.onnx")
        yield server


@pytest.fixture(scope="module")
def fitted(site: Path, server: ModelServer, profile: Profile, parts: fitting.Parts) -> fitting.Fitted:
    model = served.to_fit(at(server.url), profile)
    key = write_signing_key(site / "served.pem")
    return fitting.fit(
        model.file, profile, parts, site / "served", ask=model.ask,
        fpr=FPR, key=key, seed=0, recipes=(QUICK, QUICK), denoisers=("median",),
    )  # fmt: skip


def at(place: Path | str) -> Whereabouts:
    return Whereabouts(place, authority=None, certificate=None, key=None, images_max=64)


def score(site: Path, model: str, *more: str) -> Result:
    paths = {"--profile": "profile.toml", "--detectors": "served", "--data": "data.npz"}
    options = [part for option, name in paths.items() for part in (option, str(site / name))]
    return CliRunner().invoke(main, ["score", "--model", model, *options, *more, "--json"])


@pytest.fixture(scope="module")
def retrained(site: Path) -> Path:
    """The model with other weights: the same name, inputs and outputs."""
    proto = onnx.load(site / "model.onnx")
    for tensor in proto.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.ndim > 1:
            tensor.CopyFrom(numpy_helper.from_array(values * np.float32(1.1), tensor.name))
    path = site / "retrained.onnx"
    onnx.save(proto, path)
    return path


def test_the_artefact_says_what_stands_for_the_model(site: Path, fitted: fitting.Fitted) -> None:
    facts = json.loads(fitted.manifest)
    card = Card.read((site / "served" / CARD).read_bytes())

    assert facts["gradients"] is False
    assert facts["remote"] == {"card": CARD, "name": "blobs", "versions": ["1"]}
    assert card.described["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 1, 32, 32]}]
    assert len(card.answer) == 2
    assert fitted.answers_only is not None
    assert set(facts["detectors"]) == {"twinS", "fusion", "uad", "jpeg75", "median3", "rotation3"}


def test_it_flags_attacks_and_few_clean_scans(fitted: fitting.Fitted) -> None:
    found = fitted.measured["pgd"]["8"]

    assert found["successes"] > 5
    assert found["tpr"]["ensemble"]["rate"] > 0.5
    assert fitted.measured["fpr"]["ensemble"]["rate"] <= 0.15


def test_score_asks_the_server_and_finds_what_the_fit_found(
    site: Path, server: ModelServer, fitted: fitting.Fitted
) -> None:
    result = score(site, server.url)

    assert result.exit_code == 0, result.output
    flagged = np.mean(np.array(json.loads(result.stdout)["p"]) <= FPR)
    assert flagged == fitted.measured["fpr"]["ensemble"]["rate"]


def test_it_is_attacked_by_way_of_its_answers(site: Path, server: ModelServer, fitted: fitting.Fitted) -> None:
    paths = {"--profile": "profile.toml", "--detectors": "served", "--data": "data.npz"}
    options = [part for option, name in paths.items() for part in (option, str(site / name))]
    asked = ["--attacks", "fgsm", "--eps", "8", "--images", "8", "--json"]
    result = CliRunner().invoke(main, ["evaluate", "--model", server.url, *options, *asked])

    assert result.exit_code == 0, result.output
    (attack,) = json.loads(result.stdout)["attacks"]
    assert attack["n_attacked"] == 8


def test_thresholds_are_moved_by_asking_the_server_and_the_candidate_asks_it_too(
    site: Path, server: ModelServer, fitted: fitting.Fitted, tmp_path: Path
) -> None:
    hospital = Site.make(tmp_path / "hospital")
    (hospital.directory / "reject.toml").write_text(
        'unsigned = "reject"\n[[allowed_signers]]\ncommon_name = "CT Scanner 0001"\n'
    )
    scans, candidate = tmp_path / "scans", tmp_path / "candidate"
    scans.mkdir()
    for seed in phantoms.seeds("test", SCANS, skip=31_000):
        drawn = phantoms.to_dicom(phantoms.draw(seed, size=64))
        signed = sign(drawn, signer=hospital.hospital.signer("ct"), at=datetime.now(UTC))
        (scans / f"{seed}.dcm").write_bytes(signed)
    options = {
        "--profile": site / "profile.toml", "--detectors": site / "served", "--public-key": site / "served.pub",
        "--scans": scans, "--config": hospital.config, "--trust": "strict", "--out": candidate,
    }  # fmt: skip
    asked = ["recalibrate", "--accept-movement", *(str(part) for pair in options.items() for part in pair)]

    of_a_file = CliRunner().invoke(main, [*asked, "--model", str(site / "model.onnx")])
    assert of_a_file.exit_code == 2
    assert "fitted for another model" in of_a_file.stderr
    taken = CliRunner().invoke(main, [*asked, "--model", server.url])

    assert taken.exit_code == 0, taken.output
    facts = json.loads((candidate / "manifest.json").read_bytes())
    assert facts["n_b"] == SCANS
    assert facts["remote"] == json.loads(fitted.manifest)["remote"]
    sealing = ["sign-artefact", str(candidate), "--key", str(site / "served.pem")]
    assert CliRunner().invoke(main, sealing).exit_code == 0
    asking = score(site, server.url, "--detectors", str(candidate))
    assert asking.exit_code == 0, asking.output
    ranks = [p * (SCANS + 1) for p in json.loads(asking.stdout)["p"] if p > 1 / (SCANS + 2)]
    assert len(ranks) > 30
    assert ranks == pytest.approx(np.round(ranks))

    (candidate / CARD).write_bytes((candidate / CARD).read_bytes().replace(b"blobs", b"clubs"))
    refused = CliRunner().invoke(main, sealing)
    assert refused.exit_code == 2
    assert "remote.json is not the one that was fitted for" in refused.stderr


def test_a_card_alone_answers_nothing(site: Path, fitted: fitting.Fitted) -> None:
    card = (site / "served" / CARD).read_bytes()

    assert Kind.of(card) is Kind.SERVED
    with pytest.raises(ConversionError, match="say where that server is"):
        answering(card)
    assert "say where that server is" in score(site, str(site / "served" / CARD)).stderr


def test_a_server_elsewhere_is_asked_with_its_authority_known_or_not_at_all(profile: Profile) -> None:
    for place, problem in (
        ("kserve://models.example:8001/blobs", "--server-ca: required"),
        ("kserve://127.0.0.1/blobs", "HOST:PORT"),
        ("kserve://127.0.0.1:1", "kserve://HOST:PORT/NAME"),
    ):
        with pytest.raises(ConfigError, match=problem):
            served.to_fit(at(place), profile)


def test_a_name_that_the_server_does_not_know_is_said_before_anything_is_fitted(
    server: ModelServer, profile: Profile
) -> None:
    with pytest.raises(UpstreamError, match=r"does not describe the model stranger: NOT_FOUND"):
        served.to_fit(at(server.url.replace("blobs", "stranger")), profile)


def test_a_gateway_examines_with_the_server_and_holds_scans_while_nothing_vouches_for_it(
    site: Path, server: ModelServer, fitted: fitting.Fitted, retrained: Path, tmp_path: Path
) -> None:
    asking = tables(site / "profile.toml", site / "served", site / "served.pub", server.address, fpr=FPR)
    hospital = Site.make(tmp_path / "hospital", tables=asking, routes=["ct"])
    scans = (bytes([count]) + CT[1:] for count in range(256))  # the preamble is free: another scan of the same image

    with GatewayProcess(hospital.config, environment={"OMP_NUM_THREADS": "1"}) as gateway:

        def finding() -> pb.Finding:
            with grpc.insecure_channel(gateway.addresses.grpc) as channel:
                metadata = (("authorization", f"Bearer {hospital.tokens['reviewer']}"),)
                request = pb.ProtectRequest(dicom=next(scans), route="ct")
                reply = rpc.ProtectionGatewayStub(channel).Protect(request, metadata=metadata, timeout=100)
            found = next(each for each in reply.findings if each.stage == "detection")
            held = reply.disposition == pb.DISPOSITION_QUARANTINE
            assert held == (found.outcome != "passed")
            return found

        def once_it_answers() -> pb.Finding:
            seen: list[pb.Finding] = []
            until(lambda: seen.append(finding()) or "AnswerError" not in seen[-1].detail)
            return seen[-1]

        examined = finding()
        assert examined.outcome != "indeterminate"
        assert set(dict(examined.p_values)) == set(json.loads(fitted.manifest)["detectors"])

        server.kill()
        away = finding()
        assert (away.outcome, away.reason) == ("indeterminate", "detector_error")
        assert "AnswerError" in away.detail

        server.start(retrained)
        another = once_it_answers()
        assert (another.outcome, another.reason) == ("indeterminate", "detector_error")
        assert "AnotherModelError" in another.detail

        server.kill()
        server.start(site / "model.onnx")
        again = once_it_answers()
        assert again.p_value == pytest.approx(examined.p_value)
