"""Objects that arrive in pieces: Begin, data…, End, into the spool."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import grpc

from gateway.api.v1 import gateway_pb2 as pb
from gateway.errors import ScanError
from gateway.receivers.receiver import CutOff
from gateway.store.spool import SpoolWriter
from signing.hashed import Hashed

CHUNK_BYTES_MAX = 4 << 20
"""Of one piece of a stream; senders use 256 KiB."""


BeginObject: TypeAlias = Callable[[pb.Begin], tuple[str, SpoolWriter]]
"""From the first piece to the route and a place for the bytes, or a refusal before any of them is taken."""


@dataclass(frozen=True, slots=True)
class Received:
    """One object, whole."""

    route: str
    """As the sender named it, until somebody has asked whether he may use it."""
    data: bytes | memoryview
    sha256: str | None = None
    """Where it was hashed on its way."""
    hashed: Hashed | None = None
    """What of it was hashed on its way for its signatures."""


def pieces(chunks: Iterator[pb.ProtectChunk]) -> Iterator[pb.ProtectChunk]:
    """The pieces as they come; raises `CutOff` where the call ended before them, whoever ended it."""
    try:
        yield from chunks
    except grpc.RpcError:
        raise CutOff("the call ended before the stream did") from None


def next_object(parts: Iterator[pb.ProtectChunk], begin: BeginObject) -> Received | None:
    """Take in the next object; None where the sender has closed its side instead of beginning one.

    Raises:
        ScanError: pieces in another order, or too large.
        CutOff: the stream ended before the object did.
    """
    first = next(parts, None)
    if first is None:
        return None
    if first.WhichOneof("part") != "begin":
        raise ScanError("a stream starts with Begin")
    route, writer = begin(first.begin)
    with writer:
        for part in parts:
            kind = part.WhichOneof("part")
            if kind == "end":
                return Received(route, sha256=writer.sha256, hashed=writer.hashed(), data=writer.seal())
            if kind != "data":
                raise ScanError("after Begin a stream holds data, then End")
            if len(part.data) > CHUNK_BYTES_MAX:
                raise ScanError(f"a piece of {len(part.data)} bytes; at most {CHUNK_BYTES_MAX} are taken at once")
            writer.write(part.data)
        raise CutOff(f"the stream was cut off after {writer.size} bytes: there was no End")
