"""`router-trio permissions`: what it prints for configurations of each kind."""

from __future__ import annotations

import csv
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_trio.cli import main
from router_trio.cli.command_line import DONE, INVALID_CONFIGURATION, WRONG_USAGE
from router_trio.cli.permissions import lines
from router_trio.errors import ConfigurationError, MappingError
from router_trio.protocol import ack_reply
from router_trio.protocol.permissions import PERMISSIONS, SUBSCRIBE, Use
from router_trio.protocol.schedules import token
from router_trio.settings import Settings
from router_trio.settings.permissions import permissions_of
from router_trio.subjects.patterns import matches

EXAMPLES = Path(__file__).parents[3] / "examples"
INBOX = ["_INBOX.>"]
OF_SERVICE = ["$SRV.*", "$SRV.*.router-trio", "$SRV.*.router-trio.*"]


def core(subject: str, *to: str | dict[str, Any], name: str = "r", **rest: Any) -> dict[str, Any]:
    source = {"connection": "main", "subject": subject} | {key: rest.pop(key) for key in ("queue",) if key in rest}
    return {"name": name, "from": source, "to": [_on_main(one) for one in to], **rest}


def stream(name: str, *to: str | dict[str, Any], route: str = "r", **rest: Any) -> dict[str, Any]:
    source = {"connection": "main", "stream": name, "durable": "d"}
    source |= {key: rest.pop(key) for key in ("filter", "standby") if key in rest}
    return {"name": route, "from": source, "to": [_on_main(one) for one in to], **rest}


def bucket(name: str, durable: str) -> dict[str, Any]:
    return {"connection": "main", "bucket": name, "durable": durable}


def _on_main(to: str | dict[str, Any]) -> dict[str, Any]:
    return {"connection": "main", **({"subject": to} if isinstance(to, str) else to)}


def configured(
    *routes: dict[str, Any],
    streams: list[dict[str, Any]] | None = None,
    other: dict[str, Any] | None = None,
    positions: list[dict[str, Any]] | None = None,
    service: bool = False,
    **connection: Any,
) -> Settings:
    connections = {"main": {"servers": ["nats://a"], **connection}, "other": {"servers": ["nats://b"], **(other or {})}}
    return Settings(
        router={"service": service},
        connections=connections,
        routes=list(routes),
        streams=streams or [],
        positions=positions or [],
    )


def granted(settings: Settings, connection: str = "main") -> tuple[list[str], list[str]]:
    """Return what may be published, and what may be subscribed to."""
    found = permissions_of(settings, connection)
    publish, subscribe = ([one.subject for one in found if one.kind == kind] for kind in ("publish", "subscribe"))
    return publish, subscribe


OTHER_DURABLE = f"retry-reminders-{token(b'retry')}"
"""The durable of the retries, if another prefix has the usual one."""


def of_durable(stream: str, durable: str = "d", api: str = "$JS.API", domain: str = "*") -> list[str]:
    """Return what a route from a stream publishes to it, in the order of the table."""
    return [
        f"$JS.ACK.{stream}.{durable}.>",
        f"$JS.ACK.{domain}.*.{stream}.{durable}.>",
        f"{api}.CONSUMER.MSG.NEXT.{stream}.{durable}",
        f"{api}.STREAM.INFO.{stream}",
        f"{api}.CONSUMER.INFO.{stream}.{durable}",
        f"{api}.CONSUMER.DURABLE.CREATE.{stream}.{durable}",
        f"{api}.STREAM.MSG.GET.{stream}",
    ]


def acks_of(stream: str, durable: str = "d") -> list[str]:
    return [f"$JS.ACK.{stream}.{durable}.>", f"$JS.ACK.*.*.{stream}.{durable}.>"]


def heard(*streams: str, durable: str = "") -> list[str]:
    """Return the advisories about a durable of the first stream, if it is given, and about streams."""
    of_durable = [f"$JS.EVENT.ADVISORY.CONSUMER.*.{streams[0]}.{durable}"] if durable else []
    return [*of_durable, *(f"$JS.EVENT.ADVISORY.STREAM.*.{name}" for name in streams)]


