"""Whoever asks about one image in many variations raises the alarm; whoever sends a whole series does not."""

from __future__ import annotations

import io
import itertools
import json
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid

from gateway.app.assembly import AUDIT_LOG
from gateway.audit.sqlite import SqliteReader
from gateway.callers.queries import ALARM_COUNT
from gateway.client.client import Client
from gateway.testing import GatewayProcess, Site
from lab.drawing.canvas import Canvas
from lab.drawing.chest import Build, draw_chest
from lab.drawing.lungs import draw_lungs
from lab.drawing.scanner import Protocol, acquire
from lab.phantoms import WARP_MM

CT = Path(str(get_testdata_file("CT_small.dcm"))).read_bytes()
SLICES = 500
QUESTIONS_MAX = 4 * ALARM_COUNT


def as_object(pixels: NDArray[np.generic], number: int = 1) -> bytes:
    """The pixels in an object of its own."""
    dataset = dcmread(io.BytesIO(CT))
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.PixelData = pixels.astype("<i2").tobytes()
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[str(number)])
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


def alarms(gateway: GatewayProcess, source: str) -> float:
    text = urllib.request.urlopen(f"http://{gateway.addresses.metrics}/metrics", timeout=10).read().decode()
    series = f'scanward_query_alarms_total{{source="{source}"}} '
    return float(next((line.removeprefix(series) for line in text.splitlines() if line.startswith(series)), 0))


def questions(held: NDArray[np.float64], admitted: NDArray[np.float64]) -> Iterator[NDArray[np.float64]]:
    """A boundary attack (Brendel et al. 2018, arXiv:1712.04248): told only held or not, it walks along the border."""
    rng = np.random.default_rng(0)
    while True:
        middle = (held + admitted) / 2
        if (yield middle):
            held = middle
        else:
            admitted = middle
        if np.abs(held - admitted).max() < 4.0:
            held = admitted + rng.normal(0.0, 12.0, held.shape)


def test_a_walk_along_the_border_of_what_is_held_raises_the_alarm(site: Site, gateway: GatewayProcess) -> None:
    clean = dcmread(io.BytesIO(CT)).pixel_array.astype(np.float64)
    spoilt = clean + np.random.default_rng(1).choice([-300.0, 300.0], clean.shape)
    with Client(gateway.addresses.grpc, token=site.tokens["scanner"]) as attacker:

        def held(image: NDArray[np.float64]) -> bool:
            return attacker.protect(as_object(np.clip(image, -2000, 4000)), "ct").disposition == "quarantine"

        assert (held(spoilt), held(clean)) == (True, False)
        walk = questions(spoilt, clean)
        question = next(walk)
        for asked in itertools.count():
            assert asked < QUESTIONS_MAX, "no alarm"
            if asked % 10 == 0 and alarms(gateway, "scanner"):
                break
            question = walk.send(held(question))

    with SqliteReader(site.directory / "data" / AUDIT_LOG) as log:
        bodies = [json.loads(body) for _, body, _ in log.entries() if isinstance(body, bytes)]
    assert [(body["source"], body["count"]) for body in bodies if body["kind"] == "alarmed"] == [
        ("scanner", ALARM_COUNT)
    ]
    assert "query_attack" in gateway.log()


def slices() -> Iterator[NDArray[np.int64]]:
    """Neighbouring slices of one drawn chest, more alike than real ones: the same textures, and noise of their own.

    Every 25th has a defect of the scanner, too fine for its likeness to the others to change, that the detectors see.
    """
    defect = 1000 * (np.indices((64, 64)).sum(axis=0) % 2 * 2 - 1)
    for number in range(0, SLICES, 2):
        rng = np.random.Generator(np.random.PCG64(1001))
        build = replace(Build.draw(rng), level=number / SLICES)
        protocol = Protocol.draw(rng, 2 * (build.cavity_a + build.fat_mm + build.muscle_mm) + 14)
        canvas = Canvas.blank(rng, 64, protocol.field_mm / 64, WARP_MM)
        draw_lungs(canvas, rng, build, draw_chest(canvas, rng, build), protocol.thickness_mm)
        for each in (number, number + 1):
            pixels = acquire(canvas, np.random.default_rng(each), protocol, build.cavity_b).astype(np.int64)
            yield pixels + defect if each % 25 == 0 else pixels


def test_five_hundred_slices_of_one_series_do_not(site: Site, gateway: GatewayProcess) -> None:
    with Client(gateway.addresses.grpc, token=site.tokens["reviewer"]) as scanner, ThreadPoolExecutor(4) as threads:
        objects = [as_object(pixels, number) for number, pixels in enumerate(slices())]
        answers = list(threads.map(lambda each: scanner.protect(each, "ct").disposition, objects))
    assert len(answers) == SLICES
    assert answers.count("quarantine") >= 3  # or the test would say nothing
    assert alarms(gateway, "reviewer") == 0.0
