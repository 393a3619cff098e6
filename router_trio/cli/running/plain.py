"""The command line of a router that is started: `run`, files, and flags."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

FLAGS = ("--embedded-nats", "--watch", "--enable-fault-injection")


class PlainRun(NamedTuple):
    """What `run` is called with."""

    files: list[Path]
    embedded_nats: bool
    watch: bool
    enable_fault_injection: bool


def plain_run(arguments: Sequence[str]) -> PlainRun | None:
    """Return what `run` is called with, or None if the command line has anything but names of files and flags.

    Fast path of `application.command`; held equal by tests/unit/cli/test_plain_run.py, worth the import of cyclopts
    (test_start.py::test_what_waits_is_not_imported_before_the_first_route_is_subscribed).
    """
    if not arguments or arguments[0] != "run":
        return None
    given = arguments[1:]
    files = [Path(one) for one in given if one not in FLAGS]
    # Help, a mistake, standard input, a flag that is given twice: all that has a text of its own.
    if any(not one or one.startswith("-") for one in given if one not in FLAGS) or len(given) > len({*given}):
        return None
    return PlainRun(files, *(flag in given for flag in FLAGS))
