"use strict";
// Everything is inserted as text: no value from the router is ever parsed as HTML.
const MAX_EVENTS = 200;
const SAMPLES = 60; // rates kept for each route, one per second
const OVER = 5; // seconds that a shown rate is measured over
const STALE_AFTER = 8000; // ms without an answer, after which the page is marked as outdated
const ROWS = 50; // routes shown until more are asked for
const DRAWN = 12; // routes in the picture of the flow
const FEW = 8; // routes that are shown as configured, without means to find and sort them
const STATES = { connected: "good", running: "good", standby: "good", reconnecting: "warn", starting: "warn", paused: "warn",
  draining: "warn", waiting: "warn" };
const LEVELS = { INFO: "", DEBUG: "", WARN: "warn", ERROR: "bad" };
const FATES = { lost: "bad", dropped: "bad", failed: "bad", given_up: "bad", failed_open: "warn", dead_lettered: "warn" };
const RECOVERED = /_(RESTORED|READY|RESUMED|CLOSED|COMPLETE|ESTABLISHED)$/;
const DOCS = "https://github.com/router-trio/router-trio/blob/main/docs/";
const RUNBOOKS = { NATS_ACK_ERROR: "RouterAckFailures", NATS_CONNECTION_FAILED: "RouterConnectionDown",
  NATS_CONNECTION_LOST: "RouterConnectionDown", NATS_NAK_ERROR: "RouterAckFailures", NATS_PENDING_DROPPED: "RouterMessagesDropped",
  NATS_PUBLISH_ERROR: "RouterPublishFailureRatioHigh", NATS_PUBLISH_FAIL_OPEN: "RouterPublishFailureRatioHigh",
  NATS_PUBLISH_QUEUED: "RouterPendingQueueHigh", NATS_PUBLISH_WITH_ACK_ERROR: "RouterPublishFailureRatioHigh",
  NATS_PUBLISH_WITH_ACK_QUEUED: "RouterPendingQueueHigh", NATS_QUEUE_FULL: "RouterMessagesDropped",
  NATS_RECONNECT_EXHAUSTED: "RouterReconnectionExhausted", NATS_SUBSCRIBE_ERROR: "RouterRouteNotRunning",
  ROUTER_NOT_READY: "RouterNotReady", ROUTER_RELOAD_REFUSED: "RouterReloadRefused", ROUTE_BREAKER_OPENED: "RouterBreakerOpen",
  ROUTE_DEAD_LETTER_NOT_STORED: "RouterDeadLettersNotStored", ROUTE_MESSAGE_DEAD_LETTERED: "RouterMessagesDeadLettered",
  ROUTE_MESSAGE_FAILED: "RouterMessageRetriedForLong", ROUTE_MESSAGE_GIVEN_UP: "RouterMessagesDeadLettered",
  ROUTE_MEMBERS_CHANGED: "RouterPartitionsUnfair", ROUTE_PARTITION_GIVEN_UP: "RouterPartitionsUnled", ROUTE_PARTITION_LOST: "RouterPartitionsUnled",
  ROUTE_PARTITIONS_UNLED: "RouterPartitionsUnled" };
const byId = (id) => document.getElementById(id);
const number = (value) => Number(value).toLocaleString("en");
const runbook = (alert) => DOCS + "runbooks/" + alert + ".md";

let shown = null; // the snapshot on the page
let events = new Map(); // by id
let last = 0; // number of the newest event
let answeredAt = performance.now();
let liveness = "";
let zone = "UTC"; // as in the logs; undefined is the browser's time zone
let rows = ROWS; // routes that may be shown now
let filter = "all";
let sort = "state";
const rates = new Map(); // by route: see `measure`

function element(tag, className, ...content) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...content);
  return made;
}

function setText(id, text, className) {
  const place = byId(id);
  if (place.textContent !== text) place.textContent = text;
  if (className !== undefined && place.className !== className) place.className = className;
}

// --- cells: each has a signature, and is rebuilt only when its signature changes ---

const cell = (signature, className, make) => ({ signature: className + "\n" + signature, className, make });

function text(value, className = "") {
  const shownValue = value === null || value === undefined ? "" : String(value);
  return cell(shownValue, className, () => [shownValue]);
}

const count = (value) => text(number(value), value ? "number" : "number zero");

function pill(value, kind, className = "") {
  return cell(kind + "\n" + value, className, () => [element("span", "pill " + kind, String(value))]);
}

// A number, in the colour of its meaning unless it is 0. With `help` it is a link.
function alarming(value, kind, help) {
  if (!value || !kind) return count(value);
  if (!help) return pill(number(value), kind, "number");
  return cell(kind + value, "number", () => [link(number(value), help, "pill " + kind)]);
}

function link(words, to, className = "") {
  const made = element("a", className, words);
  made.href = to;
  made.target = "_blank";
  made.rel = "noreferrer";
  return made;
}

