"""Seeds for detectors that draw: the same pixels, the same draw, as in service the same bytes.

There a secret key goes into them, here none: a seed that follows from a digest is as good as any other to someone who
does not aim at it, so scores found here are distributed as those found there, and anyone can find them again.
"""

import hashlib

import torch
from torch import Tensor


def seeds_of(images: Tensor) -> Tensor:
    """(N,) int64 from the pixels of (N, C, H, W) images, wherever they lie in a batch; on their device."""
    digests = (hashlib.sha256(image.cpu().numpy().tobytes()).digest() for image in images)
    return torch.tensor([int.from_bytes(digest[:8], "big", signed=True) for digest in digests], device=images.device)
