"""`scanward quarantine` against a real gateway, as scripts and reviewers use it."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from pydicom import dcmread
from pydicom.data import get_testdata_file

from gateway.cli import main
from gateway.client.client import Client
from gateway.testing import GatewayProcess, Site, write_token

CT = Path(str(get_testdata_file("CT_small.dcm")))
TABLES = """
[review]
four_eyes = true
decided_days_max = 30
[routes.held]
trust = "open"
upstream = "none"
[routes.held.policy]
indeterminate = "quarantine"
unexaminable = "quarantine"
signature = { failed = "reject", unsigned = "quarantine", stripped = "reject" }
[[sources]]
name = "second"
roles = ["review"]
token_file = "tokens/second"
enrolled = false
routes = ["held"]
[[sources]]
name = "elsewhere"
roles = ["review"]
token_file = "tokens/elsewhere"
enrolled = false
routes = ["open"]
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    directory = tmp_path_factory.mktemp("review")
    others = {name: write_token(directory / "tokens" / name) for name in ("second", "elsewhere")}
    site = Site.make(directory, tables=TABLES, routes=["held"])
    return Site(site.directory, site.hospital, {**site.tokens, **others})


@pytest.fixture(scope="module")
def gateway(site: Site) -> Iterator[GatewayProcess]:
    with GatewayProcess(site.config) as process:
        yield process


@pytest.fixture
def hold(site: Site, gateway: GatewayProcess):
    """Sends an unsigned scan of this instance number; returns its bytes and its id in quarantine."""

    def send(number: int) -> tuple[bytes, str]:
        dataset = dcmread(CT)
        dataset.InstanceNumber = number
        path = site.directory / f"{number}.dcm"
        dataset.save_as(path)
        with Client(gateway.addresses.grpc, token=site.tokens["scanner"]) as client:
            answer = client.protect(path, "held")
        assert (answer.disposition, answer.reasons) == ("quarantine", ("signature",))
        return path.read_bytes(), answer.quarantine_id

    return send


@pytest.fixture
def run(site: Site, gateway: GatewayProcess):
    def call(*words: object, source: str = "reviewer") -> Result:
        environment = {"SCANWARD_TOKEN": site.tokens[source], "SCANWARD_ADDRESS": gateway.addresses.grpc}
        return CliRunner(env=environment).invoke(main, ["quarantine", *map(str, words)])

    return call


def test_a_held_scan_is_listed_until_it_is_decided_about(hold, run):
    _, identity = hold(1)
    (scan,) = [each for each in json.loads(run("list", "--json").stdout)["scans"] if each["id"] == identity]
    assert (scan["state"], scan["source"], scan["route"], scan["modality"]) == ("held", "scanner", "held", "CT")
    assert scan["examinations"][0]["reasons"] == ["unsigned"]
    run("confirm", identity, "--reason", "no such patient in radiology")
    assert identity not in run("list").stdout
    listed = run("list", "--state", "confirmed").stdout.splitlines()
    assert listed[0].split("\t")[:4] == ["id", "state", "since", "reason"]
    assert identity in listed[1]


def test_show_says_why_and_saves_the_bytes_for_their_reader_alone(hold, run, tmp_path):
    data, identity = hold(2)
    out = tmp_path / "scan.dcm"
    ended = run("show", identity, "--out", out)
    assert ended.exit_code == 0
    assert "signature" in ended.stdout
    assert "unsigned" in ended.stdout
    assert out.read_bytes() == data
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    again = run("show", identity, "--out", out)
    assert (again.exit_code, out.read_bytes()) == (2, data)


def test_two_reviewers_release_a_scan_and_its_sender_is_answered_so(hold, run, site, gateway):
    _, identity = hold(3)
    first = run("release", identity, "--reason", "known device")
    assert first.exit_code == 1
    assert "reviewer agreed; another reviewer must" in first.stdout
    assert run("release", identity, "--reason", "known device").exit_code == 2
    second = run("release", identity, "--reason", "seen it too", "--json", source="second")
    document = json.loads(second.stdout)
    assert (second.exit_code, document["state"]) == (0, "released")
    assert [act["by"] for act in document["acts"]] == ["reviewer", "second"]
    with Client(gateway.addresses.grpc, token=site.tokens["scanner"]) as client:
        answer = client.protect(site.directory / "3.dcm", "held")
    assert (answer.disposition, answer.released_by, answer.earlier) == ("admit", ("reviewer", "second"), True)
    assert answer.log_index == document["log_index"]
    environment = {"SCANWARD_TOKEN": site.tokens["scanner"], "SCANWARD_ADDRESS": gateway.addresses.grpc}
    screened = CliRunner(env=environment).invoke(main, ["screen", str(site.directory / "3.dcm"), "--route", "held"])
    assert "before; released by reviewer, second\t" + identity in screened.stdout


def test_a_confirmed_scan_is_not_released(hold, run):
    _, identity = hold(4)
    assert run("confirm", identity, "--reason", "it is an attack").exit_code == 0
    assert run("confirm", identity, "--reason", "it is an attack").exit_code == 0
    refused = run("release", identity, "--reason", "or not")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "stay out" in refused.stderr


@pytest.mark.parametrize("source", ["scanner", "auditor", "administrator", "elsewhere"])
def test_who_does_not_review_that_route_reaches_nothing(hold, run, source):
    _, identity = hold(5)
    for words in (("show", identity), ("release", identity, "--reason", "x"), ("confirm", identity, "--reason", "x")):
        assert run(*words, source=source).exit_code == 2
    assert identity not in run("list", source=source).output


@pytest.mark.parametrize("words", [("show", "00" * 16), ("release", "x"), ("release", "00" * 16, "--reason", " ")])
def test_what_cannot_be_done_is_2_and_says_why(run, words):
    ended = run(*words)
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert ended.stderr


def test_every_act_is_in_the_log_and_no_patient_is(hold, run, site):
    _, identity = hold(6)
    run("show", identity, "--out", site.directory / "6-shown.dcm")
    run("release", identity, "--reason", "known device")
    run("confirm", identity, "--reason", "or rather not", source="second")
    out = site.directory / "log.jsonl"
    log = ["--log", str(site.directory / "data" / "audit.sqlite")]
    CliRunner().invoke(main, ["audit", "export", *log, "--out", str(out)])
    records = [json.loads(line)["record"] for line in out.read_text().splitlines()]
    acts = [(each["kind"], each["by"], each["reason"]) for each in records if each.get("quarantine_id") == identity]
    assert acts == [
        ("shown", "reviewer", ""),
        ("agreed", "reviewer", "known device"),
        ("confirmed", "second", "or rather not"),
    ]
    assert str(dcmread(CT).PatientName) not in out.read_text()
