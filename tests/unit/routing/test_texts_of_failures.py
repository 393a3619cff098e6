"""Which texts of a failure are shown: those that were written to be shown, and no others."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from router_trio import Message, Reject, Retry, Router, Settings
from router_trio.errors.quotes import LONGEST_TEXT
from router_trio.routing.handlers.errors import failure_of
from router_trio.telemetry.http.status import status
from router_trio.testing import FakeBroker
from tests.support.eventually import eventually
from tests.support.watch import Watch

HUSH = "the-card-number-of-a-customer"


class Refused(Reject):
    """An error of a program, with a text of its own."""

    def __str__(self) -> str:
        return "no such customer"


def rejects(message: Message) -> Message:
    raise Reject("there is no such customer")


def rejects_by_its_own_class(message: Message) -> Message:
    raise Refused


async def rejects_in_a_nursery(message: Message) -> Message:
    async with trio.open_nursery():
        raise Reject("there is no such customer")


def retries(message: Message) -> Message:
    raise Retry(after=1000, detail="the price list is being written")


def returns_a_dict(message: Message) -> Any:
    return {"card": message.payload.decode()}


async def leaves_a_scope_open(message: Message) -> Message:
    trio.CancelScope().__enter__()
    return message


def raises(message: Message) -> Message:
    raise ValueError(f"can't read {message.payload.decode()}")


def rejects_because_of_another_error(message: Message) -> Message:
    try:
        return raises(message)
    except ValueError as error:
        raise Reject("it can't be read") from error


SHOWN = {
    rejects: "there is no such customer",
    rejects_by_its_own_class: "no such customer",
    rejects_in_a_nursery: "there is no such customer",
    rejects_because_of_another_error: "it can't be read",
    retries: "the price list is being written",
    returns_a_dict: "a handler returns a Message, several, or None; this one returned dict, which is sent as JSON only "
    "if the annotation of its return has that type",
    leaves_a_scope_open: "it returned within a cancel scope",
}


async def failed(
    handler: Callable[..., Any], capfd: pytest.CaptureFixture[str], source: dict[str, Any], **telemetry: str
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Return the log line, the last failure and the details of dead letters of a message that failed."""
    broker, watch = FakeBroker(), Watch()
    broker.add_stream("IN", ["in.*"])
    broker.add_stream("DEAD", ["dead.*"])
    settings = Settings(
        telemetry={"listen": "", "log_format": "json", "handler_errors": "type", **telemetry},
        connections={"main": {"servers": ["nats://fake"]}},
    )
    router = Router(settings, observers=[watch], connect=lambda name, _: broker.connect, log=True)
    router.route(to="out.$1", name="broken", dead_letter={"subject": "dead.$1"}, retry={"attempts": 1}, **source)(
        handler
    )
    async with router.open() as live:
        broker.publish("in.7", HUSH.encode())
        await watch.until("ROUTE_MESSAGE_FAILED")
        await eventually(lambda: len(broker.messages("DEAD")) == 1)
        last = status(live, 1.0)["routes"]["broken"]["last_failure"]
    [line] = [line for line in capfd.readouterr().err.splitlines() if "ROUTE_MESSAGE_FAILED" in line]
    return json.loads(line), last, [one.headers["Router-Dead-Letter-Detail"] for one in broker.messages("DEAD")]


SOURCES = {
    "subject": {"subject": "in.*"},
    "stream": {"stream": "IN", "durable": "router", "filter": "in.*"},
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("handler", SHOWN, ids=lambda handler: handler.__name__)
async def test_a_text_that_was_written_to_be_shown_is_in_the_log_the_status_and_the_dead_letter(
    handler: Callable[..., Any], source: str, capfd: pytest.CaptureFixture[str], autojump_clock: MockClock
) -> None:
    line, last, letters = await failed(handler, capfd, SOURCES[source])
    for text in (line["detail"], last["detail"], *letters):
        assert SHOWN[handler] in text
    assert HUSH not in json.dumps((line, last))
    assert "traceback" not in line


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("handler_errors", ["type", "full"])
async def test_the_text_of_any_other_error_is_only_in_the_dead_letter_unless_enabled(
    handler_errors: str, source: str, capfd: pytest.CaptureFixture[str], autojump_clock: MockClock
) -> None:
    line, last, letters = await failed(raises, capfd, SOURCES[source], handler_errors=handler_errors)
    assert letters == [f"ValueError: can't read {HUSH}"]
    assert (HUSH in json.dumps(line), HUSH in json.dumps(last)) == ((handler_errors == "full"),) * 2


@pytest.mark.parametrize("error", [Reject, lambda text: Retry(1, text)], ids=["Reject", "Retry"])
def test_a_text_of_a_handler_is_one_bounded_line_without_control_characters(error: Callable[[str], Exception]) -> None:
    text = 'forged\n{"level": "INFO"}\r\x1b[2J\u2028\u202e\x00' + "x" * 5000
    shown = failure_of(error(text)).shown
    assert shown is not None
    assert shown.startswith('forged\\n{"level": "INFO"}\\r\\x1b[2J\\u2028\\u202e\\x00x')
    assert shown.isprintable()
    assert len(shown) == LONGEST_TEXT
