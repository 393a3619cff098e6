"""The verdict: the promises, checked against what happened."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.resilience.chaos import claims, keyed, memory
from tests.resilience.chaos.load import LARGE_EVERY, numbers
from tests.resilience.chaos.scene import Scene, Surroundings
from tests.resilience.chaos.schedule import Schedule
from tests.resilience.chaos.spy import Spy
from tests.resilience.chaos.variants import dies_with_its_server, keeps_order, key_of
from tests.support.otlp_receiver import ReceivedSpan
from tests.support.raw_jetstream import StoredMessage
from tests.support.watch import Watch

MAY_DIE_WITH_THE_SERVER = 1.0
"""Seconds before a server's end in which it may have taken a core publish, confirmed it, and stored nothing. A fence
proves only that the server received it.
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one seed, as a row of the table. `broken` are the promises that were not kept.

    `lost` are all messages that were received, or taken by a source, and did not arrive; `died` are those of them that
    a server had when it ended.
    """

    schedule: Schedule
    outage_seconds: float
    resent: int
    suppressed: int
    failed: Counter[str]
    lost: int
    died: int
    reordered: int
    broken: tuple[str, ...]
    evidence: str = field(default="", repr=False)
    """The `evidence.story` of the run, if a promise was broken."""
    workers: int = 0

    @property
    def report(self) -> str:
        """Return the broken promises, the command that replays them, and the evidence."""
        return "\n".join([*self.broken, f"replay it: {self.command}", self.evidence])

    @property
    def command(self) -> str:
        """Return the command that replays this seed."""
        return command(self.schedule, self.workers)


def command(schedule: Schedule, workers: int = 0) -> str:
    """Return the command that replays a schedule."""
    variant = f" --variant {schedule.variant}" if schedule.variant != "plain" else ""
    return (
        f"python -m tests.resilience.chaos --seed {schedule.seed} --kind {schedule.kind} "
        f"--messages {schedule.messages}{variant}" + (f" --workers {workers}" if workers else "")
    )


def judge(
    scene: Scene, source: Sequence[StoredMessage], sink: Sequence[StoredMessage], leaks: Sequence[str]
) -> Outcome:
    """Check a finished scene against the promises. `sink` begins with the contents of deleted sinks."""
    broken = list(leaks)
    failed = sum(scene.failed.values())
    mortal = dies_with_its_server(scene.schedule.variant)
    arrived = [found for message in sink for found in numbers(message.payload)]
    if scene.schedule.kind == "stream":
        accepted = [found for message in source for found in numbers(message.payload)]
        if mortal:
            accepted = [one.number for one in scene.taken]
            arrived = memory.arrived(scene, sink)
        missing = set(accepted) - set(arrived)
        gone = memory.died(scene, missing) if mortal else set()
        if len(accepted) < scene.schedule.messages:
            broken.append(f"the source holds {len(accepted)} of {scene.schedule.messages} messages: no fair test")
        if missing - gone:
            broken.append(f"lost: {sorted(missing - gone)[:20]}")
        twice = stored_twice(scene, sink)
        if twice:
            broken.append(f"stored twice in one stream: {twice[:20]}")
        if given_up := sum(watch.count("ROUTE_MESSAGE_GIVEN_UP") for watch in scene.runs):
            broken.append(f"given up: {given_up}, by a route without a limit")
    else:
        accepted = scene.spy.received
        missing = set(accepted) - set(arrived)
        gone = {one for one in missing if _died_with_the_server(scene, one)}
        if len(missing - gone) > failed:
            told = sorted(missing - gone)[:20]
            broken.append(f"lost {len(missing - gone)}, and the router says {failed}: {told}")
        if scene.received != scene.routed + failed:
            broken.append(f"the books: received {scene.received}, routed {scene.routed}, failed {dict(scene.failed)}")
        poisoned = scene.received - len(accepted)
        if poisoned < 0:
            broken.append(f"received {scene.received}, but the links gave {len(accepted)}")
    broken += claims.false(scene.schedule, (event for watch in scene.runs for event in watch.events))
    broken += unfinished_traces(scene.collector.spans)
    in_order = set(memory.published_once(scene)) if mortal else set(accepted)
    keys = key_of(scene.schedule.seed) if scene.schedule.variant == "keys" else keyed.KEYS[0]
    late = overtaken([one for one in accepted if one in in_order], [one for one in arrived if one in in_order], keys)
    wrong = [one for one, before in late if not were_in_flight(scene.spy, scene.schedule.faults, one, before)]
    if scene.schedule.kind == "core":
        wrong = [
            one for one, before in late if one in wrong and not left_on_a_dead_link(scene.spy, scene.runs, one, before)
        ]
    if scene.schedule.variant == "keys":
        # Nothing else of its key is in flight, and later messages wait for a failed one.
        wrong = [one for one, _ in late]
        if handled := scene.failed["handler_error"]:
            broken.append(f"{handled} calls of the handler failed: one of a key at a time")
    # A message that is too large is redelivered later, and none waits for it: those behind it would not fail. By key,
    # they wait. A message of a subject is not redelivered.
    if scene.schedule.kind == "stream" and scene.schedule.variant != "keys":
        oversized = too_large(scene.spy, scene.runs)
        wrong = [one for one in wrong if one not in oversized]
    # A message that the server sent to a dead link is unknown to the router, and redelivered after its ack wait.
    astray = sent_to_a_dead_link(scene.spy, late)
    wrong = [one for one in wrong if one not in astray]
    # Without permission to answer the stream, a router can't ask again for astray messages before it takes new ones.
    ordered = "no_acks" not in scene.schedule.faults and keeps_order(scene.schedule)
    if wrong and ordered:
        broken.append(f"out of order: {wrong[:20]}, and their size is not the cause")
    events = [event for watch in scene.runs for event in watch.of("NATS_CONNECTION_RESTORED")]
    return Outcome(
        schedule=scene.schedule,
        outage_seconds=sum(event.outage_seconds for event in events),
        resent=scene.spy.resent,
        suppressed=scene.spy.suppressed,
        failed=scene.failed,
        lost=len(missing),
        died=len(gone),
        reordered=len(late),
        broken=tuple(broken),
    )


def out_of_order(accepted: Sequence[int], arrived: Sequence[int]) -> list[int]:
    """Return the messages whose first arrival is behind a later one to the same subject."""
    return [late for late, _ in overtaken(accepted, arrived)]


def overtaken(accepted: Sequence[int], arrived: Sequence[int], key: str = keyed.KEYS[0]) -> list[tuple[int, list[int]]]:
    """Return the same messages, each with the later ones of its key that arrived before it."""
    place = {one: index for index, one in enumerate(dict.fromkeys(accepted))}
    seen: dict[int, list[int]] = {}
    late = []
    for one in dict.fromkeys(arrived):
        there = seen.setdefault(keyed.group_of(key, one), [])
        before = [other for other in there if place.get(other, -1) > place.get(one, -1)]
        if before:
            late.append((one, before))
        there.append(one)
    return late


def were_in_flight(spy: Spy, faults: Collection[str], late: int, before: Sequence[int]) -> bool:
    """Return True if all that overtook a message were sent after it, and before the router was notified of its refusal.

    The refusal may have ended by then: a server that refuses one message and takes the next leaves no other choice. A
    refusal that is lost with its link is never received: the router learns of it by having to send the message again.
    """
    heard = spy.first_refused_at.get(late)
    if heard is None and "no_publish" in faults:
        heard = spy.taken_again_at.get(late)
    sent = spy.first_taken_at
    return heard is not None and all(sent[late] <= sent[one] <= heard for one in before)


def left_on_a_dead_link(spy: Spy, runs: Sequence[Watch], late: int, before: Sequence[int]) -> bool:
    """Return True if a message was dropped after a link had written it, and the network delivered it later.

    All that overtook it were sent after the loss of that link, on another one. A router that sends what it did not drop
    has no choice: it can't know what the network still has of a link that it has given up.
    """

    def found(code: str) -> list[Any]:
        return [event for watch in runs for event in watch.of(code)]

    losses = [event.at for event in found("NATS_CONNECTION_LOST")]
    dropped = found("NATS_PENDING_DROPPED") or any(one.reason == "dropped_oldest" for one in found("NATS_QUEUE_FULL"))
    if late in spy.taken_again_at or not dropped:
        return False
    sent = spy.first_taken_at
    return any(sent[late] < lost <= min(sent[one] for one in before) for lost in losses)


def sent_to_a_dead_link(spy: Spy, late: Iterable[tuple[int, Sequence[int]]]) -> set[int]:
    """Return late messages that a server can have delivered to a dead link, after a later link had looked up what was.

    The number of the next delivery shows that some are missing. As many messages may be late, if a link delivered them
    only afterwards, and delivered none of those that overtook them before.
    """
    found: set[int] = set()
    for gap in spy.gaps:
        missing = [
            one
            for one, before in late
            if one not in found
            and spy.first_brought_at[one] > gap.at
            and all(spy.first_brought_at[other] >= gap.at for other in before)
        ]
        found.update(missing[: gap.missing])
    return found


def too_large(spy: Spy, runs: Sequence[Watch]) -> set[int]:
    """Return the messages that failed because of their size, at least once.

    A publish that a server has refused for its size is reported without its sequence: it is one of the large messages
    that were nak'ed.
    """
    failures, refused = (
        [event for watch in runs for event in watch.of(code) if event.reason == "too_large"]
        for code in ("ROUTE_MESSAGE_FAILED", "NATS_PUBLISH_WITH_ACK_ERROR")
    )
    named = {found for event in failures for found in spy.at_sequence.get(event.sequence, ())}
    return named | {number for number in spy.nakked if refused and number % LARGE_EVERY == 0}


def unfinished_traces(spans: Sequence[ReceivedSpan]) -> list[str]:
    """Return the faults in the spans of sampled messages: each appears once, and each send belongs to a message."""
    broken = []
    twice = [one for one, times in Counter(span.span_id for span in spans).items() if times > 1]
    if twice:
        broken.append(f"spans exported twice: {twice[:5]}")
    messages = {span.span_id: span for span in spans if span.name.startswith("process ")}
    sends = [span for span in spans if span.name.startswith("send ")]
    strays = [span.attributes for span in sends if span.parent_id not in messages]
    if strays:
        broken.append(f"{len(strays)} sends whose message has no span: {strays[:3]}")
    unsent = messages.keys() - {span.parent_id for span in sends}
    if silent := [messages[one].attributes for one in unsent if "error.type" not in messages[one].attributes]:
        broken.append(f"{len(silent)} messages that neither failed nor were sent: {silent[:3]}")
    return broken


def stored_twice(scene: Surroundings, sink: Sequence[StoredMessage]) -> list[str]:
    """Return the ids that one incarnation of the sink holds more than once; of two routers on one durable, the messages
    as well.

    The entire run is shorter than the duplicate window.
    """
    held = sink[len(scene.sink_before) :]
    now = Counter(str(message.header("Nats-Msg-Id")) for message in held)
    if scene.schedule.variant == "two-routers":
        now += Counter(f"#{found}" for message in held for found in numbers(message.payload))
    return [one for one, times in now.items() if times > 1]


def _died_with_the_server(scene: Scene, message: int) -> bool:
    written = scene.spy.written_at.get(message)
    if written is None:
        return False
    return any(began - MAY_DIE_WITH_THE_SERVER <= written <= ended for began, ended in scene.deaths)


HEAD = f"{'seed':>6} {'outage s':>9} {'resent':>7} {'dupl.':>6} {'failed':>7} {'lost':>6} {'died':>6} {'order':>6}  "
HEAD += "faults"
"""The header of the rows: `dupl.` are the duplicates that streams suppressed, `order` the messages out of order."""


def row(one: Outcome) -> str:
    """Return the row of one seed."""
    told = " ".join(one.schedule.faults) + ("  BROKEN" if one.broken else "")
    return _line(one.schedule.seed, [one], told)


def total(outcomes: Sequence[Outcome]) -> str:
    """Return the sums below the rows."""
    return _line(len(outcomes), outcomes, f"{sum(bool(one.broken) for one in outcomes)} broken")


def _line(first: int, outcomes: Sequence[Outcome], last: str) -> str:
    return (
        f"{first:>6} {sum(one.outage_seconds for one in outcomes):>9.2f} {sum(one.resent for one in outcomes):>7} "
        f"{sum(one.suppressed for one in outcomes):>6} {sum(sum(one.failed.values()) for one in outcomes):>7} "
        f"{sum(one.lost for one in outcomes):>6} {sum(one.died for one in outcomes):>6} "
        f"{sum(one.reordered for one in outcomes):>6}  {last}"
    )
