"""The fake broker: what a test of routes connects to, and turns the screws of."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from math import inf
from urllib.parse import urlsplit

import trio

from router_trio.errors import AuthorizationError, LinkError, innermost, reasons
from router_trio.link import LinkListener
from router_trio.protocol import ack_reply
from router_trio.protocol.framing import wire
from router_trio.protocol.headers import Headers, HeadersLike, encode
from router_trio.subjects.patterns import validate_pattern, validate_subject
from router_trio.testing.frames import Publish
from router_trio.testing.links import FakeLink
from router_trio.testing.network import Network
from router_trio.testing.server import DUPLICATE_WINDOW, Server
from router_trio.testing.streams import EPOCH, StoredMessage
from router_trio.testing.trouble import Trouble
from router_trio.testing.watch import PublishedMessage


class FakeBroker:
    """An in-memory NATS server with JetStream. `connect` is a `link.Connect`.

    Every method that changes something is a plain function and takes effect at once; those that need the time must be
    called inside `trio.run`. Streams, consumers and permissions survive `down`.
    """

    def __init__(
        self,
        *,
        max_payload: int = 1024 * 1024,
        epoch: float = EPOCH,
    ) -> None:
        """`epoch` is what the zero of Trio's clock is on this server, in Unix seconds: clocks of servers differ."""
        self.connect_attempts: int = 0
        """How often somebody tried to connect, with or without success."""
        self._server = Server(epoch)
        self._network = Network(self._server, max_payload=max_payload)
        self.trouble: Trouble = Trouble(self._server, self._network)
        """Faults of the server and its streams that last."""
        self._is_down = False
        self._refuses_credentials = False

    @asynccontextmanager
    async def connect(self, server: str, inbox: bytes, listener: LinkListener) -> AsyncIterator[FakeLink]:
        """Connect to this broker, whatever the server URL, as `link.Connect` says.

        Blocks while nothing gets through; can be cancelled then.
        """
        self.connect_attempts += 1
        await self._network.until_it_flows()
        where = _without_credentials(server)
        if self._is_down:
            raise LinkError(f"can't connect to {where}: the fake broker is down; up() brings it back")
        if self._refuses_credentials:
            raise AuthorizationError(f"{where} refused the credentials; accept_credentials() lets them in again")
        async with _open_link(self._network, where, inbox, listener) as link:
            yield link

    # --- streams ---

    def add_stream(
        self,
        name: str,
        subjects: Iterable[str],
        *,
        duplicate_window: float = DUPLICATE_WINDOW,
        max_messages: int | None = None,
        fallback: bool = False,
    ) -> None:
        """Create a stream. `duplicate_window` is in seconds; with `max_messages` it refuses what would be more.

        A `fallback`, which no real server has, takes what no other stream takes: its subjects may overlap with theirs.

        Raises `ValueError` if the name is taken or the subjects overlap with those of another stream.
        """
        self._server.add_stream(
            name, subjects, duplicate_window=duplicate_window, max_messages=max_messages, fallback=fallback
        )

    def delete_stream(self, name: str) -> None:
        """Delete a stream and its consumers. Raises `KeyError` if there is none of that name."""
        self._server.delete_stream(name)

    def delete_consumer(self, stream: str, durable: str) -> None:
        """Delete a durable consumer; who waits for its messages gets a status. Raises `KeyError` if there is none."""
        self._server.delete_consumer(stream, durable)

    # --- what happened ---

    @property
    def published(self) -> list[PublishedMessage]:
        """The publishes that it accepted from links, in order, as (subject, headers, payload), without denied ones."""
        return self._server.published

    @property
    def links(self) -> int:
        """The number of open links."""
        return len(self._network.links)

    def messages(self, stream: str) -> list[StoredMessage]:
        """Return the messages of a stream, in order. Raises `KeyError` if there is no such stream."""
        return self._server.streams[stream].messages()

    def unacked(self, stream: str, durable: str) -> int:
        """Messages of a consumer that were delivered and not acked. Raises `KeyError` if there is no such consumer."""
        return len(self._server.consumers[stream, durable].left_unacked())

    # --- another client ---

    def publish(
        self, subject: str, payload: bytes = b"", headers: HeadersLike = None, *, reply: str | None = None
    ) -> None:
        """Publish as another client would, whom neither `down` nor `blackhole` touches. Not in `published`.

        Nothing is published with a reply subject below `$JS.ACK`, as only consumers may have one. Raises `SubjectError`
        or `PublishError` for a subject or a header that is not valid.
        """
        validate_subject(subject)
        if reply is not None and reply.startswith(ack_reply.BEGINNING):
            return
        publish = Publish(wire(subject), wire(reply or ""), encode(Headers(headers)), payload)
        self._server.publish(publish, trio.current_time())
        self._network.settle()

    # --- trouble ---

    def down(self) -> None:
        """End all links, and refuse to connect until `up`."""
        self._is_down = True
        self._network.resume()
        self.cut()

    def up(self) -> None:
        """End `down`, `blackhole` and `stall`. What a blackhole held back gets through now, as TCP would have it."""
        self._is_down = False
        self._network.resume()

    def cut(self, server: str | None = None) -> None:
        """Break the links to this server (as `host:port`), or all. Connecting again works."""
        for link in self._network.links.copy():
            if server is None or link.server == server:
                link.die(LinkError("the connection was cut"))

    def blackhole(self) -> None:
        """Let nothing through in either direction, without a word, until `up`. Links stay open.

        What is sent goes into a socket buffer and, when that is full, blocks. Connecting blocks.
        """
        self._network.pause(inf)

    def stall(self, seconds: float) -> None:
        """A blackhole that ends by itself."""
        self._network.pause(trio.current_time() + seconds)

    def refuse_credentials(self) -> None:
        """Connecting raises `AuthorizationError` until `accept_credentials`. Links that are open stay."""
        self._refuses_credentials = True

    def accept_credentials(self) -> None:
        """End `refuse_credentials`."""
        self._refuses_credentials = False

    def deny_publish(self, pattern: str) -> None:
        """From now on nobody may publish to what matches. Raises `SubjectError` for a bad pattern."""
        validate_pattern(pattern)
        self._server.denied_publishes.append(pattern)

    def allow_publish(self, pattern: str) -> None:
        """End a `deny_publish` of this pattern. Raises `ValueError` if there was none."""
        self._server.denied_publishes.remove(pattern)

    def deny_subscribe(self, pattern: str) -> None:
        """From now on nobody may subscribe to what matches. Raises `SubjectError` for a bad pattern."""
        validate_pattern(pattern)
        self._server.denied_subscriptions.append(pattern)

    def lame_duck(self) -> None:
        """Announce to all links that the server will shut down. That is all; `cut` or `down` does the rest."""
        for link in self._network.links:
            link.announce_lame_duck()

    def announce_servers(self, *servers: str) -> None:
        """Tell all links which servers the cluster has, as `host:port`."""
        for link in self._network.links:
            link.announce_servers(list(servers))


@asynccontextmanager
async def _open_link(network: Network, server: str, inbox: bytes, listener: LinkListener) -> AsyncIterator[FakeLink]:
    """A link that is connected. Its death cancels the body and is raised behind it; another error of the body wins."""
    link = FakeLink(network, server, inbox, listener)
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
                # Behind the nursery, which would wrap it, or forget it when it is cancelled itself.
                if failure is not None:
                    raise failure
    except (Exception, BaseExceptionGroup) as error:
        # Whoever met the dead link says the same as the link itself.
        if link.death is None or not isinstance(innermost(error, LinkError), LinkError):
            raise
    finally:
        death = link.death
        link.die(LinkError("it was closed", reason=reasons.CLOSED))
    if death is not None:
        raise death


def _without_credentials(server: str) -> str:
    """`host:port` of a server URL."""
    parts = urlsplit(server if "://" in server else f"nats://{server}")
    return f"{parts.hostname}:{parts.port or 4222}"
