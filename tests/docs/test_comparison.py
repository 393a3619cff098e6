"""The claims of the comparison page about nats-server are true: its configurations have the effects on the page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, page
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import connect
from tests.support.servers import NatsServer, nats_server

pytestmark = pytest.mark.slow

PAGE = page(DOCS / "explanation" / "comparison.md")


async def test_a_mapping_of_the_server_replaces_the_subject(tmp_path: Path) -> None:
    (mappings,) = [block.text for block in PAGE.blocks if block.text.startswith("mappings")]
    async with (
        nats_server(tmp_path, config=mappings, jetstream=False) as server,
        connect(server.url) as client,
    ):
        new, old = await client.subscribe("eu.*"), await client.subscribe("orders.>")
        await client.ping()
        await client.publish("orders.7.created", b"hello")
        assert (await new.next()).subject == "eu.7"
        await client.ping()
        assert old.waiting() == []


async def test_a_stream_with_sources_copies_under_other_subjects(server: NatsServer) -> None:
    (copy,) = [json.loads(block.text) for block in PAGE.blocks if block.language == "json"]
    async with connect(server.url) as client:
        streams = JetStream(client)
        await streams.create_stream("ORDERS", ["orders.>"])
        await streams.api(f"STREAM.CREATE.{copy['name']}", copy)
        await streams.publish("orders.7.created", b"hello")
        await streams.publish("orders.7.paid", b"not copied")
        await streams.publish("orders.8.created", b"hello again")

        async def copied() -> bool:
            return int((await streams.stream_info("EU"))["state"]["messages"]) == 2

        await eventually(copied)
        assert [one.subject for one in await streams.stream_messages("EU")] == ["eu.7", "eu.8"]
