"""Which requests are answered, by Host, Origin and Sec-Fetch-Site, and which addresses count as one peer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_trio.settings.host_names import is_loopback
from router_trio.telemetry.http.hosts import peer_of, refusal, split_host

ALLOWED = frozenset(("router.example.com", "router_1"))


def code(path: str = "/status", **headers: str | list[str]) -> int:
    """Return the status with which a request with these headers is refused, 200 if it is answered."""
    lines = []
    for name, values in headers.items():
        for value in [values] if isinstance(values, str) else values:
            lines.append((name.replace("_", "-").encode(), value.encode("latin-1")))
    refused = refusal(path, lines, ALLOWED)
    return 200 if refused is None else refused[0]


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.0.0.1:9001",
        "10.1.2.3:80",
        "203.0.113.7",
        "[::1]",
        "[::1]:9001",
        "[2001:DB8::1]:9001",
        "[::ffff:10.0.0.1]",
        "localhost",
        "LocalHost:9001",
        "localhost.:9001",
        "router.localhost:1",
        "router.example.com",
        "ROUTER.Example.COM:9001",
        "router.example.com.",
        "router.example.com.:443",
        "router_1:9001",
        "localhost:",
    ],
)
def test_an_allowed_host_is_answered(host: str) -> None:
    assert code(host=host) == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:9001",
        "localhost.evil.example",
        "evillocalhost",
        "127.0.0.1.evil.example",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "sub.router.example.com",
        "xrouter.example.com",
        "router.example.com.evil.example",
    ],
)
def test_a_host_that_is_not_allowed_is_refused_with_the_setting_to_change(host: str) -> None:
    assert code(host=host) == 403
    refused = refusal("/", [(b"host", host.encode())], ALLOWED)
    assert refused is not None
    assert "telemetry.allowed_hosts" in refused[1]
    assert code("/healthz", host=host) == code("/readyz", host=host) == 200


@pytest.mark.parametrize(
    "host",
    [
        "",
        " ",
        ".",
        "..",
        "localhost..",
        ".localhost",
        "::1",
        "[::1",
        "::1]",
        "[]",
        "[localhost]",
        "[127.0.0.1]",
        "localhost:port",
        "localhost:99999",
        "localhost:-1",
        "localhost:1:2",
        "localhost:٣",
        "user@localhost",
        "http://localhost",
        "localhost/",
        "localhost, evil.example",
        "local host",
        "localhost\t",
        "*",
        "*.localhost",
        "%6cocalhost",
        "münchen.example",
        "a" * 64,
        "a." * 127 + "aa",
    ],
)
def test_a_malformed_host_is_refused(host: str) -> None:
    refused = refusal("/", [(b"host", host.encode())], ALLOWED)
    assert refused is not None
    assert refused[0] == 400


def test_the_host_header_must_occur_once() -> None:
    assert code() == 400
    assert code(host=["localhost", "localhost"]) == 400
    assert code(host=["localhost", "evil.example"]) == 400
    assert code("/healthz") == 200


@pytest.mark.parametrize("path", ["/healthz/", "/healthz/x", "//healthz", "/HEALTHZ", "/readyz;x", "/metrics"])
def test_only_the_probes_answer_to_any_host(path: str) -> None:
    assert code(path, host="evil.example") == 403


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("127.0.0.1:9001", "http://127.0.0.1:9001"),
        ("localhost", "http://localhost"),
        ("localhost:80", "http://localhost"),
        ("LOCALHOST:9001", "http://localhost:9001"),
        ("[::1]:9001", "http://[::1]:9001"),
        ("router.example.com:9001", "http://router.example.com:9001"),
    ],
)
def test_a_request_from_its_own_origin_is_answered(host: str, origin: str) -> None:
    assert code(host=host, origin=origin) == 200


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "http://localhost",
        "http://localhost:9002",
        "http://127.0.0.1:9001",
        "https://localhost:9001",
        "ftp://localhost:9001",
        "localhost:9001",
        "//localhost:9001",
        "http://localhost:9001/",
        "http://localhost:9001@evil.example",
        "http://x.localhost:9001",
        "null",
        "",
        "*",
        ["http://localhost:9001", "http://evil.example"],
        ["http://localhost:9001", "http://localhost:9001"],
    ],
)
@pytest.mark.parametrize("path", ["/", "/status", "/faults", "/healthz"])
def test_a_foreign_origin_is_refused_everywhere(path: str, origin: str | list[str]) -> None:
    assert code(path, host="localhost:9001", origin=origin) == 403


def test_a_rebound_dns_name_is_refused_even_with_its_own_origin() -> None:
    assert code(host="evil.example:9001", origin="http://evil.example:9001", sec_fetch_site="same-origin") == 403


@pytest.mark.parametrize(
    ("site", "expected"),
    [
        ("none", 200),
        ("same-origin", 200),
        ("same-site", 403),
        ("cross-site", 403),
        ("Cross-Site", 403),
        ("", 403),
        (["same-origin", "cross-site"], 403),
    ],
)
def test_a_request_that_a_browser_sends_for_another_site_is_refused(site: str | list[str], expected: int) -> None:
    assert code(host="localhost", sec_fetch_site=site) == expected
    assert code("/readyz", host="localhost", sec_fetch_site=site) == expected


@given(st.text(max_size=30), st.lists(st.tuples(st.sampled_from([b"host", b"origin", b"x"]), st.binary(max_size=40))))
def test_any_headers_are_answered_or_refused(path: str, headers: list[tuple[bytes, bytes]]) -> None:
    refused = refusal(path, headers, ALLOWED)
    assert refused is None or refused[0] in (400, 403)


@given(st.text(alphabet="[]:.%-_a1Z*@ \n", max_size=20))
def test_a_parsed_host_is_well_formed(text: str) -> None:
    found = split_host(text)
    if found is not None:
        assert found[0]
        assert not set(found[0]) & set("[]*@ \n")


@pytest.mark.parametrize(
    ("address", "peer"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
        ("::1", "::/64"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_an_ipv6_network_counts_as_one_peer(address: str, peer: str) -> None:
    assert peer_of(address) == peer


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("localhost.example.com", False),
        ("127.0.0.1.example.com", False),
    ],
)
def test_loopback_hosts_are_recognized(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
