"""The pages over HTTP: the answer of each, and where they are served."""

from __future__ import annotations

import errno
import json
import socket
from typing import Any

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from router_trio.errors import ListenError
from router_trio.protocol.framing import publish
from router_trio.states import PAUSED, RECONNECTING, REPLY, DestinationState
from router_trio.telemetry import Telemetry
from tests.integration.pages import Address, exchange, get, no_descriptor_left, served, split, telemetry_settings
from tests.support.telemetry_views import View


async def get_json(address: Address, path: str) -> tuple[int, dict[str, Any]]:
    code, headers, body = await get(address, path)
    assert headers["content-type"] == "application/json"
    assert body.endswith(b"}\n")
    return code, json.loads(body)


# --- pages ---


async def test_metrics(view: View) -> None:
    view.routes[0].received = 42
    async with served(view) as address:
        code, headers, body = await get(address, "/metrics")
    assert code == 200
    assert headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert headers["cache-control"] == "no-store"
    families = {family.name: family for family in text_string_to_metric_families(body.decode())}
    [sample] = families["router_messages_received"].samples
    assert (sample.labels, sample.value) == ({"connection": "main", "route": "eu"}, 42)


async def test_healthz(view: View) -> None:
    view.connections["main"].state.enter(RECONNECTING)
    async with served(view) as address:
        assert await get_json(address, "/healthz") == (200, {"status": "ok", "reasons": []})
        view.fatal = "connection main used up its attempts"
        code, body = await get_json(address, "/healthz")
    assert code == 503
    assert body["reasons"] == [{"router": "test-router", "reason": "connection main used up its attempts"}]


async def test_readyz_of_a_healthy_router(view: View) -> None:
    async with served(view) as address:
        assert await get_json(address, "/readyz") == (200, {"status": "ok", "reasons": []})


async def test_readyz_names_each_reason(view: View) -> None:
    main, edge = view.connections["main"].state, view.connections["edge"].state
    main.enter(RECONNECTING)
    main.last_error = "refused by nats://bob:s3cret@127.0.0.1:4222"
    edge.fenced_at, edge.fence_bound = -1e12, 10.0
    view.routes[0].enter(PAUSED, "waits for connection main")
    async with served(view) as address:
        code, body = await get_json(address, "/readyz")
    assert code == 503
    assert body == {
        "status": "unavailable",
        "reasons": [
            {"connection": "main", "reason": "reconnecting: refused by nats://127.0.0.1:4222"},
            {"connection": "edge", "reason": "the server has answered no fence for more than 10 s"},
            {"route": "eu", "reason": "waits for connection main"},
        ],
    }


async def test_readyz_of_a_router_that_is_starting() -> None:
    async with served(View()) as address:
        code, body = await get_json(address, "/readyz")
    assert (code, body["reasons"]) == (503, [{"router": "test-router", "reason": "starting"}])


async def test_status(view: View) -> None:
    main, route = view.connections["main"], view.routes[0]
    main.state.since = 0.0
    main.state.server = "nats://bob:s3cret@127.0.0.1:4222"
    main.outbox.offer(publish(b"a", b"x"))
    route.received = 5
    route.source = {"stream": "ORDERS", "durable": "router"}
    route.destinations = (*route.destinations, REPLY)
    shown: dict[str, str | bool] = {"subject": "", "jetstream": True}
    route.to += [
        DestinationState(
            route,
            "main",
            name,
            name,
            waits_for_puback=True,
            shown=shown | {"subject": name},
            dead_letters=name == "dead",
        )
        for name in ("copy", "dead")
    ]
    for one in route.to:
        one.found(None)
    route.delivered["copy"] = 3
    route.failed["mapping"] = 1
    route.fates["routed"], route.fates["dead_lettered"] = 3, 1
    route.elapsed.record(0.1, 4)
    wrong = "router.toml: servers: 'nats://bob:s3cret@127.0.0.1' is wrong"
    view.config.refuse([wrong, "router.toml: routes: another problem"])
    async with served(view) as address:
        code, body = await get_json(address, "/status")
    assert code == 200
    assert body["name"] == "test-router"
    assert body["version"]
    assert 0 <= body["uptime_seconds"] < 60
    assert body["config"] == {
        "hash": view.config.hash,
        "files": [],
        "loaded_at": "2023-11-14T22:13:20Z",
        "last_error": "router.toml: servers: 'nats://127.0.0.1' is wrong\nrouter.toml: routes: another problem",
        "reloads": {"accepted": 0, "refused": 1},
    }
    assert body["connections"]["main"] == {
        "state": "connected",
        "since": "1970-01-01T00:00:00Z",
        "server": "nats://127.0.0.1:4222",
        "attempts": 0,
        "pending": 1,
        "in_flight": 0,
        "last_error": None,
    }
    ledger = body["routes"]["eu"].pop("ledger")
    assert body["routes"]["eu"].pop("from") == {"connection": "main", "stream": "ORDERS", "durable": "router"}
    assert body["routes"]["eu"].pop("to") == [
        {"connection": "main", "subject": "(reply)", "jetstream": False, "routed": 0},
        {"connection": "main", "subject": "copy", "jetstream": True, "routed": 3},
        {"connection": "main", "subject": "dead", "jetstream": True, "dead_letters": True, "routed": 1},
    ]
    assert (body["routes"]["eu"].pop("last_failure"), body["routes"]["eu"].pop("retrying")) == (
        None,
        {"count": 0, "oldest_seconds": 0},
    )
    assert body["routes"] == {"eu": {"state": "running", "received": 5, "routed": 3, "failed": 1, "dead_lettered": 1}}
    assert ledger == {
        "received": 5,
        "in_hand": 1,
        "settled": {
            "routed": 3,
            "filtered": 0,
            "dead_lettered": 1,
            "given_up": 0,
            "returned": 0,
            "duplicate": 0,
            "lost": 0,
            "scheduled": 0,
        },
    }
    assert body["ledger"]["main"] == {
        "accepted": 1,
        "pending": 1,
        "in_flight": 0,
        "settled": {"fenced": 0, "acked": 0, "dropped": 0, "failed": 0, "failed_open": 0},
    }
    assert "s3cret" not in json.dumps(body)


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "/nothing", 404),
        ("POST", "/", 405),
        ("HEAD", "/", 200),
        ("HEAD", "/events", 200),
        ("POST", "/metrics", 405),
        ("HEAD", "/healthz", 200),
    ],
)
async def test_other_requests(view: View, method: str, path: str, code: int) -> None:
    async with served(view) as address:
        assert (await get(address, path, method))[0] == code


