"""JetStream for tests, through its JSON API and the raw client: fills streams, and reads back all that they hold."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import trio

from tests.support.raw_nats import (
    HeaderPairs,
    Headers,
    NoResponders,
    RawClient,
    RawMessage,
    RawNatsError,
    parse_headers,
    windows,
)

_NO_SUITABLE_PEERS = 10005
_OTHER_STREAM = 10060
_PULL_BATCH = 2_000
_PULL_EXPIRES = 60  # seconds; the reader gives up earlier


class JetStreamError(RawNatsError):
    """An error answer of JetStream: `code` as in HTTP, `err_code` as in NATS."""

    def __init__(self, request: str, error: Mapping[str, Any]) -> None:
        self.code: int = error["code"]
        self.err_code: int = error.get("err_code", 0)
        super().__init__(f"{request}: {error.get('description', '')} ({self.code}, {self.err_code})")


class StoredMessage(NamedTuple):
    """A message as a stream stores it. `time` is when it was stored, in seconds since 1970."""

    subject: str
    headers: HeaderPairs
    payload: bytes
    sequence: int
    time: float

    def header(self, name: str) -> str | None:
        """Return the first value of a header."""
        return next((value for key, value in self.headers if key == name), None)


class JetStream:
    """JetStream's API over a raw client; every call raises `JetStreamError` if the server answers with an error."""

    def __init__(self, client: RawClient) -> None:
        self.client: RawClient = client

    async def api(self, request: str, body: Mapping[str, Any] | None = None, within: float = 5.0) -> dict[str, Any]:
        """Send any request below `$JS.API.`, `STREAM.INFO.ORDERS` for instance."""
        payload = json.dumps(body).encode() if body is not None else b""
        answer = await self.client.request(f"$JS.API.{request}", payload, within=within)
        return _checked(request, answer)

    async def create_stream(self, name: str, subjects: Sequence[str], **config: Any) -> dict[str, Any]:
        """Create a stream, on file and with one replica unless `config` sets otherwise; durations in nanoseconds.

        Waits while a server that is to hold a replica counts as offline: on a busy machine one may for a moment. Then
        waits until the server of this connection knows that the stream listens: until then, it answers a publish with
        503.
        """
        defaults = {
            "storage": "file",
            "retention": "limits",
            "num_replicas": 1,
            "duplicate_window": 120_000_000_000,
        }
        body = {"name": name, "subjects": list(subjects)} | defaults | config
        with trio.fail_after(30):
            while True:
                try:
                    created = await self.api(f"STREAM.CREATE.{name}", body, within=15)
                except JetStreamError as error:
                    if body["num_replicas"] == 1 or error.err_code != _NO_SUITABLE_PEERS:
                        raise
                else:
                    if created.get("cluster") and subjects and not body.get("no_ack"):
                        await self._listens(name, subjects[0].replace("*", "any").replace(">", "any"))
                    return created
                await trio.sleep(0.1)

    async def _listens(self, stream: str, subject: str) -> None:
        while True:
            try:
                await self.publish(subject, headers={"Nats-Expected-Stream": f"not {stream}"})  # refused, never stored
            except NoResponders:
                await trio.sleep(0.01)
            except JetStreamError as error:
                if error.err_code != _OTHER_STREAM:
                    raise
                return

    async def create_consumer(self, stream: str, durable: str, **config: Any) -> dict[str, Any]:
        """Create a durable pull consumer with explicit acks unless `config` sets otherwise."""
        settings = {"durable_name": durable, "ack_policy": "explicit", "deliver_policy": "all"} | config
        body = {"stream_name": stream, "config": settings}
        return await self.api(f"CONSUMER.DURABLE.CREATE.{stream}.{durable}", body, within=15)

    async def stream_info(self, name: str) -> dict[str, Any]:
        """Return `config`, `state` (`messages`, `first_seq`, `last_seq` ...), `cluster`."""
        return await self.api(f"STREAM.INFO.{name}")

    async def consumer_info(self, stream: str, consumer: str) -> dict[str, Any]:
        """Return `num_pending`, `num_ack_pending`, `num_redelivered`, `ack_floor` ..."""
        return await self.api(f"CONSUMER.INFO.{stream}.{consumer}")

    async def delete_stream(self, name: str) -> None:
        """Delete a stream with all its messages."""
        await self.api(f"STREAM.DELETE.{name}")

    async def delete_consumer(self, stream: str, consumer: str) -> None:
        """Delete a consumer."""
        await self.api(f"CONSUMER.DELETE.{stream}.{consumer}")

    async def edit_stream(self, name: str, **changes: Any) -> None:
        """Change fields of a stream's configuration."""
        config = (await self.stream_info(name))["config"]
        await self.api(f"STREAM.UPDATE.{name}", config | changes)

    async def edit_consumer(self, stream: str, consumer: str, **changes: Any) -> None:
        """Change fields of a consumer's configuration."""
        config = (await self.consumer_info(stream, consumer))["config"]
        body = {"stream_name": stream, "config": config | changes}
        await self.api(f"CONSUMER.DURABLE.CREATE.{stream}.{consumer}", body)

    async def pause_consumer(self, stream: str, consumer: str, seconds: float) -> None:
        """Pause the deliveries of a consumer for this many seconds; 0 resumes them."""
        until = datetime.now(UTC) + timedelta(seconds=seconds)
        body = {"pause_until": until.isoformat().replace("+00:00", "Z")} if seconds else {}
        await self.api(f"CONSUMER.PAUSE.{stream}.{consumer}", body)

    async def publish(
        self, subject: str, payload: bytes = b"", headers: Headers | None = None, *, within: float = 5.0
    ) -> dict[str, Any]:
        """Publish and wait for the PubAck: `stream`, `seq`, and `duplicate` if it was one."""
        return _checked(subject, await self.client.request(subject, payload, headers, within))

    async def publish_many(self, messages: Iterable[tuple[str, bytes, Headers | None]]) -> list[dict[str, Any]]:
        """Publish, a window of messages at a time, and return all the PubAcks in order."""
        acks: list[dict[str, Any]] = []
        for window in windows(messages):
            answers = await self.client.request_many(window, within=15)
            acks += [_checked(request[0], answer) for request, answer in zip(window, answers, strict=True)]
        return acks

    async def stream_messages(self, name: str, within: float = 30.0) -> list[StoredMessage]:
        """Return all that a stream holds at this moment, in order; nothing is removed from it.

        Raises `trio.TooSlowError` after `within` seconds.
        """
        with trio.fail_after(within):
            if (await self.stream_info(name))["config"]["retention"] == "limits":
                return await self._pulled(name)
            return await self._got(name)  # a consumer would remove the messages, or be refused

    async def _pulled(self, stream: str) -> list[StoredMessage]:
        config = {"deliver_policy": "all", "ack_policy": "none", "mem_storage": True, "num_replicas": 1}
        body = {"stream_name": stream, "config": config | {"inactive_threshold": 60_000_000_000}}
        created = await self.api(f"CONSUMER.CREATE.{stream}", body)
        total = created["num_pending"]
        consumer = created["name"]
        pull = json.dumps({"batch": _PULL_BATCH, "expires": _PULL_EXPIRES * 1_000_000_000}).encode()
        inbox = self.client.new_inbox()
        replies = await self.client.subscribe(inbox)
        messages: list[StoredMessage] = []
        asked = 0
        try:
            while len(messages) < total:
                if asked - len(messages) <= _PULL_BATCH and asked < total:
                    # Request one batch ahead, so that the server never waits for us.
                    await self.client.publish(f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}", pull, None, inbox)
                    asked += _PULL_BATCH
                for message in (await replies.next(_PULL_EXPIRES), *replies.waiting()):
                    if message.status == "503" and not messages:
                        # In a cluster, our server may not know yet that the consumer listens: request again.
                        asked -= _PULL_BATCH
                    elif message.status:
                        raise RawNatsError(f"reading {stream} broke off: {message.header_block!r}")
                    else:
                        messages.append(_stored(message))
        finally:
            with trio.move_on_after(1, shield=True):
                await replies.unsubscribe()
                await self.delete_consumer(stream, consumer)
        return messages

    async def _got(self, stream: str) -> list[StoredMessage]:
        state = (await self.stream_info(stream))["state"]
        messages: list[StoredMessage] = []
        subject = f"$JS.API.STREAM.MSG.GET.{stream}"
        for window in windows(range(max(1, state["first_seq"]), state["last_seq"] + 1)):
            requests = [(subject, b'{"seq": %d}' % sequence, None) for sequence in window]
            for answer in await self.client.request_many(requests, within=15):
                body = json.loads(answer.payload)
                if body.get("error", {}).get("code") == 404:  # deleted, or acknowledged
                    continue
                found = _checked(subject, answer)["message"]
                headers = parse_headers(base64.b64decode(found.get("hdrs", "")))
                payload = base64.b64decode(found.get("data", ""))
                time = datetime.fromisoformat(found["time"]).timestamp()
                messages.append(StoredMessage(found["subject"], headers, payload, found["seq"], time))
        return messages


def _checked(request: str, answer: RawMessage) -> dict[str, Any]:
    if answer.status:
        raise JetStreamError(request, {"code": int(answer.status), "description": "status instead of an answer"})
    body: dict[str, Any] = json.loads(answer.payload)
    if "error" in body:
        raise JetStreamError(request, body["error"])
    return body


def _stored(message: RawMessage) -> StoredMessage:
    # $JS.ACK.STREAM.CONSUMER.DELIVERED.STREAM_SEQUENCE.CONSUMER_SEQUENCE.TIME.PENDING, or with domain and account
    # before the stream and a random token at the end.
    words = (message.reply or "").split(".")
    first = 5 if len(words) == 9 else 7
    sequence, time = int(words[first]), int(words[first + 2]) / 1e9
    return StoredMessage(message.subject, message.headers, message.payload, sequence, time)
