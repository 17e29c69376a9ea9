"""Which methods there are: ours, and those that other installed packages offer."""

from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points

from detectors.detector import Method
from detectors.errors import ArtefactError
from detectors.methods.block_agreement import BlockAgreement
from detectors.methods.explanation import BY_GRADIENT, BY_OCCLUSION
from detectors.methods.explanation_autoencoder import ExplanationAutoencoder
from detectors.methods.feature_squeezing import FeatureSqueezing
from detectors.methods.fusion import Fusion
from detectors.methods.gradient_residual import GradientResidual
from detectors.methods.kernel_density import KernelDensity
from detectors.methods.lid import LocalDimension
from detectors.methods.logit_heads import LogitHeads
from detectors.methods.mahalanobis import LayerDistances
from detectors.methods.medrdf import RobustMetric
from detectors.methods.mgm import ClassGaussian
from detectors.methods.ml_loo import LeaveOneOut
from detectors.methods.neighbourhood import Neighbourhood
from detectors.methods.provenance import BIAS_FIELD, NOISE_RESIDUAL
from detectors.methods.shifts import PredictionShift
from detectors.methods.twins import COPIED_TWIN, SMALL_TWIN, TwinDisagreement
from detectors.methods.uad import FeatureDensity
from detectors.neighbours.defaults import default_neighbours, other_neighbours

ENTRY_POINTS = "scanward.detectors"
"""The group in which a package names its methods: `name = "package.module:Method"`."""

_FITTED: tuple[Method, ...] = (
    TwinDisagreement(COPIED_TWIN),
    TwinDisagreement(SMALL_TWIN),
    *(PredictionShift(neighbour) for neighbour in default_neighbours()),
    GradientResidual,
    FeatureDensity,
    Fusion,
)
_ASKED_FOR: tuple[Method, ...] = (
    *(PredictionShift(neighbour) for neighbour in other_neighbours()),
    ClassGaussian,
    KernelDensity,
    LocalDimension,
    LayerDistances,
    BlockAgreement,
    LogitHeads,
    Neighbourhood,
    RobustMetric,
    FeatureSqueezing,
    BY_GRADIENT,
    BY_OCCLUSION,
    ExplanationAutoencoder,
    LeaveOneOut,
    NOISE_RESIDUAL,
    BIAS_FIELD,
)
OURS: Mapping[str, Method] = {method.name: method for method in (*_FITTED, *_ASKED_FOR)}
DEFAULT = tuple(method.name for method in _FITTED)
"""Those that `fit` fits unless it is told otherwise."""


def asked_for(text: str) -> tuple[str, ...]:
    """Names of methods to fit: `default`, `all` (plug-ins too), or names with commas between, beside the default ones.

    Raises:
        ArtefactError: there is no such method.
    """
    if text == "default":
        return DEFAULT
    names = (*OURS, *offered()) if text == "all" else tuple(dict.fromkeys((*DEFAULT, *text.split(","))))
    return tuple(method(name).name for name in names)


def method(name: str) -> Method:
    """The method of a name; a plug-in is imported only when it is asked for.

    Raises:
        ArtefactError: there is none, a plug-in cannot be imported, or it goes by another name than it is offered under.
    """
    if name in OURS:
        return OURS[name]
    found = offered().get(name)
    if found is None:
        raise ArtefactError(f"no detector is called {name!r}")
    try:
        loaded: Method = entry_points(group=ENTRY_POINTS)[name].load()
        given = loaded.name
    except Exception as error:  # a stranger's code: whatever it raises, the detector is missing
        raise ArtefactError(f"{found}, offered as {name!r}, cannot be imported: {error}") from error
    if given != name:
        raise ArtefactError(f"{found} offers {given!r} as {name!r}")
    return loaded


@cache
def offered() -> Mapping[str, str]:
    """By name, the object reference of every plug-in; none may take the name of one of ours."""
    return {each.name: each.value for each in entry_points(group=ENTRY_POINTS) if each.name not in OURS}
