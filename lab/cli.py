"""`scanward-lab`: what is done offline. Everything heavy is imported by the command that needs it."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lab.hardening.command import harden
from lab.live.command import through_options
from lab.refusals import FOUND_WANTING
from lab.refusals import refusals as _refusals
from lab.whereabouts import Whereabouts, model_options

if TYPE_CHECKING:
    from lab.evaluation.attacks import Informed

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
PATH = click.Path(exists=True, path_type=Path)


def _there(_context: click.Context, _parameter: click.Parameter, name: str) -> str:
    """The device, if this machine and its torch have it."""
    if name == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise click.BadParameter("this machine, or its torch, has no CUDA device")
    return name


DEVICE = click.option(
    "--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, callback=_there
)  # fmt: skip
ARTEFACT_KEY = click.option(
    "--artefact-key", "artefact_keys", type=FILE, multiple=True, help="public half of who signed it, PEM; repeatable"
)  # fmt: skip


@click.group()
def main() -> None:
    """Fit detectors to a model and its scans, and measure them."""


main.add_command(harden)


@main.command()
@model_options("ONNX, TorchScript or torch.export file")
@click.option("--profile", "profile_path", type=FILE, required=True, help="its profile, TOML")
@click.option("--data", "data_path", type=PATH, required=True, help=".npz, or a folder of DICOM files with labels.csv")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="artefact directory")
@click.option("--fpr", type=click.FloatRange(0, 0.5, min_open=True), default=0.01, show_default=True)
@click.option("--key", "key_path", type=FILE, help="Ed25519 private key, PEM; signs the artefact")
@click.option(
    "--detectors", "wanted", default="default", show_default=True, help="names to fit beside the default ones, or all"
)
@click.option("--denoiser", "denoisers", multiple=True, help="by name, repeatable; the first one's image goes on")
@click.option("--fusion-rounds", type=click.IntRange(min=0), default=0, show_default=True,
              help="rounds of the fusion against an attacker who knows it")  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@DEVICE
@click.option("--by", "told_by", type=click.Choice(["modality", "manufacturer", "source"]), multiple=True,
              help="calibrate each kind of scan for itself; repeatable")  # fmt: skip
@click.option("--category", "asked", multiple=True, metavar="NAME=VALUE,…",
              help="a kind that must be calibrated, such as modality=CT; repeatable")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="print one JSON document on stdout")
def fit(
    *,
    model_at: Whereabouts,
    profile_path: Path,
    data_path: Path,
    out: Path,
    fpr: float,
    key_path: Path | None,
    wanted: str,
    denoisers: tuple[str, ...],
    fusion_rounds: int,
    seed: int,
    device: str,
    told_by: tuple[str, ...],
    asked: tuple[str, ...],
    as_json: bool,
) -> None:
    """Fit and calibrate detectors on clean scans; write a signed artefact."""
    import torch

    from detectors import registry
    from gateway.profile import Profile
    from lab import data, denoising, fit_table, fitting, served
    from lab.categories import Told
    from lab.progress import progress
    from signing.envelope import load_private_key

    with _refusals():
        key = load_private_key(key_path) if key_path is not None else None
        methods = registry.asked_for(wanted)
        profile = Profile.load(profile_path)
        told = Told.of(told_by, asked) if told_by or asked else None
        parts = fitting.Parts.of(data.load(data_path, profile), seed)
        model = served.to_fit(model_at, profile)
        with progress() as watch:
            fitted = fitting.fit(
                model.file, profile, parts, out, ask=model.ask,
                fpr=fpr, key=key, seed=seed, device=torch.device(device), methods=methods,
                denoisers=denoisers or denoising.USUAL, told=told, fusion_rounds=fusion_rounds,
                watch=watch, expect=watch.expect,
            )  # fmt: skip
    if as_json:
        click.echo(fitted.manifest.decode(), nl=False)
    else:
        fit_table.show(fitted)
    if fitted.answers_only:
        click.echo(f"Gradient-free: {fitted.answers_only}. Only detectors that compare answers were fitted.", err=True)
    if key is None:
        click.echo("The artefact is not signed: a gateway loads it only with unsafe_unsigned_artefacts.", err=True)
    if fitted.doubts:
        click.echo(fit_table.doubted(fitted.doubts, parts.a.ids, parts.b.ids), err=True)


@main.command()
@click.option("--model", "model_path", type=FILE, required=True, help="ONNX file that is served")
@click.option("--profile", "profile_path", type=FILE, required=True, help="its profile, TOML")
@click.option("--data", "data_path", type=PATH, required=True, help=".npz, or a folder of DICOM files with labels.csv")
@click.option("--denoiser", "denoisers", multiple=True, help="by name, repeatable; by default all")
@click.option("--attacked", type=click.IntRange(min=1), default=100, show_default=True, help="scans to attack at most")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@DEVICE
@click.option("--json", "as_json", is_flag=True, help="print one JSON document on stdout")
def denoisers(
    *,
    model_path: Path,
    profile_path: Path,
    data_path: Path,
    denoisers: tuple[str, ...],
    attacked: int,
    seed: int,
    device: str,
    as_json: bool,
) -> None:
    """Measure denoisers: per cent of right answers on clean and on attacked test scans, milliseconds an image."""
    import torch

    from gateway.profile import Profile
    from lab import data, denoising
    from lab.progress import progress

    with _refusals():
        profile = Profile.load(profile_path)
        scans = data.load(data_path, profile)
        with progress() as watch:
            bench = denoising.bench(model_path.read_bytes(), profile, torch.device(device), seed, watch)
            made = denoising.make(bench, denoisers or denoising.EVERY, scans.train.images)
            effects = denoising.measure(bench, made, scans.test, attacked=attacked)
    click.echo(denoising.told(effects, as_json=as_json))


@main.command()
@model_options("the file that the detectors were fitted for")
@click.option("--profile", "profile_path", type=FILE, required=True, help="its profile, TOML")
@click.option("--detectors", type=FOLDER, required=True, help="artefact directory")
@ARTEFACT_KEY
@click.option("--data", "data_path", type=PATH, required=True, help=".npz, or a folder of DICOM files with labels.csv")
@click.option("--split", type=click.Choice(["train", "val", "test"]), default="test", show_default=True)
@DEVICE
@click.option("--json", "as_json", is_flag=True, help="print one JSON document on stdout")
def score(
    *,
    model_at: Whereabouts,
    profile_path: Path,
    detectors: Path,
    artefact_keys: tuple[Path, ...],
    data_path: Path,
    split: str,
    device: str,
    as_json: bool,
) -> None:
    """Score images as they are: p-values of the ensemble and of each detector, and the model's answers."""
    import torch

    from gateway.profile import Profile
    from lab import data, scoring, served

    with _refusals():
        manifest = _manifest(detectors, artefact_keys)
        profile = Profile.load(profile_path)
        scans = getattr(data.load(data_path, profile), split)
        model = served.as_fitted(model_at, profile, detectors)
        table = scoring.score(model.file, profile, detectors, manifest, scans, torch.device(device), model.ask)
    if as_json:
        click.echo(json.dumps(table))
        return
    for name, p, predicted in zip(table["ids"], table["p"], table["prediction"], strict=True):
        click.echo(f"{name}\t{p:.4g}\t{profile.classes[predicted]}")


