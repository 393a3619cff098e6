"""Run a program under the restrictions of a systemd unit: `python -m tests.deploy.confined UNIT COMMAND ...`.

A stand-in for systemd where it is not process 1. It applies to itself what systemd applies before it starts a service,
for the settings that a program can break on: system calls and address families by libseccomp, no memory that is
writable and executable, no capability, no new privileges, the unit's umask. Needs Linux 6.3, libseccomp and
systemd-analyze.
"""

from __future__ import annotations

import ctypes
import os
import re
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

# linux/prctl.h, seccomp.h
PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_SET_MDWE, REFUSE_EXEC_GAIN = 24, 38, 65, 1
ALLOW, ERRNO, EQUAL = 0x7FFF0000, 0x00050000, 4
EPERM = 1


class Comparison(ctypes.Structure):
    """The `struct scmp_arg_cmp`: the value with which an argument of a system call is compared."""

    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("value", ctypes.c_uint64),
        ("unused", ctypes.c_uint64),
    )


def unit_settings(unit: Path) -> dict[str, list[str]]:
    """Return the settings of a unit; a repeated setting has several values."""
    found: dict[str, list[str]] = {}
    for name, value in re.findall(r"^(\w+)=(.*)$", unit.read_text(encoding="utf-8"), re.MULTILINE):
        found.setdefault(name, []).append(value)
    return found


def system_calls(lines: Sequence[str]) -> set[str]:
    """Return the calls allowed by the values of `SystemCallFilter=`; the first value is a list of allowed calls."""
    text = subprocess.run(["systemd-analyze", "syscall-filter"], capture_output=True, text=True, check=True).stdout
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    groups: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith("@"):
            group = groups.setdefault(line.strip(), [])
        elif line.startswith(" ") and not line.strip().startswith("#"):
            group.append(line.strip())

    def expanded(name: str) -> set[str]:
        return set().union(*map(expanded, groups[name])) if name.startswith("@") else {name}

    allowed = expanded("@default")
    for line in lines:
        named = set().union(*map(expanded, line.removeprefix("~").split()))
        allowed = allowed - named if line.startswith("~") else allowed | named
    return allowed


def confine(unit: Path) -> None:
    """Give up for good what the unit forbids. Raises `OSError`."""
    given = unit_settings(unit)
    os.umask(int(given["UMask"][0], 8))
    calls = system_calls(given["SystemCallFilter"])
    families = [getattr(socket, name) for name in given["RestrictAddressFamilies"][0].split()]

    libc = ctypes.CDLL(None, use_errno=True)

    def control(*arguments: int) -> None:
        if libc.prctl(*map(ctypes.c_ulong, arguments), *[ctypes.c_ulong(0)] * (5 - len(arguments))):
            raise OSError(ctypes.get_errno(), f"prctl{arguments}")

    if os.geteuid() == 0 and given["CapabilityBoundingSet"] == [""]:
        for capability in range(int(Path("/proc/sys/kernel/cap_last_cap").read_text()) + 1):
            control(PR_CAPBSET_DROP, capability)
    if given["MemoryDenyWriteExecute"] == ["yes"]:
        control(PR_SET_MDWE, REFUSE_EXEC_GAIN)
    if given["NoNewPrivileges"] == ["yes"]:
        control(PR_SET_NO_NEW_PRIVS, 1)

    seccomp = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    seccomp.seccomp_init.restype = ctypes.c_void_p
    seccomp.seccomp_init.argtypes = [ctypes.c_uint32]
    seccomp.seccomp_load.argtypes = [ctypes.c_void_p]
    rule = seccomp.seccomp_rule_add_array
    rule.argtypes = [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p]
    context = seccomp.seccomp_init(ERRNO | EPERM)
    for name in calls - {"socket"}:
        number = seccomp.seccomp_syscall_resolve_name(name.encode())
        if number >= 0:  # the other calls belong to other architectures
            rule(context, ALLOW, number, 0, None)
    for family in families:
        compared = Comparison(0, EQUAL, family, 0)
        rule(context, ALLOW, seccomp.seccomp_syscall_resolve_name(b"socket"), 1, ctypes.byref(compared))
    if failed := seccomp.seccomp_load(context):
        raise OSError(-failed, "seccomp_load")


if __name__ == "__main__":
    confine(Path(sys.argv[1]))
    os.execv(sys.argv[2], sys.argv[2:])
