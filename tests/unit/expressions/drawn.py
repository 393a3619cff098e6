"""Generate random expressions and data from a seed. Most of them are well typed.

Cases in which the router differs from cel-cpp on purpose are not generated: docs/explanation/expressions.md lists these
differences, and `AVOIDED` has how each of them is avoided.
"""

from __future__ import annotations

import random
from typing import Any

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
from router_trio.expressions.values import Duration, Timestamp, Uint
from tests.unit.expressions.drawn_values import (
    DOUBLES,
    DURATION_TEXTS,
    EVERY,
    GETTERS,
    INTS,
    KEYS,
    LIST_INT,
    LIST_STRING,
    MAP_INT,
    NUMBER_TEXTS,
    PATTERNS,
    PLAIN,
    STRINGS,
    TIME_TEXTS,
    UINTS,
    VARIABLES,
    ZONES,
)


def json_value(rng: random.Random, depth: int = 3) -> Any:
    """Return a random JSON value."""
    kind = rng.randrange(9 if depth else 6)
    if kind == 0:
        return None
    if kind == 1:
        return rng.random() < 0.5
    if kind == 2:
        return rng.choice(INTS)
    if kind == 3:
        return rng.choice(DOUBLES)
    if kind <= 5:
        return rng.choice(STRINGS)
    if kind == 6:
        return [json_value(rng, depth - 1) for _ in range(rng.randrange(4))]
    return {key: json_value(rng, depth - 1) for key in rng.sample(KEYS, rng.randrange(6))}


def data(rng: random.Random) -> dict[str, Any]:
    """Return a random value for each variable."""
    subject = ".".join(rng.choices(("orders", "eu", "us", "1", "new"), k=rng.randrange(1, 4)))
    return {
        "subject": subject,
        "tokens": subject.split("."),
        "headers": {key: rng.choice(STRINGS).strip() for key in rng.sample(KEYS, rng.randrange(4))},
        "body": json_value(rng, 4)
        if rng.random() < 0.2
        else {key: json_value(rng) for key in KEYS if rng.random() < 0.7},
        "payload": rng.choice((b"", b"abc", b"\xff\x01", "é".encode())),
        "size": rng.choice(INTS),
        "unsigned": Uint(rng.choice(UINTS)),
        "ratio": rng.choice(DOUBLES),
        "flag": rng.random() < 0.5,
        "time": Timestamp(rng.randrange(0, 2 * 10**15) * 1000),
        "wait": Duration(rng.randrange(-(10**12), 10**12) * 1000),
    }


