// Everything shown comes from the stream, and every string of it goes into the page as text.
const KEEP = 180_000; // ms of history
const SILENT = 5_000; // ms without news until the stream counts as lost
const UNSEEN = 300_000; // ms in the background until it is closed
const DELAYS = [1, 2, 4, 8, 15]; // s between tries
const SHED = ["queue_full", "out_of_reach", "wait_expired", "paused", "quota"];
const FAILED = ["upstream_unreachable", "upstream_broke", "upstream_timeout", "overloaded", "internal"];

const $ = (id) => document.getElementById(id);
function dressed(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}
const el = (tag, attributes = {}, ...children) => dressed(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) => dressed(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
const put = (node, text) => { if (node.textContent !== text) node.textContent = text; };
const mark = (node, name, value) => { if (node.getAttribute(name) !== value) node.setAttribute(name, value); };

// Makes the children of `parent` those of `items`, each kept by its key: what has the focus stays.
function keyed(parent, items, key, make, update) {
  const kept = (parent.kept ??= new Map());
  const names = items.map(key);
  for (const [name, part] of kept) if (!names.includes(name)) { part.node.remove(); kept.delete(name); }
  let at = parent.firstChild;
  items.forEach((item, n) => {
    let part = kept.get(names[n]);
    if (!part) kept.set(names[n], (part = make(item)));
    if (part.node === at) at = at.nextSibling;
    else parent.insertBefore(part.node, at);
    update?.(part, item);
  });
}

const whole = new Intl.NumberFormat("en");
const count = (n) => whole.format(n);
const perSecond = (n) => (n === null ? "–" : n > 0 && n < 9.95 ? n.toFixed(1) : count(Math.round(n)));
const seconds = (s) => (s < 10 ? s.toFixed(3) : s < 1000 ? s.toFixed(1) : count(Math.round(s)));
function span(ms) {
  const s = ms / 1000;
  if (s < 10) return `${s.toFixed(1)} s`;
  if (s < 120) return `${Math.floor(s)} s`;
  const m = Math.floor(s / 60);
  if (m < 120) return `${m} min`;
  const h = Math.floor(m / 60);
  return h < 48 ? `${h} h ${m % 60} min` : `${Math.floor(h / 24)} d ${h % 24} h`;
}
const words = (name) => name.replaceAll("_", " ");
const sum = (counts, names = Object.keys(counts)) => names.reduce((all, name) => all + (counts[name] ?? 0), 0);
const add = (to, counts) => { for (const [name, n] of Object.entries(counts)) to[name] = (to[name] ?? 0) + n; };
const percent = (part, all) => (all ? Math.min(100, (100 * part) / all) : 0);

// ---- What was told so far.

const NOTHING = { outcomes: {}, upstream: {}, throttled: {}, idle_seconds: 0 };
let told = null; // the latest snapshot
let at = 0; // when it came
let before = []; // what came before it, for all lanes together
const history = new Map(); // and for each lane
let seen429 = 0; // when their number last grew under our eyes

const laneKey = (lane) => `${lane.account} ${lane.endpoint} ${lane.group}`;
const counterKey = (counter) => `${counter.endpoint} ${counter.group}`;
const counterOf = (lane) => told.by.get(`${lane.label} ${lane.group}`) ?? NOTHING;

// How fast something has grown in the last seconds; null if there is nothing to compare with.
function rate(pick, ticks = 5) {
  const [old, fresh] = [before.at(-1 - ticks) ?? before[0], before.at(-1)];
  const took = fresh.uptime - old.uptime;
  return took > 0 && took < 10_000 ? (1000 * Math.max(0, pick(fresh.by) - pick(old.by))) / took : null;
}
const all = (pick) => (by) => [...by.values()].reduce((n, counter) => n + pick(counter), 0);
const one = (key, pick) => (by) => pick(by.get(key) ?? NOTHING);
const sent = (counter) => sum(counter.upstream);
const shed = (counter) => sum(counter.outcomes, SHED);

function take(snapshot) {
  const now = Date.now();
  snapshot.by = new Map(snapshot.counters.map((counter) => [counterKey(counter), counter]));
  if (told && snapshot.process !== told.process) {
    before = [];
    seen429 = 0;
    say("podgate was restarted: its counts begin anew.");
  } else if (told && snapshot.throttled > told.throttled) {
    if (now - seen429 > 30_000) say(`The upstream answered 429, ${count(snapshot.throttled)} times so far.`);
    seen429 = now;
  }
  if (snapshot.draining && !told?.draining) say("podgate is draining: it takes nothing new.");
  [told, at] = [snapshot, now];
  const total = (pick) => snapshot.lanes.reduce((n, lane) => n + pick(lane), 0);
  const sample = {
    t: now,
    uptime: snapshot.uptime_ms,
    by: snapshot.by,
    idle: snapshot.idle_seconds,
    waiting: total((lane) => lane.waiting.total),
    permits: total((lane) => lane.permits.in_use),
  };
  before.push(sample);
  [sample.sent, sample.shed] = [rate(all(sent), 1), rate(all(shed), 1)];
  for (const lane of snapshot.lanes) {
    const key = laneKey(lane);
    if (!history.has(key)) history.set(key, []);
    history.get(key).push({ t: now, used: lane.window.used, permits: lane.permits.in_use, waiting: lane.waiting.total });
  }
  const drop = (samples) => { while (samples.length && now - samples[0].t > KEEP) samples.shift(); };
  drop(before);
  for (const [key, samples] of history) {
    drop(samples);
    if (!samples.length) history.delete(key);
  }
}

// ---- Small pictures.

function spark(kind = "") {
  const [line, area] = [svg("path", { class: "line" }), svg("path", { class: "area" })];
  const node = svg("svg", { class: `spark ${kind}`, viewBox: "0 0 180 32", preserveAspectRatio: "none", role: "img" },
    svg("path", { class: "base", d: "M0 31.5H180" }), area, line);
  return { node, area, line };
}

// A second is as wide as any other; where nothing was told there is a gap.
const reach = () => Math.max(60_000, Math.min(KEEP, at - before[0].t));
function drawSpark(picture, samples, field, name, top) {
  const known = samples.filter((sample) => sample[field] !== null);
  const most = known.reduce((most, sample) => Math.max(most, sample[field]), 0);
  const height = top || most || 1;
  let [line, area, start, last] = ["", "", 0, 0];
  const close = () => (last ? `V31.5H${start}Z` : "");
  for (const sample of known) {
    const x = (180 - (180 * (at - sample.t)) / reach()).toFixed(1);
    const y = (31 - 30 * Math.min(1, sample[field] / height)).toFixed(1);
    if (sample.t - last < 3500) {
      line += `L${x} ${y}`;
      area += `L${x} ${y}`;
    } else {
      line += `M${x} ${y}`;
      area += `${close()}M${x} 31.5V${y}`;
      start = x;
    }
    last = sample.t;
  }
  mark(picture.line, "d", line);
  mark(picture.area, "d", area + close());
  mark(picture.node, "aria-label", `${name}, last ${span(reach())}: at most ${perSecond(most)}`);
}

function gauge(title, kind = "") {
  const [value, rest, track, picture] = [el("span"), el("small"), el("span", { class: `track ${kind}`, "aria-hidden": "true" }), spark(kind)];
  const dd = el("dd", {}, el("span", { class: "value" }, value, " ", rest), track, picture.node);
  return { node: el("div", { class: "gauge" }, el("dt", {}, title), dd), value, rest, track, picture };
}

// Parts of a bar: how wide in percent, and what it is.
function fill(track, ...parts) {
  keyed(track, parts, (_, n) => n, () => ({ node: el("i") }), ({ node }, [width, kind = ""]) => {
    node.className = kind;
    node.style.width = `${width.toFixed(2)}%`;
  });
}

// ---- One lane.

const outOf = (n, limit) => (limit === null ? "no limit" : `${count(n)} / ${count(limit)}`);
const learnt = (lane) => lane.window.limit !== null && lane.window.effective_limit < lane.window.limit;
const fewer = (lane) => lane.permits_base !== null && lane.permits.limit < lane.permits_base;

function badges(lane) {
  const found = [];
  if (lane.paused_ms > 0) found.push(["bad", `❚❚ paused, ${span(lane.paused_ms)} left`]);
  if (learnt(lane)) found.push(["wait", `↓ learnt: ${count(lane.window.effective_limit)}`]);
  if (fewer(lane)) found.push(["wait", `↓ learnt: ${count(lane.permits.limit)} at once`]);
  if (lane.mode !== "enforce") found.push(["", lane.mode]);
  return found;
}
const showBadges = (parent, lane) => keyed(parent, badges(lane), (_, n) => n, () => ({ node: el("span") }), ({ node }, [kind, text]) => {
  node.className = `badge ${kind}`;
  put(node, text);
});

// A row of names and numbers; without any it says why, or is not there.
function fact(list, title) {
  const [dt, items] = [el("dt", {}, title), el("ul")];
  const dd = el("dd", {}, items);
  list.append(dt, dd);
  return (found, nothing) => {
    dt.hidden = dd.hidden = !found.length && !nothing;
    keyed(items, found.length ? found : [[nothing ?? "", "", "none"]], ([name]) => name, ([name]) => {
      const value = el("b");
      return { node: el("li", {}, `${name} `, value), value };
    }, ({ node, value }, [, text, kind = ""]) => {
      node.className = kind;
      put(value, text);
    });
  };
}

const refusedHere = (outcomes) => SHED.filter((name) => outcomes[name]).map((name) => [words(name), count(outcomes[name]), "waits"]);
const kindOf = (outcome) => (FAILED.includes(outcome) ? "bad" : SHED.includes(outcome) ? "waits" : "");
const rest = (outcomes) => Object.keys(outcomes).filter((name) => name !== "forwarded" && !SHED.includes(name))
  .map((name) => [words(name), count(outcomes[name]), kindOf(name)]);
function answers(counter) {
  const found = Object.entries(counter.upstream).map(([name, n]) => [name, count(n), name === "5xx" ? "bad" : ""]);
  const throttled = sum(counter.throttled);
  if (throttled) found.push(["429s", count(throttled), "bad"]);
  return found;
}

function makeLane(lane) {
  const [marks, list] = [el("span"), el("dl", { class: "facts" })];
  const gauges = [gauge("Window"), gauge("At once"), gauge("Waiting", "wait")];
  const facts = ["Callers", "Refused here", "Upstream", "Otherwise", "Counted"].map((title) => fact(list, title));
  const node = el("article", { class: "lane", "aria-label": `${lane.endpoint} ${lane.group}` },
    el("header", {}, el("h4", {}, lane.group), marks), el("dl", {}, ...gauges.map((gauge) => gauge.node)), list);
  return { node, marks, gauges, facts };
}

function showLane(part, lane) {
  const samples = history.get(laneKey(lane)) ?? [];
  const counter = counterOf(lane);
  const [window, permits, waiting] = part.gauges;
  const { limit, effective_limit: effective, used } = lane.window;
  showBadges(part.marks, lane);
  put(window.value, limit === null ? "" : count(used));
  put(window.rest, limit === null ? "no limit" : `/ ${count(limit)} in ${span(lane.per_ms).replace(".0", "")}`);
  window.track.style.visibility = limit === null ? "hidden" : "";
  fill(window.track, [percent(used, limit)], [learnt(lane) ? percent(limit - effective, limit) : 0, "off"]);
  drawSpark(window.picture, samples, "used", "Window", limit);

  const most = lane.permits_base;
  put(permits.value, count(lane.permits.in_use));
  put(permits.rest, most === null ? "no limit" : `/ ${count(most)}`);
  permits.track.style.visibility = most === null ? "hidden" : "";
  fill(permits.track, [percent(lane.permits.in_use, most)], [fewer(lane) ? percent(most - lane.permits.limit, most) : 0, "off"]);
  drawSpark(permits.picture, samples, "permits", "At once", most);

  const { total, flows } = lane.waiting;
  put(waiting.value, count(total));
  put(waiting.rest, total ? `oldest ${span(lane.oldest_ms)}` : "");
  fill(waiting.track, ...Object.values(flows).map((n) => [percent(n, total)]));
  drawSpark(waiting.picture, samples, "waiting", "Waiting");

  const named = Object.entries(flows).slice(0, 4).map(([name, n]) => [name.slice(0, 6), count(n), "id"]);
  if (lane.flows_total > 4) named.push(["and", `${count(lane.flows_total - 4)} more`]);
  const [who, refusals, upstream, otherwise, shared] = part.facts;
  who(named, "nobody waits");
  const speed = (pick) => [["now", `${perSecond(rate(one(`${lane.label} ${lane.group}`, pick)))} /s`, "none"]];
  const [refused, up] = [refusedHere(counter.outcomes), answers(counter)];
  refusals(refused.concat(refused.length ? speed(shed) : []), "none");
  upstream(up.concat(up.length ? speed(sent) : []), "no answer yet");
  otherwise(rest(counter.outcomes));
  shared(lane.label === lane.endpoint ? [] : [["with others, as", lane.label]]);
}

// ---- All lanes, as cards or as a table.

const endpointName = (lane) => (lane.endpoint === "*" ? "* (all endpoints past the cap)" : lane.endpoint);

function showCards(lanes) {
  const sections = new Map();
  for (const lane of lanes) {
    const key = `${lane.account} ${lane.endpoint}`;
    if (!sections.has(key)) sections.set(key, []);
    sections.get(key).push(lane);
  }
  keyed($("cards"), [...sections], ([key]) => key, ([, [lane]]) => {
    const link = el("a", {}, endpointName(lane));
    const title = el("h3", {}, link);
    if (lane.account !== "0") title.append(el("small", {}, `account ${lane.account}`));
    const lanes = el("div", { class: "lanes" });
    return { node: el("section", { class: "endpoint", "aria-label": `Endpoint ${lane.endpoint}` }, title, lanes), lanes, link };
  }, (part, [, lanes]) => {
    mark(part.link, "href", link({ ...view, endpoint: lanes[0].endpoint }));
    keyed(part.lanes, lanes, laneKey, makeLane, showLane);
  });
}

// Title, kind, what it is sorted by, what it says if that is another thing, how it looks above zero.
const COLUMNS = {
  endpoint: ["Endpoint", "id", (lane) => lane.endpoint, endpointName],
  group: ["Group", "", (lane) => lane.group],
  used: ["Window", "n", (lane) => lane.window.used, (lane) => outOf(lane.window.used, lane.window.effective_limit)],
  permits: ["At once", "n", (lane) => lane.permits.in_use, (lane) => outOf(lane.permits.in_use, lane.permits.limit)],
  waiting: ["Waiting", "n", (lane) => lane.waiting.total],
  oldest: ["Oldest", "n", (lane) => lane.oldest_ms, (lane) => (lane.waiting.total ? span(lane.oldest_ms) : "–")],
  callers: ["Callers", "n", (lane) => lane.flows_total],
  state: ["State", "", (lane) => badges(lane).map(([, text]) => text).join(", ") || "–"],
  shed: ["Refused here", "n", (_, counter) => shed(counter), null, "waits"],
  ok: ["2xx", "n", (_, counter) => counter.upstream["2xx"] ?? 0],
  theirs: ["4xx", "n", (_, counter) => counter.upstream["4xx"] ?? 0],
  ours: ["5xx", "n", (_, counter) => counter.upstream["5xx"] ?? 0, null, "bad"],
  throttled: ["429", "n", (_, counter) => sum(counter.throttled), null, "bad"],
  idle: ["Idle s", "n", (_, counter) => counter.idle_seconds, (_, counter) => seconds(counter.idle_seconds)],
};

const head = el("tr");
const body = el("tbody");
$("table").append(el("table", {}, el("thead", {}, head), body));
for (const [name, [title, kind]] of Object.entries(COLUMNS)) {
  const button = el("button", { type: "button" }, title);
  button.addEventListener("click", () => {
    // Numbers from the top, names from A; then the other way, then as they come.
    const ways = kind === "n" ? [`-${name}`, name, ""] : [name, `-${name}`, ""];
    go({ ...view, sort: ways[(ways.indexOf(view.sort) + 1) % 3] });
  });
  head.append(el("th", { scope: "col", class: kind === "n" ? "n" : "", "data-column": name }, button));
}

function showTable(lanes) {
  const name = view.sort.replace("-", "");
  const by = COLUMNS[name]?.[2];
  const way = view.sort.startsWith("-") ? -1 : 1;
  for (const cell of head.children) {
    const sorted = cell.dataset.column === name;
    mark(cell, "aria-sort", !sorted ? "none" : way > 0 ? "ascending" : "descending");
  }
  const rows = lanes.map((lane) => [lane, counterOf(lane)]);
  if (by) rows.sort((a, b) => { const [x, y] = [by(...a), by(...b)]; return x < y ? -way : x > y ? way : 0; });
  keyed(body, rows, ([lane]) => laneKey(lane), () => {
    const cells = Object.values(COLUMNS).map(([, kind], n) => el(n < 2 ? "th" : "td", n < 2 ? { scope: "row", class: kind } : { class: kind }, el("span")));
    const bars = [cells[2], cells[3]].map((cell) => cell.appendChild(el("span", { class: "fill", "aria-hidden": "true" }, el("i"))).firstChild);
    return { node: el("tr", {}, ...cells), cells, bars };
  }, ({ cells, bars }, [lane, counter]) => {
    Object.values(COLUMNS).forEach(([, , by, says, look], n) => {
      const [text, value] = [cells[n].firstChild, by(lane, counter)];
      put(text, says ? says(lane, counter) : typeof value === "number" ? count(value) : value);
      text.className = (value && look) || "";
    });
    bars[0].style.width = `${percent(lane.window.used, lane.window.limit)}%`;
    bars[1].style.width = `${percent(lane.permits.in_use, lane.permits_base)}%`;
  });
}

function showEnds(matches) {
  const counters = told.counters.filter((counter) => matches(counter.endpoint));
  const outcomes = {};
  for (const counter of counters) add(outcomes, counter.outcomes);
  const rows = Object.entries(outcomes).sort((a, b) => b[1] - a[1]);
  $("ends").hidden = !rows.length;
  put($("ends-of"), view.endpoint ? `endpoints with “${view.endpoint}”` : "all endpoints");
  keyed($("ends-rows"), rows, ([name]) => name, ([name]) => {
    const [n, speed] = [el("td", { class: "n" }), el("td", { class: "n" })];
    return { node: el("tr", {}, el("th", { scope: "row", class: kindOf(name) }, words(name)), n, speed), n, speed };
  }, (part, [name, n]) => {
    put(part.n, count(n));
    put(part.speed, `${perSecond(rate(all((counter) => (matches(counter.endpoint) ? counter.outcomes[name] ?? 0 : 0))))} /s`);
  });
}

// ---- The top.

const strip = {};
for (const [name, title, kind] of [["sent", "Answered upstream"], ["waiting", "Waiting", "wait"], ["shed", "Refused here", "wait"], ["permits", "At the upstream"]]) {
  const [value, unit, picture] = [el("span"), el("small", {}, name === "sent" || name === "shed" ? " /s" : ""), spark(kind)];
  $("strip").append(el("div", {}, el("dt", {}, title), el("dd", { class: "value" }, value, unit), el("dd", {}, picture.node)));
  strip[name] = { value, picture, title };
}

function promise(id, figure, kept, verdict) {
  const [node, says] = [$(id), $(id).lastElementChild];
  put(node.querySelector("span"), figure);
  mark(node, "data-kept", kept === null ? "" : kept ? "yes" : "no");
  put(says, verdict);
}

function showTop() {
  const { throttled } = told;
  const causes = {};
  for (const counter of told.counters) add(causes, counter.throttled);
  const why = Object.entries(causes).map(([name, n]) => `${name} ${count(n)}`).join(", ");
  const when = seen429 ? `last ${span(at - seen429)} ago` : "none since this page is open";
  promise("over", count(throttled), !throttled, throttled ? `${why} · ${when}` : "none since podgate started");

  // The promise is 99% of the budget, of each lane.
  const minute = before.find((sample) => at - sample.t <= 60_000);
  const took = (at - minute.t) / 1000;
  let worst = [0, ""];
  for (const [key, counter] of told.by) {
    const grown = counter.idle_seconds - (minute.by.get(key)?.idle_seconds ?? 0);
    if (grown > worst[0]) worst = [grown, key];
  }
  const kept = took < 1 ? null : worst[0] <= took / 100;
  const recent = `${seconds(told.idle_seconds - minute.idle)} s in the last ${took > 59 ? "minute" : `${Math.round(took)} s`}`;
  promise("idle", seconds(told.idle_seconds), kept, kept === null ? "" : kept ? recent : `${recent}, most of it in ${worst[1]}`);

  const { waiting, permits } = before.at(-1);
  const figures = { sent: perSecond(rate(all(sent))), waiting: count(waiting), shed: perSecond(rate(all(shed))), permits: count(permits) };
  for (const [name, { value, picture, title }] of Object.entries(strip)) {
    put(value, figures[name]);
    drawSpark(picture, before, name, title);
  }

  const meta = [`v${told.version}`, `up ${span(told.uptime_ms)}`, `${count(told.connections)} ${told.connections === 1 ? "client" : "clients"} connected`, `${(told.buffered_bytes / 2 ** 20).toFixed(1)} MiB held`, `upstream ${told.upstream}`];
  keyed($("meta"), meta, (_, n) => n, () => ({ node: el("span") }), (part, text) => put(part.node, text));
}

function showNothing(unmatched) {
  $("wait").hidden = true;
  $("unmatched").hidden = !unmatched;
  $("unused").hidden = told.lanes.length > 0;
  put($("sought"), view.endpoint);
  mark($("everything"), "href", link({ ...view, endpoint: "" }));
  // An address that means any is reached by the name this page was.
  const door = told.listen.replace(/(?<=^https?:\/\/)(0\.0\.0\.0|\[::\])(?=:\d+$)/, location.hostname);
  put($("door"), door);
  const [, path] = door.match(/^unix:(\S*)/) ?? [];
  const where = path ? `--unix-socket ${path} http://podgate` : door;
  put($("example"), `curl -H "Authorization: Bearer $RUNPOD_API_KEY" ${where}/v2/ENDPOINT/health`);
}

function show() {
  if (!told || document.hidden) return;
  showTop();
  const part = view.endpoint.toLowerCase();
  const matches = (endpoint) => endpoint.toLowerCase().includes(part);
  const lanes = told.lanes.filter((lane) => matches(lane.endpoint));
  const [of, more] = [told.lanes.length, told.lanes_total - told.lanes.length];
  put($("count"), lanes.length === of ? count(of) : `${count(lanes.length)} of ${count(of)}`);
  $("note").hidden = !more;
  if (more) put($("note"), `The ${count(of)} busiest of ${count(told.lanes_total)} lanes. All of them are in /lanes.`);
  showNothing(of > 0 && !lanes.length);
  $("cards").hidden = !lanes.length || view.view !== "cards";
  $("table").hidden = !lanes.length || view.view !== "table";
  if (view.view === "table") showTable(lanes); else showCards(lanes);
  showEnds(matches);
}

// ---- What is looked at: it stands in the address, so that it can be sent to somebody.

let view = { endpoint: "", view: "cards", sort: "" };
function link({ endpoint, view, sort }) {
  const parts = new URLSearchParams();
  if (endpoint) parts.set("endpoint", endpoint);
  if (view !== "cards") parts.set("view", view);
  if (sort) parts.set("sort", sort);
  return `#${parts}`;
}
function go(to) {
  view = to;
  if (link(view) !== (location.hash || "#")) window.history.replaceState(null, "", link(view));
  if ($("filter").value.trim() !== view.endpoint) $("filter").value = view.endpoint;
  document.querySelector(`#views [value=${view.view}]`).checked = true;
  show();
}
function follow() {
  const parts = new URLSearchParams(location.hash.slice(1));
  go({ endpoint: parts.get("endpoint") ?? "", view: parts.get("view") === "table" ? "table" : "cards", sort: parts.get("sort") ?? "" });
}
window.addEventListener("hashchange", follow);
$("filter").addEventListener("input", (event) => go({ ...view, endpoint: event.target.value.trim() }));
$("views").addEventListener("change", (event) => go({ ...view, view: event.target.value }));

const THEMES = ["auto", "light", "dark"];
function dress(theme) {
  document.documentElement.dataset.theme = theme;
  put($("theme"), `Theme: ${theme}`);
}
// A browser may refuse to keep anything.
const kept = () => { try { return localStorage.getItem("theme"); } catch { return null; } };
dress(THEMES.includes(kept()) ? kept() : "auto");
$("theme").addEventListener("click", () => {
  const theme = THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % 3];
  dress(theme);
  try { localStorage.setItem("theme", theme); } catch { /* it lasts as long as the page */ }
});

