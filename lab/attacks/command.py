"""`scanward-lab attack`: attacked images, or DICOM files, and what it took."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydicom.errors import InvalidDicomError
from torch import Tensor

from detectors.models.outputs import Activation, to_logits
from detectors.models.reference import Reference
from gateway.pixels.decompressor import DisposableDecoder
from gateway.pixels.unexaminable import UnexaminableError
from gateway.profile import Profile
from lab.attacks.attack import Attack, Attacked, Target
from lab.attacks.dicom import opened, written
from lab.attacks.measures import change
from lab.attacks.registry import ATTACKS, named
from lab.attacks.tampering import TAMPERINGS
from lab.data import DataError, file_in, laid_out, opened_npz, stored
from signing import DicomError

REPORT = "attack.json"
FILES_MAX = 10_000


def configured(name: str | None, eps: float | None, options: Sequence[str]) -> Attack:
    """Return an attack from words: `steps=40`, `norm=l2`, `random=false`.

    Raises:
        DataError: no such attack or option, or a value that is none.
    """
    if name is None:
        raise DataError("give --attack with --model and --profile, or --tamper")
    chosen: dict[str, object] = {} if eps is None else {"eps": eps}
    for option in options:
        key, sign, value = option.partition("=")
        if not sign:
            raise DataError(f"--option {option}: write name=value")
        chosen[key] = _value(value)
        _fits(name, key, chosen[key])
    try:
        return named(name, **chosen)
    except (ValueError, TypeError) as error:
        raise DataError(str(error)) from error


def _fits(name: str, key: str, value: object) -> None:
    """Raise `DataError` where a value is of another kind than the option's default."""
    options = fields(ATTACKS[name]) if name in ATTACKS else ()  # type: ignore[arg-type]
    for each in options:
        whole = isinstance(each.default, int) and not isinstance(each.default, bool)
        if each.name == key and whole and (isinstance(value, bool) or not isinstance(value, int)):
            raise DataError(f"--option {key}: must be a whole number, not {value}")


def attack_with(
    attack: Attack, model: Path | None, profile: Path | None, source: Path, out: Path, *, device: str
) -> dict[str, Any]:
    """Attack an .npz file or a folder of DICOM files; see `attack_images` and `attack_files`."""
    if model is None or profile is None:
        raise DataError("give --attack with --model and --profile, or --tamper")
    run = attack_files if source.is_dir() else attack_images
    return run(attack, model.read_bytes(), Profile.load(profile), source, out, device=torch.device(device))


def attack_images(
    attack: Attack, model: bytes, profile: Profile, source: Path, out: Path, *, device: torch.device
) -> dict[str, Any]:
    """Attack the test images of an .npz file; write one of the same layout, whose test images are the attacked ones.

    Args:
        attack: configured.
        model: of the ONNX file.
        profile: the model's.
        source: .npz as architecture 5.1 says.
        out: directory.
        device: where to compute.

    Raises:
        DataError: the file cannot be used, or the attack cannot be made on it.
    """
    apart(source, out / source.name)
    arrays, _ = opened_npz(source)
    if not {"test_images", "test_labels"} <= set(arrays):
        raise DataError(f"{source}: has no test_images with test_labels")
    scans = stored(source, "test", profile)
    images, labels = scans.images.to(device), scans.labels.to(device, torch.int64)
    target = Target.of_uint8(_logits(model, profile, device), profile)
    found = _made(attack, target, images, labels)
    out.mkdir(parents=True, exist_ok=True)
    kept: dict[str, Any] = {**arrays, "test_images": laid_out(found.images, arrays["test_images"])}
    np.savez_compressed(out / source.name, **kept)
    ids = [str(each) for each in arrays.get("test_ids", np.arange(len(images)))]
    return _reported(attack, out, _rows(ids, target, images, found))


def attack_files(
    attack: Attack, model: bytes, profile: Profile, source: Path, out: Path, *, device: torch.device
) -> dict[str, Any]:
    """Attack the middle frame of every DICOM file of a folder with labels.csv; write files of the same names.

    Raises:
        DataError: the folder cannot be used, or the attack cannot be made on a file.
    """
    apart(source, out)
    logits, rows = _logits(model, profile, device), []
    out.mkdir(parents=True, exist_ok=True)
    with DisposableDecoder() as decompressor:
        for name, label in labelled(source, profile):
            try:
                object_ = opened(file_in(source, name), profile, decompressor)
                target = Target.of_dicom(logits, object_.rendering, profile)
            except (DicomError, UnexaminableError, ValueError) as error:
                raise DataError(f"{name}: {error}") from error
            middle = len(object_.frames) // 2
            image = object_.frames[middle : middle + 1].to(device)
            found = _made(attack, target, image, torch.tensor([label], device=device))
            frames = object_.frames.clone()
            frames[middle] = found.images[0].cpu()
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_bytes(written(object_, frames))
            rows += _rows([name], target, image, found)
    (out / "labels.csv").write_bytes((source / "labels.csv").read_bytes())
    return _reported(attack, out, rows)


