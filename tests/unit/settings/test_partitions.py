"""`partitions` and `partition_by` of a stream: what is refused, with its cure, and what follows from them."""

from __future__ import annotations

from typing import Any

import pytest

from router_trio.routing.route_plans import compile_routes
from router_trio.settings import Settings, SourceSettings
from router_trio.settings.checks.partitions import declared_copy
from router_trio.settings.checks.servers import newer_servers
from router_trio.settings.checks.warnings import warnings
from router_trio.settings.guarantee import guarantee
from router_trio.settings.routes.sources.partitioned import derived_stream, durables, partitioning_of
from router_trio.subjects.partitions import Partitioning
from tests.unit.settings.problems import MAIN, one_route, problems, route

ORDERS = {"stream": "ORDERS", "durable": "router", "filter": "orders.*.*"}


def refused(**changes: Any) -> dict[str, str]:
    given = ORDERS | changes
    found = problems(one_route(**{f"from_{key}": value for key, value in given.items() if value is not None}))
    return {path.removeprefix("routes[0].from."): message for path, message in found.items()}


def test_partitions_are_made_of_the_wildcards_of_the_filter() -> None:
    source = SourceSettings(**ORDERS, partitions=16, partition_by=[2])
    assert partitioning_of(source) == Partitioning(16, (2,), ("orders.*.*",))
    source = SourceSettings(stream="ORDERS", durable="router", partitions=4)
    assert partitioning_of(source) == Partitioning(4, (), (">",))
    assert partitioning_of(SourceSettings(**ORDERS)) is None


def test_each_partition_has_a_durable_of_its_own() -> None:
    assert durables(SourceSettings(**ORDERS, partitions=3)) == ("router-0", "router-1", "router-2")
    assert durables(SourceSettings(**ORDERS)) == ("router",)
    assert derived_stream("ORDERS", "router") == "ORDERS-router"


@pytest.mark.parametrize("partitions", [0, -1, 1025, "many"])
def test_an_impossible_number_of_partitions_is_refused(partitions: Any) -> None:
    assert set(refused(partitions=partitions)) == {"partitions"}


@pytest.mark.parametrize("by", [[], [0], ["a"], "1", 1])
def test_partition_by_without_numbers_of_wildcards_is_refused(by: Any) -> None:
    (path,) = refused(partitions=4, partition_by=by)
    assert path.startswith("partition_by")


@pytest.mark.parametrize(
    ("changes", "path", "message"),
    [
        (
            {"partition_by": [1]},
            "partition_by",
            "has no effect without 'partitions'; give their number, or remove it",
        ),
        (
            {"partitions": 4, "partition_by": [3]},
            "partition_by",
            "names the wildcard 3, and the filter 'orders.*.*' has 2 '*'; name one that it has, or put another '*' "
            "into the filter",
        ),
        (
            {"partitions": 4, "partition_by": [1], "filter": ["orders.*.*", "returns.>"]},
            "partition_by",
            "names the wildcard 1, and the filter 'returns.>' has no '*'; name one that it has, or put another '*' "
            "into the filter",
        ),
        (
            {"partitions": 4, "partition_by": [1], "filter": None},
            "partition_by",
            "names wildcards of 'filter', and there is none; give a filter such as 'orders.*.>', or remove it",
        ),
        ({"partitions": 4, "partition_by": [2, 1, 2]}, "partition_by", "names the wildcard 2 twice; name each once"),
        (
            {"partitions": 4, "standby": True},
            "standby",
            "can't be combined with 'partitions': each partition has one process at a time anyway; remove it",
        ),
    ],
)
def test_contradictions_are_refused_with_their_cure(changes: dict[str, Any], path: str, message: str) -> None:
    assert refused(**changes) == {path: message}


def test_a_subject_has_no_partitions() -> None:
    found = problems(one_route(from_subject="in.*", from_partitions=4))
    assert "remove it" in found["routes[0].from.partitions"]


