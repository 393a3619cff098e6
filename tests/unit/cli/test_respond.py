"""`check` and `explain` for a route that sends responses."""

from __future__ import annotations

from pathlib import Path

import pytest

from router_trio.cli.configuration import load_with_handlers
from router_trio.cli.explain_message import explain_message
from router_trio.errors import ConfigurationError
from router_trio.routing.route_plans import compile_routes
from router_trio.settings import Settings
from tests.unit.settings.problems import MAIN, route


def test_check_refuses_one_without_a_handler(tmp_path: Path) -> None:
    config = tmp_path / "router.toml"
    config.write_text(
        '[connections.main]\nservers = ["host"]\n[[routes]]\nname = "r"\nrespond = true\nfrom = { subject = "a" }\n'
    )
    with pytest.raises(ConfigurationError, match="name a handler, or remove it") as caught:
        load_with_handlers(config)
    assert [problem.path for problem in caught.value.problems] == ["routes[0].respond"]


def test_explain_shows_where_the_response_is_sent() -> None:
    settings = Settings(connections=MAIN, routes=[route(to=[], respond=True, handler="shop:price")])
    explanation = explain_message(compile_routes(settings), "in.x")
    assert "  the result of the handler is also sent to the reply subject of the message" in list(explanation.lines())
