"""Define events: frozen values with a code and a level, bounded when they are created."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import Any, ClassVar, Self, dataclass_transform

from router_trio.errors.quotes import LONGEST_TEXT, bounded


class Level(IntEnum):
    """Severity, ordered as in the standard library's logging."""

    DEBUG = 10
    INFO = 20
    WARN = 30
    ERROR = 40


@dataclass_transform(kw_only_default=True, frozen_default=True)
class _Fields:
    """Make each subclass a frozen dataclass with keyword arguments.

    Not a dataclass: Python would compile six methods for each of some fifty kinds of events at each start.
    """

    fields: ClassVar[dict[str, str]] = {}
    """Names of the fields, with their type annotations as source text."""
    _defaults: ClassVar[dict[str, Any]] = {}

    def __init_subclass__(cls) -> None:
        own = {name: kind for name, kind in cls.__annotations__.items() if not kind.startswith("ClassVar")}
        cls.fields = cls.fields | own
        cls._defaults = cls._defaults | {name: vars(cls)[name] for name in own if name in vars(cls)}

    def __init__(self, **values: Any) -> None:
        unknown, missing = (
            values.keys() - self.fields.keys(),
            self.fields.keys() - values.keys() - self._defaults.keys(),
        )
        if unknown or missing:
            raise TypeError(f"{type(self).__name__}: unknown {sorted(unknown)}, missing {sorted(missing)}")
        self.__dict__.update(self._defaults)
        self.__dict__.update(values)
        self.__post_init__()

    def __post_init__(self) -> None:
        """Normalize the fields, by `_set`."""

    def _set(self, name: str, value: object) -> None:
        self.__dict__[name] = value

    def replace(self, **changes: Any) -> Self:
        """Return a copy with other values of some fields."""
        return type(self)(**self.__dict__ | changes)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen")

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and vars(other) == vars(self)

    def __repr__(self) -> str:
        return f"{type(self).__qualname__}({', '.join(f'{name}={getattr(self, name)!r}' for name in self.fields)})"


class Event(_Fields):
    """The base of all events."""

    code: ClassVar[str]
    level: ClassVar[Level]
    tag: ClassVar[str | None] = None
    per_message: ClassVar[bool] = False
    not_logged: ClassVar[tuple[str, ...]] = ("at",)
    """Fields that are not details."""
    at: float

    def __hash__(self) -> int:
        return hash((type(self), self.at))

    def __post_init__(self) -> None:
        # Here, so that no code that emits or shows an event can forget it.
        for name in ("detail", "reason", "error_type", "server", "stream", "subject", "place", "filter", "subjects"):
            text = getattr(self, name, None)
            if text is not None and len(text) > LONGEST_TEXT:
                self._set(name, bounded(text))

    @property
    def severity(self) -> Level:
        """Return the level of this event: that of its kind, unless its fields make it more severe."""
        return self.level

    def details(self) -> Iterator[tuple[str, Any]]:
        """Yield name and value of each field that is set, except those in `not_logged`."""
        for name in self.fields:
            value = getattr(self, name)
            if value is not None and name not in self.not_logged:
                yield name, value

    def shown_details(self, *, handler_errors: bool = False) -> dict[str, Any]:
        """Return the details that may be shown. `handler_errors` allows the text of an error that a handler raised.

        Such a text may quote the payload, and payloads never appear in logs.
        """
        return dict(self.details())

    def sentence(self) -> str:
        """Return this event in words, for people. Computed only where it is shown.

        It contains no text of other programs: that is in the field `detail`, if it may be shown at all. The exceptions
        are a failed attempt to connect and a router that is not ready, whose sentences are about such a text. A kind of
        an embedding program has its help text.
        """
        return (type(self).__doc__ or type(self).__name__).strip().splitlines()[0]


Emit = Callable[[Event], None]
