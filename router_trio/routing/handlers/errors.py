"""Errors of handlers: which of them are failures of their messages, and which end the router."""

from __future__ import annotations

import signal
import threading
from typing import Any

import trio

from router_trio.errors import HandlerError, Reject, Retry, innermost, reasons
from router_trio.errors.quotes import LONGEST_TEXT, bounded, excerpt
from router_trio.routing.policy.retry import Failure


async def raise_if_ours(error: BaseException) -> None:
    """Return if an error is the handler's own. Otherwise raise a signal's error, or the cancellation of the task.

    `trio.Cancelled` in `error` decides nothing: a handler may have its own scopes, mix cancellations with other errors,
    or swallow ours and raise something else. Only the cancellation of this task counts.
    """
    raise_if_signal(error)
    await trio.lowlevel.checkpoint_if_cancelled()


def raise_if_signal(error: BaseException) -> None:
    """Raise the error, or the group that contains it, if a signal handler raised it while other code ran.

    Such an error asks the program to end. Its traceback contains the frame of the signal handler, which that of a
    `raise KeyboardInterrupt` or `sys.exit()` in other code does not.
    """
    if isinstance(error, Exception):
        return  # the usual case
    if threading.current_thread() is not threading.main_thread():
        return  # Python calls signal handlers in the main thread only
    receivers = [signal.getsignal(number) for number in signal.valid_signals()]
    codes = {code for receiver in receivers if (code := getattr(receiver, "__code__", None)) is not None}
    if _came_through(error, codes, signal.default_int_handler in receivers):
        raise error


def _came_through(error: BaseException, codes: set[Any], bare: bool) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return any(_came_through(one, codes, bare) for one in error.exceptions)
    if bare and isinstance(error, KeyboardInterrupt):
        return True  # Python's own handler of SIGINT has no frame, so it can't be distinguished
    step = error.__traceback__
    while step is not None:
        if step.tb_frame.f_code in codes:
            return True
        step = step.tb_next
    return False


def text_of(error: BaseException) -> str:
    """Return the text of an error of foreign code, whose `str` may raise as well."""
    try:
        return str(error)
    except BaseException as another:
        raise_if_signal(another)
        return "(it has no text)"


def explained(error: BaseException) -> BaseException:
    """Return the error of a handler, or what to do about it if the handler uses asyncio on Trio, or Trio on asyncio.

    The errors of these libraries do not name the cure.
    """
    leaf = innermost(error, BaseException)
    text = text_of(leaf) if isinstance(leaf, TypeError | RuntimeError) else ""
    cure = next((cure for words, cure in _WRONG_LOOP.items() if words in text), None)
    if cure is None:
        return error
    wrong = HandlerError(cure).with_traceback(leaf.__traceback__)
    wrong.__cause__ = leaf
    return wrong


_NEEDS_ASYNCIO = 'it uses asyncio, which does not run here: make it an async def, and set loop = "asyncio" in its route'
_NEEDS_TRIO = 'it uses Trio, which does not run here: set loop = "trio" in its route'
_WRONG_LOOP = {
    "trio.run received unrecognized yield message": _NEEDS_ASYNCIO,
    "no running event loop": _NEEDS_ASYNCIO,
    "There is no current event loop": _NEEDS_ASYNCIO,
    "must be called from async context": _NEEDS_TRIO,
}
"""The cure, by a part of the error that asyncio or Trio raises."""


def failure_of(error: BaseException) -> Failure:
    """Return the failure of a message whose handler raised this, possibly in a group of a nursery.

    The texts of `Reject`, `Retry` and `HandlerError` were written to be shown, by the author of the handler or of this
    package. That of any other error may quote the payload.
    """
    bare = innermost(error, Reject)
    text = text_of(bare)
    if not isinstance(bare, Reject | Retry | HandlerError):
        detail = f"{type(bare).__qualname__}: {bounded(text)}"
        return Failure(reasons.HANDLER_ERROR, detail, type(bare), quotes=True)
    text = excerpt(text, LONGEST_TEXT)
    if isinstance(bare, Reject):
        return Failure(reasons.REJECTED, text)
    if isinstance(bare, Retry):
        return Failure(reasons.RETRY, text, after=bare.after)
    return Failure(reasons.HANDLER_ERROR, text, type(bare))
