"""The model card of a hardened network, as a document and as a page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def page(card: Mapping[str, Any]) -> str:
    """Return the card as markdown; every figure is in the document too."""
    data, recipe = card["data"], card["recipe"]
    lines = [
        f"# {card['name']} on {data['file']}",
        "",
        f"Trained by `{card['configuration']}`, seed {card['seed']}, on {data['train']['n']} scans of "
        f"{data['train']['patients']} patients; measured on {data['test']['n']} scans of {data['test']['patients']} "
        "others.",
        "",
        f"- Paper: {card['paper']}. Its limit: {card['broken_by']}.",
        f"- {card['limits']}",
        f"- Task: {card['task']}, of {', '.join(card['classes'])}.",
        f"- Data, SHA-256: `{data['sha256']}`.",
        f"- Model, SHA-256: `{card['model_sha256']}`. Profile: `{card['profile_sha256']}`. Largest difference of an "
        f"output between onnxruntime and the differentiable model: {card['conversion_max_abs_diff']:.2g}.",
        f"- Recipe: {', '.join(f'{key} {value}' for key, value in recipe.items())}.",
        f"- scanward {card['scanward']}, torch {card['torch']}, {card['device']}, {card['threads']} threads.",
    ]
    if card["teacher_sha256"]:
        lines.append(f"- Learnt from, or stands beside, the model with SHA-256 `{card['teacher_sha256']}`.")
    lines += ["", "## What was measured", "", f"Clean accuracy: {said(card['measured']['clean'])}.", ""]
    lines += ["| attack | grey levels | right answers |", "|---|---|---|"]
    lines += [f"| {each['attack']} | {each['eps']} | {said(each)} |" for each in card["measured"]["robust"]]
    if beside := card["measured"]["beside"]:
        lines += ["", "Beside the model, as a voter: how often it decides otherwise.", ""]
        lines += ["| PGD on the model, grey levels | clean scans | successful attacks |", "|---|---|---|"]
        lines += [f"| {eps} | {said(row['clean'])} | {said(row['attacked'])} |" for eps, row in beside.items()]
    lines += [
        "",
        "Intervals are 95 % Clopper-Pearson. Under attack, scans that are misread anyway count as wrong. Attacks",
        "know the network, and nothing of detectors before it; they are in the document with their configuration. What",
        "none of them breaks may yet break.",
    ]
    return "\n".join(lines) + "\n"


def said(rate: Mapping[str, Any] | None) -> str:
    """A rate with its interval, in per cent; a dash where there was nothing to count."""
    if rate is None:
        return "-"
    low, high = 100 * rate["low"], 100 * rate["high"]
    return f"{100 * rate['rate']:.1f} % [{low:.1f}, {high:.1f}] of {rate['n']}"
