"""Labelled scans for fitting and measuring: an .npz file, or a folder of DICOM files with labels.csv."""

import csv
import hashlib
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detectors.mondrian import ATTRIBUTES
from gateway.errors import ConfigError
from gateway.pixels.decode import decode
from gateway.pixels.decompressor import DisposableDecoder
from gateway.pixels.imaging import Rendering, from_uint8, render
from gateway.pixels.unexaminable import UnexaminableError
from gateway.profile import Profile
from gateway.stages.category import HEADER_TAGS, normal
from signing import DicomError, VerifiedView, read

SPLITS = ("train", "val", "test")
_SHARES = (0.60, 0.85)
"""Without a `split` column, patients below the first share train, below the second calibrate, and the rest test."""
_PATIENT_ID = 0x00100020
FILE_BYTES_MAX = 2**31


class DataError(ConfigError):
    """The data set cannot be used; says which file or key is wrong."""

    def __init__(self, problem: str) -> None:
        super().__init__([problem])


class MovedTooFarError(DataError):
    """A threshold moved further from the first calibration than is allowed without a person's word."""


@dataclass(frozen=True, slots=True)
class Split:
    """Scans of one use."""

    images: Tensor
    """(N, C, H, W) float32, as the model takes them."""
    labels: Tensor
    """As the profile's task decides: (N,) int64; (N, classes) bool; (N, H, W) int64."""
    groups: tuple[str, ...]
    """The patient of each scan."""
    ids: tuple[str, ...]
    attributes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """What scans may be told apart by (`detectors.mondrian.ATTRIBUTES`), of each scan; what the data says of them."""

    def __len__(self) -> int:
        return len(self.images)

    def take(self, chosen: Tensor) -> "Split":
        """The scans at the given places (M,)."""
        places = chosen.tolist()
        groups, ids = tuple(self.groups[k] for k in places), tuple(self.ids[k] for k in places)
        attributes = {name: tuple(values[k] for k in places) for name, values in self.attributes.items()}
        return Split(self.images[chosen], self.labels[chosen], groups, ids, attributes)


@dataclass(frozen=True, slots=True)
class Dataset:
    """Three splits that share no patient."""

    train: Split
    val: Split
    test: Split
    classes: tuple[str, ...]
    sha256: str
    """Digest of the file, or of all files and the table."""

    def __post_init__(self) -> None:
        homes: dict[str, tuple[str, int]] = {}
        shared: dict[str, str] = {}  # by group; what is told does not name it: it may be a patient's
        for name in SPLITS:
            for row, group in enumerate(getattr(self, name).groups):
                home, first = homes.setdefault(group, (name, row))
                if home != name:
                    shared.setdefault(group, f"the patient of row {first} of {home} is also in row {row} of {name}")
        if shared:
            one = next(iter(shared.values()))
            raise DataError(f"no group may be in two splits, and {len(shared)} are: {one}, counted from 0")


def load(path: Path, profile: Profile) -> Dataset:
    """Read a data set and render it for a model.

    Raises:
        DataError: what is wrong, and where.
    """
    if path.is_dir():
        return _from_folder(path, profile)
    if not path.is_file():
        raise DataError(f"{path}: neither an .npz file nor a folder")
    return _from_npz(path, profile)


@dataclass(frozen=True, slots=True)
class StoredScans:
    """Scans as a file holds them, which is where an attack is applied."""

    images: Tensor
    """(N, 1 or 3, rows, columns) float32, whole numbers."""
    labels: Tensor
    """As the profile's task decides."""


def stored(path: Path, split: str, profile: Profile, *, labelled: bool = True) -> StoredScans:
    """The 8-bit stored values of one split of an .npz file.

    Raises:
        DataError: it is no such file, or the split is empty, or has no labels where they are needed.
    """
    if path.is_dir():
        raise DataError(f"{path}: attacks are written into the stored values of an .npz file, not of a folder")
    arrays, _ = opened_npz(path)
    images = _npz_images(arrays, split, profile)
    if images is None:
        raise DataError(f"{path}: there are no {split} scans")
    if labelled and f"{split}_labels" not in arrays:
        raise DataError(f"{path}: has no {split}_labels: without them no answer is right or wrong")
    labels = _npz_labels(arrays.get(f"{split}_labels"), len(images), split, profile)
    return StoredScans(torch.from_numpy(images).float(), labels)


