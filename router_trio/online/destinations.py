"""Findings about the destinations and dead letters of routes, as far as streams store them. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from router_trio.errors.quotes import excerpt
from router_trio.nats.jetstream.streams import stream_config
from router_trio.online.facts import ERROR, NOTE, WARNING, Facts, Finding, Found, UnaskedError
from router_trio.online.parts import Destination, declared_for, same_jetstream, sent_by, taken_by
from router_trio.protocol.stream_config import StreamSubjects
from router_trio.settings.checks.loops import feeds_itself_through
from router_trio.settings.units import format_duration
from router_trio.subjects.patterns import overlaps
from router_trio.subjects.shapes import Shape

COMPUTED = ("partition(", "random(")
"""Functions of a subject whose results are few numbers, so that a stream need not take every token."""


def stream_missing(facts: Facts, to: Destination) -> Iterator[Found]:
    """Find a destination that no stream takes."""
    declared = declared_for(facts.settings, to.connection)
    if to.stream is not None:
        if not facts.takers(to) and not any(one.stream.name == to.stream for one in declared):
            text = f"there is no stream {to.stream!r}, so no copy can be stored; create it, or correct the name"
            yield Found(ERROR, to.path if to.is_bucket else f"{to.section}.stream", text)
        return
    taken = _subjects(facts, to)
    shapes = _sent(facts, to)
    if not any(overlaps(one, ".".join(shape)) for one in taken for shape in shapes):
        subjects = excerpt(", ".join(map(".".join, shapes)))
        what = "its messages wait until one does"
        if to.is_dead_letter:
            what = "no dead letter can be stored"
        elif to.route.fails_without_stream:
            what = "every copy fails with no_responders"
        text = (
            f"no stream takes {subjects}, so {what}; add the subject to a stream, list the stream in [[streams]], or "
            "set `jetstream = false` if it is for subscribers"
        )
        yield Found(ERROR, to.path, text)


def subjects_not_taken(facts: Facts, to: Destination) -> Iterator[Found]:
    """Find a destination whose subjects streams take only in part."""
    if to.stream is not None or any(one in to.template.lower() for one in COMPUTED):
        return
    taken = _subjects(facts, to)
    some = [shape for shape in _sent(facts, to) if any(overlaps(one, ".".join(shape)) for one in taken)]
    left = [".".join(shape) for shape in some if not taken_by(shape, taken)]
    if left:
        text = (
            f"streams take only a part of {excerpt(', '.join(left))}: {excerpt(', '.join(taken))}; every other copy "
            "is refused with no_responders; add the subjects to a stream, or narrow the source"
        )
        yield Found(WARNING, to.path, text)


def _sent(facts: Facts, to: Destination) -> list[Shape]:
    source = to.route.source
    stream = source.kind.stream(source)
    read: StreamSubjects | None = None
    if stream is not None:
        try:
            info = facts.stream(source.connection, stream)
        except UnaskedError:
            info = None
        read = None if info is None else info.stores
    return sent_by(to, read)


def _subjects(facts: Facts, to: Destination) -> list[str]:
    """Return the subjects of the streams that take a destination, and of those that the router will create."""
    found = [subject for info in facts.takers(to) for subject in info.subjects]
    declared = (subject for one in declared_for(facts.settings, to.connection) for subject in one.stream.subjects)
    return list(dict.fromkeys([*found, *declared]))


def fed_by_its_own_route(facts: Facts, to: Destination) -> Iterator[Found]:
    """Find a stream that takes copies of its own messages, which the route then reads again."""
    source = to.route.source
    stream = source.kind.stream(source)
    if stream is None or not same_jetstream(facts.settings, source.connection, to.connection):
        return
    if to.route.hop_limit and not to.is_dead_letter:
        return
    info = facts.stream(source.connection, stream)
    if info is None:
        return
    for template in (to.template, *to.kind.other_templates(to.to)):
        taker = feeds_itself_through(info.stores, source.subjects, template)
        if taker is None:
            continue
        end = "" if to.is_dead_letter else ", or set hop_limit if it is intended"
        text = (
            f"{template!r} can match {excerpt(taker)!r} of stream {stream!r}, which the route reads, so it would "
            f"feed itself; send to other subjects or narrow `filter`{end}"
        )
        yield Found(ERROR, to.path, text)


def ttl_refused(facts: Facts, to: Destination) -> Iterator[Found]:
    """Find a stream that refuses copies with a time to live."""
    kept = any(name.lower() == "nats-ttl" for name in to.to.headers.keep)
    if not to.to.ttl and not kept:
        return
    path = f"{to.section}.ttl" if to.to.ttl else f"{to.section}.headers.keep"
    for info in facts.takers(to):
        if not info.allow_message_ttl:
            text = (
                f"stream {info.name!r} refuses messages with a time to live (Nats-TTL); set allow_msg_ttl on it, "
                "which needs nats-server 2.11, or remove the key"
            )
            yield Found(ERROR, path, text)


def bucket_differs(facts: Facts, to: Destination) -> Iterator[Found]:
    """Find a bucket that does not keep what another one does, or a stream that is no bucket."""
    source = to.route.source
    stream = source.kind.stream(source)
    read = facts.stream(source.connection, stream) if stream is not None and source.kind.is_bucket else None
    for info in facts.takers(to) if to.is_bucket else ():
        if info.mirror:
            continue  # a finding of its own
        name = to.to.bucket
        if not info.allow_rollup:
            text = (
                f"stream {info.name!r} allows no roll-ups (allow_rollup_hdrs), so every purge fails; create it as a "
                f"bucket: nats kv add {name}"
            )
            yield Found(ERROR, to.path, text)
        if read is None:
            continue
        if read.allow_message_ttl and not info.allow_message_ttl:
            text = (
                f"values of bucket {source.bucket!r} may expire one by one, and bucket {name!r} refuses such values; "
                "set allow_msg_ttl on its stream, which needs nats-server 2.11"
            )
            yield Found(ERROR, to.path, text)
        if read.max_age and info.max_age != read.max_age:
            kept = f"deletes them after {format_duration(info.max_age)}" if info.max_age else "keeps them"
            text = (
                f"bucket {source.bucket!r} deletes values after {format_duration(read.max_age)}, and bucket {name!r} "
                f"{kept}: a value may be in one and not in the other; set the same TTL on both"
            )
            yield Found(WARNING, to.path, text)
        if read.allow_message_ttl and info.max_messages_per_subject < read.max_messages_per_subject:
            text = (
                f"bucket {name!r} keeps {info.max_messages_per_subject} values of a key, and {source.bucket!r} "
                f"{read.max_messages_per_subject}: there an earlier value appears again when the last one expires, and "
                "not in the copy; set the same history on both"
            )
            yield Found(WARNING, to.path, text)


def schedules_lost(facts: Facts, to: Destination) -> Iterator[Found]:
    """Find a stream that would lose or refuse the schedules of delayed copies."""
    if to.to.delay is None:
        return
    path = to.delay_path
    target = to.route.source.mapping(to.template).pattern
    for info in facts.takers(to):
        if (loses := stream_config(info).loses_schedules) is not None:
            fail = "failed messages wait in the consumer" if to.is_retry else "the copies fail with schedules_refused"
            yield Found(ERROR, path, f"{loses}; until then {fail}")
        elif not any(overlaps(one, target) for one in info.subjects):
            text = (
                f"stream {info.name!r} stores the schedules, and does not take {target!r} itself, so it refuses them; "
                "add the subject to it"
            )
            yield Found(ERROR, path, text)
        elif info.retention == "workqueue":
            text = (
                f"stream {info.name!r} has the retention workqueue: a consumer that acks a schedule below "
                f"{to.to.schedule_prefix!r} deletes it, and its copy is never published; filter its consumers"
            )
            yield Found(NOTE, path, text)


FINDINGS: tuple[Finding[Destination], ...] = (
    stream_missing,
    fed_by_its_own_route,
    subjects_not_taken,
    ttl_refused,
    bucket_differs,
    schedules_lost,
)
"""Each finding about a destination."""
