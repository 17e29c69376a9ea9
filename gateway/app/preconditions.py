"""What must be so on this machine before the gateway begins: files to open, and no other owner of its import names."""

from __future__ import annotations

import resource
from importlib.metadata import packages_distributions

from gateway.errors import ConfigError

DISTRIBUTION = "scanward"

_OWN_PACKAGES = ("gateway", "detectors", "signing", "lab")
_DESCRIPTORS_OF_OUR_OWN = 1024
"""Files, pipes and sockets beside the connections of callers."""


def allow_descriptors(connections: int) -> None:
    """Let this process open a file for each connection and some for itself: without them the log could not be written.

    Raises:
        ConfigError: the system does not allow so many.
    """
    wanted = connections + _DESCRIPTORS_OF_OUR_OWN
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (ValueError, OSError) as error:
            raise ConfigError(
                [f"receivers.grpc.connections_max: {wanted} files would be open, and the system allows {hard}"]
            ) from error


def refuse_foreign_owners() -> None:
    """The import names are plain words: another distribution that owns one would be run in our place.

    Raises:
        ConfigError: names the distribution.
    """
    owners = packages_distributions()
    problems = [
        f"the package {name!r} belongs to {other} as well: uninstall it"
        for name in _OWN_PACKAGES
        for other in owners.get(name, ())
        if other.lower() != DISTRIBUTION
    ]
    if problems:
        raise ConfigError(problems)
