"use strict";
(() => {
  const WINDOW = 900;
  const at = (id) => document.getElementById(id);
  const el = (name, attributes = {}, ...children) => {
    const node = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.append(...children);
    return node;
  };
  const svg = (name, attributes = {}) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    return node;
  };
  const put = (node, text) => { if (node.textContent !== text) node.textContent = text; };
  const show = (node, text) => { node.hidden = !text; put(node, text || ""); };

  // Numbers for people: [number, unit].
  const number = new Intl.NumberFormat("en");
  const digits = (value) => (value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2)).replace(/\.0+$/, "");
  const seconds = (value) => {
    if (value < 0.0005) return ["0", "s"];
    if (value < 1) return [String(Math.round(value * 1000)), "ms"];
    if (value < 10) return [value.toFixed(1), "s"];
    if (value < 120) return [value.toFixed(0), "s"];
    if (value < 7200) return [`${Math.floor(value / 60)}`, `min ${String(Math.floor(value % 60)).padStart(2, "0")} s`];
    if (value < 172800) return [`${Math.floor(value / 3600)}`, `h ${String(Math.floor((value % 3600) / 60)).padStart(2, "0")} min`];
    return [`${Math.floor(value / 86400)}`, "days"];
  };
  const bytes = (value) => {
    const units = ["B", "kB", "MB", "GB", "TB", "PB"];
    let unit = 0;
    while (value >= 1000 && unit < units.length - 1) { value /= 1000; unit += 1; }
    return [unit === 0 ? String(value) : digits(value), units[unit]];
  };
  const rows = (value) => [number.format(Math.round(value)), "rows/s"];
  const words = (pair) => pair.join(" ");
  const plural = (count, noun) => `${number.format(count)} ${noun}${count === 1 ? "" : "s"}`;

  // What the chart draws. Samples are seconds since the process began; the newest is now.
  let history = [];
  let cursor = null;
  // A young process fills its charts: one minute, five, fifteen.
  let span = 60;
  const fit = () => {
    const covered = history.length ? history.at(-1).at - history[0].at : 0;
    span = covered <= 58 ? 60 : covered <= 295 ? 300 : WINDOW;
    put(at("window"), span === 60 ? "last minute" : `last ${span / 60} minutes`);
  };
  const TICKS = { 60: ["60 s", "40", "20"], 300: ["5 min", "3:20", "1:40"], [WINDOW]: ["15 min", "10", "5"] };
  const charts = {
    lag_seconds: { of: (s) => s.lag_seconds, text: seconds, least: 1, name: "Age of the oldest commit that is not here" },
    lag_bytes: { of: (s) => s.lag_bytes, text: bytes, least: 1e6, name: "Source WAL not reflected" },
    heartbeat_lag_seconds: { of: (s) => s.heartbeat_lag_seconds, text: seconds, least: 0.1, name: "Heartbeat round trip" },
    rate: { of: (s) => s.rate, text: rows, least: 10, name: "Rows per second" },
  };
  const rated = (sample, before) => {
    const took = before ? sample.at - before.at : 0;
    const done = before ? sample.rows_applied + sample.rows_copied - before.rows_applied - before.rows_copied : 0;
    return { ...sample, rate: took > 0 ? Math.max(0, done) / took : 0 };
  };
  const nice = (value) => {
    const power = 10 ** Math.floor(Math.log10(value));
    return [1, 2, 2.5, 5, 10].map((step) => step * power).find((step) => step >= value * 0.999);
  };

  const draw = (id, limit) => {
    const chart = charts[id];
    const tile = document.querySelector(`[data-chart="${id}"]`);
    const plot = tile.querySelector("[data-plot]");
    const last = history.at(-1);
    if (!last) return;
    const values = history.map((sample) => chart.of(sample));
    const present = values.filter((value) => value !== null && value !== undefined);
    const most = present.reduce((a, b) => Math.max(a, b), 0);
    const top = nice(Math.max(most * 1.05, chart.least));
    const width = 600;
    const height = 100;
    const x = (sample) => width * (1 - (last.at - sample.at) / span);
    const y = (value) => height * (1 - value / top);
    // One point per column of the picture, the highest of its samples: a peak is never lost.
    const columns = new Map();
    history.forEach((sample, i) => {
      const column = Math.round(x(sample) / 2);
      const known = columns.get(column);
      const value = values[i] ?? null;
      if (!known || (value !== null && (known.value === null || value >= known.value))) columns.set(column, { x: x(sample), value });
    });
    let curve = "";
    let area = "";
    let open = null;
    let previous = null;
    const close = () => { if (open !== null) area += `L${previous.toFixed(1)} ${height}L${open.toFixed(1)} ${height}Z`; open = null; };
    for (const point of columns.values()) {
      if (point.value === null) { close(); continue; }
      const place = `${point.x.toFixed(1)} ${y(point.value).toFixed(2)}`;
      curve += (open === null ? "M" : "L") + place;
      area += (open === null ? "M" : "L") + place;
      open ??= point.x;
      previous = point.x;
    }
    close();
    const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", "aria-hidden": "true" });
    for (const part of [0, 0.5, 1]) picture.append(svg("line", { class: "grid", x1: 0, x2: width, y1: height * part, y2: height * part }));
    picture.append(svg("path", { class: "area", d: area }), svg("path", { class: "curve", d: curve }));
    if (limit && limit <= top) picture.append(svg("line", { class: "limit", x1: 0, x2: width, y1: y(limit), y2: y(limit) }));
    const parts = [picture];
    parts.push(...TICKS[span].map((text, i) => place(el("span", { class: i ? "tick" : "tick first" }, text), i / 3)), place(el("span", { class: "tick last" }, "now"), 1));
    if (present.length) parts.push(el("span", { class: "top" }, words(chart.text(top))));
    if (cursor !== null) {
      const wanted = last.at - (1 - cursor) * span;
      let best = 0;
      history.forEach((sample, i) => { if (Math.abs(sample.at - wanted) < Math.abs(history[best].at - wanted)) best = i; });
      const ago = last.at - history[best].at;
      picture.append(svg("line", { class: "cursor", x1: x(history[best]), x2: x(history[best]), y1: 0, y2: height }));
      const value = values[best];
      const text = `${value === null || value === undefined ? "not measured" : words(chart.text(value))} · ${ago < 1 ? "now" : words(seconds(Math.round(ago))) + " ago"}`;
      parts.push(place(el("span", { class: "hint" }, text), Math.min(0.8, Math.max(0.2, x(history[best]) / width))));
    }
    plot.replaceChildren(...parts);
    const current = chart.of(last);
    const now = tile.querySelector("[data-now]");
    now.className = "now";
    if (current === null || current === undefined) { now.className = "now none"; now.textContent = "not measured"; }
    else { const [value, unit] = chart.text(current); now.replaceChildren(value, el("small", {}, ` ${unit}`)); }
    plot.setAttribute("aria-label", present.length
      ? `${chart.name}, ${at("window").textContent}: now ${current === null || current === undefined ? "not measured" : words(chart.text(current))}, highest ${words(chart.text(most))}. Left and right arrows read earlier values.`
      : `${chart.name}: not measured.`);
  };
  function place(node, part) { node.style.left = `${part * 100}%`; return node; }

  let status = null;
  const drawAll = () => {
    fit();
    draw("lag_seconds", status?.ready_lag_max_seconds);
    draw("lag_bytes");
    draw("heartbeat_lag_seconds");
    draw("rate");
  };

  // The verdict: what an operator must know first, in one sentence.
  const SIGNS = {
    good: "M24 5a19 19 0 1 0 0 38a19 19 0 1 0 0-38M15.5 24.5l6 6L33 19",
    warn: "M24 5a19 19 0 1 0 0 38a19 19 0 1 0 0-38M24 14v11l7 5",
    bad: "M24 6L44 41H4ZM24 19v10M24 35v.2",
    quiet: "M24 5a19 19 0 1 0 0 38a19 19 0 1 0 0-38M24 22v12M24 15v.2",
  };
  const catchUp = () => {
    const last = history.at(-1);
    const earlier = history.find((sample) => last && last.at - sample.at <= 30);
    if (!last || !earlier || !earlier.lag_bytes || last.lag_bytes === null || last.at - earlier.at < 5) return "";
    const rate = (earlier.lag_bytes - last.lag_bytes) / (last.at - earlier.at);
    return rate > 0 ? ` At this rate it is there in ${words(seconds(last.lag_bytes / rate))}.` : " It is not getting closer at the moment.";
  };
  // In words without the tables: the list below has them.
  const PHASES = { preparing: "", copying: "", indexing: "building indexes", validating: "checking foreign keys", catching_up: "catching up", comparing: "comparing", publishing: "publishing" };
  const copying = (c) => {
    const phase = c ? PHASES[c.phase] : "";
    const percent = c && c.ratio !== null ? `${Math.floor(c.ratio * 100)} %` : "";
    const words = [phase, percent].filter(Boolean).join(" ");
    return words ? `Copying the tables: ${words}` : "Copying the tables";
  };
  const verdict = (s) => {
    const behind = s.lag_seconds === null ? "" : words(seconds(s.lag_seconds));
    switch (s.state) {
      case "streaming":
        if (s.suspended.length && (s.lag_seconds ?? 0) <= s.ready_lag_max_seconds) {
          const one = s.suspended.length === 1;
          return ["warn", one ? `Table ${s.suspended[0]} is suspended` : `${s.suspended.length} tables are suspended`,
            `${one ? "It follows" : "They follow"} again when ${one ? "it is" : "they are"} copied again. The others are ${s.lag_seconds < 1 ? "fresh" : `${behind} behind`}.`];
        }
        if (s.in_doubt.length && (s.lag_seconds ?? 0) <= s.ready_lag_max_seconds) {
          const one = s.in_doubt.length === 1;
          return ["warn", one ? `Table ${s.in_doubt[0]} is in doubt` : `${s.in_doubt.length} tables are in doubt`,
            `${one ? "Its" : "Their"} rows may be others than the source's until ${one ? "it is" : "they are"} compared. All tables are followed.`];
        }
        if (!s.ready) return ["warn", `The copy is ${behind} behind`, `More than the ${words(seconds(s.ready_lag_max_seconds))} that http.ready_lag_max allows.`];
        return s.lag_seconds < 1
          ? ["good", "The copy is fresh", "Every commit of the source is here."]
          : ["good", `The copy is ${behind} behind`, `Within the ${words(seconds(s.ready_lag_max_seconds))} that are allowed.`];
      case "catching_up": return ["warn", `Catching up: ${words(bytes(s.lag_bytes ?? 0))} to go`, `The oldest missing commit is ${behind} old.${catchUp()}`];
      case "snapshot": return ["quiet", copying(s.snapshot), "Readers see the tables as they were until all of them are here."];
      case "standby": return ["quiet", "Standing by", "Another instance leads; this one takes over when it ends."];
      case "connecting": return s.reason ? ["bad", "Not connected: trying again", "It continues by itself as soon as that is over."] : ["quiet", "Connecting", ""];
      case "waiting": return ["bad", "Held up: nothing is applied", "What ends it stands below."];
      case "stopped": return ["quiet", "headwater has stopped", ""];
      default: return ["quiet", s.state, ""];
    }
  };

  const row = (name, value, attributes = {}) => el("div", {}, el("dt", {}, name), el("dd", attributes, value));
  const slotVerdict = (slot) => {
    if (!slot) return ["", ""];
    if (slot.wal_status === "lost") return ["bad", "lost"];
    if (slot.wal_status === "unreserved") return ["bad", "about to be lost"];
    if (slot.seconds_until_lost !== null && slot.seconds_until_lost < 3600) return ["warn", "at risk"];
    return ["good", "healthy"];
  };
  const TONES = { conflict: "bad", restart: "warn", takeover: "warn", schema: "quiet", snapshot: "quiet" };
  const LABELS = ["Inserted", "Updated", "Deleted", "Truncated"];
  let shownTables = "";
  let shownEvents = "";
  let all = false;

  const showTables = (s) => {
    const key = JSON.stringify([s.tables, s.suspended, s.in_doubt, s.snapshot?.tables]);
    if (key === shownTables) return;
    shownTables = key;
    const made = Object.entries(s.tables).map(([name, t]) => {
      const ratio = t.snapshot_done ? 1 : t.snapshot_bytes_expected ? Math.min(0.99, t.snapshot_bytes / t.snapshot_bytes_expected) : 0;
      const counted = plural(t.snapshot_rows, "row");
      const cell = el("td", { class: "wide-cell" });
      const isCopied = s.snapshot?.tables.includes(name) ?? false;
      if (s.suspended.includes(name) && !isCopied) cell.append(el("div", { class: "copy" }, el("span", {}, "is suspended until it is copied again")));
      else if (s.in_doubt.includes(name) && !isCopied) cell.append(el("div", { class: "copy" }, el("span", {}, "is in doubt until it is compared with the source")));
      else if (t.snapshot_done) cell.append(el("div", { class: "copy" }, el("span", {}, `${counted} copied`)));
      else if (isCopied) cell.append(el("div", { class: "copy" }, el("progress", { max: 1, value: ratio, "aria-label": `Copied of ${name}` }), el("span", {}, `${Math.floor(ratio * 100)} % · ${counted}`)));
      else cell.append(el("div", { class: "copy" }, el("span", {}, "earlier")));
      const counts = [t.inserts, t.updates, t.deletes, t.truncates];
      return el("tr", {}, el("th", { scope: "row" }, name), cell,
        ...counts.map((count, i) => el("td", { class: count ? "n" : "n zero", "data-label": LABELS[i] }, number.format(count))));
    });
    if (made.length) at("tables").replaceChildren(...made);
  };

  const clock = (text) => {
    const then = new Date(text);
    const today = then.toDateString() === new Date().toDateString();
    return today ? then.toLocaleTimeString() : then.toLocaleString(undefined, { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit" });
  };
  const showEvents = (s) => {
    const key = JSON.stringify([s.events, all]);
    if (key === shownEvents) return;
    shownEvents = key;
    const made = s.events.slice(0, all ? undefined : 8).map((event) => {
      const tone = event.kind === "state" && /^(waiting|connecting: )/.test(event.text) ? "bad" : TONES[event.kind] ?? "none";
      return el("li", {}, el("time", { datetime: event.at, title: event.at }, clock(event.at)), el("span", { class: "kind", "data-tone": tone }, event.kind), el("span", { class: "text" }, event.times > 1 ? `${event.text} (${number.format(event.times)} times, last at this time)` : event.text));
    });
    if (made.length) at("events").replaceChildren(...made);
    at("more").hidden = s.events.length <= 8;
    put(at("more"), all ? "Show fewer" : `Show all ${s.events.length}`);
    at("more").setAttribute("aria-expanded", String(all));
  };
  at("more").addEventListener("click", () => { all = !all; if (status) showEvents(status); });

  const update = (s) => {
    status = s;
    const [tone, headline, sub] = verdict(s);
    at("verdict").dataset.tone = tone;
    at("sign").setAttribute("d", SIGNS[tone]);
    put(at("headline"), headline);
    document.title = `${tone === "bad" ? "⚠ " : ""}${headline} · headwater`;
    put(at("since"), [sub, `In state ${s.state.replace("_", " ")} for ${words(seconds(Math.floor(s.state_seconds)))}.`].filter(Boolean).join(" "));
    show(at("reason"), s.reason);
    show(at("detail"), s.detail);
    at("todo").hidden = !s.hint;
    put(at("hint"), s.hint ?? "");
    at("waits-shown").hidden = !s.waits.length;
    put(at("waits"), s.waits.join("\n\n"));
    const c = s.snapshot;
    at("overall").hidden = !c;
    if (c) {
      if (c.ratio === null) at("overall-bar").removeAttribute("value");
      else at("overall-bar").value = c.ratio;
      const lacks = c.wal_bytes_left ? `, ${words(bytes(c.wal_bytes_left))} of WAL to go` : "";
      const left = c.seconds_left !== null ? `, about ${words(seconds(Math.max(1, Math.ceil(c.seconds_left))))} of ${PHASES[c.phase] || "copying"} left` : "";
      put(at("overall-text"), `${c.text}${lacks}, ${words(seconds(s.snapshot_seconds))} so far${left}`);
    }
    if (s.route.source) at("route").replaceChildren(el("span", {}, "from "), el("b", {}, s.route.source), el("span", {}, "to "), el("b", {}, s.route.destination));
    put(at("heartbeat-explain"), s.heartbeat_off ? `no heartbeats: ${s.heartbeat_off}` : "from the source’s WAL to a commit here");
    showTables(s);
    const [slotTone, slotWords] = slotVerdict(s.slot);
    at("slot-verdict").className = "tag";
    at("slot-verdict").dataset.tone = slotTone;
    put(at("slot-verdict"), slotWords);
    at("slot").replaceChildren(
      row("Name", s.route.slot || "none", { class: "mono" }),
      row("WAL kept for it", s.slot ? words(bytes(s.slot.retained_wal_bytes)) : "not known"),
      row("Status", s.slot ? s.slot.wal_status || "not known" : "no slot"),
      row("WAL until it is in danger", !s.slot ? "not known" : s.slot.wal_status === "lost" ? "none: it is lost" : s.slot.safe_wal_bytes === null ? "no limit is set" : words(bytes(s.slot.safe_wal_bytes))),
      row("Time until it is lost", !s.slot ? "not known" : s.slot.wal_status === "lost" ? "none: it is lost" : s.slot.seconds_until_lost !== null ? words(seconds(s.slot.seconds_until_lost)) : "not in sight"));
    const none = (lsn) => (lsn === "0/0" ? "none yet" : lsn);
    at("position").replaceChildren(
      row("Stored at the destination", none(s.position), { class: "mono" }),
      row("Durable, confirmed to the source", none(s.confirmed), { class: "mono" }),
      row("Source is at", none(s.source_flush_lsn), { class: "mono" }),
      row("Transactions applied", number.format(s.transactions_applied)),
      row("Last verification", s.verified ? `${plural(s.verified.mismatched_rows, "differing row")}, ${clock(s.verified.at)}` : "none by this process"));
    if (s.spool_bytes > 0) at("position").append(row("In-progress transactions kept", words(bytes(s.spool_bytes))));
    showEvents(s);
    put(at("about"), `headwater ${s.version}, running for ${words(seconds(Math.floor(s.uptime_seconds)))}`);
  };

  // One cursor for all charts, by pointer or by keys.
  let moving = false;
  const moved = (to) => {
    cursor = to;
    if (!moving) { moving = true; requestAnimationFrame(() => { moving = false; drawAll(); }); }
  };
  for (const plot of document.querySelectorAll("[data-plot]")) {
    plot.addEventListener("pointermove", (event) => {
      const box = plot.getBoundingClientRect();
      moved(Math.min(1, Math.max(0, (event.clientX - box.left) / box.width)));
    });
    plot.addEventListener("pointerleave", () => moved(null));
    plot.addEventListener("blur", () => moved(null));
    plot.addEventListener("keydown", (event) => {
      const steps = { ArrowLeft: -1 / 60, ArrowRight: 1 / 60, Home: -1, End: 1 };
      if (event.key === "Escape") return moved(null);
      if (!(event.key in steps)) return;
      event.preventDefault();
      moved(Math.min(1, Math.max(0, (cursor ?? 1) + steps[event.key])));
    });
  }

  // The stream; the browser opens it again by itself, and each opening begins with the history.
  let heard = null;
  const lost = () => {
    at("link").dataset.link = "lost";
    put(at("link-text"), "not connected");
    document.body.classList.toggle("stale", heard !== null);
    // What was fresh then need not be fresh now: the verdict must not say so.
    at("verdict").dataset.tone = "bad";
    at("sign").setAttribute("d", SIGNS.bad);
    put(at("headline"), "headwater does not answer");
    put(at("since"), status ? `Before that: ${verdict(status)[1].toLowerCase()}.` : "");
    document.title = "⚠ headwater does not answer";
    show(at("offline"), heard ? `What is shown is from ${heard.toLocaleTimeString()}. The page keeps trying.` : "The page keeps trying.");
  };
  const open = () => {
    const stream = new EventSource("/events");
    stream.addEventListener("history", (event) => {
      history = [];
      for (const sample of JSON.parse(event.data)) history.push(rated(sample, history.at(-1)));
    });
    stream.addEventListener("status", (event) => {
      const [s, sample] = JSON.parse(event.data);
      heard = new Date();
      at("link").dataset.link = "live";
      put(at("link-text"), "live");
      document.body.classList.remove("stale");
      at("offline").hidden = true;
      const last = history.at(-1);
      if (sample && (!last || sample.at > last.at)) history.push(rated(sample, last));
      while (history.length > WINDOW) history.shift();
      update(s);
      drawAll();
    });
    stream.addEventListener("error", () => {
      lost();
      // Refused for good (too many pages): the browser gives up, we do not.
      if (stream.readyState === EventSource.CLOSED) setTimeout(open, 5000);
    });
  };
  // A connection that is open and says nothing is no connection.
  setInterval(() => { if (heard && Date.now() - heard > 5000) lost(); }, 1000);
  open();
})();
