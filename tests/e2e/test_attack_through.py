"""The red team in front of a gateway that runs: what it achieves by answers alone, and what the gateway sees of it."""

from __future__ import annotations

import csv
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from pydicom.data import get_testdata_file

from gateway.client.client import Client
from gateway.testing import GatewayProcess, Site
from lab.cli import main
from lab.live.command import said
from lab.live.tampered import VARIED
from lab.signed_results import report, signed_scans
from signing import sign

CT = Path(str(get_testdata_file("CT_small.dcm"))).read_bytes()
SLOW = """
[limits.scanner]
scans_per_s = 0.01
scans_burst = 12
bytes_per_s = 1e12
bytes_burst = 1000000000
holds_per_hour = 1e9
holds_burst = 1000000
calls_share = 1.0
spool_share = 1.0
"""


def lab(*arguments: str | Path | int, token: str) -> Result:
    return CliRunner().invoke(main, [str(each) for each in arguments], env={"SCANWARD_TOKEN": token})


def ward(folder: Path, site: Site, gateway: GatewayProcess, content: bytes) -> Path:
    """A folder of one scan, labelled as the gateway's model reads it."""
    folder.mkdir()
    (folder / "ct.dcm").write_bytes(content)
    with Client(gateway.addresses.grpc, token=site.tokens["scanner"]) as client:
        answer = client.protect(content, "ct")
    assert answer.prediction is not None, "the clean scan was not admitted: the test would say nothing"
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["file", "label"], ["ct.dcm", answer.prediction.label]])
    return folder


def attack(site: Site, gateway: GatewayProcess, source: Path, out: Path, *more: str | int) -> Result:
    return lab(
        "attack", "--through", gateway.addresses.grpc, "--metrics", gateway.addresses.metrics, "--route", "ct",
        "--profile", site.directory / "small" / "profile.toml", "--data", source, "--out", out, "--json", *more,
        token=site.tokens["scanner"],
    )  # fmt: skip


def counted(document: dict[str, Any], name: str) -> float:
    return sum(value for series, value in document["defences"].items() if series.startswith(name))


def test_the_attacker_hears_verdicts_and_the_gateway_sees_him(site: Site, tmp_path: Path) -> None:
    """Probes rough enough to be held tell him nothing; what was held lies in quarantine, is counted, and betrays him.

    He asks about one scan in 250 variations, as any attack by answers must: no setting of the gateway is for this test.
    """
    own = site.copy(tmp_path / "own")
    with GatewayProcess(own.config, environment={"OMP_NUM_THREADS": "2"}) as process:
        source = ward(tmp_path / "ward", own, process, CT)
        probing = ("--attack", "nes", "--option", "reach=30", "--option", "steps=12", "--option", "probes=10")
        result = attack(own, process, source, tmp_path / "out", "--eps", 30, "--questions", 270, *probing)
        told = process.log()

    assert result.exit_code in {0, 1}, result.stderr
    document = json.loads(result.stdout)
    assert document == json.loads((tmp_path / "out" / "attack.json").read_text())
    assert document["ok"] == (result.exit_code == 0)
    (each,) = document["attacks"]
    assert (each["name"], each["attacked"]) == ("nes", 1)
    assert 150 < each["questions"] <= 270
    assert sum(each["dispositions"].values()) == each["questions"]
    assert each["dispositions"]["quarantine"] > 50
    assert counted(document, "scanward_scans_total") > 150
    assert counted(document, "scanward_quarantine_held") > 50
    assert counted(document, "scanward_query_alarms_total{source=scanner}") == 1
    assert "scanward_query_alarms_total{source=scanner}\t1" in said(document, tmp_path / "out")
    assert "query_attack" in told
    sent = (tmp_path / "out" / "nes" / "ct.dcm").read_bytes()
    assert len(sent) == len(CT)
    assert sent != CT


def test_a_signed_scan_cannot_be_attacked_at_all(site: Site, gateway: GatewayProcess, tmp_path: Path) -> None:
    signed = sign(CT, signer=site.hospital.signer("ct"), profile="inference", at=datetime.now(UTC))
    source = ward(tmp_path / "ward", site, gateway, signed)
    result = attack(site, gateway, source, tmp_path / "out", "--questions", 60, "--attack", "nes")

    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    (each,) = document["attacks"]
    assert (each["attacked"], each["through"]) == (1, 0)
    assert each["dispositions"] == {"admit": each["questions"] - 40, "reject": 40}
    assert each["reasons"]["signature"] == each["dispositions"]["reject"]
    assert counted(document, "scanward_signatures_total{outcome=failed,") >= 40


