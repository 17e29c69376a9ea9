"""A study sent whole to a gateway with a model: each slice is judged and answered, and then all of them together."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file

from gateway.client.client import Client, Screened, StudyAnswer
from gateway.receipt import verify_receipt
from gateway.testing import GatewayProcess, Site
from signing import envelope

CT = Path(str(get_testdata_file("CT_small.dcm"))).read_bytes()
SLICES = 6


def one_slice(number: int, *, odd: bool = False) -> bytes:
    """The same anatomy at another exposure; or one that no clean scan looks like."""
    dataset = dcmread(io.BytesIO(CT))
    pixels = dataset.pixel_array + np.random.default_rng(number).normal(0.0, 3.0, dataset.pixel_array.shape)
    if odd:
        pixels[::6, ::6] = pixels[1::6, ::6] = pixels[::6, 1::6] = pixels[1::6, 1::6] = 2500
    dataset.PixelData = pixels.astype("<i2").tobytes()
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{number}"
    out = io.BytesIO()
    dataset.save_as(out)
    return out.getvalue()


def sent(site: Site, gateway: GatewayProcess, folder: Path, objects: list[bytes]) -> tuple[list[Screened], StudyAnswer]:
    paths = [folder / f"{number}.dcm" for number in range(len(objects))]
    for path, content in zip(paths, objects, strict=True):
        path.write_bytes(content)
    with Client(gateway.addresses.grpc, token=site.tokens["reviewer"]) as client:
        *instances, study = client.study(paths, "ct")
    assert isinstance(study, StudyAnswer)
    return [each for each in instances if isinstance(each, Screened)], study


def test_clean_slices_are_answered_by_the_model_and_are_a_clean_study(
    site: Site, gateway: GatewayProcess, tmp_path: Path
) -> None:
    instances, study = sent(site, gateway, tmp_path, [one_slice(number) for number in range(SLICES)])

    answers = [each.answer for each in instances if each.answer is not None]
    assert [answer.prediction is not None for answer in answers] == [True] * SLICES
    assert (study.disposition, study.instances) == ("admit", SLICES)
    p_values = [next(f.p_value for f in answer.findings if f.stage == "detection") for answer in answers]
    assert [each.p_value for each in study.slices] == pytest.approx(p_values)
    assert study.p_value is not None
    assert study.p_value > 0.05
    assert not any(each.suspect for each in study.slices)


def test_one_odd_slice_is_held_and_named(site: Site, gateway: GatewayProcess, tmp_path: Path) -> None:
    """Of four: the small artefact was calibrated on 320 scans, and its one detector is not loud."""
    objects = [one_slice(100), one_slice(101), one_slice(102), one_slice(103, odd=True)]
    instances, study = sent(site, gateway, tmp_path, objects)

    held = [each.answer.scan_sha256 for each in instances if each.answer and not each.answer.admitted]
    assert (study.disposition, study.reasons) == ("quarantine", ("suspect",))
    assert [each.scan_sha256 for each in study.slices if each.suspect] == held
    assert len(held) == 1
    key = envelope.load_public_key(site.directory / "keys" / "receipt.pub")
    assert verify_receipt(study.receipt, [key])["predicate"]["disposition"] == "quarantine"