async def test_two_requests_on_one_connection(view: View) -> None:
    async with served(view) as address, await trio.open_tcp_stream(*address) as stream:
        for _ in range(2):
            await stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = b""
            with trio.fail_after(5):
                while not answer.endswith(b"}\n"):
                    answer += await stream.receive_some()
            assert split(answer)[0] == 200


# --- listening ---


async def test_port_0_is_a_free_port_and_is_logged(view: View) -> None:
    telemetry = Telemetry(telemetry_settings(), logs=False)
    assert telemetry.http_address is None
    async with telemetry.serve(view) as address:
        assert telemetry.http_address == address
        assert address is not None
        assert address[0] == "127.0.0.1"
        assert address[1] != 0
    assert telemetry.http_address is None


async def test_a_name_of_several_addresses_has_one_port(view: View) -> None:
    async with served(view, listen="localhost:0") as (_, port):
        assert (await get(("localhost", port), "/healthz"))[0] == 200


async def test_a_busy_port_is_named_with_a_remedy(view: View) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, no_descriptor_left():
        port = taken.getsockname()[1]
        with pytest.raises(ListenError, match=rf"127\.0\.0\.1:{port}.*telemetry\.listen") as caught:
            async with Telemetry(telemetry_settings(f"127.0.0.1:{port}"), logs=False).serve(view):
                pytest.fail("entered")
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.EADDRINUSE


@pytest.mark.parametrize("listen", ["192.0.2.1:9001", "host.invalid:9001"])
async def test_an_address_of_another_machine_is_refused(view: View, listen: str) -> None:
    with pytest.raises(ListenError, match=r"telemetry\.listen"):
        async with Telemetry(telemetry_settings(listen), logs=False).serve(view):
            pytest.fail("entered")


async def test_the_port_is_free_again_afterwards(view: View) -> None:
    async with served(view) as (host, port):
        await get((host, port), "/healthz")
    async with served(view, listen=f"{host}:{port}") as address:
        assert (await get(address, "/healthz"))[0] == 200


@pytest.mark.parametrize("path", ["/readyz", "/healthz"])
@pytest.mark.parametrize(
    ("host", "reads"),
    [
        ("127.0.0.1:9001", True),
        ("localhost", True),
        ("router.example.com", True),
        ("evil.example.com", False),
        ("evil.example.com\r\nHost: localhost", False),
        ("[::1", False),
        ("", False),
    ],
)
async def test_reasons_are_shown_to_allowed_hosts_and_the_code_to_all(
    view: View, path: str, host: str, reads: bool
) -> None:
    view.connections["main"].state.last_error = "secret.internal refused"
    view.fatal = "secret.internal is gone"
    async with served(view, allowed_hosts=["router.example.com"]) as address:
        request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        code, _, body = await exchange(address, request.encode())
    if "\r\n" in host and code == 400:
        assert b"secret" not in body
        return
    assert code == 503
    assert json.loads(body)["status"] == "unavailable"
    assert bool(json.loads(body)["reasons"]) is reads
    assert (b"secret" in body) is reads
