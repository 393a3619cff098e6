"use strict";
// Everything is inserted as text: no value from the router is ever parsed as HTML.
const MAX_EVENTS = 200;
const SAMPLES = 60; // rates kept for each route, one per second
const STALE_AFTER = 8000; // ms without an answer, after which the page is marked as outdated
const STATES = { connected: "good", running: "good", standby: "good", reconnecting: "warn", starting: "warn", paused: "warn",
  draining: "warn", waiting: "warn" };
const LEVELS = { INFO: "", DEBUG: "", WARN: "warn", ERROR: "bad" };
const byId = (id) => document.getElementById(id);
const number = (value) => Number(value).toLocaleString("en");

let shown = null; // the snapshot on the page
let events = [];
let last = 0; // number of the newest event
let answeredAt = performance.now();
let liveness = "connecting …";
let zone = "UTC"; // as in the logs; undefined is the browser's time zone
const rates = new Map(); // by route: {uptime, received, samples}

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

const alarming = (value, kind) => (value ? pill(number(value), kind, "number") : count(0));

function name(value) {
  return { ...text(value), tag: "th" };
}

// Returns a row with the reasons why something does not work, across all columns, to go below the row of `name`.
function why(key, name, reasons, kind) {
  const all = [...new Set(reasons.filter(Boolean))];
  if (!all.length) return [];
  const make = () => [element("span", "only-read", name + ": "), ...all.map((one) => element("span", "reason " + kind, one))];
  return [{ key: key + "\n why", className: "why", cells: [{ ...cell(kind + all.join("\n"), "wide", make), across: true }] }];
}

// --- tables: rows have keys; unchanged rows keep their focus, selection and open details ---

