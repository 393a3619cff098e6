"""The keyword arguments of `Router.route`, as type checkers know them, are the keys of a configuration."""

from __future__ import annotations

import inspect
from typing import Any, Required, get_origin, get_type_hints

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from router_trio import Router
from router_trio.router import options
from router_trio.settings.retry import DeadLetterSettings, RetrySettings
from router_trio.settings.routes.destination import DestinationSettings
from router_trio.settings.routes.destinations.keys import HeaderSettings
from router_trio.settings.routes.flow import BreakerSettings, LimitSettings
from router_trio.settings.routes.route import RouteSettings
from router_trio.settings.routes.source import SourceSettings

PAIRS: list[tuple[Any, type[BaseModel], set[str]]] = [
    (options.SourceOptions, SourceSettings, {"subject", "connection"}),
    (options.HeaderOptions, HeaderSettings, set()),
    (options.BreakerOptions, BreakerSettings, set()),
    (options.DestinationOptions, DestinationSettings, set()),
    (options.RetryOptions, RetrySettings, set()),
    (options.DeadLetterOptions, DeadLetterSettings, set()),
    (options.LimitOptions, LimitSettings, set()),
]


def key(name: str, field: FieldInfo) -> str:
    return field.validation_alias if isinstance(field.validation_alias, str) else name


@pytest.mark.parametrize(("keys", "section", "arguments"), PAIRS)
def test_the_keys_are_those_of_the_section(keys: Any, section: type[BaseModel], arguments: set[str]) -> None:
    fields = {key(name, field): field for name, field in section.model_fields.items()}
    hints = get_type_hints(keys, include_extras=True)
    assert hints.keys() == fields.keys() - arguments
    required = {name for name, hint in hints.items() if get_origin(hint) is Required}
    assert required == {name for name, field in fields.items() if field.is_required()}


def test_the_arguments_are_the_keys_of_a_route() -> None:
    arguments = inspect.signature(Router.route).parameters.keys() - {"self", "subject", "connection", "source"}
    keys = {key(name, field) for name, field in RouteSettings.model_fields.items()}
    assert arguments == keys - {"from", "handler"}
