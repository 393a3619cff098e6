"""The fake broker: a test connects routes to it, and controls its streams, consumers and faults."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager
from math import inf
from urllib.parse import urlsplit

import trio

from router_trio.errors import AuthorizationError, LinkError, innermost, reasons
from router_trio.events import Event
from router_trio.link import FakeServer, LinkListener, ObservedRouter
from router_trio.protocol import ack_reply
from router_trio.protocol.framing import wire
from router_trio.protocol.headers import Headers, HeadersLike, encode
from router_trio.protocol.stream_config import StreamConfig
from router_trio.subjects.patterns import validate_pattern, validate_subject
from router_trio.testing.arrival import stored
from router_trio.testing.frames import Publish
from router_trio.testing.links import FakeLink
from router_trio.testing.machine import Machine
from router_trio.testing.network import Network
from router_trio.testing.routers import Routers
from router_trio.testing.server import DUPLICATE_WINDOW, Server
from router_trio.testing.streams import EPOCH, StoredMessage
from router_trio.testing.trouble import Trouble
from router_trio.testing.watch import PublishedMessage


class FakeBroker(FakeServer):
    """An in-memory NATS server with JetStream. `connect` is a `link.Connect`.

    All methods except `connect` and `stored` are synchronous and take effect immediately. Those that need the current
    time must be called inside `trio.run`. `down` keeps streams, consumers and permissions.

    A router that connects to it shows errors of handlers in full, with tracebacks, unless `handler_errors` is set.
    """

    def __init__(
        self,
        *,
        max_payload: int = 1024 * 1024,
        epoch: float = EPOCH,
    ) -> None:
        """`epoch` is the Unix time, in seconds, at which Trio's clock is 0 on this server: clocks of servers differ."""
        self.connect_attempts: int = 0
        """Number of attempts to connect, successful or not."""
        self._epoch = epoch
        self._server = Server(epoch)
        self._network = Network(self._server, max_payload=max_payload)
        self._machine = self.machine()
        self._routers = Routers(self._server)
        self.trouble: Trouble = Trouble(self._server, self._network)
        """Faults of the network, the server and its streams that last until they are ended."""
        self._is_down = False
        self._refuses_credentials = False

    def connect(self, server: str, inbox: bytes, listener: LinkListener) -> AbstractAsyncContextManager[FakeLink]:
        """Connect to this broker for any server URL, as `link.Connect` specifies.

        Blocks while the network is paused. Can be cancelled.
        """
        return self._open(self._machine, server, inbox, listener)

    def machine(self) -> Machine:
        """Return another machine, whose `connect` is a `link.Connect` to this broker, with faults of its own."""
        return Machine(self._network, self._open)

    @asynccontextmanager
    async def _open(
        self, machine: Machine, server: str, inbox: bytes, listener: LinkListener
    ) -> AsyncIterator[FakeLink]:
        self.connect_attempts += 1
        await machine.until_it_flows()
        where = _without_credentials(server)
        if self._is_down:
            raise LinkError(f"can't connect to {where}: the fake broker is down; call up() to start it")
        if self._refuses_credentials:
            raise AuthorizationError(f"{where} refused the credentials; call accept_credentials() to accept them")
        async with _open_link(self._network, FakeLink(self._network, machine, where, inbox, listener)) as link:
            yield link

    # --- routers ---

    def observing(self, router: ObservedRouter) -> AbstractContextManager[None]:
        """Return a context that lasts as long as a router runs, for `stored`. Routers enter it."""
        return self._routers.observing(router)

    def observe(self, event: Event) -> None:
        """Take note of an event of a router, for `stored`. Routers call it."""
        self._routers.observe(event)

    def wall_clock(self) -> float:
        """Return the Unix time by which routers that connect publish messages later, unless they have another clock."""
        return self._epoch + trio.current_time()

    # --- streams ---

    def add_stream(
        self,
        name: str,
        subjects: Iterable[str],
        *,
        duplicate_window: float = DUPLICATE_WINDOW,
        max_messages: int | None = None,
        fallback: bool = False,
        allow_message_schedules: bool = False,
    ) -> None:
        """Create a stream. `duplicate_window` is in seconds; a stream with `max_messages` refuses further messages.

        With `allow_message_schedules` it publishes messages later, as destinations with `delay` need.

        A `fallback` stream, which a real server does not have, stores only messages that no other stream takes. Its
        subjects may overlap with those of other streams.

        Raises `ValueError` if the name is taken or the subjects overlap with those of another stream.
        """
        config = StreamConfig(name, (), allow_message_schedules=True) if allow_message_schedules else None
        self._server.add_stream(
            name,
            subjects,
            duplicate_window=duplicate_window,
            max_messages=max_messages,
            fallback=fallback,
            config=config,
        )

    def delete_stream(self, name: str) -> None:
        """Delete a stream and its consumers. Raises `KeyError` if it does not exist."""
        self._server.delete_stream(name)

    def delete_consumer(self, stream: str, durable: str) -> None:
        """Delete a durable consumer and end its pull requests with a status. Raises `KeyError` if it does not exist."""
        self._server.delete_consumer(stream, durable)

    # --- state ---

    @property
    def published(self) -> list[PublishedMessage]:
        """The publishes accepted from links, in order, as (subject, headers, payload). Denied ones are not included."""
        return self._server.published

    @property
    def links(self) -> int:
        """The number of open links."""
        return len(self._network.links)

    def messages(self, stream: str) -> list[StoredMessage]:
        """Return the messages of a stream, in order. Raises `KeyError` if there is no such stream."""
        return self._server.streams[stream].messages()

    async def stored(self, stream: str, count: int = 1, *, within: float | None = None) -> list[StoredMessage]:
        """Wait until a stream has at least `count` messages, and return all of them, in order.

        Raises `AssertionError`, with what failed in the routers that are connected to this broker, if that takes longer
        than `within` seconds of the test's clock: by default 10, and 600 of a simulated clock, where they take no time.

        On a real clock it is raised as soon as nothing is left to wait for: a message failed, half a second has passed
        without progress, and every message is settled, or has failed three times for the same cause on a route that
        retries without end. The same if the router has ended.

        Can be cancelled.
        """
        __tracebackhide__ = True
        return await stored(self._server, self._routers, stream, count, within)

    def report(self) -> str:
        """Return what failed in the routers that are or were connected, and what their routes have done.

        For the text of an assertion, as in `assert condition, broker.report()`. Empty if no router was connected.
        """
        return "\n".join(self._routers.report())

    @property
    def has_failed_test(self) -> bool:
        """True if `stored` has raised `AssertionError`, whose text has the report."""
        return self._routers.are_reported

    def unacked(self, stream: str, durable: str) -> int:
        """Return the number of delivered, unacked messages of a consumer. Raises `KeyError` if it does not exist."""
        return len(self._server.consumers[stream, durable].left_unacked())

    # --- another client ---

    def publish(
        self, subject: str, payload: bytes = b"", headers: HeadersLike = None, *, reply: str | None = None
    ) -> None:
        """Publish as another client, which `down` and `blackhole` do not affect. Not included in `published`.

        A message with a reply subject below `$JS.ACK` is dropped, since only consumers may use one. Raises
        `SubjectError` or `PublishError` for an invalid subject or header.
        """
        validate_subject(subject)
        if reply is not None and reply.startswith(ack_reply.BEGINNING):
            return
        publish = Publish(wire(subject), wire(reply or ""), encode(Headers(headers)), payload)
        self._server.publish(publish, trio.current_time())
        self._network.settle()

    # --- faults ---

    def down(self) -> None:
        """End all links, and refuse to connect until `up`."""
        self._is_down = True
        self._network.resume()
        self.cut()

    def up(self) -> None:
        """End `down`, `blackhole` and `stall`. Data that a blackhole held back is delivered now, as over TCP."""
        self._is_down = False
        self._network.resume()

    def cut(self, server: str | None = None) -> None:
        """Break the links to this server (`host:port`), or all links. Reconnecting works."""
        for link in self._network.links.copy():
            if server is None or link.server == server:
                link.die(LinkError("the connection was cut"))

    def blackhole(self) -> None:
        """Silently hold back all data in both directions until `up`. Links stay open.

        Sent data fills a socket buffer; when that is full, sending blocks. Connecting blocks.
        """
        self._network.pause(inf)

    def stall(self, seconds: float) -> None:
        """Start a `blackhole` that ends after `seconds`."""
        self._network.pause(trio.current_time() + seconds)

    def refuse_credentials(self) -> None:
        """Raise `AuthorizationError` on each connect until `accept_credentials`. Open links stay open."""
        self._refuses_credentials = True

    def accept_credentials(self) -> None:
        """End `refuse_credentials`."""
        self._refuses_credentials = False

    def deny_publish(self, pattern: str) -> None:
        """Deny links to publish to subjects that match. Raises `SubjectError` for an invalid pattern."""
        validate_pattern(pattern)
        self._server.denied_publishes.append(pattern)

    def allow_publish(self, pattern: str) -> None:
        """End a `deny_publish` of this pattern. Raises `ValueError` if there was none."""
        self._server.denied_publishes.remove(pattern)

    def deny_subscribe(self, pattern: str) -> None:
        """Deny links to subscribe to subjects that match. Raises `SubjectError` for an invalid pattern."""
        validate_pattern(pattern)
        self._server.denied_subscriptions.append(pattern)

    def lame_duck(self) -> None:
        """Announce to all links that the server will shut down. Links stay open until `cut` or `down`."""
        for link in self._network.links:
            link.announce_lame_duck()

    def announce_servers(self, *servers: str) -> None:
        """Announce the servers of the cluster to all links, as `host:port`."""
        for link in self._network.links:
            link.announce_servers(list(servers))


@asynccontextmanager
async def _open_link(network: Network, link: FakeLink) -> AsyncIterator[FakeLink]:
    """Open a link. If it dies, the body is cancelled and the error is raised, unless the body raised another error."""
    network.links.append(link)
    if network.is_lame:
        link.announce_lame_duck()
    failure: BaseException | None = None
    try:
        with link.scope:
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(link.run)
                    try:
                        yield link
                    except (Exception, BaseExceptionGroup) as error:
                        failure = error
                    nursery.cancel_scope.cancel()
            finally:
                # Raised outside of the nursery, which would wrap it, or drop it if the nursery itself is cancelled.
                if failure is not None:
                    raise failure
    except (Exception, BaseExceptionGroup) as error:
        # An error of a task that used the dead link is the same as that of the link.
        if link.death is None or not isinstance(innermost(error, LinkError), LinkError):
            raise
    finally:
        death = link.death
        link.die(LinkError("it was closed", reason=reasons.CLOSED))
    if death is not None:
        raise death


def _without_credentials(server: str) -> str:
    """Return `host:port` of a server URL."""
    parts = urlsplit(server if "://" in server else f"nats://{server}")
    return f"{parts.hostname}:{parts.port or 4222}"
