"""Runs a command as a systemd unit would confine it: no capability, a disk it cannot write, the unit's system calls.

`unshare --mount python confined.py UNIT STATE_DIRECTORY COMMAND…`. What systemd does before it starts a service is done
here by hand, since no service manager runs where tests do: the filter is built from the unit's own lines, with the
groups of system calls as systemd lists them.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

_ALLOW, _ERRNO_EPERM = 0x7FFF0000, 0x00050001
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 24, 38
_CAPABILITIES = 64


def main(unit: str, state: str, *command: str) -> None:
    """Confine this process, then become the command."""
    mount("--bind", state, state)
    mount("-o", "remount,bind,ro", "/")
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in range(_CAPABILITIES):
        libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    assert libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    allow(allowed_calls(Path(unit).read_text()))
    os.execvp(command[0], command)  # noqa: S606 - that is its job


def allowed_calls(unit: str) -> set[str]:
    """The system calls that a unit's SystemCallFilter lines leave: the first list allows, a tilde takes away."""
    calls: set[str] = set()
    for line in unit.splitlines():
        if not line.startswith("SystemCallFilter="):
            continue
        value = line.partition("=")[2]
        named = {call for name in value.removeprefix("~").split() for call in calls_of(name)}
        calls = calls - named if value.startswith("~") else calls | named
    return calls


@cache
def calls_of(name: str) -> frozenset[str]:
    """A call's own name, or all the calls of a group."""
    if not name.startswith("@"):
        return frozenset({name})
    listing = subprocess.run(["systemd-analyze", "syscall-filter", name], capture_output=True, text=True, check=True)
    members = [line.strip() for line in listing.stdout.splitlines()[1:]]
    return frozenset(call for each in members if each and not each.startswith("#") for call in calls_of(each))


def allow(calls: set[str]) -> None:
    """Refuse every other call with EPERM, in this process and in what it becomes."""
    library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(_ERRNO_EPERM))
    for call in calls:
        number = library.seccomp_syscall_resolve_name(call.encode())
        if number >= 0:
            assert library.seccomp_rule_add(context, _ALLOW, number, 0) == 0, call
    assert library.seccomp_load(context) == 0


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
