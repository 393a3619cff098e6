"""PubAcks: the answers of a stream to JetStream publishes, read from raw messages.

Their form is that of the JetStream API reference: `{"stream": ..., "seq": ..., "duplicate": ...}` or `{"error": ...}`;
a header status 503 means that no stream takes the subject.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from operator import itemgetter

from router_trio.errors import codes, reasons
from router_trio.errors.quotes import excerpt
from router_trio.link import LinkListener, PubAck, stored, stored_each
from router_trio.protocol import framing, headers
from router_trio.protocol.bounded_json import AnswerError, Object, read
from router_trio.protocol.framing import LAST_SEQUENCE

_STORED = re.compile(rb'\{"stream": ?"[^"\\]+", ?(?:"domain": ?"[^"\\]*", ?)?"seq": ?([1-9][0-9]{0,18})\}')

MAX_ANSWER = 8 * 1024
"""Bytes of a PubAck, which names a stream and its domain, or describes an error."""

MAX_DIGITS = 18
"""Digits of the number of a publish. At a thousand publishes per microsecond this lasts for thirty years."""

FEW = 8
"""Answers that are read one by one, since that takes no longer."""

_ZERO = ord("0")

_subject, _tail = itemgetter(0), itemgetter(4)

MAX_REMEMBERED = 1024
"""Remembered beginnings of PubAcks, a few for each stream that is published to. Beyond that all are forgotten."""


MAX_KEPT = 8192
"""PubAcks kept until it is known whether their stream exists. Others are passed over, and their publishes resent.

