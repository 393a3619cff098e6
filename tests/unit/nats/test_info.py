"""INFO from any peer: a typed and bounded value, or a `ProtocolError` that names the field."""

from __future__ import annotations

import json
from ipaddress import IPv6Address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_trio.errors import ProtocolError, SourceError
from router_trio.errors.quotes import LONGEST_QUOTE
from router_trio.nats.info import (
    MAX_CONNECT_URLS,
    MAX_TEXT,
    MIN_CONTROL_LINE,
    ServerInfo,
    parse_address,
    parse_info,
    quote,
)
from router_trio.nats.jetstream.standby import check_version
from router_trio.protocol.framing import MAX_INFO, MAX_MESSAGE

MAX_ERROR = 4 * LONGEST_QUOTE
FIELDS = (
    *("version", "domain", "nonce", "headers", "jetstream", "auth_required", "tls_required", "tls_available", "ldm"),
    *("max_payload", "max_control_line", "connect_urls"),
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-2, 2)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["[::1", "[::1]:4222", "h:99999", "h:-1", "h:٣", "1e999", 10**4000, MAX_MESSAGE + 1])
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
)
INFOS = st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=12), VALUES, max_size=8)


def info(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


@pytest.mark.parametrize(
    ("version", "numbers"),
    [
        ("2.14.0", (2, 14)),
        ("2.14.0-RC.1", (2, 14)),
        ("2.14", (2, 14)),
        ("2.14-preview", (2, 14)),
        ("10.1.2", (10, 1)),
        ("", None),
        ("2", None),
        ("2.", None),
        ("dev", None),
        ("v2.14.0", None),
        ("-2.14.0", None),
        (" 2.14.0", None),
        ("2.x.14", None),
        ("2." + "9" * 200, None),
        ("9" * 200 + ".1", None),
    ],
)
def test_the_version_numbers_are_the_beginning_of_the_version(version: str, numbers: tuple[int, int] | None) -> None:
    assert parse_info(info(version=version)).major_minor == numbers


@pytest.mark.parametrize(
    ("version", "standby"),
    [
        ("2.10.29", False),
        ("2.11.0", True),
        ("2.14", True),
        ("3.0.0", True),
        # An unparsable version keeps no route from standing by.
        ("2", True),
        ("dev", True),
    ],
)
def test_a_server_has_pinned_consumers_from_2_11_on(version: str, standby: bool) -> None:
    found = ServerInfo(version=version)
    if standby:
        check_version(found)
    else:
        with pytest.raises(SourceError, match="has no pinned consumers"):
            check_version(found)


def is_sound(found: ServerInfo) -> bool:
    flags = (found.headers, found.jetstream, found.auth_required, found.tls_required, found.tls_available)
    texts = (found.version, found.domain, found.nonce)
    return (
        all(type(flag) is bool for flag in (*flags, found.lame_duck))
        and all(type(text) is str and len(text) <= MAX_TEXT and text.isascii() for text in texts)
        and all(text.isprintable() for text in texts)
        and type(found.max_payload) is type(found.max_control_line) is int
        and 1 <= found.max_payload <= MAX_MESSAGE
        and MIN_CONTROL_LINE <= found.max_control_line <= MAX_INFO
        and len(found.connect_urls) <= MAX_CONNECT_URLS
        and all(is_address(address) for address in found.connect_urls)
    )


def is_address(text: str) -> bool:
    """Check an address with code of its own, independent of the package."""
    host, _, port = text.rpartition(":")
    assert port.isascii()
    assert 1 <= int(port) <= 65535
    if host.startswith("["):
        IPv6Address(host[1:-1])
        return host.endswith("]")
    labels = host.removesuffix(".").split(".")
    return all(0 < len(one) < 64 and one.replace("-", "a").replace("_", "a").isalnum() for one in labels)


def refusal(text: bytes) -> str:
    """Return the message of the `ProtocolError` that an INFO raises, or "" if it gives a sound value."""
    try:
        found = parse_info(text)
    except ProtocolError as error:
        return str(error)
    assert is_sound(found)
    return ""


@given(INFOS)
def test_any_json_is_a_sound_value_or_a_protocol_error(fields: dict[str, Any]) -> None:
    told = refusal(json.dumps(fields).encode())
    assert len(told) < MAX_ERROR
    assert told.isprintable()


TEXTS = st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass"))


@given(st.binary(max_size=200) | TEXTS | VALUES.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_a_sound_value_or_a_protocol_error(text: bytes) -> None:
    assert len(refusal(text)) < MAX_ERROR


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("max_payload", ["null", '"text"', '"1048576"', "1e999", "-1e999", "1.5", "true", "0", "-1", "[]", "{}"]),
        ("max_control_line", ["null", '"4096"', "1e999", "true", "0", "-4096", "[]"]),
        ("tls_required", ["null", '"true"', "1", "0", "[]", "{}"]),
        ("tls_available", ['"yes"', "1"]),
        ("headers", ["null", "1", '"x"']),
        ("auth_required", ["1"]),
        ("jetstream", ['"on"']),
        ("ldm", ["1", '"x"', "null"]),
        ("nonce", ["null", "7", r'"\u0000"', r'"\ud800"', '"é"', '"' + "n" * (MAX_TEXT + 1) + '"', '["a"]']),
        ("version", ["2", r'"2.10\r\nPUB"', r'"\u001b[31m"', '"' + "9" * 100_000 + '"']),
        ("domain", ["false", r'"\n"']),
        ("connect_urls", ["7", '"a:1"', "true", '{"a:1": 1}', "1e999"]),
    ],
)
def test_a_field_of_a_wrong_type_is_named(field: str, values: list[str]) -> None:
    for value in values:
        with pytest.raises(ProtocolError, match=field) as caught:
            parse_info(b'{"%b": %b}' % (field.encode(), value.encode()))
        assert len(str(caught.value)) < MAX_ERROR


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"7",
        b'"INFO"',
        b"{}{}",
        b"\xff\xfe{}",
        "{}".encode("utf-16"),
        b'{"x": "\xff"}',
        b"[" * 100_000,
        b'{"x":' * 100_000,
        b'{"x": ' + b"9" * 5_000 + b"}",
        b'{"x": NaN}',
        b'{"x": Infinity}',
        b'{"max_payload": 1, "max_payload": 2}',
        b'{"x": {"tls_required": true, "tls_required": false}}',
        b'{"x": "' + b"x" * MAX_INFO + b'"}',
    ],
)
def test_an_invalid_info_is_refused(text: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        parse_info(text)
    assert len(str(caught.value)) < MAX_ERROR


def test_the_info_of_a_server_is_parsed() -> None:
    found = parse_info(
        b'{"server_id":"NA","server_name":"NA","version":"2.15.1","proto":1,"go":"go1.26","host":"0.0.0.0","port":4222,'
        b'"headers":true,"auth_required":true,"tls_required":true,"tls_available":true,"max_payload":2097152,'
        b'"jetstream":true,"client_id":5,"client_ip":"127.0.0.1","nonce":"6VtzqtAMQ5kTvDE","cluster":"c","domain":"hub",'
        b'"connect_urls":["10.0.0.1:4222","[fe80::1]:4222","Nats.Example.com:4223"],"ldm":true,"xkey":"X"} '
    )
    assert found == ServerInfo(
        version="2.15.1",
        domain="hub",
        nonce="6VtzqtAMQ5kTvDE",
        headers=True,
        jetstream=True,
        auth_required=True,
        tls_required=True,
        tls_available=True,
        lame_duck=True,
        max_payload=2 * 1024 * 1024,
        connect_urls=("10.0.0.1:4222", "[fe80::1]:4222", "nats.example.com:4223"),
    )
    assert parse_info(b"{}") == ServerInfo()


def test_limits_that_are_left_out_keep_their_values_and_nothing_else_does() -> None:
    before = parse_info(info(max_payload=5000, max_control_line=8192, ldm=True, connect_urls=["a:1"], nonce="n"))
    assert parse_info(b"{}", before) == ServerInfo(max_payload=5000, max_control_line=8192)


def test_a_limit_above_ours_is_clamped() -> None:
    found = parse_info(info(max_payload=10**30, max_control_line=10**30))
    assert (found.max_payload, found.max_control_line) == (MAX_MESSAGE, MAX_INFO)


@pytest.mark.parametrize(
    "bad",
    [
        *("h:99999", "h:65536", "h:0", "h:-1", "h:+1", "h: 1", "h:1 ", "h:1_0", "h:٣", "h:", "h", ":4222", "", "h:01"),
        *("[::1", "[::1]", "::1:4222", "[::1]:99999", "[::g]:1", "[:::]:1", "[1.2.3.4]:1", "[fe80::1%eth0]:1", "[]:1"),
        *("user:secret@h:1", "u@h:1", "nats://h:1", "h:1/x", "h:1?x", "h:1#x", "h:1\n", "h\r\nPUB:1", "h\x00:1", "é:1"),
        *("a..b:1", ".a:1", "-a:1", "a-:1", "x" * 64 + ":1", "a." * 127 + "b:1", "x" * 100_000, "*:1", "a b:1"),
        "\ud800:1",
        *(None, True, 7, 1.5, [], {}, ["h:1"]),
    ],
)
def test_a_bad_announced_server_is_dropped_alone(bad: Any) -> None:
    assert parse_address(bad) is None
    assert parse_info(info(connect_urls=["a:1", bad, "[::1]:65535", "a:1"])).connect_urls == ("a:1", "[::1]:65535")


def test_announced_servers_are_counted() -> None:
    urls = [f"h{number}:4222" for number in range(MAX_CONNECT_URLS + 50)]
    assert parse_info(info(connect_urls=urls)).connect_urls == tuple(urls[:MAX_CONNECT_URLS])


def test_a_limit_may_be_absent_where_go_writes_null() -> None:
    assert parse_info(info(connect_urls=None)) == ServerInfo()


@given(st.binary(max_size=300) | st.text(max_size=300))
def test_a_quote_is_short_and_printable(text: bytes | str) -> None:
    assert len(quote(text)) <= LONGEST_QUOTE
    assert quote(text).isprintable()
