"""Makes the scans that the demo sends, the hostile ones by a real attack on the real model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import onnxruntime
import torch
from pydicom.data import get_testdata_file
from torch import Tensor

from detectors.artifact import Artefact
from detectors.models.reference import Reference
from gateway.pixels.imaging import render
from lab.attacks.attack import Target
from lab.attacks.pgd import PGD
from lab.demo.material import Material, Specimen
from lab.demo.rows import Preparation
from lab.seeds import seeds_of
from signing import sign
from signing.testing import Hospital, flip_pixel_bit, strip_signatures

EPS = 2.0
"""Budget of the demo's attack, 8-bit grey levels of the window: no reader sees it."""
ATTACK = PGD(eps=EPS, steps=20, restarts=2)
ALPHA, GREY = 0.01, 0.05
"""Ends of the grey zone, as the legacy route is configured."""
SEARCH_MAX = 400
"""Specimens looked at for one that serves; a grey one turns up about once in thirty."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A scan as it is sent."""

    data: bytes
    diagnosis_undefended: str | None = None
    """What the model says of it with nothing in front; None where no model could read it."""
    fooled: bool = False
    """Whether that is wrong because of an attack."""
    note: str = ""
    """What was done to it, for people."""
    before: Tensor | None = None
    """(1, C, rows, columns) stored values before the attack, or of the grey scan."""
    after: Tensor | None = None
    """The same after the attack; None where there was none."""

    @property
    def sha256(self) -> str:
        """Digest of the bytes that are sent."""
        return hashlib.sha256(self.data).hexdigest()


def prepare(hospital: Hospital, material: Material) -> Mapping[Preparation, Prepared]:
    """Make every scan of the table.

    Raises:
        LookupError: no specimen served, for example because the attack fools this model nowhere.
    """
    return _Workshop(hospital, material).all()


class _Workshop:
    """The model, its detectors and the hospital's keys at hand while scans are made."""

    def __init__(self, hospital: Hospital, material: Material) -> None:
        self.hospital, self.material = hospital, material
        self.profile = material.profile
        model = material.model_file.read_bytes()
        self.target = Target.of_dicom(Reference.from_onnx(model), material.rendering, self.profile)
        self.session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        manifest = (material.detectors / "manifest.json").read_bytes()
        self.artefact = Artefact.load(material.detectors, manifest, model, self.profile.sha256, torch.device("cpu"))
        self.specimens = self._read_right()

    def all(self) -> dict[Preparation, Prepared]:
        """One scan for each preparation."""
        clean = self._ordinary()
        plain, signed = self._undefended(clean.stored), self._signed(clean.as_dicom(clean.stored), "ct")
        strange = self._signed(clean.as_dicom(clean.stored), "stranger")
        return {
            Preparation.SIGNED: Prepared(signed, plain),
            Preparation.PIXEL_CHANGED: Prepared(flip_pixel_bit(signed), plain),
            Preparation.STRIPPED: Prepared(strip_signatures(signed), plain),
            Preparation.STRANGER: Prepared(strange, plain),
            Preparation.UNSIGNED: self._unsigned(self._ordinary()),
            Preparation.ATTACKED: self._attacked(signer=None),
            Preparation.ATTACKED_THEN_SIGNED: self._attacked(signer="ct"),
            Preparation.GREY: self._grey(),
            Preparation.CUT_SHORT: Prepared(signed[: len(signed) // 2]),
            Preparation.ARCHIVE_CT: Prepared(self._signed(_bundled("CT_small.dcm"), "ct")),
            Preparation.ARCHIVE_MR: Prepared(self._signed(_bundled("MR_small.dcm"), "mr")),
        }

    def _read_right(self) -> Iterator[Specimen]:
        """Specimens that the undefended model reads correctly, each handed out once."""
        for index in range(min(self.material.count, SEARCH_MAX)):
            specimen = self.material.specimen(index)
            if self._undefended(specimen.stored) == self.profile.classes[specimen.label]:
                yield specimen

    def _ordinary(self) -> Specimen:
        """The next specimen that no detector finds odd: one clean scan in twenty is, and has a row of its own."""
        for specimen in self.specimens:
            image = render(specimen.stored, self.material.rendering, self.profile)
            if float(self.artefact.ensemble.examine(image, seeds_of(image)).p_value[0]) > GREY:
                return specimen
        raise LookupError("every clean specimen looks odd to the detectors")

    def _undefended(self, stored: Tensor) -> str:
        """What the served model, asked directly, says of stored values."""
        image = render(stored, self.material.rendering, self.profile)
        (output, *_) = self.session.run(None, {self.profile.input.name: image.numpy()})
        return self.profile.classes[int(output[0].argmax())]

    def _unsigned(self, specimen: Specimen) -> Prepared:
        return Prepared(specimen.as_dicom(specimen.stored), self._undefended(specimen.stored))

    def _attacked(self, signer: str | None) -> Prepared:
        """The next specimen on which the attack works, signed afterwards where a signer is given."""
        for specimen in self.specimens:
            attacked = ATTACK(self.target, specimen.stored, torch.tensor([specimen.label]))
            diagnosis, truth = self._undefended(attacked.images), self.profile.classes[specimen.label]
            if diagnosis == truth:
                continue
            plain = specimen.as_dicom(attacked.images)
            when = "then signed by the scanner itself: only detection is left" if signer else "not signed"
            return Prepared(
                data=plain if signer is None else self._signed(plain, signer),
                diagnosis_undefended=diagnosis,
                fooled=True,
                note=(
                    f"{specimen.name}, truly '{truth}'; projected gradient descent moved no pixel by more than "
                    f"{EPS:g} of 256 grey levels; {when}"
                ),
                before=specimen.stored,
                after=attacked.images,
            )
        raise LookupError("the attack fools this model on no specimen")

    def _grey(self) -> Prepared:
        """The next clean specimen that looks odd enough to be denoised, and is read alike with and without noise."""
        for specimen in self.specimens:
            image = render(specimen.stored, self.material.rendering, self.profile)
            seen = self.artefact.ensemble.examine(image, seeds_of(image))
            if ALPHA < float(seen.p_value[0]) <= GREY and self._denoised_alike(image, int(seen.predictions[0])):
                note = f"{specimen.name}, clean, but stranger than {1 - float(seen.p_value[0]):.1%} of clean scans"
                data = specimen.as_dicom(specimen.stored)
                return Prepared(data, self._undefended(specimen.stored), note=note, before=specimen.stored)
        raise LookupError("no clean specimen lies in the grey zone")

    @torch.no_grad()
    def _denoised_alike(self, image: Tensor, prediction: int) -> bool:
        reference = self.artefact.ensemble.probe.reference
        denoised = (denoise(image) for denoise in self.artefact.denoisers.values())
        return all(int(reference(clean).argmax(1)) == prediction for clean in denoised)

    def _signed(self, data: bytes, signer: str) -> bytes:
        return sign(data, signer=self.hospital.signer(signer), profile="inference", at=datetime.now(UTC))


def _bundled(name: str) -> bytes:
    """A real scan that comes with pydicom, its bytes unchanged."""
    path = get_testdata_file(name)
    assert isinstance(path, str)
    return Path(path).read_bytes()
