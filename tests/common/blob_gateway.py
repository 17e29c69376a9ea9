"""A model server of its own process, and the configuration of a gateway that asks it, for models of small blobs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from pydicom.data import get_testdata_file

from detectors.methods.twins import Hardening
from site_tables import ENGINE, route

CT = Path(str(get_testdata_file("CT_small.dcm"))).read_bytes()
QUICK = Hardening(1.0, 6.0, 4, 4e-3, batch=32)
"""A twin that is hardly one, for tests of everything around it."""
_PROGRAM = Path(__file__).parents[1] / "simulators" / "kserve_server.py"


class ModelServer:
    """A real server of the protocol, always at the same address; it goes away with its block.

    The model is called `blobs`.
    """

    def __init__(self, folder: Path) -> None:
        self._journal = folder / "journal"
        self.address = "127.0.0.1:0"
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> ModelServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def url(self) -> str:
        """Where `scanward-lab` finds the model."""
        return f"kserve://{self.address}/blobs"

    def start(self, model: Path) -> None:
        """Serve this file until killed."""
        command = [sys.executable, str(_PROGRAM), str(model), str(self._journal), "--name", "blobs"]
        self._process = subprocess.Popen([*command, "--address", self.address], stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.address = self._process.stdout.readline().strip()

    def kill(self) -> None:
        """Go away without a word."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()


def tables(profile: Path, detectors: Path, key: Path, address: str, *, model: Path | None = None) -> str:
    """The tables of a gateway whose route `ct` examines with these detectors, and asks the server at an address.

    `model` is the file of the model, where the gateway has one; `key` the public half of who signed the detectors.
    """
    file = f'model = "{model}"\n' if model is not None else ""
    return f"""{ENGINE}
[models.blobs]
profile = "{profile}"
{file}detectors = "{detectors}"
[models.blobs.kserve]
address = "{address}"
model = "blobs"
unsafe_plaintext = true
attempts_max = 2
failures_max = 100
[trust.artefacts]
public_keys = ["{key}"]
{route("ct", model="blobs", upstream="kserve")}"""
