"""Every method of hardening by its name."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from lab.hardening.adversarial import AdversarialTraining
from lab.hardening.ard import ARD
from lab.hardening.densenet import DenseNet
from lab.hardening.distillation import DefensiveDistillation
from lab.hardening.dual_norm import DualBatchNorm
from lab.hardening.feature_noise import FeatureNoise
from lab.hardening.input_gradient import InputGradient
from lab.hardening.maadvt import MAAdvT
from lab.hardening.mart import Mart
from lab.hardening.method import Method
from lab.hardening.mpadvt import MPAdvT
from lab.hardening.plain import Undefended
from lab.hardening.sign_activation import SignActivation
from lab.hardening.speckle import SpeckleTraining
from lab.hardening.ssat import SSAT
from lab.hardening.trades import Trades
from lab.hardening.twin import Twin
from lab.hardening.vit import ViT

_MADE: tuple[type[Method], ...] = (
    Undefended, AdversarialTraining, Trades, Mart, SSAT, MPAdvT, MAAdvT, ARD, DualBatchNorm, Twin,
    InputGradient, FeatureNoise, SpeckleTraining, SignActivation, ViT, DenseNet, DefensiveDistillation,
)  # fmt: skip

METHODS: dict[str, type[Method]] = {made.name: made for made in _MADE}
"""In the order in which a table lists them."""


def named(name: str, **options: Any) -> Method:
    """Return a method by its name, configured.

    Args:
        name: a key of `METHODS`.
        options: fields of the method.

    Raises:
        ValueError: no such method or option, or a value out of range.
    """
    if name not in METHODS:
        raise ValueError(f"no method is called {name!r}; there are {', '.join(METHODS)}")
    made = METHODS[name]
    known = {each.name: each.default for each in fields(made)}
    if strange := sorted(set(options) - set(known)):
        raise ValueError(f"{name} has no option {', '.join(strange)}; it has {', '.join(known) or 'none'}")
    for key, value in options.items():
        if not _fits(value, known[key]):
            raise ValueError(f"{name}: {key} must be like {known[key]!r}, not {value!r}")
    return made(**options)


def _fits(value: object, default: object) -> bool:
    """Whether a value is of the default's kind; a whole number may stand for a real one."""
    return type(value) is type(default) or (type(value) is int and type(default) is float)