This is more than may be in flight, so only forged PubAcks exceed it.
"""

MAX_ASKED_ABOUT = 64
"""Streams that are looked up at a time. PubAcks of others are passed over as well."""

StreamName = tuple[str, str]
"""A stream and its JetStream domain, `""` for none."""


class Refused(Exception):
    """The answer to a publish is not a PubAck; it contains the reason. `retriable`: a later try may succeed.

    `stream` is the name of the stream that refused it, `""` if the answer does not contain it.
    """

    def __init__(self, reason: str, detail: str, retriable: bool = False) -> None:
        super().__init__(detail)
        self.stream: str = ""
        self.reason: str = reason
        self.detail: str = detail
        self.retriable: bool = retriable


def read_puback(raw: framing.RawMessage) -> tuple[StreamName, int, bool]:
    """Return the stream that stored a publish, the sequence, and True if it is a duplicate. Raises `Refused`.

    What is not an answer of a stream is refused as `BAD_ANSWER`: any client can have a service, or the JetStream API,
    answer a request to the inbox of our PubAcks.
    """
    code, description = headers.status(framing.header_block(raw))
    if code == 503:
        raise Refused(reasons.NO_RESPONDERS, "no stream takes this subject", True)
    try:
        answer = read(framing.payload(raw), MAX_ANSWER)
        if answer.text("type", ""):
            raise AnswerError("it is an answer of the JetStream API")
        error = answer.object("error")
        if error is not None:
            refused = _refusal(error)
            refused.stream = answer.text("stream", "")
            raise refused
        stream, sequence = answer.text("stream"), answer.number("seq", low=1, high=LAST_SEQUENCE)
        return (stream, answer.text("domain", "")), sequence, answer.flag("duplicate")
    except AnswerError as wrong:
        detail = f"not a PubAck: {code} {description}" if code else f"not a PubAck: {wrong}"
        raise Refused(reasons.BAD_ANSWER, detail) from wrong


def _refusal(error: Object) -> Refused:
    """Return the refusal for an error in an answer. Raises `AnswerError`."""
    detail = error.description("description") or "error"
    status, error_code = error.number("code", 0, high=999), error.number("err_code", 0, high=99_999)
    retriable = status == 429 or error_code in codes.PASSING
    return Refused(_reason(error_code, detail), codes.explained(error_code, detail), retriable)


class PubAcks:
    """Read the answers received on one link, and report them to a listener.

    Any client that may publish to an inbox can forge a PubAck. So the first one of each stream is kept until the server
    has been asked whether it has that stream: `ask` is called, and `found` gets the result. PubAcks of an existing
    stream are accepted.
    """

    def __init__(
        self,
        listener: LinkListener,
        ask: Callable[[StreamName], None] | None = None,
        hide: Callable[[str], str] = str,
    ) -> None:
        """Without `ask`, PubAcks of every stream are accepted. `hide` removes secrets from the text of a refusal."""
        self._hide = hide
        self._listener = listener
        self._ask = ask
        self._streams: dict[bytes, str] = {}
        self._known: set[StreamName] = set()
        self._kept: dict[StreamName, list[PubAck]] = {}
        self._kept_count = 0

    def found(self, stream: StreamName, exists: bool) -> None:
        """Record that the server has this stream, or may have it, or does not have it. May be called without `ask`."""
        if exists and stream not in self._known:
            if len(self._known) >= MAX_REMEMBERED:
                self._forget()
            self._known.add(stream)
        elif not exists and stream in self._known:
            self._forget()
        kept = self._kept.pop(stream, [])
        self._kept_count -= len(kept)
        if not kept:
            return
        if exists:
            self._listener.acked(kept)
        else:
            name = excerpt(stream[0])
            detail = (
                f"the PubAck names the stream {name!r}, which does not exist here; if the server maps the subject to "
                f"one of another account, name that stream: stream = {name!r}"
            )
            # Another answer to the same publish may be the right one.
            others = {order for pubacks in self._kept.values() for order, _ in pubacks}
            for order in dict.fromkeys(order for order, _ in kept if order not in others):
                self._listener.ack_refused(order, reasons.BAD_ANSWER, detail, False)
        self._listener.read_done()

    def read(self, batch: Sequence[framing.RawMessage]) -> None:
        """Report the meaning of each answer for the publish whose number ends its subject.

        The fate passed to the listener contains the stream that stored it.

        Fast path of `one_by_one`; held equal by
        tests/unit/nats/test_pubacks.py::test_both_ways_to_read_pubacks_are_the_same, worth 75 instructions a message
        (tests/performance/test_fast_paths.py::test_pubacks_that_are_read_together).
        """
        acked = self._all(batch) if len(batch) > FEW else None
        if acked is None:
            self.one_by_one(batch)
        else:
            self._listener.acked(acked)

    def _all(self, batch: Sequence[framing.RawMessage]) -> list[PubAck] | None:
        """Return all answers as PubAcks if they differ only in their numbers, after a known beginning; else None."""
        count, first = len(batch), batch[0]
        start = first[4][: first[4].rfind(b":") + 1]
        stream = self._streams.get(start)
        if stream is None:
            return None
        tails = b"".join(map(_tail, batch))
        numbers = tails.replace(start, b"")
        if len(tails) - len(numbers) != count * len(start):
            return None
        inbox = first[0][: first[0].rfind(b".") + 1]
        orders = b"".join(map(_subject, batch)).replace(inbox, b" ").split()
        sequences = numbers.split(b"}\r\n")
        if not (
            len(orders) == len(sequences) - 1 == count
            and b"".join(orders).isdigit()
            and len(max(orders, key=len)) <= MAX_DIGITS
            # All have the same number of digits: `start` contains the size of the message.
            and b"".join(sequences).isdigit()
            and sequences.pop() == b""
            and b"\n0" not in numbers
            and numbers[0] != _ZERO
        ):
            return None
        try:
            return [*zip(map(int, orders), stored_each(stream, map(int, sequences)), strict=True)]
        except ValueError:
            return None  # one is empty

    def one_by_one(self, batch: Sequence[framing.RawMessage]) -> None:
        """Read each answer by itself. Equivalent to `read`."""
        streams = self._streams
        acked: list[PubAck] = []
        for raw in batch:
            subject, tail = raw[0], raw[4]
            number = subject[subject.rfind(b".") + 1 :]
            if not number.isdigit() or len(number) > MAX_DIGITS:
                continue
            # PubAcks of a stream differ only in their last number: the text before it has been read once already.
            last = tail.rfind(b":") + 1
            stream = streams.get(tail[:last])
            if stream is not None:
                # Not earlier: in compiled code a slice must not end before it starts, and other answers may end with a
                # colon.
                sequence = tail[last:-3]
                if sequence.isdigit() and tail.endswith(b"}\r\n") and sequence[0] != _ZERO:
                    acked.append((int(number), stored(stream, int(sequence))))
                    continue
            self._listener.acked(acked)
            acked = []
            self._read(int(number), raw)
        self._listener.acked(acked)

    def _read(self, order: int, raw: framing.RawMessage) -> None:
        body = framing.payload(raw)
        try:
            named, sequence, duplicate = read_puback(raw)
        except Refused as refused:
            detail = self._hide(refused.detail)
            self._listener.ack_refused(order, refused.reason, detail, refused.retriable, stream=refused.stream)
            return
        stream = named[0]
        if self._ask is not None and named not in self._known:
            self._keep(named, (order, stored(stream, sequence, duplicate)))
            return
        if not duplicate:
            self._remember(body, raw, stream)
        self._listener.acked([(order, stored(stream, sequence, duplicate))])

    def _forget(self) -> None:
        self._known.clear()
        self._streams.clear()

    def _keep(self, stream: StreamName, puback: PubAck) -> None:
        kept = self._kept.get(stream)
        if self._kept_count >= MAX_KEPT or (kept is None and len(self._kept) >= MAX_ASKED_ABOUT):
            return
        self._kept_count += 1
        if kept is not None:
            kept.append(puback)
            return
        self._kept[stream] = [puback]
        assert self._ask is not None
        self._ask(stream)

    def _remember(self, body: bytes, raw: framing.RawMessage, stream: str) -> None:
        found = _STORED.fullmatch(body)
        if found is not None and not raw[2] and not raw[1]:
            if len(self._streams) >= MAX_REMEMBERED:
                self._streams.clear()
            tail = raw[4]
            self._streams[tail[: len(tail) - 3 - len(found[1])]] = stream


def _reason(code: int, detail: str) -> str:
    if code in codes.TOO_LARGE:
        return reasons.TOO_LARGE
    words = detail.lower()
    if code in codes.OF_EXPECTATIONS or "wrong last" in words or "expected stream" in words:
        return reasons.WRONG_EXPECTATION
    if code in (0, codes.STORE_FAILED) and "per subject" in words:
        return reasons.SUBJECT_LIMIT
    if "maximum" in words or "insufficient" in words or "exceeded" in words:
        return reasons.LIMIT
    # The reason becomes the label of a counter: unknown codes are not distinguished.
    return reasons.of_code(code) if code in codes.ALL else reasons.JETSTREAM
