"""Signature profiles: which attributes a signature must cover (PS3.15 C.1 to C.4, and our stricter `inference`)."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cache

from signing.canonical import is_forbidden, is_signable
from signing.dataset import DataSet
from signing.dictionary import tag_of

_UIDS = "SOPClassUID SOPInstanceUID StudyInstanceUID SeriesInstanceUID"
_PIXELS = "FloatPixelData DoubleFloatPixelData PixelData ExtendedOffsetTable ExtendedOffsetTableLengths"
_IMAGE = "SamplesPerPixel PhotometricInterpretation Rows Columns BitsAllocated"  # PS3.3 C.7.6.3 and C.7.6.24, type 1
_IMAGE_PIXEL = f"""{_IMAGE} {_PIXELS}
    BitsStored HighBit PixelRepresentation PlanarConfiguration NumberOfFrames FrameIncrementPointer PixelAspectRatio
    SmallestImagePixelValue LargestImagePixelValue PixelPaddingValue PixelPaddingRangeLimit
    RescaleIntercept RescaleSlope RescaleType ICCProfile
    RedPaletteColorLookupTableDescriptor RedPaletteColorLookupTableData SegmentedRedPaletteColorLookupTableData
    GreenPaletteColorLookupTableDescriptor GreenPaletteColorLookupTableData SegmentedGreenPaletteColorLookupTableData
    BluePaletteColorLookupTableDescriptor BluePaletteColorLookupTableData SegmentedBluePaletteColorLookupTableData
"""
_GENERAL_IMAGE = """
    ImageType AcquisitionDate AcquisitionTime AcquisitionNumber ContentDate ContentTime InstanceNumber
    FrameOfReferenceUID ImageComments ScanOptions KVP FocalSpots
"""
_FRAMES = "SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence"  # PS3.3 C.7.6.16
_WAVEFORM = "WaveformSequence WaveformAnnotationSequence"  # PS3.3 C.10.9, C.10.10
_EQUIPMENT = """
    Manufacturer InstitutionName InstitutionAddress StationName InstitutionalDepartmentName ManufacturerModelName
    DeviceSerialNumber DeviceUID GantryID SoftwareVersions SpatialResolution DateOfLastCalibration
    TimeOfLastCalibration PixelPaddingValue
"""  # PS3.3 C.7.5.1
_REPORT = """
    Manufacturer ObservationDateTime ValueType ConceptNameCodeSequence ContinuityOfContent ContentSequence
    PredecessorDocumentsSequence CurrentRequestedProcedureEvidenceSequence
"""  # PS3.3 C.17.2, C.17.3
_DOCUMENT = f"""{_REPORT}
    PerformedProcedureCodeSequence PertinentOtherEvidenceSequence CompletionFlag CompletionFlagDescription
    VerificationFlag VerifyingObserverSequence
"""
_IDENTITY = """
    SpecificCharacterSet TimezoneOffsetFromUTC StudyDate StudyTime SeriesDate SeriesTime AcquisitionDateTime
    AccessionNumber Modality PatientName PatientID IssuerOfPatientID IssuerOfPatientIDQualifiersSequence
    PatientBirthDate PatientSex BodyPartExamined PatientPosition ViewPosition ViewCodeSequence Laterality
    ImageLaterality
"""  # who, when and what
_PLANE = """
    SliceThickness SpacingBetweenSlices ImagerPixelSpacing PixelSpacing PatientOrientation ImagePositionPatient
    ImageOrientationPatient SliceLocation
"""  # PS3.3 C.7.6.2
_ADMINISTRATIVE = """
    LengthToEnd RetrieveAETitle RetrieveURL InstanceAvailability StorageMediaFileSetID StorageMediaFileSetUID
    SOPInstanceStatus SOPAuthorizationDateTime SOPAuthorizationComment
    MACParametersSequence DigitalSignaturesSequence DataSetTrailingPadding