def test_a_slow_gateway_ends_the_attack(site: Site, gateway: GatewayProcess, tmp_path: Path) -> None:
    source = ward(tmp_path / "ward", site, gateway, CT)
    slow = site.copy(tmp_path / "slow", more=SLOW)
    with GatewayProcess(slow.config, environment={"OMP_NUM_THREADS": "2"}) as process:
        result = attack(slow, process, source, tmp_path / "out", "--patience", 1, "--attack", "nes")

    assert result.exit_code == 0, result.stderr
    (each,) = json.loads(result.stdout)["attacks"]
    assert each["stopped"] == {"rate limit": 1}
    assert each["throttled"] > 0
    assert each["questions"] <= 12


@pytest.fixture(scope="module")
def signed(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return signed_scans(site, tmp_path_factory.mktemp("signed") / "scans")


@pytest.fixture(scope="module")
def forged(site: Site, gateway: GatewayProcess, signed: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("forged")
    result = lab(
        "attack", "--tamper", "all", "--through", gateway.addresses.grpc, "--route", "strict", "--count", 160,
        "--data", signed, "--out", out, "--json", token=site.tokens["reviewer"],
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr + result.stdout
    return json.loads(result.stdout)


def test_no_forgery_of_a_signed_scan_is_admitted(forged: dict[str, Any]) -> None:
    assert forged["sent"] == 160
    assert forged["admitted"] == []
    assert forged["distinct"] > 150
    assert set(forged["tampering"]) == set(VARIED)
    assert all(sum(found.values()) == 20 for found in forged["tampering"].values())
    assert {"unsigned", "mac_mismatch"} <= set(forged["reasons"])


def test_its_page_says_what_the_gateway_answered(forged: dict[str, Any]) -> None:
    page = report(forged, "command")

    assert "**0 of 160 admitted**" in page
    assert "| stripping | 20 | 20 reject |" in page


def test_a_gateway_that_lets_unsigned_scans_in_is_found_out(
    site: Site, gateway: GatewayProcess, signed: Path, tmp_path: Path
) -> None:
    result = lab(
        "attack", "--tamper", "stripping,pixels", "--through", gateway.addresses.grpc, "--route", "open",
        "--count", 12, "--data", signed, "--out", tmp_path / "out", token=site.tokens["reviewer"],
    )  # fmt: skip

    assert result.exit_code == 1
    assert "6 of 12 forgeries admitted" in result.stdout
    assert len(list((tmp_path / "out").glob("admitted-*-stripping.dcm"))) == 6


def test_scans_that_are_not_admitted_as_they_are_prove_nothing(
    site: Site, gateway: GatewayProcess, tmp_path: Path
) -> None:
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "ct.dcm").write_bytes(CT)
    result = lab(
        "attack", "--tamper", "all", "--through", gateway.addresses.grpc, "--route", "strict",
        "--data", tmp_path / "scans", "--out", tmp_path / "out", token=site.tokens["reviewer"],
    )  # fmt: skip

    assert result.exit_code == 2
    assert "as it is, the gateway answers reject" in result.stderr


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (("--through", "example.org:443"), "is not this machine"),
        (("--through", "127.0.0.1.example.org:443"), "is not this machine"),
        (("--through", "127.0.0.1:1", "--metrics", "example.org:9090"), "is not this machine"),
        (("--through", "127.0.0.1:1", "--attack", "pgd"), "pgd: no attack by answers alone"),
        (("--through", "127.0.0.1:1", "--attack", "nes,square", "--option", "steps=1"), "--option needs one --attack"),
        (("--through", "127.0.0.1:1", "--metrics", "127.0.0.1:1", "--attack", "nes"), "no metrics there"),
        (("--through", "127.0.0.1:1", "--tamper", "magic"), "no tampering is called magic"),
    ],
)
def test_what_cannot_be_attacked_is_said(site: Site, tmp_path: Path, more: tuple[str, ...], sentence: str) -> None:
    (tmp_path / "ct.dcm").write_bytes(CT)
    (tmp_path / "labels.csv").write_text("file,label\nct.dcm,dark\n")
    profile = site.directory / "small" / "profile.toml"
    result = lab("attack", "--profile", profile, "--data", tmp_path, "--out", tmp_path / "out", *more, token="t")

    assert result.exit_code == 2
    assert sentence in result.stderr
