"""The questions that each kind of source answers. A kind is one object; the source is passed in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar

from router_trio.errors import Problem
from router_trio.settings.routes.sources.keys import SourceKeys


class SourceKind(ABC):
    """A kind of source.

    Methods are also called with sources that are not valid, in which any key may be missing.
    """

    key: ClassVar[str]
    """The key of `[routes.from]` that names a source of this kind."""

    noun: ClassVar[str]
    """The kind as a noun with its article, for messages."""

    needed: ClassVar[str]
    """The keys that a source of this kind needs, as text."""

    keys: ClassVar[tuple[str, ...]]
    """The keys besides `key` and those that every source has."""

    shown: ClassVar[tuple[str, ...]]
    """The keys that `/status` shows, `key` first."""

    redelivers: ClassVar[bool]
    """True if an unacked message is redelivered; False if it is lost together with the router."""

    is_stored: ClassVar[bool]
    """True if its messages are stored where they are read, each with a sequence and a timestamp."""

    is_bucket: ClassVar[bool] = False
    """True if its messages are the operations of a KV bucket."""

    may_be_answered: ClassVar[bool]
    """True if its messages may have a reply subject."""

    default_attempts: ClassVar[int]
    """`attempts` of a route without `[routes.retry]`."""

    # --- the messages ---

    @abstractmethod
    def subjects(self, source: SourceKeys) -> tuple[str, ...]:
        """Return the patterns in the configuration, none if only the server knows the subjects."""

    @abstractmethod
    def described(self, source: SourceKeys) -> str:
        """Return what it reads, as text."""

    def consumer_filters(self, source: SourceKeys) -> tuple[str, ...]:
        """Return the filters of its durable, none for an entire stream."""
        return self.subjects(source)

    def subject_prefix(self, source: SourceKeys) -> str:
        """Return the start of its subjects that expressions and handlers do not see."""
        return ""

    def reads(self, source: SourceKeys) -> dict[str, str | list[str]]:
        """Return what it reads, as data for programs: the `shown` keys that were given."""
        return {key: value for key in self.shown if (value := getattr(source, key)) is not None}

    def stream(self, source: SourceKeys) -> str | None:
        """Return the name of the stream that it reads, None if it reads none."""
        return None

    def consumer(self, source: SourceKeys) -> tuple[str, str] | None:
        """Return the stream and the durable that only one route may use, None without such a limit."""
        return None

    def subscription(self, source: SourceKeys) -> tuple[str, str | None] | None:
        """Return the subject and queue group that a reload can hand over to the next route, None if there are none."""
        return None

    def named_in_spans(self, source: SourceKeys) -> tuple[tuple[str, str], ...]:
        """Return the span attributes of its messages, besides their subject."""
        return ()

    # --- the guarantees ---

    promise: ClassVar[str]
    """How often a message is delivered, as text."""

    retried_from: ClassVar[str]
    """Where a message waits for its next attempt: the words after `tried`, with a leading space."""

    given_up: ClassVar[str]
    """The fate of a message after its last attempt, if there are no dead letters."""

    shared_by: ClassVar[str]
    """A phrase for what divides the messages among workers."""

    @abstractmethod
    def is_shared(self, source: SourceKeys) -> bool:
        """Return True if other processes may get some of the messages while this one runs."""

    def kept_order(self, source: SourceKeys) -> str:
        """Return what messages have in common that keep their order although several processes route, as text.

        An empty text if messages keep no order then, or if only one process routes.
        """
        return ""

    # --- the checks ---

    @abstractmethod
    def check(self, path: str, source: SourceKeys) -> Iterator[Problem]:
        """Yield each problem of the keys of this kind."""

    @abstractmethod
    def refuse(self, key: str, owner: SourceKind) -> str:
        """Return why a source of this kind can't have a key of another kind, `owner`, and the cure."""

    def check_shared(self, path: str, source: SourceKeys, workers: int) -> Iterator[Problem]:
        """Yield each reason why several workers can't share it."""
        yield from ()

    def warnings(self, path: str, source: SourceKeys) -> Iterator[Problem]:
        """Yield a warning for each valid setting that is probably a mistake."""
        yield from ()
