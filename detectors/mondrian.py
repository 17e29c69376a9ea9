"""Conformal p-values by category: a scan is compared with clean scans of its own kind, and of no other.

Mondrian conformal prediction (Vovk et al. 2005, "Algorithmic Learning in a Random World", 4.5): within each category
the p-value is that of `calibration.ConformalCalibration`, so what it promises holds for each of them and not only on
average over all. That is worth something only while a sender cannot choose his category. Where it is not certain, the
p-value is the smallest among all that he could have chosen: no claim makes a scan look calmer than another claim would,
and the price, more false alarms than were promised, is paid by scans whose origin nobody vouches for.
"""

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

import torch
from torch import Tensor

from detectors.calibration import ConformalCalibration, Guarantee, fewest
from detectors.detector import read_name, spelled
from detectors.errors import InputError, NotFittedError, TooFewError

ATTRIBUTES = ("modality", "manufacturer", "source")
"""What scans can be told apart by."""
CATEGORIES_MAX = 256

Category: TypeAlias = tuple[str, ...]
"""A value of each attribute of the taxonomy, in its order."""
Claims: TypeAlias = Sequence[Collection[Category]]
"""For each image, the categories that it may be of; at least one."""


@dataclass(frozen=True, slots=True)
class Taxonomy:
    """By what scans are told apart, and of which kinds there were enough clean ones."""

    attributes: tuple[str, ...]
    sizes: Mapping[Category, int]
    """Number of clean scans by category."""

    def __post_init__(self) -> None:
        known = set(self.attributes) <= set(ATTRIBUTES) and len(set(self.attributes)) == len(self.attributes)
        if not self.attributes or not known:
            raise InputError(f"scans are told apart by some of {', '.join(ATTRIBUTES)}, each once")
        if not 1 <= len(self.sizes) <= CATEGORIES_MAX:
            raise InputError(f"a taxonomy has 1 to {CATEGORIES_MAX} categories, not {len(self.sizes)}")
        if any(len(category) != len(self.attributes) for category in self.sizes):
            raise InputError("a category has one value for each attribute")

    def claimable(self, known: Mapping[str, str]) -> tuple[Category, ...]:
        """The categories that a scan may be of.

        Args:
            known: value by attribute, of those that its sender could not choose. Whatever is not here, he could.

        Returns:
            Every category that agrees with what is known; empty where there is none, and so no calibration.
        """
        wanted = [known.get(attribute) for attribute in self.attributes]
        return tuple(
            category
            for category in self.sizes
            if all(want is None or want == value for want, value in zip(wanted, category, strict=True))
        )

    def document(self) -> dict[str, Any]:
        """As it stands in a manifest."""
        sizes = [{"values": list(category), "n_b": size} for category, size in self.sizes.items()]
        return {"by": list(self.attributes), "categories": sizes}

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Self:
        """What `document` wrote; raises `InputError`, or KeyError, TypeError or ValueError on anything else."""
        sizes = {tuple(map(str, each["values"])): int(each["n_b"]) for each in document["categories"]}
        return cls(tuple(map(str, document["by"])), sizes)


