"""A reviewer's connection to a gateway: what is held there, its bytes, and decisions about it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import grpc

from gateway.api.v1 import quarantine_pb2 as pb
from gateway.api.v1 import quarantine_pb2_grpc as rpc
from gateway.client.client import Client, ClientError

HeldScan: TypeAlias = pb.HeldScan


class Reviewer(Client):
    """A client whose role is `review`; every call raises `ClientError` where the gateway gives no answer."""

    def held(self, state: str = "") -> Iterator[HeldScan]:
        """What is in quarantine, in order of id; `state`: held, released, confirmed, or empty for all."""
        with _answered():
            yield from self._quarantine.List(pb.ListHeldRequest(state=state), metadata=self._metadata)

    def show(self, identity: str) -> HeldScan:
        """What is known about one scan."""
        with _answered():
            scan: HeldScan = self._quarantine.Show(pb.HeldRequest(id=identity), metadata=self._metadata)
        return scan

    def save(self, scan: HeldScan, out: Path) -> None:
        """Write the bytes of a scan to a new file that only its owner can read; the gateway records who took them.

        Raises:
            ClientError: there is such a file, it cannot be written, or what came is not the scan.
        """
        digest = hashlib.sha256()
        try:
            with os.fdopen(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                try:
                    with _answered():
                        request = pb.HeldRequest(id=scan.id)
                        for piece in self._quarantine.Read(request, metadata=self._metadata):
                            digest.update(piece.data)
                            file.write(piece.data)
                    if digest.hexdigest() != scan.scan_sha256:
                        raise ClientError("CLIENT", "what came is not the scan that was held")
                except BaseException:
                    out.unlink()
                    raise
        except OSError as error:
            raise ClientError("CLIENT", f"{out}: {error.strerror}") from error

    def save_map(self, scan: HeldScan, out: Path) -> None:
        """Write the picture of where the detectors disagreed about a scan to a new PNG file of its owner's alone.

        Raises:
            ClientError: there is such a file, it cannot be written, or the scan has no such picture.
        """
        with _answered():
            pieces = self._quarantine.Map(pb.HeldRequest(id=scan.id), metadata=self._metadata)
            picture = b"".join(piece.data for piece in pieces)
        try:
            with os.fdopen(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(picture)
        except OSError as error:
            raise ClientError("CLIENT", f"{out}: {error.strerror}") from error

    def release(self, identity: str, reason: str, *, timeout_s: float = 120.0) -> HeldScan:
        """Let a scan go on to its model; it comes back `held` where another reviewer must agree."""
        request = pb.DecideRequest(id=identity, reason=reason)
        with _answered():
            scan: HeldScan = self._quarantine.Release(request, timeout=timeout_s, metadata=self._metadata)
        return scan

    def confirm(self, identity: str, reason: str, *, timeout_s: float = 120.0) -> HeldScan:
        """Say that a scan stays out."""
        request = pb.DecideRequest(id=identity, reason=reason)
        with _answered():
            scan: HeldScan = self._quarantine.Confirm(request, timeout=timeout_s, metadata=self._metadata)
        return scan

    @property
    def _quarantine(self) -> rpc.QuarantineServiceStub:
        return rpc.QuarantineServiceStub(self._channel)


@contextmanager
def _answered() -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        raise ClientError(error.code().name, error.details() or "no reason was given") from error
