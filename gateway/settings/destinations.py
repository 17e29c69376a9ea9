"""[destinations]: DICOM archives and nodes that admitted scans are handed on to."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from gateway.settings.fields import Address, AeTitle, File, SecretFile, Table, Url


class DestinationTls(Table):
    """How a destination and the gateway know each other."""

    roots: File
    """Authorities of the destination's certificate, PEM."""
    certificate: File | None = None
    """The gateway's own, where the destination asks for one."""
    private_key: SecretFile | None = None

    @model_validator(mode="after")
    def _a_pair(self) -> Self:
        if (self.certificate is None) != (self.private_key is None):
            raise ValueError("certificate and private_key belong together")
        return self


class DestinationConfig(Table):
    """One destination: an AE that takes C-STORE, or a STOW-RS service."""

    address: Address | None = None
    """HOST:PORT of the AE."""
    ae_title: AeTitle | None = None
    """Of the AE."""
    calling_ae: AeTitle = "SCANWARD"
    """What the gateway calls itself there."""
    stow_url: Url | None = None
    """Of the studies resource, such as https://pacs.example/dicom-web/studies, in place of address and ae_title."""
    token_file: SecretFile | None = None
    """Bearer token for the STOW-RS service."""
    tls: DestinationTls | None = None
    unsafe_plaintext: bool = False
    """Without TLS whoever is on the way may read and change what is handed on."""
    senders: Annotated[int, Field(ge=1, le=64)] = 4
    """Scans handed on at once; several, since many receivers take 45 ms for each, whatever its size."""
    attempt_s_max: Annotated[float, Field(gt=0.0, le=3600.0)] = 60.0
    """Of one attempt to hand on one scan."""
    outbox_bytes_max: Annotated[int, Field(ge=1 << 20)] = 64 << 30
    """Admitted and not handed on yet; beyond it the doors say that there is no room."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.stow_url is None) == (self.address is None) or (self.address is None) != (self.ae_title is None):
            raise ValueError("needs either address and ae_title, or stow_url")
        if self.token_file is not None and self.stow_url is None:
            raise ValueError("token_file has a meaning with stow_url only")
        if (self.tls is None) != self.unsafe_plaintext:
            raise ValueError("needs either a tls table or unsafe_plaintext = true")
        if self.stow_url is not None and self.stow_url.startswith("https://") != (self.tls is not None):
            raise ValueError("stow_url begins with https:// with a tls table, and with http:// without")
        return self
