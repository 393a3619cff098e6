"""`find` against what is known of each message, over streams in memory."""

from __future__ import annotations

import tomllib
from random import Random
from typing import Any

import pytest

from router_trio.audit import find
from router_trio.audit.find import connections_for
from router_trio.audit.outcomes import Outcome, Whereabouts
from router_trio.protocol import framing
from router_trio.settings import RouteSettings, Settings
from tests.unit.audit.fake_streams import SECOND, FakeFinder, FakeStream, block, letter_headers

BEGIN = 1_790_000_000 * SECOND
TO = 'to = [ { subject = "sink.{{wildcard(1)}}" } ]'
TWO = 'to = [ { subject = "sink.{{wildcard(1)}}" }, { subject = "other.{{wildcard(1)}}" } ]'
LETTERS = 'retry = { attempts = 1 }\ndead_letter = { subject = "dead.letters" }'
FAILING = 'to = [ { subject = "sink.{{wildcard(1)}}", payload = "string(100 / body.n)" } ]'


def settings(*routes: str, ids: str = "own", filters: str = "source.*") -> Settings:
    text = '[connections.main]\nservers = ["nats://127.0.0.1:4222"]\n'
    for number, more in enumerate(routes):
        source = f'stream = "SOURCE", durable = "router-{number}", filter = "{filters}", message_id = "{ids}"'
        text += f'[[routes]]\nname = "route-{number}"\nfrom = {{ {source} }}\n{more}\n'
    return Settings.model_validate(tomllib.loads(text))


class World:
    """A source with messages, which routes have copied, and a search in it."""

    def __init__(self, configured: Settings, *, ahead: int = 0, **sink: Any) -> None:
        self.settings = configured
        self.ahead = ahead
        self.now = BEGIN
        self.source = FakeStream("SOURCE", ["source.*", "noise.*"], BEGIN)
        self.sinks = {name: FakeStream(name, [f"{name.lower()}.*"], BEGIN, **sink) for name in ("SINK", "OTHER")}
        self.dead = FakeStream("DEAD", ["dead.*"], BEGIN)
        self.finder = FakeFinder(configured, [self.source, *self.sinks.values(), self.dead])

    def message(self, subject: str = "source.7", payload: bytes = b'{"n": 1}', sender: str = "") -> int:
        self.now += SECOND
        return self.source.add(subject, payload, self.now, block(("Nats-Msg-Id", sender)) if sender else b"")

    def copy_id(self, number: int, sequence: int, index: int, subject: str) -> str:
        message, plan = self.source.messages[sequence], self.finder.expectations(self.settings.routes[number])
        first = plan.first_part(message)
        return (first + plan.destinations[index].copy_id(framing.wire(subject))).decode()

    def copy(
        self, number: int, sequence: int, subject: str = "sink.7", payload: bytes | None = None, *, index: int = 0
    ) -> int:
        """Have a route store the copy of a message at one of its destinations."""
        ids = block(("Nats-Msg-Id", self.copy_id(number, sequence, index, subject)))
        content = self.source.messages[sequence].payload if payload is None else payload
        self.now += SECOND
        return self.sinks[subject.partition(".")[0].upper()].add(subject, content, self.now + self.ahead, ids)

    def letter(self, number: int, sequence: int) -> int:
        message = self.source.messages[sequence]
        lines = letter_headers(f"route-{number}", "SOURCE", message, message.time_ns)
        return self.dead.add("dead.letters", message.payload, self.now, lines)

    def settled(self, *floors: int, **durable: Any) -> None:
        """Have the durable of each route come this far; by default all messages are settled."""
        for number, _ in enumerate(self.settings.routes):
            self.source.consume(f"router-{number}", floors[number] if floors else self.source.newest, **durable)

    async def find(self, subject: str = "source.7", sequence: int | None = None) -> Whereabouts:
        self.source.now = self.now
        for sink in self.sinks.values():
            sink.now = self.now + self.ahead
        (found,) = (await self.finder.find(subject, sequence)).messages
        return found

    async def outcome(self, subject: str = "source.7", sequence: int | None = None) -> Outcome:
        (route,) = (await self.find(subject, sequence)).routes
        return route


def classes(outcome: Outcome) -> list[str]:
    return [one.stored_class for one in outcome.copies]


