"""The hash of a configuration: equal if the behaviour is equal, and of no help in guessing credentials."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import pytest

from router_trio import Settings
from router_trio.router.workers.process import of_worker
from router_trio.settings.reload.difference import difference


def configuration(**changes: Any) -> Settings:
    sections: dict[str, Any] = {
        "connections": {"main": {"servers": ["nats://one:4222"]}, "edge": {"servers": ["nats://two:4222"]}},
        "routes": [route("a"), route("b")],
        "streams": [{"name": "S", "connection": "main", "subjects": ["s.>"]}],
    }
    return Settings(**sections | changes)


def route(name: str, to: str = "out.$1", **more: Any) -> dict[str, Any]:
    source = {"connection": "main", "subject": f"{name}.*"}
    return {"name": name, "from": source, "to": [{"connection": "edge", "subject": to}], **more}


def connected(**main: Any) -> Settings:
    return configuration(connections={"main": {"servers": ["nats://one:4222"]} | main, "edge": {}})


FROM_STREAM = {"name": "copy", "from": {"connection": "main", "stream": "S", "durable": "d"}}
COPY = FROM_STREAM | {"to": [{"connection": "edge", "subject": "copy", "jetstream": True}]}


def kept(*consumers: str, **keys: Any) -> Settings:
    positions = [{"consumer": one, "route": "copy", **keys} for one in consumers]
    return configuration(routes=[COPY], positions=positions)


DIFFERENT = [
    kept(),
    kept("billing"),
    kept("billing", "shipping"),
    kept("billing", interval="20s"),
    kept("billing", bucket="another"),
    configuration(routes=[route("a")]),
    configuration(routes=[route("a"), route("b", "other.$1")]),
    configuration(routes=[route("a"), route("b", retry={})]),
    configuration(streams=[]),
    configuration(router={"shutdown_timeout": "11s"}),
    configuration(router={"name": "another"}),
    configuration(telemetry={"log_level": "debug"}),
    connected(),
    connected(reconnect_delay="2s"),
    connected(servers=["nats://one:4223"]),
    connected(tls_hostname="one.example.com"),
]


def test_different_configurations_have_different_hashes() -> None:
    hashes = [one.content_hash for one in (configuration(), *DIFFERENT)]
    assert len({*hashes}) == len(hashes)
    for one in hashes:
        assert re.fullmatch(r"[0-9a-f]{12}", one)


@pytest.mark.parametrize(
    "same",
    [
        configuration(routes=[route("b"), route("a")]),
        configuration(routes=[route("a", strategy="all"), route("b", concurrency=1)]),
        configuration(connections={"edge": {"servers": ["two"]}, "main": {"servers": ["nats://one:4222"]}}),
        configuration(router={"shutdown_timeout": "10000ms", "name": "router-trio"}),
        configuration(tests=[{"name": "t", "message": {"subject": "a.1"}, "expect": []}]),
    ],
    ids=["order", "defaults spelled out", "spelling", "units", "tests"],
)
def test_configurations_that_a_reload_would_not_tell_apart_have_the_same_hash(same: Settings) -> None:
    assert not difference(configuration(), same)
    assert same.content_hash == configuration().content_hash


def test_the_order_and_spelling_of_positions_do_not_change_the_hash() -> None:
    one, other = kept("billing", "shipping"), kept("shipping", "billing", interval="10000ms", replicas=1)
    assert not difference(one, other)
    assert one.content_hash == other.content_hash


@pytest.mark.parametrize(
    "place",
    [
        configuration(router={"workers": 3}, routes=[]),
        configuration(telemetry={"listen": "0.0.0.0:9001"}, routes=[]),
        configuration(telemetry={"listen": "", "allowed_hosts": ["router-1.example.com"]}, routes=[]),
    ],
)
def test_routers_in_several_places_have_the_same_hash(place: Settings) -> None:
    assert place.content_hash == configuration(routes=[]).content_hash


def with_credential(secret: str) -> list[Settings]:
    header = {"connection": "edge", "subject": "x", "headers": {"set": {"Authorization": f'"Bearer {secret}"'}}}
    return [
        connected(user="bob", password=secret),
        connected(token=secret),
        connected(servers=[f"nats://bob:{secret}@one:4222"]),
        connected(servers=[f"nats://{secret}@one:4222"]),
        connected(servers=[f"wss://one/nats?key={secret}"], websocket_headers={"X-Key": secret}),
        connected(servers=["ws://one"], proxy=f"http://bob:{secret}@proxy:3128"),
        configuration(telemetry={"otlp_endpoint": f"http://localhost:4318/?key={secret}"}),
        configuration(routes=[route("a", to="x") | {"to": [header]}]),
    ]


def test_credentials_do_not_change_the_hash() -> None:
    """A hash that covered one would let anyone who may read `/metrics` try passwords until the hash matches."""
    pairs = zip(with_credential("hunter2hunter2"), with_credential("correct-horse"), strict=True)
    for one, other in pairs:
        assert one.content_hash == other.content_hash


def test_a_worker_and_a_router_with_an_embedded_server_have_the_hash_of_the_full_configuration() -> None:
    limited = configuration(router={"workers": 2}, routes=[route("a", limit={"rate": "100/s"}) | QUEUE])
    share = pickle.loads(pickle.dumps(of_worker(limited)))
    assert share.routes != limited.routes
    assert share.content_hash == limited.content_hash
    connections = {"main": limited.connections["main"], "edge": limited.connections["main"]}
    assert limited.adapted(connections=connections).content_hash == limited.content_hash


QUEUE = {"from": {"connection": "main", "subject": "a.*", "queue": "q"}}


def test_computing_the_hash_leaves_equal_settings_equal() -> None:
    one, other = configuration(), configuration()
    assert one.content_hash
    assert one == other
    assert one != configuration(routes=[])


def test_a_copy_with_other_routes_has_another_hash() -> None:
    whole = configuration()
    before = whole.content_hash
    assert whole.model_copy(update={"routes": whole.routes[:1]}).content_hash != before
    assert whole.with_changes(routes=whole.routes[:1]).content_hash != before
    assert whole.model_copy().content_hash == before


def test_settings_know_their_files_and_settings_from_code_have_none(tmp_path: Path) -> None:
    text = '[connections.main]\nservers = ["nats://one:4222"]\n'
    first, folder = tmp_path / "router.toml", tmp_path / "routes.d"
    folder.mkdir()
    first.write_text(text)
    (folder / "a.toml").write_text('[[routes]]\nname = "a"\nfrom = { subject = "a" }\nto = [ { subject = "b" } ]\n')
    loaded = Settings.load(first, folder)
    assert loaded.files == (str(first), str(folder / "a.toml"))
    assert Settings.load(first).files == (str(first),)
    assert Settings.parse(text.encode()).files == ("<stdin>",)
    assert configuration().files == ()
    warned = Settings.load(first, environ={"ROUTER_TRIO_ROUTER_NAME": "meant to be ROUTER_TRIO_ROUTER__NAME"})
    changed = warned.with_changes(routes=[])
    assert (changed.files, changed.source) == (warned.files, warned.source)
    assert changed.without_effect == warned.without_effect != ()


def test_a_comment_in_the_file_makes_no_difference(tmp_path: Path) -> None:
    one, other = tmp_path / "one.toml", tmp_path / "other.toml"
    one.write_text('[connections.main]\nservers = ["nats://one:4222"]\n')
    other.write_text("# the same\n" + one.read_text())
    assert Settings.load(one).content_hash == Settings.load(other).content_hash
    by_variable = Settings.load(one, environ={"ROUTER_TRIO_CONNECTIONS__MAIN__RECONNECT_DELAY": "2s"})
    assert by_variable.content_hash != Settings.load(one, environ={}).content_hash
