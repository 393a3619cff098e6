"""Inboxes for answers: another one for each link."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import trio

from router_trio.outbox import retries
from tests.support.eventually import eventually
from tests.support.links import close_link
from tests.support.proxy import background
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import RawMessage, connect
from tests.support.servers import NatsServer, nats_server
from tests.support.settings import core_route, settings
from tests.support.watch import Watch, watched


def inboxes(heard: list[RawMessage]) -> list[str]:
    """Return the inboxes requested for the PubAcks of these messages, each once, in order."""
    return list(dict.fromkeys((message.reply or "").rpartition(".")[0] for message in heard))


async def test_each_link_has_an_inbox_of_its_own(server: NatsServer) -> None:
    async with connect(server.url) as client, watched(settings(server.url)) as watch:
        await JetStream(client).create_stream("S", ["s.*"])
        heard = await client.subscribe("s.*")
        router = watch.router
        for link in range(1, 4):
            assert (await router.publish_with_ack("s.1", b"x")).status == "acked"
            close_link(router.connections["main"])
            receipt = await router.publish_with_ack("s.2", b"kept")
            await watch.until("NATS_CONNECTION_RESTORED", link)
            # Publishes accepted before are answered on the new link too.
            assert (await receipt.settled()).name == "acked"
        await client.ping()
        used = inboxes(heard.waiting())
        assert len(used) >= 3
        assert len({len(inbox) for inbox in used}) == 1
        assert all(inbox.startswith("_INBOX.") for inbox in used)


async def test_the_inbox_of_an_old_link_forges_nothing_on_the_next(server: NatsServer) -> None:
    async with connect(server.url) as client, watched(settings(server.url)) as watch:
        await JetStream(client).create_stream("S", ["s.*"])
        heard = await client.subscribe("s.*")
        router = watch.router
        await router.publish_with_ack("s.1", b"x")
        (inbox,) = inboxes([await heard.next()])
        close_link(router.connections["main"])
        await watch.until("NATS_CONNECTION_RESTORED")
        async with trio.open_nursery() as nursery:
            # No stream takes this subject, and an attacker claims that it is stored.
            nursery.start_soon(_publish_nowhere, watch)
            with trio.move_on_after(0.5):
                while True:
                    for number in range(1, 20):
                        await client.publish(f"{inbox}.{number}", b'{"stream":"S","seq":7}')
                    await client.ping()
                    await trio.sleep(0.01)
            assert router.ledger()["main"]["settled"]["acked"] == 1
            nursery.cancel_scope.cancel()


async def _publish_nowhere(watch: Watch) -> None:
    await watch.router.publish_with_ack("nowhere", b"x", timeout=60)


NO_LOOKUPS = """
authorization { users: [
  { user: router, password: p, permissions: { publish: { deny: ["$JS.API.STREAM.NAMES"] } } }
  { user: u, password: p }
] }
"""


@pytest.mark.parametrize("answer", [b'{"stream":"GHOST","seq":7}', b'{"stream":"NO SUCH > NAME","seq":7}'])
async def test_a_puback_of_a_stream_that_does_not_exist_acks_nothing(
    answer: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An attacker receives what is published, and may answer to its inbox, each time that it is sent again until it
    fails. The router sends to a subject that no stream takes only if it may not look up which one does.
    """
    monkeypatch.setattr(retries, "ACK_BUDGET", 3.0)
    route = core_route("in.*", "out.{{wildcard(1)}}")
    route["to"][0]["jetstream"] = True
    copies: Counter[bytes] = Counter()
    forging = trio.CancelScope()
    async with (
        nats_server(tmp_path, config=NO_LOOKUPS) as server,
        connect(server.url, user="u", password="p") as client,
        watched(settings(server.url, routes=[route], user="router", password="p")) as watch,
        background() as nursery,
    ):
        heard = await client.subscribe("out.*")

        async def forge() -> None:
            with forging:
                # Until an answer arrives none is held back, so all are sent.
                messages = [await heard.next(60) for _ in range(5)]
                while True:
                    for message in messages:
                        assert message.reply is not None
                        copies[message.payload] += 1
                        await client.publish(message.reply, answer)
                    messages = [await heard.next(60)]

        nursery.start_soon(forge)
        for number in range(5):
            await client.publish("in.x", b"%d" % number)
        failed = watch.router.routes[0].failed
        await eventually(lambda: failed["bad_answer"] == 5, otherwise=lambda: (failed, copies))
        assert len(copies) == 5
        assert copies.total() > 5, "no answer of a stream fails it at once"
        forging.cancel()
        assert watch.router.ledger()["main"]["settled"]["acked"] == 0
        assert sum(watch.router.routes[0].routed.values()) == 0
        # A stream that exists is believed, even if it did not exist a moment ago.
        await JetStream(client).create_stream("GHOST", ["out.*"])
        await heard.unsubscribe()
        await client.publish("in.x", b"x")
        await eventually(lambda: watch.router.ledger()["main"]["settled"]["acked"] == 1)