def test_several_workers_share_the_partitions() -> None:
    source = {f"from_{key}": value for key, value in (ORDERS | {"partitions": 16, "partition_by": [1]}).items()}
    settings = Settings(router={"workers": 4}, connections=MAIN, routes=[route(**source)])
    found = guarantee(settings.routes[0], workers=4)
    assert found == "at least once; in order for each value of wildcard 1 of the filter, over all processes"


def test_the_guarantee_names_all_wildcards_of_the_key() -> None:
    source = ORDERS | {"filter": "orders.*.*.*", "partitions": 16, "partition_by": [1, 3]}
    settings = Settings(connections=MAIN, routes=[route(**{f"from_{key}": value for key, value in source.items()})])
    assert "in order for each value of wildcards 1 and 3 of the filter, over all processes" in guarantee(
        settings.routes[0]
    )


@pytest.mark.parametrize(("by", "needed"), [(None, "needs nats-server 2.12"), ([1], "needs nats-server 2.11")])
def test_check_names_the_server_that_partitions_need(by: list[int] | None, needed: str) -> None:
    given = ORDERS | {"partitions": 16} | ({} if by is None else {"partition_by": by})
    settings = Settings(connections=MAIN, routes=[route(**{f"from_{key}": value for key, value in given.items()})])
    (found,) = [one for one in newer_servers(settings.routes, settings.streams) if "partitions" in one.path]
    assert found.message.startswith(needed)


# --- the partitions of [[streams]] ---

STREAM = {"name": "ORDERS", "subjects": ["orders.*.*"]}
COPY = {"name": "ORDERS-router", "retention": "workqueue"}


def settings(*streams: dict[str, Any], **source: Any) -> Settings:
    given = {f"from_{key}": value for key, value in (ORDERS | source).items() if value is not None}
    return Settings(connections=MAIN, routes=[route(**given)], streams=list(streams))


def test_a_stream_puts_the_partition_in_front_of_its_subjects_itself() -> None:
    (stream,) = settings(STREAM | {"partitions": 16, "partition_by": [1]}).streams
    destination = "{{partition(16,1)}}.orders.{{wildcard(1)}}.{{wildcard(2)}}"
    assert stream.config.transform == ("orders.*.*", destination)
    assert stream.stored_under == ("*.orders.*.*",)
    # Further subjects change nothing where the entire subject determines the partition.
    (stream,) = settings(STREAM | {"subjects": ["orders.*.*", "returns.>"], "partitions": 16}).streams
    assert stream.config.transform == (">", "{{partition(16)}}.>")
    assert settings(STREAM).streams[0].config.transform is None


@pytest.mark.parametrize(
    ("changes", "path", "message"),
    [
        ({"partition_by": [1]}, "partition_by", "has no effect without 'partitions'; give their number, or remove it"),
        ({"partitions": 4, "partition_by": [1, 1]}, "partition_by", "names the wildcard 1 twice; name each once"),
        (
            {"partitions": 4, "partition_by": [3]},
            "partition_by",
            "names the wildcard 3, and the subject 'orders.*.*' has 2 '*'; name one that it has, or put another '*' "
            "into the subject",
        ),
        (
            {"partitions": 4, "partition_by": [1], "subjects": ["orders.*.*", "returns.*"]},
            "partition_by",
            "names wildcards of one subject, and there are 2: a stream has one transform; use one stream for each "
            "subject, or remove it, so that the entire subject determines the partition",
        ),
    ],
)
def test_impossible_partitions_of_a_stream_are_refused(changes: dict[str, Any], path: str, message: str) -> None:
    assert problems(lambda: settings(STREAM | changes)) == {f"streams[0].{path}": message}


@pytest.mark.parametrize("partitions", [0, 1025])
def test_an_impossible_number_of_partitions_of_a_stream_is_refused(partitions: int) -> None:
    assert set(problems(lambda: settings(STREAM | {"partitions": partitions}))) == {"streams[0].partitions"}


