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
from router_trio.errors import ConfigurationError, RouterError
from router_trio.errors.quotes import redact


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, by default that of `sys.argv`, and return its exit code. Blocks until the command has ended."""
    try:
        code = _run(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
    except UsageError as error:
        return _fail(str(error), WRONG_USAGE)
    except ConfigurationError as error:
        print(error, file=sys.stderr)
        return INVALID_CONFIGURATION
    except RouterError as error:
        return _fail(str(error), FAILED)
    except BrokenPipeError:
        _abandon_stdout()  # the reader, such as `head`, has closed the pipe
        return FAILED
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _abandon_stdout()
        return _fail(f"can't write the output: {error.strerror}", FAILED)
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


def _fail(message: str, code: int) -> int:
    # The message quotes the argument that it refuses: it may be a URL with a password.
    print(f"router-trio: error: {redact(message)}", file=sys.stderr)
    return code
