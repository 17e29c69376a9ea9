"""Trains and measures every method of hardening on each set of images; writes docs/hardening.md: `make hardening`."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch.nn import functional

from lab.data import SPLITS, channels_first
from lab.hardening.harden import harden
from lab.hardening.method import Method
from lab.hardening.registry import METHODS, named
from lab.hardening.words import judging, recipe
from lab.image_results import IMAGES, SETS
from lab.progress import progress
from lab.refusals import refusals
from lab.victims import described

REPORT = Path("docs/hardening.md")
MEASURED = "## What was measured\n"
"""What stands before this line is written by people, what follows by this program."""
SCARCE = {"ssat 5 %": 0.05, "ssat 20 %": 0.2}
"""Rows in which most labels are hidden, and the share that is not."""


@click.command()
@click.option("--images", type=click.Path(exists=True, file_okay=False, path_type=Path), default=IMAGES)
@click.option(
    "--set", "sets", multiple=True, default=SETS, show_default=True, help="NAME.npz of the folder; repeatable"
)
@click.option("--method", "wanted", multiple=True, default=tuple(METHODS), help="repeatable; by default all")
@click.option("--recipe", "recipes", multiple=True, help="a field of every recipe, name=value; repeatable")
@click.option("--attacks", default="pgd,autoattack", show_default=True)
@click.option("--eps", default="1,2,4,8", show_default=True, help="budgets, grey levels")
@click.option("--attacked", type=click.IntRange(min=1), default=100, show_default=True, help="test scans to attack")
@click.option("--steps", type=click.IntRange(min=1), default=50, show_default=True, help="of PGD")
@click.option(
    "--queries", type=click.IntRange(min=1), default=5000, show_default=True, help="of the last attack of AutoAttack"
)
@click.option("--size", type=click.IntRange(min=8), help="rows and columns of the images, in place of their own")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--work", type=click.Path(path_type=Path), default=Path(".cache/results"), show_default=True)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), default=REPORT, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=len(os.sched_getaffinity(0)), show_default=True)
def main(
    *, images: Path, sets: Sequence[str], wanted: Sequence[str], recipes: tuple[str, ...], attacks: str, eps: str,
    attacked: int, steps: int, queries: int, size: int | None, seed: int, work: Path, out: Path, threads: int,
) -> None:  # fmt: skip
    """Train and measure each method on each set, and write the table as it grows; what is done is not done again."""
    torch.set_num_threads(threads)
    with refusals():
        judge, rows = judging(attacks, eps, attacked, steps, queries), _rows(wanted)
        command = _command(click.get_current_context())
        chapters: dict[str, dict[str, Any]] = {}
        for name in sets:
            cards = chapters.setdefault(f"{name}, {size} x {size} pixels" if size else name, {})
            npz, place = images / f"{name}.npz", work / (f"{name}-{size}" if size else name)
            npz = _resized(npz, size, place) if size else npz
            profile = described(npz, place)
            for title, method in rows.items():
                with progress() as watch:
                    cards[title] = harden(
                        method, npz, profile, place / "hardening" / title.replace(" ", "_"),
                        recipe=recipe(method.recipe, recipes), judging=judge, seed=seed, watch=watch,
                    )  # fmt: skip
                out.write_text(document(out.read_text(encoding="utf-8"), command, chapters), encoding="utf-8")


def _resized(npz: Path, size: int, folder: Path) -> Path:
    """The same scans with fewer pixels, each the mean of those it stands for, in whole grey levels."""
    folder.mkdir(parents=True, exist_ok=True)
    with np.load(npz, allow_pickle=False) as file:
        arrays = dict(file)
    for key in (f"{split}_images" for split in SPLITS):
        images = torch.from_numpy(channels_first(arrays[key], key)).float()
        small = functional.interpolate(images, (size, size), mode="area")
        arrays[key] = small.round().byte().movedim(1, -1).squeeze(-1).numpy()
    np.savez(folder / npz.name, **arrays)
    return folder / npz.name


def _command(context: click.Context) -> str:
    """What was asked for and decides the figures: all but folders and threads."""
    words = ["python -m lab.hardening_results"]
    for option in context.command.params:
        value = context.params[option.name or ""]
        if option.name not in {"images", "work", "out", "threads"} and value not in (None, option.default):
            words += [f"{option.opts[0]} {each}" for each in (value if isinstance(value, tuple) else (value,))]
    return " ".join(words)


def _rows(wanted: Sequence[str]) -> dict[str, Method]:
    """Methods by the name of their row."""
    rows: dict[str, Method] = {}
    for name in wanted:
        rows[name] = named(name)
        if name == "ssat":
            rows |= {title: named(name, share=share) for title, share in SCARCE.items()}
    return rows


def document(before: str, command: str, chapters: Mapping[str, Mapping[str, Any]]) -> str:
    """The page with its last section written anew; every figure comes from a card."""
    lines = [
        MEASURED,
        f"Written by `{command}`; do not edit below. Python {platform.python_version()}, torch",
        f"{torch.__version__}, {os.cpu_count()} cores, CPU. Per cent of right answers; under attack, scans that are",
        "misread anyway count as wrong, and the attacker knows the network. `s`: processor seconds of an epoch.",
    ]
    for name, cards in chapters.items():
        lines += _chapter(name, list(cards.items())) if cards else []
    return before.partition(MEASURED)[0] + "\n".join(lines) + "\n"


def _chapter(name: str, cards: list[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """The table of one set."""
    first = cards[0][1]
    attacks = [(each["attack"], each["eps"]) for each in first["measured"]["robust"]]
    attacks.sort(key=lambda each: (each[0] != "pgd", each[1]))
    rates = [rate for _, card in cards for rate in (card["measured"]["clean"], *card["measured"]["robust"])]
    widest = max((rate["high"] - rate["low"]) / 2 for rate in rates)
    recipe_ = ", ".join(f"{key} {first['recipe'][key]}" for key in ("epochs", "batch", "widths"))
    columns = ["method", "clean", *(f"{attack} {eps}" for attack, eps in attacks), "s"]
    lines = [
        "",
        f"### {name}",
        "",
        f"{first['data']['train']['n']} scans taught ({recipe_} for the first row), {first['data']['test']['n']} "
        f"tested clean and {first['measured']['robust'][0]['n']} attacked; seed {first['seed']}. Half widths of the "
        f"95 % Clopper-Pearson intervals: at most {100 * widest:.1f} points.",
        "",
        "| " + " | ".join(columns) + " |",
        "|" + "---|" * len(columns),
    ]
    for title, card in cards:
        found = {(each["attack"], each["eps"]): each["rate"] for each in card["measured"]["robust"]}
        seconds = card["cpu_seconds_per_epoch"]
        cells = [f"{100 * card['measured']['clean']['rate']:.1f}", *(f"{100 * found[each]:.0f}" for each in attacks)]
        cells.append("-" if seconds is None else f"{seconds:.3g}")
        lines.append(f"| `{title}` | " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    main()
