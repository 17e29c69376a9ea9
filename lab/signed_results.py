"""Sends thousands of tampered signed scans to a real gateway, and writes docs/results-signed.md: `make signed`."""

import os
import platform
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from pydicom import Dataset
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid

from gateway.client.client import Client
from gateway.testing import GatewayProcess, Site
from lab import phantoms
from lab.attacks.tampering import edited
from lab.live.tampered import VARIED, tamper_through
from lab.progress import progress
from signing import sign

REPORT = Path("docs/results-signed.md")
REAL = ("CT_small.dcm", "MR_small.dcm", "MR_small_jp2klossless.dcm", "MR_small_RLE.dcm")
"""Scans that come with pydicom: native and encapsulated."""
DRAWN = 2
SENDER = "reviewer"
"""A source that may read the exact reasons; the others get one word for all signatures."""


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=REPORT, show_default=True)
@click.option("--count", default=10_000, show_default=True, help="forgeries")
@click.option("--seed", default=0, show_default=True)
def main(*, out: Path, count: int, seed: int) -> None:
    """Build a hospital, sign scans, tamper with them, have a gateway process screen them, and write the report."""
    with tempfile.TemporaryDirectory() as folder, progress() as watch:
        site = Site.make(Path(folder, "site"))  # (1) who is trusted
        scans = signed_scans(site, Path(folder, "scans"))  # (2) what is tampered with
        with (
            GatewayProcess(site.config) as gateway,
            Client(gateway.addresses.grpc, token=site.tokens[SENDER]) as client,
        ):
            found = tamper_through(  # (3) the forgeries
                client, "a gateway on this machine", "strict", list(VARIED), count, seed, scans, Path(folder, "out"),
                watch,
            )  # fmt: skip
    out.write_text(report(found, f"python -m lab.signed_results --count {count} --seed {seed}"))
    click.echo(f"{len(found['admitted'])} of {found['sent']} admitted; {out}", err=True)


def signed_scans(site: Site, folder: Path) -> Path:
    """Sign real and drawn scans as the hospital's CT scanner; returns the folder that they lie in."""
    folder.mkdir()
    contents = {name: Path(str(get_testdata_file(name, download=False))).read_bytes() for name in REAL}
    for seed in phantoms.seeds("demo", DRAWN):
        contents[f"phantom-{seed}.dcm"] = phantoms.to_dicom(phantoms.draw(int(seed)))
    for name, content in contents.items():
        signed = sign(
            edited(content, _renamed), signer=site.hospital.signer("ct"), profile="inference", at=datetime.now(UTC)
        )
        (folder / name).write_bytes(signed)
    return folder


def _renamed(dataset: Dataset) -> None:
    """An instance of its own: some of pydicom's scans are one instance in several encodings, which is a replay."""
    name = [str(dataset.SOPInstanceUID), str(dataset.file_meta.TransferSyntaxUID)]
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=name)


def report(found: Mapping[str, Any], command: str) -> str:
    """The document; every figure comes from what the gateway answered."""
    rate = found["admitted_rate"]
    lines = [
        "# Tampered signed scans at the gateway",
        "",
        f"Written by `{command}` (`make signed`); do not edit. Python {platform.python_version()},",
        f"{os.cpu_count()} cores.",
        "",
        f"**{len(found['admitted'])} of {found['sent']} admitted** (95 % Clopper-Pearson [{rate['low']:.2%},",
        f"{rate['high']:.2%}]). {found['scans']} scans, native and encapsulated, real and drawn, were signed with the",
        "profile `inference` and admitted as they were; then tampered copies of them, "
        f"{found['distinct']} of these different,",
        "went to a gateway process, over gRPC, on a route that rejects what is unsigned. How each is made is in",
        "[attacks](attacks.md#forgeries-of-signed-scans).",
        "",
        "| tampering | sent | answers |",
        "|---|---|---|",
        *(
            f"| {name} | {sum(answers.values())} | "
            + ", ".join(f"{count} {answer}" for answer, count in sorted(answers.items()))
            + " |"
            for name, answers in found["tampering"].items()
        ),
        "",
        "| reason | scans |",
        "|---|---|",
        *(f"| `{name}` | {count} |" for name, count in sorted(found["reasons"].items(), key=lambda item: -item[1])),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
