"""The protected model as a command is given it: a file, or a server of the Open Inference Protocol that has it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

SCHEME = "kserve://"

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_Command = TypeVar("_Command", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """What the options of `asked_for_model` say."""

    place: Path | str
    """A file, or `kserve://HOST:PORT/NAME[/VERSION]`."""
    authority: Path | None
    certificate: Path | None
    key: Path | None
    images_max: int


class _Place(click.ParamType[Path | str]):
    name = "file or URL"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if str(value).startswith(SCHEME) else _FILE.convert(value, param, ctx)


def model_options(text: str) -> Callable[[_Command], _Command]:
    """Options that say where the model is; the command gets them as `model_at`. `text` is the help of `--model`."""

    def decorate(command: _Command) -> _Command:
        def run(**values: Any) -> Any:
            found = {name: values.pop(f"model_{name}") for name in Whereabouts.__dataclass_fields__}
            return command(model_at=Whereabouts(**found), **values)

        run.__doc__, run.__name__ = command.__doc__, command.__name__
        run.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
        for option in reversed(options):
            run = option(run)
        return run  # type: ignore[return-value]

    options = [
        click.option("--model", "model_place", type=_Place(), required=True,
                     help=f"{text}, or {SCHEME}HOST:PORT/NAME[/VERSION]"),
        click.option("--server-ca", "model_authority", type=_FILE,
                     help="authority of the server's certificate, PEM; required unless the server is on this machine"),
        click.option("--server-certificate", "model_certificate", type=_FILE, help="shown to the server, PEM"),
        click.option("--server-key", "model_key", type=_FILE, help="its private key, PEM"),
        click.option("--server-images", "model_images_max", type=click.IntRange(min=1), default=32, show_default=True,
                     help="images in one request to the server, at most"),
    ]  # fmt: skip
    return decorate
