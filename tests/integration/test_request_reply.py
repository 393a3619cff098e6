"""Requests to a real server that a route answers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from router_trio import Live, Message, Router
from tests.support.eventually import eventually
from tests.support.raw_nats import NoResponders, RawClient, connect
from tests.support.servers import nats_server
from tests.support.settings import settings


async def price(message: Message) -> Message | None:
    await trio.lowlevel.checkpoint()
    if message.payload == b"fail":
        raise KeyError("unknown article")
    if message.payload == b"ignore":
        return None
    return message.replace(payload=b"price of " + message.payload, headers={"Currency": "EUR"})


@asynccontextmanager
async def shop(tmp_path: Path) -> AsyncIterator[tuple[Live, RawClient]]:
    async with nats_server(tmp_path) as server, connect(server.url) as client:
        router = Router(settings(server.url))
        router.route("prices.*", respond=True)(price)
        async with router.open() as live:
            yield live, client


async def test_a_request_is_answered(tmp_path: Path) -> None:
    async with shop(tmp_path) as (live, client):
        answer = await client.request("prices.a", b"apple", {"Currency": "?"})
        assert answer.payload == b"price of apple"
        assert answer.headers == (("Currency", "EUR"),)
        answers = await client.request_many([("prices.a", b"%d" % number, None) for number in range(1000)])
        assert [answer.payload for answer in answers] == [b"price of %d" % number for number in range(1000)]
        await eventually(lambda: live.routes[0].settled["routed"] == 1001)
        assert live.routes[0].in_hand == 0


async def test_a_handler_that_raises_answers_with_an_error_as_nats_services_do(tmp_path: Path) -> None:
    async with shop(tmp_path) as (live, client):
        answer = await client.request("prices.a", b"fail")
        assert dict(answer.headers) == {"Nats-Service-Error": "KeyError", "Nats-Service-Error-Code": "500"}
        assert live.routes[0].failed == {"handler_error": 1}
        with pytest.raises(trio.TooSlowError):
            await client.request("prices.a", b"ignore", within=0.5)
        assert live.routes[0].settled["filtered"] == 1


async def test_a_request_after_the_end_of_the_router_has_no_responders(tmp_path: Path) -> None:
    async with shop(tmp_path) as (_, client):
        await client.request("prices.a", b"apple")
    async with nats_server(tmp_path) as server, connect(server.url) as client:
        with pytest.raises(NoResponders):
            await client.request("prices.a", b"apple")


async def test_no_answer_is_sent_to_a_subject_of_the_server(tmp_path: Path) -> None:
    async with shop(tmp_path) as (live, client):
        heard = await client.subscribe("$KV.>")
        await client.publish("prices.a", b"apple", None, "$KV.bucket.key")
        await eventually(lambda: live.routes[0].unanswered["reserved_subject"] == 1)
        await client.request("prices.a", b"apple")  # it would arrive behind
        assert heard.waiting() == []