def jetstream(subject: str, **keys: Any) -> dict[str, Any]:
    return {"subject": subject, "jetstream": True, **keys}


OUT = {"connection": "main", "name": "OUT", "subjects": ["out.>"]}
OF_OUT = ["$JS.API.STREAM.NAMES", "$JS.API.STREAM.INFO.OUT"]
MAKES_OUT = ["$JS.API.STREAM.CREATE.OUT"]
LOOKUPS = ["$JS.API.STREAM.NAMES", "$JS.API.STREAM.INFO.*"]


@pytest.mark.parametrize(
    ("settings", "publish", "subscribe"),
    [
        pytest.param(configured(core("in.*", "out.{{wildcard(1)}}")), ["out.*"], ["in.*", *INBOX], id="core"),
        pytest.param(configured(core("in", "out", queue="q")), ["out"], ["in q", *INBOX], id="a queue group"),
        pytest.param(
            configured(core("in", "out", name="a", queue="q"), core("in", "out", name="b", queue="p")),
            ["out"],
            ["in q", "in p", *INBOX],
            id="two queue groups of a subject",
        ),
        pytest.param(configured(core("in.>", "out.>")), ["out.>"], ["in.>", *INBOX], id="the rest of a subject"),
        pytest.param(
            configured(core("in.*", "out.{{split(1,-)}}.x")), ["out.>"], ["in.*", *INBOX], id="several tokens from one"
        ),
        pytest.param(
            configured(core("in.*", "out.{{partition(3,1)}}.{{wildcard(1)}}")),
            ["out.*.*"],
            ["in.*", *INBOX],
            id="partitions",
        ),
        pytest.param(
            configured(core("in.*", "out.1", "out.{{wildcard(1)}}")),
            ["out.*"],
            ["in.*", *INBOX],
            id="a subject that another one covers",
        ),
        pytest.param(
            configured(core("in.*", jetstream("out.{{wildcard(1)}}"))),
            ["out.*", *LOOKUPS],
            ["in.*", *INBOX, *heard("*")],
            id="a stream that only the server knows",
        ),
        pytest.param(
            configured(core("in.*", jetstream("out.{{wildcard(1)}}")), streams=[OUT]),
            ["out.*", *OF_OUT, *MAKES_OUT],
            ["in.*", *INBOX, *heard("OUT")],
            id="a stream of the configuration",
        ),
        pytest.param(
            configured(core("in.>", jetstream(">"), name="a", hop_limit=1), streams=[OUT]),
            [">"],
            ["in.>", *INBOX, *heard("*")],
            id="everything",
        ),
        pytest.param(
            configured(core("in.*", jetstream("o.{{wildcard(1)}}", stream="OUT"))),
            ["o.*", "$JS.API.STREAM.INFO.OUT"],
            ["in.*", *INBOX, *heard("OUT")],
            id="a stream by its name",
        ),
        pytest.param(
            configured(core("in.*", jetstream("out.a"), "out.b"), streams=[OUT]),
            ["out.a", "out.b", *OF_OUT, *MAKES_OUT],
            ["in.*", *INBOX, *heard("OUT")],
            id="strategies send anywhere",
        ),
        pytest.param(
            configured(stream("IN", "out.{{wildcard(1)}}", filter="in.*"), streams=[OUT]),
            ["out.*", *of_durable("IN"), *OF_OUT, *MAKES_OUT],
            [*INBOX, *acks_of("IN"), *heard("IN", "OUT", durable="d")],
            id="a stream to a stream",
        ),
        pytest.param(
            configured(stream("IN", {"subject": "out.{{wildcard(1)}}", "jetstream": False}, filter=["in.*", "a.*"])),
            ["out.*", *of_durable("IN"), "$JS.API.STREAM.NAMES"],
            [*INBOX, *acks_of("IN"), *heard("IN", durable="d")],
            id="a stream to a subject",
        ),
        pytest.param(
            configured(stream("IN", jetstream("o.>"), filter="in.>")),
            ["o.>", *of_durable("IN"), *LOOKUPS],
            [*INBOX, *acks_of("IN"), "$JS.EVENT.ADVISORY.CONSUMER.*.IN.d", *heard("*")],
            id="what is optional covers nothing that is needed",
        ),
        pytest.param(
            configured(stream("IN", "out.a", standby=True), streams=[OUT]),
            ["out.a", *of_durable("IN")[:-1], "$JS.API.CONSUMER.UNPIN.IN.d", of_durable("IN")[-1], *OF_OUT, *MAKES_OUT],
            [*INBOX, *heard("IN", "OUT", durable="d")],
            id="standby",
        ),
        pytest.param(
            configured(
                core("in.*", "out.{{wildcard(1)}}", dead_letter={"subject": "dead.{{wildcard(1)}}"}),
            ),
            ["out.*", "dead.*", *LOOKUPS],
            ["in.*", *INBOX, *heard("*")],
            id="dead letters",
        ),
        pytest.param(
            configured(core("in.*", "out", dead_letter={"subject": "dead", "jetstream": False})),
            ["out", "dead"],
            ["in.*", *INBOX],
            id="core dead letters",
        ),
        pytest.param(
            configured(core("in.*", respond=True, handler="any:one", reply_to=["answers.>"])),
            ["_INBOX.>", "answers.>"],
            ["in.*", *INBOX],
            id="answers",
        ),
        pytest.param(
            configured(stream("IN", "out.a"), streams=[OUT], domain="hub", inbox_prefix="_INBOX_router"),
            [
                "out.a",
                *of_durable("IN", api="$JS.hub.API", domain="hub"),
                *(one.replace("$JS.API", "$JS.hub.API") for one in (*OF_OUT, *MAKES_OUT)),
            ],
            ["_INBOX_router.>", *acks_of("IN"), *heard("IN", "OUT", durable="d")],
            id="a domain",
        ),
        pytest.param(
            configured(stream("IN", jetstream("out.a", stream="OUT")), api_prefix="JS.orders.API"),
            ["out.a", *of_durable("IN", api="JS.orders.API"), "JS.orders.API.STREAM.INFO.OUT"],
            [*INBOX, *acks_of("IN"), *heard("IN", "OUT", durable="d")],
            id="an API prefix",
        ),
        pytest.param(
            configured(core("in", {"connection": "other", "subject": "out"})),
            [],
            ["in", *INBOX],
            id="a connection without destinations",
        ),
        pytest.param(configured(streams=[OUT]), ["$JS.API.STREAM.INFO.OUT", *MAKES_OUT], INBOX, id="only a stream"),
        pytest.param(configured(), [], INBOX, id="nothing"),
    ],
)
def test_the_permissions_of(settings: Settings, publish: list[str], subscribe: list[str]) -> None:
    assert granted(settings) == (publish, subscribe)


