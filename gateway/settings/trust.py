"""[trust]: whose signatures count, on artefacts and on scans."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from gateway.errors import ConfigError
from gateway.settings.document import read, sentences
from gateway.settings.fields import File, FileOrDirectory, Table, Url


class ArtefactTrust(Table):
    """Whose signature under an artefact is believed."""

    public_keys: tuple[File, ...]
    """Ed25519 public keys, PEM."""
    unsafe_unsigned_artefacts: bool = False
    unsafe_marginal_guarantee: bool = False
    """Serve detectors whose false-positive rate holds on average, not with 95 % confidence."""

    @model_validator(mode="after")
    def _somebody(self) -> Self:
        if not self.public_keys and not self.unsafe_unsigned_artefacts:
            raise ValueError("public_keys is empty, so no artefact can be believed")
        return self


class RefreshConfig(Table):
    """Where `scanward trust refresh` finds revocation material, beside the addresses that certificates name."""

    certificates: tuple[FileOrDirectory, ...] = ()
    """Of signers: they are asked after like the intermediates are."""
    crl_urls: tuple[Url, ...] = ()
    ocsp_urls: tuple[Url, ...] = ()
    """Asked about certificates that name no responder."""


class TrustConfig(Table):
    """One trust policy and the certificates and revocation data that go with it; PEM or DER files or directories."""

    policy: File
    """Trust policy, TOML (architecture 5.1)."""
    roots: Annotated[tuple[FileOrDirectory, ...], Field(min_length=1)]
    intermediates: tuple[FileOrDirectory, ...] = ()
    crls: tuple[FileOrDirectory, ...] = ()
    ocsp: tuple[FileOrDirectory, ...] = ()
    refresh: RefreshConfig = RefreshConfig()


class TrustTable(BaseModel):
    """[trust]: the artefact keys, and one trust policy for each other name."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)
    __pydantic_extra__: dict[str, TrustConfig]

    artefacts: ArtefactTrust | None = None

    @classmethod
    def load(cls, path: Path) -> TrustTable:
        """Read this table alone, for those who must not be able to read the gateway's keys; raises `ConfigError`."""
        table = read(path).get("trust", {})
        try:
            return cls.model_validate_json(json.dumps(table, default=str), context={"root": path.parent})
        except ValidationError as error:
            raise ConfigError([f"trust.{problem}" for problem in sentences(error.errors(include_url=False))]) from error

    @property
    def policies(self) -> Mapping[str, TrustConfig]:
        """The trust policies by name."""
        return self.__pydantic_extra__
