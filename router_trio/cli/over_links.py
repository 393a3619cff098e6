"""Run the job of a command over links of its own, until it is done or interrupted by a signal."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping

import trio

from router_trio.cli.command_line import INTERRUPTED, UsageError
from router_trio.cli.signals import run_with_signals
from router_trio.errors import SourceError, reasons
from router_trio.nats.command_link import CommandLink, open_links
from router_trio.settings import Settings

Job = Callable[[Mapping[str, CommandLink]], Awaitable[int]]
"""Does the work over the links, by connection, and returns the exit code."""


async def over_links(
    settings: Settings,
    command: str,
    names: Iterable[str],
    job: Job,
    cancel_at: Callable[[int], bool],
    unreachable: dict[str, str] | None = None,
) -> int:
    """Open the links, run the job, and return its exit code; `INTERRUPTED` if a signal has cancelled it.

    `cancel_at(n)` is called on the n-th signal, and returns True if the job is to be cancelled. The links stay open
    until the job has ended, so that it can clean up on a server; the next such signal cancels them as well.
    `unreachable` is that of `open_links`. Raises `LinkError`, and what the job raises.
    """
    around_links, around_job = trio.CancelScope(), trio.CancelScope()
    has_begun, code = False, INTERRUPTED

    def on_signal(number: int) -> None:
        if cancel_at(number):
            ends_job = has_begun and not around_job.cancel_called
            (around_job if ends_job else around_links).cancel()

    failure: OSError | UsageError | None = None

    async def work() -> None:
        nonlocal has_begun, code, failure
        try:
            with around_links:
                async with open_links(settings, command, names, unreachable) as links:
                    has_begun = True
                    with around_job:
                        try:
                            code = await job(links)
                        except SourceError as error:
                            raise _with_cure(error, command) from error
        except (OSError, UsageError) as error:
            failure = error  # raised outside of the nurseries, which would wrap it in an exception group

    await run_with_signals(work, on_signal)
    if failure is not None:
        raise failure
    return code


def _with_cure(error: SourceError, command: str) -> SourceError:
    """Return an error that names where the permissions of a command are, if one is missing."""
    if error.reason != reasons.PERMISSION_DENIED:
        return error
    return SourceError(f"{error}; {permissions_of(command)}", reason=error.reason)


def permissions_of(command: str) -> str:
    """Return what prints the permissions of a command, for the user that lacks one."""
    return f"`router-trio permissions CONFIG --for {command}` prints what the user of the command needs"
