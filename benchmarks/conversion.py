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
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from architectures import SHAPES, SIDE, made
from detectors.errors import ConversionError
from detectors.models.kinds import rebuilt

IMAGES = 3
OLDER, NEWER = "TorchScript-based", "dynamo"
TRACED, PROGRAM = "torch.jit.trace", "torch.export"
OPSETS = {OLDER: range(13, 21), NEWER: range(18, 21), TRACED: [0], PROGRAM: [0]}
"""By what writes the file; 0 where it is no ONNX."""
WRITTEN_FROM = {("ViT", OLDER): 14}
"""The older exporter has no fused attention before; asked for it, it prints the whole graph and fails."""


@dataclass(frozen=True, slots=True)
class Found:
    """How far a rebuilt network is from the original, each as a share of the original's largest value."""

    output: float
    gradient: float


def main() -> int:
    """Print a row a shape and exporter; exit 1 if anything could not be rebuilt."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, help="this one alone")
    shapes = [only] if (only := parser.parse_args().shape) else list(SHAPES)
    whole = True
    print("| shape | written by | opsets | output | gradient |\n|---|---|---|---|---|")
    for shape in shapes:
        network = made(shape)
        for exporter, opsets in OPSETS.items():
            done, refused, found = [], [], []
            for opset in (each for each in opsets if each >= WRITTEN_FROM.get((shape, exporter), 0)):
                try:
                    found.append(compare(network, exported(network, exporter, opset)))
                    done.append(opset)
                except NotExportedError as error:
                    print(f"torch does not write {shape} so, opset {opset}: {error}", file=sys.stderr)
                except ConversionError as error:
                    print(f"{shape}, {exporter}, opset {opset}: {error}", file=sys.stderr)
                    refused.append(opset)
            whole = whole and not refused
            told = f"{done[0]} to {done[-1]}" if done and done[0] else "-" if done else "none"
            told += f"; NOT CONVERTED: {refused}" if refused else ""
            worst = [max(each.output for each in found), max(each.gradient for each in found)] if found else []
            print(
                f"| {shape} | {exporter} | {told} | " + " | ".join(f"{each:.0e}" for each in worst) + " |", flush=True
            )
    return 0 if whole else 1


class NotExportedError(Exception):
    """torch itself cannot write this network so."""


def exported(network: nn.Module, exporter: str, opset: int) -> bytes:
    """The file that an exporter writes, for any number of images at once."""
    file, images = io.BytesIO(), torch.rand(2, 1, SIDE, SIDE)
    with quietly():
        try:
            if exporter == NEWER:
                program = torch.onnx.export(
                    network, (images,), dynamo=True, opset_version=opset, verbose=False,
                    dynamic_shapes=({0: torch.export.Dim("n")},),
                )  # fmt: skip
                program.save(file)
            elif exporter == PROGRAM:
                shapes = ({0: torch.export.Dim("n")},)
                torch.export.save(torch.export.export(network, (images,), dynamic_shapes=shapes), file)
            elif exporter == TRACED:
                torch.jit.save(torch.jit.trace(network, images, check_trace=False), file)
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
    out, gradient = answers(rebuilt(model), images)
    original, slope = answers(network, images)
    return Found(_apart(out, original), _apart(gradient, slope))


def answers(network: Callable[[Tensor], Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
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
