"""The systemd unit: valid, closed as far as it can be, and the gateway really works in the confinement it describes."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from click.testing import CliRunner
from pydicom.data import get_testdata_file

from gateway.cli import main
from gateway.client.client import Client
from gateway.settings.doors import DimseConfig, GrpcConfig
from gateway.testing import GatewayProcess, Site

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "systemd"
UNIT = FOLDER / "scanward.service"
CT = Path(str(get_testdata_file("CT_small.dcm")))
EXPOSURE_MAX = 1.5
"""Of 10, as systemd rates it; what is left is the network, /proc, and machine code written at run time."""


@pytest.fixture(autouse=True)
def systemd() -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd")


def unit() -> configparser.ConfigParser:
    """The unit's keys; of one that stands several times, the last."""
    parser = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",), comment_prefixes=("#",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNIT)
    return parser


def test_systemd_finds_nothing_wrong_with_it(tmp_path: Path) -> None:
    """With the paths of a machine where it is installed: the program must be there and be runnable."""
    installed = tmp_path / UNIT.name
    installed.write_text(UNIT.read_text().replace("/opt/scanward/bin/scanward", "/bin/true"))
    (drop_ins := tmp_path / f"{UNIT.name}.d").mkdir()
    for drop_in in FOLDER.glob("*.conf"):
        if drop_in.name != "scanward.sysusers.conf":
            shutil.copy(drop_in, drop_ins)

    done = subprocess.run(["systemd-analyze", "verify", installed], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_it_is_closed_as_far_as_it_can_be() -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", UNIT], capture_output=True, text=True, check=False
    )
    found = re.search(r"Overall exposure level for scanward.service: ([\d.]+)", done.stdout)

    assert found is not None, done.stdout + done.stderr
    print(f"\nexposure level {found[1]}")
    assert float(found[1]) <= EXPOSURE_MAX


def test_what_it_starts_are_commands_that_exist() -> None:
    service = unit()["Service"]
    for key in ("ExecStart", "ExecStartPre"):
        _, command, *_ = service[key].split()
        assert CliRunner().invoke(main, [command, "--help"]).exit_code == 0


def test_it_waits_longer_than_the_gateway_drains() -> None:
    fields = (GrpcConfig, "drain_s_max"), (DimseConfig, "drain_s_max"), (DimseConfig, "examine_s_max")
    assert float(unit()["Service"]["TimeoutStopSec"]) > sum(kind.model_fields[key].default for kind, key in fields) + 10


def test_a_broken_configuration_is_not_tried_again_and_again() -> None:
    """Exit code 2 means that it cannot run; see the command line's contract."""
    assert unit()["Service"]["RestartPreventExitStatus"] == "2"


def test_the_gateway_works_in_that_confinement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is read-only but for the state, no capability, and no system call that the unit does not allow."""
    site = Site.make(tmp_path / "site")
    state = site.directory / "data"
    state.mkdir(mode=0o700)
    monkeypatch.setattr(tempfile, "tempdir", str(state))  # where the ready file goes
    confined = ["unshare", "--map-root-user", "--mount", sys.executable, str(Path(__file__).with_name("confined.py"))]

    with GatewayProcess(site.config, under=[*confined, str(UNIT), str(state)]) as gateway:
        status = Path(f"/proc/{gateway.pid}/status").read_text()
        mounts = Path(f"/proc/{gateway.pid}/mounts").read_text()
        with Client(gateway.addresses.grpc, token=site.tokens["scanner"]) as client:
            assert client.protect(CT, "open").disposition == "admit"
            assert client.protect(CT, "strict").disposition == "reject"

    assert {"CapEff:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"} <= set(status.splitlines())
    assert re.search(r"^\S+ / \S+ ro,", mounts, re.MULTILINE)
