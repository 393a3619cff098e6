"""Faults that are rarer than a lost connection: slow networks, elections, lost answers, restored streams.

Changes that an administrator makes to a durable are here as well. `FakeBroker.trouble` is an instance. Every method
takes effect immediately. Those that need the current time must be called inside `trio.run`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import inf

import trio

from router_trio.link import ConsumerSpec
from router_trio.protocol.advisories import LEADER_ELECTED, PAUSE, QUORUM_LOST
from router_trio.protocol.framing import RawMessage
from router_trio.testing.consumers import Consumer
from router_trio.testing.members import STREAM as MEMBERS
from router_trio.testing.members import Bucket
from router_trio.testing.network import Network, at_once
from router_trio.testing.server import Server
from router_trio.testing.streams import Stream
from router_trio.testing.watch import Watch


class Trouble:
    """The faults of one broker. Methods raise `KeyError` for an unknown stream or durable."""

    def __init__(self, server: Server, network: Network) -> None:
        self._server = server
        self._network = network

    def watch(self, watch: Watch) -> None:
        """Let `watch` observe the server, in place of the previous one."""
        self._server.watch = watch

    def mend(self) -> None:
        """End losses, delays, elections and faults of the network. Actions that are already delayed stay delayed."""
        self._server.losses.clear()
        for stream in self._server.streams.values():
            stream.leaderless_until = -inf
            if stream.copying is not None:
                stream.copying.stalled_until = -inf
        if self._server.bucket is not None:
            self._server.bucket.leaderless_until = -inf
        for consumer in self._server.consumers.values():
            consumer.leaderless_until = -inf
        self._network.travel = at_once
        self.break_after()

    # --- the network ---

    def travel(self, seconds: Callable[[], float]) -> None:
        """Set the delay of each item, each way, to the result of a call of `seconds`. A link keeps its order."""
        self._network.travel = seconds

    def break_after(self, *, to_server: int | None = None, from_server: int | None = None) -> None:
        """Break each link after this number of further publishes, acks, messages and so on. Later ones never arrive."""
        for link in self._network.links.copy():
            link.break_after(to_server, from_server)
        self._network.wake_links()

    def stay_lame(self, is_lame: bool) -> None:
        """Announce to each new link that the server will shut down, or stop to do so."""
        self._network.is_lame = is_lame

    # --- answers ---

    def lose(self, kind: str, times: int = 1) -> None:
        """Lose the next `times` items of a kind in `losses.KINDS`; 0 ends that."""
        self._server.losses.set(kind, times)

    def delay(self, kind: str, seconds: float, times: int = 1) -> None:
        """Delay the next `times` items of a kind in `losses.KINDS` by `seconds`."""
        self._server.losses.set(kind, times, seconds)

    # --- streams ---

    def set_clock(self, seconds: float) -> None:
        """Set the clock of the server forward by `seconds`, or back if negative: new messages have other times."""
        self._server.set_clock(seconds)

    def slow_down(self, stream: str, seconds: float) -> None:
        """Delay the PubAcks of a stream by `seconds`; 0 ends that."""
        self._server.streams[stream].answers_after = seconds

    def limit(self, stream: str, max_messages: int | None) -> None:
        """Let a stream refuse messages beyond `max_messages`; None ends that."""
        self._server.streams[stream].max_messages = max_messages

    def switch_off_jetstream(self, is_off: bool = True) -> None:
        """Disable JetStream, so that no stream can be created, or enable it again."""
        self._server.jetstream = not is_off

    def persist_async(self, stream: str, is_async: bool = True) -> None:
        """Let a stream report `persist_mode: async`: it acks before it writes. Here it writes every message anyway."""
        self._server.streams[stream].acks_before_writing = is_async

    def seal(self, stream: str) -> None:
        """Seal a stream, so that it refuses every message."""
        self._server.streams[stream].sealed = True

    def delete_schedule(self, stream: str, subject: str) -> None:
        """Delete the schedule on a subject, which is then never published. Raises `KeyError` if there is none."""
        if not self._server.streams[stream].cancel(subject):
            raise KeyError(subject)

    def edit_subjects(self, stream: str, *subjects: str) -> None:
        """Replace the subjects of a stream."""
        self._server.streams[stream].subjects = subjects

    def elect(self, stream: str, seconds: float) -> None:
        """Leave a stream and its consumers without a leader for `seconds`.

        Pull requests end with a status, and consumers forget their pins. The stream of the bucket of members of
        partitioned routes answers nothing, and announcements expire meanwhile.
        """
        if stream == MEMBERS:
            self._bucket().leaderless_until = trio.current_time() + seconds
            return
        self._server.streams[stream].leaderless_until = trio.current_time() + seconds
        self._server.losses.schedule(
            trio.current_time() + seconds,
            lambda: self._server.advise(LEADER_ELECTED, stream, leader="two", replicas=[]),
        )
        for consumer in self._consumers(stream):
            consumer.elect()
        self._network.wake_links()

    def elect_durable(self, stream: str, durable: str, seconds: float) -> None:
        """Leave a durable without a leader for `seconds`: it answers nothing, and acks of its messages are lost."""
        consumer = self._server.consumers[stream, durable]
        consumer.leaderless_until = trio.current_time() + seconds
        consumer.elect()
        self._network.wake_links()

    def stall_copying(self, stream: str, seconds: float) -> None:
        """Let a stream that copies another one copy nothing for `seconds`."""
        copying = self._server.streams[stream].copying
        if copying is None:
            raise KeyError(f"the stream {stream!r} copies no other")
        copying.stalled_until = trio.current_time() + seconds
        self._network.wake_links()

    def keep_members(self, keeps: bool = True) -> None:
        """Let the announcements of members never expire, so that routes refuse their bucket."""
        self._bucket().keeps = keeps

    def delete_bucket(self) -> None:
        """Delete the bucket of members of partitioned routes, with all announcements."""
        self._server.bucket = None

    def _bucket(self) -> Bucket:
        if self._server.bucket is None:
            raise KeyError("no route has created the bucket yet")
        return self._server.bucket

    def cut_off(self, stream: str, is_cut_off: bool = True) -> None:
        """Cut the server of a stream off from its cluster: it still leads stream and durables, but stores nothing."""
        self._server.streams[stream].cut_off = is_cut_off
        if is_cut_off:
            offline = [{"name": name, "offline": True} for name in ("two", "three")]
            self._server.advise(QUORUM_LOST, stream, leader="one", replicas=offline)

    def forget(self, stream: str, count: int) -> None:
        """Delete the last `count` messages of a stream, as a power failure may: new messages get their sequences."""
        self._go_back(self._server.streams[stream], max(0, len(self._server.streams[stream].stored) - count))

    def restore(self, stream: str, count: int) -> None:
        """Restore a stream and its consumers from a snapshot with its first `count` messages."""
        self._go_back(self._server.streams[stream], count)

    def recreate(self, stream: str, *durables: str) -> None:
        """Delete a stream, and create it and these durables again, empty."""
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
        """Let the server treat links that die as open: their pull requests still get messages until they expire."""
        self._server.half_open = is_half_open

    def add_consumer(self, spec: ConsumerSpec) -> None:
        """Create a durable, as an administrator can."""
        self._server.open_consumer(spec)

    def edit_consumer(self, stream: str, durable: str, *, headers_only: bool | None = None, **changes: float) -> None:
        """Change `ack_wait`, `max_deliver` or `max_ack_pending` of a durable, or let it deliver only headers."""
        consumer = self._server.consumers[stream, durable]
        consumer.edit(trio.current_time(), **changes)
        if headers_only is not None:
            consumer.headers_only = headers_only
        self._network.wake_links()

    def fix_consumer(self, stream: str, durable: str) -> None:
        """Deny all clients to change a durable when they open it."""
        self._server.consumers[stream, durable].is_fixed = True

    def pause_consumer(self, stream: str, durable: str, seconds: float = inf) -> None:
        """Pause a durable for `seconds`; 0 resumes it."""
        self._server.consumers[stream, durable].paused_until = trio.current_time() + seconds
        self._server.advise(PAUSE, stream, durable, paused=seconds > 0, pause_until="2099-01-01T00:00:00Z")
        self._network.wake_links()

    def reset_consumer(self, stream: str, durable: str, sequence: int) -> None:
        """Reset a durable to a message, as `nats consumer reset` does; its deliveries are numbered from 1 again."""
        self._server.consumers[stream, durable].reset(sequence)
        self._network.wake_links()

    def deliver_again(self, stream: str, durable: str, count: int) -> None:
        """Redeliver `count` of the unacked messages of a durable. Those that are due keep their place before others."""
        consumer, now = self._server.consumers[stream, durable], trio.current_time()
        consumer.again([one for one in consumer.left_unacked()[:count] if not consumer.is_due(one, now)], now)
        self._network.wake_links()

    def hold(self, stream: str, durable: str, count: int, delay: float) -> None:
        """Let another process receive `count` messages of a durable, and nak each with a delay."""
        consumer = self._server.consumers[stream, durable]

        def take(message: RawMessage) -> None:
            if message[1]:
                self._server.nak(message[1], trio.current_time(), delay)

        consumer.pull(b"_INBOX.another", take, count, trio.current_time(), expires=delay)
        self._network.wake_links()

    def take_by_hand(self, stream: str, durable: str, count: int = 1, *, ack: bool) -> None:
        """Deliver the next `count` messages of a durable to another process, which acks them or not."""
        self._server.consumers[stream, durable].take_by_hand(count, ack=ack)
        self._network.wake_links()

    def redeliver_by_hand(self, stream: str, durable: str, count: int) -> None:
        """Redeliver `count` unacked messages of a durable to another process, which does not ack them."""
        self._server.consumers[stream, durable].redeliver_by_hand(count, trio.current_time())
        self._network.wake_links()

    def _consumers(self, stream: str) -> Iterable[Consumer]:
        return [consumer for (name, _), consumer in self._server.consumers.items() if name == stream]

    def _go_back(self, stream: Stream, last: int) -> None:
        stream.forget_after(last)
        for consumer in self._consumers(stream.name):
            consumer.went_back()
        self._network.wake_links()