@pytest.mark.parametrize(
    ("stream", "source", "why"),
    [
        (
            {"partitions": 8, "partition_by": [1]},
            {"partitions": 16, "partition_by": [1]},
            "it has 8 partitions, the route 16 partitions",
        ),
        (
            {"partitions": 8},
            {"partitions": 8, "partition_by": [1]},
            "its partitions are made of the entire subject of >, those of the route of wildcard 1",
        ),
        (
            {"partitions": 8, "subjects": ["orders.a.*"], "partition_by": [1]},
            {"partitions": 8, "partition_by": [2]},
            "it partitions orders.a.*, and the route reads orders.*.*",
        ),
    ],
)
def test_a_route_with_other_partitions_than_its_stream_is_refused(
    stream: dict[str, Any], source: dict[str, Any], why: str
) -> None:
    found = problems(lambda: settings(STREAM | stream, **source))
    assert found == {
        "routes[0].from.partitions": f"differs from the partitions of streams[0] (ORDERS): {why}; correct one of them"
    }


def test_a_route_may_read_a_part_of_the_partitions_of_its_stream() -> None:
    settings(STREAM | {"partitions": 8, "partition_by": [1]}, filter="orders.*.new", partitions=8, partition_by=[1])


def test_a_copy_is_declared_without_subjects() -> None:
    made = settings(STREAM, COPY, partitions=4)
    config = declared_copy(made.routes[0].source, made.connections, made.streams)
    assert config is not None
    assert (config.name, config.subjects, config.retention) == ("ORDERS-router", (), "workqueue")
    assert made.streams[1].is_copy
    assert compile_routes(made)[0].copy == config
    plain = settings(STREAM, partitions=4)
    assert declared_copy(plain.routes[0].source, plain.connections, plain.streams) is None


@pytest.mark.parametrize(
    ("changes", "path", "words"),
    [
        ({"subjects": ["copies.>"]}, "subjects", "routes[0] makes 'ORDERS-router'"),
        ({"partitions": 4}, "partitions", "routes[0] makes 'ORDERS-router'"),
        ({"retention": "interest"}, "retention", "use 'limits' or 'workqueue'"),
        ({"duplicate_window": "2m"}, "duplicate_window", "would drop messages"),
        ({"allow_batched": True}, "allow_batched", "nothing is published"),
    ],
)
def test_keys_that_a_copy_can_not_have_are_refused(changes: dict[str, Any], path: str, words: str) -> None:
    found = problems(lambda: settings(COPY | changes, partitions=4))
    assert set(found) == {f"streams[0].{path}"}
    assert words in found[f"streams[0].{path}"]


@pytest.mark.parametrize("source", [{}, {"partitions": 4, "durable": "other"}])
def test_any_other_stream_needs_subjects(source: dict[str, Any]) -> None:
    found = problems(lambda: settings(COPY, **source))
    assert found == {"streams[0].subjects": "missing; list the subjects that the stream takes"}


def test_a_route_without_partitions_gets_the_subjects_with_the_token() -> None:
    partitioned = STREAM | {"partitions": 8, "partition_by": [1]}

    def warned(**source: Any) -> list[str]:
        made = settings(partitioned, **source)
        return [one.path for one in warnings(made.connections, made.routes, made.streams)]

    assert warned() == ["routes[0].from.filter"]
    assert warned(filter="*.orders.*.*") == []
    assert warned(partitions=8, partition_by=[1]) == []


def test_check_names_the_server_that_partitions_of_a_stream_need() -> None:
    made = settings(STREAM | {"partitions": 8})
    (found,) = newer_servers(made.routes, made.streams)
    assert (found.path, found.message[:23]) == ("streams[0].partitions", "needs nats-server 2.12,")
    made = settings(STREAM | {"partitions": 8, "partition_by": [1]})
    assert list(newer_servers(made.routes, made.streams)) == []


def test_a_key_whose_values_may_be_in_several_partitions_is_warned_about() -> None:
    def warned(**changes: Any) -> list[str]:
        source = {f"from_{key}": value for key, value in (ORDERS | changes).items()}
        made = Settings(connections=MAIN, routes=[route(**source, key="body.customer")])
        return [one.path for one in warnings(made.connections, made.routes)]

    assert warned(partitions=4) == ["routes[0].key"]
    assert warned(partitions=4, partition_by=[1]) == []
    assert warned() == []
