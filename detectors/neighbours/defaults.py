"""Which neighbours are asked unless somebody says otherwise."""

from detectors.neighbours.geometry import HalfSize, PixelShift, Rotation
from detectors.neighbours.jpeg import Jpeg
from detectors.neighbours.noise import Noise
from detectors.neighbours.squeezing import LowPass, MedianShift, Wiener
from detectors.observation import Neighbour


def default_neighbours() -> tuple[Neighbour, ...]:
    """The three that earn their forward pass: JPEG at quality 75, median 3 x 3, rotation by 3 degrees."""
    return Jpeg(75), MedianShift(), Rotation(3.0)


def other_neighbours() -> tuple[Neighbour, ...]:
    """Those whose prediction shift was measured and found to add little; asked where somebody names them."""
    return Jpeg(50), LowPass(1.0), HalfSize(), PixelShift(), Wiener(3.0), Noise(2.0), Noise(6.0)
