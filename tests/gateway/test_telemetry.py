"""No patient data reaches a log line, whichever way it is written."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import gateway
from gateway.telemetry import logs

CANARY = "DOE^JANE-19700101"

_PREAMBLE = f"""
import logging, sys, threading, warnings
import structlog
from gateway.telemetry import logs
logs.configure()
CANARY = {CANARY!r}
log = structlog.get_logger("gateway.test")
"""


def _lines(script: str) -> list[dict[str, object]]:
    """What a process of its own logs: the configuration is the process's, so it is not this test's."""
    program = _PREAMBLE + textwrap.dedent(script)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == ""
    assert CANARY not in done.stderr
    return [json.loads(line) for line in done.stderr.splitlines()]


def test_a_line_is_json_with_the_allowed_keys():
    (line,) = _lines('log.info("scan_answered", scan_sha256="ab", seconds=0.5, disposition="admit")')
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "scan_answered",
        "level": "info",
        "logger": "gateway.test",
        "scan_sha256": "ab",
        "seconds": 0.5,
        "disposition": "admit",
    }


def test_a_key_that_is_not_allowed_is_dropped_and_counted():
    (line,) = _lines('log.info("scan_answered", patient_name=CANARY, PatientID=CANARY, stage="detection")')
    assert line["dropped"] == 2
    assert line["stage"] == "detection"


def test_an_event_that_is_not_an_identifier_is_dropped():
    (line,) = _lines('log.info(f"received scan of {CANARY}")')
    assert line["event"] == "unnamed_event"


def test_an_exception_is_named_by_type_and_place_never_by_message():
    (line,) = _lines("""
        def reader(value):
            raise ValueError(f"bad value {value}")
        try:
            reader(CANARY)
        except ValueError:
            log.exception("reader_failed")
    """)
    assert line["event"] == "reader_failed"
    assert line["error"] == "ValueError"
    assert any(place.endswith(":reader") for place in line["trace"])


def test_another_librarys_text_is_forgotten_and_its_place_kept():
    first, second, third = _lines("""
        other = logging.getLogger("grpc._server")
        other.error(f"Exception calling application: {CANARY}")
        other.warning("value %s", CANARY, extra={"scan_sha256": CANARY})
        try:
            raise KeyError(CANARY)
        except KeyError:
            other.exception("boom %s", CANARY)
    """)
    for line in (first, second, third):
        assert line["event"] == "library_message"
        assert line["logger"] == "grpc._server"
        assert line["where"].startswith("<string>:")
    assert (first["level"], second["level"]) == ("error", "warning")
    assert third["error"] == "KeyError"


def test_warnings_and_uncaught_exceptions_are_filtered_too():
    lines = _lines("""
        warnings.warn(f"deprecated for {CANARY}")
        def fails():
            raise RuntimeError(CANARY)
        thread = threading.Thread(target=fails)
        thread.start()
        thread.join()
        class Unraisable:
            def __del__(self):
                raise OSError(CANARY)
        Unraisable()
        raise LookupError(CANARY)
    """)
    assert [line["event"] for line in lines] == ["library_message"] + ["uncaught_exception"] * 3
    assert [line.get("error") for line in lines] == [None, "RuntimeError", "OSError", "LookupError"]


def test_a_long_value_is_cut():
    (line,) = _lines('log.info("config_wrong", path="x" * 5000)')
    assert len(line["path"]) == 300


def test_levels_below_the_configured_one_are_silent():
    assert _lines('log.debug("detail_seen", stage="signature")') == []


def test_every_key_that_our_code_logs_is_allowed():
    """A key that is dropped is a mistake of the code that wrote it, found here and not in an incident."""
    wrong = []
    for file in sorted(Path(gateway.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and _is_log(node.func.value):
                keys = {keyword.arg for keyword in node.keywords} - {"exc_info"}
                wrong += [f"{file.name}:{node.lineno} {key}" for key in keys - logs.ALLOWED]
    assert wrong == []


def _is_log(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "_log"
