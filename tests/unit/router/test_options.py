"""The keyword arguments of `Router.route`, as type checkers know them, are the keys of a configuration."""

from __future__ import annotations

import inspect
from typing import Any, Required, get_origin, get_type_hints

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from router_trio import Message, Router, Settings
from router_trio.errors import ConfigurationError
from router_trio.router import options
from router_trio.settings.retry import DeadLetterSettings, RetryScheduleSettings, RetrySettings
from router_trio.settings.routes.destination import DestinationSettings
from router_trio.settings.routes.destinations.keys import HeaderSettings
from router_trio.settings.routes.flow import BreakerSettings, LimitSettings
from router_trio.settings.routes.route import RouteSettings
from router_trio.settings.routes.source import SourceSettings

PAIRS: list[tuple[Any, type[BaseModel], set[str]]] = [
    (options.SourceOptions, SourceSettings, {"subject", "connection"}),
    (options.HeaderOptions, HeaderSettings, set()),
    (options.BreakerOptions, BreakerSettings, set()),
    (options.DestinationOptions, DestinationSettings, {"bucket", "key", "last_writer"}),
    (
        options.BucketOptions,
        DestinationSettings,
        {"subject", "jetstream", "stream", "reply", "delay", "schedule_prefix"},
    ),
    (options.RetryOptions, RetrySettings, set()),
    (options.RetryScheduleOptions, RetryScheduleSettings, set()),
    (options.DeadLetterOptions, DeadLetterSettings, set()),
    (options.LimitOptions, LimitSettings, set()),
]


ONE_OF: dict[Any, set[str]] = {options.DestinationOptions: {"subject"}, options.BucketOptions: {"bucket"}}
"""The keys that a destination of one kind needs, though a section may have others in their place."""


def key(name: str, field: FieldInfo) -> str:
    return field.validation_alias if isinstance(field.validation_alias, str) else name


@pytest.mark.parametrize(("keys", "section", "arguments"), PAIRS)
def test_the_keys_are_those_of_the_section(keys: Any, section: type[BaseModel], arguments: set[str]) -> None:
    fields = {key(name, field): field for name, field in section.model_fields.items()}
    hints = get_type_hints(keys, include_extras=True)
    assert hints.keys() == fields.keys() - arguments
    required = {name for name, hint in hints.items() if get_origin(hint) is Required}
    assert required == {name for name, field in fields.items() if field.is_required()} | ONE_OF.get(keys, set())


def test_the_arguments_are_the_keys_of_a_route() -> None:
    arguments = inspect.signature(Router.route).parameters.keys() - {"self", "subject", "connection", "source"}
    keys = {key(name, field) for name, field in RouteSettings.model_fields.items()}
    assert arguments == keys - {"from", "handler"}


@pytest.mark.parametrize(
    ("key", "problem"),
    [
        ("lop", "routes[0].lop: unknown key; did you mean 'loop'?"),
        ("concurency", "routes[0].concurency: unknown key; did you mean 'concurrency'?"),
        ("durabel", "routes[0].from.durabel: unknown key; did you mean 'durable'?"),
        ("rate", "routes[0].rate: unknown key; it belongs to [routes.limit]"),
        ("ack", "routes[0].ack: no longer a key; remove it: every message is acked by itself"),
        ("handler", "routes[0].handler: the handler is the decorated function; remove this argument"),
    ],
)
def test_an_unknown_keyword_is_compared_with_all_options_of_a_route(key: str, problem: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        routed(**{key: "x"})
    assert str(caught.value) == f"settings: {problem}"


def test_all_options_are_listed_if_none_is_similar_to_an_unknown_keyword() -> None:
    with pytest.raises(ConfigurationError) as caught:
        routed(zzz="x")
    (problem,) = caught.value.problems
    assert problem.path == "routes[0].zzz"
    assert {"'loop'", "'durable'", "'retry'"} <= set(problem.message.partition("there is: ")[2].split(", "))


def test_other_problems_are_reported_with_an_unknown_keyword() -> None:
    with pytest.raises(ConfigurationError) as caught:
        routed(lop="asyncio", hop_limit=-1)
    assert [problem.path for problem in caught.value.problems] == ["routes[0].lop", "routes[0].hop_limit"]


def routed(**more: Any) -> Message:
    router = Router(Settings(connections={"main": {"servers": ["nats://127.0.0.1"]}}))

    @router.route("in", to="out", **more)
    def handler(message: Message) -> Message:
        return message

    return handler(Message("in"))
