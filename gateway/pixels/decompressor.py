"""Decodes compressed pixel data in disposable processes, so that a hostile stream can only hurt itself."""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from types import TracebackType
from typing import Self

import numpy as np

from gateway.errors import Overloaded
from gateway.finding import GatewayReason
from gateway.pixels.decode import PixelFormat, Pixels
from gateway.pixels.unexaminable import UnexaminableError

DECODED_BYTES_MAX = 512 << 20
"""Of one object; a header can claim any size, so the claim is refused before anything is allocated."""
_REPLY_BYTES_MAX = 4096
_GRACE_S = 5.0
"""How long past its own alarm a decoder may take to be gone."""


class DisposableDecoder:
    """Hands each compressed object to a process of its own, with limits on memory, processor and wall time.

    One small process stands by with the decoders loaded and a single thread, and forks for each object
    (`gateway.pixels.decoder_process`): 2 to 5 ms where a fresh interpreter takes 400. Pixels go in and come back in
    anonymous shared memory whose size is sealed.
    """

    def __init__(self, *, at_once: int = 4, seconds_max: float = 20.0) -> None:
        self._seconds_max = seconds_max
        self._places = threading.BoundedSemaphore(at_once)
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def decompress(self, pixel_format: PixelFormat, transfer_syntax: str, items: memoryview) -> Pixels:
        """See `decode.Decompressor`; raises `Overloaded` where no process came free in the time that one may take."""
        if pixel_format.byte_length > DECODED_BYTES_MAX:
            detail = (
                f"the header claims {pixel_format.byte_length} decoded bytes; at most {DECODED_BYTES_MAX} are decoded"
            )
            raise UnexaminableError(GatewayReason.UNSUPPORTED_IMAGE, detail)
        with ExitStack() as stack:
            if not self._places.acquire(timeout=self._seconds_max):
                raise Overloaded("too many compressed objects are decoded at once")
            stack.callback(self._places.release)
            source = _shared(stack, len(items))
            with mmap.mmap(source, len(items)) as room:
                room[:] = items
            target = _shared(stack, pixel_format.byte_length)
            started = time.monotonic()
            reply = self._ask(stack, pixel_format, transfer_syntax, source, target)
            if reply is None:
                self._require_standing_by()
                if time.monotonic() - started >= self._seconds_max:  # on a busy machine any stream may take so long
                    raise UnexaminableError(
                        GatewayReason.TIMEOUT, f"the decoder was stopped: it took more than {self._seconds_max:g} s"
                    )
                detail = "the decoder was stopped: it crashed, or took more than its memory"
                raise UnexaminableError(GatewayReason.UNSUPPORTED_IMAGE, detail)
            if reply:
                raise UnexaminableError(GatewayReason(reply["reason"]), str(reply["detail"]))
            decoded = mmap.mmap(target, pixel_format.byte_length, prot=mmap.PROT_READ)
        words = np.frombuffer(decoded, f"<u{pixel_format.bits_allocated // 8}")
        return words.reshape(pixel_format.shape)

    def close(self) -> None:
        """Dismiss the process that stands by."""
        with self._lock:
            self._dismiss()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(
        self, stack: ExitStack, pixel_format: PixelFormat, transfer_syntax: str, source: int, target: int
    ) -> dict[str, str] | None:
        """The decoder's refusal, empty where it succeeded; None where it died."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        stack.callback(ours.close)
        with theirs:
            request = json.dumps(
                {
                    "transfer_syntax": transfer_syntax,
                    "frames": pixel_format.frames,
                    "rows": pixel_format.rows,
                    "columns": pixel_format.columns,
                    "samples": pixel_format.samples,
                    "planar": pixel_format.planar,
                    "bits_allocated": pixel_format.bits_allocated,
                    "bits_stored": pixel_format.bits_stored,
                    "signed": pixel_format.signed,
                    "photometric_interpretation": pixel_format.photometric_interpretation,
                    "seconds_max": self._seconds_max,
                }
            ).encode()
            self._send(request, [source, target, theirs.fileno()])
        ours.settimeout(self._seconds_max + _GRACE_S)
        try:
            answer = ours.recv(_REPLY_BYTES_MAX)
            return dict(json.loads(answer)) if answer else None
        except (TimeoutError, ConnectionError, ValueError):
            return None

    def _send(self, request: bytes, descriptors: list[int]) -> None:
        """Give one request to the process that stands by; start it where there is none, or a dead one."""
        with self._lock:
            for attempt in (1, 2):
                try:
                    socket.send_fds(self._standing_by(), [request], descriptors)
                except (BrokenPipeError, ConnectionError):
                    self._dismiss()
                    if attempt == 2:
                        raise
                else:
                    return

    def _standing_by(self) -> socket.socket:
        if self._control is None or self._process is None or self._process.poll() is not None:
            self._dismiss()
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                self._process = subprocess.Popen(  # noqa: S603 - this interpreter, a module of our own
                    [sys.executable, "-P", "-m", "gateway.pixels.decoder_process", str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
                )
            self._control = ours
        return self._control

    def _require_standing_by(self) -> None:
        """An object may only be blamed for its own process, not where the one that forks has gone too."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                raise RuntimeError("the decoders' process has gone")

    def _dismiss(self) -> None:
        if self._control is not None:
            self._control.close()  # its end of file is the word to leave
        if self._process is not None:
            try:
                self._process.wait(timeout=_GRACE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._control = self._process = None


def _shared(stack: ExitStack, size: int) -> int:
    """Anonymous shared memory that nobody can shrink: a mapping of it never faults."""
    descriptor = os.memfd_create("scanward-pixels", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    stack.callback(os.close, descriptor)
    os.ftruncate(descriptor, size)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return descriptor
