"""From text to a checked tree: literals, names, limits, and the texts of errors."""

from __future__ import annotations

import ast
from pathlib import Path
from time import process_time
from typing import Any

import pytest

import router_trio.expressions
from router_trio.errors import ConfigurationError, EvaluationError, ExpressionError, RouterError
from router_trio.expressions.expression import Expression, compile_expression, trace
from router_trio.expressions.language.cures import cure
from router_trio.expressions.language.parser import MAX_DEPTH, MAX_NESTED, MAX_NODES, MAX_TEXT
from router_trio.expressions.language.signatures import BY_ID
from router_trio.expressions.language.types import BOOL, DYN, INT, STRING, Type, list_of, map_of
from router_trio.expressions.message import MESSAGE_VARIABLES, STREAM_VARIABLES
from router_trio.expressions.operators import FUNCTIONS
from tests.support.syntax import nodes
from tests.unit.expressions.activation import Activation

PACKAGE = Path(router_trio.expressions.__file__).parent


def evaluated(text: str, **variables: Any) -> Any:
    return compile_expression(text, dict.fromkeys(variables, DYN)).evaluate(Activation(variables))


def refused(text: str, result: Type | None = None) -> str:
    with pytest.raises(ExpressionError) as caught:
        compile_expression(text, STREAM_VARIABLES, result=result)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("'a\\tb\\u00e9\\U0001F603\\x41\\101\\\\'", "a\tbé😃AA\\"),
        ('"""a\n"b\\""""', 'a\n"b"'),
        ("r'\\d+'", "\\d+"),
        ("r'\\'", "\\"),
        ("b'\\xff\\377é'", b"\xff\xff\xc3\xa9"),
        ("br'\\xff'", b"\\xff"),
        ("0x1F", 31),
        ("-0x8000000000000000", -(2**63)),
        ("18446744073709551615u", 2**64 - 1),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("-9223372036854775808", -(2**63)),
        ("1 // one\n + 1 // and one", 2),
        ("[1, 2,][1]", 2),
        ("{'a': 1,}.a", 1),
        ("{'a-b': 1}.`a-b`", 1),
        ("- 1 - -1", 0),
        ("!!true", True),
        ("1 + 2 * 3 - 4 / 2 % 3", 5),
        ("true || false && false", True),
        ("false ? 1 : true ? 2 : 3", 2),
        ("1 < 2 == true", True),
        ("[1, 2].map(x, [3].map(y, x * y + .x))", [[103], [106]]),
        ("type(type(1)) == type && type(1u) == uint && type(null) == null_type", True),
        ("x.package", 1),
    ],
)
def test_the_value_of_an_expression(text: str, value: Any) -> None:
    got = evaluated(text, x={"package": 1}) if "package" in text else evaluated(text, x=100)
    assert got == value


