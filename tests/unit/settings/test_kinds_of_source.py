"""The kind of a source decides which keys it has, how it is described and what it promises: each kind is one object."""

from __future__ import annotations

from typing import Any

import pytest

from router_trio.settings import Settings, SourceSettings
from router_trio.settings.routes.source import KINDS
from router_trio.settings.routes.sources.kind import SourceKind
from tests.unit.settings.problems import MAIN, one_route, problems

OF_ALL = {"connection", "message_id"}
"""Keys that every source has."""

GIVEN: dict[str, dict[str, Any]] = {
    "subject": {"subject": "in.*", "queue": "routers"},
    "stream": {
        "stream": "ORDERS",
        "durable": "router",
        "standby": True,
        "filter": "in.*",
        "partitions": 16,
        "partition_by": [1],
        "deliver": "new",
        "max_in_flight": 10,
        "max_in_flight_bytes": "1MiB",
        "ack_wait": "10s",
        "max_deliver": 5,
        "nak_delay": "2s",
    },
    "bucket": {
        "bucket": "settings",
        "durable": "router",
        "standby": True,
        "filter": "in.*",
        "deliver": "new",
        "max_in_flight": 10,
        "max_in_flight_bytes": "1MiB",
        "ack_wait": "10s",
        "max_deliver": 5,
        "nak_delay": "2s",
    },
}
"""A source of each kind, with a value for each key that it has."""

NEEDED = {
    "subject": {"subject": "in.*"},
    "stream": {"stream": "ORDERS", "durable": "router"},
    "bucket": {"bucket": "settings", "durable": "router"},
}


@pytest.fixture(params=KINDS, ids=lambda kind: kind.key)
def kind(request: pytest.FixtureRequest) -> SourceKind:
    found: SourceKind = request.param
    return found


def test_every_key_belongs_to_one_kind_of_source_or_to_all_of_them() -> None:
    of_kinds = {key for kind in KINDS for key in (kind.key, *kind.keys)}
    assert of_kinds | OF_ALL == set(SourceSettings.model_fields)
    assert not of_kinds & OF_ALL


def test_a_source_has_all_keys_of_its_kind(kind: SourceKind) -> None:
    given = GIVEN[kind.key]
    assert given.keys() == {kind.key, *kind.keys}
    source = SourceSettings(**given)
    assert source.kind is kind
    together = {key: value for key, value in given.items() if key != "standby"}  # partitions exclude it
    settings = Settings(connections=MAIN, routes=[{"name": "r", "from": together, "to": [{"subject": "out"}]}])
    assert settings.routes[0].source.kind is kind


def test_a_source_has_no_key_of_another_kind(kind: SourceKind) -> None:
    for other in GIVEN:
        for key, value in GIVEN[other].items():
            if key not in (kind.key, *kind.keys) and key != other:
                more = {f"from_{name}": one for name, one in (*NEEDED[kind.key].items(), (key, value))}
                found = problems(one_route(**more))
                assert "remove it" in found[f"routes[0].from.{key}"]


def test_several_sources_in_one_are_refused_by_naming_one_of_them() -> None:
    given = {f"from_{key}": value for needed in NEEDED.values() for key, value in needed.items()}
    assert problems(one_route(**given)) == {
        "routes[0].from.subject": "can't be combined with a bucket; remove it, or use 'filter'",
        "routes[0].from.stream": "can't be combined with a bucket; remove it",
    }
    del given["from_bucket"]
    assert problems(one_route(**given)) == {
        "routes[0].from.subject": "can't be combined with a stream; remove it, or use 'filter'"
    }


def test_a_source_that_names_nothing_is_refused_with_the_possible_kinds() -> None:
    assert problems(one_route(from_connection="main")) == {
        "routes[0].from": "names no source; give a subject, or a stream and a durable, or a bucket and a durable"
    }


def test_programs_are_shown_the_given_keys_that_name_a_source(kind: SourceKind) -> None:
    everything = SourceSettings(**GIVEN[kind.key])
    assert kind.reads(everything) == {key: GIVEN[kind.key][key] for key in kind.shown}
    assert kind.reads(SourceSettings(**NEEDED[kind.key])) == NEEDED[kind.key]
