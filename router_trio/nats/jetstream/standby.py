"""Waits for the lead of a standby consumer: a pinned consumer of ADR-42.

A consumer loses its pin when the client that has it is silent for too long, or gives it up. Its state shows that. Only
then is a message requested, without a pin. The server pins the client that gets the next message, and sends the pin in
its header. That message is not acked: it is redelivered, behind everything delivered before it, when the consumer is
opened with the pin.

No request waits at the server while another client has the pin: a message that is due for redelivery, and finds only
requests of clients without the pin, is moved behind all others (nats-server 2.15.1). So a request ends soon, and the
leader waits until those of other clients have ended: see `OTHERS_END_WITHIN`.

A request of a client that has gone waits at the server until it expires. If it gets the pin, no client has the lead,
until the timeout for a silent lead is over and the next one gets it.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace

import trio

from router_trio.errors import LinkError, SourceError, codes, reasons
from router_trio.errors.quotes import excerpt
from router_trio.link import IDLE_HEARTBEAT, STATE_FOR, ConsumerSpec, ConsumerState, LeadState, StoredAt
from router_trio.nats.info import ServerInfo
from router_trio.nats.jetstream.api import NOT_FOUND, Api, ApiError, ConsumerInfo, consumer_info
from router_trio.nats.jetstream.consumer_config import LEAD_GROUP, WRONG_PIN, compare, pause_of, state_of
from router_trio.nats.jetstream.consumers import FoundConsumer, Subscribe
from router_trio.nats.jetstream.oldest import OldestMessage
from router_trio.nats.jetstream.streams import Lookups, lookup_error
from router_trio.protocol import ack_reply, framing, headers

SINCE = (2, 11)
"""The first version of nats-server with pinned consumers. An older one would create an ordinary consumer."""

PIN = b"Nats-Pin-Id"
MAX_PIN = 64
"""Characters of a pin, which becomes a part of each request."""

TAKEN_LOOK_EVERY = 1.0
"""Seconds between two lookups of whether the lead is free."""

ASK_FOR = 1.0
"""Seconds for which a request for the lead waits at the server. Then it is looked up whether another client has it."""

ASK_BLINDLY_FOR = 30.0
"""Seconds for which it waits if this user may not look that up."""

HEARD_WITHIN = 15.0
"""Seconds without a message or a status after which the request is sent again."""

PIN_CHECKED_WITHIN = 2.0

LATE_PIN_WITHIN = 1.0
"""Seconds for a pin to arrive that was given before a wait was cancelled."""

LOOK_EVERY = STATE_FOR
"""Seconds between two lookups of the state of a consumer while waiting for its lead."""

CONTESTED_LOOK_EVERY = 1.0
"""Seconds between two lookups of a partition that has messages: its leader may have ended.