async def test_a_copy_is_found_where_it_is() -> None:
    world = World(settings(TO))
    sequence = world.message()
    world.copy(0, sequence)
    world.settled()
    found = await world.find()
    assert list(found.lines()) == [
        "source.7, message 1 of stream SOURCE on main, stored 2026-09-21T14:13:21.000Z, 8 bytes",
        "route route-0: routed",
        "    there          main:sink.{{wildcard(1)}}: sink.7, message 1 of stream SINK on main, "
        "stored 2026-09-21T14:13:22.000Z",
    ]
    assert found.as_json() == {
        "connection": "main",
        "stream": "SOURCE",
        "sequence": 1,
        "subject": "source.7",
        "time": "2026-09-21T14:13:21.000Z",
        "gone": False,
        "routes": [
            {
                "name": "route-0",
                "outcome": "routed",
                "detail": "",
                "copies": [
                    {
                        "destination": "main:sink.{{wildcard(1)}}",
                        "class": "there",
                        "stored": [
                            {
                                "connection": "main",
                                "stream": "SINK",
                                "sequence": 1,
                                "subject": "sink.7",
                                "time": "2026-09-21T14:13:22.000Z",
                            }
                        ],
                        "detail": "",
                    }
                ],
                "dead_letter": None,
            }
        ],
    }


@pytest.mark.parametrize("seed", range(100))
async def test_a_drawn_message_and_all_its_routes(seed: int) -> None:
    drawn = Random(seed)
    ids = drawn.choice(["own", "sender"])
    kinds = [TO, TWO, "when = 'body.n != 3'\n" + TO, LETTERS + "\n" + FAILING, "strategy = 'weighted'\n" + TWO]
    world = World(settings(*kinds, ids=ids), ahead=drawn.randrange(-300, 300) * SECOND)
    count = drawn.randrange(1, 60)
    subjects = [drawn.choice(["source.7", "source.8", "noise.7"]) for _ in range(count)]
    floors = [drawn.choice([count, drawn.randrange(count + 1)]) for _ in kinds]
    chosen = drawn.randrange(1, count + 1)
    truth: dict[int, str] = {}
    places: dict[int, list[tuple[str, int]]] = {}
    for sequence, subject in enumerate(subjects, 1):
        n = drawn.choice([0, 3, 5])
        world.message(subject, b'{"n": %d}' % n, drawn.choice(["", f"order-{sequence}"]))
        for number, _ in enumerate(kinds):
            outcome, where = fate(drawn, world, number, sequence, n, sequence > floors[number])
            if sequence == chosen:
                truth[number], places[number] = outcome, where
    world.settled(*floors)
    found = await world.find(subjects[chosen - 1], chosen)
    assert {number: one.outcome for number, one in enumerate(found.routes)} == truth
    for number, one in enumerate(found.routes):
        stored = [(place.stream, place.sequence) for copy in one.copies for place in copy.stored]
        if one.letter is not None:
            stored.append((one.letter.stored.stream, one.letter.stored.sequence))
        assert sorted(stored) == sorted(places[number])


