"""`audit` against hostile senders, odd streams, missing permissions, and streams that change while it runs."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import trio

from router_trio.audit.audit import EVERYTHING, Audit, Range, connections_of
from router_trio.errors import LinkError, SourceError
from router_trio.nats.command_link import open_links
from router_trio.settings import Settings
from tests.integration.test_audit import TO, Place, place
from tests.support.command import over_its_links
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import connect
from tests.support.servers import NatsServer, nats_server

NAMED = 'to = [ { subject = "sink.{{wildcard(1)}}", stream = "SINK" } ]\n'
NAMED_TWICE = """
to = [ { subject = "sink.{{wildcard(1)}}", stream = "SINK" }, { subject = "sink.other", stream = "SINK" } ]
"""


async def ids_of(here: Place, stream: str = "SINK") -> list[str]:
    return [copy.header("Nats-Msg-Id") or "" for copy in await here.stream.stream_messages(stream)]


async def test_forged_ids_change_nothing(tmp_path: Path, server: NatsServer) -> None:
    async with place(tmp_path, server) as here:
        await here.copied(10)
        (real, *_) = await ids_of(here)
        stream, sequence, time, ending = real.split(":")
        forged = [
            f"{stream}:{9_999_999_999_999_999_999}:{time}:{ending}",
            f"{stream}:{2**64}:{time}:{ending}",
            f"{stream}:0:{time}:{ending}",
            f"{stream}:{sequence}:{int(time) + 1}:{ending}",
            f"{stream}:{sequence}:{time}:{'A' * 16}",
            f"{stream}:{sequence}:{time}:dead:{ending}",
            f"OTHER:{sequence}:{time}:{ending}",
            f"{stream}:-1:{time}:{ending}",
            "\x01\x02\udcff\x7f:1:2:3",
            "x" * 60_000,
            ":::::",
        ]
        for number, message_id in enumerate(forged):
            raw = message_id.encode("utf-8", "surrogateescape")
            block = b"NATS/1.0\r\nNats-Msg-Id: " + raw + b"\r\n\r\n"
            frame = b"HPUB sink.%d %d %d\r\n%b\r\n" % (number % 7, len(block), len(block), block)
            await here.stream.client.send(frame)

        async def stored() -> bool:  # the server stores them after its PONG
            return bool((await here.stream.stream_info("SINK"))["state"]["messages"] == 10 + len(forged))

        await eventually(stored)
        for more in (TO, NAMED):
            here.configure(more)
            assert +(await here.audit()).counts == Counter(there=10)


async def test_a_copy_of_someone_else_and_a_thousand_doubles(tmp_path: Path, server: NatsServer) -> None:
    async with place(tmp_path, server) as here:
        await here.copied(10, NAMED)
        copies = await here.stream.stream_messages("SINK")
        await here.delete("SINK", 3)
        await here.stream.publish(copies[2].subject, b"forged", list(copies[2].headers))
        await here.stream.edit_stream("SINK", duplicate_window=100_000_000)
        for _ in range(50):
            await trio.sleep(0.11)
            await here.stream.publish(copies[4].subject, copies[4].payload, list(copies[4].headers))
        assert +(await here.audit()).counts == Counter(there=8, different=1, twice=1)


async def test_two_destinations_in_one_named_stream(tmp_path: Path, server: NatsServer) -> None:
    async with place(tmp_path, server) as here:
        await here.copied(20, NAMED_TWICE)
        assert +(await here.audit()).counts == Counter(there=40)


async def test_an_enormous_header_and_payload(tmp_path: Path, server: NatsServer) -> None:
    async with place(tmp_path, server) as here:
        await here.stream.publish("sink.1", b"", [("X", "y" * 60_000)])
        await here.stream.publish("sink.1", b"z" * 1_000_000)
        await here.copied(5)
        assert +(await here.audit()).counts == Counter(there=5)


async def test_empty_streams_and_ranges_outside_of_the_stream(tmp_path: Path, server: NatsServer) -> None:
    async with place(tmp_path, server) as here:
        here.configure()
        await here.route()
        report = await here.audit()
        assert (report.messages, report.gone, +report.counts, report.clean) == (0, 0, Counter(), True)
        await here.copied(5)
        for wanted in (Range(first=10**30), Range(first=6), Range(last=0), Range(first=4, last=3), Range(until=1)):
            report = await here.audit(wanted)
            assert (report.messages, report.gone, +report.counts) == (0, 0, Counter())
        assert +(await here.audit(Range(first=1, last=10**30))).counts == Counter(there=5)
        code, _ = await here.command("--from", "99")
        assert code == 0


class Interfering(Audit):
    """An audit during which something is done to the streams, once the source has been read."""

    def __init__(self, *given: Any, act: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self.act = act

    async def _dead_letters(self, *given: Any) -> set[int]:
        await self.act()
        return await super()._dead_letters(*given)


async def interfered(here: Place, act: Any) -> Any:
    settings = Settings.load(here.folder / "router.toml")
    (route,) = settings.routes
    async with open_links(settings, "audit", connections_of(route)) as links:
        return await Interfering(settings, route, links, act=act).run(EVERYTHING)


async def test_messages_that_the_source_deletes_meanwhile_are_not_accused(tmp_path: Path, server: NatsServer) -> None:
    async with place(tmp_path, server) as here:
        await here.copied(10)
        await here.delete("SINK", 2, 9)
        report = await interfered(here, lambda: here.stream.api("STREAM.PURGE.SOURCE", {"seq": 6}))
        assert +report.counts == Counter(there=8, missing=1)
        assert (report.messages, report.gone, report.last) == (9, 1, 10)


async def test_a_sink_that_is_deleted_meanwhile_is_an_error(tmp_path: Path, server: NatsServer) -> None:
    async with place(tmp_path, server) as here:
        await here.copied(10)
        await here.delete("SINK", 2)
        with pytest.raises(SourceError, match="there is no stream 'SINK'"):
            await interfered(here, lambda: here.stream.delete_stream("SINK"))
        await here.stream.create_stream("SINK", ["sink.*"])


async def test_a_sink_that_maps_subjects(tmp_path: Path, server: NatsServer) -> None:
    async with place(tmp_path, server) as here:
        await here.stream.edit_stream("SINK", subject_transform={"src": "sink.*", "dest": "mapped.{{wildcard(1)}}"})
        await here.copied(10)
        await here.delete("SINK", 4)
        assert +(await here.audit()).counts == Counter(there=9, missing=1)


async def test_values_of_keys_that_a_bucket_replaced_or_purged_are_expired(tmp_path: Path, server: NatsServer) -> None:
    async with place(tmp_path, server) as here:
        await here.stream.delete_stream("SINK")
        await here.stream.create_stream(
            "SINK", ["sink.*"], max_msgs_per_subject=5, allow_rollup_hdrs=True, duplicate_window=100_000_000
        )
        await here.copied(70)  # of seven subjects, ten each
        assert +(await here.audit()).counts == Counter(there=35, expired=35)
        await here.stream.publish("sink.1", b"", [("KV-Operation", "PURGE"), ("Nats-Rollup", "sub")])
        assert +(await here.audit()).counts == Counter(there=30, expired=40)
        (newest,) = [one for one in await here.stream.stream_messages("SINK") if one.payload == b'{"number": 69}']
        await here.delete("SINK", newest.sequence)
        report = await here.audit()
        assert +report.counts == Counter(there=29, expired=40, missing=1)
        assert report.findings[0].sequence == 70


async def test_a_repair_does_not_replace_the_newest_value_of_a_key(tmp_path: Path, server: NatsServer) -> None:
    async with place(tmp_path, server) as here:
        await here.stream.edit_stream("SINK", max_msgs_per_subject=5)
        await here.copied(20)
        copies = await here.stream.stream_messages("SINK")
        (old,) = [one for one in copies if one.payload == b'{"number": 10}']
        (newest,) = [one for one in copies if one.payload == b'{"number": 19}']
        await here.delete("SINK", old.sequence, newest.sequence)
        result = await over_its_links("audit", "router.toml", "copy", "--repair", "--dry-run", cwd=tmp_path)
        assert result.stdout.count("would publish") == 1
        assert "copies not published: 1: their streams keep the newest messages" in result.stderr
        result = await over_its_links("audit", "router.toml", "copy", "--repair", cwd=tmp_path)
        assert result.returncode == 1
        assert "copies published: 1, refused: 0" in result.stderr
        assert "copies not published: 1: their streams keep the newest messages" in result.stderr
        assert +(await here.audit()).counts == Counter(there=19, missing=1)


async def test_a_copy_whose_id_a_stream_still_remembers_is_not_repaired(tmp_path: Path, server: NatsServer) -> None:
    async with place(tmp_path, server) as here:
        await here.stream.edit_stream("SINK", duplicate_window=120_000_000_000)
        await here.copied(5)
        await here.delete("SINK", 2)
        result = await over_its_links("audit", "router.toml", "copy", "--repair", cwd=tmp_path)
        assert result.returncode == 1
        assert "copies not stored: 1: their streams still remember the ids" in result.stderr


async def test_copies_with_a_time_to_live_of_their_own_are_expired(tmp_path: Path, server: NatsServer) -> None:
    async with place(tmp_path, server) as here:
        for name in ("SOURCE", "SINK"):
            await here.stream.edit_stream(name, allow_msg_ttl=True)
        here.configure('to = [ { subject = "sink.{{wildcard(1)}}", headers = { keep = ["Nats-TTL"] } } ]\n')
        for ttl in ("9s", "1h"):
            await here.stream.publish("source.1", b"1", [("Nats-TTL", ttl)])
        await here.route()
        await here.delete("SINK", 1, 2)
        report = await here.audit()
        assert (+report.counts, report.findings[0].sequence) == (Counter(expired=1, missing=1), 2)


async def read_by(here: Place, *, handled: bool = False) -> list[tuple[str, bool]]:
    """Audit ten copies, and return the streams that were read by consumers, and whether without payloads."""
    await here.delete("SINK", 4)
    advisories = await here.stream.client.subscribe("$JS.API.CONSUMER.CREATE.>")
    assert +(await here.audit()).counts == (Counter(there=9, unknown=1) if handled else Counter(there=9, missing=1))
    await here.stream.client.ping()
    asked = [json.loads(one.payload) for one in advisories.waiting()]
    for name in ("SOURCE", "SINK", "DEAD"):
        left = (await here.stream.api(f"CONSUMER.NAMES.{name}"))["consumers"] or []
        assert not [one for one in left if one.startswith("audit-")]
    return [(one["stream_name"], one["config"]["headers_only"]) for one in asked]


async def test_streams_are_read_by_consumers(tmp_path: Path, server: NatsServer) -> None:
    async with place(tmp_path, server) as here:
        await here.copied(10, "dead_letter = { subject = 'dead.1' }\n" + TO)
        await here.stream.publish("dead.1", b"")
        assert await read_by(here) == [("SOURCE", False), ("SINK", False), ("DEAD", True)]


async def test_copies_of_a_handler_are_read_without_payloads(tmp_path: Path, server: NatsServer) -> None:
    async with place(tmp_path, server) as here:
        await here.copied(10)
        here.configure("handler = 'handlers:double'\n" + TO)
        assert await read_by(here, handled=True) == [("SOURCE", True), ("SINK", True)]


async def test_a_stream_that_keeps_messages_for_its_consumers_is_read_without_one(
    tmp_path: Path, server: NatsServer
) -> None:
    async with place(tmp_path, server) as here:
        await here.stream.delete_stream("SOURCE")
        await here.stream.create_stream("SOURCE", ["source.*"], retention="interest")
        await here.stream.create_consumer("SOURCE", "other")  # which keeps the messages
        await here.copied(10)
        assert await read_by(here) == [("SINK", False)]


async def test_a_work_queue_as_source_or_as_sink(tmp_path: Path, server: NatsServer) -> None:
    async with place(tmp_path, server) as here:
        for name in ("SOURCE", "SINK"):
            await here.stream.delete_stream(name)
            await here.stream.create_stream(name, [f"{name.lower()}.*"], retention="workqueue")
        await here.copied(5)
        report = await here.audit()
        assert (report.messages, +report.counts) == (0, Counter())
        await here.publish(2, 5)
        report = await here.audit()
        assert +report.counts == Counter(pending=2)
        assert any("deletes what its consumers have acked" in note for note in report.notes)


async def test_messages_before_the_start_of_a_durable_are_not_judged(tmp_path: Path, server: NatsServer) -> None:
    async with place(tmp_path, server) as here:
        await here.publish(10)
        await here.stream.create_consumer("SOURCE", "router", deliver_policy="new", filter_subject="source.*")
        await here.publish(5, 10)
        text = 'from = { stream = "SOURCE", durable = "router", filter = "source.*", start = "new"'
        here.configure()
        configured = (tmp_path / "router.toml").read_text()
        text = configured.replace('message_id = "own"', 'message_id = "own", deliver = "new"')
        (tmp_path / "router.toml").write_text(text)
        await here.route()
        report = await here.audit()
        assert (report.first, +report.counts) == (11, Counter(there=5))


async def test_a_handler_that_makes_several_copies_or_none(tmp_path: Path, server: NatsServer) -> None:
    (tmp_path / "handlers.py").write_text(
        "def split(message):\n"
        "    number = int(message.payload.decode().split()[1].rstrip('}'))\n"
        "    return [message.replace(payload=b'%d' % n) for n in range(number % 3)]\n"
    )
    async with place(tmp_path, server) as here:
        import sys

        sys.path.insert(0, str(tmp_path))
        try:
            await here.copied(9, 'handler = "handlers:split"\n' + TO)
            report = await here.audit()
        finally:
            sys.path.remove(str(tmp_path))
            sys.modules.pop("handlers", None)
        assert +report.counts == Counter(there=6, unknown=3)


ELSEWHERE = """
retry = {{ attempts = 1 }}
dead_letter = {{ connection = "there", subject = "dead.{{{{wildcard(1)}}}}" }}
to = [ {{ connection = "there", subject = "sink.{{{{wildcard(1)}}}}", payload = 'string(1 / (body.number - 4))' }} ]
[connections.there]
servers = ["{url}"]
api_prefix = "{api}"
"""


async def test_dead_letters_and_copies_over_another_connection_with_a_prefix_of_the_api(
    tmp_path: Path, server: NatsServer
) -> None:
    async with place(tmp_path, server) as here, connect(server.url) as client:
        # Another name of the same API, as a domain or an import has one.
        requests = await client.subscribe("JS.there.API.>")

        async def forward() -> None:
            async for request in requests:
                subject = "$JS.API." + request.subject.removeprefix("JS.there.API.")
                await client.publish(subject, request.payload, reply=request.reply)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(forward)
            here.configure(ELSEWHERE.format(url=server.url, api="JS.there.API"))
            text = (tmp_path / "router.toml").read_text()
            (tmp_path / "router.toml").write_text(text.replace("from = {", 'from = { connection = "main",'))
            await here.publish(10)
            await here.route()
            assert +(await here.audit()).counts == Counter(there=9, dead_lettered=1)
            nursery.cancel_scope.cancel()


async def test_a_server_that_is_lost_meanwhile_is_an_error(tmp_path: Path) -> None:
    async with nats_server(tmp_path) as server, connect(server.url) as client:
        stream = JetStream(client)
        for name in ("SOURCE", "SINK"):
            await stream.create_stream(name, [f"{name.lower()}.*"])
        here = Place(tmp_path, server.url, stream)
        await here.copied(10)
        with pytest.raises(LinkError):
            await interfered(here, server.kill)


async def test_copies_of_a_route_with_several_filters(tmp_path: Path, server: NatsServer) -> None:
    async with place(tmp_path, server) as here:
        await here.stream.edit_stream("SOURCE", subjects=["source.*", "noise.*", "more.*"])
        here.configure()
        text = (tmp_path / "router.toml").read_text()
        (tmp_path / "router.toml").write_text(text.replace('"source.*"', '["source.*", "more.*"]'))
        for subject in ("more.1", "noise.1", "source.1", "noise.2", "more.2"):
            await here.stream.publish(subject, subject.encode())
        await here.route()
        await here.delete("SINK", 3)
        report = await here.audit()
        assert (report.messages, +report.counts) == (3, Counter(there=2, missing=1))
        assert report.findings[0].subject == "more.2"


async def test_copies_that_have_grown_too_old_are_expired(tmp_path: Path, server: NatsServer) -> None:
    async with place(tmp_path, server) as here:
        await here.copied(5)
        await here.delete("SINK", 2)
        assert +(await here.audit()).counts == Counter(there=4, missing=1)
        await here.stream.edit_stream("SINK", max_age=1_000_000_000)

        async def empty() -> bool:
            return bool((await here.stream.stream_info("SINK"))["state"]["messages"] == 0)

        await eventually(empty, 10)
        assert +(await here.audit()).counts == Counter(expired=5)
