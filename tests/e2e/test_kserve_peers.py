"""The inference door before the client that people have, and the remote upstream before the servers that they run."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.data import get_testdata_file

from gateway.testing import GatewayProcess, Site

CT = Path(str(get_testdata_file("CT_small.dcm")))
ROOT = Path(__file__).parents[2]


def peer(name: str) -> str:
    """The Python of a peer that cannot live with our dependencies; `make peers` installs it."""
    python = ROOT / ".cache" / "peers" / name / "bin" / "python"
    if not python.exists():
        pytest.skip(f"needs {name}: make test-peers")
    return str(python)


class TestTritonClient:
    """An unmodified tritonclient."""

    def ask(self, site: Site, gateway: GatewayProcess, model: str, file: Path, source: str = "scanner") -> Any:
        script = ROOT / "tests" / "peers" / "triton_client.py"
        command = [peer("tritonclient"), str(script), gateway.addresses.grpc, site.tokens[source], model, str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def test_gets_a_prediction_for_an_admitted_scan(self, site: Site, gateway: GatewayProcess) -> None:
        said = self.ask(site, gateway, "ct", CT)

        assert (said["live"], said["ready"], said["model_ready"], said["other_ready"]) == (True, True, True, False)
        assert (said["server"], said["inputs"], said["id"]) == ("scanward", ["DICOM", "image"], "7")
        assert said["label"] in {"dark", "bright"}
        assert sum(said["probabilities"][0]) == pytest.approx(1.0)
        assert said["parameters"]["scanward-disposition"] == "admit"

    def test_hears_why_a_scan_is_refused(self, site: Site, gateway: GatewayProcess) -> None:
        said = self.ask(site, gateway, "strict", CT)
        assert (said["status"], said["message"]) == ("StatusCode.FAILED_PRECONDITION", "reject: signature")

    def test_hears_why_a_tensor_is_held(self, site: Site, gateway: GatewayProcess, tmp_path: Path) -> None:
        np.save(tmp_path / "odd.npy", np.full((1, 1, 64, 64), 7.0, np.float32))
        said = self.ask(site, gateway, "ct", tmp_path / "odd.npy")
        assert (said["status"], said["message"]) == ("StatusCode.FAILED_PRECONDITION", "quarantine: unexaminable")
