"""Simulated attacks and harmless changes on which the fusion and the gradient detector are trained.

All by projected gradient descent, in families: on the model itself, on the model in changes without fine detail,
and on other networks, whose attacks carry over to it; the first also along the smoothed gradient. What is measured
later is measured on other images, and in the laboratory's evaluation on other families too: patches, bias fields and
random squares are never shown here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from detectors.augmentation import Augmentation
from detectors.filters import gaussian
from detectors.models.outputs import Task, changed, decided, margin
from detectors.neighbours.jpeg import Jpeg
from detectors.observation import LEVEL
from detectors.perturb import ascend

EPS_LOW, EPS_HIGH = 0.75, 8.0
"""Budgets that are drawn, in grey levels."""
STEPS = (1, 2, 5, 10, 20)
SIZES = (0.125, 0.25, 0.5)
"""Step sizes, as a share of the budget; a single step takes it whole."""
BATCH = 32
STRONG = 2.0
"""Smallest budget of the families that need one to succeed: all but those that follow the model's own gradient."""
SMOOTHINGS = (1.5, 3.0)
"""Widths of the Gaussian through which a smooth attack is pressed, in pixels."""
SOFTENINGS = (1.15, 1.73)
"""Widths of the Gaussian through which a gradient is smoothed, in pixels."""

MOVE = Augmentation(rotation_deg=8.0, scale=0.08, shift=0.04, gain=0.08)
"""How far a scan is moved to be one that the protected model was not trained on."""
AT_ONCE = 2048
"""Images that are moved at once: bounds the memory."""

Number = TypeVar("Number", int, float)
Model = Callable[[Tensor], Tensor]
"""Maps (N, C, H, W) images, 0 to 1, to (N, K) logits."""


class Family(StrEnum):
    """A kind of simulated attack that detectors are shown."""

    GRADIENT = "gradient"
    """Follows the model itself."""
    SMOOTH = "smooth"
    """Follows it, in changes without fine detail."""
    SOFTENED = "softened"
    """Follows the model's gradient, smoothed before each step (Dong et al. 2019, arXiv:1904.02884)."""
    CARRIED = "carried over"
    """Follows a twin, or model and twins together, and carries over to the model."""


@dataclass(frozen=True, slots=True)
class Attacked:
    """Attacked images; the protected model's own answer on the clean ones is what the attack wants to change."""

    images: Tensor
    """(N, C, H, W), 0 to 1."""
    sources: Tensor
    """(N,) index of the clean image."""


def simulate(
    model: Model,
    images: Tensor,
    *,
    device: torch.device,
    seed: int,
    task: Task = Task.MULTICLASS,
    family: Family = Family.GRADIENT,
    guide: Model | None = None,
) -> Attacked:
    """Attack each image once, with a method, a budget and a step size drawn at random; keep what succeeds.

    A third of the attacks is pulled back towards the clean image, to just beyond the border of the class.

    Args:
        model: the protected model.
        images: (N, C, H, W) clean scans, 0 to 1.
        device: where the model lies.
        seed: of every draw.
        task: what the model decides.
        family: what is followed, and how.
        guide: the network whose gradient is followed; the protected model's own where None.
    """
    if (channels := images.shape[1]) > 1 and grey(images):
        found = simulate(
            _in_each(model, channels), images[:, :1], device=device, seed=seed, task=task, family=family,
            guide=_in_each(guide, channels) if guide else None,
        )  # fmt: skip
        return Attacked(found.images.repeat(1, channels, 1, 1), found.sources)
    followed = guide or model
    low = EPS_LOW if family is Family.GRADIENT else STRONG
    generator = torch.Generator(device).manual_seed(seed)
    draws = torch.Generator().manual_seed(seed)
    fine = not on_grid(images)
    kept, sources = [], []
    for chosen in torch.split(torch.randperm(len(images), generator=draws), BATCH):
        clean = images[chosen].to(device)
        steps = _one_of(STEPS, draws)
        size = _one_of(SIZES, draws) if steps > 1 else 1.0
        eps = low * (EPS_HIGH / low) ** torch.rand(len(clean), 1, 1, 1, generator=draws).to(device) * LEVEL
        with torch.no_grad():
            answer = model(clean)
        loss = _away if float(torch.rand(1, generator=draws)) < 0.5 else _lead
        noise = generator if steps > 1 else None
        pressed = _pressed(clean, _one_of(SMOOTHINGS, draws)) if family is Family.SMOOTH else _same
        shown = _softened(_one_of(SOFTENINGS, draws)) if family is Family.SOFTENED else pressed
        attacked = pressed(ascend(
            clean, _objective(followed, answer, loss, task, shown), eps=eps, steps=steps, size=size * eps,
            low=0.0, high=1.0, generator=noise,
        ))  # fmt: skip
        if float(torch.rand(1, generator=draws)) < 1 / 3:
            attacked = _pulled_back(model, clean, attacked, decided(answer, task), task)
        attacked = storable(attacked, clean, fine=fine)
        with torch.no_grad():
            success = changed(decided(answer, task), model(attacked), task).cpu()
        kept.append(attacked.cpu()[success])
        sources.append(chosen[success])
    return Attacked(torch.cat(kept), torch.cat(sources))


