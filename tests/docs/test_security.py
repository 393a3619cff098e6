"""The lists on the security page match the code and the example of permissions."""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import indent

from router_trio.cli.permissions import lines
from router_trio.errors.quotes import LONGEST_QUOTE
from router_trio.protocol.control_headers import CONTROL_HEADERS
from router_trio.protocol.permissions import OF_COMMANDS, PERMISSIONS
from router_trio.settings.sections import TelemetrySettings
from router_trio.telemetry.http.rendering import REST
from tests.docs.pages import DOCS, page, pages
from tests.docs.test_configurations import load

PAGE = page(DOCS / "explanation" / "security.md")
EXAMPLE = (DOCS / "deploy" / "nats-permissions.conf").read_text(encoding="utf-8")


def test_the_control_headers_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| `(Nats-[^`]+)` \| (.+) \|$", PAGE.text, re.MULTILINE)
    assert dict(rows) == CONTROL_HEADERS
    assert len(rows) == len(CONTROL_HEADERS)


def test_the_rights_are_those_of_the_example() -> None:
    rows = re.findall(r"^\| `([^`]+)` \| (publish|subscribe) \| (.+) \|$", PAGE.text, re.MULTILINE)
    given = []
    lists = re.findall(r"^ {10}(publish|subscribe) {\n(.*?)^ {10}}", EXAMPLE, re.DOTALL | re.MULTILINE)
    for kind, block in lists:
        given += [(right, kind, why) for right, why in re.findall(r'^ +"([^"]+)" +# (.+)$', block, re.MULTILINE)]
    assert rows == given
    assert len(rows) >= 9


def test_the_example_grants_what_the_command_prints_for_the_configuration_on_the_page(tmp_path: Path) -> None:
    (block,) = [one for one in PAGE.blocks if one.language == "toml"]
    _, *printed = lines(load(block.text, tmp_path), "main", "server")
    assert indent("\n".join(printed) + "\n", " " * 8) in EXAMPLE


def test_requests_on_how_to_pages_are_those_of_the_table() -> None:
    rows = {one.subject.replace("{api}", "$JS.API").partition(".{")[0] for one in PERMISSIONS}
    rows |= {
        one.subject.replace("{api}", "$JS.API").partition(".{")[0] for needs in OF_COMMANDS.values() for one in needs
    }
    named = {span for one in pages() if one.path.parent.name in ("how-to", "operations") for span in one.spans}
    requests = {found[0].rstrip(".") for span in named if (found := re.match(r"\$JS\.API(\.[A-Z]+)+\.?", span))}
    assert len(requests) >= 5
    for request in requests:
        assert any(f"{request}.".startswith(f"{row}.") for row in rows), request


def test_the_numbers_are_those_of_the_code() -> None:
    text = " ".join(PAGE.text.split())
    assert f"for at most {TelemetrySettings().max_traces_per_second} messages a second" in text
    assert f"cut to {LONGEST_QUOTE} characters" in text
    assert (1 / (1 + REST), "at most a quarter of the event loop" in text) == (0.25, True)
