"""Handlers that take and return values instead of messages: JSON bodies and answers, by annotations.

The annotation of the first parameter is the type of the body, unless it is missing, `Any` or `Message`. That of the
return is the type of the answer. Annotations are read once, when the handler is loaded. A handler of messages is left
as it is, so typed bodies cost it nothing.
"""

from __future__ import annotations

import builtins
import collections.abc
import inspect
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial, wraps
from inspect import Parameter
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Never, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from router_trio.errors import HandlerError
from router_trio.errors.quotes import excerpt, text_of_error
from router_trio.message import Message
from router_trio.routing.handlers.calls import Handler, is_async

if TYPE_CHECKING:
    from router_trio.routing.handlers.json_types import JsonAnswer, JsonType

_TEXTS = (bytes, bytearray, memoryview, str)
_GENERATED = (collections.abc.Iterator, collections.abc.Generator, collections.abc.Iterable)
_SEVERAL = (
    *_GENERATED,
    *(collections.abc.Sequence, collections.abc.MutableSequence, collections.abc.Collection, collections.abc.Set),
    *(list, tuple, set, frozenset),
)
_NOTHING = (None, NoneType, Never, NoReturn, Ellipsis)
_FROM_OTHER_MODULES = {
    "Message": Message,
    **{name: getattr(collections.abc, name) for name in collections.abc.__all__},
    **{name: getattr(typing, name) for name in ("Any", "Optional", "Union")},
}
"""Names that annotations of messages need. A module may import them for type checkers only, as linters advise."""


@dataclass(frozen=True, slots=True)
class Types:
    """The types of a handler. `body` is None if it takes messages, `answer` if it returns no values.

    `each` is the type of the values that it generates, which become a message each. `by_value`: a list may be a value
    or several messages. `required`: None is not a valid answer, and does not filter the message out.
    """

    body: JsonType | None = None
    answer: JsonAnswer | None = None
    each: JsonAnswer | None = None
    by_value: bool = False
    required: bool = False

    @property
    def answers(self) -> bool:
        """Return True if the handler may return values."""
        return self.answer is not None or self.each is not None

    @property
    def schemas(self) -> dict[str, dict[str, Any]]:
        """The JSON schemas of the `body` and of an `answer`, as far as they are values and have a schema."""
        answer = self.answer or self.each
        found = {
            "body": None if self.body is None else self.body.schema("validation"),
            "answer": None if answer is None else answer.schema("serialization"),
        }
        return {part: schema for part, schema in found.items() if schema is not None}


def typed(handler: Callable[..., Any]) -> Handler:
    """Return a handler that takes and returns messages: `handler` itself, if it does.

    What is returned decodes the body, and fails the message with `InvalidBodyError` if it does not fit. Raises
    `HandlerError` if an annotation can't be resolved, or says nothing about JSON.
    """
    types = types_of(handler)
    if types.body is None and not types.answers:
        return handler
    taken = _taker(types.body)
    answered = _Answers(types).messages if types.answers else _as_it_is

    async def later(message: Message, answer: Any) -> Any:
        return answered(message, await answer)

    if is_async(handler):

        @wraps(handler)
        async def call_async(message: Message, *more: Any) -> Any:
            return answered(message, await handler(taken(message), *more))

        return call_async

    @wraps(handler)
    def call(message: Message, *more: Any) -> Any:
        answer = handler(taken(message), *more)
        return later(message, answer) if hasattr(answer, "__await__") else answered(message, answer)

    return call


def types_of(handler: Callable[..., Any]) -> Types:
    """Return the types of a handler, by its annotations. Raises `HandlerError` as `typed` does."""
    found = _annotations(handler)
    if found is None:
        return Types()
    name, taken, returned = found
    if _takes_message(taken):
        return _with_answers(None, returned)
    if _bare(taken) in _TEXTS:
        shown = _name_of(taken)
        raise HandlerError(
            f"its parameter {name!r} is {shown}, and a body is JSON: take the Message, which has a payload"
        )
    return _with_answers(_json_type(taken, f"its parameter {name!r}"), returned)


# --- calls ---


def _taker(body: JsonType | None) -> Callable[[Message], Any]:
    """Return a function that takes the body out of a message. It raises `InvalidBodyError`."""
    if body is None:
        return _itself
    decode = body.decode

    def taken(message: Message) -> Any:
        return decode(message[1])

    return taken


