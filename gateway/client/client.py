"""Sends scans to a gateway: small ones in one message, large ones as a stream, a folder several at a time."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gateway.api.v1 import gateway_pb2 as pb
from gateway.api.v1 import gateway_pb2_grpc as rpc

UNARY_BYTES_MAX = 1 << 20
"""Above this a stream of chunks is faster than one message, and takes no second copy in memory."""
CHUNK_BYTES = 256 << 10
IN_FLIGHT = 8
"""Scans of a folder that are under way at once: enough for the engine to fill batches."""

STUDY_TIMEOUT_S = 900.0
"""For a whole study; the gateway may allow less."""

_ADMITTED = frozenset({"admit", "admit_denoised"})
_LOOPBACK = ("127.", "localhost:", "[::1]:")
_MAGIC_AT, _MAGIC = 128, b"DICM"
_RETRIES = {
    "methodConfig": [
        {
            # The same bytes are answered once and alike, and the same decision is taken once, so repeating a call is
            # safe; gRPC adds the jitter.
            "name": [{"service": f"scanward.v1.{name}"} for name in ("ProtectionGateway", "QuarantineService")],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["RESOURCE_EXHAUSTED", "UNAVAILABLE"],
            },
        }
    ]
}


class ClientError(Exception):
    """A call that was not answered: `status` is gRPC's name for why, or `CLIENT` where it never left."""

    def __init__(self, status: str, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.message = message


@dataclass(frozen=True, slots=True)
class Answer:
    """The gateway's answer about one scan."""

    scan_sha256: str
    disposition: str
    """admit, admit_denoised, quarantine or reject."""
    reasons: tuple[str, ...]
    detail: str
    """What is wrong with the object itself, where it could not be read or rendered."""
    prediction: pb.Prediction | None
    receipt: bytes
    log_index: int
    findings: tuple[pb.Finding, ...]
    """Security findings; empty for submitters."""
    quarantine_id: str
    """Under which a held scan lies, or a released one lay; else empty."""
    released_by: tuple[str, ...]
    """Who let a held scan go on; empty for all others."""
    earlier: bool = field(compare=False)
    """The same bytes were answered before, and this is that answer."""

    @property
    def admitted(self) -> bool:
        """Whether the scan may go on to the model."""
        return self.disposition in _ADMITTED


@dataclass(frozen=True, slots=True)
class StudyAnswer:
    """The gateway's answer about a whole study."""

    study_sha256: str
    """Digest of Study Instance UID; empty where no instance could be read."""
    disposition: str
    reasons: tuple[str, ...]
    receipt: bytes
    log_index: int
    instances: int
    """Answered about; the same bytes count once."""
    p_value: float | None
    """Of "every slice is clean"; None for submitters, and where the detectors examined none."""
    slices: tuple[pb.StudySlice, ...]
    """Empty for submitters."""

    @property
    def admitted(self) -> bool:
        """Whether every instance may go on, and all of them together."""
        return self.disposition in _ADMITTED


@dataclass(frozen=True, slots=True)
class Screened:
    """One file and what became of it: an answer or an error."""

    path: Path
    answer: Answer | None
    error: ClientError | None
    seconds: float


class Client:
    """A connection to one gateway; safe to use from several threads."""

    def __init__(
        self,
        address: str,
        *,
        token: str | None = None,
        ca: bytes | None = None,
        certificate: bytes | None = None,
        private_key: bytes | None = None,
        server_name: str | None = None,
    ) -> None:
        """Connect to HOST:PORT; `ca`, `certificate`, `private_key` are PEM. Without `ca` only loopback is talked to.

        `server_name`: the name that the gateway's certificate must have, where it is not the address's own.

        Raises:
            ClientError: plaintext was asked for beyond this machine, where token and patient data could be read.
        """
        options: list[tuple[str, str | int]] = [
            ("grpc.service_config", json.dumps(_RETRIES)),
            ("grpc.enable_retries", 1),
        ]
        if server_name is not None:
            options.append(("grpc.ssl_target_name_override", server_name))
        if ca is not None:
            credentials = grpc.ssl_channel_credentials(ca, private_key, certificate)
            self._channel = grpc.secure_channel(address, credentials, options)
        elif address.startswith(_LOOPBACK):
            self._channel = grpc.insecure_channel(address, options)
        else:
            raise ClientError("CLIENT", f"{address} is not this machine: give the CA certificate of the gateway")
        self._stub = rpc.ProtectionGatewayStub(self._channel)
        self._metadata = (("authorization", f"Bearer {token}"),) if token is not None else ()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def check_health(self, service: str = "ready", *, timeout_s: float = 5.0) -> None:
        """Ask the health service; `ready`: whether calls should come here, the empty name: whether it lives.

        Raises:
            ClientError: it answers that it is not serving (`NOT_SERVING`), or does not answer.
        """
        request = health_pb2.HealthCheckRequest(service=service)
        try:
            answer = health_pb2_grpc.HealthStub(self._channel).Check(request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise ClientError(error.code().name, error.details() or "no reason was given") from error
        if answer.status != health_pb2.HealthCheckResponse.SERVING:
            raise ClientError(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status), "it is not serving")

    def protect(self, scan: Path | bytes, route: str = "", *, timeout_s: float = 120.0) -> Answer:
        """Have one SOP Instance (DICOM File Format) examined; a sender with a single route need not name it.

        Raises:
            ClientError: the file cannot be read, or the gateway gave no answer.
        """
        try:
            if isinstance(scan, bytes):
                if len(scan) <= UNARY_BYTES_MAX:
                    return self._unary(scan, route, timeout_s)
                return self._streamed(_chunks_of_bytes(scan), len(scan), route, timeout_s)
            size = scan.stat().st_size
            if size <= UNARY_BYTES_MAX:
                return self._unary(scan.read_bytes(), route, timeout_s)
            with scan.open("rb") as file:
                return self._streamed(_chunks_of_file(file), size, route, timeout_s)
        except OSError as error:
            raise ClientError("CLIENT", f"{scan!s}: {error.strerror}") from error
        except grpc.RpcError as error:
            raise ClientError(error.code().name, error.details() or "no reason was given") from error

    def screen(self, paths: Iterable[Path], route: str = "", *, in_flight: int = IN_FLIGHT) -> Iterator[Screened]:
        """Have files examined, several at a time; yields in their order."""
        with ThreadPoolExecutor(in_flight) as pool:
            under_way: deque[Future[Screened]] = deque()
            for path in paths:
                under_way.append(pool.submit(self._screen_one, path, route))
                if len(under_way) >= in_flight:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()

    def study(
        self, paths: Sequence[Path], route: str = "", *, timeout_s: float = STUDY_TIMEOUT_S
    ) -> Iterator[Screened | StudyAnswer]:
        """Have the files of one study examined on one stream; yields each in order, and at the end the study.

        Raises:
            ClientError: the call ended without the study's answer; what was yielded until then holds.
        """
        begun: list[float] = []
        unreadable: list[OSError] = []

        def parts() -> Iterator[pb.ProtectChunk]:
            try:
                for path in paths:
                    begun.append(time.perf_counter())
                    with path.open("rb") as file:
                        yield pb.ProtectChunk(begin=pb.Begin(route=route, size_hint=path.stat().st_size))
                        for chunk in _chunks_of_file(file):
                            yield pb.ProtectChunk(data=chunk)
                        yield pb.ProtectChunk(end=pb.End())
            except OSError as error:
                unreadable.append(error)
                call.cancel()  # what was sent must not pass for the whole study

        left = iter(enumerate(paths))
        call = self._stub.ProtectStudy(parts(), timeout=timeout_s, metadata=self._metadata)
        try:
            for reply in call:
                if reply.WhichOneof("reply") == "study":
                    yield _study_answer(reply.study)
                    return
                number, path = next(left)
                took = time.perf_counter() - begun[number]
                yield Screened(path, _answer(reply.instance, reply.detail, earlier=reply.earlier), None, took)
        except grpc.RpcError as error:
            if unreadable:
                problem = unreadable[0]
                raise ClientError("CLIENT", f"{problem.filename}: {problem.strerror}") from error
            raise ClientError(error.code().name, error.details() or "no reason was given") from error
        finally:
            call.cancel()

    def _screen_one(self, path: Path, route: str) -> Screened:
        started = time.perf_counter()
        try:
            answer, problem = self.protect(path, route), None
        except ClientError as error:
            answer, problem = None, error
        return Screened(path, answer, problem, time.perf_counter() - started)

    def _unary(self, data: bytes, route: str, timeout_s: float) -> Answer:
        request = pb.ProtectRequest(dicom=data, route=route)
        reply, call = self._stub.Protect.with_call(request, timeout=timeout_s, metadata=self._metadata)
        return _answer_to(reply, call)

    def _streamed(self, chunks: Iterator[bytes], size: int, route: str, timeout_s: float) -> Answer:
        def parts() -> Iterator[pb.ProtectChunk]:
            yield pb.ProtectChunk(begin=pb.Begin(route=route, size_hint=size))
            for chunk in chunks:
                yield pb.ProtectChunk(data=chunk)
            yield pb.ProtectChunk(end=pb.End())

        reply, call = self._stub.ProtectStream.with_call(parts(), timeout=timeout_s, metadata=self._metadata)
        return _answer_to(reply, call)


def files_in(path: Path) -> tuple[list[Path], int]:
    """The file itself, or, of a folder, every file that says it is DICOM, in order of name; and how many do not."""
    if not path.is_dir():
        return [path], 0
    files = sorted(file for file in path.rglob("*") if file.is_file())
    scans = [file for file in files if _says_dicom(file)]
    return scans, len(files) - len(scans)


def _says_dicom(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            file.seek(_MAGIC_AT)
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return True  # named in the table as unreadable, not left out


def _chunks_of_bytes(data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), CHUNK_BYTES):
        yield data[start : start + CHUNK_BYTES]


def _chunks_of_file(file: BinaryIO) -> Iterator[bytes]:
    while chunk := file.read(CHUNK_BYTES):
        yield chunk


def _answer_to(reply: pb.ProtectReply, call: grpc.Call) -> Answer:
    beside = dict(call.trailing_metadata() or ())
    return _answer(reply, str(beside.get("scanward-detail", "")), earlier="scanward-earlier" in beside)


def _disposition(word: pb.Disposition) -> str:
    name: str = pb.Disposition.Name(word)
    return name.removeprefix("DISPOSITION_").lower()


def _study_answer(reply: pb.StudyVerdict) -> StudyAnswer:
    return StudyAnswer(
        study_sha256=reply.study_sha256,
        disposition=_disposition(reply.disposition),
        reasons=tuple(reply.reasons),
        receipt=reply.receipt,
        log_index=reply.log_index,
        instances=reply.instances,
        p_value=reply.p_value if reply.HasField("p_value") else None,
        slices=tuple(reply.slices),
    )


def _answer(reply: pb.ProtectReply, detail: str, *, earlier: bool) -> Answer:
    return Answer(
        scan_sha256=reply.scan_sha256,
        disposition=_disposition(reply.disposition),
        reasons=tuple(reply.reasons),
        detail=detail,
        prediction=reply.prediction if reply.HasField("prediction") else None,
        receipt=reply.receipt,
        log_index=reply.log_index,
        findings=tuple(reply.findings),
        quarantine_id=reply.quarantine_id,
        released_by=tuple(reply.released_by),
        earlier=earlier,
    )
