"""Settings of several workers: what they can't share is refused, and limits are divided among them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from router_trio.cli.explain_message import explain_message
from router_trio.errors import ConfigurationError
from router_trio.router.workers.process import of_worker
from router_trio.routing.route_plans import compile_routes
from router_trio.settings import Settings
from router_trio.settings.checks.flow import share_of
from router_trio.settings.guarantee import guarantee
from router_trio.settings.units import Rate, format_rate
from tests.unit.settings.problems import problems

QUEUE = {"subject": "in.*", "queue": "q"}
STREAM = {"stream": "S", "durable": "d", "filter": "in.*"}


def made(source: dict[str, Any], workers: int = 4, **route: Any) -> Settings:
    return Settings(
        router={"workers": workers},
        connections={"main": {"servers": ["nats://bob:secret@127.0.0.1:4222"], "reconnect_delay": "2s"}},
        routes=[{"name": "r", "from": source, "to": [{"subject": "out.x"}], **route}],
    )


def test_what_can_be_shared_is_accepted() -> None:
    made(QUEUE)
    made(STREAM)
    made({"subject": "in.*"}, workers=1)
    made(STREAM | {"standby": True}, workers=1)


@pytest.mark.parametrize("workers", [0, 257, "two"])
def test_a_number_that_is_none(workers: Any) -> None:
    assert set(problems(lambda: made(QUEUE, workers))) == {"router.workers"}


@pytest.mark.parametrize(
    ("source", "limit", "path", "cure"),
    [
        ({"subject": "in.*"}, None, "from.queue", "such as queue = 'routers', or run one worker"),
        (STREAM | {"standby": True}, None, "from.standby", "remove it, or run one worker"),
        (STREAM, {"rate": "500/s", "burst": 3}, "limit.burst", "give at least 4, or run fewer workers"),
        (STREAM, {"rate": "3/h", "burst": 9}, "limit.rate", "raise it, or run fewer workers"),
    ],
)
def test_what_can_not_be_shared_is_refused_with_its_cure(
    source: dict[str, Any], limit: dict[str, Any] | None, path: str, cure: str
) -> None:
    found = problems(lambda: made(source, limit=limit))
    assert set(found) == {f"routes[0].{path}"}
    assert found[f"routes[0].{path}"].endswith(cure)
    alone = made(source, 1, limit=limit)
    with pytest.raises(ConfigurationError) as caught:
        alone.with_workers(4)
    assert [(one.path, one.message) for one in caught.value.problems] == [*found.items()]


CORE = """
[router]
workers = 2
[connections.main]
servers = ["nats://127.0.0.1:4222"]
[[routes]]
name = "r"
from = { subject = "in.*" }
to = [{ subject = "out.x" }]
"""


def test_the_number_that_is_given_is_checked_and_not_that_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "router.toml"
    path.write_text(CORE)
    environ = {"ROUTER_TRIO_ROUTER__WORKERS": "3"}
    assert Settings.load(path, environ=environ, workers=1).router.workers == 1
    assert Settings.parse(CORE.encode(), environ={}, workers=1).router.workers == 1
    assert set(problems(lambda: Settings.load(path, environ={}))) == {"routes[0].from.queue"}
    (refused,) = problems(lambda: Settings.load(path, environ=environ, workers=5)).values()
    assert "each of 5 workers" in refused


def test_of_a_router_that_is_no_table_that_is_the_problem() -> None:
    with pytest.raises(ConfigurationError) as caught:
        Settings.parse(CORE.replace("[router]\nworkers = 2", "router = 2").encode(), environ={}, workers=1)
    assert [problem.path for problem in caught.value.problems] == ["router"]


def test_a_mistake_elsewhere_hides_none_of_these() -> None:
    found = problems(lambda: made({"subject": "in.*"}, concurrency="many"))
    assert set(found) == {"routes[0].concurrency", "routes[0].from.queue"}


@given(st.integers(1, 10**9), st.sampled_from([1, 60, 3600]), st.integers(1, 256))
def test_the_shares_of_a_rate_are_never_more_than_all_of_it(messages: int, seconds: int, workers: int) -> None:
    share = share_of(Rate(messages, seconds), workers)
    assume(share is not None)
    assert share is not None
    assert share.messages * workers * seconds <= messages * share.seconds
    assert format_rate(share)


def test_each_worker_gets_its_part_of_a_limit_and_no_pages() -> None:
    settings = made(STREAM, limit={"rate": "500/s", "burst": 10}).with_workers(3)
    mine = of_worker(settings)
    limit = mine.routes[0].limit
    assert limit is not None
    assert (format_rate(limit.rate), limit.burst) == ("10000/m", 3)
    assert mine.telemetry.listen == ""
    assert settings.telemetry.listen


def test_settings_go_through_the_channel_as_they_are() -> None:
    settings = made(STREAM, limit={"rate": "500/s"})
    sent = pickle.loads(pickle.dumps(settings))
    assert sent == settings
    server = sent.connections["main"].servers[0]
    assert (server.user.get_secret_value(), server.password.get_secret_value()) == ("bob", "secret")


@pytest.mark.parametrize(
    ("source", "route", "told"),
    [
        (
            STREAM,
            {},
            "at least once; in no order among 4 workers, which share the consumer, not even for one subject",
        ),
        (QUEUE, {}, "at most once; in no order among 4 workers, which share the queue group, not even for one subject"),
        (
            STREAM,
            {"key": "body.id"},
            "at least once; in no order among 4 workers, which share the consumer, not even for one subject or body.id",
        ),
    ],
)
def test_what_is_promised_of_order(source: dict[str, Any], route: dict[str, Any], told: str) -> None:
    settings = made(source, **route)
    assert guarantee(settings.routes[0], settings.router.workers) == told
    explained = explain_message(compile_routes(settings), "in.7", workers=settings.router.workers).routes[0]
    assert explained.as_json()["guarantee"] == told
    assert f"  {told}" in explained.lines()
