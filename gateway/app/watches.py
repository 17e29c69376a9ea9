"""What is seen to while it serves, each in a thread of its own: revocation files, old scans, heat maps, the log."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

import structlog

from gateway.app.assembly import Records
from gateway.app.plan import Plan
from gateway.app.trusted import revocation_files
from gateway.audit.tending import tending
from gateway.heat_maps import HeatMaps, Wanted
from gateway.review import Review

_MATERIAL_LOOK_S = 2.0
"""How often revocation files are looked at."""
_EXPIRY_LOOK_S = 60.0
"""How often the quarantine is looked through for what is too old."""

_WANTED_LOOK_S = 0.5
"""How long at most the end of the process waits for the one who draws, if he does nothing."""

_log = structlog.get_logger(__name__)


class MaterialWatch:
    """Looks at revocation files from a thread of its own, so that a slow disk delays nobody, and tells of changes."""

    def __init__(self, plan: Callable[[], Plan], tell: Callable[[], None]) -> None:
        """`plan`: what serves now; `tell` is called once for each state of the files that is not the plan's."""
        self._plan = plan
        self._tell = tell
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="material-watch", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()

    def _run(self) -> None:
        told = None
        while not self._stop.wait(_MATERIAL_LOOK_S):
            plan = self._plan()
            now = {name: revocation_files(config) for name, config in plan.config.trust.policies.items()}
            if now != told and any(seen != plan.trusts[name].seen for name, seen in now.items()):
                told = now  # once, so that a file that cannot be read is not read again and again
                self._tell()


class Expiry:
    """Removes from the quarantine what is too old, from a thread of its own."""

    def __init__(self, review: Callable[[], Review]) -> None:
        """`review` is asked for at each look, so that a reload reaches the next one."""
        self._review = review
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="expiry", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()  # what it removes must be on record, and the log is closed after this

    def _run(self) -> None:
        while True:
            if count := self._review().expire():
                _log.info("quarantine_expired", count=count)
            if self._stop.wait(_EXPIRY_LOOK_S):
                return


class Draughtsman:
    """Draws the maps of held scans one after the other, from a thread of its own."""

    def __init__(self, wanted: Wanted, heat_maps: Callable[[], HeatMaps]) -> None:
        """`heat_maps` is asked for at each scan, so that a reload reaches the next one."""
        self._wanted = wanted
        self._heat_maps = heat_maps
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="draughtsman", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()  # a map in hand may be lost: it is drawn when somebody asks

    def _run(self) -> None:
        while not self._stop.is_set():
            if (identity := self._wanted.take(_WANTED_LOOK_S)) is not None:
                self._heat_maps().draw_wanted(identity)


def tend(plan: Plan, records: Records) -> AbstractContextManager[None]:
    """Do for the block what the configuration says is done with the log; raises `ConfigError` when it is entered."""
    dimse = plan.config.receivers.dimse
    return tending(
        plan.config.audit,
        records.audit,
        keys=plan.keys.checkpoints,
        directory=plan.config.storage.directory,
        ae_titles=() if dimse is None else tuple(dimse.routes),
        metrics=records.metrics,
    )