def test_a_connection_gets_the_permissions_of_its_own_ends() -> None:
    route = stream("IN", {"connection": "other", "subject": "out.a"}, {"connection": "other", "subject": "out.b"})
    route["dead_letter"] = {"connection": "other", "subject": "dead.a"}
    settings = configured(route, streams=[OUT | {"connection": "other"}])
    assert granted(settings) == (of_durable("IN"), [*INBOX, *acks_of("IN"), *heard("IN", durable="d")])
    lookups = [*OF_OUT, "$JS.API.STREAM.INFO.*", *MAKES_OUT]
    assert granted(settings, "other") == (["out.a", "out.b", "dead.a", *lookups], [*INBOX, *heard("*")])


def partitioned(**source: Any) -> dict[str, Any]:
    route = stream("IN", {"connection": "other", "subject": "out.a"})
    route["from"] |= {"filter": "in.*", "partitions": 2, "partition_by": [1]} | source
    return route


OF_MEMBERS = [
    "$JS.API.STREAM.INFO.KV_router-trio-members",
    "$KV.router-trio-members.IN.d.*",
    "$JS.API.STREAM.MSG.GET.KV_router-trio-members",
    "$JS.API.STREAM.CREATE.KV_router-trio-members",
    "$JS.API.STREAM.PURGE.KV_router-trio-members",
]


