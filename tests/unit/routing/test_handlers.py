"""Python handlers: how they are called, what they may answer, and what is done with the answer."""

from __future__ import annotations

import sys
import threading
from collections.abc import AsyncIterator, Iterable, Iterator
from contextvars import copy_context
from functools import wraps
from itertools import count, repeat
from pathlib import Path
from typing import Any

import pytest
import trio

from router_trio import Router, Settings
from router_trio.errors import ConfigurationError, HandlerError
from router_trio.message import Message
from router_trio.protocol import framing
from router_trio.protocol.headers import Headers
from router_trio.routing.handlers.answers import MOST_ANSWER_BYTES, MOST_ANSWERS, answers_of
from router_trio.routing.handlers.calls import Blocked, Handler, begin, finished
from router_trio.routing.handlers.loading import load_handler, load_lifespan, unfit
from router_trio.routing.handlers.messages import as_message
from router_trio.routing.handlers.scopes import scopes_of_task
from router_trio.routing.handlers.threads import InThread, in_thread, left_behind_by
from router_trio.testing.frames import raw
from tests.unit.routing.handler_functions import asynchronous, three

MESSAGE = Message("in.x", b"payload")
OTHER = Message("in.y", b"other")


# --- calling ---------------------------------------------------------------------------------------------------------


async def invoke(handler: Handler, message: Message) -> list[Message]:
    """Call a handler as `Routing` does."""
    scopes, context = scopes_of_task(), copy_context()
    answer = begin(handler, message, context)
    return await finished(answer, scopes, context) if isinstance(answer, Blocked) else answers_of(answer)


def generator(message: Message) -> Iterator[Message]:
    yield message
    yield OTHER


async def in_a_task(message: Message) -> list[Message]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.lowlevel.checkpoint)
    return [message]


@pytest.mark.parametrize(
    ("handler", "answers"),
    [
        (lambda message: message, [MESSAGE]),
        (lambda message: None, []),
        (lambda message: [], []),
        (lambda message: (message, OTHER), [MESSAGE, OTHER]),
        (lambda message: {message: 1}.keys(), [MESSAGE]),
        (generator, [MESSAGE, OTHER]),
        (asynchronous, [MESSAGE]),
        (in_a_task, [MESSAGE]),
    ],
)
async def test_answers_that_a_handler_may_return(handler: Any, answers: list[Message]) -> None:
    assert await invoke(handler, MESSAGE) == answers


class Once:
    """An awaitable whose iterator is a plain one, which `yield from` accepts too."""

    def __await__(self) -> Iterator[Any]:
        return iter(())


async def test_an_awaitable_without_a_coroutine_is_awaited() -> None:
    assert await invoke(lambda message: Once(), MESSAGE) == []


async def test_a_handler_that_does_not_block_answers_at_once_and_one_that_blocks_is_awaited() -> None:
    async def at_once(message: Message) -> Message:
        return message

    assert begin(at_once, MESSAGE, copy_context()) is MESSAGE
    blocked = begin(asynchronous, MESSAGE, copy_context())
    assert isinstance(blocked, Blocked)
    assert await blocked is MESSAGE


async def test_a_blocked_handler_can_be_cancelled_where_it_waits() -> None:
    seen: list[str] = []

    async def sleeper(message: Message) -> Message:
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            seen.append("cancelled")
            raise
        return message

    with trio.CancelScope() as scope:
        blocked = begin(sleeper, MESSAGE, copy_context())
        assert isinstance(blocked, Blocked)
        scope.cancel()
        await blocked
    assert scope.cancelled_caught
    assert seen == ["cancelled"]


async def endless(message: Message) -> AsyncIterator[Message]:
    yield message


class Callable3:
    def __call__(self, message: Message, extra: int, more: int) -> None: ...


@pytest.mark.parametrize(
    ("handler", "error"),
    [
        (three, r"takes \(message, extra, more\); give all other parameters a default"),
        (Callable3(), "give all other parameters a default"),
        (lambda: None, r"it is called with the message alone, and takes \(\)"),
        (lambda *, key: None, "give all other parameters a default"),
        (endless, "it is an async generator; return a list of messages instead"),
    ],
)
def test_a_function_that_can_not_be_a_handler_is_refused_before_it_is_called(handler: Any, error: str) -> None:
    with pytest.raises(ConfigurationError, match=error):
        Router(Settings(connections={"main": {"servers": ["nats://h"]}})).route("in", to="out", name="r")(handler)


def test_a_function_that_does_not_fit_a_router_with_a_lifespan_is_refused_with_what_it_would_get() -> None:
    assert unfit(three, has_lifespan=True) == (
        "it is called with the message and what the lifespan yields, and takes (message, extra, more); "
        "give all other parameters a default"
    )


def test_a_lifespan_without_a_colon_is_refused_with_the_form_of_the_name() -> None:
    with pytest.raises(HandlerError, match=r"^lifespan 'shop.app' is not of the form 'package.module:function'$"):
        load_lifespan("shop.app")


