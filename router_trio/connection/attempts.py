"""The attempts of one connection to connect: chooses the next one, counts and reports each, and evaluates its result.

Pure except for `emit`, `clock` and `uniform`, which are passed in. The supervisor waits and dials, and reports the
result here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from router_trio.connection.backoff import Attempt, ReconnectPlan
from router_trio.errors import AuthorizationError, CertificateError, ConnectionExhaustedError, LinkError
from router_trio.events import ConnectionFailed, Emit, ReconnectAttempt, ReconnectExhausted
from router_trio.settings import ConnectionSettings
from router_trio.states import DISCONNECTED, ConnectionState


class Attempts:
    """Count, emit and evaluate the attempts of one connection. The very first one is not a reconnect."""

    def __init__(
        self,
        settings: ConnectionSettings,
        state: ConnectionState,
        *,
        emit: Emit,
        clock: Callable[[], float],
        uniform: Callable[[float, float], float],
        refusal_ends: bool = True,
    ) -> None:
        """With `refusal_ends` the router ends if a server refuses before there has been a link."""
        self._refusal_ends = refusal_ends
        self._state = state
        self._emit = emit
        self._clock = clock
        self._on_exhausted = settings.on_reconnect_exhausted
        self._first_over = False
        self._ignore_announced = settings.ignore_announced
        self._plan = ReconnectPlan(
            [str(server) for server in settings.servers],
            attempts=settings.reconnect_attempts,
            base=settings.reconnect_delay,
            maximum=settings.max_reconnect_delay,
            stable_after=settings.liveness_interval,
            uniform=uniform,
            tls=settings.tls_demanded_by is not None,
        )

    # --- choosing ---

    def next(self) -> Attempt:
        """Return the next attempt, with its delay."""
        return self._plan.next(self._clock())

    def elsewhere(self, server: str, failed_passes: int = 0) -> Iterator[Attempt]:
        """Yield an attempt for each other server, with its delay, as `ReconnectPlan.elsewhere` does."""
        return self._plan.elsewhere(server, failed_passes)

    def discovered(self, servers: Sequence[str]) -> None:
        """Also try servers announced by another server, unless the settings disable that."""
        if not self._ignore_announced:
            self._plan.set_discovered(servers)

    # --- results ---

    def begins(self, attempt: Attempt) -> None:
        """Count and emit that a reconnect attempt starts."""
        if not self._first_over:
            return
        self._state.reconnect_begins()
        self._emit(
            ReconnectAttempt(
                at=self._clock(),
                connection=self._state.name,
                server=attempt.server,
                attempt=attempt.number,
                max_attempts=self._plan.attempts_of_round,
                delay_ms=round(attempt.delay * 1000),
            )
        )

    def succeeded(self, server: str) -> int:
        """Record that an attempt produced a link. Returns the number of failed attempts before it."""
        self._first_over = True
        self._plan.connected(server)
        return self._state.attempt_succeeded()

    def failed(self, attempt: Attempt, error: LinkError) -> None:
        """Record that an attempt failed.

        Raises `AuthorizationError` or `CertificateError` if there has never been a link, since that is a mistake to
        correct. Does not raise if the router continues without this connection.
        """
        state = self._state
        state.attempt_failed(str(error), reconnect=self._first_over)
        self._first_over = True
        self._emit(
            ConnectionFailed(
                at=self._clock(),
                connection=state.name,
                server=attempt.server,
                reason=error.reason,
                detail=str(error),
                attempt=attempt.number,
                max_attempts=self._plan.attempts_of_round,
            )
        )
        if self._refusal_ends and isinstance(error, AuthorizationError | CertificateError) and not state.established:
            raise type(error)(f"connection {state.name!r} to {attempt.server}: {error}") from error

    def lost(self, lasted: float) -> None:
        """Record the loss of a link that lasted for `lasted` seconds."""
        self._plan.lost(lasted, self._clock())

    def end_of_round(self) -> None:
        """Start the next round if the failed attempt was the last of its round.

        Raises `ConnectionExhaustedError` with `on_reconnect_exhausted = "stop"`.
        """
        if not self._plan.exhausted:
            return
        state = self._state
        state.attempts_exhausted()
        self._emit(
            ReconnectExhausted(
                at=self._clock(),
                connection=state.name,
                reconnect_attempts=self._plan.made,
                action=self._on_exhausted,
            )
        )
        if self._on_exhausted == "stop":
            state.enter(DISCONNECTED)
            raise ConnectionExhaustedError(
                f"connection {state.name!r}: {self._plan.made} attempts failed, the last one: {state.last_error} "
                '(on_reconnect_exhausted = "stop")'
            )
        self._plan.new_round()
