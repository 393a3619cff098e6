"""Read the configuration of `router-trio run`, and refuse what can't run."""

from __future__ import annotations

import signal
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from router_trio.cli import outcome
from router_trio.cli.configuration import STDIN, load_with_handlers
from router_trio.errors import ConfigurationError, Problem

if TYPE_CHECKING:
    from router_trio.settings import Settings


def launch(
    config: Path,
    *more: Path,
    embedded_nats: bool = False,
    watch: bool = False,
    workers: int | None = None,
    enable_fault_injection: bool = False,
) -> int:
    """Run a router until a signal ends it, and return the exit code: see `run`, whose parameters these are."""
    early = _note_hangups()
    from_stdin = str(config) == STDIN
    watching = None
    if watch:
        if from_stdin:
            raise outcome.UsageError(
                "--watch has no file to look at, since the configuration comes from standard input; give the path of "
                "a file, or leave out --watch"
            )
        from router_trio.cli.reload.watching import content_of
        from router_trio.cli.reload.watching import watch as watch_files

        look = partial(content_of, [config, *more])
        # Looked at before it is loaded: what changes in between is seen as a change.
        watching = partial(watch_files, look, look())
    load = partial(load_with_handlers, config, *more, workers=workers)
    settings = load()
    if not embedded_nats:
        settings.require_servers()
    elif all(connection.servers for connection in settings.connections.values()):
        settings = settings.with_ignored(
            Problem(
                "--embedded-nats",
                "has nothing to do: every connection has servers of its own, and only one without is connected to the "
                "embedded server; leave out the option, or the servers",
            )
        )
    if enable_fault_injection:
        settings.require_loopback("--enable-fault-injection lets anyone who reaches it make the router fail")
    import trio

    again = _refuse_to_load_again if from_stdin else load
    if settings.router.workers > 1:
        if enable_fault_injection:
            raise outcome.UsageError("--enable-fault-injection is for one process: give --workers 1 with it")
        from router_trio.cli.workers.serving import serve_workers

        return trio.run(serve_workers, again, settings, embedded_nats, watching, early)
    from router_trio.cli.service.last_resort import end_without_threads
    from router_trio.cli.serving import serve

    code = trio.run(
        serve,
        again,
        settings,
        embedded_nats,
        enable_fault_injection,
        watching,
        early,
    )
    return end_without_threads(code)


def _refuse_to_load_again() -> Settings:
    """Raise ConfigurationError: what standard input held was read at the start, and there is no more."""
    told = (
        "settings from standard input can't be read again; end the router and run it with the new ones, or run it with "
        "the path of a file, which a reload reads"
    )
    raise ConfigurationError([Problem("", told)], STDIN)


def _note_hangups() -> list[int]:
    """Let SIGHUP end nothing from now on, and note it in the list that is returned: it is for who serves."""
    noted: list[int] = []
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        with suppress(ValueError):  # not in the main thread, which no signal reaches
            signal.signal(signal.SIGHUP, lambda number, _: noted.append(number))
    return noted
