"use strict";
// Everything is shown as text: no value from the router is ever read as HTML.
const KEPT = 200; // events
const SAMPLES = 60; // rates of a route, one a second
const SILENT_AFTER = 8000; // ms: then what is shown is old, and the page says so
const STATES = { connected: "good", running: "good", standby: "good", reconnecting: "warn", starting: "warn", paused: "warn",
  draining: "warn", waiting: "warn" };
const LEVELS = { INFO: "", DEBUG: "", WARN: "warn", ERROR: "bad" };
const byId = (id) => document.getElementById(id);
const number = (value) => Number(value).toLocaleString("en");

let shown = null; // the last look
let events = [];
let last = 0;
let heard = performance.now();
let quality = "connecting …";
let zone = "UTC"; // as in the logs; undefined is that of the browser
const rates = new Map(); // of each route: {uptime, received, samples}

function element(tag, className, ...content) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...content);
  return made;
}

function say(id, text, className) {
  const place = byId(id);
  if (place.textContent !== text) place.textContent = text;
  if (className !== undefined && place.className !== className) place.className = className;
}

// --- cells: what they show, and a sign that is the same as long as that is the same ---

const cell = (sign, className, make) => ({ sign: className + "\n" + sign, className, make });

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

// Why something does not work, across the whole table, below the row that it belongs to.
function why(key, who, reasons, kind) {
  const all = [...new Set(reasons.filter(Boolean))];
  if (!all.length) return [];
  const make = () => [element("span", "only-read", who + ": "), ...all.map((one) => element("span", "reason " + kind, one))];
  return [{ key: key + "\n why", className: "why", cells: [{ ...cell(kind + all.join("\n"), "wide", make), across: true }] }];
}

// --- tables: rows have keys, and what did not change stays, with its focus, its selection and its open details ---

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
    table.setAttribute("role", "table"); // a table that is laid out as cards is one for those who hear it all the same
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
  if (there.sign === wanted.sign) return;
  there.sign = wanted.sign;
  const content = wanted.make();
  there.replaceChildren(...content);
  there.className = wanted.className + (content.length === 1 && content[0] === "" ? " none" : "");
}

// --- times ---

function duration(seconds) {
  const whole = Math.floor(Math.max(0, seconds));
  if (whole < 60) return whole + " s";
  if (whole < 3600) return Math.floor(whole / 60) + " min " + (whole % 60) + " s";
  if (whole < 86400) return Math.floor(whole / 3600) + " h " + Math.floor((whole % 3600) / 60) + " min";
  return Math.floor(whole / 86400) + " d " + Math.floor((whole % 86400) / 3600) + " h";
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

// The first key says what kind of source it is; a subject goes without saying.
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

// The rate since the last look, and those before: only this page remembers them.
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
    chart.setAttribute("aria-label", "The last " + samples.length + " s: at most " + number(Math.round(most)) + " a second");
    chart.firstElementChild.setAttribute("d", drawn);
    return [chart, now];
  });
}

function state(route, reasons) {
  if (route.standby && route.state === "running") return pill("standby", "good");
  return pill(route.state, reasons.length && route.state === "running" ? "warn" : STATES[route.state] || "bad");
}

// What fails again and again: how much, since when, and how the last message failed.
function retrying(route) {
  const many = route.retrying ? route.retrying.count : 0;
  if (!many) return null;
  const last = route.last_failure;
  const since = `${many} ${many === 1 ? "is" : "are"} being retried, oldest since ${duration(route.retrying.oldest_seconds)}`;
  if (!last) return since;
  const which = last.sequence === null ? "" : ` (message ${last.sequence}, attempt ${last.attempt})`;
  return `${since}; last failure: ${last.reason}${last.subject === null ? "" : " on " + last.subject}${which}` +
    (last.place === null ? "" : `, at ${last.place}`) + (last.detail ? `: ${last.detail}` : "");
}

function showRoutes(routes, reasons) {
  const rows = routes.flatMap(([key, one]) => {
    const told = reasons.filter((reason) => reason.route === key).map((reason) => reason.reason);
    const all = [...(one.reason ? [one.reason, ...told] : told), retrying(one)];
    const cells = [
      name(key), path(one), state(one, all.filter(Boolean)), rate(key), count(one.received), count(one.routed),
      alarming(one.failed, "warn"), alarming(one.dead_lettered, "bad"),
    ];
    return [{ key, cells }, ...why(key, key, all, one.state === "failed" ? "bad" : "warn")];
  });
  const heads = [["Name"], ["From → to"], ["State"], ["Rate", "number"], ["Received", "number"], ["Routed", "number"],
    ["Failed", "number"], ["Dead-lettered", "number"]];
  fill(byId("routes"), heads, rows, "No routes.");
}

