"""Every reason is defined in one table, and nowhere else."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator

from router_trio.errors import reasons
from router_trio.errors.reasons import TABLE, Fault
from tests.support.compiled import PACKAGE
from tests.support.syntax import nodes

TABLE_MODULE = PACKAGE / "errors" / "reasons.py"
MODULES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != TABLE_MODULE]
CONSTANTS = {name: value for name, value in vars(reasons).items() if name.isupper() and type(value) is str}
COUNTERS = {"FAILURES", "MIRRORS", "PUBLISHES", "PUBLISHES_WITH_ACK", "DROPS", "ANSWERS", "FILTERED"} | {
    "UNANSWERED_MESSAGES"
}

TAKES_A_REASON = {
    **dict.fromkeys(("Fate", "not_accepted", "_fail", "give_up", "drop", "let_go"), 1),
    **dict.fromkeys(("Failure", "Refused", "fail", "link_down", "emit_failure", "filter_out", "queue_full"), 0),
    **dict.fromkeys(("ack_refused", "write_refused", "Refusal", "publish_refused", "Reading"), 1),
}
"""Calls, and which of their arguments is a reason."""

ONE_WORD_IS_MUCH_ELSE = {"error", "handler", "limit", "loop", "protocol", "jetstream", "retry", "when", "timeout"} | {
    *("closed", "tls", "shutdown", "expression", "duplicate", "dead_letter", "rejected", "given_up", "blocked"),
    *("max_deliver", "unanswered", "mapping", "deny_delete", "no_responders", "too_large", "latest", "schema"),
}
"""Reasons whose words are also keys of settings, fields of JSON or words of the protocol."""


def literals(nodes: Iterable[ast.AST]) -> Iterator[tuple[int, str]]:
    """Yield all strings used as a reason, or that are a reason and can be nothing else."""
    for node in nodes:
        if isinstance(node, ast.keyword) and node.arg == "reason" and _text(node.value):
            yield node.value.lineno, _text(node.value)
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None and _text(node.value):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(one, ast.Name) and one.id == "reason" for one in targets):
                yield node.lineno, _text(node.value)
        elif isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            place = TAKES_A_REASON.get(name)
            if place is not None and len(node.args) > place and _text(node.args[place]):
                yield node.lineno, _text(node.args[place])
        elif isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            if any(isinstance(one, ast.Attribute) and one.attr == "reason" for one in sides):
                yield from ((node.lineno, _text(one)) for one in sides if _text(one))
        elif isinstance(node, ast.Subscript) and isinstance(node.value, ast.Attribute):
            if node.value.attr in ("failed", "filtered", "given_up", "mirror_failed") and _text(node.slice):
                yield node.lineno, _text(node.slice)
        elif _text(node) in TABLE and _text(node) not in ONE_WORD_IS_MUCH_ELSE:
            yield getattr(node, "lineno", 0), _text(node)


def _text(node: ast.AST) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


ELSEWHERE = {
    "nats/handshake.py": {"echo"},  # an option of CONNECT
    "settings/retry.py": {"mapping", "too_large"},  # an example in the documentation
    "routing/resubscribe.py": {"subscribe"},  # the operation that failed
    "routing/stream/delivery.py": {"refused"},
    "settings/checks/files.py": {"KEY_VALUES_MISMATCH", "utf-8"},  # of OpenSSL, and an encoding
    # Classes of copies, and outcomes of a message that was looked for.
    "audit/audit.py": {"expired"},
    "audit/find.py": {"expired", "not_found"},
    "audit/outcomes.py": {"expired", "not_found"},
    "audit/report.py": {"expired"},
    "telemetry/traces/outage.py": {"router_stopped", "reconnect_exhausted", "interrupted", "retry_failed"},
    "telemetry/traces/spans.py": {"unsettled"},  # how spans fail, which are not messages
}


def test_a_reason_is_spelled_out_only_in_the_table() -> None:
    elsewhere = [
        f"{file}:{line}: {text}"
        for path in MODULES
        for file in [str(path.relative_to(PACKAGE))]
        for line, text in literals(nodes(path))
        if text and text not in ELSEWHERE.get(file, ())
    ]
    assert elsewhere == []


def test_every_reason_that_the_package_can_give_is_in_the_table() -> None:
    used = {
        node.attr
        for path in MODULES
        for node in nodes(path)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "reasons"
    } | {
        alias.name
        for path in MODULES
        for node in nodes(path)
        if isinstance(node, ast.ImportFrom) and node.module == "router_trio.errors.reasons"
        for alias in node.names
    }
    named = {CONSTANTS[name] for name in CONSTANTS.keys() - COUNTERS}
    assert named == set(TABLE)
    never = {name for name in CONSTANTS.keys() - COUNTERS if name not in used}
    assert never == {"WORKER_LOST", "SEALED"} - used, "each of the table is given somewhere"


def test_the_codes_of_a_server_become_reasons_of_one_form() -> None:
    assert reasons.OF_CODE.fullmatch(reasons.of_code(10071))
    assert all(name in TABLE or reasons.OF_CODE.fullmatch(name) for name in reasons.OF_THE_MESSAGE)


def test_each_reason_has_exactly_one_party_at_fault() -> None:
    assert not reasons.OF_THE_MESSAGE & reasons.OF_THE_WAY
    assert not reasons.OF_THE_MESSAGE & reasons.OF_ALL_ALIKE
    assert {name for name in reasons.OF_ALL_ALIKE if TABLE[name].fault is Fault.DESTINATION} == reasons.OF_ALL_ALIKE


def test_every_reason_that_a_configuration_may_name_is_a_failure_of_a_message() -> None:
    assert {TABLE[name].fault for name in reasons.TO_NAME} == {Fault.MESSAGE, Fault.DESTINATION, Fault.WAY}


def test_a_reason_is_a_valid_label() -> None:
    assert all(re.fullmatch("[a-z][a-z0-9_]{1,39}", name) for name in TABLE)