def test_a_route_with_partitions_reads_a_copy_with_any_of_its_consumers() -> None:
    *of_consumer, messages = of_durable("IN-d", "*")
    publish = [*of_consumer, "$JS.API.CONSUMER.UNPIN.IN-d.*", messages]
    publish += ["$JS.API.STREAM.INFO.IN", "$JS.API.STREAM.CREATE.IN-d"]
    publish += ["$JS.API.STREAM.MSG.GET.IN", "$JS.API.STREAM.UPDATE.IN-d", "$JS.API.CONSUMER.INFO.IN.d", *OF_MEMBERS]
    settings = configured(partitioned())
    subscribe = [*INBOX, *heard("IN-d", durable="*")]
    assert granted(settings) == (publish, subscribe)
    optional = {one.subject for one in permissions_of(settings, "main") if one.optional}
    unpin, purge = "$JS.API.CONSUMER.UNPIN.IN-d.*", "$JS.API.STREAM.PURGE.KV_router-trio-members"
    assert optional == {unpin, messages, purge, *heard("IN-d", durable="*")}


def test_a_stream_with_partitions_is_read_with_one_durable_each() -> None:
    entry = {"connection": "main", "name": "IN", "subjects": ["in.*"], "partitions": 2, "partition_by": [1]}
    publish, subscribe = granted(configured(partitioned(), streams=[entry]))
    of_both = dict.fromkeys(
        one for pair in zip(*(of_durable("IN", f"d-{n}") for n in (0, 1)), strict=True) for one in pair
    )
    unpins = [f"$JS.API.CONSUMER.UNPIN.IN.d-{n}" for n in (0, 1)]
    assert set(publish) == {*of_both, *unpins, *OF_MEMBERS, "$JS.API.STREAM.CREATE.IN"}
    of_durables = [f"$JS.EVENT.ADVISORY.CONSUMER.*.IN.d-{n}" for n in (0, 1)]
    assert set(subscribe) == {*INBOX, *of_durables, *heard("IN")}


def test_the_bucket_of_members_is_below_the_prefix_of_another_domain() -> None:
    publish, _ = granted(configured(partitioned(), domain="hub"))
    assert "$JS.hub.API.$KV.router-trio-members.IN.d.*" in publish
    assert "$JS.hub.API.STREAM.CREATE.IN-d" in publish


def test_a_position_is_read_at_the_source_and_kept_at_the_destination() -> None:
    route = stream("IN", {"connection": "other", "subject": "out.a"}, route="a copy")
    kept = [{"consumer": "billing", "route": "a copy"}, {"consumer": "shipping", "route": "a copy", "bucket": "B"}]
    settings, without = configured(route, positions=kept), configured(route)
    found = {one.subject: one for one in permissions_of(settings, "main")}
    added = ["$JS.API.CONSUMER.INFO.IN.billing", "$JS.API.CONSUMER.INFO.IN.shipping"]
    assert granted(settings) == ([*granted(without)[0], *added], granted(without)[1])
    assert not found["$JS.API.STREAM.MSG.GET.IN"].optional, "a route works without it, checkpoints do not"
    checkpoints = ["$KV.router-positions.a=20copy.billing", "$KV.B.a=20copy.shipping"]
    made = [f"$JS.API.STREAM.{what}.KV_{bucket}" for what in ("INFO", "CREATE") for bucket in ("router-positions", "B")]
    assert granted(settings, "other") == ([*granted(without, "other")[0], *made, *checkpoints], [*INBOX, *heard("*")])
    inboxes = [next(one for one in permissions_of(s, "other") if one.subject == INBOX[0]) for s in (settings, without)]
    assert not inboxes[0].optional
    (line,) = [one for one in lines(settings, "main", "server") if "MSG.GET" in one]
    assert line.endswith("; positions billing, shipping: the time of its last acked message")


