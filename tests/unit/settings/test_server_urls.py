"""Server URLs: how they are read, which are refused, and that credentials in them stay secret."""

from __future__ import annotations

from typing import Any

import pytest

from router_trio.errors import ConfigurationError
from router_trio.settings import ServerURL, Settings
from tests.unit.settings.problems import problems

# --- server URLs ---


@pytest.mark.parametrize(
    ("text", "host", "port", "tls", "shown"),
    [
        ("nats://127.0.0.1:4222", "127.0.0.1", 4222, False, "nats://127.0.0.1:4222"),
        ("nats://nats.example.com", "nats.example.com", 4222, False, "nats://nats.example.com:4222"),
        ("tls://nats.example.com:443/", "nats.example.com", 443, True, "tls://nats.example.com:443"),
        ("TLS://NATS.example.com", "nats.example.com", 4222, True, "tls://nats.example.com:4222"),
        ("localhost", "localhost", 4222, False, "nats://localhost:4222"),
        ("localhost:5222", "localhost", 5222, False, "nats://localhost:5222"),
        ("nats://[::1]:5222", "::1", 5222, False, "nats://[::1]:5222"),
    ],
)
def test_a_server_url_is_read(text: str, host: str, port: int, tls: bool, shown: str) -> None:
    url = ServerURL.parse(text)
    assert (url.host, url.port, url.tls, str(url)) == (host, port, tls, shown)
    assert not url.has_credentials


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nats://",
        "nats://:4222",
        "nats://host:port",
        "nats://host:",
        "nats://host:0",
        "nats://host:70000",
        "nats://host:4222/path",
        "nats://host?x=1",
        "nats://ho st",
        "nats://host\n:4222",
        "nats://[::1:4222",
        "nats://a,b:4222",
        "http://host:4222",
        "nats:host",
    ],
)
def test_a_bad_server_url_is_refused(text: str) -> None:
    found = problems(lambda: Settings(connections={"main": {"servers": ["ok", text]}}))
    assert set(found) == {"connections.main.servers[1]"}
    assert "'nats://host:4222'" in found["connections.main.servers[1]"]


@pytest.mark.parametrize("scheme", ["ws", "wss"])
def test_websocket_is_refused_by_name(scheme: str) -> None:
    found = problems(lambda: Settings(connections={"main": {"servers": [f"{scheme}://host:80"]}}))
    assert "WebSocket servers" in found["connections.main.servers[0]"]


def test_credentials_in_a_server_url_are_split_off() -> None:
    url = ServerURL.parse("nats://ann:s%40crt@host:4222")
    assert url.user is not None
    assert url.password is not None
    assert (url.user.get_secret_value(), url.password.get_secret_value(), url.token) == ("ann", "s@crt", None)
    url = ServerURL.parse("nats://t0ken@host")
    assert url.token is not None
    assert (url.token.get_secret_value(), url.user, url.password) == ("t0ken", None, None)
    assert url.has_credentials


# --- secrets ---


@pytest.mark.parametrize(
    "connection",
    [
        {"user": "ann", "password": "HUSH"},
        {"token": "HUSH"},
        {"servers": ["nats://ann:HUSH@host:4222"]},
        {"servers": ["nats://HUSH@host:4222"]},
        {"servers": ["HUSH:HUSH@host"]},
    ],
)
def test_secrets_are_never_shown(connection: dict[str, Any]) -> None:
    settings = Settings(connections={"main": connection})
    shown = [repr(settings), str(settings), settings.model_dump_json(), repr(settings.model_dump())]
    shown += [str(settings.model_dump(mode="json")), *map(str, settings.connections["main"].servers)]
    assert not [text for text in shown if "HUSH" in text]


@pytest.mark.parametrize(
    "connection",
    [
        {"password": ["HUSH"], "typo": "HUSH"},
        {"token": "HUSH", "user": "ann", "password": "HUSH", "fail_open": "HUSH"},
        {"servers": ["nats://ann:HUSH@host:port", "ws://ann:HUSH@host", "http://HUSH@host", "nats://HUSH/x@host"]},
        {"servers": "nats://ann:HUSH@host"},
        {"servers": [{"HUSH": "HUSH"}]},
        {"servers": ["nats://a:HUSH@host"], "token": "HUSH"},
        "HUSH",
    ],
)
def test_secrets_are_never_shown_in_errors(connection: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Settings(connections={"main": connection})
    assert "HUSH" not in str(caught.value)
    # A traceback, which shows the errors that led to this one, has no secret either.
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__