class Mondrian:
    """The calibrations of every detector and of the whole, by category."""

    def __init__(
        self, attributes: tuple[str, ...], tables: Mapping[Category, Mapping[str, ConformalCalibration]]
    ) -> None:
        """Hold the fit.

        Args:
            attributes: of the taxonomy.
            tables: by category, then by detector; the same detectors in each.
        """
        self.taxonomy = Taxonomy(attributes, {each: _size(tables[each]) for each in tables})
        self.tables = {category: dict(named) for category, named in tables.items()}
        if len({frozenset(named) for named in self.tables.values()}) != 1:
            raise NotFittedError("every category needs a calibration of every detector")

    @classmethod
    def fit(
        cls,
        attributes: tuple[str, ...],
        categories: Sequence[Category],
        scores: Mapping[str, Tensor],
        fpr: float,
        asked: Collection[Category] = (),
    ) -> Self:
        """Calibrate each category that has enough clean scans for the rate.

        Args:
            attributes: of the taxonomy.
            categories: of each of N clean scans.
            scores: by detector, (N,), on the same scans.
            fpr: target false-positive rate.
            asked: those that must be among the calibrated.

        Raises:
            TooFewError: one that was asked for has too few scans, or none has enough.
        """
        enough = calibratable(attributes, categories, fpr, asked)
        inside = {each: torch.tensor([category == each for category in categories]) for each in enough}
        return cls(
            attributes,
            {
                each: {
                    name: ConformalCalibration.fit(values[inside[each].to(values.device)], fpr)
                    for name, values in scores.items()
                }
                for each in enough
            },
        )

    @property
    def guarantee(self) -> Guarantee:
        """What holds for every category."""
        promised = {table.guarantee for named in self.tables.values() for table in named.values()}
        return Guarantee.CONFIDENT if promised == {Guarantee.CONFIDENT} else Guarantee.MARGINAL

    def p_value(self, name: str, statistics: Tensor, claims: Claims | None, *, beyond: bool = False) -> Tensor:
        """The smallest p-value among the categories that each image may be of.

        Args:
            name: of the detector.
            statistics: (N,) of it.
            claims: for each image; None where nothing is known of any, so that each may be of every category.
            beyond: draw each category's clean scans on where its ranks end (`ConformalCalibration`).

        Returns:
            (N,) float64 in (0, 1], decreasing in the statistic.

        Raises:
            InputError: an image may be of no category, or of one that is not calibrated.
        """
        if claims is None:
            claims = [tuple(self.tables)] * len(statistics)
        if len(claims) != len(statistics) or not all(claims):
            raise InputError("an image may be of no calibrated category")
        least = torch.full_like(statistics, torch.inf, dtype=torch.float64)
        for category in {each for claimed in claims for each in claimed}:
            if category not in self.tables:
                raise InputError(f"{_spoken(self.taxonomy.attributes, category)} is not calibrated")
            own = torch.tensor([category in claimed for claimed in claims], device=statistics.device)
            p_value = self.tables[category][name].p_value(statistics, beyond=beyond)
            least = torch.where(own, torch.minimum(least, p_value), least)
        return least

    def state(self) -> dict[str, Tensor]:
        """Attributes, and each category with its tables."""
        state = {"attributes": spelled(json.dumps(self.taxonomy.attributes))}
        for index, (category, named) in enumerate(self.tables.items()):
            state[f"{index}.name"] = spelled(json.dumps(category))
            for name, table in named.items():
                state |= {f"{index}.of.{name}.{key}": value for key, value in table.state().items()}
        return state

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Self:
        """The fitted calibrations again."""
        tables: dict[Category, dict[str, ConformalCalibration]] = {}
        for index in sorted(int(key.removesuffix(".name")) for key in state if key.endswith(".name")):
            prefix = f"{index}.of."
            named: dict[str, dict[str, Tensor]] = {}
            for other, value in state.items():
                if other.startswith(prefix):
                    name, _, part = other.removeprefix(prefix).rpartition(".")
                    named.setdefault(name, {})[part] = value
            category = tuple(json.loads(read_name(state[f"{index}.name"])))
            tables[category] = {name: ConformalCalibration.from_state(parts) for name, parts in named.items()}
        return cls(tuple(json.loads(read_name(state["attributes"]))), tables)


def calibratable(
    attributes: Sequence[str], categories: Sequence[Category], fpr: float, asked: Collection[Category] = ()
) -> list[Category]:
    """The categories with enough clean scans for the rate, in order; see `Mondrian.fit`. Raises `TooFewError`."""
    counts, least = Counter(categories), fewest(fpr, Guarantee.MARGINAL)
    for category in asked:
        if counts[category] < least:
            raise TooFewError(
                f"{_spoken(attributes, category)}: {counts[category]} clean scans, and a false-positive rate of "
                f"{fpr:g} needs {least}, {fewest(fpr, Guarantee.CONFIDENT)} for 95 % confidence"
            )
    enough = sorted(category for category, count in counts.items() if count >= least)
    if not enough:
        raise TooFewError(f"no category has the {least} clean scans that a rate of {fpr:g} needs")
    return enough


def _size(named: Mapping[str, ConformalCalibration]) -> int:
    return next(iter(named.values())).size


def _spoken(attributes: Sequence[str], category: Category) -> str:
    return ", ".join(f"{name} {value!r}" for name, value in zip(attributes, category, strict=False))
