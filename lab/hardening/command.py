"""`scanward-lab harden`: everything heavy is imported when it runs."""

from __future__ import annotations

import json
from pathlib import Path

import click

from lab.refusals import refusals

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("method")
@click.option("--data", "data_path", type=click.Path(exists=True, path_type=Path), required=True,
              help=".npz, or a folder of DICOM files with labels.csv")  # fmt: skip
@click.option("--profile", "profile_path", type=FILE, required=True, help="what the model is to be, TOML")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="directory")
@click.option(
    "--model", "model_path", type=FILE, help="a model to learn from (ard, distillation, twin), or to vote beside"
)
@click.option("--option", "options", multiple=True, help="a field of the method, name=value; repeatable")
@click.option("--recipe", "recipes", multiple=True, help="a field of the recipe, such as epochs=30; repeatable")
@click.option("--attacks", default="pgd,autoattack", show_default=True, help="what it is measured with, commas between")
@click.option("--eps", default="1,2,4,8", show_default=True, help="budgets, 8-bit grey levels of the window")
@click.option("--attacked", type=click.IntRange(min=1), default=100, show_default=True, help="test scans to attack")
@click.option("--steps", type=click.IntRange(min=1), default=50, show_default=True, help="of PGD")
@click.option(
    "--queries", type=click.IntRange(min=1), default=5000, show_default=True, help="of the last attack of AutoAttack"
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="print the card as JSON on stdout")
def harden(
    *,
    method: str,
    data_path: Path,
    profile_path: Path,
    out: Path,
    model_path: Path | None,
    options: tuple[str, ...],
    recipes: tuple[str, ...],
    attacks: str,
    eps: str,
    attacked: int,
    steps: int,
    queries: int,
    seed: int,
    device: str,
    as_json: bool,
) -> None:
    """Train a model with a defence (docs/hardening.md), export it, and measure it under attack: a model card."""
    from lab.hardening import words
    from lab.hardening.card import page
    from lab.hardening.harden import harden as run
    from lab.progress import progress

    with refusals():
        made = words.method(method, options)
        recipe = words.recipe(made.recipe, recipes)
        judging = words.judging(attacks, eps, attacked, steps, queries)
        model = None if model_path is None else model_path.read_bytes()
        with progress() as watch:
            card = run(
                made, data_path, profile_path, out,
                recipe=recipe, judging=judging, seed=seed, device=device, model=model, watch=watch,
            )  # fmt: skip
    click.echo(json.dumps(card, allow_nan=False) if as_json else page(card), nl=as_json)
