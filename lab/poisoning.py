"""Measures what attacked scans among the clean ones that detectors are calibrated on do: `python -m lab.poisoning`."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import matplotlib as mpl
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from detectors.artifact import Artefact
from detectors.calibration import ConformalCalibration, ParetoTail, TailCalibration
from detectors.ensemble import Channel, Ensemble, Member, join, loudest
from gateway.profile import Profile
from lab import purity, sealing
from lab.attacks.attack import Target
from lab.attacks.pgd import PGD
from lab.data import DataError, load
from lab.development import mirrored
from lab.fitting import Parts
from lab.seeds import seeds_of
from lab.workbench import BATCH, logits_of

SHARES = (0.01, 0.05, 0.10)
PLACES = ("B", "A", "A and B")
MIRRORED = "a, mirrored"
"""The scans of A once more, mirrored: `fit` orders by both (`Workbench.usual`)."""
REPORT = Path("docs/results-poisoning.md")

Scores = Mapping[str, Tensor]
"""By deciding detector, (N,)."""


@dataclass(frozen=True, slots=True)
class Pools:
    """Scores of scans by part: clean ones, and ones that an attack got misread."""

    clean: Mapping[str, Scores]
    """Under `a`, the same scans in the same order under `MIRRORED`, `b` and `test`."""
    bad: Mapping[str, Scores]


@dataclass(frozen=True, slots=True)
class Row:
    """The mean over draws of who is poison, for one share in one place."""

    place: str
    share: float
    fpr: float
    """Clean test scans flagged."""
    tpr: float
    """Attacked test scans flagged."""
    named: float
    """Of the poison, what `lab.purity` names."""
    wrongly: float
    """Clean scans that it names, a fit."""
    fpr_after: float
    """The same once those that are named are taken out."""
    tpr_after: float


@click.command()
@click.option("--model", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True)
@click.option("--profile", "profile_path", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True)
@click.option("--detectors", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--data", "data_path", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--work", type=click.Path(file_okay=False, path_type=Path), default=Path(".cache/poisoning"))
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), default=REPORT, show_default=True)
@click.option("--eps", default=4.0, show_default=True, help="budget of the attack, 8-bit grey levels")
@click.option("--steps", default=20, show_default=True, help="of projected gradient descent")
@click.option("--attacked", default=60, show_default=True, help="scans of each part that are attacked")
@click.option("--draws", default=100, show_default=True, help="of who is poison, for each row")
def main(
    *, model: Path, profile_path: Path, detectors: Path, data_path: Path, work: Path, out: Path, eps: float, steps: int,
    attacked: int, draws: int,
) -> None:  # fmt: skip
    """Score every part once, attacked and clean; then calibrate on mixtures of them, and write the document.

    Scores that lie in the work folder are taken from there: what was cut short goes on where it was.
    """
    profile = Profile.load(profile_path)
    manifest = sealing.unchecked(detectors)
    artefact = Artefact.load(detectors, manifest, model.read_bytes(), profile.sha256, torch.device("cpu"))
    data = load(data_path, profile)
    if data.sha256 != artefact.manifest["data_sha256"]:
        raise DataError(f"{data_path}: the detectors were not fitted on it")
    parts, fpr = Parts.of(data, seed=0), float(artefact.manifest["fpr"])
    splits = {"a": parts.a, "b": parts.b, "test": parts.test}
    folder = work / f"{hashlib.sha256(manifest).hexdigest()[:16]}-{eps:g}-{steps}-{attacked}"
    scorer = _Scorer(artefact.ensemble, profile, folder)
    clean = {name: scorer.clean(name, each.images) for name, each in splits.items()}
    bad = {name: scorer.bad(name, each.images[:attacked], each.labels, eps, steps) for name, each in splits.items()}
    clean[MIRRORED] = scorer.mirrored(parts.a.images)
    bad[MIRRORED] = scorer.mirrored_bad("a", parts.a.images[:attacked], parts.a.labels, eps, steps)
    pools = Pools(clean, bad)
    rows = measure(artefact.ensemble, pools, fpr, draws=draws)
    picture = out.with_suffix(".png")
    _draw(rows, fpr, picture)
    command = f"python -m lab.poisoning --data {data_path.name} --eps {eps:g} --steps {steps} --draws {draws}"
    out.write_text(document(rows, pools, fpr, command, picture.name), encoding="utf-8")


def measure(
    ensemble: Ensemble, pools: Pools, fpr: float, *, shares: Sequence[float] = SHARES, draws: int = 100, seed: int = 0
) -> list[Row]:
    """Calibrate on mixtures of clean and attacked scans; the first row is without poison.

    Args:
        ensemble: whose deciding detectors are calibrated anew.
        pools: scores.
        fpr: the rate that is promised.
        shares: of poison in a part.
        draws: of who is poison.
        seed: of the draws.
    """
    random = torch.Generator().manual_seed(seed)
    cases = [("none", 0.0), *((place, share) for place in PLACES for share in shares)]
    return [_row(ensemble, pools, fpr, place, share, draws if share else 1, random) for place, share in cases]


def _row(
    ensemble: Ensemble, pools: Pools, fpr: float, place: str, share: float, draws: int, random: torch.Generator
) -> Row:
    found = []
    for _ in range(draws):
        mixed = {part: _mixed(pools, part, share if part.upper() in place else 0.0, random) for part in ("a", "b")}
        doubts = purity.doubts(mixed["a"][0][0], mixed["b"][0][0])
        kept, caught, wrongly, poison = {}, 0, 0, 0
        for part, named in (("a", doubts.a), ("b", doubts.b)):
            scores, count = mixed[part]
            stays = torch.ones(len(next(iter(scores[0].values()))), dtype=torch.bool)
            stays[list(named)] = False
            kept[part] = [{name: values[stays] for name, values in each.items()} for each in scores]
            hit = sum(index < count for index in named)
            caught, wrongly, poison = caught + hit, wrongly + len(named) - hit, poison + count
        before = _rates(ensemble, mixed["a"][0], mixed["b"][0], pools, fpr)
        after = _rates(ensemble, kept["a"], kept["b"], pools, fpr)
        found.append((*before, caught / poison if poison else 0.0, float(wrongly), *after))
    return Row(place, share, *torch.tensor(found, dtype=torch.float64).mean(0).tolist())


def _mixed(pools: Pools, part: str, share: float, random: torch.Generator) -> tuple[list[Scores], int]:
    """The scores of a part of which a share is attacked, these first, of A also mirrored; and how many they are."""
    size, there = (len(next(iter(each[part].values()))) for each in (pools.clean, pools.bad))
    count = round(share * size)
    chosen = torch.randint(there, (count,), generator=random)
    stays = torch.randperm(size, generator=random)[count:]
    return [
        {name: torch.cat([pools.bad[home][name][chosen], values[stays]]) for name, values in pools.clean[home].items()}
        for home in (part, MIRRORED)[: 2 if part == "a" else 1]
    ], count


def _rates(
    ensemble: Ensemble, ordering: Sequence[Scores], promising: Sequence[Scores], pools: Pools, fpr: float
) -> tuple[float, float]:
    """False and true positives on test scans of the same detectors, calibrated on these scores."""
    a, b = ({name: torch.cat([each[name] for each in part]) for name in part[0]} for part in (ordering, promising))
    members = [
        Member(each.detector, TailCalibration.fit(a[each.detector.name]), each.conformal, each.channel)
        for each in ensemble.members if each.channel
    ]  # fmt: skip
    channels = [
        Channel(each.name, each.weight, ParetoTail.fit(loudest(members, each.name, a))) for each in ensemble.channels
    ]
    rule = ConformalCalibration.fit(join(members, channels, b), fpr)
    rates = []
    for scores in (pools.clean["test"], pools.bad["test"]):
        flags = rule.p_value(join(members, channels, scores)) <= fpr
        rates.append(float(flags.double().mean()))
    return rates[0], rates[1]


class _Scorer:
    """Scores parts once, and keeps what it found."""

    def __init__(self, ensemble: Ensemble, profile: Profile, folder: Path) -> None:
        self.ensemble, self.folder, self.span = ensemble, folder, ensemble.probe.span
        logits = logits_of(ensemble.probe)
        self.target = Target.of_uint8(lambda rendered: logits(self.span.to_unit(rendered)), profile)
        self._made: dict[str, Tensor] = {}

    def clean(self, name: str, images: Tensor) -> Scores:
        """Of (N, C, H, W) images as the model takes them."""
        return self._kept(f"{name}-clean", lambda: images)

    def mirrored(self, images: Tensor) -> Scores:
        """Of the same, mirrored."""
        return self._kept(f"{MIRRORED}-clean", lambda: self._other(images))

    def bad(self, name: str, images: Tensor, labels: Tensor, eps: float, steps: int) -> Scores:
        """Of those that an attack got misread; grey scans alone."""
        return self._kept(f"{name}-bad", lambda: self._attacked(name, images, labels, eps, steps))

    def mirrored_bad(self, name: str, images: Tensor, labels: Tensor, eps: float, steps: int) -> Scores:
        """Of these, mirrored."""
        return self._kept(
            f"{MIRRORED}-bad", lambda: self._other(self._attacked(name, images, labels, eps, steps))
        )  # fmt: skip

    def _attacked(self, name: str, images: Tensor, labels: Tensor, eps: float, steps: int) -> Tensor:
        if name not in self._made:
            self._made[name] = self._attack(name, images, labels, eps, steps)
        return self._made[name]

    def _attack(self, name: str, images: Tensor, labels: Tensor, eps: float, steps: int) -> Tensor:
        stored = (self.span.to_unit(images[:, :1]) * 255).round()
        right = self.target.judged(stored, labels[: len(stored)], batch=BATCH).margin > 0
        found = PGD(eps=eps, steps=steps)(self.target, stored[right], labels[: len(stored)][right])
        if not bool(found.success.any()):
            raise DataError(f"no attack on {name} succeeded: there is no poison to measure")
        return self.target.view(found.images[found.success])

    def _other(self, images: Tensor) -> Tensor:
        return self.span.from_unit(mirrored(self.span.to_unit(images), seed=0))

    def _kept(self, name: str, images: Callable[[], Tensor]) -> Scores:
        path = self.folder / f"{name}.safetensors"
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file(self._scores(images()), path.with_suffix(".part"))
            path.with_suffix(".part").replace(path)
        return dict(load_file(path))

    @torch.no_grad()
    def _scores(self, images: Tensor) -> dict[str, Tensor]:
        deciding = [member.detector for member in self.ensemble.members if member.channel]
        found: dict[str, list[Tensor]] = {each.name: [] for each in deciding}
        for part in torch.split(images, BATCH):
            seen = self.ensemble.probe.observe(part, self.ensemble.deciding_needs, seeds=seeds_of(part))
            for each in deciding:
                found[each.name].append(each.score(seen).values)
        return {name: torch.cat(values).contiguous() for name, values in found.items()}


def document(rows: Sequence[Row], pools: Pools, fpr: float, command: str, picture: str) -> str:
    """The document; every figure comes from a measurement."""
    sizes = {part: len(next(iter(scores.values()))) for part, scores in pools.clean.items()}
    bad = {part: len(next(iter(scores.values()))) for part, scores in pools.bad.items()}
    lines = [
        "# Attacked scans among the clean ones",
        "",
        f"Written by `{command}`; do not edit. Python {platform.python_version()}, torch {torch.__version__}, "
        f"{os.cpu_count()} cores, CPU.",
        "",
        f"Detectors are calibrated for {fpr:.1%} on {sizes['a']} scans that order (A) and {sizes['b']} that",
        f"promise (B). A share is replaced by attacked ones (PGD; {bad['a']} and {bad['b']} that succeeded), anew",
        f"in each draw; {sizes['test']} clean and {bad['test']} attacked test scans show false positives",
        "and detection. *Named*: of the poison, what a fit warns of; *wrongly*: clean scans that it names, a fit.",
        "*Cleaned*: once the named ones are taken out. The detectors themselves are not fitted anew, and the poisoner",
        "does not know the check: one who does stays below its bound, which is as far as he moves a threshold.",
        "",
        "| poison in | share | false positives | detection | named | wrongly | cleaned: false positives | detection |",
        "|---|---|---|---|---|---|---|---|",
        *(
            f"| {row.place} | {row.share:.0%} | {row.fpr:.1%} | {row.tpr:.1%} | {row.named:.1%} | {row.wrongly:.2f} | "
            f"{row.fpr_after:.1%} | {row.tpr_after:.1%} |"
            for row in rows
        ),
        "",
        f"![Detection over the share of poison]({picture})",
    ]
    return "\n".join(lines) + "\n"


def _draw(rows: Sequence[Row], fpr: float, path: Path) -> None:
    """Detection over the share of poison, as it is and once cleaned."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 - after the choice of what draws

    figure, axes = plt.subplots(figsize=(7.2, 3.6), layout="constrained")
    for place, colour, mark in zip(PLACES, ("#0068a8", "#d0560a", "#0b8a66"), "osD", strict=True):
        own = [rows[0], *(row for row in rows if row.place == place)]
        x = [100 * row.share for row in own]
        axes.plot(x, [100 * row.tpr for row in own], color=colour, marker=mark, label=f"in {place}")
        axes.plot(x, [100 * row.tpr_after for row in own], color=colour, marker=mark, ls=":", label="  cleaned")
    axes.set(xlabel="attacked scans among the clean ones, %", ylabel=f"detection at {fpr:.1%}, %", ylim=(-3, 103))
    axes.grid(color="#e7ebef")
    axes.legend(frameon=False, ncols=2, loc="center right")
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
