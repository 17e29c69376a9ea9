"""STOW-RS to another server (PS3.18 10.5, as user agent): one object a request, its file as it is."""

from __future__ import annotations

import http.client
import os
import secrets
import ssl
from collections.abc import Iterator
from typing import IO
from urllib.parse import urlsplit

from gateway.errors import NotTaken, UpstreamError
from gateway.settings.destinations import DestinationConfig

_CHUNK_BYTES = 1 << 18
_ANSWER_BYTES_MAX = 1 << 20
_AGAIN = frozenset({401, 403, 408, 425, 429})
"""Of 4xx: what somebody can put right without changing the object."""


class StowSender:
    """One connection a request: between objects there is nothing to keep."""

    def __init__(self, config: DestinationConfig, tls: ssl.SSLContext | None) -> None:
        """`config` names a URL."""
        assert config.stow_url is not None
        self._url = urlsplit(config.stow_url)
        self._seconds = config.attempt_s_max
        self._token = None if config.token_file is None else config.token_file.read_text("ascii").strip()
        self._tls = tls

    def send(self, file: IO[bytes]) -> None:
        """See `dicom.Sender.send`."""
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        boundary = secrets.token_hex(16)
        head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        tail = f"\r\n--{boundary}--\r\n".encode()
        headers = {
            "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
            "Content-Length": str(len(head) + size + len(tail)),
            "Accept": "application/dicom+json",
        }
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        connection = self._connection()
        try:
            connection.request("POST", self._url.path, _body(head, file, tail), headers)
            answer = connection.getresponse()
            answer.read(_ANSWER_BYTES_MAX)
        except (OSError, http.client.HTTPException) as error:
            raise UpstreamError(f"the destination is not reached: {type(error).__name__}") from None
        finally:
            connection.close()
        _judge(answer.status)

    def close(self) -> None:
        """Nothing is kept open."""

    def _connection(self) -> http.client.HTTPConnection:
        host, port = self._url.hostname or "", self._url.port
        if self._tls is None:
            return http.client.HTTPConnection(host, port, timeout=self._seconds)
        return http.client.HTTPSConnection(host, port, timeout=self._seconds, context=self._tls)


def _body(head: bytes, file: IO[bytes], tail: bytes) -> Iterator[bytes]:
    yield head
    while chunk := file.read(_CHUNK_BYTES):
        yield chunk
    yield tail


def _judge(status: int) -> None:
    """Of one object there is no partial success: 200 and 202 are taken (PS3.18 table 10.5.3-1)."""
    if status in {200, 202}:
        return
    said = f"the destination answered {status}"
    if 400 <= status < 500 and status not in _AGAIN:
        raise NotTaken(said)
    raise UpstreamError(said)
