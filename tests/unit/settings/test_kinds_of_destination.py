"""The kind of a destination decides which keys it can have, what it promises and what pages show of it."""

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
def test_a_destination_of_a_stream_source_is_stored_by_default(source: SourceKind, given: bool | None) -> None:
    to = DestinationSettings(subject="out", jetstream=given)
    assert to.kind_for(source).waits_for_puback == (source.is_stored if given is None else given)


@pytest.mark.parametrize("kind", [CORE, JETSTREAM], ids=["core", "jetstream"])
def test_programs_are_shown_the_destination_and_whether_a_stream_stores_it(kind: DestinationKind) -> None:
    to = DestinationSettings(subject="out.{{wildcard(1)}}")
    assert kind.template(to) == "out.{{wildcard(1)}}"
    assert kind.shown(to) == {"subject": "out.{{wildcard(1)}}", "jetstream": kind is JETSTREAM}


def test_a_core_publish_has_no_keys_that_only_a_stream_acts_on() -> None:
    found = problems(one_route(to=[{"subject": "out", **ONLY_STORED}]))
    assert found.keys() == {f"routes[0].to[0].{key}" for key in ONLY_STORED}
    assert all(message.endswith("; set jetstream = true, or remove it") for message in found.values())


def test_a_jetstream_publish_has_all_keys_that_a_stream_acts_on() -> None:
    (route,) = one_route(to=[{"subject": "out", "jetstream": True, **ONLY_STORED}])().routes
    assert route.to[0].kind_for(route.source.kind) is JETSTREAM
