"""Rates of routing by content: each beside the same route, on the same messages, that examines nothing."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from typing import Any

from tests.performance.benchmarks.contestants import CONTENT, CONTENT_PEERS, CONTESTANTS, CORE
from tests.performance.benchmarks.measure import Turn, in_turns, routed
from tests.performance.benchmarks.section import COST, LOST, RATE, Section
from tests.performance.benchmarks.setting import Setting
from tests.performance.benchmarks.wire import MARK
from tests.performance.benchmarks.workloads.routing import closed_spec

PLAIN = "plain"
"""The route that examines nothing."""
TO = 'subject = "out.{{wildcard(1)}}"'
SIZE = 128
JSON_SIZE = 200
CLASSES = tuple(f"class: c{number}" for number in range(10))
PASS = ("class: c4",)
BODY = {
    "id": f"123456{MARK.decode()}",
    "customer": {"id": "c-1234", "tier": "gold"},
    "items": [{"sku": "a1", "n": 2}, {"sku": "b2", "n": 1}],
    "total": 123.45,
    "currency": "EUR",
    "priority": "high",
    "note": "",
}


def json_of(size: int) -> str:
    """Return a JSON object of `size` bytes, with one mark."""
    short = len(json.dumps(BODY))
    return json.dumps(BODY | {"note": "n" * (size - short)})


@dataclass(frozen=True)
class Job:
    """A decision of a route by content. `messages` change what the load generator sends."""

    name: str
    title: str
    text: str
    options: str
    destinations: tuple[str, ...]
    messages: dict[str, Any]

    @property
    def routes(self) -> str:
        """Return the route, in TOML."""
        to = "".join(f"  {{ {one} }},\n" for one in self.destinations)
        return f'[[routes]]\nname = "bench"\nfrom = {{ subject = "in.*" }}\n{self.options}to = [\n{to}]\n'


WITH_HEADER = {"payload": SIZE, "headers": PASS}
WITH_JSON = {"payload": json_of(JSON_SIZE)}
JOBS = (
    Job(
        "header",
        "a header",
        "`when` on one header, which holds for all.",
        'when = \'headers["class"] == "c4"\'\n',
        (TO,),
        WITH_HEADER,
    ),
    Job(
        "body",
        "a field of the body",
        f"`body.total > 100.0`, JSON of {JSON_SIZE} bytes.",
        "when = 'body.total > 100.0'\n",
        (TO,),
        WITH_JSON,
    ),
    Job(
        "first-match",
        "the first of ten that matches",
        "`first_match` of ten destinations with a condition on one header, on average the fifth or sixth holds.",
        'strategy = "first_match"\n',
        tuple(f'{TO}, when = \'headers["class"] == "c{number}"\'' for number in range(10)),
        {"payload": SIZE, "headers": CLASSES},
    ),
    Job(
        "weighted",
        "by weight",
        "`weighted`, three destinations with 1, 2 and 7.",
        'strategy = "weighted"\n',
        tuple(f"{TO}, weight = {weight}" for weight in (1, 2, 7)),
        {"payload": SIZE},
    ),
    Job(
        "sticky",
        "by a key",
        "`sticky`, three destinations, a header as the key.",
        'strategy = "sticky"\nkey = \'headers["class"]\'\n',
        (TO, TO, TO),
        {"payload": SIZE, "headers": CLASSES},
    ),
    Job(
        "payload",
        "another payload",
        f"`payload` makes a map of two fields of JSON of {JSON_SIZE} bytes.",
        "",
        (f'{TO}, payload = \'{{"id": body.id, "total": double(body.total) * 100.0}}\'',),
        WITH_JSON,
    ),
)


async def content(setting: Setting) -> list[Section]:
    """Measure each job in a table of its own."""
    sections = []
    for job in JOBS:
        spec = closed_spec(setting, JSON_SIZE if isinstance(job.messages["payload"], str) else SIZE) | job.messages
        turns: dict[str, Turn] = {}
        for name, routes in ((PLAIN, ""), ("router_trio", job.routes)):
            turns[name] = partial(routed, spec, CONTESTANTS["router_trio"], setting.job(CORE, routes=routes))
        for name in ("nats_py",) if setting.quick else CONTENT_PEERS:
            if job.name in CONTENT[name]:
                turns[name] = partial(routed, spec, CONTESTANTS[name], setting.job(job.name))
        results = await in_turns(setting.rounds, turns, say=setting.say)
        text = f"{job.text} `{PLAIN}` is router_trio with the same messages and a route that looks at nothing."
        title = f"By content: {job.title}"
        sections.append(
            Section(f"content-{job.name}", title, text, (RATE, COST, LOST), results, against=(PLAIN, "nats_py"))
        )
    return sections
