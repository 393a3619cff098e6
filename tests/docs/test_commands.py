"""Every `router-trio` command in the documentation exists, with those arguments and options."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

import pytest

from router_trio.cli.command_line import COMMANDS as NAMES
from router_trio.cli.command_line import UsageError, parse
from tests.docs.pages import pages

# In code blocks and inline; also with the path of a virtual environment, and as a value in a systemd unit.
_COMMAND = re.compile(r"^(?:Exec\w+=)?(?:\S*/)?router-trio +(?P<arguments>\S.*)$")
_AS_JSON_LIST = re.compile(r"^CMD (\[.*\])$")


def commands() -> Iterator[tuple[str, str]]:
    """Yield every command line, with its position."""
    for one in pages():
        for block in one.blocks:
            if block.language in ("sh", "ini", "console", "text"):
                for number, line in enumerate(block.text.splitlines(), block.line):
                    if block.language == "text" and not line.startswith("$ "):
                        continue  # an output
                    if match := _COMMAND.match(line.strip().removeprefix("$ ")):
                        yield f"{one}:{number}", match["arguments"]
        for span in one.spans:
            if match := _COMMAND.match(span):
                yield f"{one}: {span}", match["arguments"]
        # Blocks by indentation, as on the first page.
        for line in re.findall(r"^    (router-trio .+)$", one.prose, re.MULTILINE):
            match = _COMMAND.match(line)
            assert match is not None
            yield f"{one}: {line}", match["arguments"]


COMMANDS = list(commands())


def tokens(arguments: str) -> list[str]:
    """Return the arguments that the shell would pass on, without redirections and comments."""
    return shlex.split(re.split(r" [>|&]", arguments)[0], comments=True)


def fault(arguments: str) -> str | None:
    """Return why a command can't be typed as written; None if it can."""
    given = tokens(arguments)
    if given[0] not in NAMES:
        return f"there is no command {given[0]}"
    if given[1:] or given[0] in ("run", "demo", "contract", "schema"):
        try:
            parse(given[0], given[1:])
        except UsageError as error:
            return str(error)
    return None


def test_every_command_can_be_typed_as_written() -> None:
    assert [f"{where}: {text}" for where, arguments in COMMANDS if (text := fault(arguments)) is not None] == []


def test_the_first_page_lists_every_command() -> None:
    (readme,) = (one for one in pages() if str(one) == "README.md")
    listed = re.findall(r"^\| `([a-z-]+)[ `]", readme.prose, re.MULTILINE)
    assert set(listed) >= set(NAMES)


def test_commands_are_found() -> None:
    assert len(COMMANDS) >= 20
    assert {"run", "check", "explain", "contract", "schema", "demo"} <= {tokens(one)[0] for _, one in COMMANDS}


def test_an_unknown_option_would_be_found() -> None:
    with pytest.raises(UsageError):
        parse("run", tokens("router.toml --embeded-nats"))
