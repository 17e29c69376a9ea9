"""Verifies and makes DICOM digital signatures (PS3.15 C, PS3.3 C.12.1.1.3)."""

from signing.elements import Elements, Limits, read
from signing.errors import DicomError, EnvelopeError, SignatureError, SignError, SigningError, TrustError
from signing.files import FileVerdict, verify_file, verify_paths
from signing.policy import AllowedSigner, Binding, TrustPolicy
from signing.reasons import Reason
from signing.report import Identity, Outcome, SignatureReport
from signing.sign import TimestampAuthority, sign
from signing.signers import FileSigner, Signer
from signing.trust import Trust
from signing.verified import VerifiedSignature
from signing.verify import Source, verify
from signing.view import VerifiedView

__all__ = [
    "AllowedSigner",
    "Binding",
    "DicomError",
    "Elements",
    "EnvelopeError",
    "FileSigner",
    "FileVerdict",
    "Identity",
    "Limits",
    "Outcome",
    "Reason",
    "SignError",
    "SignatureError",
    "SignatureReport",
    "Signer",
    "SigningError",
    "Source",
    "TimestampAuthority",
    "Trust",
    "TrustError",
    "TrustPolicy",
    "VerifiedSignature",
    "VerifiedView",
    "read",
    "sign",
    "verify",
    "verify_file",
    "verify_paths",
]
