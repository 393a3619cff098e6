"""What is read of a plain command line is what cyclopts reads of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from router_trio.cli import outcome, run
from router_trio.cli.command_line.application import command
from router_trio.cli.running.launch import CONFIG
from router_trio.cli.running.plain import FLAGS, PlainRun, plain_run

WORDS = st.sampled_from(
    [
        "run",
        "check",
        "a.toml",
        "b.d",
        "~/c d.toml",
        "--",
        "-",
        "",
        "-h",
        "--help",
        "--no-watch",
        "--watch=x",
        "--wat",
        "@f",
    ]
)
LINES = st.lists(WORDS | st.sampled_from(FLAGS) | st.text(max_size=6), max_size=5)


def read_by_cyclopts(arguments: list[str]) -> PlainRun | None:
    """What `run` is called with; None if it is not called."""
    called: list[PlainRun] = []

    def launch(*files: Path, **flags: Any) -> int:
        assert flags.pop("workers") is None
        called.append(PlainRun([*files], **flags))
        return 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "launch", launch)
        assert command(arguments) == 0
    return called[0] if called else None


@given(LINES)
@example(["run", "["])
def test_a_plain_line_is_read_as_cyclopts_reads_it(rest: list[str]) -> None:
    plain = plain_run(["run", *rest])
    if plain is not None:
        assert read_by_cyclopts(["run", *rest]) == plain._replace(files=plain.files or [CONFIG])


@pytest.mark.parametrize(
    "rest", [[], ["a.toml"], ["a.toml", "b.d"], [*FLAGS], ["--watch", "a.toml", "--embedded-nats"]]
)
def test_what_people_write_is_plain(rest: list[str]) -> None:
    assert plain_run(["run", *rest]) is not None


@pytest.mark.parametrize(
    "line",
    [[], ["check", "a.toml"], ["run", "-"], ["run", "--help"], ["run", "--watch", "--watch"], ["run", "--watch=true"]],
)
def test_all_else_is_not(line: list[str]) -> None:
    assert plain_run(line) is None


def test_a_wrong_argument_is_told_with_the_page_that_helps() -> None:
    with pytest.raises(outcome.UsageError, match=r"router-trio run --help shows what there is"):
        command(["run", "--wath"])
