"""Hands admitted scans on to a DICOM destination as they came, from a queue on disk: nobody waits for an answer."""

from __future__ import annotations

import ssl
import tempfile
import time
from pathlib import Path
from typing import IO, Protocol

from gateway.audit.log import AuditLog
from gateway.audit.record import Forwarded
from gateway.case import Case
from gateway.deadline import Deadline
from gateway.errors import ConfigError, UpstreamError
from gateway.settings.destinations import DestinationConfig
from gateway.store.custody import Custody, Parcel
from gateway.store.outbox import Outbox
from gateway.telemetry.metrics import Metrics
from gateway.upstreams.cstore import StoreSender
from gateway.upstreams.stow import StowSender
from gateway.verdict import Disposition, Verdict


class Sender(Protocol):
    """Sends one object; safe to call from many threads at once."""

    def send(self, file: IO[bytes]) -> None:
        """Send the DICOM file, its data set as it is; `file` has a descriptor, at any offset.

        Raises:
            UpstreamError: it was not taken now.
            NotTaken: it was not taken, and would not be another time.
        """

    def close(self) -> None:
        """Let go of connections."""


class DicomUpstream:
    """A destination as an upstream: what is admitted is on disk when `predict` returns, and sent after.

    A scan may be sent twice, where a crash comes between the destination's answer and the note of it: a DICOM
    instance is the same instance each time (SOP Instance UID), so an archive keeps it once.
    """

    def __init__(
        self,
        name: str,
        config: DestinationConfig,
        custody: Custody,
        *,
        audit: AuditLog,
        metrics: Metrics,
        directory: Path,
        retry_s: tuple[float, float] | None = None,
    ) -> None:
        """Open it; nothing is sent before `start`. Raises `ConfigError`.

        Args:
            name: of the destination, as configured.
            config: where it is.
            custody: holds what was not sent yet; closed by `close`.
            audit: told of each scan that was taken.
            metrics: told how many wait, and how long each took.
            directory: where a scan lies while it is sent.
            retry_s: see `Outbox`.
        """
        self._name = name
        self._audit = audit
        self._metrics = metrics
        self._directory = directory
        tls = _tls_context(name, config)
        self._sender: Sender = StowSender(config, tls) if config.stow_url else StoreSender(config, tls)
        options = {} if retry_s is None else {"retry_s": retry_s}
        self._outbox = Outbox(
            f"outbox-{name}", custody, self._hand_on, workers=config.senders, metrics=metrics, **options
        )

    @property
    def name(self) -> str:
        """The configured name."""
        return self._name

    @property
    def needs_image(self) -> bool:
        """See `upstream.Upstream.needs_image`."""
        return False

    @property
    def ready(self) -> bool:
        """Always: what is admitted waits on disk while the destination does not answer."""
        return True

    def start(self) -> None:
        """Begin to send."""
        self._outbox.start()

    def predict(self, case: Case, verdict: Verdict, _deadline: Deadline) -> None:
        """Keep the scan to be sent; see `upstream.Upstream.predict`."""
        if verdict.disposition is not Disposition.ADMIT or case.scan.elements is None:
            raise UpstreamError("only an object that was admitted as it came can be handed on as it came")
        facts = {"sha256": case.scan.sha256, "route": case.scan.route}
        self._outbox.put(case.scan.data, facts, key=case.scan.sha256)

    def close(self, after_s: float) -> None:
        """Give what is being sent that long; the rest waits for the next start."""
        self._outbox.close(after_s)
        self._sender.close()

    def _hand_on(self, parcel: Parcel) -> None:
        started, outcome = time.perf_counter(), "error"
        try:
            with tempfile.TemporaryFile(dir=self._directory) as file:  # without a name, gone with this process
                for chunk in parcel.chunks():
                    file.write(chunk)
                file.flush()
                self._sender.send(file)
            outcome = "ok"
        finally:
            self._metrics.upstream(self._name, outcome, time.perf_counter() - started)
        self._audit.append(Forwarded(parcel.facts["sha256"], parcel.facts["route"], self._name)).result()


def _tls_context(name: str, config: DestinationConfig) -> ssl.SSLContext | None:
    if config.tls is None:
        return None
    try:
        context = ssl.create_default_context(cafile=config.tls.roots)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if config.tls.certificate is not None:
            context.load_cert_chain(config.tls.certificate, config.tls.private_key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError([f"destinations.{name}.tls: cannot be used ({type(error).__name__})"]) from None
    return context
