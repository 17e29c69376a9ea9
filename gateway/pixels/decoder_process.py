"""The process behind `decompressor`: stands by with the decoders loaded, and forks a limited one for each object."""

from __future__ import annotations

import json
import mmap
import os
import resource
import signal
import socket
import sys
from typing import Any

import numpy as np
from pydicom.pixels import get_decoder

_MEMORY_BEYOND_PIXELS = 256 << 20
_PIXEL_COPIES = 5
"""What the decoders hold at their worst, in sizes of the input and of the decoded pixels."""
_REQUEST_BYTES_MAX = 65536


def main() -> None:
    """Fork for each request on the socket that the first argument names; leave when its other end is closed."""
    control = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the gateway's to handle
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps
    while True:
        request, descriptors, _, _ = socket.recv_fds(control, _REQUEST_BYTES_MAX, 3)
        if not request:
            return
        if os.fork() == 0:
            try:
                control.close()
                _serve(json.loads(request), *descriptors)
            finally:
                os._exit(0)
        for descriptor in descriptors:
            os.close(descriptor)


def _serve(request: dict[str, Any], source: int, target: int, reply: int) -> None:
    """Decode one object and say how it went; a crash says nothing, and the gateway takes that for an answer."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # the libraries print what a stranger made them
    _limit(request["seconds_max"], os.fstat(source).st_size + os.fstat(target).st_size)
    try:
        refusal = _decode(request, source, target)
    except MemoryError:
        refusal = {"reason": "unsupported_image", "detail": "decoding takes more memory than the image's size allows"}
    except Exception as error:
        refusal = {"reason": "unsupported_image", "detail": f"the compressed pixels are bad: {type(error).__name__}"}
    os.write(reply, json.dumps(refusal).encode())


def _limit(seconds: float, pixel_bytes: int) -> None:
    """Everything a process can run away with, bounded; the alarm's default action ends even a stuck C library."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    processor = int(seconds) + 1
    with open("/proc/self/statm", "rb") as statm:
        mapped = int(statm.read().split()[0]) * resource.getpagesize()
    memory = mapped + _MEMORY_BEYOND_PIXELS + _PIXEL_COPIES * pixel_bytes
    for what, most in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, processor),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NPROC, 0),
    ):
        resource.setrlimit(what, (most, most))


def _decode(request: dict[str, Any], source: int, target: int) -> dict[str, str]:
    """Fill `target`; returns the refusal, empty where there is none."""
    try:
        decoder = get_decoder(request["transfer_syntax"])
    except NotImplementedError:
        decoder = None
    if decoder is None or not decoder.is_available:
        detail = f"there is no decoder for transfer syntax {request['transfer_syntax'][:64]}"
        return {"reason": "unsupported_transfer_syntax", "detail": detail}
    size = request["bits_allocated"] // 8
    shape = (request["frames"], request["rows"], request["columns"], request["samples"])
    colour = request["samples"] > 1
    with mmap.mmap(source, 0, prot=mmap.PROT_READ) as items, mmap.mmap(target, 0) as room:
        decoded, facts = decoder.as_array(
            items[:],
            raw=not colour,  # a colour comes as RGB, whatever the codec keeps
            number_of_frames=request["frames"],
            rows=request["rows"],
            columns=request["columns"],
            samples_per_pixel=request["samples"],
            planar_configuration=request["planar"],
            bits_allocated=request["bits_allocated"],
            bits_stored=request["bits_stored"],
            pixel_representation=int(request["signed"]),
            photometric_interpretation=request["photometric_interpretation"],
            pixel_keyword="PixelData",
        )
        if colour and facts["photometric_interpretation"] != "RGB":
            return {"reason": "unsupported_image", "detail": "the compressed pixels do not decode to RGB"}
        if decoded.size != np.prod(shape) or decoded.dtype.itemsize != size:
            return {"reason": "wrong_size", "detail": f"the compressed frames are not {shape[1]} x {shape[2]} pixels"}
        room[:] = decoded.astype(f"<u{size}", copy=False).tobytes()
    return {}


if __name__ == "__main__":
    main()
