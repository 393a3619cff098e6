"""The questions that each kind of source answers. A kind is one object; the source is passed in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar

from router_trio.errors import Problem
from router_trio.settings.routes.sources.keys import SourceKeys


class SourceKind(ABC):
    """A kind of source.

    The sections of a configuration that is not valid are asked as well, so a method may find that any key is missing.
    """

    key: ClassVar[str]
    """The key of `[routes.from]` that names a source of this kind."""

    noun: ClassVar[str]
    """The kind in messages, with its article."""

    needed: ClassVar[str]
    """The key that has to be given for a source of this kind."""

    keys: ClassVar[tuple[str, ...]]
    """The keys that it has besides `key` and those that every source has."""

    shown: ClassVar[tuple[str, ...]]
    """The keys that `/status` shows, `key` first."""

    redelivers: ClassVar[bool]
    """True if a message that is not acked is delivered again; False if it is lost when the router loses it."""

    is_stored: ClassVar[bool]
    """True if its messages are stored where they are read, each with a sequence and a time."""

    may_be_answered: ClassVar[bool]
    """True if its messages may have a reply subject."""

    default_attempts: ClassVar[int]
    """`attempts` of a route without `[routes.retry]`."""

    # --- what it reads ---

    @abstractmethod
    def subjects(self, source: SourceKeys) -> tuple[str, ...]:
        """Return the patterns that the configuration names, none if only the server knows what subjects there are."""

    @abstractmethod
    def described(self, source: SourceKeys) -> str:
        """Return what it reads, for people."""

    def reads(self, source: SourceKeys) -> dict[str, str | list[str]]:
        """Return what it reads, for programs: the keys that are shown and were given."""
        return {key: value for key in self.shown if (value := getattr(source, key)) is not None}

    def stream(self, source: SourceKeys) -> str | None:
        """Return the name of the stream that it reads, None if it reads none."""
        return None

    def consumer(self, source: SourceKeys) -> tuple[str, str] | None:
        """Return the stream and the durable that only one route may read, None if any number may."""
        return None

    def subscription(self, source: SourceKeys) -> tuple[str, str | None] | None:
        """Return the subject and the queue group that a reload can hand on to another route, None if there are none."""
        return None

    def named_in_spans(self, source: SourceKeys) -> tuple[tuple[str, str], ...]:
        """Return the attributes that name it in the spans of its messages, besides their subject."""
        return ()

    # --- what it promises ---

    promise: ClassVar[str]
    """How often a message is delivered."""

    retried_from: ClassVar[str]
    """Where a message waits for its next attempt: the words behind `tried`, with a space before them."""

    given_up: ClassVar[str]
    """The fate of a message after its last attempt, if there are no dead letters."""

    shared_by: ClassVar[str]
    """The thing that workers share to divide the messages among them."""

    @abstractmethod
    def is_shared(self, source: SourceKeys) -> bool:
        """Return True if other processes may get some of the messages while this one runs."""

    # --- what is wrong with it ---

    @abstractmethod
    def check(self, path: str, source: SourceKeys) -> Iterator[Problem]:
        """Give everything that is wrong with the keys that it has."""

    @abstractmethod
    def refuse(self, key: str, owner: SourceKind) -> str:
        """Return why a source of this kind can't have a key of another kind, `owner`, and what to do about it."""

    def check_shared(self, path: str, source: SourceKeys, workers: int) -> Iterator[Problem]:
        """Give what keeps several workers from sharing it."""
        yield from ()

    def warnings(self, path: str, source: SourceKeys) -> Iterator[Problem]:
        """Give what is valid and probably not meant."""
        yield from ()