function fill(table, heads, rows, otherwise) {
  const head = JSON.stringify(heads);
  if (table.head !== head) {
    table.head = head;
    table.rowsByKey = new Map();
    const titles = element("tr", "", ...heads.map(([title, className]) => {
      const made = element("th", className, title);
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
  there.replaceChildren(...content);
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

// Records the rate of each route since the last snapshot. The router keeps no rates.
function measure(status) {
  for (const key of rates.keys()) if (!status.routes[key]) rates.delete(key);
  for (const [key, route] of Object.entries(status.routes)) {
    const before = rates.get(key);
    const now = { uptime: status.uptime_seconds, received: route.received, samples: [] };
    if (before && before.uptime === now.uptime) continue;
    if (before && before.uptime < now.uptime && before.received <= now.received) {
      const rate = (now.received - before.received) / (now.uptime - before.uptime);
      now.samples = [...before.samples, rate].slice(-SAMPLES);
    }
    rates.set(key, now);
  }
}

function rate(key) {
  const samples = rates.get(key).samples;
  if (!samples.length) return text("", "number");
  const now = number(Math.round(samples[samples.length - 1])) + "/s";
  const most = Math.max(...samples);
  const points = samples.map((one, index) => {
    const x = 120 * (1 - (samples.length - 1 - index) / (SAMPLES - 1));
    return x.toFixed(1) + " " + (18.5 - (most ? (17 * one) / most : 0)).toFixed(1);
  });
  const drawn = "M" + points.join("L");
  return cell(now + drawn, "number rate", () => {
    const chart = byId("spark").content.firstElementChild.cloneNode(true);
    chart.setAttribute("aria-label", "Last " + samples.length + " s: at most " + number(Math.round(most)) + " per second");
    chart.firstElementChild.setAttribute("d", drawn);
    return [chart, now];
  });
}

function state(route, reasons) {
  if (route.standby && route.state === "running") return pill("standby", "good");
  return pill(route.state, reasons.length && route.state === "running" ? "warn" : STATES[route.state] || "bad");
}

// Describes the messages that are being retried: their number, the age of the oldest, and the last failure.
function retrying(route) {
  const messages = route.retrying ? route.retrying.count : 0;
  if (!messages) return null;
  const last = route.last_failure;
  const age = duration(route.retrying.oldest_seconds);
  const summary = messages === 1 ? `1 message is being retried, for ${age}`
    : `${messages} messages are being retried, the oldest for ${age}`;
  if (!last) return summary;
  const which = last.sequence === null ? "" : ` (message ${last.sequence}, attempt ${last.attempt})`;
  return `${summary}; last failure: ${last.reason}${last.subject === null ? "" : " on " + last.subject}${which}` +
    (last.place === null ? "" : `, at ${last.place}`) + (last.detail ? `: ${last.detail}` : "");
}

// Describes how far a route is behind its stream: messages and the age of the oldest. Routes from a subject have none.
function behind(route) {
  if (route.behind === undefined) return text("", "number");
  if (route.behind === null) return text("unknown", "number quiet");
  const { messages, seconds } = route.behind;
  return messages ? text(number(messages) + ", " + duration(seconds), "number") : count(0);
}

function showRoutes(routes, reasons) {
  const rows = routes.flatMap(([key, one]) => {
    const unready = reasons.filter((reason) => reason.route === key).map((reason) => reason.reason);
    const all = [...(one.reason ? [one.reason, ...unready] : unready), retrying(one)];
    const cells = [
      name(key), path(one), state(one, all.filter(Boolean)), rate(key), count(one.received), count(one.routed),
      behind(one), alarming(one.failed, "warn"), alarming(one.dead_lettered, "bad"),
    ];
    return [{ key, cells }, ...why(key, key, all, one.state === "failed" ? "bad" : "warn")];
  });
  const heads = [["Name"], ["From → to"], ["State"], ["Rate", "number"], ["Received", "number"], ["Routed", "number"],
    ["Behind", "number"], ["Failed", "number"], ["Dead-lettered", "number"]];
  fill(byId("routes"), heads, rows, "No routes.");
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
function showFlow(routes) {
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
      ...why(key + "\n" + index, key, [one.reason], "warn"),
    ]),
    "No breakers.",
  );
}

// --- everything else ---

// The first of `columns` must equal the sum of the other columns and of all fates.
function showLedger(id, head, otherwise, columns, entries) {
  const fates = entries.length ? Object.keys(entries[0][1].settled) : [];
  const titles = [...columns.map(([title]) => title), ...fates.map((fate) => fate.replace("_", " ")), "Adds up"];
  fill(
    byId(id),
    [[head], ...titles.map((title) => [title, "number"])],
    entries.map(([key, one]) => {
      const [all, ...parts] = [...columns.map(([, field]) => one[field]), ...fates.map((fate) => one.settled[fate])];
      const off = parts.reduce((rest, part) => rest - part, all);
      const sum = off ? pill("off by " + number(off), "bad", "number") : pill("yes", "good", "number");
      return { key, cells: [name(key), ...[all, ...parts].map(count), sum] };
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
  const problems = refused ? ["The last reload was refused, and the configuration above stays in force:", ...config.last_error.split("\n")] : [];
  const heads = [["In force"], ["Since"], ["Files"], ["Reloads accepted", "number"], ["Reloads refused", "number"]];
  fill(byId("config"), heads, [{ key: "config", cells }, ...why("config", "configuration", problems, "warn")], "");
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
    return [{ key, cells }, ...why(key, key, [...unready, error], one.state === "disconnected" ? "bad" : "warn")];
  });
  const heads = [["Name"], ["State"], ["For"], ["Since"], ["Server"], ["Attempts", "number"], ["Pending", "number"], ["In flight", "number"]];
  fill(byId("connections"), heads, rows, "No connections yet.");
}

function details(event) {
  const fields = Object.entries({ at: event.at, ...event.details });
  return cell(String(event.number), "wide", () => {
    const list = element("dl");
    for (const [field, value] of fields) list.append(element("dt", "", field), element("dd", "", String(value)));
    return [element("details", "", element("summary", "", event.message), list)];
  });
}

function showEvents() {
  const rows = events.map((event) => {
    const kind = LEVELS[event.level];
    const code = kind ? pill(event.code, kind, "code") : text(event.code, "code");
    const times = event.details.count > 1 ? text(number(event.details.count), "number") : text("", "number");
    return { key: String(event.number), cells: [moment(event.at), code, details(event), times] };
  });
  fill(byId("events"), [["Time"], ["Code"], ["What happened"], ["Count", "number"]], rows, "No events yet.");
}

function showReasons(reasons) {
  const list = byId("reasons");
  const signature = JSON.stringify(reasons);
  if (list.signature === signature) return;
  list.signature = signature;
  list.replaceChildren(...reasons.map((reason) => {
    const worker = reason.worker ? "worker " + reason.worker : "";
    const what = reason.connection ? "connection " + reason.connection : reason.route ? "route " + reason.route : "";
    const part = [worker, what].filter(Boolean).join(", ") || "router";
    return element("li", "", element("span", "pill bad", part), " " + reason.reason);
  }));
}

function show(snapshot) {
  shown = snapshot;
  const status = snapshot.status;
  const reasons = snapshot.readiness.reasons;
  const routes = Object.entries(status.routes);
  measure(status);
  document.title = (reasons.length ? "● " : "") + status.name;
  setText("name", status.name);
  setText("about", "router_trio " + status.version + ", up " + duration(status.uptime_seconds));
  setText("ready", reasons.length ? "not ready" : "ready", "pill " + (reasons.length ? "bad" : "good"));
  showReasons(reasons);
  showConfig(status.config);
  showWorkers(status.workers);
  showConnections(Object.entries(status.connections), reasons);
  showRoutes(routes, reasons);
  showPartitions(routes);
  showFlow(routes);
  showLedger("route-ledger", "Route", "No routes.", [["Received", "received"], ["In hand", "in_hand"]],
    routes.map(([key, one]) => [key, one.ledger]));
  showLedger("ledger", "Connection", "No connections yet.",
    [["Accepted", "accepted"], ["Pending", "pending"], ["In flight", "in_flight"]], Object.entries(status.ledger));
}

function addEvents(added) {
  if (added.length) {
    if (added[0].number <= last) events = [];
    last = added[added.length - 1].number;
    // A merged event is sent when its second is over, after events that happened later.
    events = [...added.slice().reverse(), ...events].sort((one, other) => (one.at < other.at) - (one.at > other.at));
    events = events.slice(0, MAX_EVENTS);
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
  const stream = new EventSource("/events");
  stream.onmessage = (message) => {
    const snapshot = JSON.parse(message.data);
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
showEvents();
setInterval(tick, 1000);
watch();