def test_a_stream_of_another_account_is_not_that_of_a_destination() -> None:
    route = core("in", jetstream("out.a"))
    elsewhere = OUT | {"connection": "other"}
    assert granted(configured(route, streams=[elsewhere], other={"servers": ["nats://a"]}))[0] == ["out.a", *OF_OUT]
    assert granted(configured(route, streams=[elsewhere]))[0] == ["out.a", *LOOKUPS]


TOKENS = st.sampled_from(["*", "a", "b"])
PLACES = st.sampled_from(
    ["a", "b", "{{wildcard(1)}}", "$2", "{{wildcard(0)}}", "{{partition(3,1)}}", "{{split(1,-)}}", "{{left(2,1)}}"]
)


@given(
    source=st.lists(TOKENS, min_size=1, max_size=3),
    place=st.lists(PLACES, min_size=1, max_size=3),
    rest=st.booleans(),
    words=st.lists(st.sampled_from(["a", "b", "x-y", "-", "z--"]), min_size=5, max_size=5),
)
def test_every_subject_of_a_destination_may_be_published(
    source: list[str], place: list[str], rest: bool, words: list[str]
) -> None:
    end = [">"] if rest else []
    try:
        settings = configured(core(".".join(source + end), ".".join(["out", *place, *end])))
    except ConfigurationError:
        return
    subject = ".".join(word if token == "*" else token for token, word in zip(source, words, strict=False))
    subject += ".m.n" if rest else ""
    try:
        sent = settings.routes[0].source.mapping(settings.routes[0].to[0].subject).apply(subject)
    except MappingError:
        return
    (allowed,) = granted(settings)[0]
    assert matches(allowed, sent)


def test_a_router_that_is_a_service_may_be_asked_and_answer() -> None:
    settings = configured(core("in", "out"), service=True)
    assert granted(settings) == (["out", *INBOX], ["in", *INBOX, *OF_SERVICE])
    needed = {one.subject for one in permissions_of(settings, "main") if not one.optional}
    assert needed == {"in", "out"}


def test_each_row_of_the_table_is_for_a_part_that_has_its_names() -> None:
    everything = configured(
        core("in", jetstream("out.a"), name="a", queue="q", dead_letter={"subject": "dead"}),
        core("ask", name="b", respond=True, handler="any:one"),
        stream("IN", "out.a", route="c"),
        stream("IN", "out.a", route="d", standby=True)
        | {"from": stream("IN", standby=True)["from"] | {"durable": "e"}},
        partitioned(durable="f") | {"name": "e"},
        stream("IN", "out.a", route="g")
        | {"from": stream("IN")["from"] | {"durable": "g"}, "retry": {"schedule": {"stream": "R", "prefix": "retry"}}},
        stream("IN", {"bucket": "there"}, route="h") | {"from": bucket("here", "h")},
        streams=[OUT],
        positions=[{"consumer": "billing", "route": "c"}],
        service=True,
    )
    found = permissions_of(everything, "main")
    reasons = {(one.kind, sends) for one in found for sends in one.reasons}
    assert reasons == {(row.kind, row.sends) for row in PERMISSIONS}
    assert {row.use for row in PERMISSIONS} == {*Use}


def test_the_subjects_of_acks_are_those_of_the_code() -> None:
    of_table = [one.subject for one in PERMISSIONS if one.kind == SUBSCRIBE and one.subject.startswith("$JS.ACK.")]
    assert tuple(of_table) == ack_reply.subscriptions("{stream}", "{durable}")


# --- the output ---


