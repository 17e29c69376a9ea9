"""From what the worker reports of a case to the evidence that the stages read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.case import Evidence
from gateway.engine.engine import ExaminationError
from gateway.profile import Task

_CHANCE_LEAST = 1e-7
"""Keeps the logit of a mean probability finite."""


def evidence_of(report: dict[str, Any], denoised: NDArray[np.float32], task: Task) -> Evidence | ExaminationError:
    """Read one case's report.

    Args:
        report: as `worker` makes it.
        denoised: (frames, channels, rows, columns) in shared memory, valid if the report has denoised logits; copied.
        task: of the model.
    """
    if "error" in report:
        return ExaminationError(f"the detectors failed with {report['error']}")
    outputs = {name: _joined(rows, task) for name, rows in report.get("denoised_logits", {}).items()}
    return Evidence(
        statistic=report["statistic"],
        p_value=report["p_value"],
        scores=report["scores"],
        p_values=report["p_values"],
        output=_joined(report["logits"], task),
        denoised_outputs=outputs,
        denoised=denoised.copy() if outputs else None,
    )


def _joined(logits: Sequence[Sequence[float]], task: Task) -> NDArray[np.float32]:
    """(classes,) logits for all frames: those whose probabilities are the mean of the frames' probabilities.

    The upstream averages the same way, so that both speak of the same answer.
    """
    rows = np.asarray(logits, np.float32)
    if len(rows) == 1:
        return np.asarray(rows[0])
    if task == "multiclass":
        powers = np.exp(rows - rows.max(axis=1, keepdims=True))
        shares = (powers / powers.sum(axis=1, keepdims=True)).mean(axis=0)
        return np.asarray(np.log(np.maximum(shares, np.finfo(np.float32).tiny)), np.float32)
    chances = np.clip((0.5 + 0.5 * np.tanh(0.5 * rows)).mean(axis=0), _CHANCE_LEAST, 1 - _CHANCE_LEAST)
    return np.asarray(np.log(chances / (1 - chances)), np.float32)