class _Answers:
    """Makes messages of what a handler returns."""

    def __init__(self, types: Types) -> None:
        self._encode = None if types.answer is None else types.answer.encode
        self._encode_each = None if types.each is None else types.each.encode
        self._by_value = types.by_value
        self._required = types.required

    def messages(self, message: Message, answer: Any) -> Any:
        """Return an answer as messages, for `answers_of`, which refuses anything else. Raises `HandlerError`."""
        if isinstance(answer, Message) or (answer is None and not self._required):
            return answer
        if self._encode_each is not None and isinstance(answer, Iterator):
            return _each(message, answer, self._encode_each)
        if self._encode is None or type(answer) in _TEXTS or self._are_messages(answer):
            return answer
        return message.replace(payload=self._encode(answer))

    def _are_messages(self, answer: Any) -> bool:
        if type(answer) not in (list, tuple):
            return False
        return isinstance(answer[0], Message) if answer else self._by_value


def _each(message: Message, answers: Iterator[Any], encode: Callable[[Any], bytes]) -> Iterator[Message]:
    for one in answers:
        yield one if isinstance(one, Message) else message.replace(payload=encode(one))


def _itself(message: Message) -> Message:
    return message


def _as_it_is(message: Message, answer: Any) -> Any:
    return answer


# --- annotations ---


def _with_answers(body: JsonType | None, returned: Any) -> Types:
    """Return the types of a handler with this annotation of what it returns."""
    bare = _bare(returned)
    if (get_origin(bare) or bare) in (collections.abc.Awaitable, collections.abc.Coroutine):
        returned = (get_args(bare) or (Any,))[-1]
        bare = _bare(returned)
    if _is_open(bare):
        if body is None:
            return Types()
        return Types(body, _any_of([Any]), _any_of([Any]), by_value=True)
    found = _Returned()
    for one in _members(returned):
        found.add(one)
    return found.types(body)


class _Returned:
    """The members of a union of answers, by what becomes of them."""

    def __init__(self) -> None:
        self._values: list[Any] = []
        self._generated: list[Any] = []
        self._by_value = False
        self._filters = False

    def add(self, one: Any) -> None:
        """Add one member. Raises `HandlerError` if it says nothing about JSON."""
        bare = _bare(one)
        if bare in _TEXTS:
            shown = _name_of(bare)
            raise HandlerError(f"it returns {shown}, and an answer is JSON: return message.replace(payload=...)")
        if bare in _NOTHING:
            self._filters = True
        elif _is_several(bare):
            self._add_several(one)
        elif not _is_message(bare):
            self._values.append(one)

    def _add_several(self, one: Any) -> None:
        kind, parts = get_origin(_bare(one)) or _bare(one), get_args(_bare(one))
        yielded = parts[:1] if kind is collections.abc.Generator else parts or (Any,)
        items = [item for part in yielded for item in _members(part)]
        values = [item for item in items if not _is_message(item) and _bare(item) not in _NOTHING]
        of_messages, is_open = any(map(_is_message, items)), any(_is_open(_bare(item)) for item in values)
        self._by_value |= of_messages or is_open
        if kind in _GENERATED:
            self._generated += values
        if of_messages or kind in (collections.abc.Iterator, collections.abc.Generator):
            return
        if is_open:
            self._values.append(Any)
        elif kind is collections.abc.Iterable:
            self._values.append(list[yielded[0]])  # type: ignore[valid-type]  # a type made at run time
        else:
            self._values.append(one)

    def types(self, body: JsonType | None) -> Types:
        """Return the types of a handler with these answers. Raises `HandlerError` if a type can't be used."""
        required = bool(self._values) and not self._filters and not self._by_value
        return Types(body, _any_of(self._values), _any_of(self._generated), self._by_value, required)


def _is_several(bare: Any) -> bool:
    kind = get_origin(bare) or bare
    is_iterable = isinstance(kind, type) and issubclass(kind, collections.abc.Iterable)
    return kind in _SEVERAL or (is_iterable and any(map(_is_message, get_args(bare))))


def _any_of(kinds: list[Any]) -> JsonAnswer | None:
    if not kinds:
        return None
    if any(_is_open(_bare(kind)) for kind in kinds):
        from router_trio.routing.handlers.json_types import AnyJson

        return AnyJson()
    return _json_type(Union[tuple(kinds)], "its answer")  # noqa: UP007 - made at run time


def _json_type(annotation: Any, where: str) -> JsonType:
    from router_trio.routing.handlers.json_types import json_type

    try:
        return json_type(annotation, _name_of(annotation))
    except HandlerError as error:
        raise HandlerError(f"{where} is {_name_of(annotation)}, which can't be used: {error}") from error


def _takes_message(annotation: Any) -> bool:
    return any(_is_open(bare) or _is_message(bare) for bare in map(_bare, _members(annotation)))


def _is_open(bare: Any) -> bool:
    """Return True if an annotation leaves the type open, so that a message may be meant."""
    return bare in (Any, object) or isinstance(bare, TypeVar) or getattr(bare, "_is_protocol", False) is True


def _is_message(annotation: Any) -> bool:
    return any(isinstance(bare, type) and issubclass(bare, Message) for bare in map(_bare, _members(annotation)))


def _members(annotation: Any) -> list[Any]:
    """Return the members of a union; of any other annotation, itself."""
    bare = _bare(annotation)
    if get_origin(bare) not in (Union, UnionType):
        return [annotation]
    return [one for member in get_args(bare) for one in _members(member)]


def _bare(annotation: Any) -> Any:
    """Return an annotation without metadata, and what the name of an alias stands for."""
    while True:
        if get_origin(annotation) is Annotated:
            annotation = get_args(annotation)[0]
        elif type(annotation).__name__ == "TypeAliasType":  # new in Python 3.12
            annotation = annotation.__value__
        else:
            return annotation


def _annotations(handler: Any) -> tuple[str, Any, Any] | None:
    """Return the name of the first parameter, its annotation and that of the return; None for foreign code."""
    if isinstance(handler, type):
        return None
    try:
        signature = inspect.signature(handler, follow_wrapped=False)
    except (TypeError, ValueError):
        return None
    first = next(iter(signature.parameters.values()), None)
    if first is None:
        return None
    if first.kind is Parameter.VAR_POSITIONAL:  # a wrapper of any function
        inner = getattr(handler, "__wrapped__", None)
        return None if inner is None else _annotations(inner)
    names = _names_of(handler)
    taken = _resolved(first.annotation, names, f"its parameter {first.name!r}")
    return first.name, taken, _resolved(signature.return_annotation, names, "its answer")


def _names_of(handler: Any) -> dict[str, Any]:
    """Return the global names of the function in which annotations of a handler were written."""
    while True:
        if isinstance(handler, partial):
            handler = handler.func
        elif inspect.ismethod(handler):
            handler = handler.__func__
        elif (inner := getattr(handler, "__wrapped__", None)) is not None:
            handler = inner  # `wraps` copies annotations
        elif (names := getattr(handler, "__globals__", None)) is not None:
            return typing.cast("dict[str, Any]", names)
        elif inspect.ismethod(called := getattr(handler, "__call__", None)):  # noqa: B004 - the method of an object
            handler = called
        else:
            return {}


def _resolved(annotation: Any, names: dict[str, Any], where: str) -> Any:
    """Return an annotation with all of its strings evaluated. Raises `HandlerError` if a name is unknown."""
    if annotation in (Parameter.empty, Any, Message):
        return Any if annotation is Parameter.empty else annotation
    known = {name: one for name, one in _FROM_OTHER_MODULES.items() if not (name in names or hasattr(builtins, name))}

    def holder() -> None: ...

    holder.__annotations__ = {"it": annotation}
    try:
        return get_type_hints(holder, names, known, include_extras=True)["it"]
    except NameError as error:
        raise HandlerError(
            f"{where} is annotated with {_name_of(annotation)}, and {text_of_error(error)}; define or import it at the "
            "top of its module, and not for type checkers only"
        ) from error
    except Exception as error:
        text = text_of_error(error)
        raise HandlerError(f"{where} is annotated with {_name_of(annotation)}, which is no type: {text}") from error


def _name_of(annotation: Any) -> str:
    """Return a type as people write it."""
    if isinstance(annotation, str):
        return excerpt(annotation)
    is_class = isinstance(annotation, type) and not get_args(annotation)
    return excerpt(annotation.__qualname__ if is_class else repr(annotation).replace("typing.", ""))