def test_functions_with_default_arguments_or_without_a_signature_are_accepted() -> None:
    router = Router(Settings(connections={"main": {"servers": ["nats://h"]}}))
    native: Any = dict
    router.route("in", to="out", name="a")(lambda message, more=1, *rest, key=2: message)
    router.route("in", to="out", name="b")(native)
    assert [route.name for route in router.settings.routes] == ["a", "b"]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (7, "int"),
        (True, "bool"),
        ("text", "str"),
        (b"", "bytes"),
        (bytearray(), "bytearray"),
        ({}, "dict"),
        ([MESSAGE, "text"], "str"),
        ([None], "NoneType"),
        (Message("in.x", "text"), "payload"),  # type: ignore[arg-type]
        (Message("in.x", b"", headers={"A": "1"}), "headers"),  # type: ignore[arg-type]
        (Message(b"in.x", b""), "subject"),  # type: ignore[arg-type]
        (Message("in.x", reply=b"x"), "reply"),  # type: ignore[arg-type]
        (endless(MESSAGE), "async_generator"),
    ],
)
async def test_answers_that_a_handler_may_not_return(answer: object, error: str) -> None:
    with pytest.raises(HandlerError, match=error):
        await invoke(lambda message: answer, MESSAGE)


class Endless:
    """An iterable that is not an iterator."""

    def __iter__(self) -> Iterator[Message]:
        return repeat(MESSAGE)


def yields_for_ever(message: Message) -> Iterator[Message]:
    while True:
        yield message


@pytest.mark.parametrize("answer", [repeat(MESSAGE), Endless(), yields_for_ever(MESSAGE)], ids=["C", "object", "yield"])
def test_an_endless_answer_is_refused(answer: Iterable[Message]) -> None:
    with pytest.raises(HandlerError, match=r"at most 65,536 messages"):
        answers_of(answer)


def test_an_endless_answer_is_refused_at_the_first_item_that_is_not_a_message() -> None:
    with pytest.raises(HandlerError, match="there is int among these"):
        answers_of(count())


def test_answers_are_bounded_in_number_and_in_bytes() -> None:
    assert len(answers_of(MESSAGE for _ in range(MOST_ANSWERS))) == MOST_ANSWERS
    with pytest.raises(HandlerError, match=r"at most 65,536 messages"):
        answers_of([MESSAGE] * (MOST_ANSWERS + 1))
    quarter = MESSAGE.replace(payload=bytes(MOST_ANSWER_BYTES // 4))
    assert len(answers_of([quarter] * 4)) == 4
    with pytest.raises(HandlerError, match=r"at most 67,108,864 bytes"):
        answers_of(repeat(quarter))


def test_a_message_for_a_handler_has_everything_the_raw_message_has() -> None:
    block = b"NATS/1.0\r\nA: 1\r\nA: 2\r\n\r\n"
    message = as_message(raw(b"in.\xff", b"reply.to", block, b"payload"), "main")
    assert message == Message(
        framing.text(b"in.\xff"), b"payload", Headers([("A", "1"), ("A", "2")]), reply="reply.to", connection="main"
    )
    message = as_message(raw(b"in.x", b"$JS.ACK.x", b"", b""), "main", stream="S", sequence=3, deliveries=2)
    assert (message.reply, message.stream, message.sequence, message.deliveries) == (None, "S", 3, 2)


def test_a_handler_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "good_handlers.py").write_text("def handle(message): return message\nnumber = 7\n")
    (tmp_path / "broken_handlers.py").write_text("1 / 0\n")
    assert load_handler("good_handlers:handle")(MESSAGE) is MESSAGE
    for name, error in (
        ("good_handlers:nothing", "no function 'nothing'"),
        ("good_handlers:number", "no function 'number'"),
        ("no_such_module:handle", r"can't import 'no_such_module'.*sys\.path"),
        ("broken_handlers:handle", "ZeroDivisionError"),
    ):
        with pytest.raises(HandlerError, match=error):
            load_handler(name)
    del sys.modules["good_handlers"]


# --- in a thread -----------------------------------------------------------------------------------------------------


class Halting(set[object]):
    """The calls that were left behind. A thread that removes its call halts just after that."""

    def __init__(self) -> None:
        super().__init__()
        self.halted = threading.Event()
        self.go_on = threading.Event()

    def discard(self, element: object, /) -> None:
        super().discard(element)
        if threading.current_thread() is not threading.main_thread():
            self.halted.set()
            self.go_on.wait(10)


async def test_a_call_that_returns_while_its_task_is_cancelled_is_not_left_behind() -> None:
    handler = InThread(lambda message: None, 1)
    handler.left_behind = calls = Halting()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(handler.call, MESSAGE)
        assert await trio.to_thread.run_sync(calls.halted.wait, 10)
        nursery.cancel_scope.cancel()
    calls.go_on.set()
    with trio.fail_after(10):
        while handler._limiter.borrowed_tokens:
            await trio.sleep(0.01)
    assert not calls


async def test_a_program_learns_in_which_file_a_handler_is_missing(tmp_path: Path) -> None:
    file = tmp_path / "router.toml"
    file.write_text(
        '[telemetry]\nlisten = ""\n[connections.main]\nservers = ["nats://h"]\n'
        '[[routes]]\nname = "orders"\nfrom = { subject = "in" }\nto = [ { subject = "out" } ]\nthread = true\n'
    )
    with pytest.raises(ConfigurationError) as caught:
        async with Router(Settings.load(file, environ={})).open():
            pass
    assert str(caught.value) == (
        f"{file}: routes[0].thread: calls a handler, and the route has none; name a handler, or remove it "
        "(line 9, route 'orders')"
    )


def test_calls_left_behind_are_found_behind_the_wrapper_of_a_worker() -> None:
    threaded = in_thread(_same, 1)

    @wraps(threaded)
    def around(message: Message) -> Any:
        return threaded(message)

    assert left_behind_by(around) is left_behind_by(threaded)
    assert left_behind_by(_same) is not left_behind_by(threaded)


def _same(message: Message) -> Message:
    return message
