"""Common mistakes in a file are refused with what to write instead."""

from __future__ import annotations

import pytest

from router_trio.errors import ConfigurationError
from tests.unit.settings.problems import Load, problems

FILE = """
[connections.main]
servers = ["nats://127.0.0.1:4222"]

[[routes]]
name = "orders"
[routes.from]
subject = "orders.*"
[[routes.to]]
subject = "eu.{{wildcard(1)}}"
"""

STREAM = """
[[streams]]
connection = "main"
name = "EU"
subjects = ["eu.>"]
"""

HEADER = """unknown key; a header is set below set, and its value is an expression: write set = { Region = "'...'" }"""
NO_ACK = "no longer a key; remove it: every message is acked by itself"
NO_FAST_INGEST = "no longer a key; remove it: every message gets a PubAck of its own"
FIRST_ROUTE = '[connections.main]\n[[routes]]\nname = "orders"\n'


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        (
            FILE.replace("eu.{{wildcard(1)}}", "eu.*"),
            "routes[0].to[0].subject",
            "destination 'eu.*' has the wildcard '*': write 'eu.{{wildcard(1)}}', which has the tokens of the source's "
            "wildcards",
        ),
        (
            FILE.replace("orders.*", "orders").replace("eu.{{wildcard(1)}}", "eu.*"),
            "routes[0].to[0].subject",
            "destination 'eu.*' has the wildcard '*': name the source's token to use there, as in {{wildcard(1)}}",
        ),
        (
            FIRST_ROUTE + 'from = "orders.*"\nto = [{ subject = "eu" }]\n',
            "routes[0].from",
            'must be a table: write from = { subject = "..." }',
        ),
        (
            FIRST_ROUTE + 'from = { subject = "orders.*" }\nto = "eu.*"\n',
            "routes[0].to",
            'must be a list of tables: write [[routes.to]], and subject = "..." below it, with {{wildcard(1)}} in '
            "place of the first '*'",
        ),
        (
            FIRST_ROUTE + 'from = { subject = "orders.*" }\nto = ["eu"]\n',
            "routes[0].to[0]",
            'must be a list of tables: write [[routes.to]], and subject = "..." below it',
        ),
        (
            FILE + '[routes.dead_letter]\n[[routes]]\nname = "b"\nfrom = { subject = "b" }\nto = [{ subject = "c" }]\n'
            'limit = "5/s"\n',
            "routes[1].limit",
            'must be a table: write limit = { rate = "..." }',
        ),
        (FILE + '[routes.to.headers]\nRegion = "eu"\n', "routes[0].to[0].headers.Region", HEADER),
        (FILE + 'headers = { Region = "eu" }\n', "routes[0].to[0].headers.Region", HEADER),
        (FILE.replace("[routes.from]", '[routes.from]\nack = "all"'), "routes[0].from.ack", NO_ACK),
        (FILE.replace("[routes.from]", 'ack = "all"\n[routes.from]'), "routes[0].ack", NO_ACK),
        (FILE + 'ack = "all"\n', "routes[0].to[0].ack", NO_ACK),
        ("[telemetry]\nack = true\n" + FILE, "telemetry.ack", NO_ACK),
        (FILE + "fast_ingest = true\n", "routes[0].to[0].fast_ingest", NO_FAST_INGEST),
        (FILE.replace("[routes.from]", "fast_ingest = true\n[routes.from]"), "routes[0].fast_ingest", NO_FAST_INGEST),
        (FILE + STREAM + "fast_ingest = true\n", "streams[0].fast_ingest", NO_FAST_INGEST),
        (FILE.replace("servers", "fast_ingest = true\nservers"), "connections.main.fast_ingest", NO_FAST_INGEST),
        (
            FILE + STREAM + 'storage = "ram"\n',
            "streams[0].storage",
            "must be 'file' or 'memory'; did you mean 'memory'?",
        ),
        (
            FILE + STREAM + 'storage = "disk"\n',
            "streams[0].storage",
            "must be 'file' or 'memory'; did you mean 'file'?",
        ),
        (FILE + STREAM + 'discard = "reject"\n', "streams[0].discard", "must be 'old' or 'new'; did you mean 'new'?"),
        (FILE + STREAM + "max_msgs = 5\n", "streams[0].max_msgs", "unknown key; did you mean 'max_messages'?"),
        (
            '[connections]\nservers = ["nats://127.0.0.1:4222"]\n',
            "connections.servers",
            "must be a table; each of the connections has a name: write [connections.main] above servers",
        ),
    ],
)
def test_a_wrong_key_or_value_is_refused_with_what_to_write(text: str, key: str, message: str, load: Load) -> None:
    assert problems(lambda: load(text)).get(key) == message


