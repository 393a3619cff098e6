"""The cached addresses of a destination: what is remembered, and how much."""

from __future__ import annotations

from typing import Any, cast

import pytest

from router_trio.connection.supervisor import Connection
from router_trio.errors import MappingError
from router_trio.protocol.framing import RawMessage
from router_trio.routing.outlets import address
from router_trio.routing.outlets.address import Address
from router_trio.routing.route_plans import compile_routes
from router_trio.settings import Settings


def made(template: str = "out.>") -> Address:
    route = {"name": "r", "from": {"subject": "in.>"}, "to": [{"subject": template, "jetstream": True}]}
    settings = Settings(connections={"main": {"servers": ["nats://127.0.0.1:4222"]}}, routes=[route])
    (plan,) = compile_routes(settings)
    connection = Connection("main", settings.connections["main"], cast(Any, None), lambda event: None)
    return Address(plan.destinations[0], connection)


def raw(subject: bytes) -> RawMessage:
    return subject, b"", 0, 0, b"0\r\n\r\n"


def test_an_address_is_remembered_after_its_first_use() -> None:
    one = made()
    assert one.prefix_for(raw(b"in.a")) == one.prefixes[b"in.a"] == b"PUB out.a "
    assert one.ending_for(b"in.a") == one.endings[b"in.a"]
    assert one.subject_for(b"in.a") == b"out.a"


def test_a_long_subject_is_not_remembered() -> None:
    one = made()
    long = b"in." + b"x" * 600
    assert one.prefix_for(raw(long)) == b"PUB out." + b"x" * 600 + b" "
    one.ending_for(long)
    assert (one.prefixes, one.endings) == ({}, {})


def test_the_remembered_bytes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "MAX_REMEMBERED_BYTES", 10_000)
    one = made()
    for number in range(1000):
        subject = b"in.%0400d" % number
        one.prefix_for(raw(subject))
        one.ending_for(subject)
        assert sum(len(key) + len(value) for key, value in one.prefixes.items()) <= 10_000
        assert one.endings.keys() <= one.prefixes.keys()
    assert len(one.prefixes) > 1


def test_a_control_line_is_measured_to_the_byte() -> None:
    one = made()
    fits = b"in." + b"x" * (4096 - len(b"out. 0"))
    assert one.prefix_for(raw(fits)).startswith(b"PUB out.")
    with pytest.raises(MappingError, match="max_control_line") as refused:
        one.prefix_for(raw(fits + b"x"))
    assert refused.value.reason == "too_large"
    with pytest.raises(MappingError):
        one.prefix_for(raw(fits), more=1)
