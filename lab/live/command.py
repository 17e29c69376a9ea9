"""What `scanward-lab attack --through` needs of a command line, and what it shows at the end."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def through_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of attacks on a gateway that runs, which `run` takes."""
    for option in (
        click.option("--key", type=_FILE, help="its private key, PEM"),
        click.option("--cert", type=_FILE, help="client certificate, PEM"),
        click.option("--ca", type=_FILE, help="CA of the gateway's certificate, PEM; without it only loopback"),
        click.option("--server-name", help="name in the gateway's certificate, if not the address's"),
        click.option("--token-file", type=_FILE, help="file with the bearer token; else SCANWARD_TOKEN is taken"),
        click.option("--unsafe-beyond-this-machine", is_flag=True, help="attack a gateway that is not on loopback"),
        click.option("--count", type=click.IntRange(min=1), default=100, show_default=True, help="forgeries to send"),
        click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="of the forgeries"),
        click.option("--patience", type=click.FloatRange(min=0), default=10.0, show_default=True,
                     help="seconds that one question waits where the gateway asks to"),
        click.option("--questions", type=click.IntRange(min=1), default=500, show_default=True,
                     help="to the gateway at most, for each scan and attack"),
        click.option("--metrics", help="HOST:PORT of the gateway's metrics: what its own defences counted"),
        click.option("--route", default="", help="route; not needed where the sender has only one"),
        click.option("--through", help="HOST:PORT of a gateway that runs: attack it, or have it screen forgeries"),
    ):  # fmt: skip
        command = option(command)
    return command


def run(
    *, through: str, route: str, metrics: str | None, questions: int, patience: float, count: int, seed: int,
    unsafe_beyond_this_machine: bool, attack: str | None, tamper: str | None, eps: float | None,
    options: tuple[str, ...], profile: Path | None, source: Path, out: Path, **where: Any,
) -> dict[str, Any]:  # fmt: skip
    """Attack a gateway, or have it screen forgeries; see `attack_through` and `tamper_through`.

    Raises:
        DataError: no way to the gateway, or what it is to be attacked with cannot be used.
    """
    from gateway.cli.connecting import connection  # noqa: PLC0415 - needed by few; --help stays quick
    from gateway.client.client import Client, ClientError  # noqa: PLC0415
    from gateway.profile import Profile  # noqa: PLC0415
    from lab.data import DataError  # noqa: PLC0415
    from lab.live.attack import DEFAULT, Door, attack_through  # noqa: PLC0415
    from lab.live.tampered import VARIED, tamper_through  # noqa: PLC0415
    from lab.progress import progress  # noqa: PLC0415

    for address in (through, metrics):
        if address is not None and not unsafe_beyond_this_machine and not _here(address):
            raise DataError(f"{address} is not this machine: attack your own, or say --unsafe-beyond-this-machine")
    try:
        with Client(**connection(address=through, **where)) as client:
            if tamper is not None:
                names = list(VARIED) if tamper == "all" else tamper.split(",")
                with progress() as watch:
                    return tamper_through(client, through, route, names, count, seed, source, out, watch)
            if profile is None or not source.is_dir():
                raise DataError("--through needs --profile, and as --data a folder of DICOM files with labels.csv")
            door = Door(client, through, route, metrics, questions, patience)
            names = list(DEFAULT) if attack is None else attack.split(",")
            return attack_through(door, names, eps or 8.0, options, Profile.load(profile), source, out)
    except ClientError as error:
        raise DataError(error.message) from error


def said(document: Mapping[str, Any], out: Path) -> str:
    """Return the table at the end, tab-separated."""
    rows = _tampered(document) if "tampering" in document else _attacked(document)
    seen = document.get("defences")
    if seen is not None:
        rows += ["", "what the gateway counted meanwhile", *(f"{name}\t{value:g}" for name, value in seen.items())]
    return "\n".join([*rows, f"in {out}"])


def _attacked(document: Mapping[str, Any]) -> list[str]:
    heads = ("attack", "knows", "scans", "attacked", "through", "questions", "throttled", "stopped", "answers")
    rows = ["\t".join(heads)]
    for each in document["attacks"]:
        cells = (
            each["name"], each["knowledge"], each["scans"], each["attacked"], each["through"], each["questions"],
            each["throttled"], _words(each["stopped"]), _words(each["dispositions"]),
        )  # fmt: skip
        rows.append("\t".join(map(str, cells)))
    return rows


def _tampered(document: Mapping[str, Any]) -> list[str]:
    rows = ["tampering\tanswers", *(f"{name}\t{_words(found)}" for name, found in document["tampering"].items())]
    rate = document["admitted_rate"]
    rows.append(
        f"{len(document['admitted'])} of {document['sent']} forgeries admitted ({document['distinct']} different; "
        f"95 % interval up to {rate['high']:.2%}); reasons: {_words(document['reasons'])}"
    )
    return rows


def _words(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "-"


def _here(address: str) -> bool:
    """Whether HOST:PORT is this machine, by its name or number."""
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