// ---- The stream.

let stream = null;
let heard = 0; // when it last gave a sign of life
let tries = 0;
let next = 0; // when it is tried again; 0: it is open, or about to be
let refused = false;
let unseen = 0;

const say = (text) => put($("says"), text);

function listen() {
  stream?.close();
  next = 0;
  heard = Date.now();
  stream = new EventSource("events");
  stream.addEventListener("open", () => { heard = Date.now(); });
  stream.addEventListener("message", (event) => {
    const snapshot = JSON.parse(event.data);
    // Another podgate has another page.
    if (told && told.version !== snapshot.version) location.reload();
    heard = Date.now();
    if (tries) say("Connected again.");
    tries = 0;
    take(snapshot);
    state();
    show();
  });
  // The browser would try again by itself, but not after every fault, and without telling when.
  stream.addEventListener("error", () => lose(stream.readyState === EventSource.CLOSED));
}

function lose(byAnswer) {
  stream.close();
  stream = null;
  refused = byAnswer;
  if (!tries) say(told?.draining ? "podgate has ended." : "The connection to podgate is lost.");
  const delay = DELAYS[Math.min(tries, DELAYS.length - 1)] * (1 + Math.random() / 4);
  tries += 1;
  next = Date.now() + delay * 1000;
  state();
}

