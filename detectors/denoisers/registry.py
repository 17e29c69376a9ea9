"""Every denoiser by its name, so that an artefact can name those it holds."""

from torch import Tensor

from detectors.denoisers.bilateral import Bilateral
from detectors.denoisers.denoiser import Denoiser
from detectors.denoisers.diffusion import Diffusion
from detectors.denoisers.dncnn import DnCNN, StableDnCNN
from detectors.denoisers.hgd import HGD
from detectors.denoisers.jpeg import JpegDenoiser
from detectors.denoisers.learned import Learned
from detectors.denoisers.lowpass import LowPass
from detectors.denoisers.median import Median
from detectors.denoisers.nonlocal_means import NonLocalMeans
from detectors.denoisers.total_variation import TotalVariation
from detectors.denoisers.unet import StableUNet, UNetDenoiser
from detectors.denoisers.wavelet import Wavelet
from detectors.denoisers.windowed import Windowed
from detectors.errors import ArtefactError

Kind = type[Median] | type[Windowed] | type[Learned] | type[Diffusion]

KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Median, Bilateral, NonLocalMeans, TotalVariation, Wavelet, JpegDenoiser, LowPass,
        DnCNN, StableDnCNN, UNetDenoiser, StableUNet, HGD, Diffusion,
    )
}  # fmt: skip


def restored(name: str, version: object, state: dict[str, Tensor]) -> Denoiser:
    """A denoiser as it was fitted.

    Raises:
        ArtefactError: no denoiser of this name and version.
        NotFittedError: the state is not its.
    """
    if name not in KINDS:
        raise ArtefactError(f"no denoiser is called {name!r}")
    if version != KINDS[name].version:
        raise ArtefactError(f"{name} was fitted by version {version}, not {KINDS[name].version}")
    return KINDS[name].from_state(state)
