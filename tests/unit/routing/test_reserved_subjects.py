"""Subjects that are reserved, to which a subject made of a sender's tokens may not lead."""

from __future__ import annotations

import pytest

from router_trio.errors import MappingError
from router_trio.routing.route_plans import compile_routes
from router_trio.settings import ConnectionSettings, Settings
from router_trio.subjects.mapping import Mapping
from router_trio.subjects.patterns import reserved_namespace


@pytest.mark.parametrize(
    ("subject", "own_start", "inbox_prefix", "expected"),
    [
        ("$JS.API.STREAM.DELETE.S", [], "_INBOX", "$"),
        ("$", [], "_INBOX", "$"),
        ("$KV.b.k", ["$KV"], "_INBOX", None),
        ("$KV.b.k", ["$KV", "b"], "_INBOX", None),
        ("$JS.API.x", ["$KV"], "_INBOX", "$"),
        ("$JS.API.x", ["x"], "_INBOX", "$"),
        ("_INBOX.a", [], "_INBOX", "_INBOX"),
        ("_INBOX.a", [], "mine", "_INBOX"),
        ("_INBOX.a", ["_INBOX"], "mine", None),
        ("_INBOXES.a", [], "_INBOX", None),
        ("mine.a", [], "mine", "mine"),
        ("mine", [], "mine", "mine"),
        ("mines.a", [], "mine", None),
        ("mine.a", ["mine"], "mine", None),
        ("team.inbox.a", ["team"], "team.inbox", "team.inbox"),
        ("team.inbox.a", ["team", "inbox"], "team.inbox", None),
        ("team.a", ["team"], "team.inbox", None),
        ("a.$JS.x", ["a"], "_INBOX", None),
    ],
)
def test_reserved_subjects_are_recognized(
    subject: str, own_start: list[str], inbox_prefix: str, expected: str | None
) -> None:
    assert reserved_namespace(subject, own_start, inbox_prefix) == expected


def test_each_of_several_prefixes_is_reserved() -> None:
    settings = ConnectionSettings(inbox_prefix="mine", api_prefix="JS.hub.API")
    assert reserved_namespace("JS.hub.API.STREAM.DELETE.S", [], *settings.reserved) == "JS.hub.API"
    assert reserved_namespace("JS.hub.API.STREAM.DELETE.S", ["JS", "hub", "API"], *settings.reserved) is None
    assert reserved_namespace("mine.7", ["JS"], *settings.reserved) == "mine"
    assert reserved_namespace("JS.hub.x", [], *settings.reserved) is None


def test_a_sender_can_not_make_a_route_publish_to_the_api_of_a_connection() -> None:
    route = {
        "name": "r",
        "from": {"subject": "in.*.>", "connection": "b"},
        "to": [{"subject": "{{wildcard(1)}}.>", "connection": "main"}],
    }
    (plan,) = compile_routes(Settings(connections={"main": {"api_prefix": "JS.hub.API"}, "b": {}}, routes=[route]))
    assert plan.destinations[0].subject_for("in.JS.other") == "JS.other"
    with pytest.raises(MappingError, match=r"below JS\.hub\.API, reserved"):
        plan.destinations[0].subject_for("in.JS.hub.API.STREAM.DELETE.S")


@pytest.mark.parametrize(
    ("destination", "start"),
    [
        ("a.b.$1.c", ("a", "b")),
        ("$1.a", ()),
        ("a-$1.b", ("a-$1", "b")),
        ("{{partition(3,1)}}.a", ()),
        ("$KV.{{wildcard(1)}}", ("$KV",)),
    ],
)
def test_the_literal_start_of_a_destination_is_found(destination: str, start: tuple[str, ...]) -> None:
    assert Mapping.compile("in.*", destination).literal_start == start
