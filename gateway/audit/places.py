"""Finds an audit log by what a command or a configuration calls it: a file, or a connection string."""

from __future__ import annotations

from pathlib import Path

from gateway.audit.sinks import AuditSink, LogReader
from gateway.audit.sqlite import SqliteReader, SqliteSink
from gateway.errors import AuditError, ConfigError

_SCHEMES = ("postgresql://", "postgres://")
_NOT_INSTALLED = "PostgreSQL needs what pip install 'scanward[postgres]' brings"


def open_reader(place: str) -> LogReader:
    """Read a log: `place` is a file, or a libpq connection string.

    Raises:
        AuditError: there is no log of this version, or it cannot be read.
    """
    if not (place.startswith(_SCHEMES) or ("=" in place and not Path(place).exists())):
        return SqliteReader(Path(place))
    try:
        from gateway.audit.postgres import PostgresReader  # noqa: PLC0415 - an extra that few installations have
    except ImportError:
        raise AuditError(_NOT_INSTALLED) from None
    return PostgresReader(place)


def open_sink(file: Path, dsn_file: Path | None) -> AuditSink:
    """Write the log at `file`, or in the database that `dsn_file` holds the connection string of.

    Raises:
        ConfigError: it cannot be opened, or another process writes the file.
    """
    if dsn_file is None:
        return SqliteSink(file)
    try:
        from gateway.audit.postgres import PostgresSink  # noqa: PLC0415 - an extra that few installations have
    except ImportError:
        raise ConfigError([f"audit.postgres: {_NOT_INSTALLED}"]) from None
    try:
        dsn = dsn_file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError):
        raise ConfigError([f"audit.postgres: {dsn_file} cannot be read as text"]) from None
    return PostgresSink(dsn)