@main.command()
@model_options("the file that the detectors were fitted for")
@click.option("--profile", "profile_path", type=FILE, required=True, help="its profile, TOML")
@click.option("--detectors", type=FOLDER, required=True, help="artefact directory")
@ARTEFACT_KEY
@click.option("--data", "data_path", type=FILE, required=True, help=".npz; its test split is attacked")
@click.option("--attacks", default="all", show_default=True, help="names, with commas between")
@click.option("--eps", default="1,2,4,8", show_default=True, help="budgets, 8-bit grey levels of the window")
@click.option("--grade", "grade_name", type=click.Choice(["quick", "full"]), default="quick", show_default=True)
@click.option("--images", type=click.IntRange(min=1), help="scans to attack, instead of the grade's number")
@click.option("--steps", type=click.IntRange(min=1), help="steps of an attack, instead of the grade's number")
@click.option("--adaptive", is_flag=True, help="also the attacker who holds the detectors")
@click.option("--adaptive-form", "forms", type=click.Choice(["single", "suite", "decisions"]), multiple=True,
              default=["single"], show_default=True, help="of that attacker; repeatable")  # fmt: skip
@click.option("--shift", "shifts", type=FILE, multiple=True, help="another data set, shown as it is; repeatable")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="directory for report.json, report.md and report.html",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--threat-model", "threat_path", type=FILE, help="what must be withstood, TOML: says what is tried")
@click.option("--junit", type=click.Path(dir_okay=False, path_type=Path), help="file for the outcome, JUnit XML")
@DEVICE
@click.option("--json", "as_json", is_flag=True, help="print one JSON document on stdout")
def evaluate(
    *,
    model_at: Whereabouts,
    profile_path: Path,
    detectors: Path,
    artefact_keys: tuple[Path, ...],
    data_path: Path,
    attacks: str,
    eps: str,
    grade_name: str,
    images: int | None,
    steps: int | None,
    adaptive: bool,
    forms: "tuple[Informed, ...]",
    shifts: tuple[Path, ...],
    out: Path | None,
    threat_path: Path | None,
    junit: Path | None,
    seed: int,
    device: str,
    as_json: bool,
) -> None:
    """Attack the model on test scans; report what detectors see, and judge it by a threat model."""
    from lab.evaluation.command import Given, Wanted, run
    from lab.evaluation.threat import ThreatModel

    with _refusals():
        threat = ThreatModel.load(threat_path) if threat_path is not None else None
        if threat is not None:
            _unsaid("--threat-model", "attacks", "eps", "adaptive", "forms", "grade_name")
            wanted = Wanted.of_threat(threat)
        else:
            wanted = Wanted.of_words(attacks, eps, grade_name, adaptive=adaptive, forms=forms)
        given = Given(
            model_at, profile_path, detectors, _manifest(detectors, artefact_keys), data_path, shifts, out, junit,
            images, steps, seed, device,
        )  # fmt: skip
        document, text = run(given, wanted, threat)
        click.echo(json.dumps(document, indent=2, allow_nan=False) if as_json else text)
    if threat is not None and not document["gate"]["passed"]:
        sys.exit(FOUND_WANTING)


