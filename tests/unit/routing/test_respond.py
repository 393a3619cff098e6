"""Routes that respond: the answers of a handler are sent to the requester, and to no other subject."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from router_trio import Message, Router
from router_trio.errors import ConfigurationError
from router_trio.protocol.framing import header_block, payload, text
from router_trio.protocol.headers import decode
from router_trio.settings import Settings
from router_trio.testing import FakeBroker
from router_trio.testing.frames import Publish
from tests.support.eventually import eventually
from tests.support.world import World, handled, overhearing, to, world
from tests.unit.settings.problems import MAIN, problems, route

INBOX = "_INBOX.asker.1"


def shout(message: Message) -> Message:
    return message.replace(payload=message.payload.upper())


async def shout_later(message: Message) -> Message:
    await trio.sleep(0.01)
    return shout(message)


def answering(handler: Callable[..., Any], *destinations: Any, **more: Any) -> Any:
    return handled(handler, subject="calls.*", to=list(destinations), respond=True, **more)


async def asked(w: World, body: bytes, headers: dict[str, str] | None = None, reply: str = INBOX) -> None:
    if reply.startswith("$JS.ACK."):
        # No client may publish with this reply, but a consumer that delivers to the subject does.
        w.broker._server.publish(Publish(b"calls.x", reply.encode(), b"", body), trio.current_time())
        w.broker._network.settle()
    else:
        w.broker.publish("calls.x", body, headers, reply=reply)
    await eventually(lambda: w.route.in_hand == 0 and w.route.received > 0)
    await eventually(lambda: w.live.connections["main"].outbox.ledger.unsettled == 0)


@pytest.mark.parametrize("handler", [shout, shout_later])
async def test_the_answer_of_the_handler_is_sent_to_the_reply_subject(handler: Any, autojump_clock: MockClock) -> None:
    async with world(handlers=[answering(handler)]) as w, overhearing(w.broker, "_INBOX.asker.>") as heard:
        await asked(w, b"hello", {"X-Shop": "north", "Nats-Msg-Id": "7", "Nats-TTL": "5"})
        await eventually(lambda: len(heard) == 1)
        (answer,) = heard
        assert (text(answer[0]), payload(answer), answer[1]) == (INBOX, b"HELLO", b"")
        assert dict(decode(header_block(answer))) == {"X-Shop": "north"}
        assert w.route_ledger() == (1, 0, {"routed": 1})
        assert w.route.routed == {"(reply)": 1}


async def test_an_answer_is_sent_in_addition_to_the_copies(autojump_clock: MockClock) -> None:
    async with world(handlers=[answering(shout, "heard.x")]) as w, overhearing(w.broker, "_INBOX.asker.>") as heard:
        await asked(w, b"a")
        await eventually(lambda: len(heard) == 1)
        assert sorted(w.subjects()) == [INBOX, "heard.x"]
        assert w.route.routed == {"heard.x": 1, "(reply)": 1}
        assert w.route_ledger() == (1, 0, {"routed": 1})


async def test_several_answers_with_headers_of_the_handler_arrive(autojump_clock: MockClock) -> None:
    def both(message: Message) -> list[Message]:
        return [message.replace(payload=part, headers={"N": part.decode()}) for part in (b"1", b"2")]

    async with world(handlers=[answering(both)]) as w, overhearing(w.broker, "_INBOX.asker.>") as heard:
        await asked(w, b"a", {"X": "y"})
        await eventually(lambda: len(heard) == 2)
        assert [(payload(one), dict(decode(header_block(one)))) for one in heard] == [
            (b"1", {"N": "1"}),
            (b"2", {"N": "2"}),
        ]
        assert w.route_ledger() == (1, 0, {"routed": 1})


@pytest.mark.parametrize(
    ("reply", "reason"),
    [("", "no_reply"), ("$JS.ACK.S.C.1.1.1.1.0", "reserved_subject"), ("$SYS.x", "reserved_subject")],
)
async def test_a_message_without_a_usable_reply_subject_is_not_answered(
    reply: str, reason: str, autojump_clock: MockClock
) -> None:
    async with world(handlers=[answering(shout)]) as w:
        await asked(w, b"a", reply=reply)
        assert w.subjects() == []
        assert w.watch.metric("router_messages_unanswered_total", reason=reason) == 1
        assert w.route_ledger() == (1, 0, {"filtered": 1})
    async with world(handlers=[answering(shout, "heard.x")]) as w:
        await asked(w, b"a", reply=reply)
        assert w.subjects() == ["heard.x"]
        assert w.route_ledger() == (1, 0, {"routed": 1})
        assert w.route.unanswered == {reason: 1}


ELSEWHERE = ["out.x", "_INBOX", "_INBOXES.a", "_INBOX.", "_R_.a.b", "answers", "answers.y.z"]


@pytest.mark.parametrize("reply", ELSEWHERE)
async def test_only_inboxes_are_answered_unless_reply_to_allows_others(reply: str, autojump_clock: MockClock) -> None:
    async with world(handlers=[answering(shout, reply_to=["answers.*", "_R_.a"])]) as w:
        await asked(w, b"a", reply=reply)
        assert w.subjects() == []
        assert w.route.unanswered == {"reserved_subject": 1}


async def test_subjects_that_reply_to_allows_are_answered(autojump_clock: MockClock) -> None:
    async with (
        world(handlers=[answering(shout, reply_to=["answers.*", "_R_.>"])]) as w,
        overhearing(w.broker, ">") as heard,
    ):
        for reply in ("answers.x", "_R_.a.b", INBOX):
            await asked(w, b"a", reply=reply)
            await eventually(lambda reply=reply: reply in [text(one[0]) for one in heard])  # type: ignore[misc]


OWN = ["{}", "{}.7", "{}-pull-1", "{}-lead-1", "{}-api.x.1", "{}.a.1"]


@pytest.mark.parametrize("prefix", ["_INBOX", "team.answers", "_INBOX.router"])
@pytest.mark.parametrize("form", OWN)
async def test_an_inbox_of_the_router_is_never_answered(form: str, prefix: str, autojump_clock: MockClock) -> None:
    connections = {"main": {"inbox_prefix": prefix}}
    async with world(handlers=[answering(shout, reply_to=[">"])], connections=connections) as w:
        inbox = text(w.live.connections["main"].inbox)
        await asked(w, b"a", reply=form.format(inbox))
        await asked(w, b"a", reply="$KV.b.k")
        await eventually(lambda: w.route.unanswered == {"reserved_subject": 2})
        assert w.subjects() == []


async def test_an_inbox_of_another_process_of_the_router_is_never_answered(autojump_clock: MockClock) -> None:
    async with world(handlers=[answering(shout)]) as other:
        inbox = text(other.live.connections["main"].inbox)
    async with world(handlers=[answering(shout, reply_to=[">"])]) as w:
        await asked(w, b"a", reply=f"{inbox}.7")
        assert w.subjects() == []


async def test_an_answer_carries_no_status(autojump_clock: MockClock) -> None:
    async with world(handlers=[answering(shout)]) as w, overhearing(w.broker, "_INBOX.asker.>") as heard:
        for block in (b"NATS/1.0 503\r\n\r\n", b"NATS/1.0 100 Idle\r\nA: b\r\n\r\n"):
            w.broker._server.publish(Publish(b"calls.x", INBOX.encode(), block, b"a"), trio.current_time())
        w.broker.publish("calls.x", b"b", reply=INBOX)
        await eventually(lambda: len(heard) == 3)
        assert [header_block(one) for one in heard] == [b"", b"NATS/1.0\r\nA: b\r\n\r\n", b""]


@pytest.mark.parametrize("late", [False, True])
async def test_a_handler_that_raises_answers_with_an_error(late: bool, autojump_clock: MockClock) -> None:
    def fails(message: Message) -> Message:
        raise KeyError("secret of the payload")

    async def fails_late(message: Message) -> Message:
        await trio.sleep(0.01)
        raise KeyError("secret of the payload")

    async with (
        world(handlers=[answering(fails_late if late else fails)]) as w,
        overhearing(w.broker, "_INBOX.asker.>") as heard,
    ):
        await asked(w, b"a")
        await eventually(lambda: len(heard) == 1)
        headers = decode(header_block(heard[0]))
        assert dict(headers) == {"Nats-Service-Error": "KeyError", "Nats-Service-Error-Code": "500"}
        assert payload(heard[0]) == b""
        assert w.route_ledger() == (1, 0, {"lost": 1})
        assert w.route.failed == {"handler_error": 1}


async def test_a_filtered_message_is_not_answered(autojump_clock: MockClock) -> None:
    async with world(handlers=[answering(lambda message: None, name="none")]) as w:
        await asked(w, b"a")
        assert w.subjects() == []
        assert w.route_ledger() == (1, 0, {"filtered": 1})


async def test_an_answer_that_is_too_large_fails_the_message(autojump_clock: MockClock) -> None:
    broker = FakeBroker(max_payload=1000)
    handler = answering(lambda message: message.replace(payload=b"x" * 2000), name="large")
    async with world(handlers=[handler], brokers={"main": broker}) as w:
        await asked(w, b"a")
        assert w.subjects() == []
        assert w.route.failed == {"too_large": 1}
        assert w.route_ledger() == (1, 0, {"lost": 1})


async def test_many_requests_are_answered_in_order(autojump_clock: MockClock) -> None:
    async with world(handlers=[answering(shout)]) as w, overhearing(w.broker, "_INBOX.asker.>") as heard:
        for number in range(500):
            w.broker.publish("calls.x", b"%d" % number, reply=f"{INBOX}.{number}")
        await eventually(lambda: len(heard) == 500)
        assert [text(one[0]) for one in heard] == [f"{INBOX}.{number}" for number in range(500)]
        await eventually(lambda: w.route_ledger() == (500, 0, {"routed": 500}))


async def test_conditions_decide_about_copies_and_not_about_the_answer(autojump_clock: MockClock) -> None:
    elsewhere = to("heard.x") | {"when": 'payload == b"B"'}
    async with (
        world(handlers=[answering(shout, elsewhere)]) as w,
        overhearing(w.broker, "_INBOX.asker.>") as heard,
    ):
        for body in (b"a", b"b"):
            await asked(w, body)
        await eventually(lambda: len(heard) == 2)
        assert w.subjects().count("heard.x") == 1
        assert w.route_ledger() == (2, 0, {"routed": 2})


def test_a_route_that_answers_needs_a_handler_and_a_subject() -> None:
    stream = route(from_stream="IN", from_durable="d", respond=True, handler="a:b")
    found = problems(lambda: Settings(connections=MAIN, routes=[stream]))
    assert "has no reply subject" in found["routes[0].respond"]
    nowhere = route(to=[])
    assert (
        "add [[routes.to]], or set respond = true"
        in problems(lambda: Settings(connections=MAIN, routes=[nowhere]))["routes[0].to"]
    )
    bare = Settings(connections=MAIN, routes=[route(to=[], respond=True)])

    async def open_it() -> None:
        async with Router(bare).open():
            raise AssertionError("not reached")

    with pytest.raises(ConfigurationError, match="name a handler, or remove it"):
        trio.run(open_it)


@pytest.mark.parametrize(
    ("more", "where", "message"),
    [
        ({"respond": True, "reply_to": ["a*"]}, "routes[0].reply_to[0]", "wildcard inside"),
        ({"respond": True, "reply_to": ["a.>", "$JS.>"]}, "routes[0].reply_to[1]", "begins with '$'"),
        ({"reply_to": ["a.>"]}, "routes[0].reply_to", "set respond = true"),
    ],
)
def test_a_useless_reply_to_is_refused(more: dict[str, Any], where: str, message: str) -> None:
    found = problems(lambda: Settings(connections=MAIN, routes=[route(handler="a:b", **more)]))
    assert message in found[where]


@pytest.mark.parametrize("passes_at", [2, 9])
async def test_a_request_that_is_retried_is_answered_once(passes_at: int, autojump_clock: MockClock) -> None:
    calls = 0

    def passes_later(message: Message) -> Message:
        nonlocal calls
        calls += 1
        if calls < passes_at:
            raise ValueError("not yet")
        return message

    async with (
        world(handlers=[answering(passes_later, retry={"attempts": 3})]) as w,
        overhearing(w.broker, "_INBOX.asker.>") as heard,
    ):
        await asked(w, b"a")
        await eventually(lambda: w.route.in_hand == 0, within=60)
        await eventually(lambda: len(heard) == 1)
        await trio.sleep(60)
        (answer,) = heard
        assert header_block(answer) == b"" if passes_at == 2 else b"ValueError" in header_block(answer)
        assert calls == min(passes_at, 3)