function name(value) {
  return { ...text(value), tag: "th" };
}

// Returns a row with what is not well, across all columns, to go below the row of `name`. Each is {text, kind, help}.
function why(key, name, found) {
  const all = found.filter((one, index) => found.findIndex((other) => other.text === one.text) === index);
  if (!all.length) return [];
  const make = () => [element("span", "only-read", name + ": "), ...all.map((one) => {
    const line = element("span", "reason " + one.kind, one.text);
    if (one.help) line.append(" ", link("What to do", one.help));
    return line;
  })];
  return [{ key: key + "\n why", className: "why", cells: [{ ...cell(JSON.stringify(all), "wide", make), across: true }] }];
}

// --- tables: rows have keys; unchanged rows keep their focus, selection and open details ---

function fill(table, heads, rows, otherwise) {
  const head = JSON.stringify(heads);
  if (table.head !== head) {
    table.head = head;
    table.rowsByKey = new Map();
    const titles = element("tr", "", ...heads.map(([title, className, key]) => {
      const made = element("th", className, title);
      if (key) made.addEventListener("click", () => sortBy(key));
      if (key) made.dataset.key = key;
      made.scope = "col";
      made.setAttribute("role", "columnheader");
      return made;
    }));
    titles.setAttribute("role", "row");
    const groups = [element("thead", "", titles), element("tbody")];
    groups.forEach((group) => group.setAttribute("role", "rowgroup"));
    table.setAttribute("role", "table"); // laid out as cards, it stays a table for screen readers
    table.replaceChildren(...groups);
  }
  if (!rows.length) rows = [{ key: "\n nothing", cells: [{ ...text(otherwise, "quiet wide"), across: true }] }];
  const body = table.tBodies[0];
  const before = table.rowsByKey;
  table.rowsByKey = new Map();
  let place = body.firstChild;
  for (const { key, className, cells } of rows) {
    let row = before.get(key);
    if (!row) {
      row = element("tr", className || "");
      row.setAttribute("role", "row");
    }
    before.delete(key);
    table.rowsByKey.set(key, row);
    cells.forEach((wanted, index) => update(row, index, wanted, heads));
    if (row === place) place = place.nextSibling;
    else body.insertBefore(row, place);
  }
  before.forEach((row) => row.remove());
}

function update(row, index, wanted, heads) {
  let there = row.cells[index];
  if (!there) {
    there = element(wanted.tag || "td");
    there.setAttribute("role", wanted.tag ? "rowheader" : "cell");
    if (wanted.tag) there.scope = "row";
    else if (wanted.across) there.colSpan = heads.length;
    else there.dataset.label = heads[index][0];
    row.append(there);
  }
  if (there.signature === wanted.signature) return;
  there.signature = wanted.signature;
  const content = wanted.make();
  const open = there.querySelector("details[open]");
  const focused = there.contains(document.activeElement);
  there.replaceChildren(...content);
  if (open) there.querySelector("details").open = true;
  if (focused) there.querySelector("summary, a")?.focus();
  there.className = wanted.className + (content.length === 1 && content[0] === "" ? " none" : "");
}

// --- times ---

function duration(seconds) {
  const total = Math.floor(Math.max(0, seconds));
  if (total < 60) return total + " s";
  if (total < 3600) return Math.floor(total / 60) + " min " + (total % 60) + " s";
  if (total < 86400) return Math.floor(total / 3600) + " h " + Math.floor((total % 3600) / 60) + " min";
  return Math.floor(total / 86400) + " d " + Math.floor((total % 86400) / 3600) + " h";
}

