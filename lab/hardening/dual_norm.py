"""Dual batch normalisation: clean and attacked scans share every weight, and not their statistics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, cast, get_args

from torch import Tensor, nn

from lab.hardening.method import Course, Method, Model, Pupil
from lab.learning import Batch
from lab.training import Classifier, folded

Branch = Literal["clean", "attacked"]


class DualNorm(nn.Module):
    """Two batch normalisations, one of which is in use."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.clean, self.attacked = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.branch: Branch = "attacked"

    def forward(self, x: Tensor) -> Tensor:
        """(N, width, H, W), normalised."""
        return cast("Tensor", self.current(x))

    @property
    def current(self) -> nn.BatchNorm2d:
        """The one in use."""
        return self.clean if self.branch == "clean" else self.attacked


@dataclass(frozen=True, slots=True, kw_only=True)
class DualBatchNorm(Method):
    """The labels on clean scans through one set of statistics, and under PGD through the other.

    Han et al. 2021, Nature Communications 12, 4315; Xie et al. 2020, arXiv:1911.09665. `branch` is the set that is
    served. Limits: the clean set is barely robust, and the attacked one reads clean scans worse; who serves the clean
    one has bought better saliency maps and no defence (a stronger attack than Han's ten steps: Croce and Hein 2020,
    arXiv:2003.01690).
    """

    name: ClassVar[str] = "dual_norm"
    paper: ClassVar[str] = "Han et al. 2021, Nature Communications 12, 4315"
    broken_by: ClassVar[str] = "Croce and Hein 2020, arXiv:2003.01690 (through the clean statistics)"
    limits: ClassVar[str] = "What is robust are the attacked statistics alone, and they cost clean accuracy."

    eps: float = 4.0
    """Grey levels; the paper's .005 of the window is 1.3."""
    steps: int = 7
    stride: float = 0.25
    branch: Branch = "attacked"

    def __post_init__(self) -> None:
        super(DualBatchNorm, self).__post_init__()  # slots=True makes another class of the same name
        if self.branch not in get_args(Branch):
            raise ValueError(f"branch must be one of {', '.join(get_args(Branch))}: {self}")

    def loss(self, pupil: Pupil, batch: Batch) -> Tensor:
        """Return the sum of both losses."""
        use(pupil.network, "attacked")
        changed = pupil.misled(batch, eps=self.eps, steps=self.steps, stride=self.stride)
        hard = pupil.loss(changed, batch.labels)
        use(pupil.network, "clean")
        clean = pupil.loss(batch.images, batch.labels)
        use(pupil.network, self.branch)
        return clean + hard

    def network(self, course: Course, teacher: Model | None) -> nn.Module:
        """Return a classifier, each of whose normalisations is two."""
        network = super(DualBatchNorm, self).network(course, teacher)
        for part in list(network.modules()):
            for name, child in part.named_children():
                if isinstance(child, nn.BatchNorm2d):
                    setattr(part, name, DualNorm(child.num_features))
        use(network, self.branch)
        return network

    def served(self, network: nn.Module) -> nn.Module:
        """Return the classifier with the statistics in use alone."""
        for part in list(network.modules()):
            for name, child in part.named_children():
                if isinstance(child, DualNorm):
                    setattr(part, name, child.current)
        return folded(cast("Classifier", network))


def use(network: nn.Module, branch: Branch) -> None:
    """Let every normalisation of a network use one of its two."""
    for part in network.modules():
        if isinstance(part, DualNorm):
            part.branch = branch
