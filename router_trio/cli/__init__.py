"""The `router-trio` command.

Guarantees: results are written to stdout, errors and logs to stderr; exit codes are those of `command_line`. Large
packages (trio, nats, OpenTelemetry, pydantic) are imported by the commands that need them, so that `--help` and `check`
start fast.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence

from router_trio.cli.command_line import FAILED, INTERRUPTED, INVALID_CONFIGURATION, WRONG_USAGE, UsageError, command
from router_trio.cli.output import to_stderr
from router_trio.errors import ConfigurationError, RouterError
from router_trio.errors.quotes import redact


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, by default that of `sys.argv`, and return its exit code. Blocks until the command has ended."""
    try:
        code = _run(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
    except UsageError as error:
        return _fail(WRONG_USAGE, *str(error).split("\n"))
    except ConfigurationError as error:
        to_stderr(*str(error).split("\n"))
        return INVALID_CONFIGURATION
    except RouterError as error:
        return _fail(FAILED, str(error))
    except BrokenPipeError:
        _abandon_stdout()  # the reader, such as `head`, has closed the pipe
        return FAILED
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _abandon_stdout()
        return _fail(FAILED, f"can't write the output: {error.strerror}")
    except KeyboardInterrupt:
        return INTERRUPTED
    return code


def _run(arguments: Sequence[str]) -> int:
    if "_ARGCOMPLETE" in os.environ:  # a shell requests completions
        from router_trio.cli.completion import complete

        complete()
    return command(arguments)


def _abandon_stdout() -> None:
    # The interpreter flushes stdout again at exit, and would report the same error.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(code: int, *message: str) -> int:
    # The lines quote the argument that is refused: it may be a URL with a password.
    to_stderr(f"router-trio: error: {redact(message[0])}", *map(redact, message[1:]))
    return code