def _manifest(detectors: Path, keys: tuple[Path, ...]) -> bytes:
    """What the artefact says, vouched for by one of the keys; where there is none, a sentence on stderr says so."""
    from lab import sealing

    if keys:
        return sealing.believed(detectors, keys)
    click.echo(f"The signature of {detectors} was not checked: --artefact-key would.", err=True)
    return sealing.unchecked(detectors)


def _unsaid(by: str, *names: str) -> None:
    """Refuse options whose place another one takes; raises `DataError`."""
    from click.core import ParameterSource

    from lab.data import DataError

    here = click.get_current_context()
    if said := [each for each in names if here.get_parameter_source(each) is ParameterSource.COMMANDLINE]:
        raise DataError(f"--{said[0].removesuffix('_name')}: {by} says what is tried")


@main.command()
@model_options("the file that the detectors were fitted for")
@click.option("--profile", "profile_path", type=FILE, required=True, help="its profile, TOML")
@click.option("--detectors", type=FOLDER, required=True, help="signed artefact directory that is served")
@click.option("--public-key", "public_keys", type=FILE, multiple=True, required=True, help="who signed it; repeatable")
@click.option("--scans", type=FOLDER, required=True, help="folder of signed DICOM files")
@click.option("--config", type=FILE, required=True, help="configuration that names the enrolled signers")
@click.option("--trust", "trust_name", required=True, help="its trust policy, [trust.NAME]")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="directory of the candidate"
)
@click.option("--per-patient", type=click.IntRange(min=1), default=1, show_default=True, help="scans, under one signer")
@click.option(
    "--bound", type=click.FloatRange(0, min_open=True), default=1.0, show_default=True, help="movement, in nats"
)
@click.option("--accept-movement", is_flag=True, help="take a larger movement: say so only when you know its cause")
@DEVICE
@click.option("--json", "as_json", is_flag=True, help="print one JSON document on stdout")
def recalibrate(
    *,
    model_at: Whereabouts,
    profile_path: Path,
    detectors: Path,
    public_keys: tuple[Path, ...],
    scans: Path,
    config: Path,
    trust_name: str,
    out: Path,
    per_patient: int,
    bound: float,
    accept_movement: bool,
    device: str,
    as_json: bool,
) -> None:
    """Calibrate the detectors anew on scans that enrolled scanners signed; write a candidate for a person to sign."""
    import torch

    from gateway.profile import Profile
    from lab import movement_table, recalibration, sealing, served

    with _refusals():
        profile = Profile.load(profile_path)
        manifest = sealing.believed(detectors, public_keys)
        model = served.as_fitted(model_at, profile, detectors)
        ensemble = sealing.opened(detectors, manifest, model.file, profile, torch.device(device), model.ask)
        chosen = recalibration.choose(scans, sealing.trust_of(config, trust_name), profile, per_patient=per_patient)
        proposal = recalibration.propose(ensemble, detectors, manifest, chosen)
        movement_table.show(proposal.movements, chosen, as_json=as_json)
        recalibration.write(detectors, manifest, chosen, proposal, out, bound=bound, accept_movement=accept_movement)
    click.echo(f"Nobody has signed {out}: read what moved, then scanward-lab sign-artefact.", err=True)


