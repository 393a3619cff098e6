"""Where a handler raised: its own innermost frame, whatever is around it and below it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import site
import sys
from collections.abc import Callable, Iterator
from functools import partial, wraps
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import router_trio
from router_trio import Message, Reject, Router, Settings
from router_trio.errors import ConfigurationError, HandlerError
from router_trio.events import MessageDeadLettered, MessageFailed, PublishWithAckFailed
from router_trio.routing.handlers.threads import in_thread
from router_trio.routing.handlers.tracebacks import MOST_LINES, OURS, Raised, place_of
from router_trio.testing import FakeBroker
from tests.support.eventually import eventually
from tests.support.settings import core_route
from tests.support.watch import Watch
from tests.support.world import one_broker, stream, to, world

MODULE = """\
import json
import trio

from my_helpers import check


def parse(payload):
    return json.loads(payload)            # line 8


def plain(message):
    raise ValueError("the " + "payload")  # line 12


async def asynchronous(message):
    await trio.sleep(0)
    parse(message.payload)                # line 17


async def in_a_nursery(message):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(asynchronous, message)


def generator(message):
    yield message
    plain(message)                        # line 27


def in_another_file(message):
    check(message)


async def with_a_cause(message):
    try:
        plain(message)
    except ValueError as error:
        raise RuntimeError("outer") from error   # line 38


def recursive(message):
    recursive(message)                    # line 42
