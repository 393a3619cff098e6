"""`[[routes.to]]`: where a route sends, and what its copies contain."""

from __future__ import annotations

from router_trio.settings.retry import DeadLetterSettings, RetryScheduleSettings
from router_trio.settings.routes.destinations.bucket import BUCKET
from router_trio.settings.routes.destinations.core import CORE
from router_trio.settings.routes.destinations.delayed import DELAYED
from router_trio.settings.routes.destinations.jetstream import JETSTREAM
from router_trio.settings.routes.destinations.keys import DestinationKeys
from router_trio.settings.routes.destinations.kind import DestinationKind
from router_trio.settings.routes.sources.kind import SourceKind


class DestinationSettings(DestinationKeys, init=False):
    """`[[routes.to]]`: where a route sends."""

    def kind_for(self, source: SourceKind) -> DestinationKind:
        """Return its kind in a route from this kind of source: stored messages are by default sent to a stream."""
        if self.bucket is not None:
            return BUCKET
        if not self.waits_for_puback(source.is_stored):
            return CORE
        return JETSTREAM if self.delay is None else DELAYED

    def waits_for_puback(self, from_stream: bool) -> bool:
        """Return True for a JetStream publish: the value of `jetstream`, by default if the source is a stream."""
        return from_stream if self.jetstream is None else self.jetstream


def destination_of(letter: DeadLetterSettings, connection: str) -> DestinationSettings:
    """Return the destination of dead letters. `connection` is the default for `DeadLetterSettings.connection`."""
    return DestinationSettings(
        connection=letter.connection or connection,
        subject=letter.subject,
        jetstream=letter.jetstream,
        stream=letter.stream,
    )


def retries_of(schedule: RetryScheduleSettings, route: str, connection: str) -> DestinationSettings:
    """Return the destination of scheduled retries of a route. `connection` is that of its source."""
    names = schedule.names(route)
    return DestinationSettings(
        connection=connection,
        subject=names.target,
        jetstream=True,
        stream=schedule.stream,
        delay="0s",  # each schedule has its own
        schedule_prefix=names.schedules,
    )
