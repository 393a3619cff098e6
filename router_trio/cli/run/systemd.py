"""Report the state of a service with `Type=notify` to systemd: ready, alive, stopping (sd_notify(3)).

Each notification is a small datagram to the socket that NOTIFY_SOCKET names; without that variable nothing is sent.
Guarantees: nothing here blocks or fails, even if nothing reads the socket. A datagram that does not fit into the queue
of the socket is dropped: the next keep-alive follows soon. Only READY is repeated until it is accepted, since systemd
ends a service that does not become ready.
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
"""Seconds after which READY is sent again if the queue of the socket was full."""


class Systemd:
    """Notifies systemd, if it has started this process. `observe` receives events, `serving` runs beside a router.

    READY is sent when every route has its subscription or consumer, or is on standby. Until then STATUS contains what
    is missing.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")
        if self._address.startswith("@"):
            self._address = "\0" + self._address[1:]  # a name in the abstract namespace of Linux
        self._watchdog = _watchdog_seconds(environ)
        self._changed = trio.Event()

    def observe(self, event: Event) -> None:
        """Process an event of the router."""
        if isinstance(event, RouteReady | RouteStandby):
            self.state_changed()
        elif isinstance(event, RouterDraining):
            self.notify("STOPPING=1", "STATUS=draining")

    def state_changed(self) -> None:
        """Check again whether the router is ready."""
        self._changed.set()

    @asynccontextmanager
    async def serving(
        self, waiting_for: Callable[[], str | None], routes: Callable[[], int], alive: Callable[[], bool]
    ) -> AsyncIterator[None]:
        """Notify systemd of the state of a router inside the context.

        `waiting_for` returns what is missing, or None when the router is ready; `routes` returns the number of routes;
        `alive` is called before each keep-alive, and returns False if something other than this event loop hangs.
        """
        if not self._address:
            yield
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._notify_until_cancelled, waiting_for, routes, alive)
            yield
            nursery.cancel_scope.cancel()

    def notify(self, *assignments: str) -> bool:
        """Send assignments such as `READY=1` in one datagram. Never blocks and never fails.

        Returns False only if the queue of the socket is full: True also if nothing reads the socket.
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
            pass  # nothing reads the socket: see the guarantees
        return True

    async def _notify_until_cancelled(
        self, waiting_for: Callable[[], str | None], routes: Callable[[], int], alive: Callable[[], bool]
    ) -> None:
        sent = None
        while (waiting := waiting_for()) is not None:
            status = f"STATUS=waiting: {excerpt(redact(waiting), LONGEST_TEXT)}"
            if status != sent:
                self.notify(status)
                sent = status
            self._changed = trio.Event()
            await self._changed.wait()
        while not self.notify("READY=1", f"STATUS=routing: {routes()} of {routes()} routes"):  # noqa: ASYNC110 - no event reports that the queue has room
            await trio.sleep(FULL_PAUSE)
        if self._watchdog is None:
            return
        while True:
            # Twice within the time that systemd allows, and by the event loop that routes: if it hangs, it is killed.
            if alive():
                self.notify("WATCHDOG=1")
            await trio.sleep(self._watchdog / 2)


def _watchdog_seconds(environ: Mapping[str, str]) -> float | None:
    """Return the seconds within which systemd requires a keep-alive of this process; None if it requires none."""
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    try:
        microseconds = int(environ.get("WATCHDOG_USEC", "0"))
    except ValueError:
        return None
    return microseconds / 1e6 if microseconds > 0 else None
