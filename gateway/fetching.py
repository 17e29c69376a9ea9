"""Fetches small files over HTTP from servers that may be broken or hostile: bounded in size, in time and in schemes."""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
import urllib.error
import urllib.request
from contextlib import suppress
from typing import Any, cast

_CHUNK_BYTES = 64 << 10
_OPENERS: tuple[type[urllib.request.BaseHandler], ...] = (
    urllib.request.ProxyHandler,
    urllib.request.HTTPDefaultErrorHandler,
    urllib.request.HTTPErrorProcessor,
)


class FetchError(Exception):
    """Nothing was fetched; says why."""


def fetch(
    url: str,
    *,
    bytes_max: int,
    seconds_max: float,
    body: bytes | None = None,
    content_type: str | None = None,
    tls: ssl.SSLContext | None = None,
    redirects: bool = True,
) -> bytes:
    """GET `url`, or POST `body` to it; goes through the site's proxy.

    Args:
        url: http or https.
        bytes_max: of the answer.
        seconds_max: for all of it.
        body: to be posted.
        content_type: of the body.
        tls: whom to believe; None: the system's authorities.
        redirects: whether they are followed, also between http and https.

    Raises:
        FetchError: another scheme, a redirect that is not followed, no answer or one with an error status, more than
            `bytes_max`, or not done after `seconds_max`, however slowly the bytes trickle in.
    """
    if not url.startswith(("http://", "https://")):
        raise FetchError("neither http nor https")
    headers = {"User-Agent": "scanward", **({"Content-Type": content_type} if content_type else {})}
    patience = _Patience(seconds_max)
    try:
        with patience:
            request = urllib.request.Request(url, body, headers)  # noqa: S310 - the scheme is checked above
            return _read(_opener(patience, tls, redirects=redirects), request, bytes_max)
    except urllib.error.HTTPError as error:
        with error:
            raise FetchError(f"HTTP status {error.code}") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        if patience.over:
            raise FetchError(f"not done after {seconds_max:g} s") from error
        reason = getattr(error, "reason", None) or error
        raise FetchError(str(reason) or type(reason).__name__) from error


def _read(opener: urllib.request.OpenerDirector, request: urllib.request.Request, bytes_max: int) -> bytes:
    content = bytearray()
    with opener.open(request) as answer:
        expected = answer.length  # Content-Length; a part must not pass for the whole
        while chunk := answer.read1(_CHUNK_BYTES):
            content += chunk
            if len(content) > bytes_max:
                raise FetchError(f"larger than {bytes_max} bytes")
    if expected is not None and len(content) != expected:
        raise FetchError("cut off before its end")
    return bytes(content)


class _Patience:
    """Cuts every connection that is still open when the time is over: a timeout of each read would never end."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.over = False
        self._twins: list[socket.socket] = []
        self._lock = threading.Lock()
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        with self._lock:
            for twin in self._twins:
                twin.close()
        if self.over:
            raise TimeoutError

    def connect(self, address: tuple[str, int], _timeout: object, source: tuple[str, int] | None) -> socket.socket:
        """As `socket.create_connection`; its twin can be cut even while TLS has taken the connection over."""
        connected = socket.create_connection(address, self.seconds, source)
        with self._lock:
            self._twins.append(connected.dup())
            if self.over:
                raise TimeoutError
        return connected

    def _end(self) -> None:
        with self._lock:
            self.over = True
            for twin in self._twins:
                with suppress(OSError):
                    twin.shutdown(socket.SHUT_RDWR)


def _opener(patience: _Patience, tls: ssl.SSLContext | None, *, redirects: bool) -> urllib.request.OpenerDirector:
    """An opener for http and https alone: the standard one would follow a redirect to ftp."""

    class Plain(http.client.HTTPConnection):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            self._create_connection = patience.connect

    class Secure(http.client.HTTPSConnection):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            self._create_connection = patience.connect

    class Http(urllib.request.HTTPHandler):
        def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(cast("Any", Plain), req)

    class Https(urllib.request.HTTPSHandler):
        def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(cast("Any", Secure), req, context=tls)

    class Redirect(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *arguments: Any) -> urllib.request.Request | None:
            if not redirects:
                raise FetchError("redirected elsewhere")
            if not arguments[-1].startswith(("http://", "https://")):
                raise FetchError("redirected to neither http nor https")
            return super().redirect_request(*arguments)

    opener = urllib.request.OpenerDirector()
    for handler in (*(each() for each in _OPENERS), Http(), Https(), Redirect()):
        opener.add_handler(handler)
    return opener
