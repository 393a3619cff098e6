"""`router-trio init`: a configuration to start from."""

from __future__ import annotations

import contextlib
from importlib.resources import files
from pathlib import Path

from router_trio.cli.command_line import DONE, Parser, UsageError
from router_trio.cli.configuration import CONFIG

_NEXT = """\
{file} is written. It runs as it is:

    router-trio check {file}
    router-trio test {file}
    router-trio run {file} --embedded-nats

For an editor that checks keys while you write:

    router-trio schema > {schema}"""


def add_arguments(parser: Parser) -> None:
    """Add what `init` takes."""
    parser.add_argument(
        "file",
        nargs="?",
        type=Path,
        default=CONFIG,
        metavar="FILE",
        help="the file to write; there must be none of that name; default: router.toml",
    )


def init(file: Path) -> int:
    """Write a configuration to start from.

    It has a connection, the streams that it needs, a route with retry and
    dead letters, and a test, each with a comment. It passes check and test,
    and runs with a nats-server of its own. A file that is there is never
    overwritten.

    For example:

        router-trio init
        router-trio run --embedded-nats
    """
    text = files("router_trio.cli").joinpath("router.toml").read_text("utf-8")
    try:
        with file.open("x", encoding="utf-8", newline="\n") as opened:
            try:
                opened.write(text)
                opened.flush()
            except OSError:
                with contextlib.suppress(OSError):
                    file.unlink()  # half of it would only be in the way of the next attempt
                raise
    except FileExistsError:
        told = f"{file} exists, and nothing is overwritten; give another name, or move it away"
        raise UsageError(told) from None
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"there is no folder {file.parent}; create it, or give another name") from None
    except PermissionError as error:
        raise UsageError(f"{file} can't be written ({error.strerror}); give another name") from None
    print(_NEXT.format(file=file, schema=file.parent / "router.schema.json"))
    return DONE