def fate(
    drawn: Random, world: World, number: int, sequence: int, n: int, above_floor: bool
) -> tuple[str, list[tuple[str, int]]]:
    """Let a route do something with a message. Return the outcome and where the copies and dead letters are."""
    subject = world.source.messages[sequence].subject
    area, _, token = subject.partition(".")
    if area == "noise":
        return "not_of_its_filter", []
    if number == 2 and n == 3:
        return ("waiting" if above_floor else "filtered"), []
    if number == 3 and n == 0:
        if drawn.random() < 0.5:
            return "dead_lettered", [("DEAD", world.letter(number, sequence))]
        return ("waiting" if above_floor else "given_up"), []
    payload = b"%d" % (100 // n) if number == 3 else None
    names = ["sink", "other"] if number in (1, 4) else ["sink"]
    if number == 4:
        names = [drawn.choice(names)]
    places, outcomes = [], set()
    for name in names:
        index = 1 if name == "other" else 0
        one = drawn.choices(["routed", "missing", "twice", "different"], [6, 2, 1, 1])[0]
        outcomes.add(one)
        for _ in range({"missing": 0, "twice": 2}.get(one, 1)):
            stored = world.copy(
                number, sequence, f"{name}.{token}", b"?" if one == "different" else payload, index=index
            )
            places.append((name.upper(), stored))
    if "missing" in outcomes:
        return ("waiting" if above_floor else "missing"), places
    return next(one for one in ("twice", "different", "routed") if one in outcomes), places


async def test_a_message_that_is_not_delivered_yet_waits() -> None:
    world = World(settings(TO))
    world.message()
    world.settled(0)
    assert (await world.outcome()).detail == "not delivered yet"
    world.settled(0, delivered=1)
    outcome = await world.outcome()
    assert (outcome.outcome, outcome.detail) == ("waiting", "delivered and not known to be acked")
    assert classes(outcome) == ["not_found"]
    world.settled(0, paused=True)
    assert (await world.outcome()).detail == "not delivered yet, the durable is paused"


async def test_a_message_that_will_be_filtered_and_is_not_settled_waits() -> None:
    world = World(settings("when = 'false'\n" + TO))
    world.message()
    world.settled(0)
    assert (await world.outcome()).detail == "not delivered yet, will be filtered: when"


async def test_a_route_without_its_durable() -> None:
    world = World(settings(TO))
    world.message()
    outcome = await world.outcome()
    assert (outcome.outcome, classes(outcome)) == ("unknown", ["not_found"])


@pytest.mark.parametrize("policy", ["new", "all"])
async def test_a_durable_that_starts_later_never_got_the_message(policy: str) -> None:
    world = World(settings(TO))
    world.message()
    world.source.now = world.now + SECOND
    world.settled(5, deliver_policy=policy)
    assert (await world.outcome()).outcome == {"new": "not_delivered", "all": "missing"}[policy]


async def test_a_copy_whose_subject_no_stream_takes_is_missing() -> None:
    """As in an audit: the server has answered that no stream has it."""
    world = World(settings('to = [ { subject = "nowhere.{{wildcard(1)}}" } ]'))
    world.message()
    world.settled()
    outcome = await world.outcome()
    assert (outcome.outcome, classes(outcome)) == ("missing", ["missing"])
    assert outcome.copies[0].detail == "no stream takes nowhere.7"


async def test_a_copy_that_limits_can_have_removed_is_expired() -> None:
    world = World(settings(TO), max_age=10 * SECOND)
    world.message()
    world.settled()
    world.now += 60 * SECOND
    assert (await world.outcome()).outcome == "expired"


async def test_a_core_copy_is_stored_nowhere() -> None:
    world = World(settings('to = [ { subject = "live.{{wildcard(1)}}", jetstream = false } ]'))
    world.message()
    world.settled()
    outcome = await world.outcome()
    assert (outcome.outcome, classes(outcome)) == ("routed", ["not_stored"])
    assert outcome.copies[0].destination == "main:live.7"


@pytest.mark.parametrize("has_copy", [True, False])
async def test_a_mirror_gets_a_share(has_copy: bool) -> None:
    world = World(settings(TWO.replace('"other.{{wildcard(1)}}"', '"other.{{wildcard(1)}}", mirror = 1.0')))
    sequence = world.message()
    world.copy(0, sequence)
    if has_copy:
        world.copy(0, sequence, "other.7", index=1)
    world.settled()
    outcome = await world.outcome()
    assert (outcome.outcome, classes(outcome)) == ("routed", ["there", "there" if has_copy else "no_share"])


@pytest.mark.parametrize("has_copy", [True, False])
async def test_a_handler_is_not_called_and_its_copies_are_found(has_copy: bool) -> None:
    world = World(settings("handler = 'there.is:none'\n" + TO))
    sequence = world.message()
    if has_copy:
        world.copy(0, sequence, "sink.changed", b"changed")
    world.settled()
    outcome = await world.outcome()
    assert (outcome.outcome, classes(outcome)) == (("routed", ["there"]) if has_copy else ("unknown", ["not_found"]))


async def test_a_copy_stored_before_the_clock_was_set_back_is_found() -> None:
    world = World(settings(TO), ahead=-300 * SECOND)
    sequence = world.message()
    world.copy(0, sequence)
    world.settled()
    world.ahead = 0
    assert (await world.outcome()).outcome == "routed"


async def test_the_last_message_of_the_subject_is_meant_without_a_sequence() -> None:
    world = World(settings(TO))
    for _ in range(3):
        world.message()
        world.message("source.8")
    world.settled(0)
    assert (await world.find()).stored.sequence == 5
    assert (await world.find("source.7", 3)).stored.sequence == 3


async def test_a_message_that_does_not_exist() -> None:
    world = World(settings(TO))
    world.message("source.8")
    world.settled()
    for subject, sequence, note in (
        ("source.7", None, "stream SOURCE has no message with the subject source.7"),
        ("source.7", 1, "message 1 of stream SOURCE has the subject source.8"),
        ("source.7", 9, "stream SOURCE has no message 9"),
    ):
        found = await world.finder.find(subject, sequence)
        assert (found.messages, found.notes, found.unread) == ([], [note], [])


async def test_a_message_that_does_not_exist_and_has_a_subject_that_no_route_reads() -> None:
    world = World(settings(TO))
    world.settled()
    found = await world.finder.find("sales.7")
    assert (found.messages, found.notes) == (
        [],
        ["stream SOURCE has no message with the subject sales.7; no route from this stream reads sales.7"],
    )


@pytest.mark.parametrize("sequence", [None, 2])
async def test_a_message_that_the_source_has_deleted_is_found_by_its_copy(sequence: int | None) -> None:
    world = World(settings(TWO, TO, LETTERS + "\n" + TO))
    for _ in range(2):
        world.message()
    world.message("source.8")
    world.copy(0, 1)
    world.copy(0, 2)
    world.copy(0, 3, "sink.8")
    world.letter(2, 2)
    world.settled()
    world.source.messages.clear()
    found = await world.find("source.7", sequence)
    assert (found.is_gone, found.stored.sequence) == (True, 2)
    assert [one.outcome for one in found.routes] == ["routed", "unknown", "dead_lettered"]
    assert classes(found.routes[0]) == ["there", "not_found"]


async def test_a_copy_on_a_subject_of_several_messages_does_not_show_which_is_gone() -> None:
    world = World(settings('to = [ { subject = "sink.all" } ]'))
    sequence = world.message()
    world.copy(0, sequence, "sink.all")
    world.settled()
    world.source.messages.clear()
    assert (await world.finder.find("source.8")).messages == []
    assert (await world.find("source.7", 1)).routes[0].outcome == "routed"


async def test_the_search_for_a_copy_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find, "MAX_READ", 20)
    monkeypatch.setattr(find, "MAX_BEHIND", 10)
    world = World(settings('to = [ { subject = "sink.all" } ]'))
    for _ in range(60):
        world.message()
    for sequence in [*range(1, 10), *range(30, 60), 1]:
        world.copy(0, sequence, "sink.all")
    world.settled()
    beyond = await world.outcome("source.7", 10)
    assert (beyond.outcome, classes(beyond)) == ("unknown", ["not_found"])
    assert beyond.copies[0].detail == (
        "not among 20 messages stored since; router-trio audit CONFIG route-0 --from 10 --to 10 reads all"
    )
    assert (await world.outcome("source.7", 32)).outcome == "routed"
    assert (await world.outcome("source.7", 1)).outcome == "routed"  # its second copy is too far behind


