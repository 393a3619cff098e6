"""Any error that a handler raises fails only its message; cancellations and signals of the router pass through it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from router_trio.errors import HandlerError
from router_trio.message import Message
from router_trio.routing.handlers.loading import load_handler
from router_trio.states import RUNNING
from tests.support.eventually import eventually
from tests.support.world import all_acked, fill, handled, one_broker, overhearing, to, world


class Bare(BaseException):
    """An error that `except Exception` does not catch."""


class Mute(Exception):
    """An error whose text can't be computed either."""

    def __str__(self) -> str:
        raise SystemExit("no text")


def foreign_cancellation() -> trio.Cancelled:
    """Return a `trio.Cancelled` that was kept and has nothing to do with the task that raises it."""
    kept: list[trio.Cancelled] = []

    async def be_cancelled() -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            try:
                await trio.sleep_forever()
            except trio.Cancelled as error:
                kept.append(error)
                raise

    trio.run(be_cancelled)
    return kept[0]


def nested(error: BaseException) -> BaseException:
    return BaseExceptionGroup("outer", [ValueError("inner"), BaseExceptionGroup("inner", [error])])


ERRORS: dict[str, Callable[[], BaseException]] = {
    "SystemExit": lambda: SystemExit(3),
    "KeyboardInterrupt": KeyboardInterrupt,
    "GeneratorExit": GeneratorExit,
    "CancelledError": asyncio.CancelledError,
    "Bare": lambda: Bare("bare"),
    "BaseException": BaseException,
    "StopIteration": lambda: StopIteration(7),
    "StopAsyncIteration": StopAsyncIteration,
    "RecursionError": RecursionError,
    "MemoryError": MemoryError,
    "Mute": Mute,
    "Cancelled": foreign_cancellation,
    "a group of SystemExit": lambda: nested(SystemExit(3)),
    "a group of KeyboardInterrupt": lambda: nested(KeyboardInterrupt()),
    "a group of Cancelled": lambda: nested(foreign_cancellation()),
    "a group of errors": lambda: nested(ValueError()),
}

Raise = Callable[[BaseException], Any]


def at_once(error: BaseException) -> Any:
    raise error


def before_it_blocks(error: BaseException) -> Any:
    async def work() -> None:
        raise error

    return work()


def after_it_blocked(error: BaseException) -> Any:
    async def work() -> None:
        await trio.sleep(0.001)
        raise error

    return work()


def in_a_nursery(error: BaseException) -> Any:
    async def fail() -> None:
        await trio.sleep(0.001)
        raise error

    async def work() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)
            nursery.start_soon(trio.sleep_forever)

    return work()


def in_its_own_cancelled_scope(error: BaseException) -> Any:
    async def work() -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            try:
                await trio.sleep_forever()
            except trio.Cancelled as cancelled:
                raise BaseExceptionGroup("mixed", [cancelled, error]) from None

    return work()


def in_a_generator(error: BaseException) -> Iterator[Message]:
    yield Message("out.never")
    raise error


class Answers:
    """An iterable whose iteration fails."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __iter__(self) -> Iterator[Message]:
        raise self._error


class Awaitable:
    """An awaitable whose first step fails."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __await__(self) -> Generator[Any, Any, None]:
        raise self._error
        yield


class Elusive:
    """An answer that fails at any access."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __getattr__(self, name: str) -> Any:
        raise self._error


WAYS: tuple[Raise, ...] = (
    at_once,
    before_it_blocks,
    after_it_blocked,
    in_a_nursery,
    in_its_own_cancelled_scope,
    in_a_generator,
    Answers,
    Awaitable,
    Elusive,
)


def sometimes(way: Raise, error: BaseException) -> Callable[[Message], Any]:
    return lambda message: way(error) if message.payload == b"bad" else message


def prepared(what: str) -> BaseException:
    # Some errors are made in a Trio run of their own, which can't be nested in another one.
    made: list[BaseException] = []
    thread = threading.Thread(target=lambda: made.append(ERRORS[what]()))
    thread.start()
    thread.join()
    return made[0]


def combined(errors: Iterable[str]) -> list[Any]:
    """Return every way with every error, except a lone cancellation that a scope of the handler takes for its own."""
    absorb = (in_a_nursery, in_its_own_cancelled_scope)
    pairs = [(way, what) for what in errors for way in WAYS if not (what == "Cancelled" and way in absorb)]
    # A StopIteration is how an awaitable returns.
    return [
        pytest.param(way, what, id=f"{what}-{way.__name__}")
        for way, what in pairs
        if (way, what) != (Awaitable, "StopIteration")
    ]


@pytest.mark.parametrize(("way", "what"), combined(ERRORS))
async def test_any_error_of_a_handler_fails_only_its_message_of_a_subject(
    autojump_clock: MockClock, way: Raise, what: str
) -> None:
    handler = handled(sometimes(way, prepared(what)), subject="in.*", to=to("out.{{wildcard(1)}}"))
    async with world(handlers=[handler]) as w, overhearing(w.broker, "out.*") as heard:
        w.broker.publish("in.1", b"bad")
        w.broker.publish("in.2", b"good")
        await eventually(lambda: len(heard) == 1)
        assert dict(w.route.failed) == {"handler_error": 1}
        assert w.route.state == RUNNING
        (failed,) = w.watch.of("ROUTE_MESSAGE_FAILED")
        assert failed.reason == "handler_error"


@pytest.mark.parametrize(
    ("way", "what"), combined(["SystemExit", "KeyboardInterrupt", "CancelledError", "Cancelled", "Mute"])
)
async def test_any_error_of_a_handler_fails_only_its_message_of_a_stream(
    autojump_clock: MockClock, way: Raise, what: str
) -> None:
    error = prepared(what)
    calls = 0

    def once(message: Message) -> Any:
        nonlocal calls
        calls += 1
        return way(error) if calls == 1 else message

    route = handled(once, to=to("out.x", jetstream=True), stream="IN", durable="router")
    async with world(handlers=[route], brokers=one_broker()) as w:
        fill(w.broker, 3)
        await all_acked(w, 3)
        assert sorted(w.payloads("OUT")) == [b"0", b"1", b"2"]
        assert dict(w.route.failed) == {"handler_error": 1}


# --- imports ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("statement", ["raise SystemExit(0)", "raise BaseException", "import sys; sys.exit(2)"])
def test_a_module_that_ends_the_program_when_imported_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, statement: str
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "ending_handlers.py").write_text(f"{statement}\n")
    with pytest.raises(HandlerError, match=r"ending_handlers.*mend that module"):
        load_handler("ending_handlers:handle")


def test_a_module_that_fails_when_its_handler_is_looked_up_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "lazy_handlers.py").write_text("def __getattr__(name):\n    raise SystemExit(name)\n")
    with pytest.raises(HandlerError, match=r"lazy_handlers.*SystemExit"):
        load_handler("lazy_handlers:handle")