def test_the_block_names_what_needs_each_permission() -> None:
    settings = configured(
        *(core("in", "eu", name=f"r{number}", queue="q") for number in range(5)),
        core("more.*", "eu.{{wildcard(1)}}", name="two words"),
        stream("IN", jetstream("out.{{wildcard(1)}}"), route="s", filter="in.*"),
    )
    assert (
        "\n".join(lines(settings, "main", "server"))
        == r"""# connection main
permissions {
  publish {
    allow: [
      "eu"                                    # routes r0, r1, r2 and 2 more: messages
      "eu.*"                                  # route two words: messages
      "out.*"                                 # route s: messages
      "$JS.ACK.IN.d.>"                        # route s: acks
      "$JS.ACK.*.*.IN.d.>"                    # route s: acks with domain and account
      "$JS.API.CONSUMER.MSG.NEXT.IN.d"        # route s: pulls
      "$JS.API.STREAM.INFO.IN"                # route s: whether the stream exists
      "$JS.API.CONSUMER.INFO.IN.d"            # route s: whether the durable exists
      "$JS.API.CONSUMER.DURABLE.CREATE.IN.d"  # route s: to create the durable (first start)
      "$JS.API.STREAM.MSG.GET.IN"             # route s: lookups of single messages (optional)
      "$JS.API.STREAM.NAMES"                  # routes r0, r1, r2 and 4 more: which stream takes the messages (optional)
      "$JS.API.STREAM.INFO.*"                 # route s: whether the stream accepts messages (optional)
    ]
  }
  subscribe {
    allow: [
      "in q"                                # routes r0, r1, r2 and 2 more: messages
      "more.*"                              # route two words: messages
      "_INBOX.>"                            # PubAcks, messages of streams, answers of the JetStream API
      "$JS.ACK.IN.d.>"                      # route s: whether another process is handling messages (optional)
      "$JS.ACK.*.*.IN.d.>"                  # route s: the same, of acks with domain and account (optional)
      "$JS.EVENT.ADVISORY.CONSUMER.*.IN.d"  # route s: what servers report about the durable (optional)
      "$JS.EVENT.ADVISORY.STREAM.*.*"       # route s: what servers report about the stream (optional)
    ]
  }
}"""
    )


def test_a_connection_that_sends_nothing_may_publish_nothing() -> None:
    settings = configured(core("in", {"connection": "other", "subject": "out"}))
    assert '    deny: ">"' in [*lines(settings, "main", "server")]
    assert "  --deny-pub '>' \\" in [*lines(settings, "main", "nsc")]


def test_handlers_may_send_elsewhere() -> None:
    settings = configured(core("in", "out", name="h", handler="any:one"))
    assert [*lines(settings, "main", "nsc")][1] == (
        "# add what else their handlers send to, by replace(subject=...): route h"
    )


@pytest.mark.parametrize(
    ("subject", "queue"), [("in.*", "q"), ("it's.a,b", None), ('a"b', None), ("$x.`id`", "q;rm"), ("$(x)", None)]
)
def test_a_shell_and_nsc_read_the_subjects_back(subject: str, queue: str | None) -> None:
    settings = configured(core(subject, "out", **({} if queue is None else {"queue": queue})))
    words = shlex.split("\n".join(lines(settings, "main", "nsc")).replace("\\\n", ""), comments=True)
    assert words[:5] == ["nsc", "edit", "user", "--name", "main"]
    assert words[5::2] == ["--allow-pub", "--allow-sub", "--allow-sub"]
    read = [next(csv.reader([word])) for word in words[6::2]]
    assert read == [["out"], [subject if queue is None else f"{subject} {queue}"], ["_INBOX.>"]]


def test_the_user_of_nsc_has_the_name_of_the_credentials(tmp_path: Path) -> None:
    (tmp_path / "router one.creds").touch()
    settings = configured(core("in", "out"), credentials_file=str(tmp_path / "router one.creds"))
    assert [*lines(settings, "main", "nsc")][1] == "nsc edit user --name 'router one' \\"


# --- the command ---

CONFIG = """
[connections.main]
[connections.edge]
[[routes]]
name = "r"
from = { connection = "main", subject = "in" }
to = [{ connection = "edge", subject = "out" }]
"""


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "router.toml"
    path.write_text(CONFIG)
    return str(path)


def test_it_prints_a_block_for_each_connection(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["permissions", config]) == DONE
    all_of_them = capsys.readouterr().out
    each = []
    for name in ("main", "edge"):
        assert main(["permissions", config, "--connection", name]) == DONE
        each.append(capsys.readouterr().out)
    assert all_of_them == "\n".join(each)
    assert re.findall("^# connection (.+)$", all_of_them, re.MULTILINE) == ["main", "edge"]


