"""Structured logs: one JSON object a line on stderr, made so that no patient data can reach them.

A line holds only keys of `ALLOWED`; any other is dropped and counted in `dropped`. The event is an identifier written
in our code. An exception is named by its type and by the places it passed, never by its message: messages of foreign
code quote values. Records of other libraries keep their logger, level and place, and lose their text.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
import traceback
from types import TracebackType
from typing import Any, Final, TextIO

import structlog
from structlog.typing import EventDict, WrappedLogger

ALLOWED: Final = frozenset(
    {
        "event", "level", "logger", "timestamp", "dropped", "error", "trace", "where",
        "scan_sha256", "receipt_sha256", "quarantine_id", "index", "size", "records", "count", "bytes", "seconds",
        "stage", "reason", "outcome", "disposition", "detector", "direction", "model",
        "artefact_sha256", "config_sha256", "trust", "trust_sha256",
        "route", "receiver", "source", "upstream", "queue", "batch", "setting", "status", "code",
        "address", "version", "device", "worker", "pid", "path", "signal", "problems", "refusal", "next_start_s",
        "permanent",
    }
)  # fmt: skip
"""Keys that may be logged. None ever holds a value of a scan's header: scans are named by digest."""

_EVENT = re.compile(r"[a-z][a-z0-9_]{0,63}")
_TEXT_MAX = 300
_FRAMES_MAX = 12

_Exception = tuple[type[BaseException], BaseException, TracebackType | None]


def configure(*, level: str = "info", stream: TextIO | None = None) -> None:
    """Send every log line of this process, ours and the libraries', through the one filter to `stream` (stderr)."""
    processors: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        name_exception,
        keep_allowed,
    ]
    structlog.configure(
        processors=[*processors, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream if stream is not None else sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[forget_foreign_text, *processors],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
            keep_exc_info=False,
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.captureWarnings(capture=True)
    logging.raiseExceptions = False  # a record that cannot be formatted would be printed whole
    sys.excepthook = _report
    threading.excepthook = lambda args: (
        _report(args.exc_type, args.exc_value, args.exc_traceback) if args.exc_value is not None else None
    )
    sys.unraisablehook = lambda args: (
        _report(args.exc_type, args.exc_value, args.exc_traceback) if args.exc_value is not None else None
    )


def keep_allowed(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Drop every key that is not in `ALLOWED`, count them, and bound what is left."""
    private = {key: event[key] for key in ("_record", "_from_structlog") if key in event}
    kept = {key: _bounded(value) for key, value in event.items() if key in ALLOWED}
    if not _EVENT.fullmatch(str(kept.get("event", ""))):
        kept["event"] = "unnamed_event"
    if dropped := len(event) - len(private) - len(kept):
        kept["dropped"] = dropped
    return {**kept, **private}


def name_exception(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Replace an exception by its type and the places it passed: no message, no locals, no source lines."""
    info = event.pop("exc_info", None)
    if info is True:
        info = sys.exc_info()
    if isinstance(info, BaseException):
        info = (type(info), info, info.__traceback__)
    if isinstance(info, tuple) and info[0] is not None:
        event.setdefault("error", info[0].__name__)
        event["trace"] = _places(info)
    return event


def forget_foreign_text(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Keep of another library's record who spoke and where, not what was said."""
    record: logging.LogRecord = event["_record"]
    kept: EventDict = {"event": "library_message", "where": f"{record.module}:{record.lineno}", "_record": record}
    if "_from_structlog" in event:
        kept["_from_structlog"] = event["_from_structlog"]
    if record.exc_info:
        kept["exc_info"] = record.exc_info
    return kept


def _bounded(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, list | tuple):
        return [_bounded(item) for item in value[:32]]
    return str(value)[:_TEXT_MAX]


def _places(info: _Exception) -> list[str]:
    frames = traceback.extract_tb(info[2], limit=-_FRAMES_MAX)
    return [f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno}:{frame.name}" for frame in frames]


def _report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What nothing caught: named like every other exception."""
    if issubclass(kind, KeyboardInterrupt | SystemExit):
        return
    structlog.get_logger(__name__).error("uncaught_exception", exc_info=(kind, error, trace))
