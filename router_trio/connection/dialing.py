"""Attempts to connect, one after the other, until a server takes us: each is a session of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio

from router_trio.connection.attempts import Attempts
from router_trio.connection.listener import Listener
from router_trio.connection.session import Session, Source
from router_trio.connection.streams import Streams
from router_trio.errors import LinkError, UnexpectedError
from router_trio.events import Emit, UnexpectedLinkError
from router_trio.link import Connect
from router_trio.settings import ConnectionSettings


class Dialing:
    """Those of one connection. What it opens runs in the nursery that it is given."""

    def __init__(
        self,
        name: str,
        settings: ConnectionSettings,
        connect: Connect,
        listener: Listener,
        attempts: Attempts,
        emit: Emit,
        *,
        sources: Sequence[Source],
        streams: Streams,
        first_attempt_over: trio.Event,
        new_inbox: Callable[[], bytes],
        fenced: Callable[[float], None],
        progress: Callable[[], None],
    ) -> None:
        """`sources` are read when a link is there. `fenced` and `progress`: see `Session`."""
        self._name = name
        self._settings = settings
        self._connect = connect
        self._listener = listener
        self._attempts = attempts
        self._emit = emit
        self._sources = sources
        self._streams = streams
        self._first_attempt_over = first_attempt_over
        self._new_inbox = new_inbox
        self._fenced = fenced
        self._progress = progress

    async def establish(self, nursery: trio.Nursery) -> Session:
        """Try until a server takes us."""
        while True:
            attempt = self._attempts.next()
            await trio.sleep(attempt.delay)
            self._attempts.begins(attempt)
            session = await self._dial(attempt.server, nursery)
            if session.error is None:
                return session
            self._attempts.failed(attempt, session.error)
            self._listener.outbox.suspects.unreachable()
            self._first_attempt_over.set()
            self._attempts.end_of_round(attempt)

    async def _dial(self, server: str, nursery: trio.Nursery) -> Session:
        """One attempt: returns when it is connected or has failed. If cancelled, nothing of it is left."""
        session = Session(
            server,
            self._new_inbox(),
            self._listener.outbox,
            fenced=self._fenced,
            progress=self._progress,
            refused=self._listener.not_written,
            answers=self._listener.answers,
        )
        nursery.start_soon(self._run, session)
        try:
            await either(session.connected, session.ended)
        except BaseException:
            session.end()
            raise
        if session.ended.is_set() and session.error is None:
            session.error = LinkError("closed while connecting")
        return session

    async def _run(self, session: Session) -> None:
        await session.run(
            self._connect,
            self._listener,
            self._sources,
            first=[self._streams] if self._streams else (),
            connect_timeout=self._settings.connect_timeout,
            liveness_interval=self._settings.liveness_interval,
        )
        if isinstance(session.error, UnexpectedError):
            self._emit(
                UnexpectedLinkError(
                    at=trio.current_time(),
                    connection=self._name,
                    server=session.server,
                    error_type=session.error.error_type,
                    place=session.error.place,
                )
            )

    async def move_from(self, session: Session, nursery: trio.Nursery) -> Session | None:
        """Connect to another server while the old link still works. None if there is none, or none takes us."""
        self._attempts.lost(trio.current_time() - session.connected_at)  # as good as
        for attempt in self._attempts.elsewhere(session.server):
            await trio.sleep(attempt.delay)
            self._attempts.begins(attempt)
            successor = await self._dial(attempt.server, nursery)
            if successor.error is None:
                return successor
            self._attempts.failed(attempt, successor.error)
        return None


async def either(*events: trio.Event) -> None:
    """Returns when one of the events has happened."""
    async with trio.open_nursery() as race:
        for event in events:
            race.start_soon(cancel_when, event, race.cancel_scope)


async def cancel_when(event: trio.Event, scope: trio.CancelScope) -> None:
    """Cancel the scope when the event happens."""
    await event.wait()
    scope.cancel()
