"""Label-free adversarial distillation: the hardened twin's lesson, for a network that is served."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from detectors.methods.twins import Hardening, Lesson
from detectors.precision import training
from lab.hardening.method import Course, Method, Model, Pupil, grown
from lab.hardening.plain import Undefended
from lab.learning import Batch
from lab.training import Classifier


@dataclass(frozen=True, slots=True, kw_only=True)
class Twin(Method):
    """A model's own answers, on clean scans, on attacks on the twin, and on attacks on the model; no labels.

    `detectors.methods.twins` says the loss. After Goldblum et al. 2020, arXiv:1905.09747. The network starts from the
    model's weights where the model was trained here, and from nothing where it was given. Limits: what the model gets
    wrong the twin learns too; robust inside its ball and norm (Tramer and Boneh 2019, arXiv:1904.13000).
    """

    name: ClassVar[str] = "twin"
    paper: ClassVar[str] = "after Goldblum et al. 2020, arXiv:1905.09747"
    broken_by: ClassVar[str] = "Tramer and Boneh 2019, arXiv:1904.13000 (other norms)"
    limits: ClassVar[str] = "Learns the model's mistakes too; robust inside its own ball and norm only."
    labelled: ClassVar[bool] = False

    eps_low: float = 0.5
    """Grey levels; each scan's budget is drawn."""
    eps_high: float = 5.0

    def loss(self, pupil: Pupil, batch: Batch) -> Tensor:
        """Return the twins' loss."""
        recipe = pupil.course.recipe
        assert pupil.teacher is not None
        drawn = Hardening(self.eps_low, self.eps_high, recipe.steps(len(pupil.course.images)), recipe.peak_rate)
        lesson = Lesson(pupil.teacher, drawn, pupil.course.task, batch.noise)
        with training(batch.images.device):
            return lesson.loss(pupil.network, batch.images, strength=grown(batch))

    def teaching(self) -> Method:
        """Return plain training: the model to be hardened."""
        return Undefended()

    def network(self, course: Course, teacher: Model | None) -> nn.Module:
        """Return the model's own network, or a new one beside a given model."""
        fresh = super(Twin, self).network(course, teacher)
        if isinstance(teacher, Classifier):
            fresh.load_state_dict(teacher.state_dict())
        return fresh