MISTAKES = [
    ('heders["region"] == "eu"', 1, "there is no variable 'heders': did you mean 'headers'?", '^^^^^^'),
    ('tokens["1"] == "eu"', 8, "the index of a list must be an int, but this is a string", "^^^"),
    ('subject == 7', 1, "a string can't be compared with an int: convert the string with int(...)", "^^^^^^^^^^^^"),
    ('size == "7"', 1, "an int can't be compared with a string: convert the string with int(...)", "^^^^^^^^^^^"),
    ('subject', 1, "this is of type string, but bool is expected", "^^^^^^^"),
    ('subject.starts("eu.")', 1, "there is no method 'starts': did you mean 'startsWith'?", "^" * 21),
    ('len(subject) > 3', 1, "there is no function 'len'", "^^^^^^^^^^^^"),
    ('subject.contains(7)', 1, "contains can't be called with string, int: use string.contains(string)", "^" * 19),
    ('size + 1.5 > 3.0', 1, "+ can't be applied to int and double: convert one of them", "^^^^^^^^^^"),
    ('size > 3 & true', 10, "'&' is not an operator: write '&&' for and", "^"),
    ('size = 3', 6, "'=' is not an operator: compare with '=='", "^"),
    ('size > ', 8, "the expression ends where a value is expected", "^"),
    ('(size > 3', 10, "the expression ends where ')' is expected", "^"),
    ('subject == "eu', 12, "the string has no end: \" is missing", "^^^"),
    ('"\\d" == subject', 2, "CEL does not have this escape", "^^"),
    ('Order{id: 1}', 1, "message types are not supported: use a map", "^^^^^"),
    ('headers.all(h)', 1, "all takes 2 arguments: list.all(x, ...)", "^" * 14),
    ('headers.all(h.x, true)', 13, "the first argument of all() is a variable", "^^^"),
    ('has(subject)', 5, "has() takes a field, as in has(body.total)", "^^^^^^^"),
    ('subject.length == 3', 1, "a string has no fields, so it has no 'length'", "^^^^^^^^^^^^^^"),
    ('while == 3', 1, "'while' is a reserved word and can't be a name", "^^^^^"),
    ('size && true', 1, "&& takes a bool, but this is of type int", "^^^^"),
    ('tokens.exists(t, t)', 18, "exists takes a bool, but this is of type string", "^"),
    ('size.exists(t, true)', 1, "exists() iterates over a list or the keys of a map, not over an int", "^^^^"),
    ('true ? 1 : "a"', 1, "both sides of a conditional must have one type, but these are int and string", "^" * 14),
    ('{1.5: 2} == {}', 2, "a key must be a string, int, uint or bool, not a double", "^^^"),
    ('9223372036854775808 > size', 1, "the number is out of range for int", "^" * 19),
    ('1size', 1, "a number is followed by letters", "^^"),
    ('matches(subject, "(")', 18, "RE2 can't read the pattern: missing ): (", "^^^"),
    ('size(5) > 1', 1, "size can't be called with int: use size(string)", "^^^^^^^"),
    ('subject.size', 1, "a string has no fields, so it has no 'size': write size(subject)", "^^^^^^^^^^^^"),
    ('contains(subject, "a")', 1, "contains is called as string.contains(string)", "^" * 22),
    ('size == size()', 9, "size can't be called with nothing", "^^^^^^"),
    ('matches == "a"', 1, "there is no variable 'matches': matches is a function, so call it", "^^^^^^^"),
    ('', 1, "the expression is empty", "^"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "column", "message", "carets"), MISTAKES)
def test_a_mistake_is_reported_with_its_place_and_its_cure(text: str, column: int, message: str, carets: str) -> None:
    error = refused(text, BOOL)
    first, shown, pointer = error.splitlines()
    assert first.startswith(f"when, line 1, column {column}: {message}"), error
    assert shown == f"  {text}"
    assert pointer == "  " + " " * (column - 1) + carets


