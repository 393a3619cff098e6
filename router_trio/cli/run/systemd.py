"""Notify systemd of a service with `Type=notify`: ready, alive, stopping (sd_notify(3)).

Each is a small datagram to the socket that NOTIFY_SOCKET names; without that variable nothing is sent. Guarantees:
nothing here blocks or fails, whatever is at the other end. A datagram that is not taken, as when too many others wait
there, is let go: the next sign of life follows soon. But READY is sent until it is taken, since systemd ends a service
of which it does not hear that.
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import trio

from router_trio.errors.quotes import LONGEST_TEXT, excerpt, redact
from router_trio.events import Event, RouterDraining, RouteReady, RouteStandby

FULL_PAUSE = 0.1
"""Seconds after which READY is sent again, if the socket was full."""


class Systemd:
    """The way to systemd, if it has started this process. `hear` is told of events, `serving` runs beside a router.

    READY goes when every route has its subscription or consumer, or waits for the lead of one; until then STATUS says
    what is missing.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")
        if self._address.startswith("@"):
            self._address = "\0" + self._address[1:]  # a name in the abstract namespace of Linux
        self._watchdog = _watchdog_seconds(environ)
        self._moved = trio.Event()

    def hear(self, event: Event) -> None:
        """Take note of an event of the router."""
        if isinstance(event, RouteReady | RouteStandby):
            self.moved()
        elif isinstance(event, RouterDraining):
            self.notify("STOPPING=1", "STATUS=draining")

    def moved(self) -> None:
        """Record that what was waited for may be there."""
        self._moved.set()

    @asynccontextmanager
    async def serving(
        self, waiting_for: Callable[[], str | None], routes: Callable[[], int], alive: Callable[[], bool]
    ) -> AsyncIterator[None]:
        """Tell systemd how a router is while this is entered.

        `waiting_for` gives what is missing, None when it is ready; `routes` how many there are; `alive` is asked before
        each sign of life, of what is more than the loop that sends it.
        """
        if not self._address:
            yield
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tell, waiting_for, routes, alive)
            yield
            nursery.cancel_scope.cancel()

    def notify(self, *assignments: str) -> bool:
        """Send assignments such as `READY=1`, in one datagram. Never blocks and never fails.

        Returns False if there is no room for it now; True also if nobody is there to take it.
        """
        if not self._address:
            return True
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.setblocking(False)
                sender.sendto("\n".join(assignments).encode("utf-8", "backslashreplace"), self._address)
        except BlockingIOError:
            return False
        except (OSError, ValueError):
            pass  # it is gone: see above
        return True

    async def _tell(
        self, waiting_for: Callable[[], str | None], routes: Callable[[], int], alive: Callable[[], bool]
    ) -> None:
        told = None
        while (waiting := waiting_for()) is not None:
            status = f"STATUS=waiting: {excerpt(redact(waiting), LONGEST_TEXT)}"
            if status != told:
                self.notify(status)
                told = status
            self._moved = trio.Event()
            await self._moved.wait()
        while not self.notify("READY=1", f"STATUS=routing: {routes()} of {routes()} routes"):  # noqa: ASYNC110 - nothing tells when there is room
            await trio.sleep(FULL_PAUSE)
        if self._watchdog is None:
            return
        while True:
            # Twice in the time that systemd allows, and by the loop that routes: one that hangs is killed.
            if alive():
                self.notify("WATCHDOG=1")
            await trio.sleep(self._watchdog / 2)


def _watchdog_seconds(environ: Mapping[str, str]) -> float | None:
    """Return within how many seconds systemd wants a sign of life from this process; None if it wants none."""
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    try:
        microseconds = int(environ.get("WATCHDOG_USEC", "0"))
    except ValueError:
        return None
    return microseconds / 1e6 if microseconds > 0 else None
