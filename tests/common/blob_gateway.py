"""The configuration of a gateway that asks a model server, for models of small blobs."""

from __future__ import annotations

from pathlib import Path

from pydicom.data import get_testdata_file

from detectors.methods.twins import Hardening
from site_tables import ENGINE, route

CT = Path(str(get_testdata_file("CT_small.dcm"))).read_bytes()
QUICK = Hardening(1.0, 6.0, 4, 4e-3, batch=32)
"""A twin that is hardly one, for tests of everything around it."""


def tables(
    profile: Path, detectors: Path, key: Path, address: str, *, model: Path | None = None, fpr: float = 0.01
) -> str:
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
{route("ct", model="blobs", upstream="kserve", fpr=fpr)}"""