def descend(
    model: Model,
    images: Tensor,
    *,
    levels: float,
    steps: int,
    device: torch.device,
    seed: int,
    task: Task = Task.MULTICLASS,
) -> tuple[Tensor, Tensor]:
    """Projected gradient descent on the margin at one budget, for measuring.

    Args:
        model: the protected model.
        images: (N, C, H, W) clean scans, 0 to 1.
        levels: budget in grey levels.
        steps: number of steps, each a quarter of the budget.
        device: where the model lies.
        seed: of the starts.
        task: what the model decides.

    Returns:
        (N, C, H, W) attacked images, and (N,) whether the model's answer changed.
    """
    if (channels := images.shape[1]) > 1 and grey(images):
        one = _in_each(model, channels)
        found, fooled = descend(one, images[:, :1], levels=levels, steps=steps, device=device, seed=seed, task=task)
        return found.repeat(1, channels, 1, 1), fooled
    generator = torch.Generator(device).manual_seed(seed)
    fine = not on_grid(images)
    kept, successes = [], []
    for part in torch.split(images, BATCH):
        clean = part.to(device)
        with torch.no_grad():
            answer = model(clean)
        eps = levels * LEVEL
        attacked = ascend(
            clean, _objective(model, answer, _lead, task), eps=eps, steps=steps, size=eps / 4,
            low=0.0, high=1.0, generator=generator,
        )  # fmt: skip
        attacked = storable(attacked, clean, fine=fine)
        with torch.no_grad():
            successes.append(changed(decided(answer, task), model(attacked), task).cpu())
        kept.append(attacked.cpu())
    return torch.cat(kept), torch.cat(successes)


def harmless(images: Tensor, *, seed: int) -> Tensor:
    """Each image after one change that must not alarm: compression, blur, gain, noise, or half a pixel's shift.

    Args:
        images: (N, C, H, W) clean scans, 0 to 1.
        seed: of the choice and of the noise.
    """
    if (channels := images.shape[1]) > 1 and grey(images):
        return harmless(images[:, :1], seed=seed).repeat(1, channels, 1, 1)
    generator = torch.Generator().manual_seed(seed)
    fine = not on_grid(images)
    out = []
    for image in torch.split(images, 1):
        kind = int(torch.randint(6, (1,), generator=generator))
        share = float(torch.rand(1, generator=generator))
        level = (1.0, 2.0, 4.0)[int(torch.randint(3, (1,), generator=generator))] * LEVEL
        noise = torch.randn(image.shape, generator=generator)
        if kind == 0:
            changed = Jpeg(85 + round(10 * share))(image)
        elif kind == 1:
            changed = gaussian(image, 0.3 + 0.5 * share)
        elif kind == 2:
            changed = image * (0.95 + 0.1 * share)
        elif kind == 3:
            changed = image + noise * level
        elif kind == 4:
            changed = image + noise.sign() * level
        else:
            changed = (image + functional.pad(image, (1, 0, 0, 0), mode="replicate")[..., :-1]) / 2
        out.append(storable(changed.clamp(0, 1), image, fine=fine))
    return torch.cat(out)


def moved(images: Tensor, *, seed: int) -> Tensor:
    """Each image turned, scaled, shifted and brightened: a scan of the same kind that the model was not trained on.

    It reads some of them wrongly or hardly knows, as it does new scans and not its own: what alarms at clean scans of
    that kind is learnt from these.

    Args:
        images: (N, C, H, W) clean scans, 0 to 1.
        seed: of the moves.
    """
    draws = torch.Generator().manual_seed(seed)
    found = torch.cat([MOVE(part, draws).clamp(0, 1) for part in torch.split(images, AT_ONCE)])
    return storable(found, images, fine=not on_grid(images))


def mirrored(images: Tensor, *, seed: int) -> Tensor:
    """Each image mirrored, and brighter or darker: new to the model too, in a way that no detector has learnt from.

    No pixel is interpolated. To a model that was trained on mirrored scans as well they are not new, and say no more
    than the scans as they are.

    Args:
        images: (N, C, H, W) clean scans, 0 to 1.
        seed: of the brightness.
    """
    gains = 1 + MOVE.gain * torch.randn(len(images), 1, 1, 1, generator=torch.Generator().manual_seed(seed))
    return storable((images.flip(3) * gains).clamp(0, 1), images, fine=not on_grid(images))


