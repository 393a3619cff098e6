"""The status page in a real browser: its contents, on various screens, by keyboard, and for assistive technology."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from router_trio.events import ConnectionLost
from router_trio.states import (
    CONNECTED,
    FAILED,
    PAUSED,
    RECONNECTING,
    ROUTE_FATES,
    RUNNING,
    BreakerState,
    DestinationState,
    Held,
    LimitState,
    Partitions,
    RouteState,
)
from router_trio.telemetry import Telemetry
from router_trio.telemetry.http.application import RouterAnswers
from router_trio.telemetry.http.status import Answer, StatusText, answer, status_pieces
from router_trio.telemetry.pieces import Pieces
from tests.alerts.tools import rules
from tests.integration.pages import telemetry_settings
from tests.support.axe import NoAxe, script, violations
from tests.support.browser import BROWSER, NO_BROWSER, Page, browser
from tests.support.compiled import PACKAGE
from tests.support.telemetry_views import View, make_view

pytestmark = [pytest.mark.timeout(120), pytest.mark.skipif(BROWSER is None, reason=NO_BROWSER)]

HOSTILE = "</script><img src=x onerror=alert(1)>"
LONG = "a-route-whose-name-is-as-long-as-names-of-routes-in-large-companies-become"
AWAY = "destination connection 'edge' is not connected"
SCREENS = [(width, dark) for width in (1280, 390) for dark in (False, True)]


def lost(reason: str = "closed") -> ConnectionLost:
    server = "nats://bob:s3cret@127.0.0.1:4222"
    return ConnectionLost(at=1.0, connection="main", server=server, reason=reason, detail="EOF", pending_count=7)


def to(route: RouteState, connection: str, subject: str, *, jetstream: bool = True, dead: bool = False) -> None:
    shown: dict[str, str | bool] = {"subject": subject, "jetstream": jetstream}
    one = DestinationState(
        route, connection, subject, subject, waits_for_puback=jetstream, shown=shown, dead_letters=dead
    )
    one.found(None)
    route.to.append(one)


@pytest.fixture
def view() -> View:
    """Build a router with one of everything that the page shows."""
    view = make_view(["main", "edge"], ["eu", "crm", "broken", "held", HOSTILE, LONG])
    view.name = HOSTILE
    main, edge = view.connections["main"].state, view.connections["edge"].state
    main.enter(CONNECTED, server="nats://127.0.0.1:4222")
    main.fenced_at, main.fence_bound = 1e12, 1000.0
    main.since = edge.since = 0.0
    edge.enter(RECONNECTING)
    edge.last_error = "connection refused by nats://10.0.0.7:4222 after 12 attempts"
    edge.attempts = 12
    eu, crm, broken, held, hostile, long = view.routes
    eu.source = {"subject": "orders.*.*", "queue": "routers"}
    to(eu, "main", "eu.{{wildcard(1)}}.{{wildcard(2)}}")
    to(eu, "main", "audit", jetstream=False)
    eu.received, eu.never_routed = 1234, 200
    eu.fates["routed"], eu.fates["lost"] = 1000, 234
    eu.elapsed.record(0.1, 1034)
    crm.source = {"stream": "ORDERS", "durable": "crm", "filter": "orders.*.created"}
    to(crm, "edge", "crm.{{wildcard(1)}}")
    to(crm, "main", "dead.crm", dead=True)
    crm.enter(PAUSED, AWAY)
    crm.held_by(
        Held(
            0,
            partitions=Partitions(
                count=64,
                led=tuple(range(0, 64, 3)),
                wanted=(1, 2),
                lag=dict.fromkeys(range(0, 64, 3), 12_345),
                member="0123456789abcdef",
                members=frozenset("abc"),
                owners=(),
                uncopied=77,
            ),
        )
    )
    broken.enter(FAILED, "the durable 'x' of stream ORDERS has another filter: change the filter or the durable's name")
    held.breakers = [BreakerState("main", "out.{{wildcard(1)}}")]
    held.breakers[0].state, held.openings = "open", Counter({("main", "out.{{wildcard(1)}}"): 1})
    held.breakers[0].why_open = "5 messages failed in a row: no_responders; the next attempt is in 10 s"
    held.limit = LimitState("500/s", 100, 'headers["tenant"]')
    hostile.received = 7
    hostile.fates["given_up"] = 9
    long.source = {"subject": ".".join(["quite-long-tokens"] * 12)}
    long.received = 123_456_789_012
    long.failed["mapping"] = 123_456_789
    for route in (eu, held, hostile, long):
        route.enter(RUNNING)
    return view


class Shown:
    """A page of the router in the browser."""

    def __init__(self, page: Page, view: View, telemetry: Telemetry, url: str, stop: trio.CancelScope) -> None:
        self.page = page
        self.view = view
        self.telemetry = telemetry
        self.url = url
        self._stop = stop
        self.stopped = trio.Event()

    async def open(self, width: int = 1280, *, dark: bool = False) -> None:
        """Open the page, and wait for the state of the router."""
        await self.page.look(width, dark=dark)
        await self.page.open(self.url)
        await self.page.until("document.getElementById('live').textContent === '● live'")

    async def stop(self) -> None:
        """End the router."""
        self._stop.cancel()
        await self.stopped.wait()

    async def rows(self, table: str) -> list[list[str]]:
        """Return the text of each cell of a table, its heads first."""
        cells = "[...row.cells].map((one) => one.innerText)"
        found: list[list[str]] = await self.page.evaluate(
            f"[...document.getElementById({table!r}).rows].map((row) => {cells})"
        )
        return found

    async def next_look(self, route: int = 0) -> None:
        """Wait until the page has received a change of this route."""
        changed = self.view.routes[route]
        changed.received += 1
        await self.page.until(f"shown.status.routes[{changed.name!r}].received === {changed.received}")


@asynccontextmanager
async def in_browser(view: View, tmp_path: Path) -> AsyncIterator[Shown]:
    """Serve the page of a router, and open a browser."""
    telemetry = Telemetry(telemetry_settings(), logs=False)
    async with browser(tmp_path / "profile") as running, trio.open_nursery() as nursery:
        page = await running.page()

        async def serve(task_status: trio.TaskStatus[Shown]) -> None:
            with trio.CancelScope() as stop:
                async with telemetry.serve(view) as address:
                    assert address is not None
                    host, port = address
                    here = Shown(page, view, telemetry, f"http://{host}:{port}/", stop)
                    task_status.started(here)
                    await trio.sleep_forever()
            here.stopped.set()

        here = await nursery.start(serve)
        yield here
        errors = [] if here.stopped.is_set() else page.errors  # otherwise the error that the page is not answered
        nursery.cancel_scope.cancel()
    assert errors == []


@pytest.fixture
async def shown(view: View, tmp_path: Path) -> AsyncIterator[Shown]:
    async with in_browser(view, tmp_path) as here:
        yield here


async def test_no_shown_text_is_interpreted_as_html(shown: Shown) -> None:
    shown.telemetry.emit(lost(HOSTILE))
    await shown.open()
    assert await shown.page.evaluate("document.getElementsByTagName('img').length") == 0
    assert (await shown.page.evaluate("document.getElementById('name').textContent")) == HOSTILE
    assert await shown.rows("route-ledger") == [
        ["Route", "Received", "In hand", *(fate.replace("_", " ") for fate in ROUTE_FATES), "Adds up"],
        ["eu", "1,234", "0", "1,000", "0", "0", "0", "0", "0", "234", "0", "yes"],
        ["crm", *["0"] * 10, "yes"],
        ["broken", *["0"] * 10, "yes"],
        ["held", *["0"] * 10, "yes"],
        [HOSTILE, "7", "7", "0", "0", "0", "9", "0", "0", "0", "0", "off by -9"],
        [LONG, "123,456,789,012", "123,456,789,012", *["0"] * 8, "yes"],
    ]
    text = await shown.page.evaluate("document.documentElement.outerHTML")
    assert "s3cret" not in text


async def test_a_route_shows_its_source_its_destinations_and_why_it_does_not_run(shown: Shown) -> None:
    await shown.open()
    rows = (await shown.rows("routes"))[1:]
    eu, crm, why_crm, broken, why_broken, held, why_held = rows[:7]
    assert eu[:3] == [
        "eu",
        "orders.*.*, queue routers on main\n→ eu.{{wildcard(1)}}.{{wildcard(2)}} on main, JetStream\n→ audit on main",
        "running",
    ]
    assert crm[:3] == [
        "crm",
        "stream ORDERS, durable crm, filter orders.*.created on main\n→ crm.{{wildcard(1)}} on edge, JetStream\n"
        "dead letters → dead.crm on main, JetStream",
        "paused",
    ]
    assert why_crm == [f"crm:\n{AWAY} What to do"]
    assert (broken[2], held[2]) == ("failed", "running")
    assert "has another filter" in why_broken[0]
    assert "5 messages failed in a row" in why_held[0]
    kinds = await shown.page.evaluate("[...document.querySelectorAll('#routes .pill')].map((one) => one.className)")
    assert kinds[:4] == ["pill good", "pill warn", "pill bad", "pill warn"]
    error = shown.view.connections["edge"].state.last_error
    assert (await shown.rows("connections"))[3] == [f"edge:\nreconnecting: {error} What to do"]


async def test_partitions_are_a_row_of_fields(shown: Shown) -> None:
    await shown.open()
    kinds = await shown.page.evaluate("[...document.querySelectorAll('.field')].map((one) => one.className)")
    assert Counter(kinds) == {"field led": 22, "field wanted": 2, "field other": 40}
    assert kinds[:4] == ["field led", "field wanted", "field wanted", "field led"]
    [_, row] = await shown.rows("partitions")
    assert row[0] == "crm"
    assert row[1].splitlines()[-1].startswith("Leads 0, 3, 6,")
    assert row[1].endswith("; waits for 1, 2")
    assert row[2:] == ["22", "2", "3", "77"]


async def test_a_refused_reload_is_shown_at_the_top_with_its_problems_until_one_is_accepted(shown: Shown) -> None:
    pill = "document.getElementById('refused').getClientRects().length"
    await shown.open()
    config = shown.view.config
    assert (await shown.rows("config"))[1:] == [[config.hash, *(await shown.rows("config"))[1][1:3], "0", "0"]]
    assert await shown.page.evaluate(pill) == 0
    config.refuse(["router.toml: routes[0].to[0].subject: " + HOSTILE, "router.toml: routes[1].when: no such variable"])
    await shown.next_look()
    assert await shown.page.evaluate(pill) == 1
    row, (why,) = (await shown.rows("config"))[1:]
    assert row[3:] == ["0", "1"]
    assert "stays in force" in why
    assert HOSTILE in why
    assert "no such variable" in why
    config.accept()
    await shown.next_look()
    assert await shown.page.evaluate(pill) == 0
    assert [row[3:] for row in (await shown.rows("config"))[1:]] == [["1", "1"]]


@pytest.mark.parametrize(("width", "dark"), SCREENS)
async def test_the_page_fits_each_screen_and_is_accessible(shown: Shown, width: int, dark: bool) -> None:
    for reason in ("closed", "stale", "x" * 400):
        shown.telemetry.emit(lost(reason))
    shown.view.config.refuse([f"{LONG}.toml: routes[0].to[0].subject: is not a subject"])
    await shown.open(width, dark=dark)
    await shown.page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    outside = """[...document.querySelectorAll('body *')].filter((one) => {
        const place = one.getBoundingClientRect();
        const heads = one.closest('thead');
        if (heads && heads.clientWidth <= 1) return false;
        return place.width > 2 && (place.right > innerWidth + 0.5 || place.left < -0.5);
    }).map((one) => one.outerHTML.slice(0, 200))"""
    assert await shown.page.evaluate(outside) == []
    assert await shown.page.evaluate("document.documentElement.scrollWidth") == width
    clipped = """[...document.querySelectorAll('th, td, .pill, dd')].filter((one) =>
        one.clientWidth > 2 && one.scrollWidth > one.clientWidth + 1).map((one) => one.outerHTML.slice(0, 200))"""
    assert await shown.page.evaluate(clipped) == []
    background = await shown.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(17, 21, 27)" if dark else "rgb(246, 247, 249)")
    try:
        script()
    except NoAxe as none:
        pytest.skip(str(none))
    assert await violations(shown.page) == []


async def test_the_accessibility_check_finds_a_barrier(shown: Shown) -> None:
    try:
        script()
    except NoAxe as none:
        pytest.skip(str(none))
    await shown.open()
    await shown.page.evaluate("document.getElementById('zone').textContent = ''; document.title = ''")
    found = {one.partition(":")[0] for one in await violations(shown.page)}
    assert {"button-name", "document-title"} & found


async def test_details_are_opened_by_a_key_and_stay_open_and_in_focus(shown: Shown) -> None:
    shown.telemetry.emit(lost())
    await shown.open()
    focused = "document.activeElement.tagName"
    await shown.page.press("Tab")
    assert await shown.page.evaluate("document.activeElement.id") == "zone"
    for _ in range(1 + await shown.page.evaluate("document.querySelectorAll('main a').length")):
        await shown.page.press("Tab")
        if await shown.page.evaluate(focused) == "SUMMARY":
            break
    assert await shown.page.evaluate(focused) == "SUMMARY"
    await shown.page.press("Enter")
    await shown.page.until("document.querySelector('details').open")
    shown.telemetry.emit(lost("stale"))
    await shown.page.until("document.querySelectorAll('details').length === 2")
    await shown.next_look()
    assert await shown.page.evaluate(focused) == "SUMMARY"
    details = await shown.page.evaluate("document.querySelector('details[open]').innerText")
    assert re.search(r"reason\s+closed\s", details)
    assert re.search(r"pending_count\s+7", details)


async def test_each_time_is_shown_with_its_zone(shown: Shown) -> None:
    await shown.page.call("Emulation.setTimezoneOverride", timezoneId="Asia/Tokyo")
    shown.telemetry.emit(lost())
    await shown.open()
    times = "[...document.querySelectorAll('time')].map((one) => one.textContent)"
    found: list[str] = await shown.page.evaluate(times)
    assert found[0] == "1 Jan 1970 00:00:00 UTC"
    assert len(found) == 4, "two connections, the configuration, an event"
    assert all(re.fullmatch(r".*\d\d:\d\d:\d\d UTC", one) for one in found)
    await shown.page.press("Tab")
    await shown.page.press("Enter")
    found = await shown.page.evaluate(times)
    assert found[0] == "1 Jan 1970 09:00:00 GMT+9"
    assert all(re.fullmatch(r".*\d\d:\d\d:\d\d GMT\+9", one) for one in found)
    await shown.next_look()
    assert await shown.page.evaluate(times) == found


async def test_rates_are_drawn_since_the_page_was_opened(shown: Shown) -> None:
    await shown.open()
    label = "document.querySelector('#routes .spark')?.getAttribute('aria-label')"
    await shown.page.until(label)
    shown.view.routes[0].received += 100_000
    most: str = await shown.page.until(f"({label} || '').includes(',') && {label}")
    assert re.fullmatch(r"Last \d+ s: at most [\d,]+ per second", most)
    drawn: str = await shown.page.evaluate("document.querySelector('#routes .spark path:not(.out)').getAttribute('d')")
    assert " 1.5" in drawn, "the largest rate is at the top"


async def test_a_router_that_no_longer_answers_is_not_shown_as_ready(shown: Shown) -> None:
    await shown.open()
    await shown.stop()
    # That much later:
    await shown.page.evaluate(
        "{ const now = performance.now.bind(performance); performance.now = () => now() + 60000; }"
    )
    live = "document.getElementById('live').textContent"
    text: str = await shown.page.until(f"{live}.startsWith('no answer for') && {live}")
    assert text.endswith("the data below is outdated")
    assert await shown.page.evaluate("document.getElementById('ready').textContent") == "no answer"


async def test_the_first_paint_has_the_state(shown: Shown) -> None:
    shown.telemetry.emit(lost())
    await shown.page.call("Network.enable")
    await shown.page.call("Network.setBlockedURLs", urls=["*/events*", "*/status", "*/readyz"])
    await shown.page.look(1280)
    await shown.page.open(shown.url)
    assert [row[0] for row in (await shown.rows("connections"))[1:3]] == ["main", "edge"]
    assert len(await shown.rows("routes")) > 6
    assert (await shown.rows("events"))[1][1] == "NATS_CONNECTION_LOST"
    assert (await shown.page.evaluate("document.getElementById('live').textContent")).startswith("as of ")
    shown.page.errors.clear()  # that these are blocked


async def test_the_picture_of_the_flow_has_each_route_with_its_state(shown: Shown) -> None:
    await shown.open()
    nodes = """[...document.querySelectorAll('#flow .node')].map((one) =>
        [one.className.baseVal.trim(), one.querySelector('title').textContent])"""
    found = await shown.page.evaluate(nodes)
    kinds = {title.partition(", ")[0]: kind for kind, title in found}
    assert kinds["eu"] == "node good"
    assert kinds["crm"] == kinds["held"] == "node warn"
    assert kinds["broken"] == "node bad"
    assert kinds["stream ORDERS"] == "node"
    assert kinds["crm.{{wildcard(1)}}"] == "node bad", "its connection is away"
    shown.view.routes[0].received += 50_000
    await shown.next_look()
    lines = """[...document.querySelectorAll('#flow .line')].map((one) =>
        [one.querySelector('title').textContent, one.className.baseVal, Number(one.getAttribute('stroke-width'))])"""
    found = {title: (kind, width) for title, kind, width in await shown.page.evaluate(lines)}
    (busy,) = (one for title, one in found.items() if title.startswith("orders.*.* → eu: "))
    assert busy[0] == "line good"
    assert busy[1] > 8.0
    assert found["crm → crm.{{wildcard(1)}}"] == ("line bad dashed", 1.5)
    label = await shown.page.evaluate("document.getElementById('flow').getAttribute('aria-label')")
    assert label.startswith("6 routes, 4 not well. All together: ")


async def test_codes_and_reasons_lead_to_their_documents(shown: Shown) -> None:
    shown.telemetry.emit(lost())
    await shown.open()
    links = set(await shown.page.evaluate("[...document.querySelectorAll('main a')].map((one) => one.href)"))
    names = {link.rpartition("/")[2].partition("#")[0] for link in links}
    assert {"RouterConnectionDown.md", "RouterRouteNotRunning.md", "RouterNotReady.md", "RouterBreakerOpen.md"} <= names
    root = Path(__file__).parents[2]
    for link in links:
        path, _, part = link.removeprefix("https://github.com/router-trio/router-trio/blob/main/").partition("#")
        text = (root / path).read_text()
        assert not part or part in {
            re.sub(r"[^a-z0-9-]", "", title.lower().replace(" ", "-")) for title in re.findall(r"^#+ (.+)$", text, re.M)
        }


def test_each_code_leads_to_the_runbook_of_an_alert_that_names_it() -> None:
    script = (PACKAGE / "telemetry/http/status_page/page.js").read_text()
    (table,) = re.findall(r"const RUNBOOKS = \{(.*?)\};", script, re.DOTALL)
    named = dict(re.findall(r"(\w+): \"(\w+)\"", table))
    alerts = {one["alert"]: one["annotations"]["log_code"].split("|") for one in rules("alert")}
    assert {code: alert for code, alert in named.items() if code not in alerts[alert]} == {}
    of_alerts = {code for codes in alerts.values() for code in codes}
    started = {"LIBRARY", "ROUTER_RELOADED", "ROUTER_STARTED", "ROUTER_STOPPED"}
    assert {*named} == of_alerts - started


@pytest.fixture
def many() -> View:
    """Build a router with a thousand routes. Three are not well."""
    view = make_view(["main"], [f"route-{number}" for number in range(1000)])
    main = view.connections["main"].state
    main.enter(CONNECTED, server="nats://127.0.0.1:4222")
    main.fenced_at, main.fence_bound = 1e12, 1000.0
    for number, route in enumerate(view.routes):
        route.source = {"subject": f"in.{number}.>"}
        to(route, "main", f"out.{number}.>")
        route.enter(RUNNING)
    view.routes[900].enter(FAILED, "the durable was deleted")
    for number in (123, 456):
        view.routes[number].enter(PAUSED, AWAY)
    return view


async def test_of_a_thousand_routes_those_that_are_not_well_come_first(many: View, tmp_path: Path) -> None:
    async with in_browser(many, tmp_path) as shown:
        await shown.open()

        async def names() -> list[str]:
            heads = "[...document.querySelectorAll('#routes tbody th')].map((one) => one.textContent)"
            found: list[str] = await shown.page.evaluate(heads)
            return found

        async def choose(element: str, event: str, value: str) -> list[str]:
            there = f"document.querySelector({element!r})"
            await shown.page.evaluate(f"{there}.value = {value!r}; {there}.dispatchEvent(new Event({event!r}))")
            return await names()

        assert (await names())[:4] == ["route-900", "route-123", "route-456", "route-0"]
        assert len(await names()) == 50
        assert await shown.page.evaluate("document.querySelectorAll('#reasons li').length") == 2
        label = "document.getElementById('flow').getAttribute('aria-label')"
        assert (await shown.page.evaluate(label)).startswith("1,000 routes, 3 not well. 12 of 1,000 routes are drawn; ")
        assert await shown.page.evaluate("document.querySelector('#flow .node.bad title').textContent") == (
            "route-900, failed"
        )
        await shown.page.evaluate("document.getElementById('more').click()")
        assert len(await names()) == 100
        assert await choose("#find", "input", "OUT.77.") == ["route-77"]
        await choose("#find", "input", "")
        await shown.page.evaluate("document.querySelector('#filters [value=ill]').click()")
        assert await names() == ["route-900", "route-123", "route-456"]
        assert await choose("#sort", "change", "name") == ["route-123", "route-456", "route-900"]
        await shown.page.evaluate("document.querySelector('#filters [value=all]').click()")
        many.routes[500].failed["mapping"] = 7
        await shown.next_look(500)
        assert (await choose("#sort", "change", "failed"))[0] == "route-500"
        await shown.page.evaluate("document.querySelector('#routes th[data-key=name]').click()")
        assert (await names())[:2] == ["route-0", "route-1"]


def test_the_parts_of_the_page_fit_together() -> None:
    """Each id that the script uses exists in the page."""
    folder = PACKAGE / "telemetry/http/status_page"
    used: set[Any] = set(re.findall(r"(?:byId|setText|showLedger)\(\"([a-z-]+)\"", (folder / "page.js").read_text()))
    assert len(used) > 10
    assert used <= set(re.findall(r'id="([a-z-]+)"', (folder / "page.html").read_text()))


class SomeWorkers(RouterAnswers):
    """A router that reports what a supervisor does."""

    def status(self) -> Pieces[StatusText]:
        workers = {
            "1": {"pid": 4711, "state": "running", "restarts": 0},
            "2": {"pid": None, "state": "waiting", "restarts": 3},
        }
        return status_pieces(self._view, 1.0, {"workers": workers})

    def readiness(self) -> Pieces[Answer]:
        yield
        return answer([{"worker": 2, "reason": "waiting"}, {"worker": 1, "connection": "edge", "reason": "away"}])


async def test_workers_are_shown_with_the_reasons_of_each(view: View, tmp_path: Path) -> None:
    telemetry = Telemetry(telemetry_settings(), logs=False)
    async with (
        browser(tmp_path / "profile") as running,
        telemetry.serve(
            view, answers=lambda sources: SomeWorkers(sources, telemetry.taps, trio.current_time, 0.0)
        ) as address,
    ):
        assert address is not None
        page = await running.page()
        here = Shown(page, view, telemetry, f"http://{address[0]}:{address[1]}/", trio.CancelScope())
        await here.open()
        assert await here.rows("workers") == [
            ["Worker", "State", "Process", "Restarts"],
            ["1", "running", "4711", "0"],
            ["2", "waiting", "", "3"],
        ]
        whose = "[...document.querySelectorAll('#reasons .pill')].map((one) => one.textContent)"
        assert await page.evaluate(whose) == ["worker 2", "worker 1, connection edge"]


async def test_one_process_has_no_workers(shown: Shown) -> None:
    await shown.open()
    assert await shown.page.evaluate("document.getElementById('workers').parentElement.hidden")
