"""`router-trio init`: write a first configuration."""

from __future__ import annotations

import contextlib
from importlib.resources import files
from pathlib import Path

from router_trio.cli.command_line import DONE, Parser, UsageError
from router_trio.cli.configuration import CONFIG
from router_trio.cli.output import show

_NEXT = """\
Wrote {file}. It runs as it is:

    router-trio check {file}
    router-trio test {file}
    router-trio run {file} --embedded-nats

For completion and checks of keys in an editor:

    router-trio schema > {schema}"""


def add_arguments(parser: Parser) -> None:
    """Add the arguments of `init`."""
    parser.add_argument(
        "file",
        nargs="?",
        type=Path,
        default=CONFIG,
        metavar="FILE",
        help="the file to write, which must not exist yet; default: router.toml",
    )


def init(file: Path) -> int:
    """Write a first configuration.

    It has a connection, the streams that it needs, a route with retry and
    dead letters, and tests, each with a comment. It passes router-trio check
    and router-trio test, and runs with --embedded-nats. An existing file is
    never overwritten.

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
                    file.unlink()  # an incomplete file would only stop the next attempt
                raise
    except FileExistsError:
        detail = f"{file} exists and is not overwritten; give another name, or move the file away"
        raise UsageError(detail) from None
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"there is no folder {file.parent}; create it, or give another path") from None
    except PermissionError as error:
        raise UsageError(f"{file} can't be written ({error.strerror}); give another path") from None
    show(*_NEXT.format(file=file, schema=file.parent / "router.schema.json").split("\n"))
    return DONE
