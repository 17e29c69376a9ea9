"""One SOP Instance as it arrived: the exact bytes, their digest, and the one strict parse of them."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from signing import DicomError, Elements, Limits, read
from signing.hashed import Hashed

MODALITIES = frozenset({"CR", "CT", "DX", "IO", "MG", "MR", "NM", "OP", "OPT", "PT", "RF", "RG", "US", "XA", "XC"})
"""Defined terms of Modality (PS3.3 C.7.3.1.1.1) that may become a metric label; anything else is `other`."""

ANONYMOUS = "anonymous"
"""Name of the source of a call whose sender is not known; no source of the configuration may have it."""

OTHER_MODALITY = "other"
BARE = "bare"
"""In the place of a modality, of a tensor that came without an object: it has no header that could name one."""

_MODALITY = 0x00080060
_SOP_INSTANCE_UID = 0x00080018
_STUDY_INSTANCE_UID = 0x0020000D


@dataclass(frozen=True, slots=True)
class Source:
    """Who sent a scan, as far as the door could tell; never patient data."""

    name: str
    """The configured name of the source, or `anonymous`."""
    enrolled: bool = False
    """An enrolled source signs all it sends: an unsigned scan from it has been stripped."""
    calling_ae: str | None = None
    tls_subject: str | None = None
    person: str | None = None
    """Who of a source that stands for several it is, as an identity provider names them; never a patient."""

    @property
    def proven(self) -> bool:
        """Whether it has shown who it is: a DICOM node without a certificate only says its title."""
        return self.calling_ae is None or self.tls_subject is not None

    @property
    def identity(self) -> str:
        """The one caller: limits, fairness and a second pair of eyes go by this, not by the name."""
        return self.name if self.person is None else f"{self.name}/{self.person}"


@dataclass(frozen=True, slots=True)
class Scan:
    """One SOP Instance; parsed once, here, and never re-opened by name.

    A scan that the strict reader refuses is still a scan: it has no `elements` and a `defect`, and the signature
    stage turns the defect into a finding, so that the attempt is decided and recorded like any other.
    """

    data: memoryview
    """The bytes received, unchanged: in memory, or mapped from a private spool file that has no name."""
    sha256: str
    """Lower-case hexadecimal digest of `data`."""
    route: str
    receiver: str
    source: Source
    elements: Elements | None
    defect: DicomError | None
    tensor: NDArray[np.float32] | None = None
    """As it came, of any shape: a model's input that came bare, without an object; `data` is its .npy file."""
    acknowledged: bool = False
    """The sender was told that it is stored before it was examined: whatever the verdict, it is kept."""

    @classmethod
    def receive(
        cls,
        data: bytes | memoryview,
        *,
        route: str,
        receiver: str,
        source: Source,
        sha256: str | None = None,
        hashed: Hashed | None = None,
        limits: Limits | None = None,
        acknowledged: bool = False,
    ) -> Scan:
        """Parse what a door received; `sha256` and `hashed` are given where the door hashed while the bytes came in."""
        view = memoryview(data).toreadonly()
        digest = sha256 if sha256 is not None else hashlib.sha256(view).hexdigest()
        elements, defect = None, None
        try:
            elements = read(view, limits=limits or Limits(), hashed=hashed)
        except DicomError as error:
            # Its traceback would hold what the parser had in hand, hundreds of megabytes for a deflate bomb.
            defect = error.with_traceback(None)
            defect.__cause__ = defect.__context__ = None
        return cls(view, digest, route, receiver, source, elements, defect, acknowledged=acknowledged)

    @classmethod
    def of_tensor(cls, tensor: NDArray[np.float32], *, route: str, receiver: str, source: Source) -> Scan:
        """A bare tensor as a scan: its bytes are those of the file that `numpy.save` makes of it, digest included."""
        file = io.BytesIO()
        np.lib.format.write_array(file, np.ascontiguousarray(tensor, "<f4"), version=(1, 0), allow_pickle=False)
        data = file.getbuffer().toreadonly()
        digest = hashlib.sha256(data).hexdigest()
        values = np.frombuffer(data, "<f4", offset=len(data) - tensor.nbytes).reshape(tensor.shape)
        return cls(data, digest, route, receiver, source, None, None, values)

    @property
    def modality(self) -> str:
        """Modality as a bounded label: one of `MODALITIES`, else `other`; of a bare tensor `bare`."""
        if self.tensor is not None:
            return BARE
        value = self._header(_MODALITY)
        return value if value in MODALITIES else OTHER_MODALITY

    @property
    def sop_instance_digest(self) -> str | None:
        """SHA-256 of SOP Instance UID, the form in which an instance may be named in logs; None if it has none."""
        return self._uid_digest(_SOP_INSTANCE_UID)

    @property
    def study_digest(self) -> str | None:
        """SHA-256 of Study Instance UID, by which the instances of a study are told to be one; None if it has none."""
        return self._uid_digest(_STUDY_INSTANCE_UID)

    def _uid_digest(self, tag: int) -> str | None:
        value = self._header(tag)
        return hashlib.sha256(value.encode()).hexdigest() if value else None

    def _header(self, tag: int) -> str | None:
        if self.elements is None:
            return None
        try:
            return self.elements.text(tag)
        except DicomError:
            return None