# An expression in the syntax of another language, the end of the error, and the CEL equivalent that it suggests.
OTHER_LANGUAGES = [
    ('headers.X-Region == "eu"', "write headers['X-Region']", "headers['X-Region'] == \"eu\""),
    ("headers[X-Region] == 'eu'", "write headers['X-Region']", "headers['X-Region'] == 'eu'"),
    ("headers[region] == 'eu'", "write headers['region']", "headers['region'] == 'eu'"),
    ("headers('region') == 'eu'", "write headers['region'], with brackets", "headers['region'] == 'eu'"),
    ("headers.get('a') == 'b'", "write headers['a'], and ('a' in headers) to ask whether it is there",
     "headers['a'] == 'b' && ('a' in headers)"),
    ("headers.get('a', 'b') == 'b'", "write ('a' in headers ? headers['a'] : 'b')",
     "('a' in headers ? headers['a'] : 'b') == 'b'"),
    ("headers.all(h, h.get(3) == 1)", "write map['key'], and ('key' in map) to ask whether it is there", "true"),
    ("not has(x.y)", "write !has(...)", "!has(x.y)"),
    ("not x", "write !x", "!x"),
    ("not (x)", "write !(...)", "!(x)"),
    ("'a' not in headers", "write !('a' in headers)", "!('a' in headers)"),
    ("x and x", "write '&&' for and", "x && x"),
    ("x OR x", "write '||' for or", "x || x"),
    ("x | x", "write '||' for or", "x || x"),
    ("subject <> 'b'", "write '!=' for not equal", "subject != 'b'"),
    ("subject !== 'b'", "write '!=' for not equal", "subject != 'b'"),
    ("subject === 'b'", "compare with '=='", "subject == 'b'"),
    ("x.y is null", "write x.y == null, or !has(x.y) to ask whether it is missing", "x.y == null || !has(x.y)"),
    ("x.y is not null", "write x.y != null, or has(x.y) to ask whether it is there", "x.y != null && has(x.y)"),
    ("x.y is true", "write '==' for is", "x.y == true"),
    ("x.y is not true", "write '!=' for is not", "x.y != true"),
    ("headers.x is null", "write !('x' in headers)", "!('x' in headers)"),
    ("headers['x'] == null", "write !('x' in headers)", "!('x' in headers)"),
    ("headers.X-Y is not null", "write ('X-Y' in headers)", "('X-Y' in headers)"),
    ("headers['x'] != null", "write ('x' in headers)", "('x' in headers)"),
    ("has(headers['x'])", "write ('x' in headers)", "('x' in headers)"),
    ("!has(headers.X-Y)", "write ('X-Y' in headers)", "!('X-Y' in headers)"),
    ("has(headers, 'x')", "write ('x' in headers)", "('x' in headers)"),
    ("has('x')", "write ('x' in headers), or has(body.name)", "('x' in headers)"),
    ("exists(x.y)", "write has(x.y)", "has(x.y)"),
    ("subject in ('a')", "write in ['a']", "subject in ['a']"),
    ("subject in ('a', 'b')", "write in ['a', 'b']", "subject in ['a', 'b']"),
    ("subject IN ['a']", "write in, in lower case", "subject in ['a']"),
    ('payload = "hello"', 'the payload is bytes: write payload == b"hello"', 'payload == b"hello"'),
    ("payload == 'hello'", "the payload is bytes: write payload == b'hello'", "payload == b'hello'"),
    ("payload != 'hello'", "the payload is bytes: write payload != b'hello'", "payload != b'hello'"),
    ("'hello' == payload", "the payload is bytes: write b'hello' == payload", "b'hello' == payload"),
    ("payload.contains('a')", "the payload is bytes: write string(payload).contains(...)",
     "string(payload).contains('a')"),
    ("subject == None", "write null", "x == null"),
    ("x == True", "write true", "x == true"),
    ("x == FALSE", "write false", "x == false"),
    ("len(subject) > 3", "write size(subject)", "size(subject) > 3"),
    ("subject.length() > 3", "write size(subject)", "size(subject) > 3"),
    ("subject ~ 'a'", "a regular expression is matched with subject.matches('a')", "subject.matches('a')"),
    ("subject like 'a'", "call a method: subject.contains('a'), .startsWith, .endsWith or .matches",
     "subject.contains('a')"),
    ("if x then x else x", "write a condition as a ? b : c", "x ? x : x"),
    ("size between 1 and 5", "write 1 <= size && size <= 5", "1 <= size && size <= 5"),
    ("1 < size <= 5", "compare twice: write 1 < size && size <= 5", "1 < size && size <= 5"),
    ("x?.y == 1", "write has(x.y) && x.y ...", "has(x.y) && x.y == 1"),
    ("x.y ?? 1 == 1", "write (has(x.y) ? x.y : 1)", "(has(x.y) ? x.y : 1) == 1"),
    ("$.total > 5", "the payload as JSON is body: write body.total", "body.total > 5"),
    ("data.total > 5", "the payload as JSON is body: write body.total", "body.total > 5"),
    ("message.subject == 'a'", "write subject", "subject == 'a'"),
    ("tokens(1) == 'a'", "write tokens[1], with brackets; the first is tokens[0]", "tokens[1] == 'a'"),
    ("{{wildcard(1)}} == 'a'", "write tokens[0] for the first token of the subject", "tokens[0] == 'a'"),
    ("$1 == 'a'", "write tokens[0] for the first token of the subject", "tokens[0] == 'a'"),
    ("subject == 'a';", "remove ';', or join two conditions with '&&'", "subject == 'a'"),
    ("subject == orders", "quote it if it is text; the variables are subject, tokens, headers, body, payload, size, x",
     "subject == 'orders'"),
]  # fmt: skip


