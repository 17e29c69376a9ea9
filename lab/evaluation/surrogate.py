"""The model of an attacker who has none: a small network taught by the protected model's answers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from detectors.models.outputs import divergence
from detectors.models.small import SmallTwin
from detectors.probe import Probe
from lab.progress import Watch
from lab.workbench import logits_of

EPOCHS, BATCH, PEAK = 8, 32, 3e-3


def surrogate(probe: Probe, images: Tensor, *, seed: int, watch: Watch) -> Callable[[Tensor], Tensor]:
    """Teach a network of another architecture, from its own initialisation, without labels (Papernot et al. 2017,
    arXiv:1602.02697, with scans in place of queries).

    Args:
        probe: holds the protected model.
        images: (N, C, H, W) as the model takes them.
        seed: of weights and order.
        watch: told of progress.

    Returns:
        Rendered images to logits.
    """
    teacher, unit = logits_of(probe), probe.span.to_unit(images)
    with torch.no_grad():
        answers = torch.cat([teacher(part.to(probe.device)).cpu() for part in torch.split(unit, 64)])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = SmallTwin(unit.shape[1], answers.shape[1], task=probe.task).to(probe.device)
    order = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(student.parameters(), lr=PEAK, weight_decay=1e-4)
    steps = EPOCHS * -(-len(unit) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK, total_steps=steps + 1)
    student.train()
    for epoch in range(EPOCHS):
        for chosen in torch.split(torch.randperm(len(unit), generator=order), BATCH):
            said = student(unit[chosen].to(probe.device))
            loss = divergence(answers[chosen].to(probe.device), said, probe.task).mean()
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        watch("teaching the attacker's own model", (epoch + 1) / EPOCHS)
    student.eval().requires_grad_(False)
    return lambda rendered: student(probe.span.to_unit(rendered))