"""  # what archives add or rewrite, and no model reads


@dataclass(frozen=True, slots=True)
class Profile:
    """Which attributes a signature must cover to satisfy it."""

    name: str
    mandatory: frozenset[int]
    """Present, and covered."""
    if_present: frozenset[int]
    """Covered where present."""
    graphics: bool = False
    """So are overlays, curves and graphic annotations (groups 60xx, 50xx and 0070)."""
    everything: bool = False
    """Beyond the required, every attribute but administrative ones is meant to be covered, images' pixels always."""

    def uncovered(self, data_set: DataSet, covered: Collection[int]) -> int | None:
        """The first attribute that should be covered and is not; None where the profile is satisfied."""
        required = self._required_in(data_set)
        return min((tag for tag in required if tag not in covered), default=None)

    def stray(self, data_set: DataSet, covered: Collection[int]) -> int | None:
        """The first attribute that is present though nobody vouches for it; None where there is none."""
        if not self.everything:
            return None
        administrative = _tags(_ADMINISTRATIVE)
        for element in data_set:
            tag = element.tag
            if tag not in covered and tag not in administrative and tag & 0xFFFF:
                return tag
        return None

    def select(self, data_set: DataSet, extra: Iterable[int] = ()) -> tuple[int, ...]:
        """What a signature of this profile covers: tags in ascending order, all present and signable."""
        chosen = {*self._required_in(data_set), *extra}
        return tuple(
            element.tag
            for element in data_set
            if (self.everything or element.tag in chosen) and not is_forbidden(element.tag) and is_signable(element)
        )

    def _required_in(self, data_set: DataSet) -> set[int]:
        present = {element.tag for element in data_set}
        required = self.mandatory | (self.if_present & present)
        if self.graphics:
            required |= {tag for tag in present if _is_graphic(tag >> 16) and tag & 0xFFFF}
        if self.everything and not present.isdisjoint(_tags(_IMAGE + " " + _PIXELS)):
            pixels = _tags("FloatPixelData DoubleFloatPixelData PixelData")
            required |= _tags(_IMAGE) | (pixels & present or _tags("PixelData"))
        return set(required)


def is_administrative(tag: int) -> bool:
    """One of the attributes that archives add or rewrite, and no model reads."""
    return tag in _tags(_ADMINISTRATIVE)


def _is_graphic(group: int) -> bool:
    return group & 0xFF01 in {0x5000, 0x6000} or group == 0x0070


@cache
def _tags(keywords: str) -> frozenset[int]:
    tags = [tag_of(keyword) for keyword in keywords.split()]
    assert None not in tags, keywords
    return frozenset(tag for tag in tags if tag is not None)


@cache
def profiles() -> dict[str, Profile]:
    """By name, the most demanding first."""
    image = f"{_UIDS} {_GENERAL_IMAGE} {_IMAGE_PIXEL} {_FRAMES}"
    sop = _tags("SOPClassUID SOPInstanceUID")
    return {
        profile.name: profile
        for profile in (
            Profile(
                "inference",
                _tags(f"{_UIDS} Modality PatientID"),
                _tags(f"{_IDENTITY} {image} {_PLANE}"),
                everything=True,
            ),
            Profile(  # PS3.15 C.2
                "creator",
                sop,
                _tags(f"{image} InstanceCreationDate InstanceCreationTime {_EQUIPMENT} {_WAVEFORM} {_DOCUMENT}"),
                graphics=True,
            ),
            Profile(  # PS3.15 C.3
                "authorization",
                sop,
                _tags(f"{image} {_WAVEFORM} {_DOCUMENT}") - _tags("PixelPaddingValue"),
                graphics=True,
            ),
            Profile(  # PS3.15 C.4, a verified document
                "sr-verified",
                sop | _tags("VerificationFlag VerifyingObserverSequence ContentSequence"),
                _tags(f"{_UIDS} {_REPORT}"),
            ),
            Profile("sr", sop | _tags("ContentSequence"), _tags(f"{_UIDS} {_REPORT}")),  # PS3.15 C.4
            Profile("base", _tags("SOPInstanceUID"), frozenset()),  # PS3.15 C.1
            Profile("none", frozenset(), frozenset()),
        )
    }


def strongest(data_set: DataSet, covered: Collection[int]) -> str:
    """The name of the most demanding profile that a signature satisfies."""
    for profile in profiles().values():
        if profile.uncovered(data_set, covered) is None and profile.stray(data_set, covered) is None:
            return profile.name
    return "none"
