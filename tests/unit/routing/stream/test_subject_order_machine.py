"""The order of each subject, under random refusals and deliveries."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from router_trio.routing.stream.subject_order import SubjectOrder
from tests.support.drawn import examples
from tests.unit.routing.stream.order import LATE, Message


class TurnsMachine(RuleBasedStateMachine):
    """A stream, its consumer, a route and a destination, each as simple as possible.

    The consumer redelivers in any order; the route checks a message when it arrives and before it is routed, and routes
    many at once; the destination delivers, refuses, or reports that a message is wrong. The destination is consistent:
    while it refuses a subject, it refuses every message in progress of that subject.
    """

    def __init__(self) -> None:
        super().__init__()
        self.turns = SubjectOrder[Message]()
        self.now = 0.0
        self.sequence = 0
        self.waiting: list[Message] = []
        self.under_way: list[Message] = []
        self.again: list[Message] = []
        self.delivered: dict[bytes, list[int]] = {b"a": [], b"b": []}
        self.wrong: set[int] = set()
        self.lost: list[Message] = []
        self.refusing: set[bytes] = set()

    # --- rules ---

    def arrive(self, message: Message) -> None:
        one = self.turns.admit(message)
        if one is not None:
            self.wait(one)

    def wait(self, *some: Message) -> None:
        for one in some:
            assert one not in self.waiting, "released twice"
            assert one not in self.under_way, "released twice"
            self.waiting.append(one)

    @rule(subject=st.sampled_from([b"a", b"a", b"b"]))
    def new(self, subject: bytes) -> None:
        self.sequence += 1
        self.arrive(Message(self.sequence, subject, b"%d" % self.sequence))

    @precondition(lambda self: self.again)
    @rule(data=st.data())
    def redeliver(self, data: st.DataObject) -> None:
        self.arrive(self.again.pop(data.draw(st.integers(0, len(self.again) - 1))))

    @precondition(lambda self: self.again)
    @rule()
    def lose(self) -> None:
        self.lost.append(self.again.pop(0))

    @rule()
    def return_newest(self) -> None:
        message = self.turns.give_back_newest(self.now + 1.0, self.now + 1.0 + LATE)
        if message is not None:
            self.again.append(message)

    @rule()
    def ask_back(self) -> None:
        expected = [*self.turns.expected()]
        assert all(one in expected and one.due == self.now for one in self.turns.ask_back(self.now, LATE))

    @rule()
    def reload(self) -> None:
        """Return everything in hand, and continue with another route."""
        given_back = [*self.waiting, *self.under_way, *self.turns.leave_hand()]
        self.waiting.clear()
        self.under_way.clear()
        for message in given_back:
            assert self.turns.await_redelivery(message, 0.0, 0.0) is None
        self.again += given_back

    @precondition(lambda self: self.waiting)
    @rule()
    def route(self) -> None:
        message = self.waiting.pop(0)
        one = self.turns.admit(message)
        if one is message:
            self.under_way.append(message)
        elif one is not None:
            self.waiting.insert(0, one)

    @rule(subject=st.sampled_from([b"a", b"b"]))
    def change_mind(self, subject: bytes) -> None:
        """Switch whether a subject is refused; before it is accepted again, everything in progress is answered."""
        if subject in self.refusing:
            for message in [one for one in self.under_way if one.order_key == subject]:
                self.answer(message)
        self.refusing ^= {subject}

    @precondition(lambda self: self.under_way)
    @rule(wrong=st.sampled_from([False, False, False, True]))
    def answer_first(self, wrong: bool) -> None:
        self.answer(self.under_way[0], wrong=wrong)

    def answer(self, message: Message, *, wrong: bool = False) -> None:
        self.under_way.remove(message)
        if wrong:
            self.wrong.add(message.sequence)
            self.wait(*self.turns.release_behind(message))
        elif message.order_key in self.refusing:
            self.again.append(message)
            one = self.turns.await_redelivery(message, self.now + 1.0, self.now + 1.0 + LATE)
            if one is not None:
                self.wait(one)
        else:
            self.delivered[message.order_key].append(message.sequence)
            self.wait(*self.turns.release_behind(message))

    @rule(seconds=st.sampled_from([0.5, 2.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    # --- invariants ---

    @invariant()
    def the_counts_are_right(self) -> None:
        in_turn = len(self.waiting) + len(self.under_way)
        settled = sum(map(len, self.delivered.values())) + len(self.wrong)
        assert self.turns.held == self.sequence - in_turn - settled - len(self.again) - len(self.lost)
        assert self.turns.awaited == len(self.again) + len(self.lost)

    @invariant()
    def each_subject_is_delivered_in_order(self) -> None:
        for delivered in self.delivered.values():
            assert delivered == sorted(set(delivered))

    def teardown(self) -> None:
        """Accept everything, and redeliver what can be redelivered: then no message is left waiting."""
        for subject in list(self.refusing):
            self.change_mind(subject)
        while self.again or self.waiting or self.under_way:
            if self.again:
                self.arrive(self.again.pop())
            if self.waiting:
                self.route()
            elif self.under_way:
                self.answer(self.under_way[0])
        self.each_subject_is_delivered_in_order()
        if not self.lost:
            assert not self.turns.lines, "held for ever"
        self.now += 2 * LATE
        late = self.turns.late(self.now)
        assert sorted(late) == sorted(message.sequence for message in self.lost)
        self.wait(*self.turns.give_up_waiting(late))
        while self.waiting or self.under_way:
            if self.waiting:
                self.route()
            else:
                self.answer(self.under_way[0])
        assert not self.turns.lines, "held for ever"
        self.each_subject_is_delivered_in_order()


TestTurns = TurnsMachine.TestCase
TestTurns.settings = settings(max_examples=examples(200), stateful_step_count=50, deadline=None)
