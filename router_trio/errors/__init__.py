"""Every error that router_trio raises on purpose.

`RouterError` is the root. Its branches correspond to who must act: the author of the configuration, the operators of
the network and the servers, the publisher, or the author of a handler. Errors of other libraries are translated by the
modules that call these libraries, and never reach a caller.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import inf
from traceback import extract_tb

from router_trio.errors import reasons
from router_trio.errors.quotes import redact


class RouterError(Exception):
    """The root of all errors of this package."""


# --- the configuration is at fault ---


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem of a configuration: the path of a key, what is wrong, and the cure.

    `picture` shows the place of a mistake in an expression, on separate, indented lines. `place` names the line of the
    key in the file, and its route; `line` is that line, 0 if it is not known. `source` is the file, if it differs from
    that of the error. `other` is the path of another key that the message names.
    """

    path: str
    message: str
    picture: str = ""
    place: str = field(default="", compare=False)
    source: str = ""
    other: str = ""
    line: int = field(default=0, compare=False)

    @property
    def with_place(self) -> str:
        """The message, followed by the place in parentheses."""
        return f"{self.message} ({self.place})" if self.place else self.message


class ConfigurationError(RouterError):
    """The configuration can't be used. Contains every problem found, not only the first, by file and line.

    `str()` gives one line for each problem: `SOURCE: key.path: what is wrong (line 7, route 'orders')`, followed by its
    picture, if it has one.
    """

    def __init__(self, problems: Sequence[Problem], source: str = "settings") -> None:
        order = {name: index for index, name in enumerate(dict.fromkeys(one.source for one in problems))}
        problems = sorted(problems, key=lambda one: (order[one.source], one.line or inf))
        # Messages never quote secrets on purpose, but an invalid value that is quoted may contain one.
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
            lines.append(": ".join(filter(None, (redact(problem.source or source), problem.path, problem.with_place))))
            if problem.picture:
                lines.append(problem.picture)
        super().__init__("\n".join(lines))


class SubjectError(RouterError, ValueError):
    """A subject or a subscription pattern is not valid."""


class MappingError(RouterError, ValueError):
    """A subject mapping can't be compiled, or gives no valid subject for a message.

    `reason` is a short word for metric labels: `mapping`, `reserved_subject`, or `too_large` for a subject that is too
    long for the server.
    """

    def __init__(self, message: str, *, reason: str = reasons.MAPPING) -> None:
        super().__init__(message)
        self.reason = reason


class ExpressionError(RouterError, ValueError):
    """An expression can't be compiled: its syntax is invalid, a name is unknown, or types do not match.

    `name` is the name of the expression, `line` and `column` count from 1, `picture` is the line with carets below the
    mistake. `str()` contains all of them.
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
    """A router was opened where Trio does not run: in an asyncio program, or in a synchronous one."""


class AsyncioRequiredError(RouterError):
    """A router was opened by `aio.open` where asyncio does not run, or in a thread where Trio runs already."""


# --- the network or a server is at fault ---


class LinkError(RouterError):
    """A connection attempt failed, or a live link was lost. `reason` is a short word for metric labels."""

    reason: str = reasons.NETWORK

    def __init__(self, message: str, *, reason: str | None = None) -> None:
        super().__init__(message)
        if reason is not None:
            self.reason = reason


class AuthorizationError(LinkError):
    """The server refused the credentials. Retrying without a change will not help."""

    reason = reasons.AUTHORIZATION


class CertificateError(LinkError):
    """The server's TLS certificate is not trusted, or the server requires a client certificate."""

    reason = reasons.CERTIFICATE


class ProtocolError(LinkError):
    """A peer violated the NATS protocol. The link can no longer be used."""

    reason = reasons.PROTOCOL


class UnexpectedError(ProtocolError):
    """A peer's data raised an error that this package does not expect: a bug to report. It ends only the link.

    `error_type` and `place` are the type of the error and where it was raised. Its text is left out, since it may quote
    a payload.
    """

    def __init__(self, error: Exception) -> None:
        self.error_type: str = type(error).__name__
        frames = extract_tb(error.__traceback__)
        ours = [frame for frame in frames if "router_trio" in frame.filename]
        frame = (ours or frames)[-1]
        self.place: str = f"{frame.filename.rpartition('router_trio/')[2]}:{frame.lineno} in {frame.name}"
        super().__init__(f"{self.error_type} at {self.place}: a bug of router_trio, please report it")