class Drawer:
    """Generates random expressions."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._locals: list[tuple[str, Type]] = []

    def expression(self) -> str:
        """Return an expression of any type, half of them of type bool."""
        rng = self._rng
        kind = BOOL if rng.random() < 0.5 else rng.choice(EVERY)
        return self.of(kind, rng.randrange(1, 5))

    def of(self, kind: Type, depth: int) -> str:
        """Return an expression of a type, and rarely of another one."""
        rng = self._rng
        if rng.random() < 0.01:
            kind = rng.choice(EVERY)
        if kind != DYN and rng.random() < 0.15:
            kind = DYN  # the type is known only at run time, and is most often another one
            return self._dyn(depth)
        if depth <= 0:
            return self._leaf(kind)
        if rng.random() < 0.08:
            return f"({self.of(BOOL, depth - 1)} ? {self.of(kind, depth - 1)} : {self.of(kind, depth - 1)})"
        made = self._made(kind, depth - 1)
        if made[0] in "[{" and ("dyn(" in made or "body" in made):
            return f"dyn({made})"
        return f"({made})" if rng.random() < 0.7 or " " in made else made

    def _leaf(self, kind: Type) -> str:
        rng = self._rng
        known = [name for name, one in self._locals if one == kind] + [n for n, one in VARIABLES.items() if one == kind]
        if known and rng.random() < 0.5:
            return rng.choice(known)
        return self._literal(kind)

    def _literal(self, kind: Type) -> str:
        rng = self._rng
        if kind == INT:
            value = rng.choice(INTS)
            return f"({value})" if value < 0 else str(value) if rng.random() < 0.9 else hex(value)
        if kind == UINT:
            return f"{rng.choice(UINTS)}u"
        if kind == DOUBLE:
            return f"({rng.choice(DOUBLES)!r})"
        if kind == BOOL:
            return rng.choice(("true", "false"))
        if kind == STRING:
            return text(rng, rng.choice(STRINGS))
        if kind == BYTES:
            return rng.choice(("b''", "b'abc'", "b'\\xff'", "b'é'", "br'a\\n'"))
        if kind == TIMESTAMP:
            return f"timestamp('{rng.choice(TIME_TEXTS)}')"
        if kind == DURATION:
            return f"duration('{rng.choice(DURATION_TEXTS)}')"
        if kind == MAP_INT:
            keys = rng.sample(KEYS, rng.randrange(1, 3))
            return "{" + ", ".join(f"'{key}': {self._literal(INT)}" for key in keys) + "}"
        if kind.name == "list":
            items = [self._literal(kind.parameters[0]) for _ in range(rng.randrange(4))]
            return f"[{', '.join(items)}]" if items else f"[{self._literal(kind.parameters[0])}].filter(z, false)"
        return rng.choice(("dyn(null)", f"dyn({self._literal(rng.choice(PLAIN))})"))

    def _dyn(self, depth: int) -> str:
        rng = self._rng
        choice = rng.randrange(7)
        locals_ = [name for name, one in self._locals if one == DYN]
        if choice == 0 and locals_:
            return rng.choice(locals_)
        if choice <= 2:
            return f"body.{rng.choice(KEYS)}"
        if choice == 3:
            return f"body.{rng.choice(KEYS)}.{rng.choice(KEYS)}"
        if choice == 4:
            return f"dyn(body[{text(rng, rng.choice(KEYS))}])"
        if choice == 5 and depth > 0:
            return f"dyn({self.of(list_of(DYN), depth - 1)}[{rng.randrange(3)}])"
        return f"dyn({self.of(rng.choice(EVERY), depth - 1)})" if depth > 0 else self._literal(DYN)

    def _made(self, kind: Type, depth: int) -> str:
        rng = self._rng
        of = self.of
        if kind == BOOL:
            return self._truth(depth)
        if kind == INT:
            choices = (
                lambda: f"{of(INT, depth)} {rng.choice('+-*/%')} {of(INT, depth)}",
                lambda: f"-({of(INT, depth)})" if rng.random() < 0.5 else self._leaf(INT),
                lambda: f"size({of(rng.choice((STRING, BYTES, LIST_INT, MAP_INT, DYN)), depth)})",
                lambda: f"{of(rng.choice((STRING, LIST_STRING)), depth)}.size()",
                lambda: f"int({self._leaf(rng.choice((INT, UINT, DOUBLE, TIMESTAMP)))})",
                lambda: f"int('{rng.choice(NUMBER_TEXTS)}')",
                lambda: f"{of(STRING, depth)}.indexOf({of(STRING, depth)})",
                lambda: f"{of(STRING, depth)}.lastIndexOf({of(STRING, depth)})",
                lambda: f"{of(STRING, depth)}.indexOf({of(STRING, depth)}, {rng.randrange(-1, 4)})",
                lambda: f"{of(TIMESTAMP, depth)}.{rng.choice(GETTERS)}()",
                lambda: f"{of(TIMESTAMP, depth)}.{rng.choice(GETTERS)}('{rng.choice(ZONES)}')",
                lambda: f"{of(DURATION, depth)}.{rng.choice(GETTERS[-4:])}()",
                lambda: f"{of(LIST_INT, depth)}[{of(INT, depth)}]",
                lambda: f"{of(MAP_INT, depth)}.{rng.choice(KEYS)}",
            )
            return rng.choice(choices)()
        if kind == UINT:
            if rng.random() < 0.7:
                return f"{of(UINT, depth)} {rng.choice('+-*/%')} {of(UINT, depth)}"
            return f"uint({of(rng.choice((INT, UINT, DOUBLE)), depth)})"
        if kind == DOUBLE:
            if rng.random() < 0.7:
                return f"{of(DOUBLE, depth)} {rng.choice('+-*/')} {of(DOUBLE, depth)}"
            return (
                f"double({of(rng.choice((INT, UINT, DOUBLE)), depth)})"
                if rng.random() < 0.5
                else f"double('{rng.choice(NUMBER_TEXTS)}')"
            )
        if kind == STRING:
            return self._string(depth)
        if kind == BYTES:
            return f"{of(BYTES, depth)} + {of(BYTES, depth)}" if rng.random() < 0.5 else f"bytes({of(STRING, depth)})"
        if kind == TIMESTAMP:
            if rng.random() < 0.3:
                return f"timestamp({rng.choice((0, 1, -1, 2**31, 2114380799, 253402300800))})"
            return f"{of(TIMESTAMP, depth)} {rng.choice('+-')} {of(DURATION, depth)}"
        if kind == DURATION:
            if rng.random() < 0.3:
                return f"{of(TIMESTAMP, depth)} - {of(TIMESTAMP, depth)}"
            return f"{of(DURATION, depth)} {rng.choice('+-')} {of(DURATION, depth)}"
        if kind == MAP_INT:
            keys = rng.sample(KEYS, rng.randrange(1, 4))
            return "{" + ", ".join(f"{text(rng, key)}: {of(INT, depth)}" for key in keys) + "}"
        if kind.name == "list":
            return self._list(kind, depth)
        return self._dyn(depth)

    def _string(self, depth: int) -> str:
        rng, of = self._rng, self.of
        choices = (
            lambda: f"{of(STRING, depth)} + {of(STRING, depth)}",
            lambda: f"{of(STRING, depth)}.{rng.choice(('lowerAscii', 'upperAscii', 'trim'))}()",
            lambda: f"{of(STRING, depth)}.replace({of(STRING, depth)}, {of(STRING, depth)})",
            lambda: f"{of(STRING, depth)}.replace({of(STRING, depth)}, {of(STRING, depth)}, {rng.randrange(-1, 4)})",
            lambda: f"{of(STRING, depth)}.substring({of(INT, 0)})",
            lambda: f"({of(STRING, depth)} + 'abcdef').substring({rng.randrange(3)}, {rng.randrange(6)})",
            lambda: f"{of(STRING, depth)}.charAt({rng.randrange(4)})",
            lambda: f"{of(LIST_STRING, depth)}.join({of(STRING, depth) if rng.random() < 0.7 else ''})",
            lambda: f"string({of(rng.choice((INT, UINT, BOOL, STRING, BYTES, TIMESTAMP, DURATION)), depth)})",
            lambda: f"string({self._leaf(DOUBLE)})",
            lambda: f"headers[{text(rng, rng.choice(KEYS))}]",
            lambda: f"headers.{rng.choice(KEYS)}",
            lambda: f"{of(LIST_STRING, depth)}[{rng.randrange(3)}]",
        )
        return rng.choice(choices)()

    def _list(self, kind: Type, depth: int) -> str:
        rng, of = self._rng, self.of
        (element,) = kind.parameters
        choice = rng.randrange(5)
        if choice == 0:
            return f"dyn({of(kind, depth)} + {of(kind, depth)})"
        if choice == 1:
            return "[" + ", ".join(of(element, depth) for _ in range(rng.randrange(1, 4))) + "]"
        if choice == 2 and kind == LIST_STRING:
            limit = f", {rng.randrange(-1, 4)}" if rng.random() < 0.3 else ""
            return f"{of(STRING, depth)}.split({of(STRING, depth)}{limit})"
        if choice == 3:
            return self._macro(f"dyn({of(kind, depth)} + []).filter", element, BOOL, depth)
        if rng.random() < 0.2:
            over = f"{{{text(rng, rng.choice(KEYS))}: {of(DYN, depth)}}}"
            return self._macro(f"{over}.map", STRING, element, depth)
        listed = rng.choice((LIST_INT, LIST_STRING))
        start = f"dyn({of(listed, depth)} + []).map"
        return self._macro(start, listed.parameters[0], element, depth, filtered=rng.random() < 0.3)

    def _macro(self, start: str, named: Type, body: Type, depth: int, *, filtered: bool = False) -> str:
        name = self._rng.choice(("x", "y", "k"))
        self._locals.append((name, named))
        condition = f"{self.of(BOOL, depth)}, " if filtered else ""
        part = self.of(body, depth)
        self._locals.pop()
        return f"{start}({name}, {condition}{part})"

    def _truth(self, depth: int) -> str:
        rng, of = self._rng, self.of
        choice = rng.randrange(14)
        if choice <= 2:
            mark = rng.choice((" && ", " || "))
            return mark.join(of(BOOL, depth) for _ in range(rng.randrange(2, 5)))
        if choice == 3:
            return f"!({of(BOOL, depth)})"
        if choice <= 5:
            kind = rng.choice((*PLAIN, DYN))
            mark = rng.choice(("<", "<=", ">", ">="))
            return f"{self._plain(kind, depth)} {mark} {self._plain(kind, depth)}"
        if choice <= 8:
            if rng.random() < 0.1:
                return f"{self._dyn(depth)} {rng.choice(('==', '!='))} null"
            kind = rng.choice(EVERY)
            return f"{of(kind, depth)} {rng.choice(('==', '!='))} {of(kind, depth)}"
        if choice == 9:
            kind = rng.choice((INT, STRING, DYN))
            return f"{of(kind, depth)} in {of(rng.choice((list_of(kind), DYN)), depth)}"
        if choice == 10:
            return f"{of(STRING, depth)} in {rng.choice(('headers', 'body', of(MAP_INT, depth)))}"
        if choice == 11:
            return rng.choice(
                (f"has(body.{rng.choice(KEYS)})", f"has(headers.{rng.choice(KEYS)})", f"has(body.a.{rng.choice(KEYS)})")
            )
        if choice == 12:
            name = rng.choice(("contains", "startsWith", "endsWith"))
            if rng.random() < 0.25:
                return f"{of(STRING, depth)}.matches('{rng.choice(PATTERNS)}')"
            return f"{of(STRING, depth)}.{name}({of(STRING, depth)})"
        over = rng.choice((LIST_INT, LIST_STRING, MAP_INT, list_of(DYN)))
        named = STRING if over == MAP_INT else over.parameters[0]
        return self._macro(f"{of(over, depth)}.{rng.choice(('all', 'exists', 'exists_one'))}", named, BOOL, depth)

    def _plain(self, kind: Type, depth: int) -> str:
        """Return an expression of exactly this type, because numbers of two types must not be compared by order."""
        if kind == DYN:
            return f"dyn({self._dyn(depth)})"
        return f"{self._leaf(kind)}" if kind in (INT, UINT, DOUBLE) else self.of(kind, depth)


def text(rng: random.Random, value: str) -> str:
    """Return a string literal with single or double quotes."""
    mark = rng.choice("'\"")
    return f"{mark}{value}{mark}"
