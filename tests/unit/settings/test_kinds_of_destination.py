"""What a destination is decides which keys it can have, what it promises and what pages show of it."""

from __future__ import annotations

from typing import Any

import pytest

from router_trio.settings import DestinationSettings
from router_trio.settings.routes.destinations.core import CORE
from router_trio.settings.routes.destinations.jetstream import JETSTREAM
from router_trio.settings.routes.destinations.kind import DestinationKind
from router_trio.settings.routes.source import KINDS
from router_trio.settings.routes.sources.kind import SourceKind
from tests.unit.settings.problems import one_route, problems

ONLY_STORED: dict[str, Any] = {"stream": "COPIES", "ttl": "1m", "breaker": {}}
"""Keys that only a JetStream publish can have."""


@pytest.mark.parametrize("source", KINDS, ids=lambda kind: kind.key)
@pytest.mark.parametrize("given", [None, True, False])
def test_what_a_stream_has_is_stored_unless_it_is_said_otherwise(source: SourceKind, given: bool | None) -> None:
    to = DestinationSettings(subject="out", jetstream=given)
    assert to.kind_for(source).waits_for_puback == (source.is_stored if given is None else given)


@pytest.mark.parametrize("kind", [CORE, JETSTREAM], ids=["core", "jetstream"])
def test_programs_are_shown_where_messages_go_and_whether_a_stream_takes_them(kind: DestinationKind) -> None:
    to = DestinationSettings(subject="out.{{wildcard(1)}}")
    assert kind.template(to) == "out.{{wildcard(1)}}"
    assert kind.shown(to) == {"subject": "out.{{wildcard(1)}}", "jetstream": kind is JETSTREAM}


def test_a_core_publish_has_none_of_the_keys_that_a_stream_acts_on() -> None:
    found = problems(one_route(to=[{"subject": "out", **ONLY_STORED}]))
    assert found.keys() == {f"routes[0].to[0].{key}" for key in ONLY_STORED}
    assert all(told.endswith("; set jetstream = true, or remove it") for told in found.values())


def test_a_jetstream_publish_has_all_of_them() -> None:
    (route,) = one_route(to=[{"subject": "out", "jetstream": True, **ONLY_STORED}])().routes
    assert route.to[0].kind_for(route.source.kind) is JETSTREAM
