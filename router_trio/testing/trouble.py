"""Trouble that is rarer than a lost connection: slow networks, elections, lost answers, streams that go back in time.

What an administrator does to a durable behind a router's back is here as well. `FakeBroker.trouble` is one of these.
Every method takes effect at once; those that need the time must be called inside `trio.run`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import inf

import trio

from router_trio.link import ConsumerSpec
from router_trio.protocol.framing import RawMessage
from router_trio.testing.consumers import Consumer
from router_trio.testing.network import Network, at_once
from router_trio.testing.server import Server
from router_trio.testing.streams import Stream
from router_trio.testing.watch import Watch


class Trouble:
    """The troubles of one broker. Names of streams and durables that are unknown raise `KeyError`."""

    def __init__(self, server: Server, network: Network) -> None:
        self._server = server
        self._network = network

    def watch(self, watch: Watch) -> None:
        """Tell this one, and no other, what happens at the server."""
        self._server.watch = watch

    def mend(self) -> None:
        """End what strikes the next ones of something, elections, and what the network does. What is late stays so."""
        self._server.losses.clear()
        for stream in self._server.streams.values():
            stream.leaderless_until = -inf
        self._network.travel = at_once
        self.break_after()

    # --- the network ---

    def travel(self, seconds: Callable[[], float]) -> None:
        """From now on whatever is sent takes so long, each way; asked for each. Nothing overtakes on one link."""
        self._network.travel = seconds

    def break_after(self, *, to_server: int | None = None, from_server: int | None = None) -> None:
        """Each link breaks behind so many more publishes, acks, messages ...; what is behind them never arrives."""
        for link in self._network.links.copy():
            link.break_after(to_server, from_server)
        self._network.wake_links()

    def stay_lame(self, is_lame: bool) -> None:
        """Tell each client that connects at once that the server will shut down, or no longer."""
        self._network.is_lame = is_lame

    # --- answers ---

    def lose(self, kind: str, times: int = 1) -> None:
        """The next ones of a kind (see `losses.KINDS`) are lost; with 0, none is any more."""
        self._server.losses.strike(kind, times)

    def delay(self, kind: str, seconds: float, times: int = 1) -> None:
        """The next ones of a kind come so much later."""
        self._server.losses.strike(kind, times, seconds)

    # --- streams ---

    def set_clock(self, seconds: float) -> None:
        """The clock of the server is set forward so much, or back: messages have other times from now on."""
        self._server.set_clock(seconds)

    def slow_down(self, stream: str, seconds: float) -> None:
        """The PubAcks of a stream take so long; 0: no more."""
        self._server.streams[stream].answers_after = seconds

    def limit(self, stream: str, max_messages: int | None) -> None:
        """A stream refuses what would be more than this; None: no more."""
        self._server.streams[stream].max_messages = max_messages

    def switch_off_jetstream(self, is_off: bool = True) -> None:
        """No stream can be made: JetStream is not enabled."""
        self._server.jetstream = not is_off

    def persist_async(self, stream: str, is_async: bool = True) -> None:
        """The stream says that it confirms messages before it has written them. Here it writes them all the same."""
        self._server.streams[stream].acks_before_writing = is_async

    def seal(self, stream: str) -> None:
        """A stream takes nothing any more."""
        self._server.streams[stream].sealed = True

    def edit_subjects(self, stream: str, *subjects: str) -> None:
        """A stream takes these subjects from now on, and no others."""
        self._server.streams[stream].subjects = subjects

    def elect(self, stream: str, seconds: float) -> None:
        """A stream and its consumers have no leader for so long: nobody answers, and who waits for messages is told."""
        self._server.streams[stream].leaderless_until = trio.current_time() + seconds
        for consumer in self._consumers(stream):
            consumer.end_requests("409 Leadership Change")
        self._network.wake_links()

    def cut_off(self, stream: str, is_cut_off: bool = True) -> None:
        """The server of a stream and its durables has lost its cluster: they are still led there, and store nothing."""
        self._server.streams[stream].cut_off = is_cut_off

    def forget(self, stream: str, count: int) -> None:
        """A stream loses its last messages, as on a power failure: what comes next gets their sequences."""
        self._go_back(self._server.streams[stream], max(0, len(self._server.streams[stream].stored) - count))

    def restore(self, stream: str, count: int) -> None:
        """A stream is put back from a snapshot that has its first `count` messages, and its consumers with it."""
        self._go_back(self._server.streams[stream], count)

    def recreate(self, stream: str, *durables: str) -> None:
        """A stream is deleted and made again, empty, and so are these of its durables."""
        old = self._server.streams[stream]
        specs = [self._server.consumers[stream, durable].spec for durable in durables]
        self._server.delete_stream(stream)
        self._server.add_stream(
            stream, old.subjects, duplicate_window=old.duplicate_window, max_messages=old.max_messages
        )
        for spec in specs:
            self._server.open_consumer(spec)
        self._network.wake_links()

    # --- consumers ---

    def half_open(self, is_half_open: bool = True) -> None:
        """Links that die from now on are alive to the server: their pull requests get messages until they are over."""
        self._server.half_open = is_half_open

    def add_consumer(self, spec: ConsumerSpec) -> None:
        """Create a durable, as an administrator would."""
        self._server.open_consumer(spec)

    def edit_consumer(self, stream: str, durable: str, *, headers_only: bool | None = None, **changes: float) -> None:
        """Change a durable: `ack_wait`, `max_deliver` and `max_ack_pending`, or deliver only headers."""
        consumer = self._server.consumers[stream, durable]
        consumer.edit(**changes)
        if headers_only is not None:
            consumer.headers_only = headers_only
        self._network.wake_links()

    def fix_consumer(self, stream: str, durable: str) -> None:
        """Forbid all clients to change a durable that they open."""
        self._server.consumers[stream, durable].is_fixed = True

    def pause_consumer(self, stream: str, durable: str, seconds: float = inf) -> None:
        """A durable delivers nothing for so long; 0: no more."""
        self._server.consumers[stream, durable].paused_until = trio.current_time() + seconds
        self._network.wake_links()

    def reset_consumer(self, stream: str, durable: str, sequence: int) -> None:
        """Somebody has a durable go on with that message, and number its deliveries from 1 (`nats consumer reset`)."""
        self._server.consumers[stream, durable].reset(sequence)
        self._network.wake_links()

    def deliver_again(self, stream: str, durable: str, count: int) -> None:
        """A durable delivers so many of its unacked messages once more."""
        consumer = self._server.consumers[stream, durable]
        consumer.again(consumer.left_unacked()[:count], trio.current_time())
        self._network.wake_links()

    def hold(self, stream: str, durable: str, count: int, delay: float) -> None:
        """Another process takes so many messages of a durable, and returns each to be redelivered after a delay."""
        consumer = self._server.consumers[stream, durable]

        def take(message: RawMessage) -> None:
            if message[1]:
                self._server.nak(message[1], trio.current_time(), delay)

        consumer.pull(b"_INBOX.another", take, count, trio.current_time(), expires=delay)
        self._network.wake_links()

    def take_by_hand(self, stream: str, durable: str, count: int = 1, *, ack: bool) -> None:
        """Somebody else gets the next messages of a durable, and acks them or not."""
        self._server.consumers[stream, durable].take_by_hand(count, ack=ack)
        self._network.wake_links()

    def redeliver_by_hand(self, stream: str, durable: str, count: int) -> None:
        """Somebody else gets so many of the unacked messages of a durable, and does not ack them."""
        self._server.consumers[stream, durable].redeliver_by_hand(count, trio.current_time())
        self._network.wake_links()

    def _consumers(self, stream: str) -> Iterable[Consumer]:
        return [consumer for (name, _), consumer in self._server.consumers.items() if name == stream]

    def _go_back(self, stream: Stream, last: int) -> None:
        stream.forget_after(last)
        for consumer in self._consumers(stream.name):
            consumer.went_back()
        self._network.wake_links()
