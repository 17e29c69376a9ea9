"""Writes an 8-bit image as a DICOM object, so that it can go through every door like any scan."""

from __future__ import annotations

from io import BytesIO
from uuid import NAMESPACE_URL, uuid5

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, VLPhotographicImageStorage

from lab.victims import MODALITIES


def to_dicom(pixels: NDArray[np.uint8], *, name: str) -> bytes:
    """Return (1 or 3, rows, columns) pixels as an object, Explicit VR Little Endian.

    Grey becomes a Computed Radiography Image (PS3.3 A.2), colour a VL Photographic Image (PS3.3 A.32.4).

    All UIDs follow from `name` (PS3.5 B.2, root 2.25), so the same call gives the same bytes.
    """
    dataset = Dataset()
    samples = len(pixels)
    dataset.SOPClassUID = ComputedRadiographyImageStorage if samples == 1 else VLPhotographicImageStorage
    dataset.SOPInstanceUID = _uid("instance", name)
    dataset.StudyInstanceUID = _uid("study", name)
    dataset.SeriesInstanceUID = _uid("series", name)
    for keyword in ("Study", "Series", "Acquisition", "Content"):
        setattr(dataset, f"{keyword}Date", "20250314")
        setattr(dataset, f"{keyword}Time", "092653")
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.Modality = MODALITIES[samples]
    dataset.Manufacturer = "Scanward"
    dataset.PatientName, dataset.PatientID = "Demo^Image", name[:64]
    dataset.PatientBirthDate, dataset.PatientSex = "", "O"
    dataset.AccessionNumber = dataset.ReferringPhysicianName = dataset.StudyID = ""
    dataset.SeriesNumber = dataset.InstanceNumber = "1"
    dataset.ImageType = ["DERIVED", "SECONDARY"]
    dataset.BodyPartExamined = dataset.ViewPosition = dataset.PatientOrientation = dataset.Laterality = ""
    dataset.SamplesPerPixel = samples
    dataset.PhotometricInterpretation = "MONOCHROME2" if samples == 1 else "RGB"
    if samples > 1:
        dataset.PlanarConfiguration = 0
    dataset.Rows, dataset.Columns = pixels.shape[1:]
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.PixelRepresentation = 0
    dataset.PixelData = np.moveaxis(pixels, 0, -1).tobytes() + b"\0" * (pixels.size % 2)
    dataset["PixelData"].VR = "OB"

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = _uid("implementation", "demo")
    dataset.file_meta = meta
    out = BytesIO()
    dcmwrite(out, dataset, enforce_file_format=True, implicit_vr=False, little_endian=True)
    return out.getvalue()


def _uid(kind: str, name: str) -> str:
    return f"2.25.{uuid5(NAMESPACE_URL, f'scanward:demo/{kind}/{name}').int}"