class SourceError(RouterError):
    """A route could not subscribe or open its consumer, or lost it. `reason` is a short word for metric labels."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class FilterDiffersError(SourceError):
    """The durable of a route has another filter, and nothing else of it differs."""


class ConnectionExhaustedError(RouterError):
    """All attempts of a round failed, on a connection with `on_reconnect_exhausted = "stop"`."""


class ListenError(RouterError):
    """The HTTP server can't listen on its address."""


class EmbeddedServerError(RouterError):
    """The embedded nats-server can't be found or does not start."""


# --- the publisher or the message is at fault ---


class PublishError(RouterError):
    """A publish was refused or failed. `reason` is a short word for metric labels."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class EvaluationError(RouterError):
    """An expression failed on a message: a missing key, a wrong type, too large a number, a body that is not JSON.

    Its text names types and keys of the expression, never content of the message.
    """

    reason = reasons.EXPRESSION


class ResultTooLargeError(EvaluationError):
    """The result of an expression is larger than the server of its destination accepts.

    It has the reason of any message that is too large: the expression did not fail, and the cure is another one.
    """

    reason = reasons.TOO_LARGE


class LoopError(EvaluationError):
    """A message has passed as many routes as the `hop_limit` of its route allows."""

    reason = reasons.LOOP


class BodyError(EvaluationError):
    """The body of a message does not fit the schema of its route.

    Its text has the path in the body and the rule in the schema, never content of the message.
    """

    reason = reasons.SCHEMA


class InvalidBodyError(RouterError):
    """The body of a message does not fit the type that the handler takes.

    Its text has the path and what was expected there, never content of the message.
    """

    reason = reasons.INVALID_BODY


# --- a handler is at fault ---


class HandlerError(RouterError):
    """A route's handler can't be imported, or returned something that is not a message."""


class ScopeLeftOpenError(HandlerError):
    """A handler returned inside a cancel scope or a nursery that it had entered. These were closed."""


class ScopesLostError(HandlerError):
    """A handler exited cancel scopes that it had not entered, so that its route can't continue: the router ends."""


class LifespanError(RouterError):
    """The lifespan of a router raised an error, which is the cause of this one, or ended while the router was running.

    `place` is where that happened, None if it is not known.
    """

    def __init__(self, name: str, what: str, place: str | None) -> None:
        self.place: str | None = place
        self.what: str = redact(what)
        super().__init__(f"lifespan {name} {self.what}" + ("" if place is None else f" (at {place})"))


# --- raised by handlers, to decide about their message ---

LONGEST_RETRY = 1e9
"""Seconds: about 31 years, as for each duration in a configuration."""


class Retry(Exception):
    """Raised by a handler: its message is retried after exactly `after` seconds. That counts as an attempt.

    `detail` is the cause. It is shown in logs, on pages, in traces and in a dead letter, so it should quote no secrets.
    Raises `ValueError` if `after` is not a valid delay.
    """

    def __init__(self, after: float, detail: str = "") -> None:
        if not 0 <= after <= LONGEST_RETRY:
            raise ValueError(f"after is {after!r}; it must be a number of seconds, at least 0 and at most 10^9")
        super().__init__(detail or f"again after {after:g} s")
        self.after: float = float(after)


class Reject(Exception):
    """Raised by a handler: its message is given up at once, and becomes a dead letter if its route has them.

    `detail` is the cause. It is shown in logs, on pages, in traces and in the dead letter, so it should quote no
    secrets.
    """

    def __init__(self, detail: str = "") -> None:
        super().__init__(detail or "rejected by the handler")


def innermost(group: BaseException, kind: type[BaseException] = Exception) -> BaseException:
    """Return the only error of a group, or its first if all are of `kind`; else the group itself.

    Nurseries wrap the errors of their tasks into groups; callers of this package get the bare error.
    """
    if not isinstance(group, BaseExceptionGroup):
        return group
    leaves = [innermost(one, kind) for one in group.exceptions]
    if len(leaves) == 1 or all(isinstance(leaf, kind) for leaf in leaves):
        return leaves[0]
    return group
