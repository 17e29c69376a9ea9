"""A time-stamping authority that is reached over HTTP (RFC 3161 3.4)."""

from __future__ import annotations

import hashlib
import secrets
import urllib.error
import urllib.request
from dataclasses import dataclass

from signing import SignError, der

TIMEOUT_S = 20.0
TOKEN_BYTES_MAX = 64 << 10
"""What a signature may carry."""

_SHA256 = "2.16.840.1.101.3.4.2.1"
_BOOLEAN = 0x01
_GRANTED = (b"\x00", b"\x01")
"""PKIStatus granted and grantedWithMods (RFC 3161 2.4.2)."""


@dataclass(frozen=True, slots=True)
class HttpAuthority:
    """Asks the authority at `url` to say when a signature existed; whoever verifies judges its answer."""

    url: str

    def stamp(self, signature: bytes) -> bytes:
        """An RFC 3161 TimeStampToken over the signature value, in DER.

        Raises:
            SignError: the authority cannot be reached, refuses, or answers something else.
        """
        imprint = der.encode(
            der.SEQUENCE,
            der.encode(der.SEQUENCE, der.encode_oid(_SHA256)),
            der.encode(der.OCTET_STRING, hashlib.sha256(signature).digest()),
        )
        wants_certificate = der.encode(_BOOLEAN, b"\xff")
        query = der.encode(
            der.SEQUENCE, der.encode_integer(1), imprint, der.encode_integer(secrets.randbits(63)), wants_certificate
        )
        return self._token(self._post(query))

    def _post(self, query: bytes) -> bytes:
        if not self.url.startswith(("http://", "https://")):
            raise SignError(f"time-stamping authority {self.url}: neither http nor https")
        request = urllib.request.Request(  # noqa: S310 - the scheme was looked at
            self.url, query, {"Content-Type": "application/timestamp-query"}
        )
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as reply:  # noqa: S310 - as above
                answer: bytes = reply.read(TOKEN_BYTES_MAX + 1)
        except (OSError, ValueError, urllib.error.URLError) as error:
            raise SignError(f"time-stamping authority {self.url}: {error}") from error
        if len(answer) > TOKEN_BYTES_MAX:
            raise SignError(f"time-stamping authority {self.url}: the answer is over {TOKEN_BYTES_MAX} bytes")
        return answer

    def _token(self, answer: bytes) -> bytes:
        try:
            status, *token = der.parse(answer).expect(der.SEQUENCE).children()
            word = status.expect(der.SEQUENCE).children()[0].expect(der.INTEGER).content
        except (der.DerError, ValueError, IndexError) as error:
            raise SignError(f"time-stamping authority {self.url}: the answer is not a time stamp") from error
        if word not in _GRANTED or len(token) != 1:
            raise SignError(f"time-stamping authority {self.url}: refused with status {int.from_bytes(word, 'big')}")
        return token[0].whole
