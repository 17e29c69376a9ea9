"""An acknowledged record is there after any crash."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import textwrap

from gateway.audit.verify import export_jsonl, verify

KILLS = 10


_APPENDER = """
    import sys, threading
    from dataclasses import dataclass
    from pathlib import Path
    from typing import ClassVar
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from gateway.audit.log import AuditLog
    from gateway.audit.sinks import SqliteSink
    from gateway.metrics import Metrics

    @dataclass(frozen=True)
    class Note:
        kind: ClassVar[str] = "note"
        text: str
        def facts(self):
            return {"text": self.text}

    path, run = Path(sys.argv[1]), sys.argv[2]
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    log = AuditLog(
        SqliteSink(path), key, metrics=Metrics(), checkpoint_file=path.with_suffix(".checkpoint"), checkpoint_records=50
    )
    lock = threading.Lock()
    def write(thread):
        for number in range(10**9):
            text = f"{run}-{thread}-{number}"
            place = log.append(Note(text)).result()
            with lock:
                sys.stdout.write(f"{place} {text}\\n")
                sys.stdout.flush()
    for thread in range(8):
        threading.Thread(target=write, args=(thread,), daemon=True).start()
    threading.Event().wait()
"""


def test_every_acknowledged_record_survives_kill_9(audit_path, checkpoint_key):
    """8 appends are in flight at each kill; what the process said was durable is there, in its place."""
    acknowledged: dict[int, str] = {}
    for run in range(KILLS):
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(_APPENDER), str(audit_path), str(run)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        for seen, line in enumerate(process.stdout, start=1):
            if line.endswith("\n") and len(parts := line.split()) == 2:
                acknowledged[int(parts[0])] = parts[1]
            if seen == 60 + 37 * run:
                process.send_signal(signal.SIGKILL)  # what it still wrote before it died is read to the end
        process.wait()
        assert process.returncode == -signal.SIGKILL
    report = verify(audit_path, [checkpoint_key.public_key()], audit_path.with_suffix(".checkpoint").read_bytes())
    assert report.ok, report.detail
    out = io.StringIO()
    export_jsonl(audit_path, out)
    texts = {(line := json.loads(row))["index"]: line["record"]["text"] for row in out.getvalue().splitlines()}
    assert len(acknowledged) > 60 * KILLS
    assert {index: texts.get(index) for index in acknowledged} == acknowledged
    assert len(set(texts.values())) == len(texts)
