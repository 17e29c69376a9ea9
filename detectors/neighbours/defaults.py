"""Which neighbours are asked unless somebody says otherwise."""

from detectors.neighbours.geometry import Rotation
from detectors.neighbours.jpeg import Jpeg
from detectors.neighbours.squeezing import MedianShift
from detectors.observation import Neighbour


def default_neighbours() -> tuple[Neighbour, ...]:
    """The three that earn their forward pass: JPEG at quality 75, median 3 x 3, rotation by 3 degrees."""
    return Jpeg(75), MedianShift(), Rotation(3.0)
