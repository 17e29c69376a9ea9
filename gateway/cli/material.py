"""The options by which every command is told whom to believe, and as at what time."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click

from signing import Trust

_F = TypeVar("_F", bound=Callable[..., Any])
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_MATERIAL = click.Path(exists=True, path_type=Path)


class _Moment(click.ParamType[datetime]):
    """An RFC 3339 time; one without an offset would mean another hour on another machine."""

    name = "rfc3339"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        try:
            moment = datetime.fromisoformat(str(value))
        except ValueError:
            self.fail(f"{value!r} is not an RFC 3339 time such as 2026-05-04T12:00:00Z", param, ctx)
        if moment.tzinfo is None:
            self.fail(f"{value!r} has no time zone", param, ctx)
        return moment


_OPTIONS = (
    click.option("--trust", "roots", required=True, multiple=True, type=_MATERIAL,
                 help="Root certificates; repeatable."),
    click.option("--intermediates", multiple=True, type=_MATERIAL, help="Certificates in between; repeatable."),
    click.option("--crl", "crls", multiple=True, type=_MATERIAL, help="Revocation lists; repeatable."),
    click.option("--ocsp", multiple=True, type=_MATERIAL, help="OCSP responses, DER; repeatable."),
    click.option("--policy", type=_FILE, help="Trust policy, TOML; the strict one without it."),
    click.option("--at", type=_Moment(), help="Judge certificates as at this time; now without it."),
)  # fmt: skip


def trust_options(command: _F) -> _F:
    """Add the options to a command, which passes what they give on to `load_trust` and `moment`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def load_trust(given: dict[str, Any]) -> Trust:
    """Read what the options name.

    Raises:
        TrustError: something cannot be read, or is not what it should be.
    """
    return Trust.load(given["policy"], given["roots"], given["intermediates"], given["crls"], given["ocsp"])


def moment(given: dict[str, Any]) -> datetime:
    """As at when certificates are judged."""
    at: datetime | None = given["at"]
    return at if at is not None else datetime.now(UTC)
