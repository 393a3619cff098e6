"""Every error that router_trio raises on purpose.

`RouterError` is the root. Its branches say who must act: the author of the configuration, the operators of the network
and the servers, the publisher, or the author of a handler. Errors of other libraries are translated in the modules
that call them, and never reach a caller as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from traceback import extract_tb

from router_trio.errors import reasons
from router_trio.errors.quotes import redact


class RouterError(Exception):
    """The root of all errors of this package."""


# --- the configuration is at fault ---


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem of a configuration: the key's path and what to do about it.

    `picture` shows the place of a mistake in an expression, on lines of its own, each indented. `place` says where the
    key stands in the file, and of which route it is. `source` is the file, if it is not that of the error. `other` is
    the path of another key that the message names.
    """

    path: str
    message: str
    picture: str = ""
    place: str = field(default="", compare=False)
    source: str = ""
    other: str = ""

    @property
    def told(self) -> str:
        """The message, with the place behind it."""
        return f"{self.message} ({self.place})" if self.place else self.message


class ConfigurationError(RouterError):
    """The configuration can't be used. Holds every problem found, not only the first.

    `str()` gives one line a problem: `SOURCE: key.path: what is wrong (line 7, route 'orders')`, and the picture of it
    behind, if it has one.
    """

    def __init__(self, problems: Sequence[Problem], source: str = "settings") -> None:
        # No text of ours repeats a secret; one that quotes a wrong value may all the same.
        self.problems: tuple[Problem, ...] = tuple(
            replace(
                one,
                path=redact(one.path),
                message=redact(one.message),
                picture=redact(one.picture),
                place=redact(one.place),
            )
            for one in problems
        )
        self.source = source
        lines: list[str] = []
        for problem in self.problems:
            lines.append(": ".join(filter(None, (redact(problem.source or source), problem.path, problem.told))))
            if problem.picture:
                lines.append(problem.picture)
        super().__init__("\n".join(lines))


class SubjectError(RouterError, ValueError):
    """A subject or a subscription pattern is not valid."""


class MappingError(RouterError, ValueError):
    """A subject mapping can't be compiled, or a message has no subject at a destination.

    `reason` is a short word, fit for a metric label: `mapping`, `reserved_subject`, or `too_large` for a subject that
    is too long for the server.
    """

    def __init__(self, message: str, *, reason: str = reasons.MAPPING) -> None:
        super().__init__(message)
        self.reason = reason


class ExpressionError(RouterError, ValueError):
    """An expression can't be compiled: it is not valid, names what is not there, or puts types together that don't fit.

    `name` is what the expression is called, `line` and `column` count from 1, `picture` is the line with carets below
    the mistake. `str()` has all of them.
    """

    def __init__(self, message: str, *, name: str, line: int, column: int, picture: str) -> None:
        self.message: str = message
        self.name: str = name
        self.line: int = line
        self.column: int = column
        self.picture: str = picture
        super().__init__(f"{name}, line {line}, column {column}: {message}\n{picture}")


# --- the program around a router is at fault ---


class TrioRequiredError(RouterError):
    """A router was opened where Trio does not run: in a program of asyncio, or in none that is asynchronous."""


# --- the network or a server is at fault ---


class LinkError(RouterError):
    """A connection attempt failed, or a live link died. `reason` is a short word, fit for a metric label."""

    reason: str = reasons.NETWORK

    def __init__(self, message: str, *, reason: str | None = None) -> None:
        super().__init__(message)
        if reason is not None:
            self.reason = reason


class AuthorizationError(LinkError):
    """The server refused the credentials. Trying again without changing something won't help."""

    reason = reasons.AUTHORIZATION


class CertificateError(LinkError):
    """The server's TLS certificate is not trusted, or the server wants one of ours."""

    reason = reasons.CERTIFICATE


class ProtocolError(LinkError):
    """A peer sent what is not the NATS protocol. The link can't be used any further."""

    reason = reasons.PROTOCOL


class UnexpectedError(ProtocolError):
    """A peer's data raised an error that this package does not expect: a bug to report. It ends the link alone.

    `error_type` and `place` tell what was raised where; its text is left out, since it may quote a payload.
    """

    def __init__(self, error: Exception) -> None:
        self.error_type: str = type(error).__name__
        frames = extract_tb(error.__traceback__)
        ours = [frame for frame in frames if "router_trio" in frame.filename]
        frame = (ours or frames)[-1]
        self.place: str = f"{frame.filename.rpartition('router_trio/')[2]}:{frame.lineno} in {frame.name}"
        super().__init__(f"{self.error_type} at {self.place}: a bug of router_trio, please report it")


class SourceError(RouterError):
    """A route could not subscribe or open its consumer, or lost it. `reason` is fit for a metric label."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class ConnectionExhaustedError(RouterError):
    """A connection with `on_reconnect_exhausted = "stop"` used up the attempts of its round."""


class ListenError(RouterError):
    """The HTTP side can't listen on its address."""


class EmbeddedServerError(RouterError):
    """The embedded nats-server can't be found or doesn't come up."""


# --- the publisher is at fault, or its message ---


class PublishError(RouterError):
    """A publish was refused, or failed. `reason` is a short word, fit for a metric label."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class EvaluationError(RouterError):
    """An expression failed on a message: a key is missing, a type is wrong, a number too large, the body no JSON.

    Its text names types and keys of the expression, never what the message holds.
    """

    reason = reasons.EXPRESSION


class LoopError(EvaluationError):
    """A message has passed as many routes as the `hop_limit` of its route lets it."""

    reason = reasons.LOOP


# --- a handler is at fault ---


class HandlerError(RouterError):
    """A route's handler can't be imported, or returned something that is not a message."""


class ScopeLeftOpenError(HandlerError):
    """A handler returned within a cancel scope or a nursery that it had entered. What it left open was closed."""


class ScopesLostError(HandlerError):
    """A handler has left cancel scopes that it had not entered, so that its route can't go on: the router ends."""


# --- a handler raises these, to say what becomes of its message ---

LONGEST_RETRY = 1e9
"""Seconds: about 31 years, as of each duration in a configuration."""


class Retry(Exception):
    """Raised by a handler: its message is tried again after exactly `after` seconds. That counts as an attempt.

    `detail` says why, for a dead letter and for traces. Raises `ValueError` for a time that is none.
    """

    def __init__(self, after: float, detail: str = "") -> None:
        if not 0 <= after <= LONGEST_RETRY:
            raise ValueError(f"after is {after!r}; it must be a number of seconds, at least 0 and at most 10^9")
        super().__init__(detail or f"again after {after:g} s")
        self.after: float = float(after)


class Reject(Exception):
    """Raised by a handler: its message is given up at once, and goes where the dead letters of its route go.

    `detail` says why, for the dead letter and for traces.
    """

    def __init__(self, detail: str = "") -> None:
        super().__init__(detail or "rejected by the handler")


def innermost(group: BaseException, kind: type[BaseException] = Exception) -> BaseException:
    """Return the one error of a group: its only leaf, or its first when all are of `kind`; else the group itself.

    Nurseries wrap what their tasks raise into groups; callers of this package get the error bare.
    """
    if not isinstance(group, BaseExceptionGroup):
        return group
    leaves = [innermost(one, kind) for one in group.exceptions]
    if len(leaves) == 1 or all(isinstance(leaf, kind) for leaf in leaves):
        return leaves[0]
    return group
