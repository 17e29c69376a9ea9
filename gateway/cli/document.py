"""A JSON document that is written while it grows, since it may be larger than memory."""

from __future__ import annotations

import json
from typing import Any

import click


class GrowingDocument:
    """One object on stdout: an array, then whatever else is known at the end."""

    def __init__(self, array: str) -> None:
        """`array` is the array's key."""
        click.echo(f"{{{json.dumps(array)}: [", nl=False)
        self._separator = ""

    def add(self, entry: dict[str, Any]) -> None:
        """The next element of the array."""
        click.echo(self._separator + json.dumps(entry), nl=False)
        self._separator = ", "

    def close(self, **rest: Any) -> None:
        """Nothing follows but `rest`."""
        click.echo("]" + "".join(f", {json.dumps(key)}: {json.dumps(value)}" for key, value in rest.items()) + "}")
