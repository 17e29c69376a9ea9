"""[storage] and [keys]: where records and held scans lie, and under which keys."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from gateway.settings.fields import File, KeyPlace, OwnDirectory, SecretFile, Table


class StorageConfig(Table):
    """Where records, held scans and streams in progress lie."""

    directory: OwnDirectory
    """Created with mode 0700 where it is missing."""
    spool_bytes_max: Annotated[int, Field(ge=1 << 20)]
    """Bytes of streams in progress, all together."""
    quarantine_bytes_max: Annotated[int, Field(ge=1 << 20)]
    """Held scans, all together; when full, scans that would be held are refused, and none is lost."""
    ledger_rows_max: Annotated[int, Field(ge=1)] = 200_000
    """Answers that are remembered, so that the same bytes get the same answer."""
    ledger_days_max: Annotated[float, Field(gt=0.0)] = 90.0
    replay_days_max: Annotated[float, Field(gt=0.0)] | None = None
    """How long the replay ledger remembers an accepted instance; without it, for ever."""


class KeysConfig(Table):
    """The gateway's private keys (architecture 5.8); PEM files of mode 0600."""

    receipt: SecretFile
    checkpoint: SecretFile
    quarantine: KeyPlace
    """Key-encryption key of the quarantine: 32 bytes in hexadecimal in a file or a variable (`env:NAME`), or a key
    inside a token (`pkcs11:…`, RFC 7512)."""
    seed: SecretFile | None = None
    """What random detectors draw from, with the scan's digest: 32 bytes in hexadecimal; required once one draws."""
    retired_checkpoints: tuple[File, ...] = ()
    """Public halves of earlier checkpoint keys; they verify the records of their time."""
