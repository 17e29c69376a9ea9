"""Seeds for detectors that draw: the same pixels, the same draw, as in service; secret there, reproducible here."""

import hashlib

import torch
from torch import Tensor


def seeds_of(images: Tensor) -> Tensor:
    """(N,) int64 from the pixels of (N, C, H, W) images, wherever they lie in a batch."""
    digests = (hashlib.sha256(image.cpu().numpy().tobytes()).digest() for image in images)
    return torch.tensor([int.from_bytes(digest[:8], "big", signed=True) for digest in digests])
