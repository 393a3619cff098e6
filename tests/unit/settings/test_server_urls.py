"""Server URLs: how they are read, which are refused, and that credentials in them stay secret."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import SecretStr

from router_trio.errors import ConfigurationError
from router_trio.settings import ProxyURL, ServerURL, Settings
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


@pytest.mark.parametrize(
    ("text", "shown", "host_header", "target", "tls"),
    [
        ("ws://nats.example.com", "ws://nats.example.com:80", "nats.example.com", "/", False),
        ("wss://nats.example.com/", "wss://nats.example.com:443", "nats.example.com", "/", True),
        ("WSS://host:8443/Nats/", "wss://host:8443/Nats/", "host:8443", "/Nats/", True),
        ("wss://ann:pw@host/a/b%20c?token=HUSH", "wss://host:443/a/b%20c", "host", "/a/b%20c?token=HUSH", True),
        ("ws://[::1]:81?x", "ws://[::1]:81", "[::1]:81", "/?x", False),
    ],
)
def test_a_websocket_url_is_read(text: str, shown: str, host_header: str, target: str, tls: bool) -> None:
    url = ServerURL.parse(text)
    assert (str(url), url.host_header, url.target, url.tls, url.websocket) == (shown, host_header, target, tls, True)
    assert "HUSH" not in repr(url)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("wss://host/nats#part", "characters"),
        ("wss://host/a:b", "characters"),
        ("wss://host/@b", "characters"),
        ("wss://host/\xe4", "characters"),
        ("wss://host/?a=\xe4", "characters"),
        ("wss://host/leafnode", "leaf nodes"),
        ("ws://host/x/mqtt", "MQTT"),
        ("wss:///nats", "not a server URL"),
        ("wss://host:0/nats", "not a server URL"),
    ],
)
def test_a_bad_websocket_url_is_refused(text: str, why: str) -> None:
    found = problems(lambda: Settings(connections={"main": {"servers": [text]}}))
    assert why in found["connections.main.servers[0]"]


@pytest.mark.parametrize(
    ("connection", "key", "why"),
    [
        ({"servers": ["wss://a", "nats://b"]}, "servers[1]", "is nats://, and servers[0] is wss://"),
        ({"servers": ["tls://a", "ws://b"]}, "servers[1]", "is ws://, and servers[0] is tls://"),
        ({"servers": ["ws://a", "ws://b", "wss://c"]}, "servers[2]", "is wss://, and servers[0] is ws://"),
        ({"servers": ["wss://a/n?t=HUSH", "wss://a/n?t=HUSH2"]}, "servers[1]", "only in its query"),
        ({"servers": ["ws://a"], "tls_hostname": "b"}, "tls_hostname", "write wss://"),
        ({"servers": ["ws://a"], "tls_handshake_first": True}, "tls_handshake_first", "write wss://"),
        ({"servers": ["wss://a"], "tls_handshake_first": True}, "tls_handshake_first", "always begins with TLS"),
        ({"servers": ["nats://a"], "websocket_headers": {"X": "HUSH"}}, "websocket_headers", "only ws:// and wss://"),
        ({"websocket_headers": {"X": "HUSH\n"}}, "websocket_headers", "printable"),
        ({"websocket_headers": {"X Y": "HUSH"}}, "websocket_headers", "not valid for an HTTP header"),
        ({"websocket_headers": {"Host": "HUSH"}}, "websocket_headers", "Host is set by the router itself"),
        ({"websocket_headers": {"sec-websocket-key": "HUSH"}}, "websocket_headers", "set by the router"),
        ({"websocket_headers": {"X": "HUSH", "x": "HUSH"}}, "websocket_headers", "twice"),
        ({"proxy": "https://u:HUSH@proxy"}, "proxy", "is reached by https://"),
        ({"proxy": "socks5://u:HUSH@proxy"}, "proxy", "is reached by socks5://"),
        ({"proxy": "proxy:3128"}, "proxy", "write 'http://proxy:3128'"),
        ({"proxy": "http://proxy:3128/HUSH"}, "proxy", "more than a host and a port"),
        ({"proxy": "http://a%3Ab:HUSH@proxy"}, "proxy", "contains ':'"),
        ({"proxy": "http://u:HUSH@"}, "proxy", "not the URL of a proxy"),
        ({"proxy": ""}, "proxy", "not an HTTP proxy"),
        ({"proxy": 7}, "proxy", "must be the URL of a proxy"),
    ],
)
def test_keys_that_do_not_fit_the_scheme_are_refused_by_name(connection: dict[str, Any], key: str, why: str) -> None:
    found = problems(lambda: Settings(connections={"main": connection}))
    assert why in found[f"connections.main.{key}"], found
    assert list(found) == [f"connections.main.{key}"]
    assert "HUSH" not in str(found)


def test_keys_that_fit_the_scheme_are_accepted() -> None:
    headers = {"Cookie": "a=b; c=d"}
    accepted: list[tuple[dict[str, Any], str | None]] = [
        ({"servers": ["wss://a/n", "wss://b"], "tls_hostname": "c", "websocket_headers": headers}, "wss:// in servers"),
        ({"servers": ["ws://a/n", "ws://a/m"], "proxy": "http://proxy"}, None),
        ({"servers": ["nats://a", "tls://b"], "proxy": "http://[::1]:3128/"}, "tls:// in servers"),
    ]
    for connection, demand in accepted:
        main = Settings(connections={"main": connection}).connections["main"]
        assert main.tls_demanded_by == demand
    proxy = ProxyURL.parse("http://ann:s%40crt@proxy:3128")
    assert (proxy.user, proxy.password) == (SecretStr("ann"), SecretStr("s@crt"))
    assert str(proxy) == "http://proxy:3128"
    assert ProxyURL.parse("http://proxy").port == 80


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
        {"servers": ["wss://host/nats?token=HUSH"]},
        {"servers": ["wss://host"], "proxy": "http://ann:HUSH@proxy:3128"},
        {"servers": ["wss://host"], "proxy": "http://HUSH@proxy:3128"},
        {"servers": ["wss://host"], "websocket_headers": {"X-Route": "HUSH"}},
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
        {"servers": ["wss://host/?a=HUSH@x#", "wss://a:HUSH@host/leafnode?HUSH"], "proxy": ["http://a:HUSH@b"]},
        {"proxy": "http://a:HUSH@b:c", "websocket_headers": ["HUSH"]},
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
