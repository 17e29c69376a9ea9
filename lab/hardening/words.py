"""Settings from words: `eps=4`, `widths=[8,16]`, `branch=clean`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from typing import Any

from detectors.augmentation import Augmentation
from lab.data import DataError
from lab.hardening.measure import Judging
from lab.hardening.method import Method
from lab.hardening.registry import named
from lab.learning import Recipe


def settings(words: Sequence[str]) -> dict[str, Any]:
    """Return what words `name=value` say; a value is a number, true, false, a list of numbers, or a word.

    Raises:
        DataError: a word without a sign, or a name given twice.
    """
    told: dict[str, Any] = {}
    for word in words:
        key, sign, value = word.partition("=")
        if not sign or key in told:
            raise DataError(f"{word}: write name=value, each name once")
        try:
            found = json.loads(value)
        except json.JSONDecodeError:
            found = value
        told[key] = tuple(found) if isinstance(found, list) else found
    return told


def method(name: str, words: Sequence[str]) -> Method:
    """Return a method, configured; raises `DataError`."""
    try:
        return named(name, **settings(words))
    except ValueError as error:
        raise DataError(str(error)) from error


def spoken(recipe: Recipe) -> dict[str, Any]:
    """Return every setting of a recipe by its name, with those of its augmentation."""
    told = asdict(recipe)
    moved: dict[str, Any] = told.pop("augmentation")
    return told | moved


def recipe(usual: Recipe, words: Sequence[str]) -> Recipe:
    """Return a recipe with what the words change.

    Raises:
        DataError: no such setting, or a value of another kind or below what makes sense.
    """
    told, known = settings(words), spoken(usual)
    for key, value in told.items():
        if key not in known:
            raise DataError(f"a recipe has no {key}; it has {', '.join(known)}")
        if not _fits(value, known[key]):
            raise DataError(f"recipe: {key} must be like {known[key]!r}, not {value!r}")
    moved = {each.name: told.pop(each.name) for each in fields(Augmentation) if each.name in told}
    changed = replace(usual, augmentation=replace(usual.augmentation, **moved), **told)
    if not len(changed.widths) == len(changed.blocks) == len(changed.strides) > 0:
        raise DataError("recipe: widths, blocks and strides must be as many, one a stage")
    whole = (changed.epochs, changed.batch, *changed.widths, *changed.blocks, *changed.strides)
    if min(whole) < 1 or changed.batch < 2 or not changed.peak_rate > 0 or not 0 <= changed.averaging < 1:
        raise DataError(
            "recipe: epochs, widths, blocks, strides and peak_rate are above 0, batch above 1, averaging below 1"
        )
    return changed


def judging(attacks: str, eps: str, attacked: int, steps: int, queries: int) -> Judging:
    """Return how to attack, from names and whole numbers with commas between; raises `DataError`."""
    try:
        levels, names = tuple(int(each) for each in eps.split(",")), tuple(attacks.split(","))
        return Judging(attacked, levels, names, steps, queries=queries)
    except ValueError as error:
        raise DataError(f"--attacks {attacks} --eps {eps}: {error}") from error


def _fits(value: object, default: object) -> bool:
    """Whether a value is of the default's kind; a whole number may stand for a real one."""
    if isinstance(value, tuple):
        return isinstance(default, tuple) and all(type(each) is int for each in value)
    return type(value) is type(default) or (type(value) is int and type(default) is float)
