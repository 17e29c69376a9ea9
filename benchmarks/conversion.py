"""Exports every shape in every way, rebuilds it, and measures output and gradient against the original.

`python benchmarks/conversion.py` prints the table of docs/models.md.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from architectures import SHAPES, SIDE, made
from detectors.errors import ConversionError
from detectors.models.reference import Reference

IMAGES = 3
OLDER, NEWER = "TorchScript-based", "dynamo"
OPSETS = {OLDER: range(13, 21), NEWER: range(18, 21)}


@dataclass(frozen=True, slots=True)
class Found:
    """How far a rebuilt network is from the original, each as a share of the original's largest value."""

    output: float
    gradient: float


def main() -> int:
    """Print a row a shape and exporter, a column an opset; exit 1 if anything could not be rebuilt."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, help="this one alone")
    shapes = [only] if (only := parser.parse_args().shape) else list(SHAPES)
    worst = True
    for shape in shapes:
        network = made(shape)
        for exporter, opsets in OPSETS.items():
            cells = []
            for opset in opsets:
                try:
                    found = compare(network, exported(network, exporter, opset))
                    cells.append(f"{opset}: {found.output:.0e} / {found.gradient:.0e}")
                except NotExportedError as error:
                    cells.append(f"{opset}: - ({error})")
                except ConversionError as error:
                    cells.append(f"{opset}: NOT CONVERTED ({error})")
                    worst = False
            print(f"| {shape} | {exporter} | " + " | ".join(cells) + " |", flush=True)
    return 0 if worst else 1


class NotExportedError(Exception):
    """torch itself cannot write this network so."""


def exported(network: nn.Module, exporter: str, opset: int) -> bytes:
    """The ONNX file that an exporter writes, for any number of images at once."""
    file, images = io.BytesIO(), torch.rand(2, 1, SIDE, SIDE)
    with quietly():
        try:
            if exporter == NEWER:
                program = torch.onnx.export(
                    network, (images,), dynamo=True, opset_version=opset, verbose=False,
                    dynamic_shapes=({0: torch.export.Dim("n")},),
                )  # fmt: skip
                program.save(file)
            else:
                torch.onnx.export(
                    network, (images,), file, dynamo=False, opset_version=opset,
                    input_names=["x"], output_names=["y"], dynamic_axes={"x": {0: "n"}},
                )  # fmt: skip
        except Exception as error:
            raise NotExportedError(str(error).splitlines()[0]) from error
    return file.getvalue()


def compare(network: nn.Module, model: bytes) -> Found:
    """Rebuild a file, and measure it against the network that it was written from."""
    images = torch.rand(IMAGES, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    rebuilt = Reference.from_onnx(model)
    out, gradient = answers(rebuilt, images)
    original, slope = answers(network, images)
    return Found(_apart(out, original), _apart(gradient, slope))


def answers(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Output, and the gradient by the images of a sum with unequal weights."""
    leaf = images.clone().requires_grad_()
    out = network(leaf)
    weights = torch.linspace(-1, 1, out[0].numel()).view(out.shape[1:])
    (gradient,) = torch.autograd.grad((out * weights).sum(), leaf)
    return out.detach(), gradient


def _apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without what exporters say of themselves."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    with warnings.catch_warnings(), open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        warnings.simplefilter("ignore")
        # the older exporter cannot write the fused layer that torch's own encoder takes at inference
        fused = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fused)
            logging.disable(disabled)


if __name__ == "__main__":
    sys.exit(main())
