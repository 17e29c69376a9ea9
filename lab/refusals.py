"""What a command says when it cannot go on: one sentence on stderr, and an exit code."""

import sys
import traceback

import click

FOUND_WANTING, CANNOT_RUN = 1, 2
_CLICKS_OWN = (click.ClickException, click.exceptions.Abort, click.exceptions.Exit)
"""What click itself turns into words and an exit code."""


class refusals:  # noqa: N801 - reads as a word in `with`
    """Turns every named refusal into one sentence on stderr and exit code 2.

    What nobody foresaw keeps its traceback, and has exit code 2 as well: Python's own would be 1, which says that what
    was measured was found wanting.
    """

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        from detectors.errors import DetectorError
        from gateway.errors import GatewayError
        from lab.data import MovedTooFarError
        from signing.errors import SigningError

        if isinstance(error, MovedTooFarError):
            click.echo(f"scanward-lab: {error}", err=True)
            sys.exit(FOUND_WANTING)
        if isinstance(error, DetectorError | GatewayError | SigningError | OSError):
            click.echo(f"scanward-lab: {error}", err=True)
            sys.exit(CANNOT_RUN)
        if isinstance(error, Exception) and not isinstance(error, _CLICKS_OWN):
            traceback.print_exception(error)
            sys.exit(CANNOT_RUN)