// Limits and breakers are shown if there are any.
function showFlow(routes) {
  const limits = routes.filter(([, one]) => one.limit);
  const breakers = routes.flatMap(([key, one]) => (one.breakers || []).map((breaker, index) => [key, breaker, index]));
  byId("limits").parentElement.hidden = !limits.length;
  byId("breakers").parentElement.hidden = !breakers.length;
  fill(
    byId("limits"),
    [["Route"], ["Rate"], ["Burst", "number"], ["For each"], ["Waiting in hand", "number"], ["Delayed", "number"]],
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

// The first of `columns` must be the sum of the others and of all fates.
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

// Of one process there are none.
function showWorkers(workers) {
  const rows = Object.entries(workers || {}).map(([key, one]) => ({
    key,
    cells: [name(key), pill(one.state, STATES[one.state] || "bad"), text(one.pid, "number"), count(one.restarts)],
  }));
  byId("workers").parentElement.hidden = !rows.length;
  fill(byId("workers"), [["Worker"], ["State"], ["Process", "number"], ["Restarts", "number"]], rows, "No workers.");
}

function showConnections(connections, reasons) {
  const rows = connections.flatMap(([key, one]) => {
    const told = reasons.filter((reason) => reason.connection === key).map((reason) => reason.reason);
    const error = one.state === "connected" || told.some((reason) => reason.includes(one.last_error)) ? null : one.last_error;
    const since = duration((Date.now() - Date.parse(one.since)) / 1000);
    const cells = [
      name(key), pill(one.state, STATES[one.state] || "bad"), text(since, "time"), moment(one.since), text(one.server, "wide"),
      count(one.attempts), count(one.pending), count(one.in_flight),
    ];
    return [{ key, cells }, ...why(key, key, [...told, error], one.state === "disconnected" ? "bad" : "warn")];
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
  fill(byId("events"), [["Time"], ["Code"], ["What happened"], ["Count", "number"]], rows, "Nothing yet.");
}

function showReasons(reasons) {
  const list = byId("reasons");
  const sign = JSON.stringify(reasons);
  if (list.sign === sign) return;
  list.sign = sign;
  list.replaceChildren(...reasons.map((reason) => {
    const worker = reason.worker ? "worker " + reason.worker : "";
    const what = reason.connection ? "connection " + reason.connection : reason.route ? "route " + reason.route : "";
    const who = [worker, what].filter(Boolean).join(", ") || "router";
    return element("li", "", element("span", "pill bad", who), " " + reason.reason);
  }));
}

function show(look) {
  shown = look;
  const status = look.status;
  const reasons = look.readiness.reasons;
  const routes = Object.entries(status.routes);
  measure(status);
  document.title = (reasons.length ? "● " : "") + status.name;
  say("name", status.name);
  say("about", "router_trio " + status.version + ", up " + duration(status.uptime_seconds));
  say("ready", reasons.length ? "not ready" : "ready", "pill " + (reasons.length ? "bad" : "good"));
  showReasons(reasons);
  showWorkers(status.workers);
  showConnections(Object.entries(status.connections), reasons);
  showRoutes(routes, reasons);
  showFlow(routes);
  showLedger("route-ledger", "Route", "No routes.", [["Received", "received"], ["In hand", "in_hand"]],
    routes.map(([key, one]) => [key, one.ledger]));
  showLedger("ledger", "Connection", "No connections yet.",
    [["Accepted", "accepted"], ["Pending", "pending"], ["In flight", "in_flight"]], Object.entries(status.ledger));
}

function told(news) {
  if (news.length) {
    if (news[0].number <= last) events = [];
    last = news[news.length - 1].number;
    // What was summed comes when its second is over, behind what happened meanwhile.
    events = [...news.slice().reverse(), ...events].sort((one, other) => (one.at < other.at) - (one.at > other.at)).slice(0, KEPT);
  }
  showEvents();
}

function alive(how) {
  heard = performance.now();
  quality = how;
  tick();
}

function tick() {
  const silent = performance.now() - heard;
  document.body.classList.toggle("stale", silent > SILENT_AFTER);
  if (silent > SILENT_AFTER) {
    say("ready", "no answer", "pill bad");
    document.title = "○ " + byId("name").textContent;
    say("live", "no answer for " + duration(silent / 1000) + ": what is shown is old");
  } else {
    say("live", quality);
  }
}

async function poll() {
  try {
    const [status, readiness] = await Promise.all(["/status", "/readyz"].map(async (page) => (await fetch(page)).json()));
    show({ status, readiness });
    alive("not live: asking every 5 s");
  } catch {
    tick();
  }
}

function watch() {
  const stream = new EventSource("/events");
  stream.onmessage = (message) => {
    const look = JSON.parse(message.data);
    show(look);
    told(look.events);
    alive("● live");
  };
  stream.onerror = () => {
    // A stream ends now and then, and the browser comes back by itself; when it gives up, it is for us to try.
    if (stream.readyState !== EventSource.CLOSED) return;
    poll();
    setTimeout(watch, 5000);
  };
}

function nameZone() {
  say("zone", zone ? "show local time" : "show UTC");
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
