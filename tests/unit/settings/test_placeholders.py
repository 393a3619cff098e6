"""Destinations with a token that looks like a placeholder and would be sent literally."""

from __future__ import annotations

import pytest

from router_trio import Router, Settings
from router_trio.errors import ConfigurationError
from tests.unit.settings.problems import MAIN, one_route, problems


@pytest.mark.parametrize(
    ("destination", "token", "message"),
    [
        ("x-$1.y", "x-$1", "has text around a placeholder"),
        ("$1x.y", "$1x", "has text around a placeholder"),
        ("eu.$1-$2", "$1-$2", "has text around a placeholder"),
        ("eu.${1}", "${1}", "has text around a placeholder"),
        ("eu.{{wildcard(1).b", "{{wildcard(1)", "looks like a function but is not one"),
        ("eu.{{wildcard(1)}", "{{wildcard(1)}", "looks like a function but is not one"),
        ("eu.{wildcard(1)}", "{wildcard(1)}", "looks like a function but is not one"),
        ("eu.wildcard(1)", "wildcard(1)", "looks like a function but is not one"),
        ("eu.Partition(3,1)", "Partition(3,1)", "looks like a function but is not one"),
        ("eu-{{wildcard(1)}}.b", "eu-{{wildcard(1)}}", "has text around a function"),
        ("{{wildcard(1)}}-eu.b", "{{wildcard(1)}}-eu", "has text around a function"),
        ("{{wildcard(1)}}-{{wildcard(2)}}", "{{wildcard(1)}}-{{wildcard(2)}}", "has more in it than one function"),
        ("eu.{{split(1,.)}}", "{{split(1,", "looks like a function but is not one"),
    ],
)
def test_a_placeholder_with_text_around_it_is_refused(destination: str, token: str, message: str) -> None:
    found = problems(one_route(from_subject="in.*.*", to=[{"subject": destination}]))
    assert list(found) == ["routes[0].to[0].subject"]
    assert found["routes[0].to[0].subject"].startswith(f"the token {token!r} of {destination!r} {message}")


@pytest.mark.parametrize(
    "destination",
    [
        "eu.$1.$2",
        "eu.{{ wildcard(1) }}",
        "eu.{{split(1,-)}}",
        "cost$.eu",
        "a$b.$x",
        "wildcard.split",
        "eu.{a}",
        "$KV.b",
    ],
)
def test_other_tokens_are_accepted(destination: str) -> None:
    one_route(from_subject="in.*.*", to=[{"subject": destination}])()


def test_dead_letters_and_routes_in_code_are_checked_for_placeholders_too() -> None:
    found = problems(one_route(from_subject="in.*", dead_letter={"subject": "dead-$1"}))
    assert list(found) == ["routes[0].dead_letter.subject"]
    with pytest.raises(ConfigurationError, match="has text around a placeholder"):
        Router(Settings(connections=MAIN)).route("in.*", to="x-$1")(print)