def test_a_shell_runs_what_it_prints_for_nsc(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["permissions", config, "--format", "nsc"]) == DONE
    printed = capsys.readouterr().out
    nsc = """nsc() { printf '%s\\n' "$@" ''; }\n"""
    ran = subprocess.run(["sh", "-eu"], input=nsc + printed, capture_output=True, text=True, check=True)
    assert not ran.stderr
    calls = [call.split("\n") for call in ran.stdout.removesuffix("\n\n").split("\n\n")]
    of_service = [word for subject in OF_SERVICE for word in ("--allow-sub", subject)]
    inbox = ["--allow-sub", *INBOX]
    assert calls == [
        ["edit", "user", "--name", "main", "--allow-pub", "_INBOX.>", "--allow-sub", "in", *inbox, *of_service],
        ["edit", "user", "--name", "edge", "--allow-pub", "out", "--allow-pub", "_INBOX.>", *inbox, *of_service],
    ]


def test_wrong_arguments_are_refused(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["permissions", config, "--connection", "mian"]) == WRONG_USAGE
    assert "there is no connection 'mian'; did you mean 'main'?" in capsys.readouterr().err
    assert main(["permissions", config, "--format", "jwt"]) == WRONG_USAGE
    assert "'jwt' is not one of server, nsc" in capsys.readouterr().err
    Path(config).write_text("nonsense = 1")
    assert main(["permissions", config]) == INVALID_CONFIGURATION


# --- the examples ---

OF_SETTINGS = ["$JS.API.STREAM.INFO.KV_settings", "$JS.API.STREAM.MSG.GET.KV_settings"]

