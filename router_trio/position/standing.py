"""How far a consumer of a source has come, read from its server or from a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from router_trio.errors import SourceError, reasons
from router_trio.nats.jetstream.api import MAX_ANSWER, MAX_SUBJECTS, ConsumerInfo
from router_trio.nats.stored import StoredMessages
from router_trio.position.decision import Consumed
from router_trio.protocol.bounded_json import AnswerError, read
from router_trio.protocol.framing import LAST_SEQUENCE

NOT_COPIED = frozenset(
    {"name", "filter_subject", "filter_subjects", "opt_start_time", "num_replicas", "metadata", "pause_until"}
)
"""Fields of a consumer that a consumer of the copy does not get: the server or the position decides them."""


@dataclass(frozen=True, slots=True)
class Standing:
    """A consumer of a stream, at the time `at` of its server. `fields` are its configuration, as the server gives it.

    `deliveries` were made of messages above the ack floor, redeliveries included.
    No message above the ack floor was stored before `since`, in nanoseconds since 1970.
    """

    stream: str
    consumer: str
    floor: int
    delivered: int
    unacked: int
    deliveries: int
    pending: int
    since: int
    at: str
    fields: Mapping[str, Any]

    @property
    def consumed(self) -> Consumed:
        """How far it has come."""
        return Consumed(self.floor, self.delivered, self.unacked, self.deliveries)

    @property
    def filters(self) -> tuple[str, ...]:
        """Its filter subjects, none for all messages."""
        one = self.fields.get("filter_subject")
        return (one,) if one else tuple(self.fields.get("filter_subjects") or ())

    def durable_at(self, sequence: int, filters: list[str]) -> dict[str, object]:
        """Return the configuration of a durable of the copy that continues at this sequence."""
        config: dict[str, object] = {name: value for name, value in self.fields.items() if name not in NOT_COPIED}
        config |= {"durable_name": self.consumer, "deliver_policy": "by_start_sequence", "opt_start_seq": sequence}
        metadata = self.fields.get("metadata")
        if isinstance(metadata, dict):
            config["metadata"] = {name: value for name, value in metadata.items() if not name.startswith("_nats.")}
        if len(filters) == 1:
            config["filter_subject"] = filters[0]
        elif filters:
            config["filter_subjects"] = filters
        return config

    def to_bytes(self) -> bytes:
        """Return it as the body of a checkpoint."""
        return json.dumps(asdict(self), separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, body: bytes) -> Standing:
        """Read the body of a checkpoint, which any client may have stored. Raises `SourceError` if it is not one."""
        try:
            values = read(body, MAX_ANSWER)
            fields = values.required("fields")
            filters = (
                fields.optional_subject("filter_subject"),
                *fields.subjects("filter_subjects", most=MAX_SUBJECTS),
            )
            if not all(one.isprintable() for one in filters):
                raise AnswerError("a filter subject is not printable")
            floor = values.number("floor", high=LAST_SEQUENCE)
            delivered = values.number("delivered", low=floor, high=LAST_SEQUENCE)
            return cls(
                stream=values.text("stream"),
                consumer=values.text("consumer"),
                floor=floor,
                delivered=delivered,
                unacked=values.number("unacked"),
                deliveries=values.number("deliveries", delivered - floor),
                pending=values.number("pending"),
                since=values.number("since"),
                at=values.time("at", ""),  # a server before 2.10 gives no time
                fields=fields.fields,
            )
        except AnswerError as error:
            raise SourceError(f"the checkpoint is not valid: {error}", reason=reasons.BAD_ANSWER) from error


async def read_standing(stored: StoredMessages, name: str) -> Standing:
    """Read how far a consumer has come from its server. Raises `SourceError` if there is none, or on a refusal."""
    info = await stored.consumer(name)
    if info is None:
        detail = f"stream {stored.stream} has no consumer {name}; `nats consumer ls {stored.stream}` lists those it has"
        raise SourceError(detail, reason=reasons.CONSUMER_DELETED)
    fields = await stored.consumer_fields(name)
    last_acked = await stored.get(info.ack_floor.sequence) if info.ack_floor.sequence else None
    return _standing(info, fields, 0 if last_acked is None else last_acked.time_ns)


def _standing(info: ConsumerInfo, fields: Mapping[str, Any], since: int) -> Standing:
    return Standing(
        stream=info.stream,
        consumer=info.name,
        floor=info.ack_floor.sequence,
        delivered=info.delivered.sequence,
        unacked=info.num_ack_pending,
        deliveries=max(0, info.delivered.delivery - info.ack_floor.delivery),
        pending=info.num_pending,
        since=since,
        at=info.now,
        fields=fields,
    )