function state() {
  const lost = tries > 0;
  const ending = told?.draining ?? false;
  put($("chip"), lost ? (ending ? "ended" : "no connection") : ending ? "draining" : told ? "live" : "connecting");
  mark($("chip"), "data-state", lost && !ending ? "lost" : ending ? "ending" : told ? "live" : "wait");
  $("main").classList.toggle("stale", lost && told !== null);
  $("banner").hidden = !lost && !ending;
  mark($("banner"), "data-state", ending ? "ending" : "lost");
  $("again").hidden = !lost;
  const what = ending ? "podgate has ended." : refused ? "podgate gives no more streams: it serves 16 of these pages at once." : "No connection to podgate.";
  const since = told ? ` What is shown is of ${new Date(at).toLocaleTimeString()}, ${span(Date.now() - at)} ago.` : "";
  const when = next ? ` Next try in ${Math.max(0, Math.ceil((next - Date.now()) / 1000))} s.` : " Trying…";
  put($("trouble"), lost ? what + since + when : "podgate is draining: it takes nothing new, and ends when what is under way has ended.");
  const title = lost ? "(no connection) podgate" : told?.throttled ? `(429: ${count(told.throttled)}) podgate` : "podgate";
  if (document.title !== title) document.title = title;
}

$("again").addEventListener("click", () => { listen(); state(); });
document.addEventListener("visibilitychange", () => {
  unseen = document.hidden ? Date.now() : 0;
  if (document.hidden) return;
  if (!stream && !next) listen();
  show();
});
setInterval(() => {
  const now = Date.now();
  if (unseen && now - unseen > UNSEEN) {
    // A browser has few connections to one place, and podgate few streams to give.
    stream?.close();
    stream = null;
    next = 0;
    return;
  }
  if (stream && now - heard > SILENT) lose(false);
  else if (next && now >= next) listen();
  if (tries) state();
}, 1000);

follow();
listen();
