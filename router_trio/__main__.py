"""The `router-trio` command, and `python -m router_trio`: the same."""

# Built in, or imported by the interpreter before us: there is no file of that name to be found in another place. And
# `signal` itself takes longer to import than all that is here.
import _signal as signal  # type: ignore[import-not-found]
import gc
import os
import sys

WORKER = "_worker"
"""As `cli.run.worker` has it: what `run` starts its workers with, and no command for people."""

INTERRUPTED = 130
"""As `cli.command_line` has it, which is not imported yet."""


def main() -> int:
    """Run the command in `sys.argv` and return its exit code. Blocks until it is done."""
    # Before there is anything to drain, Ctrl-C ends the command at once: no traceback out of the middle of an import.
    _interrupt_at_once()
    _open_what_is_closed()
    # What a command imports and reads at its start stays to its end. Looking for garbage in it, again and again, would
    # take a sixth of the start; a command that works for long switches it on (see `router.garbage_collection`).
    gc.disable()
    if sys.argv[1:2] == [WORKER]:
        from router_trio.cli.run.worker import main as command
    else:
        from router_trio.cli import main as command

    try:
        return command()
    finally:
        # Nor does the interpreter have to look through all that, when all that is left to do is to end.
        gc.freeze()


def _working_directory() -> str:
    try:
        return os.getcwd()
    except OSError:  # it is gone
        return ""


def _interrupt_at_once() -> None:
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # contextlib would have to be imported.
        try:  # noqa: SIM105
            signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
        except ValueError:
            pass  # not in the main thread, which no signal reaches


def _open_what_is_closed() -> None:
    """Give the null device to the standard streams that the parent process has closed.

    Else the next socket takes their number, and what is meant for people is written to a server.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    if sys.stdin is None:
        sys.stdin = os.fdopen(0, closefd=False)
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", closefd=False)


if __name__ == "__main__":
    # `python -m` looks into the working directory first, where a `json.py` is somebody's own and not for us to run.
    # Handlers are found there all the same, behind everything else (see `cli.configuration`).
    if not sys.flags.safe_path and sys.path[:1] in ([""], [_working_directory()]):
        del sys.path[0]
    sys.exit(main())
