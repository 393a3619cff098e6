"""The last failure of a route, and the failed messages that it is still retrying, on `/status`."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from router_trio import Message
from router_trio.states import BeingRetried, failing
from router_trio.telemetry.http.status import status
from tests.support.eventually import eventually
from tests.support.world import World, core, fill, handled, one_broker, world

ENDLESS = {"initial": "100ms", "max": "1s"}


def shown(w: World) -> dict[str, Any]:
    found: dict[str, Any] = status(w.live, 1.0)["routes"]["route"]
    return found


class Poison:
    """A handler that fails on one payload until it is mended."""

    def __init__(self) -> None:
        self.mended = False

    async def __call__(self, message: Message) -> Message | None:
        if message.payload == b"1" and not self.mended:
            raise ValueError(f"secret {message.payload!r}")
        return message


async def test_a_poison_message_of_a_stream_is_on_the_status_page(autojump_clock: MockClock) -> None:
    poison = Poison()
    route = handled(
        poison, to={"subject": "out.a", "jetstream": True}, stream="IN", durable="router", filter="in.*", retry=ENDLESS
    )
    async with world(handlers=[route], brokers=one_broker()) as w:
        assert (shown(w)["last_failure"], shown(w)["retrying"]) == (None, {"count": 0, "oldest_seconds": 0})
        fill(w.broker, 5)
        await eventually(lambda: (shown(w)["last_failure"] or {"attempt": 0})["attempt"] >= 3, 60)
        last = shown(w)["last_failure"]
        assert last.keys() == {"at", "reason", "detail", "subject", "sequence", "attempt", "place"}
        assert (last["reason"], last["subject"], last["sequence"]) == ("handler_error", "in.x", 2)
        assert "test_last_failure.py" in last["place"]
        assert last["at"].endswith("Z")
        assert "secret" not in str(shown(w))
        await trio.sleep(100)
        assert shown(w)["retrying"]["count"] == 1
        assert shown(w)["retrying"]["oldest_seconds"] > 100
        poison.mended = True
        await eventually(lambda: shown(w)["retrying"] == {"count": 0, "oldest_seconds": 0}, 60)
        assert shown(w)["last_failure"]["sequence"] == 2, "the last failure stays visible"


async def test_a_poison_message_of_a_subject_is_on_the_status_page(autojump_clock: MockClock) -> None:
    poison = Poison()
    route = handled(poison, to="out.a", subject="in.*", retry=ENDLESS | {"attempts": 1000})
    async with world(handlers=[route], brokers=one_broker()) as w:
        fill(w.broker, 5)
        await eventually(lambda: (shown(w)["last_failure"] or {"attempt": 0})["attempt"] >= 3, 60)
        last = shown(w)["last_failure"]
        assert (last["reason"], last["subject"], last["sequence"]) == ("handler_error", "in.x", None)
        assert "test_last_failure.py" in last["place"]
        await trio.sleep(30)
        assert shown(w)["retrying"]["count"] == 1
        assert shown(w)["retrying"]["oldest_seconds"] > 30
        poison.mended = True
        await eventually(lambda: shown(w)["retrying"]["count"] == 0, 60)


@pytest.mark.parametrize("attempts", [1, 3])
async def test_a_message_that_is_given_up_is_no_longer_shown_as_retried(
    attempts: int, autojump_clock: MockClock
) -> None:
    route = handled(
        Poison(), to={"subject": "out.a", "jetstream": True}, stream="IN", durable="router", filter="in.*",
        retry=ENDLESS | {"attempts": attempts},
    )  # fmt: skip
    async with world(handlers=[route], brokers=one_broker()) as w:
        fill(w.broker, 5)
        await eventually(lambda: w.route.given_up["handler_error"] == 1, 60)
        assert shown(w)["retrying"]["count"] == 0
        assert shown(w)["last_failure"]["attempt"] == attempts


async def test_a_core_message_refused_by_its_destination_is_shown_too(autojump_clock: MockClock) -> None:
    async with world([core("in.>", "heard.>")], brokers=one_broker()) as w:
        w.broker.deny_publish("heard.>")
        w.broker.publish("in.x")
        await eventually(lambda: sum(w.route.failed.values()) >= 1)
        assert shown(w)["last_failure"]["reason"] == "permission_denied"


async def test_a_reload_keeps_the_last_failure_and_counts_nothing_twice(autojump_clock: MockClock) -> None:
    async with world([core("in.>", "heard.>")], brokers=one_broker()) as w:
        w.broker.deny_publish("heard.>")
        w.broker.publish("in.x")
        await eventually(lambda: sum(w.route.failed.values()) >= 1)
        await w.live.reload(w.configuration(core("in.>", "elsewhere.>")))
        assert shown(w)["last_failure"]["reason"] == "permission_denied"
        assert shown(w)["retrying"]["count"] == 0


def test_messages_that_another_process_has_settled_are_forgotten() -> None:
    one = BeingRetried()
    for sequence in (5, 7, 9):
        one.add(sequence, float(sequence))
    one.add(5, 100.0)
    assert (len(one), one.oldest(10.0)) == (3, 5.0)
    one.forget_up_to(7)
    assert (len(one), one.oldest(10.0)) == (1, 1.0)
    one.discard(9)
    assert (len(one), one.oldest(10.0)) == (0, 0.0)


def test_the_number_of_remembered_retries_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failing, "MOST_RETRIED", 3)
    one = BeingRetried()
    for sequence in range(10):
        one.add(sequence, float(sequence))
    assert (len(one), one.oldest(10.0)) == (3, 3.0)
