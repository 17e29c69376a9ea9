"""Where the detectors disagree, as a map for people: how the model's reasons change when the noise is taken away.

An attack of a few grey levels cannot be seen; what can be shown is where it acts. The attribution of the model's answer
is taken on the image as it came and on the same image denoised, and the map is the size of their difference, smoothed.
Attribution is gradient times input (Shrikumar et al. 2016, arXiv:1605.01713). A model without gradients is shown each
image with one square of the other in it (occlusion, Zeiler and Fergus 2014, arXiv:1311.2901). A map shows and does not
prove: attributions can themselves be steered by an attacker (Ghorbani et al. 2019, arXiv:1710.10547), so nothing is
ever decided by one.
"""

from collections.abc import Callable, Mapping
from itertools import pairwise

import torch
from torch import Tensor

from detectors.denoisers.denoiser import Denoiser
from detectors.denoisers.median import Median
from detectors.errors import InputError
from detectors.filters import gaussian
from detectors.observation import Needs
from detectors.probe import Probe

USUAL_SCANS, USUAL_SHARE = 32, 0.95
"""Clean scans by which a fit finds how bright a map usually gets, and the share of them that stays below."""
SMOOTHING = 1 / 64
"""Standard deviation of the smoothing, as a share of the longer side: two pixels of 128."""
CELLS = 8
"""Squares along each side that are exchanged where there is no gradient; each costs two forward passes."""

Lead = Callable[[Tensor], Tensor]
"""Maps (N, C, H, W) images, 0 to 1, to (N,): how firmly the model holds the answer that it gave to the first ones."""


def disagreement(lead: Lead, images: Tensor, denoised: Tensor, *, gradients: bool = True) -> Tensor:
    """How much each place's part in the answer changes between the images and their denoised forms.

    Args:
        lead: of the protected model, for the answers that it gave to `images`; differentiable where `gradients`.
        images: (N, C, H, W) float32, 0 to 1, as they came.
        denoised: the same, denoised.
        gradients: whether the model has them.

    Returns:
        (N, H, W) float32, at least 0, without a graph: the change in the lead that is owed to each pixel, smoothed.

    Raises:
        InputError: the two differ in shape, or the attribution is not finite.
    """
    if images.shape != denoised.shape or images.ndim != 4:
        raise InputError(f"a map needs two batches of one shape, not {tuple(images.shape)} and {tuple(denoised.shape)}")
    longest = max(images.shape[2:])
    if gradients:
        change = (_attributed(lead, images) - _attributed(lead, denoised)).abs().sum(1, keepdim=True)
        width = SMOOTHING * longest
    else:
        change = (_exchanged(lead, images, denoised).abs() + _exchanged(lead, denoised, images).abs()) / 2
        width = longest / CELLS / 2
    if not bool(torch.isfinite(change).all()):
        raise InputError("the attribution of an image is not finite")
    return gaussian(change, width)[:, 0]


def between(probe: Probe, images: Tensor, denoised: Tensor) -> Tensor:
    """The same for the model of a probe.

    Args:
        probe: over the protected model.
        images: (N, C, H, W) float32, as the model takes them.
        denoised: the same, denoised.
    """
    span, seen = probe.span, probe.observe(images, Needs())

    def lead(unit: Tensor) -> Tensor:
        return seen.lead_in(probe.logits(probe.reference(span.from_unit(unit))))

    return disagreement(lead, span.to_unit(images), span.to_unit(denoised), gradients=probe.reference.gradients)


def drawn(probe: Probe, images: Tensor, denoisers: Mapping[str, Denoiser]) -> Tensor:
    """The map that people are shown: against what the first denoiser makes of the images; the median where none is.

    Args:
        probe: over the protected model.
        images: (N, C, H, W) float32, as the model takes them.
        denoisers: of the artefact, in its order.

    Returns:
        (N, H, W), as `disagreement` gives it.
    """
    with torch.no_grad():
        denoised = next(iter(denoisers.values()), Median())(images)
    return between(probe, images, denoised)


def usual(probe: Probe, images: Tensor, denoisers: Mapping[str, Denoiser]) -> float:
    """How bright the brightest place of a clean scan's map gets; of twenty clean scans nineteen stay below.

    Every map has a brightest place. Only beside this number does it say whether that is bright at all.
    """
    peaks = drawn(probe, images[:USUAL_SCANS].to(probe.device), denoisers).amax((1, 2))
    return float(peaks.quantile(USUAL_SHARE))


def _attributed(lead: Lead, images: Tensor) -> Tensor:
    """(N, C, H, W): gradient times input."""
    with torch.enable_grad():
        leaf = images.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(lead(leaf).sum(), leaf)
    return gradient * images.detach()


def _exchanged(lead: Lead, images: Tensor, others: Tensor) -> Tensor:
    """(N, 1, H, W): what the lead loses, for each pixel, when a square of the image is taken from the other one."""
    found = torch.zeros_like(images[:, :1])
    with torch.no_grad():
        whole = lead(images)
        for square in _squares(*images.shape[2:]):
            covered = images.clone()
            covered[square] = others[square]
            found[square] = ((whole - lead(covered)) / found[square][0].numel()).view(-1, 1, 1, 1)
    return found


def _squares(rows: int, columns: int) -> list[tuple[slice, slice, slice, slice]]:
    """Places of the squares; the last of a side takes the rest."""
    edges = [[round(k * side / CELLS) for k in range(CELLS + 1)] for side in (rows, columns)]
    spans = [[slice(a, b) for a, b in pairwise(side) if b > a] for side in edges]
    return [(slice(None), slice(None), top, left) for top in spans[0] for left in spans[1]]
