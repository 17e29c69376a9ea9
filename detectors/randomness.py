"""Random numbers that follow from a seed alone: the same on every device, in every batch, in any order.

Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): a keyed mixing of a counter, so that
the number at a place needs no number before it. It is built of 64-bit integer arithmetic, and the normals of single
IEEE 754 operations that every device rounds alike, so a CPU and a GPU draw the same bits. Whoever knows the seed knows
every number; the seed is what must be secret.
"""

import math
import zlib
from functools import cache

import torch
from torch import Tensor

_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF
_ANGLES = 1 << 16
_LOG_TERMS = 10


def stream(name: str) -> int:
    """The stream of a name: who draws under another name draws other numbers from the same seed."""
    return zlib.crc32(name.encode())


def uniform(seeds: Tensor, shape: tuple[int, ...], stream: int = 0) -> Tensor:
    """Numbers spread evenly between 0 and 1, neither of them included.

    Args:
        seeds: (N,) int64, one an image.
        shape: of what is drawn for each image.
        stream: which of the seed's 2**32 sequences.

    Returns:
        (N, *shape) float32, odd multiples of 2**-24.
    """
    words = _bits(seeds, math.prod(shape), stream)
    return ((words >> 9).float() + 0.5).mul_(2.0**-23).reshape(-1, *shape)


def normal(seeds: Tensor, shape: tuple[int, ...], stream: int = 0) -> Tensor:
    """Standard normal numbers by Box and Muller 1958, "A note on the generation of random normal deviates".

    The angle is one of 65,536, over which the mean of a smooth period is exact; the radius has 32 bits, so no number is
    further out than 6.8.

    Args:
        seeds: (N,) int64, one an image.
        shape: of what is drawn for each image.
        stream: which of the seed's 2**32 sequences.

    Returns:
        (N, *shape) float32.
    """
    count = math.prod(shape)
    words = _bits(seeds, count + count % 2, stream).view(len(seeds), -1, 2)
    radius = (_log((words[..., 0].double() + 0.5) * 2.0**-32) * -2).sqrt_()
    cosine, sine = _circle(seeds.device)
    angle = words[..., 1] & (_ANGLES - 1)
    pairs = torch.stack([radius * cosine[angle], radius * sine[angle]], -1)
    return pairs.float().view(len(seeds), -1)[:, :count].reshape(-1, *shape)


def _bits(seeds: Tensor, count: int, stream: int) -> Tensor:
    """(N, count) int64 from 0 to 2**32 - 1: the words at the first places of a stream."""
    assert seeds.ndim == 1
    assert seeds.dtype == torch.int64
    assert 0 <= stream <= _WORD
    places = torch.arange(-(-count // 4), device=seeds.device).expand(len(seeds), -1)
    counter = (places & _WORD, places >> 32, torch.full_like(places, stream), torch.zeros_like(places))
    words = philox(counter, (seeds[:, None] & _WORD, (seeds[:, None] >> 32) & _WORD))
    return torch.stack(words, -1).view(len(seeds), -1)[:, :count]


def philox(counter: tuple[Tensor, ...], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Four 32-bit words, in int64, of a counter of four such words under a key of two; all broadcast."""
    a, b, c, d = counter
    first, second = key
    for _ in range(_ROUNDS):
        left, right = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]  # modulo 2**64; the shifts' signs are masked away
        a, b, c, d = (right >> 32 & _WORD) ^ b ^ first, right & _WORD, (left >> 32 & _WORD) ^ d ^ second, left & _WORD
        first, second = first + _WEYL[0] & _WORD, second + _WEYL[1] & _WORD
    return a, b, c, d


def _log(values: Tensor) -> Tensor:
    """Natural logarithm of positive float64 by its series in (m - 1) / (m + 1), to ten digits.

    Every step is one operation that IEEE 754 defines to the last bit, which `torch.log` is not.
    """
    mantissa, exponent = torch.frexp(values)
    ratio = (mantissa - 1) / (mantissa + 1)
    square = ratio * ratio
    total = torch.full_like(ratio, 1 / (2 * _LOG_TERMS + 1))
    for k in reversed(range(_LOG_TERMS)):
        total = total.mul_(square).add_(1 / (2 * k + 1))
    return total.mul_(ratio).mul_(2).add_(exponent.double() * math.log(2))


@cache
def _circle(device: torch.device) -> tuple[Tensor, Tensor]:
    """(65536,) float64 cosines and sines of the middles of as many arcs, made on the CPU for every device."""
    angles = (torch.arange(_ANGLES, dtype=torch.float64) + 0.5) * (2 * math.pi / _ANGLES)
    return torch.cos(angles).to(device), torch.sin(angles).to(device)