@pytest.mark.parametrize(
    ("line", "place", "cure"),
    [
        ("servers = nats://me:secret@host:4222", "line 1, column 11", 'a text is in quotes: write servers = ["..."]'),
        ("servers = [nats://127.0.0.1:4222]", "line 1, column 12", 'a text is in quotes: write servers = ["..."]'),
        ('subjects = ["a", b.>]', "line 1, column 18", 'a text is in quotes: write subjects = ["..."]'),
        ("name = orders", "line 1, column 8", 'a text is in quotes: write name = "..."'),
        ("headers = {Region=body.region}", "line 1, column 19", 'a text is in quotes: write Region = "..."'),
        ("connect_timeout = 2s # soon", "line 1, column 20", 'a text is in quotes: write connect_timeout = "..."'),
        ("fail_open = True", "line 1, column 13", "write fail_open = true"),
        ("fail_open = no", "line 1, column 13", "write fail_open = false"),
        ("queue = null", "line 1, column 9", "leave queue out: what is not there has its default"),
        ("name = ", "line 1, column 8", "a value is missing behind name ="),
        ("name == 1", "line 1, column 7", "write name = with one '='"),
        ('name = "orders\nqueue = "a"', "line 1, column 15", "the quote that ends the text of name is missing"),
        ('servers = ["nats://host]', "line 1, column 25", "the quote that ends a text of servers is missing"),
        (
            'when = "headers["a"] == 5"', "line 1, column 18",
            "put a text that has double quotes into single ones: when = '...'",
        ),
        ("name = 'it's'", "line 1, column 12", 'put a text that has single quotes into double ones: name = "..."'),
        (
            'when = "subject.matches(\\d)"', "line 1, column 27",
            "write a backslash twice, or put the text into single quotes: when = '...'",
        ),
        ("name = “orders”", "line 1, column 8", "write straight quotes, \" or '"),
        ("connections:\n  main:", "line 1, column 12",
         "write connections = ... for a key, or [connections] in a line of its own for a table"),
        ("from = {subject: 1}", "line 1, column 16", "a key is followed by '=': write subject = ..."),
        ("name orders", "line 1, column 6", "a key is followed by '=': write name = ..."),
        ('{"connections": {}}', "line 1, column 1",
         "this is JSON, and TOML is needed: router-trio init writes a file to start from"),
        ('from = {subject = "a",\n queue = "b"}', "line 1, column 23",
         "what is in braces stands on one line, without a ',' at its end"),
        ('name = "orders";', "line 1, column 16", "a line ends without ',' or ';'"),
        ("// routes", "line 1, column 1", "a comment begins with #"),
        ("name = 1\nname = 2", "line 2, column 9",
         "a key or a table of this name stands above already: keep one of them"),
        ("[routes]\n[routes]", "line 2, column 8", "each of several has two brackets: write [[routes]]"),
    ],
)  # fmt: skip
def test_invalid_toml_is_refused_with_what_to_write(line: str, place: str, cure: str, load: Load) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load(line)
    message = str(caught.value)
    assert message.endswith(f"(at {place}): {cure}"), message
    assert "secret" not in message


def test_a_very_long_line_is_examined_only_around_the_mistake(load: Load) -> None:
    with pytest.raises(ConfigurationError, match="a text is in quotes"):
        load("x" * 100_000 + " = " + "y" * 100_000 + '\nname = "a"')
