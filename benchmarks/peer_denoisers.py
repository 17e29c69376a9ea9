"""Runs the filters of other libraries in an environment of their own: a name a line comes in, its seconds go out.

    python peer_denoisers.py BATCH.npy THREADS

The batch is (N, 1, rows, columns) float32, 0 to 1. The first line that goes out names every filter, as JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from time import perf_counter

import cv2
import kornia
import numpy as np
import torch
from art.defences.preprocessor import JpegCompression, SpatialSmoothing, TotalVarMin

LEVEL = 1 / 255


def main() -> None:
    """Answer until nobody asks any more."""
    batch, threads = np.load(sys.argv[1]), int(sys.argv[2])
    cv2.setNumThreads(threads)
    torch.set_num_threads(threads)
    filters = made(batch)
    print(json.dumps(list(filters)), flush=True)
    for line in sys.stdin:
        started = perf_counter()
        filters[line.strip()]()
        print(perf_counter() - started, flush=True)


def made(batch: np.ndarray) -> dict[str, Callable[[], object]]:
    """By `filter, library`, what filters the whole batch once, with settings as near to ours as the library has."""
    planes = list(batch[:, 0])
    bytes_ = [(plane * 255).round().astype(np.uint8) for plane in planes]
    images = torch.from_numpy(batch)
    smoothing = SpatialSmoothing(window_size=3, channels_first=True, clip_values=(0, 1))
    variation = TotalVarMin(clip_values=(0, 1))
    jpeg = JpegCompression(clip_values=(0, 1), quality=75, channels_first=True)
    codec = kornia.enhance.JPEGCodecDifferentiable()
    coloured, quality = images.expand(-1, 3, -1, -1), torch.tensor([75.0])
    blur = kornia.filters
    return {
        "median, OpenCV": lambda: [cv2.medianBlur(plane, 3) for plane in planes],
        "median, kornia": lambda: blur.median_blur(images, 3),
        "median, ART": lambda: smoothing(batch),
        "bilateral, OpenCV": lambda: [cv2.bilateralFilter(plane, 5, 8 * LEVEL, 1.2) for plane in planes],
        "bilateral, kornia": lambda: blur.bilateral_blur(images, 5, 8 * LEVEL, (1.2, 1.2)),
        "nonlocal_means, OpenCV (8 bits)": lambda: [
            cv2.fastNlMeansDenoising(plane, None, 4, 5, 11) for plane in bytes_
        ],
        "total_variation, ART": lambda: variation(batch),
        "jpeg, OpenCV (8 bits)": lambda: [
            cv2.imdecode(cv2.imencode(".jpg", plane, [cv2.IMWRITE_JPEG_QUALITY, 75])[1], cv2.IMREAD_GRAYSCALE)
            for plane in bytes_
        ],
        "jpeg, kornia (colour)": lambda: codec(coloured, quality),
        "jpeg, ART (8 bits)": lambda: jpeg(batch),
        "lowpass, OpenCV": lambda: [cv2.GaussianBlur(plane, (7, 7), 0.8) for plane in planes],
        "lowpass, kornia": lambda: blur.gaussian_blur2d(images, (7, 7), (0.8, 0.8)),
    }


if __name__ == "__main__":
    main()
