"""`scanward resign`: a losslessly transcoded copy is signed anew, once it is known to say what was verified."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import numpy as np

from gateway.cli import CannotRun
from gateway.cli.material import load_trust, moment, trust_options
from gateway.cli.signer import open_signer, refuse_to_replace, signer_options, write_whole
from gateway.cli.timestamping import HttpAuthority
from gateway.pixels.decode import decode
from gateway.pixels.decompressor import DisposableDecoder
from gateway.pixels.unexaminable import UnexaminableError
from signing import DicomError, SignatureError, SignError, TrustError, VerifiedView
from signing.errors import NotTheSameError
from signing.files import open_bytes
from signing.resign import resign as resign_object

_FRAMES_MAX = 100_000
"""No detector runs here, so what bounds the frames is the size of them all, which the decoder bounds."""

_DECODING_S_MAX = 300.0
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("transcoded", type=_FILE)
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--original", required=True, type=_FILE, help="The signed object that TRANSCODED was made from.")
@trust_options
@signer_options
@click.option("--mac", type=click.Choice(["sha256", "sha384", "sha512"]), default="sha256", show_default=True)
@click.option("--tsa", metavar="URL", help="RFC 3161 time-stamping authority.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.pass_context
def resign(
    ctx: click.Context, /, *, transcoded: Path, out: Path, original: Path, mac: str, tsa: str | None, as_json: bool,
    force: bool, **given: Any,
) -> None:  # fmt: skip
    """Sign the DICOM file TRANSCODED, made from a signed original without loss, and write it to OUT.

    The original is verified, every attribute that its signature covers is compared, pixels are decoded and compared
    bit for bit; then the same attributes are signed anew.

    Exit 0: signed; 1: the original cannot be believed, or the copy is not the same; 2: cannot run.
    """
    refuse_to_replace(out, force=force)
    try:
        trust = load_trust(given)
        with ExitStack() as stack:
            signer = open_signer(given, stack)
            authority = HttpAuthority(tsa) if tsa is not None else None
            data = stack.enter_context(open_bytes(original))
            decoder = stack.enter_context(DisposableDecoder(seconds_max=_DECODING_S_MAX))

            def require_same_pixels(a: VerifiedView, b: VerifiedView) -> None:
                _require_same_pixels(a, b, decoder)

            signed, verified = resign_object(
                data, transcoded.read_bytes(), trust, require_same_pixels=require_same_pixels, signer=signer,
                mac=mac.upper(), at=moment(given), tsa=authority,
            )  # fmt: skip
    except SignatureError as error:
        _end(ctx, as_json, str(error.reason), error.detail)
    except NotTheSameError as error:
        _end(ctx, as_json, "not_the_same", str(error))
    except SignError as error:
        raise CannotRun(f"{transcoded}: {error}") from error
    except (DicomError, TrustError, UnexaminableError) as error:
        raise CannotRun(str(error)) from error
    write_whole(out, signed, force=force)
    if as_json:
        click.echo(json.dumps({"signed": True, "reason": "ok", "detail": "", "covers": list(verified.covers)}))
    click.echo(f"{out}: signed anew what {verified.signer} had signed", err=True)


def _end(ctx: click.Context, as_json: bool, reason: str, detail: str) -> None:
    if as_json:
        click.echo(json.dumps({"signed": False, "reason": reason, "detail": detail, "covers": []}))
    click.echo(f"not signed: {reason}: {detail}", err=True)
    ctx.exit(1)


def _require_same_pixels(original: VerifiedView, copy: VerifiedView, decoder: DisposableDecoder) -> None:
    """Decode both, each where a hostile stream can do no harm, and compare stored values."""
    first = decode(original, decoder, frames_max=_FRAMES_MAX)
    second = decode(copy, decoder, frames_max=_FRAMES_MAX)
    if first.shape != second.shape or not np.array_equal(first, second):
        raise NotTheSameError("the decoded pixels are not those of the original")