def tamper_files(name: str, source: Path, out: Path) -> dict[str, Any]:
    """Tamper with one DICOM file, or with all of a folder whose names end in .dcm; no model is needed.

    A file that it cannot be done to stops no other: all that could be are written and reported first.

    Raises:
        DataError: no such tampering, no file, or files that it cannot be done to.
    """
    if name not in TAMPERINGS:
        raise DataError(f"no tampering is called {name!r}; there are {', '.join(TAMPERINGS)}")
    files = [source] if source.is_file() else sorted(source.glob("*.dcm"))[:FILES_MAX]
    if not files:
        raise DataError(f"{source}: holds no .dcm file")
    apart(files[0].parent, out)
    out.mkdir(parents=True, exist_ok=True)
    done, failed = [], []
    for path in files:
        try:
            (out / path.name).write_bytes(TAMPERINGS[name](path.read_bytes()))
            done.append(path.name)
        except (DicomError, InvalidDicomError, ValueError, AttributeError) as error:
            failed.append({"file": path.name, "problem": str(error)})
    document = {"schema": 1, "tampering": name, "files": done, "failed": failed}
    (out / REPORT).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    if failed:
        told = f"{failed[0]['file']}: {failed[0]['problem']}"
        raise DataError(told if len(files) == 1 else f"{told}; {len(done)} of {len(files)} files are written")
    return document


def apart(source: Path, out: Path) -> None:
    """Raise `DataError` where what is written would take the place of what is read."""
    if source.resolve() == out.resolve():
        raise DataError(f"{out}: is what the scans are read from; give --out another folder")


def said(document: dict[str, Any], out: Path) -> str:
    """Return what was written, in a sentence."""
    if "tampering" in document:
        return f"{document['tampering']}: {len(document['files'])} files in {out}"
    return f"{document['attack']}: {document['success_rate']:.1%} of {document['n']} misread; in {out}"


def _made(attack: Attack, target: Target, images: Tensor, labels: Tensor) -> Attacked:
    try:
        return attack(target, images, labels)
    except ValueError as error:
        raise DataError(str(error)) from error


def _logits(model: bytes, profile: Profile, device: torch.device) -> Any:
    reference = Reference.from_onnx(model).to(device)
    activation = Activation(profile.already_applied)
    return lambda x: to_logits(reference(x), activation)


def _rows(ids: Sequence[str], target: Target, before: Tensor, found: Attacked) -> list[dict[str, Any]]:
    """Return, for each image, whether it is misread and how much it changed."""
    measured = {key: value.tolist() for key, value in asdict(change(target, before, found.images)).items()}
    measured["psnr"] = [None if value == float("inf") else value for value in measured["psnr"]]
    return [
        {
            "id": id_,
            "success": bool(found.success[k]),
            "margin": float(found.margin[k]),
            **{key: values[k] for key, values in measured.items()},
        }
        for k, id_ in enumerate(ids)
    ]


def _reported(attack: Attack, out: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    rate = sum(row["success"] for row in rows) / len(rows)
    document = {"schema": 1, "attack": repr(attack), "n": len(rows), "success_rate": rate, "images": rows}
    (out / REPORT).write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return document


def labelled(source: Path, profile: Profile) -> list[tuple[str, int]]:
    """Return file names and classes from labels.csv."""
    try:
        with (source / "labels.csv").open(newline="", encoding="utf-8") as file:
            rows = list(islice(csv.DictReader(file), FILES_MAX + 1))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{source / 'labels.csv'}: cannot be read") from error
    if not rows or not {"file", "label"} <= set(rows[0]):
        raise DataError(f"{source / 'labels.csv'}: needs the columns file and label")
    if len(rows) > FILES_MAX:
        raise DataError(f"{source}: more than {FILES_MAX} files")
    if strange := sorted({row["label"] for row in rows} - set(profile.classes)):
        raise DataError(f"{strange[0]!r} is no class of the profile")
    return [(row["file"], profile.classes.index(row["label"])) for row in rows]


def _value(text: str) -> object:
    """Return what a word means: a number, true, false, or itself."""
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