def test_only_the_connections_of_routes_that_read_the_subject_are_needed() -> None:
    text = """
    [connections]
    a.servers = ["nats://127.0.0.1:1"]
    b.servers = ["nats://127.0.0.1:2"]
    c.servers = ["nats://127.0.0.1:3"]
    [[routes]]
    name = "one"
    from = { connection = "a", stream = "S", durable = "one", filter = "orders.*" }
    to = [ { connection = "b", subject = "b.{{wildcard(1)}}" } ]
    [[routes]]
    name = "two"
    from = { connection = "a", stream = "S", durable = "two", filter = "parts.*" }
    to = [ { connection = "c", subject = "c.{{wildcard(1)}}" } ]
    """
    configured = Settings.model_validate(tomllib.loads(text))
    assert connections_for(configured, "orders.7") == ["a", "b"]


def test_a_route_from_a_subject_needs_no_stream() -> None:
    text = '[connections.a]\nservers = ["nats://127.0.0.1:1"]\n[[routes]]\nname = "one"\n'
    text += 'from = { subject = "orders.*" }\nto = [ { subject = "b" } ]'
    configured = Settings.model_validate(tomllib.loads(text))
    assert connections_for(configured, "orders.7") == []


async def test_a_route_that_reads_the_subject_itself_records_nothing() -> None:
    world = World(settings(TO))
    extra = '[connections.main]\nservers = ["nats://127.0.0.1:4222"]\n[[routes]]\nname = "live"\n'
    extra += 'from = { subject = "source.*" }\nto = [ { subject = "live.{{wildcard(1)}}" } ]'
    live: RouteSettings = Settings.model_validate(tomllib.loads(extra)).routes[0]
    world.settings.routes.append(live)
    sequence = world.message()
    world.copy(0, sequence)
    world.source.consume("router-0", 1)
    found = await world.find()
    assert [(one.route, one.outcome) for one in found.routes] == [("route-0", "routed"), ("live", "unknown")]