def channels_first(images: NDArray[Any], name: str) -> NDArray[np.uint8]:
    """(N, 1 or 3, H, W) of (N, H, W) grey, or of images whose channels come last or first: whichever can be meant.

    Raises:
        DataError: no 8-bit images, or two axes that may both be that of the channels; under the array's `name`.
    """
    told = f"{name} must be uint8 (N, H, W) or (N, H, W, 3), not {images.dtype} {images.shape}"
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or not images.size:
        raise DataError(told)
    if images.ndim == 3:
        return images[:, np.newaxis]
    places = [axis for axis in (1, 3) if images.shape[axis] in (1, 3)]
    if len(places) != 1:
        raise DataError(f"{told}: which axis is that of the channels cannot be told")
    return np.ascontiguousarray(np.moveaxis(images, places[0], 1))


def laid_out(images: Tensor, like: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(N, 1 or 3, rows, columns) whole numbers as the array of an .npz file that they came from has them."""
    values = images.cpu().numpy().astype(np.uint8)
    return (values if values.shape[1] != like.shape[-1] else np.moveaxis(values, 1, -1)).reshape(like.shape)


def halves(split: Split, share: float, seed: int) -> tuple[Split, Split]:
    """Split by patient: the first part holds about `share` of the scans, the second the rest."""
    order = sorted(set(split.groups))
    shuffled = [order[k] for k in torch.randperm(len(order), generator=torch.Generator().manual_seed(seed)).tolist()]
    counts = dict.fromkeys(order, 0)
    for group in split.groups:
        counts[group] += 1
    first: set[str] = set()
    taken = 0
    for group in shuffled:
        if taken >= share * len(split):
            break
        first.add(group)
        taken += counts[group]
    inside = torch.tensor([group in first for group in split.groups], dtype=torch.bool)
    return split.take(inside.nonzero()[:, 0]), split.take((~inside).nonzero()[:, 0])


def _from_npz(path: Path, profile: Profile) -> Dataset:
    """The layout of the architecture, section 5.1: uint8 images by split, labels, groups, ids."""
    arrays, content = opened_npz(path)
    classes = tuple(str(name) for name in arrays.get("class_names", np.array(profile.classes)))
    splits = {name: _npz_split(arrays, name, profile) for name in SPLITS}
    return Dataset(**splits, classes=classes, sha256=hashlib.sha256(content).hexdigest())


def opened_npz(path: Path) -> tuple[dict[str, NDArray[Any]], bytes]:
    """The arrays of an .npz file, and its bytes; raises `DataError`."""
    try:
        content = path.read_bytes()
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}, content
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: cannot be read as .npz") from error


def _npz_split(arrays: Mapping[str, NDArray[Any]], name: str, profile: Profile) -> Split:
    """One split; one that the file lacks is empty."""
    images = _npz_images(arrays, name, profile)
    if images is None:
        size = (0, profile.input.channels, *profile.input.size)
        return Split(torch.zeros(size), torch.zeros(0, dtype=torch.int64), (), ())
    labels = _npz_labels(arrays.get(f"{name}_labels"), len(images), name, profile)
    groups = arrays.get(f"{name}_groups")
    if groups is None:
        raise DataError(f"{name}_groups is missing: without patients, one could be fitted and tested on")
    ids = arrays.get(f"{name}_ids", np.arange(len(images)))
    if not len(images) == len(groups) == len(ids):
        raise DataError(f"{name}: images, groups and ids differ in number")
    rendered = torch.cat([from_uint8(part, profile) for part in torch.split(torch.from_numpy(images), 256)])
    patients, names = (tuple(str(value) for value in column) for column in (groups, ids))
    told = {each: arrays[f"{name}_{each}"] for each in ATTRIBUTES if f"{name}_{each}" in arrays}
    if any(len(values) != len(images) for values in told.values()):
        raise DataError(f"{name}: images and {', '.join(told)} differ in number")
    attributes = {each: tuple(_named(each, str(value)) for value in values) for each, values in told.items()}
    return Split(rendered, labels, patients, names, attributes)


def _npz_images(arrays: Mapping[str, NDArray[Any]], name: str, profile: Profile) -> NDArray[np.uint8] | None:
    """(N, 1 or 3, H, W) stored values of one split, N above 0; None where the file has none."""
    images = arrays.get(f"{name}_images")
    if images is None or not len(images):
        return None
    found = channels_first(images, f"{name}_images")
    if found.shape[1] > profile.input.channels:
        raise DataError(f"{name}_images are in colour, and the profile's model takes one channel of grey")
    if len(blank := np.flatnonzero((found.min((2, 3)) == found.max((2, 3))).all(1))):
        raise DataError(f"{name}_images: {len(blank)} have one value everywhere, the first is number {blank[0]}")
    return found


def _npz_labels(labels: NDArray[Any] | None, count: int, name: str, profile: Profile) -> Tensor:
    """Labels in the form of the profile's task; zeros where the file has none: nothing but measuring reads them."""
    shapes: dict[str, tuple[int, ...]] = {
        "multiclass": (),
        "multilabel": (len(profile.classes),),
        "segmentation": profile.input.size,
    }
    wanted = (count, *shapes[profile.task])
    found = np.zeros(wanted, np.int64) if labels is None else labels
    if found.shape != wanted:
        raise DataError(f"{name}_labels are {found.shape}; a {profile.task} model needs {wanted}")
    if not np.issubdtype(found.dtype, np.integer) and found.dtype != np.bool_:
        raise DataError(f"{name}_labels must be whole numbers, not {found.dtype}")
    if found.size and not (found.min() >= 0 and found.max() < max(len(profile.classes), 2)):
        raise DataError(f"{name}_labels lie outside the classes of the profile")
    whole = torch.from_numpy(found.astype(np.int64))
    return whole.bool() if profile.task == "multilabel" else whole


@dataclass(frozen=True, slots=True)
class _Row:
    """One scan of a folder."""

    image: Tensor
    label: int
    group: str
    name: str
    attributes: Mapping[str, str]


def _from_folder(folder: Path, profile: Profile) -> Dataset:
    """DICOM files named by labels.csv: columns file, label, and optionally split, group and source.

    `label` is the name of a class of the profile; `group` defaults to Patient ID, `split` to a split by group. `source`
    is the name under which the gateway will know the sender. Modality and manufacturer are read from the headers.
    """
    try:
        with (folder / "labels.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{folder / 'labels.csv'}: cannot be read") from error
    if profile.task != "multiclass":
        raise DataError(f"{folder}: a table of labels is for multiclass models; {profile.task} needs an .npz file")
    if not rows or not {"file", "label"} <= set(rows[0]):
        raise DataError(f"{folder / 'labels.csv'}: needs the columns file and label")
    told = hashlib.sha256()
    parts: dict[str, list[_Row]] = {name: [] for name in SPLITS}
    with DisposableDecoder() as decoder:
        for row in rows:
            content = file_in(folder, row["file"])
            told.update(repr(sorted(row.items())).encode() + hashlib.sha256(content).digest())
            if row["label"] not in profile.classes:
                raise DataError(f"{row['file']}: {row['label']!r} is no class of the profile")
            image, header = _rendered(content, row["file"], profile, decoder)
            group = row.get("group") or header["patient"] or row["file"]
            split = row.get("split") or _split_of(group)
            if split not in parts:
                raise DataError(f"{row['file']}: split {split!r} is none of {', '.join(SPLITS)}")
            told_apart = {each: _named(each, (header | row).get(each) or "") for each in ATTRIBUTES}
            parts[split].append(_Row(image, profile.classes.index(row["label"]), group, row["file"], told_apart))
    splits = {name: _gathered(part, profile) for name, part in parts.items()}
    return Dataset(**splits, classes=profile.classes, sha256=told.hexdigest())


def file_in(folder: Path, name: str) -> bytes:
    """Return a file of the folder, not of anywhere else; raises `DataError`."""
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise DataError(f"{name}: lies outside the folder")
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            raise DataError(f"{name}: is larger than {FILE_BYTES_MAX} bytes")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{name}: cannot be read") from error


def _named(attribute: str, value: str) -> str:
    """A value as the gateway names it when it looks for the category of a scan."""
    return value if attribute == "source" else normal(value)


def _rendered(
    content: bytes, name: str, profile: Profile, decoder: DisposableDecoder
) -> tuple[Tensor, dict[str, str | None]]:
    """The middle frame of an object as the model takes it; and whose it is, of what modality and manufacturer."""
    try:
        view = VerifiedView.of_unsigned(read(content))
        frames = decode(view, decoder)
        middle = frames[len(frames) // 2]
        if middle.min() == middle.max():
            raise DataError(f"{name}: has one value everywhere")
        frame = torch.from_numpy(middle.astype(np.float32))
        image = render(frame[None], Rendering.of(view, profile), profile)[0]
        return image, {each: view.text(tag) for each, tag in {"patient": _PATIENT_ID, **HEADER_TAGS}.items()}
    except (DicomError, UnexaminableError) as error:
        raise DataError(f"{name}: {error}") from error


def _split_of(group: str) -> str:
    """The split of a patient, by digest: the same wherever and whenever it is computed."""
    place = int.from_bytes(hashlib.sha256(group.encode()).digest()[:8]) / 2**64
    return SPLITS[sum(place >= share for share in _SHARES)]


def _gathered(part: list[_Row], profile: Profile) -> Split:
    size = (0, profile.input.channels, *profile.input.size)
    images = torch.stack([row.image for row in part]) if part else torch.zeros(size)
    labels = torch.tensor([row.label for row in part], dtype=torch.int64)
    attributes = {each: tuple(row.attributes[each] for row in part) for each in ATTRIBUTES}
    return Split(images, labels, tuple(row.group for row in part), tuple(row.name for row in part), attributes)
