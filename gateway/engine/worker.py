"""The detection process: holds every model and its detectors, and examines the batches that it is sent."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detectors.artifact import Artefact
from detectors.ensemble import Examination
from detectors.errors import AnswerError, DetectorError
from detectors.heat import drawn
from detectors.mondrian import Category
from detectors.observation import Needs
from gateway.engine.answers import asking
from gateway.engine.engine import GreyZone
from gateway.engine.shared import SharedImages

_PR_SET_PDEATHSIG = 1
Report = dict[str, Any]


def main() -> None:
    """Serve the gateway at the other end of the connection until it closes it.

    (1) load what the first messages name, and say so, or why not
    (2) examine batches, one answer each
    """
    connection, questions, images = Connection(int(sys.argv[1])), Connection(int(sys.argv[2])), int(sys.argv[3])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the gateway's to handle
    _die_with(int(sys.argv[4]))
    try:
        worker = _load(connection, questions, images)  # (1)
    except DetectorError as error:
        connection.send_bytes(json.dumps({"refused": str(error)}).encode())
        return
    connection.send_bytes(json.dumps({"ready": os.getpid()}).encode())
    while True:
        try:
            request = connection.recv_bytes()
        except EOFError:
            return
        connection.send_bytes(json.dumps(worker.examine(json.loads(request))).encode())  # (2)


@dataclass(frozen=True, slots=True)
class Worker:
    """Loaded models and the memory that images come in."""

    artefacts: dict[str, Artefact]
    shared: SharedImages
    device: torch.device
    batch_size_max: int

    def examine(self, request: Report) -> Report:
        """Examine one batch; where it fails as a whole, each case alone, so that one cannot spoil the others."""
        artefact = self.artefacts[request["model"]]
        if request["explain"]:
            return {"batch": request["batch"], "cases": [self._explain(artefact, request)]}
        cases: Sequence[Report] = request["cases"]
        frames = [int(case["frames"]) for case in cases]
        place = (sum(frames), *request["shape"])
        incoming = self.shared.incoming(request["region"], place)
        outgoing = self.shared.outgoing(request["region"], place)
        ends = np.cumsum(frames).tolist()
        spans = [slice(end - count, end) for end, count in zip(ends, frames, strict=True)]
        try:
            reports = self._examine(artefact, incoming, outgoing, list(zip(spans, cases, strict=True)))
        except torch.AcceleratorError:
            raise  # the device is lost for this process; the gateway starts another
        except AnswerError as error:  # no image's fault: nobody is asked again for each of them
            reports = [{"error": type(error).__name__} for _ in cases]
        except Exception as error:
            if len(cases) == 1:
                reports = [{"error": type(error).__name__}]
            else:
                reports = [self._alone(artefact, incoming, outgoing, each) for each in zip(spans, cases, strict=True)]
        return {"batch": request["batch"], "cases": reports}

    def _explain(self, artefact: Artefact, request: Report) -> Report:
        """Draw the map of the loudest frame of one image, into the place of the first of its channels."""
        images = torch.from_numpy(self.shared.incoming(request["region"], tuple(request["shape"]))).to(self.device)
        outgoing = self.shared.outgoing(request["region"], tuple(request["shape"][1:]))
        seeds = torch.arange(len(images), device=self.device)  # in the open: a map shows and decides nothing
        try:
            parts = [
                artefact.ensemble.examine(part, chosen).statistic
                for part, chosen in zip(
                    torch.split(images, self.batch_size_max), torch.split(seeds, self.batch_size_max), strict=True
                )
            ]
            frame = int(torch.cat(parts).argmax())
            heat = drawn(artefact.ensemble.probe, images[frame : frame + 1], artefact.denoisers)
            np.copyto(outgoing[0], heat[0].cpu().numpy())
        except torch.AcceleratorError:
            raise
        except Exception as error:
            return {"error": type(error).__name__}
        return {"frame": frame, "usual": artefact.manifest.get("heat_usual")}

    def _alone(
        self,
        artefact: Artefact,
        incoming: NDArray[np.float32],
        outgoing: NDArray[np.float32],
        each: tuple[slice, Report],
    ) -> Report:
        try:
            return self._examine(artefact, incoming[each[0]], outgoing[each[0]], [(slice(None), each[1])])[0]
        except torch.AcceleratorError:
            raise
        except Exception as error:
            return {"error": type(error).__name__}

    def _examine(
        self,
        artefact: Artefact,
        incoming: NDArray[np.float32],
        outgoing: NDArray[np.float32],
        cases: list[tuple[slice, Report]],
    ) -> list[Report]:
        """One report a case.

        (1) examine all images, in parts of at most a batch
        (2) join the frames of each case
        (3) denoise the cases in the grey zone, and ask the reference model again
        """
        images = torch.from_numpy(incoming).to(self.device)
        claims, size = _claims(cases), self.batch_size_max
        parts = [
            artefact.ensemble.examine(part, seeds, None if claims is None else claims[start : start + size])
            for start, part, seeds in zip(
                range(0, len(images), size), torch.split(images, size), self._seeds(cases, len(images)), strict=True
            )
        ]  # (1)
        seen = _Seen.of(parts)
        reports = [seen.report(span) for span, _ in cases]  # (2)
        for (span, case), report in zip(cases, reports, strict=True):
            if case["grey"] is not None and GreyZone(*case["grey"]).holds(report["p_value"]):
                report["denoised_logits"] = self._denoise(artefact, images[span], outgoing[span])  # (3)
        return reports

    def _seeds(self, cases: list[tuple[slice, Report]], images: int) -> Sequence[Tensor | None]:
        """Those of all images, in the same parts; of each None where a case has none, and then nothing may draw."""
        seeds = torch.tensor([seed for _, case in cases for seed in case["seeds"]], dtype=torch.int64)
        if len(seeds) != images:
            return [None] * -(-images // self.batch_size_max)
        return torch.split(seeds.to(self.device), self.batch_size_max)

    def _denoise(
        self, artefact: Artefact, images: Tensor, outgoing: NDArray[np.float32]
    ) -> dict[str, list[list[float]]]:
        """Logits (frames, classes) by denoiser; the image of the first one goes out."""
        logits: dict[str, list[list[float]]] = {}
        with torch.no_grad():
            for index, (name, denoiser) in enumerate(artefact.denoisers.items()):
                parts = [denoiser(part) for part in torch.split(images, self.batch_size_max)]
                observed = [artefact.ensemble.probe.observe(part, Needs()).logits for part in parts]
                logits[name] = torch.cat(observed).tolist()
                if index == 0:
                    np.copyto(outgoing, torch.cat(parts).cpu().numpy())
        return logits


@dataclass(frozen=True, slots=True)
class _Seen:
    """A batch's examination as plain arrays, one row an image."""

    logits: NDArray[np.float32]
    statistic: NDArray[np.float64]
    p_value: NDArray[np.float64]
    scores: dict[str, NDArray[np.float64]]
    p_values: dict[str, NDArray[np.float64]]

    @classmethod
    def of(cls, parts: Sequence[Examination]) -> _Seen:
        """Gather what was examined in parts."""
        first = parts[0]
        return cls(
            torch.cat([part.logits for part in parts]).float().cpu().numpy(),
            _gather([part.statistic for part in parts]),
            _gather([part.p_value for part in parts]),
            {name: _gather([part.scores[name] for part in parts]) for name in first.scores},
            {name: _gather([part.p_values[name] for part in parts]) for name in first.p_values},
        )

    def report(self, span: slice) -> Report:
        """What is said of one case: its loudest frame decides, corrected for how many there are (Bonferroni)."""
        frames = self.p_value[span]
        report: Report = {
            "statistic": float(self.statistic[span].max()),
            "p_value": _corrected(frames),
            "logits": self.logits[span].tolist(),
            "scores": {name: float(values[span].max()) for name, values in self.scores.items()},
            "p_values": {name: _corrected(values[span]) for name, values in self.p_values.items()},
        }
        for p_value in (report["p_value"], *report["p_values"].values()):
            if not 0.0 < p_value <= 1.0:
                raise DetectorError("a p-value lies outside 0 to 1")
        return report