OF_EXAMPLES: dict[str, dict[str, tuple[list[str], list[str]]]] = {
    "copy_between_clusters.toml": {
        "site": (
            [*of_durable("READINGS", "copy-to-headquarters"), "$JS.API.STREAM.CREATE.READINGS"],
            [
                *INBOX,
                *acks_of("READINGS", "copy-to-headquarters"),
                *heard("READINGS", durable="copy-to-headquarters"),
            ],
        ),
        "headquarters": (
            [
                "sites.berlin.readings.*.*",
                "$JS.API.STREAM.NAMES",
                "$JS.API.STREAM.INFO.COPIES",
                "$JS.API.STREAM.CREATE.COPIES",
            ],
            [*INBOX, *heard("COPIES")],
        ),
    },
    "site_behind_a_proxy.toml": {
        "site": ([], ["alarms.>", *INBOX]),
        "headquarters": (["sites.berlin.alarms.>"], INBOX),
    },
    "copy_bucket.toml": {
        "headquarters": (
            of_durable("KV_settings", "copy-to-berlin"),
            [
                *INBOX,
                *acks_of("KV_settings", "copy-to-berlin"),
                *heard("KV_settings", durable="copy-to-berlin"),
            ],
        ),
        "site": (
            ["$KV.settings.>", *(f"$JS.API.STREAM.{what}.KV_settings" for what in ("INFO", "MSG.GET"))],
            [*INBOX, *heard("KV_settings")],
        ),
    },
    "store_and_forward.toml": {
        "site": (
            [*of_durable("READINGS", "forward"), "$JS.API.STREAM.CREATE.READINGS"],
            [*INBOX, *acks_of("READINGS", "forward"), *heard("READINGS", durable="forward")],
        ),
        "headquarters": (
            [
                "sites.berlin.readings.*.*",
                "$JS.API.STREAM.NAMES",
                "$JS.API.STREAM.INFO.COPIES",
                "$JS.API.STREAM.CREATE.COPIES",
            ],
            [*INBOX, *heard("COPIES")],
        ),
    },
    "require_a_schema.toml": {
        "main": (
            [
                "billing.*",
                "dead.orders.*",
                *of_durable("ORDERS", "billing"),
                "$JS.API.STREAM.NAMES",
                *(f"$JS.API.STREAM.INFO.{name}" for name in ("BILLING", "DEAD")),
                *(f"$JS.API.STREAM.CREATE.{name}" for name in ("ORDERS", "BILLING", "DEAD")),
            ],
            [*INBOX, *acks_of("ORDERS", "billing"), *heard("ORDERS", "BILLING", "DEAD", durable="billing")],
        )
    },
    "remind_later.toml": {
        "main": (
            [
                *("later.*", "retry.s.reminders.*", "retry.n", "dead.*"),
                *of_durable("ORDERS", "reminders"),
                *of_durable("RETRY", "retry-reminders"),
                *(one for one in of_durable("RETRY", OTHER_DURABLE) if ".STREAM." not in one),
                "$JS.API.STREAM.NAMES",
                *(f"$JS.API.STREAM.INFO.{name}" for name in ("REMINDERS", "DEAD")),
                *(f"$JS.API.STREAM.CREATE.{name}" for name in ("ORDERS", "REMINDERS", "RETRY", "DEAD")),
                "$JS.API.STREAM.PURGE.RETRY",
            ],
            [
                *(*INBOX, *acks_of("ORDERS", "reminders"), *acks_of("RETRY", "retry-reminders")),
                *acks_of("RETRY", OTHER_DURABLE),
                *heard("ORDERS", "RETRY", "REMINDERS", "DEAD", durable="reminders"),
                *(f"$JS.EVENT.ADVISORY.CONSUMER.*.RETRY.{name}" for name in ("retry-reminders", OTHER_DURABLE)),
            ],
        )
    },
    "route_by_content.toml": {
        "main": (
            [
                "urgent.*",
                "large.*",
                *of_durable("ORDERS", "sort"),
                "$JS.API.STREAM.NAMES",
                "$JS.API.STREAM.INFO.SORTED",
                "$JS.API.STREAM.CREATE.ORDERS",
                "$JS.API.STREAM.CREATE.SORTED",
            ],
            [*INBOX, *acks_of("ORDERS", "sort"), *heard("ORDERS", "SORTED", durable="sort")],
        )
    },
    "buckets_both_ways.toml": {
        name: (
            ["$KV.settings.>", *of_durable("KV_settings", f"to-{other}")],
            [
                *(*INBOX, *acks_of("KV_settings", f"to-{other}")),
                *heard("KV_settings", durable=f"to-{other}"),
            ],
        )
        for name, other in (("eu", "us"), ("us", "eu"))
    },
    "fan_in_with_dead_letters.toml": {
        "main": (
            [
                *("events.door.*", "events.meter.*", "events.alarm.*"),
                *("dead.doors.*", "dead.meters.*", "dead.alarms.*"),
                *of_durable("DEVICES", "doors"),
                *(one for one in of_durable("DEVICES", "meters") if ".STREAM." not in one),
                "$JS.API.STREAM.NAMES",
                *(f"$JS.API.STREAM.INFO.{name}" for name in ("EVENTS", "DEAD")),
                *(f"$JS.API.STREAM.CREATE.{name}" for name in ("DEVICES", "EVENTS", "DEAD")),
            ],
            [
                *("alarms.*", *INBOX, *acks_of("DEVICES", "doors"), *acks_of("DEVICES", "meters")),
                *heard("DEVICES", "EVENTS", "DEAD", durable="doors"),
                "$JS.EVENT.ADVISORY.CONSUMER.*.DEVICES.meters",
            ],
        )
    },
}


@pytest.mark.parametrize("example", sorted(path.name for path in EXAMPLES.glob("*.toml")))
def test_the_permissions_of_an_example(example: str) -> None:
    settings = Settings.load(EXAMPLES / example, environ={})
    for name, (publish, subscribe) in OF_EXAMPLES[example].items():
        expected = {*publish, *INBOX}, {*subscribe, *OF_SERVICE}
        assert tuple(map(sorted, granted(settings, name))) == tuple(map(sorted, expected))
    assert OF_EXAMPLES[example].keys() == settings.connections.keys()
