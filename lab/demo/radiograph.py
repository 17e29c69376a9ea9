"""Writes an 8-bit grey image as a Computed Radiography object, so that it can go through every door like any scan."""

from __future__ import annotations

from io import BytesIO
from uuid import NAMESPACE_URL, uuid5

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian


def to_dicom(pixels: NDArray[np.uint8], *, name: str) -> bytes:
    """Return a Computed Radiography Image (PS3.3 A.2) of (rows, columns) pixels, Explicit VR Little Endian.

    All UIDs follow from `name` (PS3.5 B.2, root 2.25), so the same call gives the same bytes.
    """
    dataset = Dataset()
    dataset.SOPClassUID = ComputedRadiographyImageStorage
    dataset.SOPInstanceUID = _uid("instance", name)
    dataset.StudyInstanceUID = _uid("study", name)
    dataset.SeriesInstanceUID = _uid("series", name)
    for keyword in ("Study", "Series", "Acquisition", "Content"):
        setattr(dataset, f"{keyword}Date", "20250314")
        setattr(dataset, f"{keyword}Time", "092653")
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.Modality = "CR"
    dataset.Manufacturer = "Scanward"
    dataset.PatientName, dataset.PatientID = "Demo^Image", name[:64]
    dataset.PatientBirthDate, dataset.PatientSex = "", "O"
    dataset.AccessionNumber = dataset.ReferringPhysicianName = dataset.StudyID = ""
    dataset.SeriesNumber = dataset.InstanceNumber = "1"
    dataset.ImageType = ["DERIVED", "SECONDARY"]
    dataset.BodyPartExamined = dataset.ViewPosition = dataset.PatientOrientation = dataset.Laterality = ""
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.PixelRepresentation = 0
    dataset.PixelData = pixels.tobytes() + b"\0" * (pixels.size % 2)
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
