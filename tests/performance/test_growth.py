"""No message that a sender can choose costs more than 20 ms, or more than in proportion to its size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest

from router_trio.errors import quotes
from router_trio.expressions.body import BodyReader, decode
from router_trio.expressions.expression import compile_expression
from router_trio.expressions.language.signatures import FUNCTIONS, OPERATORS, Overload
from router_trio.expressions.language.types import (
    BOOL,
    BYTES,
    DOUBLE,
    DURATION,
    DYN,
    INT,
    STRING,
    TIMESTAMP,
    UINT,
    Type,
    list_of,
)
from router_trio.expressions.message import STREAM_VARIABLES, Facts
from router_trio.expressions.output import header_of, payload_of
from router_trio.expressions.values import Duration, Timestamp, Uint
from router_trio.protocol import headers, message_ids
from router_trio.protocol.control_headers import ControlHeaders
from router_trio.protocol.framing import MAX_CONTROL_LINE
from router_trio.routing.dead_letters import OWN_LINES
from router_trio.routing.policy import hops
from router_trio.routing.policy.sticky import key_of
from router_trio.subjects import patterns
from router_trio.subjects.functions import FUNCTIONS as MAPPING_FUNCTIONS
from router_trio.subjects.mapping import Mapping
from router_trio.telemetry.traces import traceparent
from tests.performance.growth import BLOCKS, NAMES, PAYLOADS, TEXTS, Case, call, faults, written
from tests.unit.expressions.activation import Activation

MESSAGE = 1_000_000
"""Bytes of a message: the default limit of a server."""
HEADERS = 64 * 1024
"""Bytes of headers: the limit of a stream."""


# --- decoding ---

SCALARS = BodyReader({("total",): False, ("x", "y"): False})
MORE = BodyReader({("total",): False, ("x",): True})


@pytest.mark.parametrize("shape", PAYLOADS)
def test_a_body_is_decoded_in_bounded_time(shape: str) -> None:
    make = PAYLOADS[shape]
    readers: dict[str, Callable[[bytes], object]] = {"decode": decode, "scalars": SCALARS.record, "more": MORE.record}
    assert not faults([call(f"{name} of {shape}", read, make, MESSAGE) for name, read in readers.items()])


@pytest.mark.parametrize("shape", PAYLOADS)
def test_a_body_is_decoded_once_however_many_parts_read_it(shape: str) -> None:
    text = "[1, 2, 3].exists(i, body.total == i || has(body.x) && body.x == i) || has(body.y) || body == 1"
    assert not faults([on_facts(text, f"{text} on {shape}", lambda n: (b"", PAYLOADS[shape](n)))])


def on_facts(text: str, name: str, make: Callable[[int], tuple[bytes, bytes]], size: int = MESSAGE) -> Case:
    """Return the case of an expression on a message with a header block and a payload."""
    expression = compile_expression(text, STREAM_VARIABLES)
    reader = BodyReader(expression.body_fields)

    def prepare(n: int) -> Callable[[], Callable[[], object]]:
        block, payload = make(n)
        return lambda: lambda: expression.evaluate(Facts("a.b", block, payload, reader))

    return Case(name, prepare, size)


@pytest.mark.parametrize("shape", BLOCKS)
def test_expressions_look_at_headers_in_bounded_time(shape: str) -> None:
    many = " || ".join(f"headers['h{number}'] == 'x'" for number in range(100))
    loop = (
        "[1, 2, 3].all(a, [1, 2, 3].all(b, tokens.all(t, headers.first == t || 'x' in headers || headers.last == t)))"
    )
    whole = "headers.all(h, headers[h] == '' || true)"
    texts = (many, loop, whole)
    assert not faults(
        [on_facts(text, f"{text[:60]} on {shape}", lambda n: (BLOCKS[shape](n), b"{}")) for text in texts]
    )


# --- expressions ---

STRINGS: dict[str, Callable[[int], str]] = {
    **{
        name: TEXTS[name] for name in ("letters", "latin", "chinese", "not encodable", "digits", "spaces", "separators")
    },
    **{name: TEXTS[name] for name in ("dots", "signs", "exponents", "pairs")},
    "empty": lambda n: "",
    "b before letters": lambda n: "b" + "a" * (n // 2),
    "letters before b": lambda n: "a" * (n // 2) + "b",
    "b among letters": lambda n: "a" * (n // 4) + "b" + "a" * (n // 4),
    "a letter": lambda n: "a",
    "fifty letters and b": lambda n: "a" * 25 + "b" + "a" * 25,
    "a zone": lambda n: "Europe/Berlin",
    "a time": lambda n: "2026-01-31T08:00:00.123456789+01:00",
    "units": lambda n: "1h" * 100,
    "a number": lambda n: "9" * 399 + "x",
    "a pattern": lambda n: "(a|b)*a(a|b){12}c",
}
WORDS: dict[str, Callable[[int], str]] = {
    "numbers": lambda i: f"{i}" + "9" * 380,
    "almost numbers": lambda i: "9" * 390 + "x",
    "zones": lambda i: f"Europe/Berlin{i}",
    "times": lambda i: "2026-01-31T08:00:00.123456789+01:00",
    "units": lambda i: "1h" * 99,
    "patterns": lambda i: f"(a|b){{{i % 500}}}c{i}",
    "letters": lambda i: "a" * 200,
}
"""Short texts, each made from a number; a message may have many."""
VALUES: dict[Type, Any] = {
    INT: 2**62,
    UINT: Uint(2**63),
    DOUBLE: 1.7976931348623157e308,
    BOOL: True,
    TIMESTAMP: Timestamp(1_769_846_400_123_456_789),
    DURATION: Duration(86_399_123_456_789),
}
FIRST = {"letters", "chinese", "b among letters"}
SECOND = {"letters", "empty", "b before letters", "fifty letters and b", "a zone", "units"}


def among(choices: list[tuple[str, Callable[[int], Any]]], names: set[str]) -> list[tuple[str, Callable[[int], Any]]]:
    """Return the values that have one of these names, or all if none has."""
    return [one for one in choices if one[0] in names] or choices


OVERLOADS = {
    f"{one.id}{' as a method' if one.method else ''}": (function.name, one)
    for function in (*OPERATORS, *FUNCTIONS)
    for one in function.overloads
}


def given(kind: Type) -> list[tuple[str, Callable[[int], Any]]]:
    """Return the values for an argument of a type, by their names."""
    if kind == STRING:
        return list(STRINGS.items())
    if kind == BYTES:
        return [
            ("bytes", lambda n: b"a" * n),
            ("no utf-8", lambda n: b"\xc3" * n),
            ("umlauts", lambda n: b"\xc3\xa9" * (n // 2)),
        ]
    if kind.name == "list" or kind.is_parameter:
        return [
            ("ints", lambda n: list(range(n // 8))),
            ("texts", lambda n: ["a" * 20 for _ in range(n // 32)]),
            ("long texts", lambda n: ["a" * (n // 16) + "b" for _ in range(16)]),
            ("one long text twice", lambda n: ["a" * (n // 2), "a" * (n // 2)]),
        ]
    if kind.name == "map":
        return [("keys", lambda n: {str(i): i for i in range(n // 16)})]
    return [(kind.name, lambda n: VALUES[kind])]


def on_values(text: str, name: str, variables: dict[str, Type], make: Callable[[int], dict[str, Any]]) -> Case:
    """Return the case of an expression on variables."""
    expression = compile_expression(text, variables)

    def prepare(n: int) -> Callable[[], Callable[[], object]]:
        values = make(n)
        return lambda: lambda: expression.evaluate(Activation(values))

    return Case(name, prepare, MESSAGE)


def fitting(kind: Type) -> Type:
    """Return the type with its parameters filled in."""
    if kind.is_parameter:
        return DYN
    return Type(kind.name, tuple(fitting(one) if not one.is_parameter else DYN for one in kind.parameters))


def calls(name: str, overload: Overload) -> Iterator[Case]:
    """Yield the cases of an overload: one call, many side by side, in macros, and on many short texts."""
    text = written(name, overload)
    exact = dict(zip(NAMES, map(fitting, overload.takes), strict=False))
    dyn = dict.fromkeys(exact, DYN)
    choices = [given(kind) for kind in overload.takes]
    if len(choices) > 1:  # not each text with every other
        choices = [among(choices[0], FIRST), among(choices[1], SECOND), *(one[:1] for one in choices[2:])]
    if len(choices) > 2:
        choices = [choices[0][::2], choices[1][::2], *choices[2:]]
    looping = f"many.all(i, many.all(j, [{text}].size() == 1 || true))"
    for chosen in product(*choices):
        shapes = " and ".join(shape for shape, _ in chosen)

        def make(n: int, chosen: Any = chosen) -> dict[str, Any]:
            share = max(1, len([one for one in chosen if one[0] not in ("empty", "a letter")]))
            values = {one: shape(n // share) for one, (_, shape) in zip(NAMES, chosen, strict=False)}
            return {**values, "many": list(range(300))}

        yield on_values(looping, f"{looping} of {shapes}", {**exact, "many": list_of(INT)}, make)
        if all(one is shapes_of[0] for one, shapes_of in zip(chosen, choices, strict=True)):
            yield on_values(looping, f"{looping} of {shapes}, dyn", {**dyn, "many": list_of(INT)}, make)
        beside = "[" + ", ".join([text] * 30) + "].size() > 0"
        yield on_values(beside, f"{text} 30 times of {shapes}", exact, make)
    for place, kind in enumerate(overload.takes):
        if kind != STRING:
            continue
        for word, make_word in WORDS.items():
            others = {one: shape[0][1] for one, shape in zip(NAMES, choices, strict=False)}

            def make_words(n: int, make_word: Any = make_word, others: Any = others) -> dict[str, Any]:
                size = len(make_word(1))
                words = [make_word(i) for i in range(n // (size + 3))]
                return {**{one: shape(100) for one, shape in others.items()}, "words": words}

            each = text_with(text, NAMES[place])
            looped = f"words.all(w, [{each}].size() == 1 || true)"
            yield on_values(looped, f"{looped} of {word}", {**exact, "words": list_of(STRING)}, make_words)


def text_with(text: str, name: str) -> str:
    """Return the call with the variable of a macro in place of one of its own."""
    marks = " ()[],.?:!<>=+-*/%"
    out = []
    for at, character in enumerate(text):
        alone = (at == 0 or text[at - 1] in marks) and (at + 1 == len(text) or text[at + 1] in marks)
        out.append("w" if character == name and alone else character)
    return "".join(out)


@pytest.mark.parametrize("overload", OVERLOADS)
def test_a_function_of_expressions_takes_bounded_time(overload: str) -> None:
    assert not faults(list(calls(*OVERLOADS[overload])))


NESTED = [
    "many.all(x, many.all(y, x + y >= 0))",
    "many.all(x, many.all(y, many.all(z, x + y + z >= 0)))",
    "many.map(x, many.map(y, many))",
    "many.all(x, many == many)",
    "many.all(x, x.foo == 1 || x.bar == 2 || true)",
    "many.exists_one(x, many.filter(y, y == x).size() == 0)",
    "many.all(x, true)",
    "many.filter(x, x > 1).map(x, string(x)).map(x, {x: x}).size() > 0",
    "many.map(x, double(x) * 1.1).map(x, string(x)).join(',').split(',').size() > 0",
    "many.all(x, !(-1 in many))",
    "many.all(x, {'a': x, 'b': [x]} == {'a': x, 'b': [x]})",
]


@pytest.mark.parametrize("text", NESTED)
def test_macros_take_bounded_time(text: str) -> None:
    case = on_values(text, text, {"many": DYN}, lambda n: {"many": list(range(n // 8))})
    assert not faults([case])


# --- results of expressions ---


@pytest.mark.parametrize("kind", [STRING, BYTES, list_of(DYN), Type("map", (STRING, DYN)), DOUBLE])
def test_results_of_expressions_are_encoded_in_bounded_time(kind: Type) -> None:
    writers: dict[str, Callable[[Any], object]] = {
        "payload": lambda value: payload_of(value, 1024**2),
        "header": lambda value: header_of(value, 1024**2),
        "key": key_of,
    }
    cases = [
        call(f"{name} of {shape}", write, make, MESSAGE)
        for name, write in writers.items()
        for shape, make in given(kind)
    ]
    assert not faults(cases)


# --- headers, ids, traces, dead letters ---

CONTROL = ControlHeaders()
KEPT = ControlHeaders(["Nats-TTL", "Nats-Expected-*"])
ON_BLOCKS: dict[str, Callable[[bytes], object]] = {
    "decode": headers.decode,
    "encode": lambda block: headers.encode(headers.decode(block)),
    "status": headers.status,
    "find": lambda block: headers.find(block, b"Nats-Msg-Id"),
    "find_number": lambda block: headers.find_number(block, b"Router-Hops"),
    "replace": lambda block: headers.replace(block, b"Nats-Msg-Id", b"7"),
    "without": lambda block: headers.without(block, b"nats-"),
    "letter": lambda block: headers.removed(block, OWN_LINES),
    "control": lambda block: CONTROL.search(block),
    "control kept": lambda block: KEPT.removed(block),
    "control removed": CONTROL.removed,
    "control of a handler": lambda block: CONTROL.removed_from(headers.decode(block), headers.EMPTY),
    "id": message_ids.find,
    "id replaced": lambda block: message_ids.replace(block, b"7"),
    "id removed": message_ids.remove,
    "hops": hops.count,
    "hops of a copy": lambda block: hops.Hops(1000, b"name").lines(block),
    "without hops": hops.without,
    "traceparent": traceparent.lookup,
    "parsed": traceparent.parse,
    "line": lambda block: headers.line("A", block.decode("latin-1")),
}


@pytest.mark.parametrize("name", ON_BLOCKS)
def test_headers_are_decoded_and_encoded_in_bounded_time(name: str) -> None:
    assert not faults([call(f"{name} of {shape}", ON_BLOCKS[name], make, HEADERS) for shape, make in BLOCKS.items()])


# --- texts of errors, logs and dead letters ---

ON_TEXTS: dict[str, Callable[[str], object]] = {
    "quoted": quotes.quoted,
    "excerpt": quotes.excerpt,
    "bounded": quotes.bounded,
    "text_of_error": lambda text: quotes.text_of_error(ValueError(text)),
    "letter": lambda text: quotes.excerpt(quotes.redact(text[:1000]), 500),
}


@pytest.mark.parametrize("name", ON_TEXTS)
def test_a_text_from_outside_is_quoted_in_bounded_time(name: str) -> None:
    assert not faults([call(f"{name} of {shape}", ON_TEXTS[name], make, MESSAGE) for shape, make in TEXTS.items()])


def test_a_text_is_redacted_in_bounded_time() -> None:
    """Redaction stops at twice the shown length of a text from outside: this text is many times as long."""
    assert not faults([call(f"redact of {shape}", quotes.redact, make, 16 * 1024) for shape, make in TEXTS.items()])


# --- mappings, and refusals ---

ARGUMENTS = {"wildcard": "1", "partition": "10,1", "split": "1,-", "random": "10", "key": ""}


@pytest.mark.parametrize("function", [*MAPPING_FUNCTIONS, ">"])
def test_a_subject_is_mapped_in_bounded_time(function: str) -> None:
    call_of = f"{{{{{function}({ARGUMENTS.get(function, '1,2')})}}}}"
    start = "$KV.in." if function == "key" else "in."
    mapping = Mapping.compile("in.>", "out.>") if function == ">" else Mapping.compile(f"{start}*", f"out.{call_of}")

    def below(make: Callable[[int], str]) -> Callable[[int], str]:
        return lambda n: start + make(n)

    subjects = {shape: below(make) for shape, make in TEXTS.items()}
    subjects["tokens"] = lambda n: "in" + ".a" * (n // 2)
    subjects["dashes"] = lambda n: "in." + "-" * n
    checks: dict[str, Callable[[str], object]] = {
        "mapped": mapping.apply,
        "valid": patterns.is_valid_subject,
        "checked": patterns.validate_subject,
    }
    cases = [
        call(f"{name} {shape}", check, make, MAX_CONTROL_LINE)
        for name, check in checks.items()
        for shape, make in subjects.items()
    ]
    assert not faults(cases)
