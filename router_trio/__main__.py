"""The `router-trio` command, which is also `python -m router_trio`."""

# Only modules that are built in, or already imported by the interpreter, so that no file of the same name can be found
# elsewhere. And `signal` itself takes longer to import than everything here.
import _signal as signal  # type: ignore[import-not-found]
import gc
import os
import sys

WORKER = "_worker"
"""The argument with which `run` starts its workers, as in `router.workers.process`. It is not a command for users."""

INTERRUPTED = 130
"""As in `cli.command_line`, which is not imported yet."""


def main() -> int:
    """Run the command in `sys.argv` and return its exit code. Blocks until it is done."""
    # Before there is anything to drain, Ctrl-C ends the command at once, without a traceback from inside an import.
    _interrupt_at_once()
    _open_what_is_closed()
    # Objects that a command imports and reads at its start live until its end. Garbage collections would look for
    # garbage among them and take a sixth of the start; a long-running command enables them (see
    # `router.garbage_collection`).
    gc.disable()
    if sys.argv[1:2] == [WORKER]:
        from router_trio.cli.run.worker import main as command
    else:
        from router_trio.cli import main as command

    try:
        return command()
    finally:
        # The interpreter need not look for garbage either when it ends.
        gc.freeze()


def _working_directory() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was deleted
        return ""


def _interrupt_at_once() -> None:
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # contextlib would have to be imported.
        try:  # noqa: SIM105
            signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
        except ValueError:
            pass  # in another thread than the main one, which receives no signals


def _open_what_is_closed() -> None:
    """Open the null device for each standard stream that the parent process has closed.

    Otherwise the next socket gets the number of that stream, and output would be written to a server.
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
    # `python -m` searches the working directory first, where a `json.py` may be a file of the user. Handlers are still
    # found there, after everything else (see `cli.configuration`).
    if not sys.flags.safe_path and sys.path[:1] in ([""], [_working_directory()]):
        del sys.path[0]
    sys.exit(main())
