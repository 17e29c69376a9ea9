"""A real server of the Open Inference Protocol, in a process of its own that a test may kill, stop or fool."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

_PROGRAM = Path(__file__).parents[1] / "simulators" / "kserve_server.py"


class ModelServer:
    """Serves one ONNX model under one name, always at the same address; it goes away with its block."""

    def __init__(self, folder: Path, name: str = "blobs", *options: str) -> None:
        """`folder` holds the journal of what was answered; `options` are the simulator's own."""
        self.address = "127.0.0.1:0"
        self._name, self._options = name, options
        self._journal = folder / "journal"
        self._journal.touch()
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> ModelServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def url(self) -> str:
        """Where `scanward-lab` finds the model."""
        return f"kserve://{self.address}/{self._name}"

    @property
    def answered(self) -> list[str]:
        """The ids of the requests that were answered."""
        return self._journal.read_text().split()

    def start(self, model: Path) -> None:
        """Serve this file until killed."""
        where = ["--name", self._name, "--address", self.address]
        command = [sys.executable, str(_PROGRAM), str(model), str(self._journal), *where, *self._options]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.address = self._process.stdout.readline().strip()
        assert self.address, "the server did not start"

    def kill(self) -> None:
        """Go away without a word."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def send(self, number: signal.Signals) -> None:
        """Stop, or go on."""
        assert self._process is not None
        self._process.send_signal(number)