const CLOCK = { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23", timeZoneName: "short" };

function clock(at) {
  const day = (when) => when.toLocaleDateString("en-GB", { timeZone: zone, day: "numeric", month: "short", year: "numeric" });
  const time = at.toLocaleTimeString("en-GB", { timeZone: zone, ...CLOCK });
  return day(at) === day(new Date()) ? time : day(at) + " " + time;
}

function moment(iso, prefix = "") {
  const at = new Date(iso);
  const words = prefix + clock(at);
  return cell(words, "time quiet", () => {
    const made = element("time", "", words);
    made.dateTime = iso;
    return [made];
  });
}

// --- routes ---

// The first key is the kind of the source; it is left out for a subject.
function source(from) {
  const [first, ...more] = Object.entries(from).filter(([key]) => key !== "connection");
  if (first === undefined) return "";
  return [first[0] === "subject" ? first[1] : first.join(" "), ...more.map((one) => one.join(" "))].join(", ");
}

function path(route) {
  const to = route.to;
  return cell(JSON.stringify([route.from, to]), "path wide", () => {
    const line = (where, what, on) => element("span", "", where, element("span", "code", what), element("span", "quiet", " on " + on));
    const lines = [line("", source(route.from), route.from.connection)];
    for (const one of to) {
      lines.push(line(one.dead_letters ? "dead letters → " : "→ ", one.subject, one.connection + (one.jetstream ? ", JetStream" : "")));
    }
    return lines;
  });
}

// Records the numbers of each route since the last snapshots. The router keeps no rates. A message that its stream
// delivers again comes in once: it was returned in between.
function measure(status) {
  for (const key of rates.keys()) if (!status.routes[key]) rates.delete(key);
  for (const [key, route] of Object.entries(status.routes)) {
    const { received, ledger, routed, to } = route;
    const now = { at: status.uptime_seconds, in: received - (ledger.settled.returned || 0), out: routed, to: to.map((one) => one.routed) };
    const known = rates.get(key);
    const before = known && known.looks[known.looks.length - 1];
    if (before && before.at === now.at) continue;
    if (!before || before.at > now.at || before.out > now.out || before.to.length !== now.to.length) {
      rates.set(key, { looks: [now], in: [], out: [] });
      continue;
    }
    for (const way of ["in", "out"]) {
      known[way] = [...known[way], Math.max(0, (now[way] - before[way]) / (now.at - before.at))].slice(-SAMPLES);
    }
    known.looks = [...known.looks.filter((one) => one.at > now.at - OVER - 1), now];
  }
}

// Returns messages a second over the last seconds, by a function of a look; null while there is only one look.
function rateOf(key, read) {
  const looks = rates.get(key).looks;
  const from = looks[0];
  const to = looks[looks.length - 1];
  return looks.length < 2 ? null : Math.max(0, (read(to) - read(from)) / (to.at - from.at));
}

function perSecond(rate) {
  if (rate === null) return "";
  return (rate > 0 && rate < 9.5 ? rate.toFixed(1) : number(Math.round(rate))) + "/s";
}

function rate(model) {
  const { in: entered, out: left } = rates.get(model.key);
  if (!entered.length) return text("", "number");
  const now = perSecond(model.in);
  const most = Math.max(...entered, ...left);
  const line = (samples) => "M" + samples.map((one, index) => {
    const x = 120 * (1 - (samples.length - 1 - index) / (SAMPLES - 1));
    return x.toFixed(1) + " " + (18.5 - (most ? (17 * one) / most : 0)).toFixed(1);
  }).join("L");
  const drawn = [line(left), line(entered)];
  return cell(now + drawn.join(), "number rate", () => {
    const chart = byId("spark").content.firstElementChild.cloneNode(true);
    chart.setAttribute("aria-label", "Last " + entered.length + " s: at most " + number(Math.round(most)) + " per second");
    drawn.forEach((path, index) => chart.children[index].setAttribute("d", path));
    return [chart, now];
  });
}

// Describes the messages that are being retried: their number, and the age of the oldest.
function retrying(route) {
  const messages = route.retrying.count;
  if (!messages) return null;
  const age = duration(route.retrying.oldest_seconds);
  return messages === 1 ? `1 message is being retried, for ${age}` : `${number(messages)} messages are being retried, the oldest for ${age}`;
}

function lastFailure(route) {
  const failure = route.last_failure;
  if (!failure) return null;
  const which = failure.sequence === null ? "" : ` (message ${failure.sequence}, attempt ${failure.attempt})`;
  return `last failure at ${clock(new Date(failure.at))}: ${failure.reason}${failure.subject === null ? "" : " on " + failure.subject}` +
    which + (failure.place === null ? "" : `, at ${failure.place}`) + (failure.detail ? `: ${failure.detail}` : "");
}

// Returns what the page shows of a route. `kind` is the worst of all that is not well.
function model(key, route, unready) {
  const found = [];
  const notRunning = route.state === "failed" ? "bad" : "warn";
  for (const reason of route.reason ? [route.reason, ...unready] : unready) {
    const help = / paused on the server| is paused /.test(reason) ? DOCS + "how-to/pause-a-route.md" : runbook("RouterRouteNotRunning");
    found.push({ text: reason, kind: notRunning, help });
  }
  const again = retrying(route);
  if (again) found.push({ text: again, kind: "warn", help: runbook("RouterMessageRetriedForLong") });
  const off = imbalance(route.ledger, ["received", "in_hand"]);
  if (off) found.push({ text: "the ledger is off by " + number(off), kind: "bad", help: runbook("RouterRouteLedgerUnbalanced") });
  const opened = (route.breakers || []).filter((one) => one.state !== "closed");
  if (opened.length) found.push({ text: "the breaker of " + opened.map((one) => one.destination).join(", ") + " is open", kind: "warn", help: runbook("RouterBreakerOpen") });
  if (route.behind && route.behind.seconds > 300) {
    found.push({ text: `the oldest message waits for ${duration(route.behind.seconds)}`, kind: "warn", help: runbook("RouterRouteBehind") });
  }
  let kind = found.some((one) => one.kind === "bad") ? "bad" : found.length ? "warn" : "good";
  if (kind === "good" && STATES[route.state] !== "good") kind = STATES[route.state] || "bad";
  const failure = lastFailure(route);
  if (failure) found.push({ text: failure, kind: again ? "warn" : "past", help: DOCS + "operations/troubleshooting.md#a-message-fails" });
  return { key, route, kind, found, in: rateOf(key, (look) => look.in), out: rateOf(key, (look) => look.out) };
}

function state({ route, kind }) {
  if (route.standby && route.state === "running") return pill("standby", kind);
  return pill(route.state, kind);
}

// Describes how far a route is behind its stream: messages and the age of the oldest. Routes from a subject have none.
function behind(route) {
  if (route.behind === undefined) return text("", "number");
  if (route.behind === null) return text("unknown", "number quiet");
  const { messages, seconds } = route.behind;
  if (!messages) return count(0);
  const words = number(messages) + ", " + duration(seconds);
  return seconds > 300 ? cell(words, "number", () => [link(words, runbook("RouterRouteBehind"), "pill warn")]) : text(words, "number");
}

// --- which routes are shown: those that are not well come first, unless another order is chosen ---

const KINDS = ["bad", "warn", "good"];
const SORTS = {
  state: ["not well first", (one) => KINDS.indexOf(one.kind)],
  name: ["name", (one) => one.key],
  in: ["messages in", (one) => -one.in],
  out: ["messages out", (one) => -one.out],
  behind: ["behind", (one) => -(one.route.behind ? one.route.behind.seconds : -1)],
  failed: ["failed", (one) => -one.route.failed],
  dead: ["dead-lettered", (one) => -one.route.dead_lettered],
};
const FILTERS = {
  all: ["All", () => true],
  ill: ["Not well", (one) => one.kind !== "good"],
  busy: ["Busy", (one) => one.in > 0 || one.out > 0],
};

function sortBy(key) {
  sort = key;
  byId("sort").value = key;
  if (shown) show(shown);
}

function chosen(models) {
  const words = byId("find").value.trim().toLowerCase();
  const names = (one) => [one.key, ...Object.values(one.route.from).flat(), ...one.route.to.flatMap((to) => [to.subject, to.connection])];
  const [, passes] = FILTERS[filter];
  const [, order] = sort === "state" && models.length <= FEW ? [0, () => 0] : SORTS[sort];
  const found = models.filter((one) => passes(one) && (!words || names(one).some((text) => String(text).toLowerCase().includes(words))));
  const placed = found.map((one, index) => [order(one), index, one]);
  placed.sort(([a, first], [b, second]) => (a < b ? -1 : a > b ? 1 : first - second));
  return placed.map(([, , one]) => one);
}

function showControls(models, found) {
  byId("controls").hidden = models.length <= FEW && !byId("find").value;
  for (const button of byId("filters").children) {
    const [title, passes] = FILTERS[button.value];
    const words = title + " " + number(models.filter(passes).length);
    if (button.textContent !== words) button.textContent = words;
    button.setAttribute("aria-pressed", String(button.value === filter));
  }
  const rest = found.length - rows;
  byId("more").hidden = rest <= 0;
  setText("more", "Show " + number(Math.min(rest, ROWS)) + " more of " + number(rest));
}

function showRoutes(visible) {
  const rows = visible.flatMap((one) => {
    const { key, route } = one;
    const cells = [
      name(key), path(route), state(one), rate(one), text(perSecond(one.out), "number"), behind(route),
      alarming(route.failed, "warn", DOCS + "operations/troubleshooting.md#a-message-fails"),
      alarming(route.dead_lettered, "bad", runbook("RouterMessagesDeadLettered")),
    ];
    return [{ key, cells }, ...why(key, key, one.found)];
  });
  const heads = [["Name", "", "name"], ["From → to"], ["State", "", "state"], ["In", "number", "in"], ["Out", "number", "out"],
    ["Behind", "number", "behind"], ["Failed", "number", "failed"], ["Dead-lettered", "number", "dead"]];
  fill(byId("routes"), heads, rows, shown.status.routes && Object.keys(shown.status.routes).length ? "No such routes." : "No routes.");
  for (const head of byId("routes").tHead.rows[0].cells) {
    if (!head.dataset.key) continue;
    if (head.dataset.key !== sort || byId("controls").hidden) head.removeAttribute("aria-sort");
    else head.setAttribute("aria-sort", sort === "name" || sort === "state" ? "ascending" : "descending");
  }
}

// --- the flow: sources, routes and destinations; a line is as wide as its rate, and has the colour of its state ---

function drawing(tag, attributes, ...content) {
  const made = document.createElementNS(byId("flow").namespaceURI, tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...content);
  return made;
}

const width = (rate) => (rate ? Math.min(14, 2 + 2.4 * Math.log10(1 + rate)) : 1.5);

// Returns the nodes and lines of some routes: sources, routes and destinations by key, in three columns.
function flowOf(models, connections) {
  const columns = [new Map(), new Map(), new Map()];
  const lines = [];
  const node = (column, key, title, detail, kind, route) => {
    if (!columns[column].has(key)) columns[column].set(key, { key, title, detail, kind, route });
    return columns[column].get(key);
  };
  const away = (name) => connections[name] && connections[name].state !== "connected";
  for (const one of models) {
    const { key, route } = one;
    const { connection, ...from } = route.from;
    const first = Object.entries(from)[0] || ["", ""];
    const where = first[0] === "subject" || !first[0] ? source({ connection, subject: from.subject || "" }) : first.join(" ");
    const entry = node(0, connection + "\n" + where, where, "on " + connection, away(connection) ? "bad" : "");
    const words = one.kind === "good" ? perSecond(one.in) + " → " + perSecond(one.out) : route.state + (one.in ? ", " + perSecond(one.in) : "");
    const middle = node(1, key, key, one.in === null ? route.state : words, one.kind, one);
    lines.push({ from: entry, to: middle, rate: one.in, kind: one.kind });
    route.to.forEach((to, index) => {
      if (to.dead_letters && !to.routed) return;
      const broken = (route.breakers || []).some((breaker) => breaker.destination === to.subject && breaker.state !== "closed");
      const kind = away(to.connection) ? "bad" : broken ? "warn" : to.dead_letters ? "warn" : one.kind;
      const end = node(2, to.connection + "\n" + to.subject, to.subject, "on " + to.connection, away(to.connection) ? "bad" : "");
      lines.push({ from: middle, to: end, rate: rateOf(key, (look) => look.to[index]), kind, dashed: to.dead_letters });
    });
  }
  return { columns: columns.map((one) => [...one.values()]), lines };
}

// Draws the first routes of the list; the others are summed up.
function showFlow(models, found, connections) {
  const section = byId("flow").parentElement;
  section.hidden = !models.length;
  const wide = section.clientWidth - 38;
  if (!models.length || wide < 100) return;
  const drawn = found.slice(0, DRAWN);
  const { columns, lines } = flowOf(drawn, connections);
  const small = wide < 640;
  const [size, tall, gap] = small ? [11, 38, 8] : [13, 46, 12];
  const column = small ? Math.floor((wide - 44) / 3) : Math.min(310, Math.floor((wide - 160) / 3));
  const places = new Map(columns[1].map((one, index) => [one, index]));
  for (const [ends, own] of [[columns[0], "from"], [columns[2], "to"]]) {
    const middle = (one) => {
      const met = lines.filter((line) => line[own] === one).map((line) => places.get(own === "from" ? line.to : line.from));
      return met.reduce((sum, place) => sum + place, 0) / met.length;
    };
    const order = new Map(ends.map((one) => [one, middle(one)]));
    ends.sort((one, other) => order.get(one) - order.get(other));
  }
  const high = Math.max(...columns.map((one) => one.length)) * (tall + gap);
  const lefts = [0, (wide - column) / 2, wide - column];
  columns.forEach((nodes, index) => nodes.forEach((one, row) => {
    one.x = lefts[index];
    one.y = ((row + 0.5) * high) / nodes.length;
  }));
  const paths = lines.map(({ from, to, rate, kind, dashed }) => {
    const [x1, x2] = [from.x + column, to.x];
    const bend = (x2 - x1) / 2;
    const d = `M${x1} ${from.y}C${x1 + bend} ${from.y} ${x2 - bend} ${to.y} ${x2} ${to.y}`;
    const made = drawing("path", { d, "stroke-width": width(rate).toFixed(1), class: "line " + (kind === "good" && !rate ? "idle" : kind) + (dashed || (kind !== "good" && !rate) ? " dashed" : "") });
    made.append(drawing("title", {}, from.title + " → " + to.title + (rate ? ": " + perSecond(rate) : "")));
    return made;
  });
  const cut = (words, letter) => {
    const room = Math.max(2, Math.floor((column - 16) / letter));
    return words.length > room ? words.slice(0, room - 1) + "…" : words;
  };
  const boxes = columns.flat().map((one) => {
    const group = drawing("svg", { class: "node " + one.kind, x: one.x.toFixed(1), y: (one.y - tall / 2).toFixed(1), width: column, height: tall });
    group.append(
      drawing("rect", { x: 0.75, y: 0.75, width: column - 1.5, height: tall - 1.5, rx: 7 }),
      drawing("text", { x: 8, y: tall / 2 - 4, class: "title", "font-size": size }, cut(one.title, 0.62 * size)),
      drawing("text", { x: 8, y: tall / 2 + size, "font-size": size - 1 }, cut(one.detail, 0.58 * size)),
      drawing("title", {}, one.title + ", " + one.detail),
    );
    if (one.route) group.addEventListener("click", () => find(one.key));
    return group;
  });
  const rest = found.length - drawn.length;
  const sum = (way, all) => all.reduce((total, one) => total + (one[way] || 0), 0);
  const total = `${perSecond(sum("in", models))} in, ${perSecond(sum("out", models))} out`;
  const words = rest > 0 ? `${number(drawn.length)} of ${number(found.length)} routes are drawn; all together: ${total}` : `All together: ${total}`;
  const below = drawing("text", { x: wide / 2, y: high + 18, "text-anchor": "middle", class: "sum", "font-size": size }, words);
  const svg = byId("flow");
  svg.setAttribute("viewBox", `0 0 ${wide} ${high + 26}`);
  svg.setAttribute("aria-label", `${number(models.length)} routes, ${number(models.filter((one) => one.kind !== "good").length)} not well. ${words}.`);
  svg.replaceChildren(...paths, ...boxes, below);
}

function find(words) {
  byId("find").value = words;
  rows = ROWS;
  if (shown) show(shown);
}

// A row of all partitions: those led here, those that should be, and those of other processes.
function partitionsOf({ count: all, led, wanted, lag }) {
  return cell(JSON.stringify([all, led, wanted, lag]), "wide", () => {
    const kinds = new Map([...wanted.map((one) => [one, "wanted"]), ...led.map((one) => [one, "led"])]);
    const fields = element("span", "fields");
    fields.setAttribute("aria-hidden", "true"); // the text beside it has the same content
    for (let partition = 0; partition < all; partition += 1) {
      const made = element("span", "field " + (kinds.get(partition) || "other"), String(partition));
      if (lag[partition] !== undefined) made.title = number(lag[partition]) + " behind";
      fields.append(made);
    }
    const words = "Leads " + (led.join(", ") || "none") + (wanted.length ? "; waits for " + wanted.join(", ") : "");
    return [fields, element("span", "only-read", words)];
  });
}

// Partitions have a section only if a route has some.
function showPartitions(routes) {
  const shared = routes.filter(([, one]) => one.partitions);
  byId("partitions").parentElement.hidden = !shared.length;
  fill(
    byId("partitions"),
    [["Route"], ["Partitions"], ["Led here", "number"], ["Waited for", "number"], ["Processes", "number"],
      ["Not copied yet", "number"]],
    shared.map(([key, { partitions }]) => ({
      key,
      cells: [
        name(key), partitionsOf(partitions), count(partitions.led.length), alarming(partitions.wanted.length, "warn"),
        count(partitions.members), count(partitions.uncopied),
      ],
    })),
    "No partitions.",
  );
}

// Limits and breakers have a section only if a route has one.
function showPolicies(routes) {
  const limits = routes.filter(([, one]) => one.limit);
  const breakers = routes.flatMap(([key, one]) => (one.breakers || []).map((breaker, index) => [key, breaker, index]));
  byId("limits").parentElement.hidden = !limits.length;
  byId("breakers").parentElement.hidden = !breakers.length;
  fill(
    byId("limits"),
    [["Route"], ["Rate"], ["Burst", "number"], ["Per"], ["Waiting in hand", "number"], ["Delayed", "number"]],
    limits.map(([key, { limit }]) => ({
      key,
      cells: [name(key), text(limit.rate), count(limit.burst), text(limit.per, "code"), count(limit.waiting), count(limit.limited)],
    })),
    "No limits.",
  );
  const kinds = { closed: "good", open: "bad" };
  fill(
    byId("breakers"),
    [["Route"], ["Destination"], ["Connection"], ["State"], ["Opened", "number"]],
    breakers.flatMap(([key, one, index]) => [
      {
        key: key + "\n" + index,
        cells: [
          name(key), text(one.destination, "code wide"), text(one.connection),
          pill(one.state.replace("_", " "), kinds[one.state] || "warn"), count(one.opened),
        ],
      },
      ...why(key + "\n" + index, key, one.reason ? [{ text: one.reason, kind: "warn", help: runbook("RouterBreakerOpen") }] : []),
    ]),
    "No breakers.",
  );
}

// --- everything else ---

// Returns by how much the first of `fields` differs from the sum of the others and of all fates: 0 in a correct ledger.
function imbalance(ledger, [all, ...fields]) {
  const parts = [...fields.map((field) => ledger[field]), ...Object.values(ledger.settled)];
  return parts.reduce((rest, part) => rest - part, ledger[all]);
}

function showLedger(id, head, otherwise, columns, entries) {
  const fates = entries.length ? Object.keys(entries[0][1].settled) : [];
  const titles = [...columns.map(([title]) => title), ...fates.map((fate) => fate.replace("_", " ")), "Adds up"];
  const fields = columns.map(([, field]) => field);
  fill(
    byId(id),
    [[head], ...titles.map((title) => [title, "number"])],
    entries.map(([key, one]) => {
      const off = imbalance(one, fields);
      const sum = off ? pill("off by " + number(off), "bad", "number") : pill("yes", "good", "number");
      return { key, cells: [name(key), ...fields.map((field) => count(one[field])), ...fates.map((fate) => alarming(one.settled[fate], FATES[fate])), sum] };
    }),
    otherwise,
  );
}

// A router that runs as one process has no workers, and the section is hidden.
function showWorkers(workers) {
  const rows = Object.entries(workers || {}).map(([key, one]) => ({
    key,
    cells: [name(key), pill(one.state, STATES[one.state] || "bad"), text(one.pid, "number"), count(one.restarts)],
  }));
  byId("workers").parentElement.hidden = !rows.length;
  fill(byId("workers"), [["Worker"], ["State"], ["Process", "number"], ["Restarts", "number"]], rows, "No workers.");
}

// A refused reload leaves the router ready, so it is not among the reasons: a pill beside them leads to its problems.
function showConfig(config) {
  const refused = config.last_error !== null;
  byId("refused").hidden = !refused;
  const cells = [
    { ...text(config.hash, "code"), tag: "th" }, moment(config.loaded_at), text(config.files.join(", ") || "none: made in code", "wide"),
    count(config.reloads.accepted), alarming(config.reloads.refused, refused ? "warn" : ""),
  ];
  const lines = refused ? ["The last reload was refused, and the configuration above stays in force:", ...config.last_error.split("\n")] : [];
  const problems = lines.map((text, index) => ({ text, kind: "warn", help: index ? null : runbook("RouterReloadRefused") }));
  const heads = [["In force"], ["Since"], ["Files"], ["Reloads accepted", "number"], ["Reloads refused", "number"]];
  fill(byId("config"), heads, [{ key: "config", cells }, ...why("config", "configuration", problems)], "");
}

function showConnections(connections, reasons) {
  const rows = connections.flatMap(([key, one]) => {
    const unready = reasons.filter((reason) => reason.connection === key).map((reason) => reason.reason);
    const isKnown = one.state === "connected" || unready.some((reason) => reason.includes(one.last_error));
    const error = isKnown ? null : one.last_error;
    const since = duration((Date.now() - Date.parse(one.since)) / 1000);
    const cells = [
      name(key), pill(one.state, STATES[one.state] || "bad"), text(since, "time"), moment(one.since), text(one.server, "wide"),
      count(one.attempts), count(one.pending), count(one.in_flight),
    ];
    const kind = one.state === "disconnected" ? "bad" : "warn";
    const found = [...unready, error].filter(Boolean).map((text) => ({ text, kind, help: runbook("RouterConnectionDown") }));
    return [{ key, cells }, ...why(key, key, found)];
  });
  const heads = [["Name"], ["State"], ["For"], ["Since"], ["Server"], ["Attempts", "number"], ["Pending", "number"], ["In flight", "number"]];
  fill(byId("connections"), heads, rows, "No connections yet.");
}

function details(event) {
  const fields = Object.entries({ first: event.first_at, last: event.at, ...event.details });
  return cell(String(event.number), "wide", () => {
    const list = element("dl");
    for (const [field, value] of fields) list.append(element("dt", "", field), element("dd", "", String(value)));
    return [element("details", "", element("summary", "", event.message), list)];
  });
}

function showEvents() {
  const newest = [...events.values()].sort((one, other) => (one.at < other.at) - (one.at > other.at)).slice(0, MAX_EVENTS);
  events = new Map(newest.map((event) => [event.id, event]));
  const rows = newest.map((event) => {
    const kind = LEVELS[event.level] || (RECOVERED.test(event.code) ? "good" : "");
    const help = RUNBOOKS[event.code] ? runbook(RUNBOOKS[event.code]) : DOCS + "reference/logs.md";
    const code = cell(kind + event.code, "code", () => [link(event.code, help, kind && "pill " + kind)]);
    const times = event.count > 1 ? text("× " + number(event.count), "number") : text("", "number");
    return { key: String(event.id), cells: [moment(event.at), code, details(event), times] };
  });
  fill(byId("events"), [["Time"], ["Code"], ["What happened"], ["Count", "number"]], rows, "No events yet.");
}

// Shows each reason once, with the first of its connections, routes and workers.
function showReasons(reasons) {
  const list = byId("reasons");
  const signature = JSON.stringify(reasons);
  if (list.signature === signature) return;
  list.signature = signature;
  const parts = new Map();
  for (const reason of reasons) {
    const worker = reason.worker ? "worker " + reason.worker : "";
    const what = reason.connection ? "connection " + reason.connection : reason.route ? "route " + reason.route : "";
    const part = [worker, what].filter(Boolean).join(", ") || "router";
    parts.set(reason.reason, [...(parts.get(reason.reason) || []), part]);
  }
  const lines = [...parts].map(([reason, [first, second, ...more]]) => {
    const others = more.length ? ` and ${number(more.length + 1)} more` : second ? `, ${second}` : "";
    return element("li", "", element("span", "pill bad", first + others), " " + reason + " ", link("What to do", runbook("RouterNotReady")));
  });
  list.replaceChildren(...lines);
}

function show(snapshot) {
  shown = snapshot;
  const status = snapshot.status;
  const reasons = snapshot.readiness.reasons;
  measure(status);
  const unready = new Map();
  for (const { route, reason } of reasons) if (route) unready.set(route, [...(unready.get(route) || []), reason]);
  const models = Object.entries(status.routes).map(([key, route]) => model(key, route, unready.get(key) || []));
  const found = chosen(models);
  const visible = found.slice(0, rows);
  const routes = visible.map((one) => [one.key, one.route]);
  document.title = (reasons.length ? "● " : "") + status.name;
  setText("name", status.name);
  setText("about", "router_trio " + status.version + ", up " + duration(status.uptime_seconds));
  setText("ready", reasons.length ? "not ready" : "ready", "pill " + (reasons.length ? "bad" : "good"));
  showReasons(reasons);
  showConfig(status.config);
  showWorkers(status.workers);
  showConnections(Object.entries(status.connections), reasons);
  showControls(models, found);
  showFlow(models, found, status.connections);
  showRoutes(visible);
  showPartitions(routes);
  showPolicies(routes);
  showLedger("route-ledger", "Route", "No routes.", [["Received", "received"], ["In hand", "in_hand"]],
    routes.map(([key, one]) => [key, one.ledger]));
  showLedger("ledger", "Connection", "No connections yet.",
    [["Accepted", "accepted"], ["Pending", "pending"], ["In flight", "in_flight"]], Object.entries(status.ledger));
}

function addEvents(added) {
  if (added.length) {
    if (added[0].number <= last) events = new Map();
    last = added[added.length - 1].number;
    for (const event of added) events.set(event.id, event);
  }
  showEvents();
}

function answered(how) {
  answeredAt = performance.now();
  liveness = how;
  tick();
}

function tick() {
  const silence = performance.now() - answeredAt;
  document.body.classList.toggle("stale", silence > STALE_AFTER);
  if (silence > STALE_AFTER) {
    setText("ready", "no answer", "pill bad");
    document.title = "○ " + byId("name").textContent;
    setText("live", "no answer for " + duration(silence / 1000) + "; the data below is outdated");
  } else {
    setText("live", liveness);
  }
}

async function poll() {
  try {
    const [status, readiness] = await Promise.all(["/status", "/readyz"].map(async (page) => (await fetch(page)).json()));
    show({ status, readiness });
    answered("not live, refreshed every 5 s");
  } catch {
    tick();
  }
}

function watch() {
  const stream = new EventSource("/events?changes&after=" + last);
  stream.onmessage = (message) => {
    const snapshot = JSON.parse(message.data);
    if (snapshot.gone) {
      // Only the routes that have changed since the last message.
      const routes = { ...shown.status.routes, ...snapshot.status.routes };
      for (const key of snapshot.gone) delete routes[key];
      snapshot.status.routes = routes;
    }
    show(snapshot);
    addEvents(snapshot.events);
    answered("● live");
  };
  stream.onerror = () => {
    // The server ends each stream after a while, and the browser reconnects by itself. If it gives up, poll instead.
    if (stream.readyState !== EventSource.CLOSED) return;
    poll();
    setTimeout(watch, 5000);
  };
}

function nameZone() {
  setText("zone", zone ? "show local time" : "show UTC");
}

byId("zone").addEventListener("click", () => {
  zone = zone ? undefined : "UTC";
  nameZone();
  if (shown) show(shown);
  showEvents();
});
byId("zone").hidden = false;
nameZone();
byId("sort").append(...Object.entries(SORTS).map(([key, [title]]) => new Option(title, key)));
byId("sort").addEventListener("change", () => sortBy(byId("sort").value));
byId("find").addEventListener("input", () => {
  rows = ROWS;
  show(shown);
});
byId("more").addEventListener("click", () => {
  rows += ROWS;
  show(shown);
});
for (const key of Object.keys(FILTERS)) {
  const button = element("button");
  button.type = "button";
  button.value = key;
  button.addEventListener("click", () => {
    filter = key;
    rows = ROWS;
    show(shown);
  });
  byId("filters").append(button);
}
addEventListener("resize", () => shown && show(shown));
const first = JSON.parse(byId("first").textContent);
show(first);
addEvents(first.events);
answered("as of " + clock(new Date()));
setInterval(tick, 1000);
watch();
