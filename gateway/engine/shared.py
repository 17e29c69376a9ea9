"""The memory through which images reach the worker and denoised ones come back: anonymous, so nothing can leak it."""

from __future__ import annotations

import fcntl
import mmap
import os
from typing import Self

import numpy as np
from numpy.typing import NDArray

REGIONS = 2
"""One that the worker reads, one that is being filled meanwhile."""
_FLOAT_BYTES = 4


class SharedImages:
    """`REGIONS` regions, each a place for a batch on its way in and one for its denoised images on their way out.

    A memfd has no name that another process could open and none that a crash could leave behind in /dev/shm, and its
    size is sealed, so that no mapping of it can fault.
    """

    def __init__(self, descriptor: int, values: int) -> None:
        """Map a memfd.

        Args:
            descriptor: of the memfd; owned by this object from now on.
            values: how many float32 each of the places holds.
        """
        self.descriptor = descriptor
        self._values = values
        self._map = mmap.mmap(descriptor, 2 * REGIONS * values * _FLOAT_BYTES)

    @classmethod
    def create(cls, values: int) -> Self:
        """New memory; pages are only taken once they are written."""
        descriptor = os.memfd_create("scanward-images", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(descriptor, 2 * REGIONS * values * _FLOAT_BYTES)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        return cls(descriptor, values)

    def incoming(self, region: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """The place of images that wait for the worker, as an array of that shape."""
        return self._place(2 * region, shape)

    def outgoing(self, region: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """The place of denoised images, as an array of that shape."""
        return self._place(2 * region + 1, shape)

    def _place(self, index: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
        count = int(np.prod(shape))
        if count > self._values:
            raise ValueError(f"{count} values do not fit a place of {self._values}")
        return np.frombuffer(self._map, np.float32, count, offset=index * self._values * _FLOAT_BYTES).reshape(shape)

    def close(self) -> None:
        """Give the memory back; no array may look at it any more."""
        self._map.close()
        os.close(self.descriptor)
