"""The `router-trio` command.

Guarantees: results go to stdout, errors and logs to stderr; exit codes are those of `outcome`. What is heavy (trio,
nats, OpenTelemetry, pydantic) is imported by the command that needs it, so that `--help` and `check` start fast.
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
    """Run one command, by default that of `sys.argv`, and return its exit code. Blocks until the command is done."""
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
        _abandon_stdout()  # whoever read it has seen enough
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
    if "_ARGCOMPLETE" in os.environ:  # a shell asks how a line may go on
        from router_trio.cli.completion import complete

        complete()
    return command(arguments)


def _abandon_stdout() -> None:
    # The interpreter flushes once more when it ends, and would complain again.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, code: int) -> int:
    # What was given in the wrong place, such as a URL with its password, is quoted by who refuses it.
    print(f"router-trio: error: {redact(message)}", file=sys.stderr)
    return code