def _claims(cases: Sequence[tuple[slice, Report]]) -> list[list[Category]] | None:
    """For each image, the categories that its case may be of; None where the model has none."""
    if any(case["claims"] is None for _, case in cases):
        return None  # then no case of the batch has any: a batch is one model's
    return [[tuple(category) for category in case["claims"]] for _, case in cases for _ in range(int(case["frames"]))]


def _corrected(p_values: NDArray[np.float64]) -> float:
    return min(1.0, float(p_values.min()) * len(p_values))


def _gather(parts: list[Tensor]) -> NDArray[np.float64]:
    gathered: NDArray[np.float64] = torch.cat(parts).double().cpu().numpy()
    return gathered


def _load(connection: Connection, questions: Connection, images: int) -> Worker:
    """Read the settings, then manifest and model of each artefact; the files they name are checked on opening."""
    settings = json.loads(connection.recv_bytes())
    torch.set_num_threads(settings["threads"])
    torch.set_num_interop_threads(1)
    if settings["device"] == "cuda" and not torch.cuda.is_available():
        raise DetectorError('engine.device is "cuda", and torch finds no CUDA device')
    device = torch.device(settings["device"])
    artefacts = {}
    for entry in settings["models"]:
        manifest, model = connection.recv_bytes(), connection.recv_bytes()
        try:
            ask = asking(questions, entry["name"]) if entry["served_only"] else None
            artefact = Artefact.load(Path(entry["artefact"]), manifest, model, entry["profile_sha256"], device, ask=ask)
            if ask is None:  # a server may come up later than the gateway
                image, seeds = torch.zeros(1, *entry["shape"]), torch.zeros(1, dtype=torch.int64)
                artefact.ensemble.examine(image.to(device), seeds.to(device))  # warm, and known to fit
        except DetectorError as error:
            raise type(error)(f"models.{entry['name']}: {error}") from error
        artefacts[entry["name"]] = artefact
    shared = SharedImages(images, settings["values"])
    return Worker(artefacts, shared, device, settings["batch_size_max"])


def _die_with(parent: int) -> None:
    """Ask the kernel to end this process with its parent, so that no orphan holds the device."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)  # it went before we asked


if __name__ == "__main__":
    main()
