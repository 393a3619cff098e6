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


def test_sources_that_can_be_shared_are_accepted() -> None:
    made(QUEUE)
    made(STREAM)
    made({"subject": "in.*"}, workers=1)
    made(STREAM | {"standby": True}, workers=1)


@pytest.mark.parametrize("workers", [0, 257, "two"])
def test_an_impossible_number_of_workers_is_refused(workers: Any) -> None:
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
def test_sources_and_limits_that_can_not_be_shared_are_refused_with_their_cure(
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


def test_the_given_number_of_workers_overrides_the_one_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "router.toml"
    path.write_text(CORE)
    environ = {"ROUTER_TRIO_ROUTER__WORKERS": "3"}
    assert Settings.load(path, environ=environ, workers=1).router.workers == 1
    assert Settings.parse(CORE.encode(), environ={}, workers=1).router.workers == 1
    assert set(problems(lambda: Settings.load(path, environ={}))) == {"routes[0].from.queue"}
    (refused,) = problems(lambda: Settings.load(path, environ=environ, workers=5)).values()
    assert "each of 5 workers" in refused


def test_a_router_section_that_is_not_a_table_is_the_only_problem() -> None:
    with pytest.raises(ConfigurationError) as caught:
        Settings.parse(CORE.replace("[router]\nworkers = 2", "router = 2").encode(), environ={}, workers=1)
    assert [problem.path for problem in caught.value.problems] == ["router"]


def test_a_mistake_elsewhere_does_not_hide_what_workers_can_not_share() -> None:
    found = problems(lambda: made({"subject": "in.*"}, concurrency="many"))
    assert set(found) == {"routes[0].concurrency", "routes[0].from.queue"}


@given(st.integers(1, 10**9), st.sampled_from([1, 60, 3600]), st.integers(1, 256))
def test_the_shares_of_a_rate_never_exceed_the_rate(messages: int, seconds: int, workers: int) -> None:
    share = share_of(Rate(messages, seconds), workers)
    assume(share is not None)
    assert share is not None
    assert share.messages * workers * seconds <= messages * share.seconds
    assert format_rate(share)


def test_each_worker_gets_its_share_of_a_limit_and_serves_no_pages() -> None:
    settings = made(STREAM, limit={"rate": "500/s", "burst": 10}).with_workers(3)
    mine = of_worker(settings)
    limit = mine.routes[0].limit
    assert limit is not None
    assert (format_rate(limit.rate), limit.burst) == ("10000/m", 3)
    assert mine.telemetry.listen == ""
    assert settings.telemetry.listen


def test_settings_survive_the_channel_to_a_worker() -> None:
    settings = made(STREAM, limit={"rate": "500/s"})
    sent = pickle.loads(pickle.dumps(settings))
    assert sent == settings
    server = sent.connections["main"].servers[0]
    assert (server.user.get_secret_value(), server.password.get_secret_value()) == ("bob", "secret")


@pytest.mark.parametrize(
    ("source", "route", "sentence"),
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
def test_the_order_promised_with_several_workers_is_described(
    source: dict[str, Any], route: dict[str, Any], sentence: str
) -> None:
    settings = made(source, **route)
    assert guarantee(settings.routes[0], settings.router.workers) == sentence
    explained = explain_message(compile_routes(settings), "in.7", workers=settings.router.workers).routes[0]
    assert explained.as_json()["guarantee"] == sentence
    assert f"  {sentence}" in explained.lines()
