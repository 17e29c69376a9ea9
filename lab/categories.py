"""By what the scans of a data set are told apart, where detectors are calibrated by category."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from detectors.mondrian import ATTRIBUTES, Category, Mondrian
from lab.data import DataError, Split


@dataclass(frozen=True, slots=True)
class Told:
    """What a fit is told about categories."""

    attributes: tuple[str, ...]
    """Some of `detectors.mondrian.ATTRIBUTES`."""
    asked: tuple[Category, ...] = ()
    """Categories without which the fit is refused; any other is calibrated where it has enough scans."""

    @classmethod
    def of(cls, attributes: Sequence[str], asked: Sequence[str]) -> "Told":
        """From words: `modality`, and `modality=CT,source=ct-1`; raises `DataError`."""
        chosen = tuple(name for name in ATTRIBUTES if name in attributes)
        categories = []
        for words in asked:
            values = dict(word.partition("=")[::2] for word in words.split(","))
            if set(values) != set(chosen) or not all(values.values()):
                raise DataError(f"{words!r} does not say {' and '.join(chosen) or 'anything that is told apart'}")
            categories.append(tuple(values[name] for name in chosen))
        return cls(chosen, tuple(categories))


def categories_of(scans: Split, attributes: Sequence[str]) -> list[Category]:
    """The category of each scan; raises `DataError` where the data does not say."""
    missing = [name for name in attributes if name not in scans.attributes]
    if missing and len(scans):
        raise DataError(f"the data does not say the {', '.join(missing)} of its scans")
    return [tuple(scans.attributes[name][k] for name in attributes) for k in range(len(scans))]


def calibrated(scans: Split, mondrian: Mondrian | None) -> tuple[Split, list[tuple[Category, ...]] | None]:
    """The scans of calibrated categories, and which one each is of, as if somebody vouched for it."""
    if mondrian is None:
        return scans, None
    categories = categories_of(scans, mondrian.taxonomy.attributes)
    kept = [k for k, category in enumerate(categories) if category in mondrian.tables]
    return scans.take(torch.tensor(kept, dtype=torch.int64)), [(categories[k],) for k in kept]
