"""The lists on the security page match the code and the example of permissions."""

from __future__ import annotations

import re
from pathlib import Path

from router_trio.errors.quotes import LONGEST_QUOTE
from router_trio.protocol.control_headers import CONTROL_HEADERS
from router_trio.settings.sections import TelemetrySettings
from router_trio.telemetry.http.rendering import REST
from tests.docs.pages import DOCS, page
from tests.docs.test_configurations import load

PAGE = page(DOCS / "explanation" / "security.md")
PERMISSIONS = (DOCS / "deploy" / "nats-permissions.conf").read_text(encoding="utf-8")


def test_the_control_headers_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| `(Nats-[^`]+)` \| (.+) \|$", PAGE.text, re.MULTILINE)
    assert dict(rows) == CONTROL_HEADERS
    assert len(rows) == len(CONTROL_HEADERS)


def test_the_rights_are_those_of_the_example() -> None:
    rows = re.findall(r"^\| `([^`]+)` \| (publish|subscribe) \| (.+) \|$", PAGE.text, re.MULTILINE)
    given = []
    lists = re.findall(r"^ {10}(publish|subscribe): \[\n(.*?)^ {10}\]", PERMISSIONS, re.DOTALL | re.MULTILINE)
    for kind, block in lists:
        given += [(right, kind, why) for right, why in re.findall(r'^ +"([^"]+)" +# (.+)$', block, re.MULTILINE)]
    assert rows == given
    assert len(rows) >= 9


def test_the_router_of_the_example_fits_its_rights(tmp_path: Path) -> None:
    (block,) = [one for one in PAGE.blocks if one.language == "toml"]
    settings = load(block.text, tmp_path)
    orders, payments = settings.routes
    source = payments.source
    durable = f"{source.stream}.{source.durable}"
    prefix = settings.connections["main"].inbox_prefix
    for right in (orders.source.subject, f"$JS.API.CONSUMER.MSG.NEXT.{durable}", f"$JS.ACK.{durable}.>", f"{prefix}.>"):
        assert f'"{right}"' in PERMISSIONS
    for route in (orders, payments):
        assert f'"{route.to[0].subject.replace("{{wildcard(1)}}", "*")}"' in PERMISSIONS


def test_the_numbers_are_those_of_the_code() -> None:
    text = " ".join(PAGE.text.split())
    assert f"for at most {TelemetrySettings().max_traces_per_second} messages a second" in text
    assert f"cut to {LONGEST_QUOTE} characters" in text
    assert (1 / (1 + REST), "at most a quarter of the event loop" in text) == (0.25, True)