@main.command()
@through_options
@click.option("--attack", "name", help="name of an attack (docs/attacks.md)")
@click.option("--tamper", help="in place of --attack: metadata, window, pixels, fragments, stripping, replay, …")
@click.option("--model", "model_path", type=FILE, help="ONNX file that is served")
@click.option("--profile", "profile_path", type=FILE, help="its profile, TOML")
@click.option(
    "--data", "data_path", type=PATH, required=True, help=".npz; folder with labels.csv; or files to tamper with"
)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="directory")
@click.option("--eps", type=click.FloatRange(min=0, min_open=True), help="budget, 8-bit grey levels of the window")
@click.option("--option", "options", multiple=True, help="a field of the attack, name=value; repeatable")
@DEVICE
@click.option("--json", "as_json", is_flag=True, help="print one JSON document on stdout")
def attack(
    *,
    name: str | None,
    tamper: str | None,
    model_path: Path | None,
    profile_path: Path | None,
    data_path: Path,
    out: Path,
    eps: float | None,
    options: tuple[str, ...],
    device: str,
    as_json: bool,
    through: str | None,
    **there: Any,
) -> None:
    """Write attacked images or DICOM files, as an intruder would store them; or send them to a gateway."""
    from lab.attacks import command
    from lab.live import command as live

    with _refusals():
        if through is not None:
            document = live.run(
                through=through, attack=name, tamper=tamper, eps=eps, options=options, profile=profile_path,
                source=data_path, out=out, **there,
            )  # fmt: skip
            click.echo(json.dumps(document) if as_json else live.said(document, out))
            sys.exit(0 if document["ok"] else FOUND_WANTING)
        if tamper is not None:
            document = command.tamper_files(tamper, data_path, out)
        else:
            made = command.configured(name, eps, options)
            document = command.attack_with(made, model_path, profile_path, data_path, out, device=device)
    click.echo(json.dumps(document) if as_json else command.said(document, out))


@main.command("sign-artefact")
@click.argument("artefact", type=FOLDER)
@click.option("--key", "key_path", type=FILE, required=True, help="Ed25519 private key, PEM")
def sign_artefact(*, artefact: Path, key_path: Path) -> None:
    """Sign the manifest of an artefact directory whose files are all as it says."""
    from lab import sealing
    from signing.envelope import load_private_key

    with _refusals():
        facts = sealing.sign(artefact, load_private_key(key_path))
    click.echo(f"signed: {facts['guarantee']} at {facts['fpr']:g}, calibrated on {facts['n_b']} scans", err=True)