@pytest.mark.parametrize(("wrong", "error", "right"), OTHER_LANGUAGES)
def test_syntax_of_other_languages_is_answered_with_the_cel_equivalent(wrong: str, error: str, right: str) -> None:
    variables = {**MESSAGE_VARIABLES, "x": DYN}
    with pytest.raises(ExpressionError) as caught:
        compile_expression(wrong, variables, result=BOOL)
    assert caught.value.message.endswith(f": {error}"), caught.value.message
    compile_expression(right, variables, result=BOOL)


@pytest.mark.parametrize(
    "text",
    [
        "x.a-b == 'a' && size > ",
        "subject == 'is not None and in (1)' && size > ",
        "x.not == 'a' && x.payload == 'a' && size > ",
    ],
)
def test_valid_parts_get_no_advice(text: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        compile_expression(text, {**MESSAGE_VARIABLES, "x": DYN, "b": DYN})
    assert caught.value.message == "the expression ends where a value is expected"


def test_advice_quotes_a_bounded_part_of_the_expression() -> None:
    with pytest.raises(ExpressionError) as caught:
        compile_expression(f"payload == '{'x' * 5000}'", MESSAGE_VARIABLES)
    assert len(caught.value.message) < 200


@pytest.mark.parametrize("part", ["a.", "a ", "1 ", "a-", "'", "!", "x < ", "in (", "has(", "a.get('x' ", "?.", "= "])
def test_finding_advice_takes_time_linear_in_the_text(part: str) -> None:
    text = part * (MAX_TEXT // len(part))
    began = process_time()
    for at in (0, len(text) // 2, len(text)):
        cure(text, at, at + 1)
    assert process_time() - began < 2.0


def test_the_line_with_the_mistake_is_shown() -> None:
    error = refused('headers["region"] == "eu"\n  && heders["x"] == "y"')
    assert error == (
        "when, line 2, column 6: there is no variable 'heders': did you mean 'headers'?\n"
        '    && heders["x"] == "y"\n'
        "       ^^^^^^"
    )


def test_only_the_part_of_a_long_line_around_the_mistake_is_shown() -> None:
    error = refused(f"subject == '{'x' * 300}' && heders.x == '{'y' * 300}'")
    _, shown, pointer = error.splitlines()
    assert len(shown) <= 102
    assert shown[pointer.index("^") : pointer.rindex("^") + 1] == "heders"


def test_errors_are_exceptions_of_this_package() -> None:
    assert issubclass(ExpressionError, RouterError)
    assert issubclass(EvaluationError, RouterError)
    assert not issubclass(ExpressionError, ConfigurationError)
    with pytest.raises(ExpressionError) as caught:
        compile_expression("1 +\n b", {}, name="routes.0.when")
    error = caught.value
    assert (error.name, error.line, error.column) == ("routes.0.when", 2, 2)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("'" + "a" * MAX_TEXT + "'", f"longer than {MAX_TEXT} characters"),
        ("[" + "1," * (MAX_NODES + 1) + "]", f"more than {MAX_NODES} parts"),
        ("(" * 2000 + "1" + ")" * 2000, f"nested more than {MAX_NESTED} levels deep"),
        ("[" * 2000 + "]" * 2000, f"nested more than {MAX_NESTED} levels deep"),
        ("!" * 2000 + "true", f"nested more than {MAX_DEPTH} levels deep"),
        ("1" + "+1" * 300, f"nested more than {MAX_DEPTH} levels deep"),
        ("body" + ".a" * 300, f"nested more than {MAX_DEPTH} levels deep"),
        ("true" + " ? true : true" * 400, f"nested more than {MAX_NESTED} levels deep"),
        ("size(" * 500 + "1" + ")" * 500, f"nested more than {MAX_NESTED} levels deep"),
    ],
)
def test_an_expression_that_is_too_long_or_too_deep_is_refused(text: str, error: str) -> None:
    assert error in refused(text)


def test_a_long_chain_of_logic_is_not_nested() -> None:
    assert evaluated(" && ".join(["true"] * 400)) is True
    assert evaluated(" || ".join(["false"] * 400)) is False


def compiled(text: str) -> Expression:
    return compile_expression(text, STREAM_VARIABLES)


def test_the_variables_and_fields_that_an_expression_reads_are_known() -> None:
    one = compiled('headers["region"] == "eu" && body.total > 100 && body["customer"].id in tokens')
    assert one.reads == {"headers", "body", "tokens"}
    assert one.body_fields == {("total",): False, ("customer", "id"): False}
    assert compiled("size(body.items) > 1 && has(body.x)").body_fields == {("items",): True, ("x",): True}
    assert compiled("body.items[0].sku == 'a'").body_fields == {("items",): True}
    assert compiled("body.a[subject]").body_fields == {("a",): True}
    assert compiled("body[subject]").body_fields is None
    assert compiled("size(body)").body_fields is None
    assert compiled("[{'a': 1}].exists(body, body.a == 1)").reads == frozenset()
    assert compiled("subject").body_fields == {}


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("body.total", DYN),
        ("body.total > 1", BOOL),
        ("tokens", list_of(STRING)),
        ("tokens.map(t, size(t))", list_of(INT)),
        ("{'a': 1}", map_of(STRING, INT)),
        ("{'a': 1, 'b': 'c'}", map_of(STRING, DYN)),
        ("[]", list_of(DYN)),
        ("true ? [] : [1]", list_of(INT)),
        ("body.x ? 1 : body.y", DYN),
        ("[{}, {'a': body.x}]", list_of(map_of(STRING, DYN))),
        ("body['a'][0]", DYN),
    ],
)
def test_the_type_of_an_expression_is_inferred(text: str, kind: Type) -> None:
    assert compiled(text).type == kind