UNREAD = "this user may not publish to $JS.API.STREAM.MSG.GET"
FATES = {
    "routed": TWO,
    "filtered": "when = 'false'\n" + TWO,
    "given_up": LETTERS + "\n" + FAILING,
    "fallback": "strategy = 'fallback'\n" + TWO,
    "mirrored": TWO.replace('"other.{{wildcard(1)}}"', '"other.{{wildcard(1)}}", mirror = 1.0'),
}


@pytest.mark.parametrize(
    ("fate", "copies", "unread", "outcome", "classes_of_copies"),
    [
        ("routed", ["sink"], ["OTHER"], "unknown", ["there", "unknown"]),
        ("routed", ["sink", "other"], ["DEAD"], "routed", ["there", "there"]),
        ("routed", [], ["OTHER"], "missing", ["missing", "unknown"]),
        ("routed", [], ["SINK", "OTHER"], "unknown", ["unknown", "unknown"]),
        ("filtered", [], ["SINK", "OTHER", "DEAD"], "filtered", []),
        ("given_up", [], ["DEAD"], "unknown", []),
        ("given_up", [], ["SINK"], "given_up", []),
        ("fallback", ["sink"], ["OTHER"], "routed", ["there"]),
        ("fallback", [], ["OTHER"], "unknown", ["not_found", "unknown"]),
        ("mirrored", ["sink"], ["OTHER"], "routed", ["there", "unknown"]),
        ("mirrored", [], ["OTHER"], "missing", ["missing", "unknown"]),
    ],
)
async def test_a_stream_that_cannot_be_read_makes_only_its_copies_unknown(
    fate: str, copies: list[str], unread: list[str], outcome: str, classes_of_copies: list[str]
) -> None:
    world = World(settings(FATES[fate], TO))
    sequence = world.message(payload=b'{"n": 0}')
    for name in copies:
        world.copy(0, sequence, f"{name}.7", index=1 if name == "other" else 0)
    world.settled()
    for name in unread:
        world.finder.streams[name].failure = UNREAD
    found = await world.finder.find("source.7")
    (message,) = found.messages
    first, second = message.routes
    assert (first.outcome, classes(first)) == (outcome, classes_of_copies)
    assert {one.detail for one in first.copies if one.stored_class == "unknown"} <= {UNREAD}
    assert second.outcome == ("unknown" if "SINK" in unread else "missing")
    has_letters = fate != "routed" or unread != ["DEAD"]
    assert list(found.unread) == ([f"connection main: {UNREAD}"] if has_letters else [])


async def test_a_copy_that_is_missing_can_have_a_dead_letter_that_cannot_be_read() -> None:
    world = World(settings(LETTERS + "\n" + TO))
    world.message()
    world.settled()
    world.dead.failure = UNREAD
    outcome = await world.outcome()
    assert (outcome.outcome, classes(outcome)) == ("unknown", ["not_found"])
    assert outcome.detail == f"settled, and dead letters can't be read: {UNREAD}"


async def test_without_the_durable_of_a_route_to_read_it_is_not_known_what_is_settled() -> None:
    world = World(settings(TO))
    sequence = world.message()
    world.settled()
    world.source.durable_failure = UNREAD
    outcome = await world.outcome()
    assert (outcome.outcome, outcome.detail) == ("unknown", f"it is not known what is settled: {UNREAD}")
    world.copy(0, sequence)
    assert (await world.outcome()).outcome == "routed"


async def test_a_source_that_cannot_be_read_does_not_hide_what_others_have() -> None:
    configured = settings(TO, TO)
    route = configured.routes[1]
    configured.routes[1] = route.model_copy(update={"source": route.source.model_copy(update={"stream": "DEAD"})})
    world = World(configured)
    world.dead.failure = UNREAD
    world.message()
    found = await world.finder.find("source.7")
    assert [one.stored.stream for one in found.messages] == ["SOURCE"]
    assert (list(found.notes), list(found.unread)) == ([], [f"connection main: {UNREAD}"])
