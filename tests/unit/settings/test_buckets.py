"""KV buckets as sources and destinations: the streams and subjects that they stand for, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from router_trio.settings import Settings
from router_trio.settings.checks.circles import certain_circles
from router_trio.settings.permissions import permissions_of
from tests.unit.settings.problems import MAIN, one_route, problems

HERE: dict[str, Any] = {"bucket": "here", "durable": "copy"}


def route(to: dict[str, Any], **source: Any) -> dict[str, Any]:
    return {"name": "copy", "from": {**HERE, **source}, "to": [{"bucket": "there", **to}]}


def test_a_bucket_is_the_stream_of_its_keys() -> None:
    (one,) = Settings(connections=MAIN, routes=[route({}, filter=["eu.>", "us.*"])]).routes
    source, to = one.source, one.to[0]
    kind = to.kind_for(source.kind)
    assert source.kind.consumer(source) == ("KV_here", "copy")
    assert source.subjects == ("$KV.here.eu.>", "$KV.here.us.*")
    assert source.kind.consumer_filters(source) == ("$KV.*.eu.>", "$KV.*.us.*")
    assert (kind.stream(to), kind.waits_for_puback) == ("KV_there", True)
    assert kind.shown(to) == {"bucket": "there", "jetstream": True}
    mapping = source.mapping(kind.template(to))
    assert [mapping.apply(f"$KV.here.{key}") for key in ("eu.a.b", "us.c")] == ["$KV.there.eu.a.b", "$KV.there.us.c"]


def test_a_key_may_be_mapped() -> None:
    (one,) = Settings(connections=MAIN, routes=[route({"key": "old.{{wildcard(1)}}.>"}, filter="*.eu.>")]).routes
    to = one.to[0]
    mapping = one.source.mapping(to.kind_for(one.source.kind).template(to))
    assert mapping.apply("$KV.here.x.eu.y.z") == "$KV.there.old.x.y.z"
    assert to.kind_for(one.source.kind).shown(to)["key"] == "old.{{wildcard(1)}}.>"


@pytest.mark.parametrize(
    ("to", "key", "message"),
    [
        ({"bucket": "a.b"}, "bucket", "'a.b' contains '.', which NATS does not allow; remove it"),
        ({"subject": "x"}, "subject", "can't be combined with a bucket; remove it, or use 'key'"),
        ({"jetstream": False}, "jetstream", "a bucket is a stream, which confirms each value; remove it"),
        ({"stream": "X"}, "stream", "the stream of bucket 'there' is 'KV_there'; remove it"),
        (
            {"reply": True},
            "reply",
            "can't be combined with a bucket, whose PubAck comes to the reply subject; remove one of them",
        ),
    ],
)
def test_keys_that_a_bucket_has_not_are_refused(to: dict[str, Any], key: str, message: str) -> None:
    assert problems(lambda: Settings(connections=MAIN, routes=[route(to)])) == {f"routes[0].to[0].{key}": message}


def test_a_key_is_needed_where_the_source_has_none_and_refused_without_a_bucket() -> None:
    assert problems(one_route(to=[{"bucket": "there"}])) == {
        "routes[0].to[0].key": "missing; a subject has no keys: give one, such as key = '{{wildcard(1)}}'"
    }
    assert problems(one_route(to=[{"subject": "out", "key": "a"}])) == {
        "routes[0].to[0].key": "is only for a bucket, and this destination is a subject; remove it"
    }


def test_several_workers_can_not_read_a_bucket() -> None:
    found = problems(lambda: Settings(connections=MAIN, router={"workers": 2}, routes=[route({})]))
    assert "an older one over a newer one; run one worker" in found["routes[0].from.bucket"]


def test_a_bucket_that_is_copied_to_itself_feeds_itself() -> None:
    found = problems(lambda: Settings(connections=MAIN, routes=[route({"bucket": "here"})]))
    assert "the route would feed itself" in found["routes[0].to[0].bucket"]


def test_a_bucket_of_a_domain_is_published_to_below_its_api() -> None:
    connections = {"main": {**MAIN["main"], "domain": "hub"}}
    granted = permissions_of(Settings(connections=connections, routes=[route({})]), "main")
    assert "$JS.hub.API.$KV.there.>" in {one.subject for one in granted}
    granted = permissions_of(Settings(connections=MAIN, routes=[route({})]), "main")
    assert "$KV.there.>" in {one.subject for one in granted}


def test_a_bucket_with_other_writers_gets_values_as_they_are_from_one_bucket() -> None:
    def refused(*to: dict[str, Any], **more: Any) -> dict[str, str]:
        made = {"name": "copy", "from": HERE, "to": list(to), **more}
        return problems(lambda: Settings(connections=MAIN, routes=[made]))

    there = {"bucket": "there", "last_writer": True}
    assert refused({**there, "payload": "body", "ttl": "1m"}).keys() == {
        "routes[0].to[0].payload",
        "routes[0].to[0].ttl",
    }
    assert refused(there, {"bucket": "other"}).keys() == {"routes[0].to[0].last_writer"}
    assert refused(there, handler="a:b").keys() == {"routes[0].to[0].last_writer"}
    assert refused({"subject": "x", "last_writer": True}).keys() == {"routes[0].to[0].last_writer"}
    assert problems(one_route(to=[{**there, "key": "a"}])).keys() == {"routes[0].to[0].last_writer"}


def test_routes_in_both_directions_are_a_circle_unless_the_last_writer_wins() -> None:
    def both(*, last_writer: bool) -> list[dict[str, Any]]:
        ways = (("here", "there"), ("there", "here"))
        return [
            {
                "name": f"from-{source}",
                "from": {"bucket": source, "durable": "copy"},
                "to": [{"bucket": to, "last_writer": last_writer}],
            }
            for source, to in ways
        ]

    for last_writer in (False, True):
        made = Settings(connections=MAIN, routes=both(last_writer=last_writer))
        found = list(certain_circles(made.connections, made.routes))
        assert bool(found) is not last_writer
    assert "$JS.API.STREAM.MSG.GET.KV_there" in {one.subject for one in permissions_of(made, "main")}
