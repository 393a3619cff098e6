"""`diff --last`: the last messages of a source in two configurations of its route, over streams in memory."""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Mapping
from types import SimpleNamespace
from typing import cast

import pytest

from router_trio.audit import trial
from router_trio.audit.changes import Changes
from router_trio.audit.trial import Trial
from router_trio.nats.command_link import CommandLink
from router_trio.settings import RouteSettings, Settings
from tests.unit.audit.fake_streams import SECOND, FakeStream, block

SETTINGS = """
[connections.main]
servers = ["nats://127.0.0.1:4222"]
[connections.far]
servers = ["nats://127.0.0.1:4223"]
[[routes]]
name = "copy"
from = {{ connection = "main", stream = "SOURCE", durable = "router", filter = {filter} }}
{more}
"""
TO = 'to = [ { connection = "far", subject = "sink.{{wildcard(1)}}" } ]\n'


def configured(more: str = TO, filters: str = '"source.*"') -> tuple[Settings, RouteSettings | None]:
    settings = Settings.model_validate(tomllib.loads(SETTINGS.format(more=more, filter=filters)))
    return settings, settings.routes[0]


class FakeTrial(Trial):
    """A trial over a stream in memory. Only the connection of the source is open."""

    def __init__(
        self, old: tuple[Settings, RouteSettings | None], new: tuple[Settings, RouteSettings | None], source: FakeStream
    ) -> None:
        one = SimpleNamespace(max_payload=2**20, max_control_line=4096)
        link = SimpleNamespace(link=one, stored=lambda stream: source())
        super().__init__(old, new, cast("Mapping[str, CommandLink]", {"main": link}))


def source(count: int = 1000, *, every: int = 1) -> FakeStream:
    """Return a stream with numbered messages. One in `every` has a subject of the route."""
    stream = FakeStream("SOURCE", ["source.*", "noise.*"], SECOND)
    for n in range(count):
        area = "noise" if n % every else "source"
        stream.add(f"{area}.{n % 7}", b'{"n": %d}' % n, SECOND + n, block(("Region", "eu")))
    return stream


def settings_of(changes: Changes) -> tuple[Mapping[str, int], Mapping[str, int]]:
    old, new = changes.outcomes()
    return dict(old), dict(new)


async def test_a_deploy_that_filters_everything() -> None:
    new = configured('when = \'headers["Region"] == "EU"\'\n' + TO)
    changes = await FakeTrial(configured(), new, source()).run(1000)
    assert list(changes.lines()) == [
        "route copy, stream SOURCE, messages 1 to 1,000",
        "of the last 1,000: 1,000 routed -> 0 routed, 1,000 filtered",
        "       1,000  routed -> filtered (when), such as message 1,000 source.5",
        "copies to far:sink.{{wildcard(1)}}: 1,000 -> 0",
    ]


async def test_a_change_that_changes_nothing() -> None:
    changes = await FakeTrial(configured(), configured("when = 'true'\n" + TO), source(10)).run(4)
    assert list(changes.lines()) == [
        "route copy, stream SOURCE, messages 7 to 10",
        "of the last 4: 4 routed -> 4 routed",
        "nothing would change",
        "copies to far:sink.{{wildcard(1)}}: 4 -> 4",
    ]


@pytest.mark.parametrize("every", [1, 3, 40])
@pytest.mark.parametrize("last", [1, 5, 24, 25, 26, 2000])
async def test_the_last_messages_of_the_route_are_compared_wherever_they_are(every: int, last: int) -> None:
    stream = source(1000, every=every)
    belongs = [one.sequence for one in stream.messages.values() if one.subject.startswith("source")]
    changes = await FakeTrial(configured(), configured(), stream).run(last)
    assert [row.sequence for row in changes.rows] == belongs[-last:]


SINK = 'connection = "far"\nsubject = "sink.{{wildcard(1)}}"\n'
CHANGES = {
    "routed to other subjects": TO.replace("sink", "eu"),
    "routed with other payload": f"[[routes.to]]\n{SINK}payload = 'body.n'",
    "routed with other headers": f"[[routes.to]]\n{SINK}headers.remove = ['Region']",
    "routed with other payload and headers": f"[[routes.to]]\n{SINK}payload = '1'\nttl = '1h'",
    "routed -> failed (expression)": "when = 'body.region == 1'\n" + TO,
    "routed -> filtered (unmatched)": f"strategy = 'first_match'\n[[routes.to]]\n{SINK}when = 'body.n < 0'",
}


@pytest.mark.parametrize(("change", "more"), CHANGES.items())
async def test_each_kind_of_change_is_named(change: str, more: str) -> None:
    changes = await FakeTrial(configured(), configured(more), source(10)).run(10)
    assert changes.changes() == Counter({change: 10})


async def test_the_name_of_a_destination_is_no_change() -> None:
    """A renamed connection or template changes the ids of copies, and not the copies."""
    same = 'to = [ { connection = "far", subject = "sink.{{ wildcard(1) }}" } ]\n'
    changes = await FakeTrial(configured(), configured(same), source(10)).run(10)
    assert changes.changes() == Counter()


async def test_a_subject_drawn_at_random_is_no_change() -> None:
    drawn = 'to = [ { connection = "far", subject = "sink.{{wildcard(1)}}.{{random(10)}}" } ]\n'
    changes = await FakeTrial(configured(drawn), configured(drawn), source(50)).run(50)
    assert changes.changes() == Counter()


async def test_another_filter_compares_what_either_reads() -> None:
    changes = await FakeTrial(configured(), configured(filters='["source.*", "noise.*"]'), source(100, every=2)).run(50)
    assert settings_of(changes) == ({"routed": 25, "not_of_its_filter": 25}, {"routed": 50})


@pytest.mark.parametrize("added", [True, False])
async def test_a_route_that_is_added_or_removed(added: bool) -> None:
    without = (configured()[0], None)
    old, new = (without, configured()) if added else (configured(), without)
    changes = await FakeTrial(old, new, source(5)).run(5)
    outcomes = ({"no_route": 5}, {"routed": 5})
    assert settings_of(changes) == (outcomes if added else outcomes[::-1])


async def test_handlers_are_left_out() -> None:
    handled = "handler = 'there.is:none'\n" + TO
    changes = await FakeTrial(configured(), configured(handled), source(5)).run(5)
    assert settings_of(changes) == ({"routed": 5}, {"routed": 5})
    assert list(changes.lines())[-1] == (
        "the handler is left out, and it changes: what it would make of a message is not compared"
    )


async def test_the_search_for_messages_of_the_route_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "MAX_READ", 100)
    filters = '["source.*", "other.*"]'  # several filters are applied to what was read
    changes = await FakeTrial(configured(filters=filters), configured(filters=filters), source(2000, every=950)).run(50)
    assert [row.sequence for row in changes.rows] == [1901]
    assert changes.notes == ["only the last 150 sequences of SOURCE were read"]


async def test_a_stream_without_messages() -> None:
    changes = await FakeTrial(configured(), configured(), source(0)).run(5)
    assert list(changes.lines()) == ["route copy, stream SOURCE: no messages"]


async def test_control_characters_of_a_subject_do_not_reach_the_terminal() -> None:
    stream = source(1)
    stream.add("source.\x1b[2J", b"{}", SECOND + 1, b"")
    changes = await FakeTrial(configured(), configured("when = 'false'\n" + TO), stream).run(2)
    assert any("message 2 source.\\x1b[2J" in line for line in changes.lines())
    assert not any("\x1b" in line for line in changes.lines())
