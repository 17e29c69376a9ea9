"""A scan that the detectors held has a picture for its reviewers, drawn by the real worker and kept encrypted."""

from __future__ import annotations

import io
import stat
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from pydicom import dcmread
from pydicom.data import get_testdata_file

from gateway.app.assembly import AUDIT_LOG
from gateway.audit.export import lines
from gateway.audit.sqlite import SqliteReader
from gateway.cli import main
from gateway.client.client import Client
from gateway.client.reviewer import Reviewer
from gateway.pixels.overlay import PANEL_PIXELS
from gateway.testing import GatewayProcess, Site

CT = Path(str(get_testdata_file("CT_small.dcm")))


def speckled(columns: int = 128) -> bytes:
    """CT_small with salt and pepper in its lower right corner, which the small artefact's one detector answers to."""
    dataset = dcmread(CT)
    pixels = dataset.pixel_array.copy()
    for row in range(64, 128, 4):
        pixels[row : row + 2, 64:128:6] = 2500
        pixels[row : row + 2, 65:128:6] = 2500
    dataset.PixelData = pixels[:, :columns].tobytes()
    dataset.Columns = columns
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def held(site: Site, gateway: GatewayProcess) -> str:
    with Client(gateway.addresses.grpc, token=site.tokens["scanner"]) as client:
        answer = client.protect(speckled(), "ct")
    assert (answer.disposition, answer.reasons) == ("quarantine", ("suspect",))
    return answer.quarantine_id


def show(site: Site, gateway: GatewayProcess, identity: str, out: Path, source: str = "reviewer") -> Result:
    environment = {"SCANWARD_TOKEN": site.tokens[source], "SCANWARD_ADDRESS": gateway.addresses.grpc}
    return CliRunner(env=environment).invoke(main, ["quarantine", "show", identity, "--map", str(out)])


def shown(site: Site) -> int:
    with SqliteReader(site.directory / "data" / AUDIT_LOG) as reader:
        return sum(line["record"]["kind"] == "shown" for line in lines(reader))


def test_it_is_drawn_by_itself_and_nobody_reads_it_on_disk(site: Site, held: str) -> None:
    kept = site.directory / "data" / "quarantine" / f"{held}.map"
    give_up_at = time.monotonic() + 60
    while not kept.exists():
        assert time.monotonic() < give_up_at, "no map was drawn"
        time.sleep(0.05)
    assert b"\x89PNG\r\n" not in kept.read_bytes()


def test_a_reviewer_sees_where_the_noise_acts_and_that_is_on_record(
    site: Site, gateway: GatewayProcess, held: str, tmp_path: Path
) -> None:
    out, before = tmp_path / "map.png", shown(site)
    ended = show(site, gateway, held, out)
    assert ended.exit_code == 0, ended.stderr
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    page = np.asarray(Image.open(out)).astype(int)
    panel = page[16 : 16 + PANEL_PIXELS, 32 + PANEL_PIXELS : 32 + 2 * PANEL_PIXELS]
    rows, columns = np.nonzero(np.ptp(panel, axis=2) > 100)
    assert len(rows) > 0
    assert min(rows.mean(), columns.mean()) > PANEL_PIXELS / 2  # where the speckles are
    assert shown(site) == before + 1
    assert show(site, gateway, held, out).exit_code == 2  # nothing is overwritten


def test_a_sender_sees_no_map(site: Site, gateway: GatewayProcess, held: str, tmp_path: Path) -> None:
    """What the detectors look at is no business of whoever may be trying to pass them."""
    ended = show(site, gateway, held, tmp_path / "map.png", source="scanner")
    assert ended.exit_code == 2
    assert not (tmp_path / "map.png").exists()


def test_a_map_that_was_lost_is_drawn_when_somebody_asks(site: Site, gateway: GatewayProcess, tmp_path: Path) -> None:
    with Client(gateway.addresses.grpc, token=site.tokens["scanner"]) as client:
        identity = client.protect(speckled(columns=96), "ct").quarantine_id
    kept = site.directory / "data" / "quarantine" / f"{identity}.map"
    with Reviewer(gateway.addresses.grpc, token=site.tokens["reviewer"]) as reviewer:
        reviewer.save_map(reviewer.show(identity), tmp_path / "first.png")
        kept.unlink()
        reviewer.save_map(reviewer.show(identity), tmp_path / "second.png")
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()
    size = Image.open(tmp_path / "second.png").size
    assert size[0] == 2 * round(PANEL_PIXELS * 96 / 128) + 3 * 16  # in the proportions of the scan
    assert kept.exists()


def palette() -> bytes:
    dataset = dcmread(CT)
    dataset.PhotometricInterpretation = "PALETTE COLOR"
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


def test_a_scan_that_no_detector_could_look_at_has_no_map(site: Site, gateway: GatewayProcess, tmp_path: Path) -> None:
    with Client(gateway.addresses.grpc, token=site.tokens["scanner"]) as client:
        answer = client.protect(palette(), "ct")
    assert (answer.disposition, answer.reasons) == ("quarantine", ("unexaminable",))
    ended = show(site, gateway, answer.quarantine_id, tmp_path / "map.png")
    assert ended.exit_code == 2
    assert "no heat map of this scan: no detector has looked at it" in ended.stderr
    assert not (tmp_path / "map.png").exists()