"""
HELPERS = "def check(message):\n    assert not message.payload\n"

CASES = {
    "plain": ("handlers.py:12 in plain", "ValueError"),
    "asynchronous": ("handlers.py:8 in parse", "JSONDecodeError"),
    "in_a_nursery": ("handlers.py:8 in parse", ""),
    "generator": ("handlers.py:12 in plain", "ValueError"),
    "in_another_file": ("my_helpers.py:2 in check", "AssertionError"),
    "with_a_cause": ("handlers.py:38 in with_a_cause", "RuntimeError"),
    "recursive": ("handlers.py:42 in recursive", "RecursionError"),
}


@pytest.fixture
def handlers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """Yield a function that finds the handlers above by name, in their own files."""
    for name, text in (("handlers", MODULE), ("my_helpers", HELPERS)):
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    import handlers as module  # type: ignore[import-not-found]

    yield lambda name: getattr(module, name)
    for name in ("handlers", "my_helpers"):
        del sys.modules[name]


@pytest.mark.parametrize("name", CASES)
async def test_a_failure_names_file_line_and_function(
    name: str, handlers: Callable[[str], Any], tmp_path: Path, autojump_clock: MockClock
) -> None:
    place, kind = CASES[name]
    async with world(handlers=[(handlers(name), {"subject": "in.*", "to": "out.$1"})]) as w:
        w.broker.publish("in.7", b"HUSH")
        [failed] = [await w.watch.until("ROUTE_MESSAGE_FAILED")]
    assert isinstance(failed, MessageFailed)
    assert (failed.place or "").startswith(f"{tmp_path}{os.sep}{place}"), failed.place
    assert kind in (failed.error_type or "")
    assert failed.subject == "in.7"
    assert "HUSH" not in str(failed.place)
    assert failed.traceback is None


async def test_the_library_that_the_handler_called_is_named_after_it(
    handlers: Callable[[str], Any], autojump_clock: MockClock
) -> None:
    try:
        await handlers("asynchronous")(Message("in.7", b"{"))
    except ValueError as error:
        place = Raised(error).place
    assert place is not None
    assert place.partition(", by ")[2].startswith(json.decoder.__file__)


async def test_the_traceback_is_shown_if_configured(handlers: Callable[[str], Any], autojump_clock: MockClock) -> None:
    broker, watch = FakeBroker(), Watch()
    settings = Settings(
        telemetry={"listen": "", "handler_errors": "full"}, connections={"main": {"servers": ["nats://fake"]}}
    )
    router = Router(settings, observers=[watch], connect=lambda name, _: broker.connect, log=False)
    router.route("in.*", to="out.$1")(handlers("plain"))
    async with router.open():
        broker.publish("in.7", b"x")
        failed = await watch.until("ROUTE_MESSAGE_FAILED")
    assert isinstance(failed, MessageFailed)
    assert failed.traceback is not None
    assert failed.traceback[-1] == "ValueError: the payload"
    assert any('handlers.py", line 12, in plain' in line for line in failed.traceback)


@pytest.mark.parametrize("name", CASES)
async def test_a_traceback_begins_with_the_handler(name: str, handlers: Callable[[str], Any], tmp_path: Path) -> None:
    assert set(await first_places(handlers(name))) == {f"{tmp_path}{os.sep}handlers.py"}


@pytest.mark.parametrize("name", ["plain", "generator"])
async def test_a_traceback_from_a_thread_begins_with_the_handler(
    name: str, handlers: Callable[[str], Any], tmp_path: Path
) -> None:
    assert set(await first_places(handlers(name), thread=True)) == {f"{tmp_path}{os.sep}handlers.py"}


async def test_a_traceback_from_asyncio_begins_with_the_handler() -> None:
    async def raises(message: Message) -> None:
        await asyncio.sleep(0)
        raise OSError("no way")

    assert await first_places(raises, loop="asyncio") == [__file__]


async def first_places(handler: Any, **how: Any) -> list[str]:
    """Return the file of the first frame of each traceback that a fake broker shows of a failing handler."""
    broker, watch = FakeBroker(), Watch()
    settings = Settings(
        telemetry={"listen": "", "handler_errors": "full"}, connections={"main": {"servers": ["nats://fake"]}}
    )
    router = Router(settings, observers=[watch], connect=lambda name, _: broker.connect, log=False)
    router.route("in.*", to="out.$1", **how)(handler)
    async with router.open():
        broker.publish("in.7", b"x")
        failed = await watch.until("ROUTE_MESSAGE_FAILED")
    assert isinstance(failed, MessageFailed)
    text = "\n".join(failed.traceback or ())
    return re.findall(r'Traceback \(most recent call last\):\n[ |]*File "([^"]+)"', text)


def test_a_traceback_without_a_frame_of_a_handler_is_kept() -> None:
    """It is needed to find an error of the router itself."""
    with pytest.raises(ConfigurationError) as caught:
        Settings(connections=7)
    lines = Raised(caught.value.with_traceback(caught.tb.tb_next)).traceback()
    assert any("router_trio" in line for line in lines)


def test_a_traceback_is_bounded(handlers: Callable[[str], Any]) -> None:
    error: BaseException = ValueError("first")
    for _ in range(30):
        try:
            raise RuntimeError("next") from error
        except RuntimeError as caught:
            error = caught
    assert len(Raised(error).traceback()) == MOST_LINES


def test_an_error_that_was_never_raised_has_no_place() -> None:
    assert Raised(ValueError("x")).place is None


async def test_dead_letters_of_a_stream_are_reported_with_subject_and_sequence(
    handlers: Callable[[str], Any], autojump_clock: MockClock
) -> None:
    brokers = one_broker()
    brokers["main"].add_stream("DEAD", ["dead.>"])
    route = {
        "stream": "IN",
        "durable": "router",
        "filter": "in.*",
        "to": "out.$1",
        "dead_letter": {"subject": "dead.$1"},
    }

    def refuse(message: Message) -> None:
        raise Reject("no")

    async with world(handlers=[(refuse, route)], brokers=brokers) as w:
        for number in range(3):
            w.broker.publish(f"in.{number}", b"x")
        await trio.sleep(5)
        dead = w.watch.of("ROUTE_MESSAGE_DEAD_LETTERED")
    assert all(isinstance(one, MessageDeadLettered) for one in dead)
    assert [(one.subject, one.stream, one.sequence) for one in dead] == [
        ("in.0", "IN", 1),
        ("in.1", "IN", 2),
        ("in.2", "IN", 3),
    ]


async def test_a_refused_publish_is_reported_with_route_and_subject(autojump_clock: MockClock) -> None:
    brokers = one_broker()
    brokers["main"].deny_publish("out.>")
    route = core_route("core.*", "out.$1")
    route["to"][0]["jetstream"] = True
    async with world([route], brokers=brokers) as w:
        w.broker.publish("core.7", b"x")
        refused = await w.watch.until("NATS_PUBLISH_WITH_ACK_ERROR")
    assert isinstance(refused, PublishWithAckFailed)
    assert (refused.route, refused.subject, refused.sequence) == (route["name"], "out.7", None)


@pytest.mark.parametrize("several", [False, True])
async def test_a_refused_copy_is_reported_with_the_sequence_of_its_message(
    several: bool, autojump_clock: MockClock
) -> None:
    brokers = one_broker()
    ends = [to(f"out.{name}.$1", jetstream=True) for name in ("a", "b")[: 1 + several]]
    route = stream("IN", *ends, filter="in.*", retry={"attempts": 1})
    async with world([route], brokers=brokers) as w:
        w.broker.publish("in.6", b"x")
        await eventually(lambda: w.route.settled["routed"] == 1)
        w.broker.deny_publish("out.a.7")
        w.broker.publish("in.7", b"x")
        refused = await w.watch.until("NATS_PUBLISH_WITH_ACK_ERROR")
        assert isinstance(refused, PublishWithAckFailed)
        assert (refused.route, refused.subject, refused.sequence) == ("route", "out.a.7", 2)
        await eventually(lambda: w.route.in_hand == 0)


def answers(message: Message) -> int:
    return 7


class Answers:
    def __call__(self, message: Message) -> int:
        return 7


@wraps(answers)
def around(message: Message) -> int:
    return answers(message)


def endless_wrappers() -> Any:
    def one(message: Message) -> int:
        return 7

    one.__wrapped__ = one  # type: ignore[attr-defined]
    return one


@pytest.mark.parametrize(
    ("handler", "name"),
    [
        (answers, "answers"),
        (partial(answers), "answers"),
        (partial(partial(answers)), "answers"),
        (around, "answers"),
        (in_thread(answers, 1), "answers"),
        (in_thread(partial(around), 1), "answers"),
        (Answers(), "__call__"),
        (Answers().__call__, "__call__"),
        (endless_wrappers(), "one"),
    ],
)
def test_an_error_about_what_a_handler_returned_has_the_place_of_the_handler(handler: Any, name: str) -> None:
    place = Raised(HandlerError("it returned within a cancel scope"), handler).place
    assert re.fullmatch(rf".*test_tracebacks\.py:\d+ in {name}", str(place))


def test_a_handler_that_is_not_written_in_python_has_no_place() -> None:
    assert place_of(dict) is None
    assert place_of(None) is None
    assert place_of(len) is None


def test_code_made_at_run_time_has_a_place_too() -> None:
    """Such code, as attrs and exec make it, has a file name in angle brackets; with and without an outer frame."""
    made: dict[str, Any] = {}
    exec("def handler(message):\n    raise ValueError", made)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        made["handler"](None)
    assert Raised(caught.value).place is not None
    trace = caught.value.__traceback__
    assert trace is not None
    assert Raised(caught.value.with_traceback(trace.tb_next)).place == "<string>:2 in handler"


@pytest.mark.parametrize("folder", site.getsitepackages())
def test_a_caller_in_a_folder_of_packages_is_not_taken_for_the_handler(folder: str) -> None:
    """In Debian's Python only `site` knows the folder of the packages that Debian installs, such as Trio."""
    handler: dict[str, Any] = {}
    library: dict[str, Any] = {}
    exec(compile("def call(handler):\n    handler()", f"{folder}/library/call.py", "exec"), library)
    exec(compile("def handler():\n    raise ValueError('x')", "/srv/routes/handlers.py", "exec"), handler)
    with pytest.raises(ValueError, match="x") as caught:
        library["call"](handler["handler"])
    trace = caught.value.__traceback__
    assert trace is not None
    assert Raised(caught.value.with_traceback(trace.tb_next)).place == "/srv/routes/handlers.py:2 in handler"


def test_every_module_of_the_package_is_its_own() -> None:
    assert OURS[0] == str(Path(router_trio.__file__).parent)
