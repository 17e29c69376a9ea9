"""Procedural chest CT slices with and without lung nodules: the project's own test object, drawn from a seed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from importlib.metadata import version
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path
from typing import Final
from uuid import NAMESPACE_URL, uuid5

import numpy as np
import torch
from numpy.typing import NDArray
from pydicom import Dataset, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from torch import Tensor

from gateway.pixels.imaging import Rendering, render
from gateway.profile import Profile
from lab.drawing.canvas import Canvas
from lab.drawing.chest import Build, draw_chest
from lab.drawing.lungs import Nodule, draw_lungs, draw_nodule, place_nodule
from lab.drawing.scanner import RESCALE_INTERCEPT, STORED_MAX, Protocol, acquire

CLASSES: Final = ("no nodule", "nodule")

SPLITS: Final = {
    "train": range(1_000_000, 2_000_000),
    "val": range(2_000_000, 3_000_000),
    "fit": range(3_000_000, 4_000_000),
    "a": range(4_000_000, 5_000_000),
    "b": range(5_000_000, 6_000_000),
    "test": range(6_000_000, 7_000_000),
    "demo": range(7_000_000, 8_000_000),
}
"""Seeds by use, so that nothing is measured on a slice that something was fitted on: `train` and `val` for the
classifier, `fit`, `a` and `b` for the detectors, `test` for every figure that is reported, `demo` for showing."""

ASSETS: Final = Path(__file__).parent / "assets" / "phantom"
RENDERING: Final = Rendering(stored=(0, STORED_MAX), slope=1.0, intercept=float(RESCALE_INTERCEPT), modality="CT")
"""What the header of every phantom says about its stored values."""


@dataclass(frozen=True, slots=True)
class Phantom:
    """One axial slice, as a scanner would have stored it."""

    seed: int
    pixels: NDArray[np.uint16]
    """(rows, columns) stored values, 12 bits; Hounsfield units are these plus `RESCALE_INTERCEPT`."""
    label: int
    """Index into `CLASSES`."""
    nodules: tuple[Nodule, ...]
    """In patient millimetres; empty where the label is 0."""
    nodule_pixels: tuple[tuple[float, float, float], ...]
    """Row, column and radius of each nodule, in pixels."""
    spacing_mm: float
    """Between pixel centres, rows and columns alike."""
    protocol: Protocol
    level: float
    """Where in the chest the slice lies: 0 at the aortic arch, 1 at the diaphragm."""


def draw(seed: int, *, size: int = 512, conspicuity: float = 1.0) -> Phantom:
    """Draw the slice that belongs to a seed; odd seeds have one or two nodules, even seeds none.

    Anatomy, pose, pathology, dose, kernel and noise vary continuously and independently of the label. The same seed
    gives the same bytes on one machine and library build; elsewhere single values may differ by one in rounding.

    Args:
        seed: not negative; take it from the range in `SPLITS` that says what the slice is for.
        size: rows and columns; even, since smooth quantities are computed on every second pixel.
        conspicuity: how much denser than usual the nodules are; 1 everywhere but where somebody has to learn from them.

    Raises:
        ValueError: a negative seed, or a size that is odd or below 64.
    """
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    if size < 64 or size % 2:
        raise ValueError(f"size must be even and at least 64, got {size}")
    rng = np.random.Generator(np.random.PCG64(seed))
    build = Build.draw(rng)  # (1) a patient
    protocol = Protocol.draw(rng, 2 * (build.cavity_a + build.fat_mm + build.muscle_mm) + 14)
    canvas = Canvas.blank(rng, size, protocol.field_mm / size, WARP_MM)
    regions = draw_chest(canvas, rng, build)  # (2) all but the lungs
    lung = draw_lungs(canvas, rng, build, regions, protocol.thickness_mm)  # (3) the lungs
    label = seed % 2
    count = label * (1 + int(rng.random() < 0.1))
    nodules = tuple(place_nodule(canvas, rng, lung, conspicuity) for _ in range(count))
    for nodule in nodules:  # (4) what is looked for
        draw_nodule(canvas, rng, nodule, lung)
    pixels = acquire(canvas, rng, protocol, build.cavity_b)  # (5) the scanner
    spacing = canvas.spacing_mm
    marks = tuple((*canvas.pixel_of(nodule.x, nodule.y), nodule.radius_mm / spacing) for nodule in nodules)

    assert pixels.shape == (size, size)
    return Phantom(seed, pixels, label, nodules, marks, spacing, protocol, build.level)


WARP_MM = 2.5
"""Typical displacement of the smooth warp that makes each patient a little uneven."""


def seeds(split: str, count: int, *, skip: int = 0) -> range:
    """Return `count` seeds of a split, the first `skip` left out; half of them have a nodule.

    Raises:
        KeyError: no such split.
        ValueError: more than the split has.
    """
    whole = SPLITS[split]
    if not 0 <= skip <= skip + count <= len(whole):
        raise ValueError(f"split {split} has {len(whole)} seeds, not {skip + count}")
    return whole[skip : skip + count]


def labels(of: Iterable[int]) -> NDArray[np.int64]:
    """Return the label of each seed, (N,), without drawing it."""
    return np.array([seed % 2 for seed in of], dtype=np.int64)


def profile() -> Profile:
    """Return the profile that the bundled classifier was trained through."""
    return Profile.load(ASSETS / "profile.toml")


def stored(of: Sequence[int], *, workers: int = 1, conspicuity: float = 1.0) -> Iterator[NDArray[np.uint16]]:
    """Draw the slices of many seeds in order, each (512, 512), in `workers` processes; 0 takes all cores."""
    workers = workers or os.cpu_count() or 1
    pixels = partial(_pixels, conspicuity=conspicuity)
    if workers == 1:
        yield from map(pixels, of)
        return
    with _single_threaded(), ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for first in range(0, len(of), AHEAD):  # bounded, so that a slow reader does not fill the memory
            yield from pool.map(pixels, of[first : first + AHEAD], chunksize=8)


AHEAD = 512
"""Slices drawn ahead of the reader at most: 256 MiB."""


def rendered(of: Sequence[int], through: Profile, *, workers: int = 1, conspicuity: float = 1.0) -> Tensor:
    """Return (N, channels, height, width) float32: the slices of these seeds as the model sees them.

    The stored values go through `pixels.imaging.render` as in the gateway; only the results are kept in memory.
    """
    out = torch.empty((len(of), through.input.channels, *through.input.size))
    for index, pixels in enumerate(stored(of, workers=workers, conspicuity=conspicuity)):
        frame = torch.from_numpy(pixels.astype(np.float32))
        out[index] = render(frame[None], RENDERING, through)[0]
    return out


def to_dicom(
    phantom: Phantom,
    *,
    patient_id: str | None = None,
    patient_name: str = "Phantom^Chest",
    study: str | None = None,
    instance_number: int = 1,
    acquired: datetime = datetime(2025, 3, 14, 9, 26, 53),
) -> bytes:
    """Return the slice as a DICOM file: CT Image Storage, Explicit VR Little Endian, every type 1 and 2 attribute.

    PS3.3 A.3.3 (CT Image IOD). All UIDs follow from the seed and `study` (PS3.5 B.2, root 2.25), so the same call
    gives the same bytes.

    Args:
        phantom: the slice.
        patient_id: what (0010,0020) holds; by default made from the seed.
        patient_name: what (0010,0010) holds.
        study: slices given the same text share study, series and frame of reference; by default each is alone.
        instance_number: place in the series; the slice lies this many thicknesses up the body.
        acquired: when the slice claims to have been taken.
    """
    group = study if study is not None else str(phantom.seed)
    instance = _uid("instance", f"{group}/{instance_number}/{phantom.seed}")
    dataset = Dataset()
    _add_identity(dataset, group, patient_id or f"PHANTOM-{phantom.seed}", patient_name, acquired)
    _add_acquisition(dataset, phantom, group, instance_number)
    dataset.SOPInstanceUID = instance
    dataset.PixelData = phantom.pixels.astype("<u2").tobytes()
    dataset["PixelData"].VR = "OW"

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = instance
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = _uid("implementation", "phantoms")
    meta.ImplementationVersionName = "SCANWARD_LAB"
    dataset.file_meta = meta
    out = BytesIO()
    dcmwrite(out, dataset, enforce_file_format=True, implicit_vr=False, little_endian=True)
    return out.getvalue()


def _add_identity(dataset: Dataset, group: str, patient_id: str, patient_name: str, acquired: datetime) -> None:
    """Fill the Patient, General Study, General Series, Frame of Reference and Equipment modules."""
    date, time = acquired.strftime("%Y%m%d"), acquired.strftime("%H%M%S")
    dataset.SOPClassUID = CTImageStorage
    for keyword in ("InstanceCreation", "Study", "Series", "Acquisition", "Content"):
        setattr(dataset, f"{keyword}Date", date)
        setattr(dataset, f"{keyword}Time", time)
    dataset.AccessionNumber = ""
    dataset.Modality = "CT"
    dataset.Manufacturer = "Scanward"
    dataset.ManufacturerModelName = "Procedural chest"
    dataset.DeviceSerialNumber = "0001"
    dataset.SoftwareVersions = version("scanward")
    dataset.ReferringPhysicianName = ""
    dataset.StudyDescription = "CT chest, drawn"
    dataset.SeriesDescription = "Lung, axial"
    dataset.PatientName = patient_name
    dataset.PatientID = patient_id
    dataset.PatientBirthDate = ""
    dataset.PatientSex = "O"
    dataset.BodyPartExamined = "CHEST"
    dataset.PatientPosition = "HFS"
    dataset.StudyInstanceUID = _uid("study", group)
    dataset.SeriesInstanceUID = _uid("series", group)
    dataset.StudyID = "1"
    dataset.SeriesNumber = 1
    dataset.FrameOfReferenceUID = _uid("frame", group)
    dataset.PositionReferenceIndicator = ""


def _add_acquisition(dataset: Dataset, phantom: Phantom, group: str, instance_number: int) -> None:
    """Fill the General Image, Image Plane, Image Pixel, CT Image, VOI LUT and SOP Common modules."""
    protocol, (rows, columns) = phantom.protocol, phantom.pixels.shape
    spacing = f"{phantom.spacing_mm:.6f}"
    corner = -(rows - 1) / 2 * phantom.spacing_mm
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.AcquisitionNumber = 1
    dataset.InstanceNumber = instance_number
    dataset.QualityControlImage = "YES"  # a phantom, never a patient
    dataset.BurnedInAnnotation = "NO"
    dataset.SliceThickness = f"{protocol.thickness_mm:g}"
    dataset.KVP = "120"
    dataset.ReconstructionDiameter = f"{protocol.field_mm:.2f}"
    dataset.Exposure = protocol.mas
    dataset.ConvolutionKernel = f"LP{protocol.kernel * 10:.1f}"
    height = instance_number * protocol.thickness_mm
    dataset.ImagePositionPatient = [f"{corner:.4f}", f"{corner:.4f}", f"{height:.4f}"]
    dataset.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
    dataset.SliceLocation = f"{height:.4f}"
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = rows, columns
    dataset.PixelSpacing = [spacing, spacing]
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelRepresentation = 0
    dataset.WindowCenter, dataset.WindowWidth = "-600", "1500"
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = str(RESCALE_INTERCEPT), "1", "HU"


def _uid(kind: str, name: str) -> str:
    """Return a UID under root 2.25 that depends on nothing but its name (PS3.5 B.2)."""
    return f"2.25.{uuid5(NAMESPACE_URL, f'scanward:phantom/{kind}/{name}').int}"


def _pixels(seed: int, conspicuity: float) -> NDArray[np.uint16]:
    return draw(seed, conspicuity=conspicuity).pixels


@contextmanager
def _single_threaded() -> Iterator[None]:
    """Let the processes started meanwhile keep to one core each: linear algebra reads this when it is loaded."""
    before = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    os.environ.update(dict.fromkeys(before, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