def transplanted(found: Attacked, images: Tensor, *, seed: int) -> Tensor:
    """Clean images with the perturbation of another one, mirrored: all of an attack but its aim.

    What tells these from attacked images is the alignment with the model's gradient, and nothing else: size, spectrum
    and storage are the same.

    Args:
        found: successful attacks on `images`.
        images: (N, C, H, W) clean scans, 0 to 1.
        seed: of the exchange.
    """
    generator = torch.Generator().manual_seed(seed)
    clean = images[found.sources]
    order = torch.randperm(len(clean), generator=generator)
    changes = (found.images - clean)[order].roll(1, 0).flip(3)
    return storable((clean[order] + changes).clamp(0, 1), clean[order], fine=not on_grid(images))


def noisy(images: Tensor, *, seed: int) -> Tensor:
    """Each image with noise as large as an attack: random signs or Gaussian, in grains of one or two pixels.

    Args:
        images: (N, C, H, W) clean scans, 0 to 1.
        seed: of the noise.
    """
    if (channels := images.shape[1]) > 1 and grey(images):
        return noisy(images[:, :1], seed=seed).repeat(1, channels, 1, 1)
    generator = torch.Generator().manual_seed(seed)
    n, c, rows, columns = images.shape
    fine = torch.randn(images.shape, generator=generator)
    coarse = torch.randn(n, c, -(-rows // 2), -(-columns // 2), generator=generator)
    coarse = coarse.repeat_interleave(2, 2).repeat_interleave(2, 3)[..., :rows, :columns]
    draws = torch.rand(3, n, 1, 1, 1, generator=generator)
    noise = torch.where(draws[0] < 1 / 3, coarse, fine)
    noise = torch.where(draws[1] < 1 / 2, noise.sign(), noise)
    changed = images + EPS_LOW * (EPS_HIGH / EPS_LOW) ** draws[2] * LEVEL * noise
    return storable(changed.clamp(0, 1), images, fine=not on_grid(images))


def grey(images: Tensor) -> bool:
    """Whether the channels of each of (N, C, H, W) images, 0 to 1, are alike to half a grey level.

    Such images are stored with one channel, so what happens to them in a file happens in all channels alike.
    """
    return not len(images) or float((images.amax(1) - images.amin(1)).max()) < LEVEL / 2


def on_grid(images: Tensor) -> bool:
    """Whether every value is a whole grey level, as of images that were stored in 8 bits."""
    levels = images / LEVEL
    return bool((levels - levels.round()).abs().max() < 1e-3)


def storable(changed: Tensor, clean: Tensor, *, fine: bool) -> Tensor:
    """The change as it survives storage: in whole grey levels where the clean images are, else as it is.

    Rounding only the attacked ones of finely graded images would mark them by their storage, not by the attack.
    """
    if fine:
        return changed
    return (clean + ((changed - clean) / LEVEL).round() * LEVEL).clamp(0, 1)


def _in_each(model: Model, channels: int) -> Model:
    """The model of the one channel that stands in all of its own."""
    return lambda images: model(images.expand(-1, channels, -1, -1))


def _one_of(choices: Sequence[Number], draws: torch.Generator) -> Number:
    return choices[int(torch.randint(len(choices), (1,), generator=draws))]


def _same(images: Tensor) -> Tensor:
    return images


def _pressed(clean: Tensor, width: float) -> Model:
    """What is left of a change of these images without its fine detail: a mean of changes is within their budget."""
    return lambda images: clean + gaussian(images - clean, width)


def _softened(width: float) -> Model:
    """The images as they are, whose gradient comes back through a Gaussian of this width."""

    def shown(images: Tensor) -> Tensor:
        soft = gaussian(images, width)
        return soft + (images - soft).detach()

    return shown


def _objective(
    model: Model,
    answer: Tensor,
    loss: Callable[[Tensor, Tensor, Task], Tensor],
    task: Task,
    shown: Model = _same,
) -> Model:
    """What an attack makes large: the loss of the model's answer against its own clean one."""
    return lambda images: loss(model(shown(images)), answer, task)


def _away(logits: Tensor, answer: Tensor, task: Task) -> Tensor:
    """Cross-entropy against the clean decision."""
    sure = decided(answer, task)
    if task is Task.MULTILABEL:
        return functional.binary_cross_entropy_with_logits(logits, sure.to(logits), reduction="none").sum(1)
    each = functional.cross_entropy(logits, sure, reduction="none")
    return each.flatten(1).mean(1) if task is Task.SEGMENTATION else each


def _lead(logits: Tensor, answer: Tensor, task: Task) -> Tensor:
    return -margin(logits, decided(answer, task), task)


def _pulled_back(model: Model, clean: Tensor, attacked: Tensor, decision: Tensor, task: Task) -> Tensor:
    """The nearest wrong image on the way back to the clean one, by seven halvings."""
    right = torch.zeros(len(clean), 1, 1, 1, device=clean.device)
    wrong = torch.ones_like(right)
    for _ in range(7):
        middle = (right + wrong) / 2
        with torch.no_grad():
            fooled = changed(decision, model(clean + middle * (attacked - clean)), task).view(-1, 1, 1, 1)
        wrong, right = torch.where(fooled, middle, wrong), torch.where(fooled, right, middle)
    return clean + wrong * (attacked - clean)
