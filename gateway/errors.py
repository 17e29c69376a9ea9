"""What can go wrong when a scan cannot be examined or answered; an unwelcome verdict is not an error.

GatewayError
├── ScanError       the call itself is wrong: the same bytes will fail again
│   ├── NotHeld     no scan of that id is in quarantine
│   ├── Settled     where the scan stands, or the configuration, does not allow it
│   └── TooLarge    the object is larger than any that is taken
├── Overloaded      no room now: the sender may try again
│   └── Unkept      the scan was decided about, and there was no room to hold it or to hand it on
├── Abandoned       nobody waits for the answer any more
├── UpstreamError   the protected model did not answer
│   └── NotTaken    and never will for this scan
├── AuditError      the record could not be made durable, so nothing may leave
└── ConfigError     the configuration cannot be served

`receivers/status.py` maps each to gRPC, HTTP and DIMSE. No message holds a header value of a scan.
"""

from __future__ import annotations


class GatewayError(Exception):
    """Root of the gateway's errors; `permanent` says whether the same call will fail again."""

    permanent = False
    retry_after_s: float | None = None
    """When the same call may be worth repeating, where that is known."""


class ScanError(GatewayError):
    """The call cannot be examined as it was made, and repeating it cannot help."""

    permanent = True


class TooLarge(ScanError):  # noqa: N818 - a state, like the status it becomes
    """The object is larger than any that is taken."""


class NotHeld(ScanError):  # noqa: N818 - a state, like the status it becomes
    """No scan of that id is in quarantine, or none that the caller may know of."""

    def __init__(self) -> None:
        super().__init__("no scan of this id is held")


class Settled(ScanError):  # noqa: N818 - as above
    """What is asked of a held scan does not go with what was decided about it, or with the configuration."""


class Overloaded(GatewayError):  # noqa: N818 - the word of the status table
    """A queue, a byte budget or the disk is full; the sender may repeat the call later."""

    retry_after_s: float

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unkept(Overloaded):
    """A scan that was to be held or handed on could not be put on disk; that is on record, nothing acknowledged."""


class Abandoned(GatewayError):  # noqa: N818 - a state, as above
    """The caller has gone or its deadline has passed; the scan was not examined, and is neither decided nor held."""


class UpstreamError(GatewayError):
    """The protected model failed or did not answer in time; the verdict stands, the prediction is missing."""

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NotTaken(UpstreamError):  # noqa: N818 - a state, as above
    """A destination does not take this scan, and would not another time."""

    permanent = True


class AuditError(GatewayError):
    """A record was not made durable; without it no prediction leaves and nothing is acknowledged."""


class ConfigError(GatewayError):
    """The configuration is wrong; `problems` names every mistake by its key."""

    permanent = True

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems
