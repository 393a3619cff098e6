"""Handlers that take a JSON body as a value of a type, and return values that become JSON."""

from __future__ import annotations

import datetime
import json
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Generator, Iterable, Iterator
from contextvars import copy_context
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from functools import partial, wraps
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, Required, TypedDict, TypeVar

import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    HttpUrl,
    RootModel,
    field_serializer,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, PydanticKnownError, core_schema

from router_trio import Router, Settings
from router_trio.errors import ConfigurationError, HandlerError, InvalidBodyError
from router_trio.errors.quotes import LONGEST_TEXT
from router_trio.message import Message
from router_trio.routing.handlers import json_types
from router_trio.routing.handlers.answers import MOST_ANSWERS, answers_of
from router_trio.routing.handlers.bodies import typed, types_of
from router_trio.routing.handlers.calls import Blocked, begin, finished, is_async
from router_trio.routing.handlers.json_types import LONGEST_ERROR, MOST_DESCRIBED, json_type
from router_trio.routing.handlers.loading import load_handler
from router_trio.routing.handlers.scopes import scopes_of_task
from router_trio.routing.handlers.tracebacks import place_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterable as OnlyForCheckers


class Line(BaseModel):
    sku: str
    count: int = 1


class Order(BaseModel):
    id: int
    lines: list[Line] = []
    customer: str | None = Field(default=None, validation_alias="customerName", serialization_alias="customerName")


ADA = Order.model_validate({"id": 7, "customerName": "ada"})


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: Literal["a", "b"] = "a"


@dataclass
class Point:
    x: int
    y: int = 0


class Size(TypedDict):
    width: float


class Box(TypedDict, total=False):
    size: Required[Size]
    label: str


class Parcel(msgspec.Struct):
    weight: int
    tags: list[str] = []


class Kind(Enum):
    A = "a"


class HasPayload(Protocol):
    payload: bytes


Anything = TypeVar("Anything")
OrMessage = Message | None


def message(payload: Any, subject: str = "in.x") -> Message:
    return Message(subject, payload if isinstance(payload, bytes) else json.dumps(payload).encode())


def taken(handler: Callable[..., Any], payload: Any) -> list[Message]:
    """Call a handler as the router does."""

    async def call() -> list[Message]:
        scopes, context = scopes_of_task(), copy_context()
        answer = begin(typed(handler), message(payload), context)
        return await finished(answer, scopes, context) if isinstance(answer, Blocked) else answers_of(answer)

    return trio.run(call)


def body_of(annotation: Any) -> Callable[..., Any]:
    """Return a handler that takes a body of this type and shows what it got."""

    def show(body: Any) -> Message:
        return Message("out", repr(body).encode())

    show.__annotations__["body"] = annotation
    return show


def answering(annotation: Any, answer: Any) -> Callable[..., Any]:
    """Return a handler of messages that returns `answer`, and is annotated to return this type."""

    def answers(message: Message) -> Any:
        return answer

    answers.__annotations__["return"] = annotation
    return answers


def refusal_of(annotation: Any, payload: Any) -> str:
    with pytest.raises(InvalidBodyError) as refused:
        taken(body_of(annotation), payload)
    assert refused.value.__context__ is None, "the error of the library quotes the value"
    return str(refused.value)


# --- bodies ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("annotation", "payload", "value"),
    [
        (Order, {"id": 7, "lines": [{"sku": "a"}]}, Order(id=7, lines=[Line(sku="a")])),
        (Order | None, None, None),
        (Point, {"x": 1}, Point(1)),
        (Size, {"width": 2}, Size(width=2.0)),
        (list[Box], [{"size": {"width": 1}}], [{"size": {"width": 1.0}}]),
        (Parcel, {"weight": 3}, Parcel(3)),
        (list[Parcel], [{"weight": 3}], [Parcel(3)]),
        (dict, {"a": [1]}, {"a": [1]}),
        (dict[str, int], {"a": 1}, {"a": 1}),
        (list, [1, "a"], [1, "a"]),
        (list[Line], [{"sku": "a"}], [Line(sku="a")]),
        (int, 7, 7),
        (Kind, "a", Kind.A),
        (RootModel[list[int]], [1], RootModel[list[int]]([1])),
        (Annotated[int, Field(gt=3)], 4, 4),
    ],
)
def test_a_json_body_is_decoded_into_the_annotated_type(annotation: Any, payload: Any, value: Any) -> None:
    assert taken(body_of(annotation), payload) == [Message("out", repr(value).encode())]


@pytest.mark.parametrize(
    "annotation",
    [
        *(Message, Any, object, Message | None, OrMessage, Annotated[Message, "read only"], Message | Order),
        *(Anything, HasPayload, "Message", "Message | None", "Annotated[Message, 7]"),
    ],
)
@pytest.mark.parametrize(
    "returned",
    [
        *(
            Message,
            Message | None,
            None,
            list[Message],
            tuple[Message, Message],
            tuple[Message, ...],
            Iterator[Message],
        ),
        *(Generator[Message, None, None], Iterable[Message], Any, object, Anything, "Message | None", "list[Message]"),
        *(
            Message | list[Message] | None,
            set[Message],
            Awaitable[Message],
            Iterator[Message | None],
            deque[Message],
            Awaitable,
        ),
    ],
)
def test_a_handler_of_messages_stays_the_same_object(annotation: Any, returned: Any) -> None:
    handler = body_of(annotation)
    handler.__annotations__["return"] = returned
    assert typed(handler) is handler


def without_annotations(message, more=1):  # type: ignore[no-untyped-def]
    return message


@pytest.mark.parametrize("handler", [without_annotations, lambda message: message, dict, print, Message])
def test_a_function_without_annotations_takes_messages(handler: Any) -> None:
    assert typed(handler) is handler


UNDER_TYPE_CHECKING = """
from __future__ import annotations

def handle(message: Message, pool: asyncpg.Pool | None = None) -> Iterator[Message] | Sequence[Message] | None:
    return None
"""


def test_names_of_messages_may_be_imported_for_type_checkers_only() -> None:
    module: dict[str, Any] = {}
    exec(UNDER_TYPE_CHECKING, module)
    assert typed(module["handle"]) is module["handle"]


class Method:
    def take(self, order: Order) -> Message:
        return Message("out", str(order.id).encode())

    def __call__(self, order: Order) -> Message:
        return self.take(order)


class AsyncCallable:
    async def __call__(self, order: Order) -> Message:
        await trio.lowlevel.checkpoint()
        return Message("out", str(order.id).encode())


def with_more(first: str, order: Order, more: int = 3) -> Message:
    return Message("out", str(order.id).encode())


async def asynchronous(order: Order) -> Message:
    await trio.lowlevel.checkpoint()
    return Message("out", str(order.id).encode())


def deferred(order: Order) -> Awaitable[Message]:
    return asynchronous(order)


def logged(handler: Any) -> Any:
    @wraps(handler)
    def call(*arguments: Any, **more: Any) -> Any:
        return handler(*arguments, **more)

    return call


@pytest.mark.parametrize(
    "handler",
    [
        *(Method().take, Method(), AsyncCallable(), partial(with_more, "a"), asynchronous, deferred),
        *(logged(Method().take), logged(asynchronous)),
    ],
)
def test_any_kind_of_function_may_take_a_body(handler: Any) -> None:
    assert taken(handler, {"id": 7}) == [Message("out", b"7")]


@pytest.mark.parametrize("handler", [asynchronous, AsyncCallable()])
def test_an_async_handler_stays_async(handler: Any) -> None:
    assert is_async(typed(handler))
    assert not is_async(typed(Method().take))


def test_a_decorator_that_decodes_by_itself_gets_the_message() -> None:
    def decoded(handler: Callable[[Order], Message]) -> Any:
        @wraps(handler)
        def call(message: Message) -> Message:
            return handler(Order.model_validate_json(message.payload))

        return call

    @decoded
    def take(order: Order) -> Message:
        return Message("out", str(order.id).encode())

    assert taken(take, {"id": 7}) == [Message("out", b"7")]


def test_a_second_parameter_is_passed_on() -> None:
    def take(order: Order, pool: str) -> Message:
        return Message("out", f"{order.id} {pool}".encode())

    called: Any = typed(take)
    assert called(message({"id": 7}), "pool").payload == b"7 pool"


def test_a_failure_is_at_the_place_of_the_handler() -> None:
    assert place_of(typed(asynchronous)) == place_of(asynchronous)


# --- annotations that can't be used ----------------------------------------------------------------------------------


def unknown(order: Ordr) -> None:  # type: ignore[name-defined]  # noqa: F821
    """Its annotation is misspelt."""


def only_for_checkers(order: OnlyForCheckers[int]) -> None:
    """Its annotation is known to type checkers only."""


def unknown_answer(message: Message) -> Answr:  # type: ignore[name-defined]  # noqa: F821
    """Its answer's annotation is misspelt."""


class Incomplete(BaseModel):
    part: Nowhere  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize(
    ("handler", "error"),
    [
        (unknown, "its parameter 'order' is annotated with Ordr, and name 'Ordr' is not defined; define or import it"),
        (only_for_checkers, ".*OnlyForCheckers.*not for type checkers only"),
        (unknown_answer, "its answer is annotated with Answr, and name 'Answr' is not defined"),
        (body_of("Order["), "its parameter 'body' is annotated with Order.*, which is no type: "),
        (body_of(bytes), "its parameter 'body' is bytes, and a body is JSON: take the Message"),
        (body_of(str), "its parameter 'body' is str"),
        (body_of(Incomplete), "its parameter 'body' is Incomplete, which can't be used: .*Nowhere"),
        (body_of(trio.Event), "its parameter 'body' is Event, which can't be used: .*Event'>; use a pydantic model"),
        (answering(bytes, b""), r"it returns bytes, and an answer is JSON: return message.replace\(payload=...\)"),
        (answering(str | None, ""), "it returns str"),
        (answering(Awaitable[bytes], b""), "it returns bytes"),
        (answering(trio.Event, 1), "its answer is Event, which can't be used: "),
    ],
)
def test_an_annotation_that_can_not_be_used_is_refused_before_the_handler_is_called(handler: Any, error: str) -> None:
    with pytest.raises(HandlerError, match=error):
        typed(handler)
    with pytest.raises(ConfigurationError, match=rf"routes\[0\].handler: handler .*{handler.__name__}': {error}"):
        Router(Settings(connections={"main": {"servers": ["nats://h"]}})).route("in", to="out")(handler)


def test_a_handler_that_a_configuration_names_is_refused_by_its_name() -> None:
    with pytest.raises(HandlerError, match=r"handler 'tests.unit.routing.test_typed_bodies:unknown': its parameter"):
        load_handler(f"{__name__}:unknown")


def test_a_handler_that_a_configuration_names_takes_a_body() -> None:
    assert is_async(load_handler(f"{__name__}:asynchronous"))
    assert load_handler(f"{__name__}:without_annotations") is without_annotations


# --- bodies that do not fit ------------------------------------------------------------------------------------------


def refuse(value: Any) -> Any:
    raise ValueError(f"refused: {value}")


def refuse_in_its_own_words(value: Any) -> Any:
    raise PydanticCustomError("int_type", "refused: {value}", {"value": str(value)})


def refuse_as_too_large(value: Any) -> Any:
    raise PydanticKnownError("less_than", {"lt": value})


def refuse_with_a_custom_limit(value: Any) -> Any:
    raise PydanticCustomError("less_than", "refused: {lt}", {"lt": value})


def refuse_as_too_long(value: Any) -> Any:
    raise PydanticKnownError("too_long", {"field_type": str(value), "max_length": value, "actual_length": value})


def refuse_as_another_tag(value: Any) -> Any:
    raise PydanticKnownError("union_tag_invalid", {"discriminator": "x", "tag": "x", "expected_tags": str(value)})


class Whole(BaseModel):
    first: str
    second: str

    @model_validator(mode="after")
    def check(self) -> Whole:
        assert self.first == self.second, f"{self.first} is not {self.second}"
        return self


class Checked(msgspec.Struct):
    name: str

    def __post_init__(self) -> None:
        raise ValueError(f"refused - at `$.{self.name}`")


class Closed(msgspec.Struct, forbid_unknown_fields=True):
    x: int = 0


class Left(msgspec.Struct, tag="left"):
    x: int


class Right(msgspec.Struct, tag="right"):
    x: int


class One(BaseModel):
    kind: Literal["one"]
    x: int


class Two(BaseModel):
    kind: Literal["two"]
    x: int


OneOrTwo = Annotated[One | Two, Field(discriminator="kind")]


@pytest.mark.parametrize(
    ("annotation", "payload", "text"),
    [
        (Order, {"lines": [{}]}, "$.id: Field required; $.lines[0].sku: Field required"),
        (Order, {"id": "x"}, "$.id: Input should be a valid integer, unable to parse string as an integer"),
        (Order, {"id": 1, "customerName": 7}, "$.customerName: Input should be a valid string"),
        (Order, [], "$: Input should be an object"),
        (Order, b"", "the body is not JSON"),
        (Order, b"{", "the body is not JSON"),
        (Order, b'{"id": "\xff"}', "the body is not JSON"),
        (list[int], list("abcde"), "$[0]: *; $[1]: *; $[2]: *; and 2 more"),
        (list[int], ["a"] * (MOST_DESCRIBED + 1), "it does not fit list[int] in 101 places"),
        (dict[str, int], {"a": "x"}, "$[*]: Input should be a valid integer, unable to parse string as an integer"),
        (dict[int, int], {"a": 1}, "$[*]: Input should be a valid integer, unable to parse string as an integer"),
        (dict[str, Line], {"a": {}}, "$[*].sku: Field required"),
        (Strict, {"secret": 1}, "$[*]: Extra inputs are not permitted"),
        (Strict, {"kind": "secret"}, "$.kind: Input should be 'a' or 'b'"),
        (int | Line, "x", "$: Input should be a valid integer*; $: Input should be an object*"),
        (OneOrTwo, {"kind": "secret"}, "$: Input tag should be one of 'one', 'two'"),
        (OneOrTwo, {"kind": "two", "x": "x"}, "$.x: Input should be a valid integer*"),
        (Annotated[str, AfterValidator(refuse)] | None, "secret", "$: a validator refused it"),
        (Annotated[int, AfterValidator(refuse_in_its_own_words)], 4111, "$: Input should be a valid integer"),
        (Annotated[int, AfterValidator(refuse_as_too_large)], 4111, "$: Input should be less than ..."),
        (Annotated[str, AfterValidator(refuse_as_too_large)] | None, "secret", "$: Input should be less than ..."),
        (Annotated[float, AfterValidator(refuse_with_a_custom_limit)], 1e30, "$: Input should be less than ..."),
        (
            Annotated[int, AfterValidator(refuse_as_too_long)],
            4111,
            "$: ... should have at most ... items after validation",
        ),
        (Annotated[str, AfterValidator(refuse_as_another_tag)] | None, "secret", "$: Input tag should be one of ..."),
        (Annotated[int, Field(lt=5)], 4111, "$: Input should be less than 5"),
        (Annotated[float, Field(ge=0.5)], 0.25, "$: Input should be greater than or equal to 0.5"),
        (Annotated[Decimal, Field(max_digits=3)], 4111, "$: Decimal input should have no more than 3 digits in total"),
        (Annotated[Fraction, Field(lt=3)], "4111", "$: Input should be less than 3"),
        (
            Annotated[datetime.date, Field(lt=datetime.date(2020, 1, 1))],
            "2022-02-02",
            "$: Input should be less than 2020-01-01",
        ),
        (
            Annotated[datetime.datetime, Field(lt=datetime.datetime(2020, 1, 1, 12, tzinfo=datetime.UTC))],
            "2022-02-02T00:00:00Z",
            "$: Input should be less than 2020-01-01T12:00:00Z",
        ),
        (
            Annotated[datetime.timedelta, Field(lt=datetime.timedelta(hours=1))],
            "PT2H",
            "$: Input should be less than 1 hour",
        ),
        (Annotated[str, Field(pattern="^a.$")] | None, "secret", "$: String should match pattern '^a.$'"),
        (Annotated[list[int], Field(max_length=1)], [1, 2], "$: List should have at most 1 item after validation"),
        (Annotated[list[int], Field(min_length=2)], [1], "$: List should have at least 2 items after validation"),
        (
            Annotated[deque[int], Field(max_length=1)],
            [1, 2],
            "$: Deque should have at most 1 item after validation",
        ),
        (HttpUrl, "secret://x", "$: URL scheme should be 'http' or 'https'"),
        (Kind, "secret", "$: Input should be 'a'"),
        (Literal[1, "a"], "secret", "$: Input should be 1 or 'a'"),
        (OneOrTwo, {}, "$: Unable to extract tag using discriminator 'kind'"),
        (Whole, {"first": "secret", "second": ""}, "$: a validator refused it"),
        (uuid.UUID, "secret", "$: Input should be a valid UUID"),
        (datetime.datetime, "secret", "$: Input should be a valid datetime or date"),
        (Decimal, "secret", "$: Input should be a valid decimal"),
        (
            dict[str, Annotated[str, Field(max_length=2)]],
            {"a": "secret"},
            "$[*]: String should have at most 2 characters",
        ),
        (Parcel, {}, "$: Object missing required field `weight`"),
        (Parcel, {"weight": "x"}, "$.weight: Expected `int`, got `str`"),
        (list[Parcel], [{"weight": 1, "tags": [1]}], "$[0].tags[0]: Expected `str`, got `int`"),
        (dict[str, Parcel], {"secret": {"weight": ""}}, "$[*].weight: Expected `int`, got `str`"),
        (dict[int, Parcel], {"secret": {"weight": 1}}, "$: Expected `int`, got `str`"),
        (Parcel, b"{", "the body is not JSON"),
        (Parcel, b'{"tags": ["\xff"]}', "the body is not JSON"),
        (Checked, {"name": "secret"}, "$: a validator refused it"),
        (list[Checked], [{"name": "secret"}], "$[0]: a validator refused it"),
        (Closed, {"secret": 1}, "$: Object contains an unknown field"),
        (Closed, {"a` - at `$.secret": 1}, "$[*]: Object contains an unknown field"),
        (Left | Right, {"type": "secret", "x": 1}, "$.type: Invalid value"),
        (Parcel | Kind, "secret", "$: Invalid value"),
        (Parcel | uuid.UUID, "secret", "$: Invalid UUID"),
    ],
)
def test_a_body_that_does_not_fit_is_refused_with_the_path_and_what_is_expected(
    annotation: Any, payload: Any, text: str
) -> None:
    found = refusal_of(annotation, payload)
    if "*" in text.replace("[*]", ""):
        for part in text.replace("[*]", "\0").split("*"):
            assert part.replace("\0", "[*]") in found
    else:
        assert found == text
    assert "secret" not in found


@pytest.mark.parametrize(
    ("annotation", "payload", "text"),
    [
        (Box, {"label": "a"}, "$.size: Field required"),
        (Box, {"size": {}}, "$.size.width: Field required"),
        (dict[str, Box], {"a": {"size": {"width": 1}, "label": 1}}, "$[*].label: Input should be a valid string"),
    ],
)
def test_keys_of_a_typed_dict_may_be_required_or_not(annotation: Any, payload: Any, text: str) -> None:
    assert refusal_of(annotation, payload) == text


class Nested(BaseModel):
    inner: Nested | None = None


class NestedStruct(msgspec.Struct):
    inner: NestedStruct | None = None


@pytest.mark.parametrize("annotation", [Nested, NestedStruct, Any | None, dict[str, Any]])
def test_a_body_that_is_nested_too_deeply_is_refused(annotation: Any) -> None:
    deep = b'{"inner":' * 100_000 + b"null" + b"}" * 100_000
    if annotation == Any | None:
        annotation = list[Any]
        deep = b"[" * 100_000 + b"]" * 100_000
    assert refusal_of(annotation, deep) == "the body is nested too deeply"


def test_a_refusal_has_a_bounded_length() -> None:
    name = "n" * 10_000
    annotation = TypedDict("annotation", {name: int})  # type: ignore[misc]
    assert len(refusal_of(annotation, {})) <= LONGEST_ERROR
    assert len(refusal_of(tuple[annotation, annotation, annotation], [{}, {}, {}])) <= LONGEST_TEXT


def test_a_large_body_is_not_parsed_again_for_an_error_that_has_no_path(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[object] = []
    monkeypatch.setattr(json_types, "from_json", parsed.append)
    assert refusal_of(Order, [1] * 1000) == "$: Input should be an object"
    assert not parsed


def test_an_error_in_a_validator_is_an_error_of_the_handler() -> None:
    def fail(value: int) -> int:
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        taken(body_of(Annotated[int, AfterValidator(fail)]), 7)


SECRET = "s3cr3t"
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.floats(allow_nan=False),
    st.integers(10**8, 10**12),
    st.text().map(lambda t: t + SECRET),
)
bodies = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(
            st.one_of(
                st.sampled_from(["id", "lines", "sku", "kind", "x", "type", "weight"]),
                st.text().map(lambda t: t + SECRET),
            ),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=12,
)
TYPES: list[Any] = [
    *(Order, Point, Size, Parcel, Strict, Whole, OneOrTwo, Kind, uuid.UUID, datetime.date, datetime.timedelta, Decimal),
    *(
        dict[str, Order],
        dict[int, Line],
        list[Line | int],
        list[Parcel],
        dict[str, Parcel],
        Left | Right,
        Closed,
        Checked,
    ),
    *(tuple[int, Order], set[int], Order | Whole | int, Annotated[str, AfterValidator(refuse)], dict[str, Checked]),
]
KINDS = [json_type(annotation, "T") for annotation in TYPES]


def error_of(kind: type[Exception], call: Callable[[Any], Any], value: Any) -> str:
    """Return the text of the error that a call raises, "" if it raises none."""
    try:
        call(value)
    except kind as error:
        return str(error)
    return ""


@given(body=bodies, number=st.integers(0, len(TYPES) - 1))
def test_no_refusal_quotes_a_value_or_a_key_of_the_body(body: Any, number: int) -> None:
    text = error_of(InvalidBodyError, KINDS[number].decode, json.dumps(body).encode())
    assert SECRET not in text
    assert [value for value in numbers_of(body) if str(value) in text] == []


@given(value=bodies, number=st.integers(0, len(TYPES) - 1))
def test_no_refusal_quotes_a_value_or_a_key_of_an_answer(value: Any, number: int) -> None:
    text = error_of(HandlerError, KINDS[number].encode, value)
    assert SECRET not in text
    assert [one for one in numbers_of(value) if str(one) in text] == []


def numbers_of(value: Any) -> Iterator[int]:
    if type(value) is int:
        yield value
    elif isinstance(value, list):
        for one in value:
            yield from numbers_of(one)
    elif isinstance(value, dict):
        for one in value.values():
            yield from numbers_of(one)


# --- answers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("annotation", "answer", "payloads"),
    [
        (Order, ADA, [b'{"id":7,"lines":[],"customerName":"ada"}']),
        (Order, {"id": 7}, [b'{"id":7,"lines":[],"customerName":null}']),
        (Order | None, None, []),
        (Order | None, Order(id=7), [b'{"id":7,"lines":[],"customerName":null}']),
        (Point, Point(1, 2), [b'{"x":1,"y":2}']),
        (Size, {"width": 1.5}, [b'{"width":1.5}']),
        (Parcel, Parcel(3), [b'{"weight":3,"tags":[]}']),
        (Parcel | None, None, []),
        (list[Parcel], [Parcel(3)], [b'[{"weight":3,"tags":[]}]']),
        (dict, {"a": 1}, [b'{"a":1}']),
        (dict[str, float], {"a": 1}, [b'{"a":1.0}']),
        (list[Line], [Line(sku="a"), Line(sku="b")], [b'[{"sku":"a","count":1},{"sku":"b","count":1}]']),
        (list[int], [], [b"[]"]),
        (int, 7, [b"7"]),
        (bool, False, [b"false"]),
        (dict[str, float], {"a": float("inf")}, [b'{"a":null}']),
        (Order | Message, Message("out", b"a"), [b"a"]),
        (Order | list[Message], [Message("out", b"a"), Message("out", b"b")], [b"a", b"b"]),
        (Order | list[Message], [], []),
        (Message | dict[str, int] | None, {"a": 1}, [b'{"a":1}']),
        (list[Any], [Message("out", b"a")], [b"a"]),
        (list, [1], [b"[1]"]),
        (list, [], []),
        (Iterator[Line], iter([Line(sku="a"), Line(sku="b")]), [b'{"sku":"a","count":1}', b'{"sku":"b","count":1}']),
        (Iterable[int], (n for n in (1, 2)), [b"1", b"2"]),
        (Iterable[int], [1, 2], [b"[1,2]"]),
        (Iterator[int | Message], iter([1, Message("out", b"a")]), [b"1", b"a"]),
        (Iterator, iter([1, Parcel(3)]), [b"1", b'{"weight":3,"tags":[]}']),
        (Awaitable[int], 7, [b"7"]),
        ("Order | None", None, []),
    ],
)
def test_a_value_becomes_the_payload_of_the_message(annotation: Any, answer: Any, payloads: list[bytes]) -> None:
    answers = taken(answering(annotation, answer), b"x")
    assert [one.payload for one in answers] == payloads


def test_the_answer_keeps_what_the_message_has_besides_its_payload() -> None:
    came = Message(
        "in.7", b'{"x": 1}', reply="r", connection="edge", stream="S", sequence=7, deliveries=2, timestamp=1.0
    )

    def move(point: Point) -> Point:
        return Point(point.y, point.x)

    assert typed(move)(came) == came.replace(payload=b'{"x":0,"y":1}')


@pytest.mark.parametrize(
    ("answer", "payloads"),
    [
        (None, []),
        ([], []),
        (Message("out", b"a"), [b"a"]),
        ([Message("out", b"a"), Message("out", b"b")], [b"a", b"b"]),
        ({"a": 1}, [b'{"a":1}']),
        ([1, 2], [b"[1,2]"]),
        (ADA, [b'{"id":7,"lines":[],"customerName":"ada"}']),
        (Point(1), [b'{"x":1,"y":0}']),
        ({"parcel": Parcel(3)}, [b'{"parcel":{"weight":3,"tags":[]}}']),
        (iter([{"a": 1}, Message("out", b"a")]), [b'{"a":1}', b"a"]),
    ],
)
def test_without_an_annotation_the_value_decides(answer: Any, payloads: list[bytes]) -> None:
    def take(body: dict[str, int]):  # type: ignore[no-untyped-def]
        return answer

    assert [one.payload for one in taken(take, {})] == payloads


class Broken(BaseModel):
    x: int = 1

    @field_serializer("x")
    def write(self, value: int) -> int:
        raise RuntimeError("secret")


circular: list[Any] = []
circular.append(circular)


@pytest.mark.parametrize(
    ("annotation", "answer", "error"),
    [
        (Order, {"id": "secret"}, r"^the answer does not fit Order: \$.id: Input should be a valid integer"),
        (Order, None, "^the answer does not fit Order: .: Input should be an object"),
        (list[int], {"secret": 1}, r"^the answer does not fit list\[int\]: \$: Input should be an array$"),
        (dict[int, int], {4111: "secret"}, r"^the answer does not fit dict\[int, int\]: \$\[\*\]: Input should"),
        (Parcel, {"weight": "secret"}, r"^the answer does not fit Parcel: \$.weight: Expected `int`, got `str`$"),
        (Parcel, object(), "^the answer can't be written as JSON: Encoding objects of type object is unsupported$"),
        (dict[str, Any], {"a": object()}, "JSON: Unable to serialize unknown type: <class 'object'>$"),
        (dict[str, Any], {"a": b"\xff"}, "JSON: invalid utf-8 sequence"),
        (list[Any], circular, "JSON: Circular reference detected"),
        (Broken, Broken(), "JSON: PydanticSerializationError$"),
        (
            dict,
            b"secret",
            r"; this one returned bytes; return message.replace\(payload=...\)$",
        ),
        (Iterator[int], iter(["secret"]), r"^the answer does not fit int: \$: Input should be a valid integer"),
        (Iterator[int], 7, "this one returned int"),
        (Message | Order, 7, "the answer does not fit Order: "),
    ],
)
def test_an_answer_that_does_not_fit_or_has_no_json_fails_its_message(annotation: Any, answer: Any, error: str) -> None:
    with pytest.raises(HandlerError, match=error) as failed:
        taken(answering(annotation, answer), b"x")
    assert "secret" not in str(failed.value)
    assert "4111" not in str(failed.value)


@pytest.mark.parametrize("answer", ["secret", b"secret", object(), {"a": {1: object()}}])
def test_without_an_annotation_a_value_without_json_fails_its_message(answer: Any) -> None:
    def take(body: dict[str, int]):  # type: ignore[no-untyped-def]
        return answer

    with pytest.raises(
        HandlerError, match=r"this one returned (str|bytes); return |written as JSON: .*object"
    ) as failed:
        taken(take, {})
    assert "secret" not in str(failed.value)


def test_a_generator_of_values_is_bounded() -> None:
    def endless(body: dict[str, int]) -> Iterator[int]:
        while True:
            yield 1

    with pytest.raises(HandlerError, match=f"at most {MOST_ANSWERS:,} messages"):
        taken(endless, {})


# --- schemas ---------------------------------------------------------------------------------------------------------


def test_the_schemas_of_body_and_answer_are_known() -> None:
    def take(order: Order) -> list[Parcel]:
        return []

    found = types_of(take).schemas
    assert found["body"]["required"] == ["id"]
    assert "customerName" in found["body"]["properties"]
    assert found["answer"]["type"] == "array"
    assert types_of(without_annotations).schemas == {}


class NoSchema(int):
    @classmethod
    def __get_pydantic_core_schema__(cls, *_: Any) -> CoreSchema:
        return core_schema.int_schema()

    @classmethod
    def __get_pydantic_json_schema__(cls, *_: Any) -> Any:
        raise RuntimeError("it has none")


def test_a_type_without_a_schema_can_be_used() -> None:
    handler = body_of(NoSchema)
    assert types_of(handler).schemas == {}
    assert taken(handler, 7) == [Message("out", b"7")]
