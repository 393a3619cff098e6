"""Durable pull consumers: found or created through nats-py's management API, fed over the wire.

Errors of nats-py are translated here into `SourceError`, with what differs and how to mend it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import nats.errors
import nats.js.errors
import trio
from nats.aio.client import Client
from nats.js import JetStreamManager
from nats.js.api import AckPolicy, ConsumerConfig, ConsumerInfo, DeliverPolicy

from router_trio import protocol
from router_trio.errors import SourceError
from router_trio.link import ConsumerSpec, Progress, Subscription
from router_trio.nats.asyncio_loop import aio_as_trio

API_TIMEOUT = 5.0

STREAM_NOT_FOUND = 10059
"""Error code of the JetStream API; an absent consumer is 10014."""

GHOSTS_END_WITHIN = 0.5
GHOSTS_POLL = 0.05
"""Seconds that the server gets to notice that our link before this one is dead, and to forget its pull requests."""

STANDS_STILL_FOR = 0.2
"""Seconds without a delivery or an ack after which nobody else seems to work on what a consumer has delivered."""

MOST_ASKED_FOR_AGAIN = 65_536
"""Sequences; a wider range, of a consumer whose filter takes few of many messages, is left to the ack wait."""

NOTE_TAKEN_WITHIN = 1.0

IDLE_HEARTBEAT = 5.0
"""Seconds between signs of life of a pull request that has nothing to give."""


@dataclass(frozen=True, slots=True)
class FoundConsumer:
    """A durable as it is on the server. `ack_wait` in seconds."""

    ack_wait: float
    stream_created: str
    progress: Progress


class WirePullConsumer:
    """A consumer whose messages come to an inbox on the wire. Made by `open_consumer` of a link."""

    def __init__(
        self,
        spec: ConsumerSpec,
        found: FoundConsumer,
        inbox: bytes,
        client: Client,
        send: Callable[[bytes], None],
        subscription: Subscription,
    ) -> None:
        self.ack_wait = found.ack_wait
        self.stream_created = found.stream_created
        self.progress = found.progress
        self._spec = spec
        self._client = client
        self._request_subject = b"$JS.API.CONSUMER.MSG.NEXT.%b.%b" % (spec.stream.encode(), spec.durable.encode())
        self._inbox = inbox
        self._send = send
        self._subscription = subscription

    def pull(self, batch: int, expires: float) -> None:
        """Ask for `batch` more messages, for at most `expires` seconds."""
        request = {"batch": batch, "expires": int(expires * 1e9)}
        if expires > 2 * IDLE_HEARTBEAT:
            request["idle_heartbeat"] = int(IDLE_HEARTBEAT * 1e9)
        self._send(protocol.publish(self._request_subject, json.dumps(request).encode(), reply=self._inbox))

    async def again(self, sequences: Sequence[int]) -> None:
        """See `link.PullConsumer.again`."""
        subjects = [self._ack_subject(sequence) for sequence in sequences]
        # Some are queued for redelivery already: those that the server was about to send when the dead link was closed.
        # They would come before the others. A nak with a delay takes a message out of that queue, one without puts it
        # at its end.
        self._send(b"".join(protocol.publish(subject, b'-NAK {"delay": 1}') for subject in subjects))
        *most, last = subjects
        self._send(b"".join(protocol.publish(subject, b"-NAK") for subject in most))
        # Naks and pulls are worked off by different hands at the server; only an answer says that the naks are done.
        with contextlib.suppress(TimeoutError, nats.errors.Error):
            await aio_as_trio(self._client.request)(protocol.text(last), b"-NAK", NOTE_TAKEN_WITHIN)

    def _ack_subject(self, sequence: int) -> bytes:
        """Where a delivery of that message is answered: of its numbers the server reads only the sequence.

        The number of the delivery has to be one that there was.
        """
        spec = self._spec
        return b"$JS.ACK.%b.%b.1.%d.%d.0.0" % (
            spec.stream.encode(),
            spec.durable.encode(),
            sequence,
            self.progress.deliveries,
        )

    def close(self) -> None:
        """End the inbox. The consumer itself is durable and stays."""
        self._subscription.close()

    async def drain(self) -> None:
        """End the inbox when what is under way has come."""
        await self._subscription.drain()


async def ensure_consumer(client: Client, spec: ConsumerSpec) -> FoundConsumer:
    """Find the durable, or create it. Raises `SourceError`. Can be cancelled."""
    manager = client.jsm(timeout=API_TIMEOUT)
    try:
        stream = await aio_as_trio(manager.stream_info)(spec.stream)
        created = str(stream.created)
        try:
            info = await aio_as_trio(manager.consumer_info)(spec.stream, spec.durable)
        except nats.js.errors.NotFoundError as missing:
            if missing.err_code == STREAM_NOT_FOUND:
                raise
            config = _config(spec, resume=created == spec.stream_created)
            info = await aio_as_trio(manager.add_consumer)(spec.stream, config)
        progress = await _progress(manager, spec, info)
    except nats.js.errors.NotFoundError as error:
        raise SourceError(
            f"there is no stream {spec.stream!r}; create it, or mend `stream` of this route", reason="stream_not_found"
        ) from error
    except nats.js.errors.ServiceUnavailableError as error:
        raise SourceError(
            "JetStream is not enabled on this server or for this account, or has no leader now",
            reason="jetstream_unavailable",
        ) from error
    except nats.errors.NoRespondersError as error:
        raise SourceError(
            "JetStream is not enabled on this server or for this account", reason="jetstream_unavailable"
        ) from error
    except TimeoutError as error:
        raise SourceError(
            f"no answer of the JetStream API within {API_TIMEOUT:g} s; may this user publish to $JS.API.> and "
            "subscribe to _INBOX.>?",
            reason="timeout",
        ) from error
    except nats.js.errors.APIError as error:
        raise SourceError(f"JetStream refused the consumer: {error.description}", reason="consumer_refused") from error
    _compare(spec, info)
    return FoundConsumer(float(info.config.ack_wait or spec.ack_wait), created, progress)


async def _progress(manager: JetStreamManager, spec: ConsumerSpec, info: ConsumerInfo) -> Progress:
    """How far the consumer is once the server has forgotten the requests of a dead link, which it may still serve."""
    with trio.move_on_after(GHOSTS_END_WITHIN):
        while info.num_waiting:
            await trio.sleep(GHOSTS_POLL)
            info = await aio_as_trio(manager.consumer_info)(spec.stream, spec.durable)
    in_use = bool(info.num_waiting)
    if spec.stream_created is None and info.num_ack_pending and not in_use:
        # A process that is busy doesn't wait, but it acks. One that was there before us doesn't any more.
        await trio.sleep(STANDS_STILL_FOR)
        before, info = info, await aio_as_trio(manager.consumer_info)(spec.stream, spec.durable)
        in_use = bool(info.num_waiting) or _numbers(info) != _numbers(before)
    deliveries, delivered, floor, unacked = _numbers(info)
    found = range(floor + 1, delivered + 1) if unacked else range(0)
    return Progress(deliveries, found if len(found) <= MOST_ASKED_FOR_AGAIN else range(0), in_use)


def _numbers(info: ConsumerInfo) -> tuple[int, int, int, int]:
    delivered, floor = info.delivered, info.ack_floor
    return (
        delivered.consumer_seq if delivered else 0,
        delivered.stream_seq if delivered else 0,
        floor.stream_seq if floor else 0,
        info.num_ack_pending or 0,
    )


def _config(spec: ConsumerSpec, *, resume: bool) -> ConsumerConfig:
    start = spec.start_sequence if resume else None
    return ConsumerConfig(
        deliver_policy=DeliverPolicy.ALL if start is None else DeliverPolicy.BY_START_SEQUENCE,
        opt_start_seq=start,
        durable_name=spec.durable,
        ack_policy=AckPolicy.EXPLICIT,
        ack_wait=spec.ack_wait,
        max_deliver=spec.max_deliver,
        max_ack_pending=spec.max_ack_pending,
        filter_subject=spec.filter_subject,
    )


def _compare(spec: ConsumerSpec, info: ConsumerInfo) -> None:
    """Refuse a durable that would not do what the route says; what only tunes it (waits, limits) may differ."""
    config = info.config
    differences = []
    if config.deliver_subject:
        differences.append("it is a push consumer, a pull consumer is needed")
    if config.ack_policy not in (AckPolicy.EXPLICIT, None):
        differences.append(f"its ack policy is {config.ack_policy}, explicit is needed")
    has = [config.filter_subject] if config.filter_subject else list(getattr(config, "filter_subjects", None) or [])
    wanted = [spec.filter_subject] if spec.filter_subject else []
    if [f for f in has if f != ">"] != [f for f in wanted if f != ">"]:
        differences.append(f"its filter is {', '.join(has) or 'none'}, the route's is {', '.join(wanted) or 'none'}")
    if differences:
        raise SourceError(
            f"the durable {spec.durable!r} of stream {spec.stream!r} exists with another configuration: "
            f"{'; '.join(differences)}. Use another `durable`, or delete that consumer",
            reason="consumer_mismatch",
        )