A process waits for the lead of a partition only while another one gives it up, or after that has ended.
"""

DENIED_LOOK_EVERY = 60.0
"""Seconds between two lookups while this user has no permission for them: a server logs each of these."""

UNPIN = json.dumps({"group": LEAD_GROUP}).encode()
"""The request that takes the pin from the client that has it."""


def unpin_subject(api: Api, spec: ConsumerSpec) -> str:
    """Return the subject of the request to unpin."""
    return api.subject_of(f"CONSUMER.UNPIN.{spec.stream}.{spec.durable}")


def check_version(info: ServerInfo) -> None:
    """Raise `SourceError` (`server_too_old`) if a server is known to have no pinned consumers.

    A server with an unreadable version is not refused: it may have them, and there is no substitute.
    """
    if info.major_minor is not None and info.major_minor < SINCE:
        detail = f"nats-server {excerpt(info.version)} has no pinned consumers (2.11 or later), which standby needs"
        raise SourceError(f"{detail}; upgrade it, or remove standby", reason=reasons.SERVER_TOO_OLD)


async def lead_state(lookups: Lookups, stream: str, durable: str) -> LeadState:
    """Return what `link.Link.lead_state` does. Raises `SourceError` and `LinkError`."""
    try:
        info = await lookups.ask(f"CONSUMER.INFO.{stream}.{durable}", b"", consumer_info)
    except ApiError as error:
        if error.error_code == codes.CONSUMER_NOT_FOUND:
            return LeadState(unled=True)
        raise lookup_error(error) from error
    if info.paused:
        return LeadState(unled=False, paused=pause_of(stream, durable, info))
    return LeadState(unled=not info.pinned_at and bool(info.num_pending or info.num_ack_pending))


async def wait_for_pin(
    api: Api,
    send: Callable[[bytes], None],
    subscribe: Subscribe,
    inbox: bytes,
    spec: ConsumerSpec,
    lookups: Lookups,
    *,
    renew: bool,
) -> str:
    """Return the pin of an existing consumer. Raises `SourceError` if it is deleted. Can be cancelled.

    With `renew`, a pin that is still valid is exchanged for a new one: pull requests with the old one, from a previous
    link that the server takes for alive, get no messages any more.
    """
    waiting = _Waiting()
    subscription = await subscribe(framing.text(inbox), waiting.receive)
    subject = framing.wire(api.subject_of(f"CONSUMER.MSG.NEXT.{spec.stream}.{spec.durable}"))

    async def asked(within: float, **request: object) -> None:
        """Send a request, and wait for anything but a heartbeat, or until there is silence for `within` seconds."""
        waiting.forget_status()
        body = json.dumps({"batch": 1, "group": LEAD_GROUP, **request}).encode()
        send(framing.publish(subject, body, reply=inbox))
        while waiting.pin is None and not waiting.code:
            heard = waiting.heard
            with trio.move_on_after(within) as scope:
                await heard.wait()
            if scope.cancelled_caught:
                return

    try:
        if spec.pin is not None:
            await asked(PIN_CHECKED_WITHIN, id=spec.pin, no_wait=True, max_bytes=1)
            if waiting.code and waiting.code not in (WRONG_PIN, 503):
                if not renew:
                    return spec.pin
                send(framing.publish(framing.wire(unpin_subject(api, spec)), UNPIN, reply=inbox + b"-unpin"))
        heartbeat = int(IDLE_HEARTBEAT * 1e9)
        while waiting.pin is None:
            taken = await _is_taken(lookups, spec)
            if taken:
                await trio.sleep(TAKEN_LOOK_EVERY)
                continue
            if taken is None:
                await asked(HEARD_WITHIN, expires=int(ASK_BLINDLY_FOR * 1e9), idle_heartbeat=heartbeat)
            else:
                await asked(HEARD_WITHIN, expires=int(ASK_FOR * 1e9))
            if waiting.code == 503 or (waiting.code == 409 and "deleted" in waiting.words):
                raise _gone(spec, reasons.CONSUMER_DELETED if waiting.code == 409 else reasons.NO_RESPONDERS)
            if waiting.code == 409:
                await trio.sleep(1.0)  # a change of leaders, or a limit: an immediate request would get the same answer
        return waiting.pin
    except trio.Cancelled:
        # The server may just have given the lead to this request. Then no client has it until that one is timed out.
        with trio.move_on_after(LATE_PIN_WITHIN) as late, suppress(LinkError):
            late.shield = True
            await subscription.drain()
        if waiting.pin is not None:
            send(framing.publish(framing.wire(unpin_subject(api, spec)), UNPIN, reply=inbox + b"-unpin"))
        raise
    finally:
        subscription.close()


def _gone(spec: ConsumerSpec, reason: str) -> SourceError:
    detail = f"no server answers for the durable {spec.durable!r} of stream {spec.stream!r}"
    return SourceError(detail, reason=reason)


async def _is_taken(lookups: Lookups, spec: ConsumerSpec) -> bool | None:
    """Return whether a client has the lead; None if this user may not look that up.

    Raises `SourceError` if the consumer was deleted. Can be cancelled.
    """
    try:
        info = await lookups.ask(f"CONSUMER.INFO.{spec.stream}.{spec.durable}", b"", consumer_info)
    except ApiError as error:
        if error.code == NOT_FOUND and error.error_code != codes.STREAM_NOT_FOUND:
            raise _gone(spec, reasons.CONSUMER_DELETED) from error
        return False  # a request shows what else is wrong
    except SourceError as error:
        return None if error.reason == reasons.PERMISSION_DENIED else False
    return bool(info.pinned_at)


async def learning(
    wait: Callable[[], Awaitable[str]],
    lookups: Lookups,
    spec: ConsumerSpec,
    found: FoundConsumer,
    oldest: OldestMessage,
    learn: Callable[[ConsumerState], None],
    send: Callable[[bytes], None],
) -> str:
    """Return the result of `wait`. Meanwhile pass the state of the consumer to `learn`, as `found` and as looked up.

    If it is deleted, the next one must not start at the beginning of the stream. Raises what `wait` raises. Can be
    cancelled.
    """
    learn(found.state)
    pin = ""
    failure: SourceError | LinkError | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_look_often, lookups, spec, found, oldest, learn, send)
        try:
            pin = await wait()
        except (SourceError, LinkError) as error:
            failure = error  # the nursery would wrap it
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return pin


async def _look_often(
    lookups: Lookups,
    spec: ConsumerSpec,
    found: FoundConsumer,
    oldest: OldestMessage,
    learn: Callable[[ConsumerState], None],
    send: Callable[[bytes], None],
) -> None:
    # What was found lacks the oldest message.
    pause = 0.0 if found.state.undelivered or found.state.unacked else LOOK_EVERY
    revival = _Revival(spec, send)
    while True:
        await trio.sleep(pause)
        pause = LOOK_EVERY
        try:
            info = await lookups.ask(f"CONSUMER.INFO.{spec.stream}.{spec.durable}", b"", consumer_info)
            compare(spec, info)  # the ack floor of another filter may be behind messages of this route
        except ApiError:
            continue  # the wait reports it if the consumer was deleted
        except SourceError as error:
            if error.reason == reasons.PERMISSION_DENIED:
                pause = DENIED_LOOK_EVERY
            continue
        state = replace(state_of(spec, info), oldest=await oldest.find(info))
        if spec.token and (state.unacked or state.undelivered):
            pause = CONTESTED_LOOK_EVERY
            revival.look(info, state.oldest)
        # If it was ahead of the stream, its ack floor proves nothing about what the stream stores now.
        learn(replace(state, passed=0) if found.ahead else state)


class _Revival:
    """Has the oldest unacked message of a partition redelivered if nothing was acked or delivered since the last look.

    The server gives the lead with a message. If a leader ends, and nothing new is stored, its unacked messages would
    only be redelivered after their ack wait. Once the lead is free, a nak'ed message is delivered with it. As long as
    the leader is there, it gets the message a second time, and does not route it again.
    """

    def __init__(self, spec: ConsumerSpec, send: Callable[[bytes], None]) -> None:
        self._spec = spec
        self._send = send
        self._before: tuple[object, ...] = ()
        self._naked = 0

    def look(self, info: ConsumerInfo, oldest: StoredAt | None) -> None:
        now = (info.ack_floor, info.delivered, info.num_ack_pending)
        stands_still, self._before = now == self._before, now
        if oldest is None or not stands_still or not info.num_ack_pending:
            return
        if oldest.sequence == self._naked or oldest.sequence > info.delivered.sequence:
            return
        self._naked = oldest.sequence
        spec, number = self._spec, info.delivered.delivery
        subject = ack_reply.subject(
            spec.stream.encode(), spec.durable.encode(), sequence=oldest.sequence, number=number
        )
        self._send(framing.publish(subject, b"-NAK"))


class _Waiting:
    """The answer to the last request: a pin, or the status that ended it."""

    def __init__(self) -> None:
        self.pin: str | None = None
        self.code = 0
        self.words = ""
        self.heard = trio.Event()

    def forget_status(self) -> None:
        """Forget the status of the previous request, before a new one is sent."""
        self.code, self.words = 0, ""

    def receive(self, batch: list[framing.RawMessage]) -> None:
        """Record the pin or the status received, as a `link.Deliver`."""
        for raw in batch:
            block = framing.header_block(raw)
            code, description = headers.status(block)
            pin = headers.find(block, PIN)
            if code and code != 100:
                self.code, self.words = code, description.lower()
            elif not code and pin and len(pin) <= MAX_PIN and pin.isalnum():
                self.pin = pin.decode()
        self.heard.set()
        self.heard = trio.Event()