def test_a_wrong_result_type_fails_at_run_time_if_it_depends_on_the_message() -> None:
    one = compile_expression("body.flag", MESSAGE_VARIABLES, result=BOOL)
    assert one.evaluate(Activation({"body": {"flag": True}})) is True
    with pytest.raises(EvaluationError, match="the value is of type string, but bool is expected"):
        one.evaluate(Activation({"body": {"flag": "true"}}))


def test_trace_returns_the_value_of_each_part() -> None:
    one = compiled("headers['a'] == 'x' && (body.total > 5 || has(body.b))")
    values = {"headers": {"a": "x"}, "body": {"total": "6"}}
    parts = [
        (text, value if not isinstance(value, EvaluationError) else "failed")
        for text, value in trace(one, Activation(values))
    ]
    assert parts[-1] == (one.text, "failed")
    assert ("headers['a'] == 'x'", True) in parts
    assert ("body.total", "6") in parts
    assert ("body.total > 5", "failed") in parts
    assert ("has(body.b)", False) in parts
    assert ("(body.total > 5 || has(body.b))", "failed") in parts
    missing = trace(compiled("body.x.y > 1"), Activation({"body": {}}))
    assert [text for text, _ in missing] == ["body", "body.x", "body.x.y", "body.x.y > 1"]
    assert str(missing[-1][1]) == "there is no key 'x'"


def test_each_overload_has_an_implementation() -> None:
    special = {"_?_:_", "_==_", "_!=_", "@in"}
    assert {one for one in BY_ID if one.split(":")[0] not in special and not one.startswith("_?_")} == set(FUNCTIONS)


def test_no_text_is_executed_as_python() -> None:
    names = {"eval", "exec", "compile", "__import__"}
    for path in [*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "schemas").rglob("*.py")]:
        called = {
            node.func.id for node in nodes(path) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert not called & names, path
