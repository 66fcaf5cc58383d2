// Sort, filter and search the table that is already there; draw its charts; keep the state in the address.
"use strict";
addEventListener("DOMContentLoaded", () => {
  const table = document.querySelector("table.board"), form = document.querySelector("form.tools");
  if (!table || !form) return;
  const TARGET = Number(table.dataset.target), LIMIT = Number(table.dataset.limit);
  const attribute = (tr, name) => { const text = tr.getAttribute(`data-${name}`); return text ? Number(text) : null; };
  const rows = Array.from(table.querySelectorAll("tr[data-id]"), (tr, index) => {
    const tier = tr.getAttribute("data-tier"), date = tr.getAttribute("data-date"), kwh = attribute(tr, "kwh");
    return {
      tr, index, tier, group: tr.parentElement, track: tr.getAttribute("data-track"), division: tr.getAttribute("data-division"),
      kind: tr.getAttribute("data-mark"), full: tr.hasAttribute("data-full"), late: tr.classList.contains("more"), text: null,
      low: attribute(tr, "low"), high: attribute(tr, "high"),
      sort: { rank: attribute(tr, "rank"), core: attribute(tr, "core"), hours: attribute(tr, "hours"), n: attribute(tr, "n"),
        tier: tier ? Number(tier.slice(1)) : null, kwh, cost: kwh, date: date ? Date.parse(date) : null, recipe: null, gpu: null, who: null },
    };
  });
  const words = (row) => (row.text ??= row.tr.textContent.toLowerCase().replace(/\s+/g, " ").concat(" ", row.tr.dataset.id));
  const cell = (row, name) => (row.sort[name] ??= row.tr.querySelector(`[data-c="${name}"]`)?.textContent.trim().toLowerCase() || null);
  const DEFAULTS = { q: "", track: "all", division: "any", tier: "any", sort: "rank", dir: "asc", price: form.elements.price.defaultValue };
  const state = { ...DEFAULTS };
  const columns = new Set([...table.querySelectorAll("th[data-sort]")].map((th) => th.dataset.sort));

  function read() {
    const given = new URLSearchParams(location.hash.slice(1));
    for (const key of Object.keys(DEFAULTS)) state[key] = given.get(key) ?? DEFAULTS[key];
    if (!columns.has(state.sort)) state.sort = DEFAULTS.sort;
    if (state.dir !== "desc") state.dir = "asc";
    if (!(Number(state.price) >= 0 && Number(state.price) < 1000)) state.price = DEFAULTS.price;
    form.elements.q.value = state.q;
    for (const name of ["division", "tier", "price"]) form.elements[name].value = state[name];
    for (const name of ["division", "tier"]) if (form.elements[name].selectedIndex < 0) form.elements[name].value = state[name] = DEFAULTS[name];
    const radio = [...form.elements.track].find((input) => input.value === state.track);
    if (radio) radio.checked = true; else { state.track = DEFAULTS.track; form.elements.track[0].checked = true; }
  }
  function write() {
    const kept = new URLSearchParams();
    for (const [key, value] of Object.entries(state)) if (value !== DEFAULTS[key]) kept.set(key, value);
    const hash = kept.toString();
    history.replaceState(null, "", hash ? `#${hash}` : "#");
  }

  const visible = (row) => {
    if (state.track !== "all" && row.track !== state.track) return false;
    if (state.division !== "any" && row.division !== state.division) return false;
    if (state.tier !== "any" && !(row.sort.tier !== null && row.sort.tier >= Number(state.tier.slice(1)))) return false;
    return state.q.toLowerCase().split(/\s+/).filter(Boolean).every((word) => words(row).includes(word));
  };
  const status = document.querySelector(".count output"), reset = document.querySelector(".count button");
  let shown = [], all = false;
  const MANY = Number(table.dataset.shown), more = document.querySelector(".all"), moreButton = more.querySelector("button");

  let sorted = rows;
  function order() {
    const text = ["recipe", "gpu", "who"].includes(state.sort), sign = state.dir === "desc" ? -1 : 1;
    const value = (row) => (text ? cell(row, state.sort) : row.sort[state.sort]);
    sorted = [...rows].sort((a, b) => {
      const left = value(a), right = value(b);
      // What is not known stands last, whichever way.
      if (left === null || right === null) return (left === null) - (right === null) || a.index - b.index;
      return (text ? left.localeCompare(right) : left - right) * sign || a.index - b.index;
    });
    const parts = new Map();
    for (const row of sorted) (parts.get(row.group) ?? parts.set(row.group, []).get(row.group)).push(row.tr);
    for (const [group, list] of parts) group.append(...list);
    for (const th of table.querySelectorAll("th[data-sort]")) {
      if (th.dataset.sort === state.sort) th.setAttribute("aria-sort", state.dir === "desc" ? "descending" : "ascending");
      else th.removeAttribute("aria-sort");
    }
  }
  function filter() {
    shown = rows.filter(visible);
    const set = new Set(shown), counts = new Map();
    // In the order they stand in, the first of each group; "Show all" shows the rest.
    for (const row of sorted) {
      const fits = set.has(row), place = fits ? (counts.get(row.group) ?? 0) + 1 : 0;
      if (fits) counts.set(row.group, place);
      if (row.tr.hidden === fits) row.tr.hidden = !fits;
      const late = fits && !all && place > MANY;
      if (row.late !== late) { row.tr.classList.toggle("more", late); row.late = late; }
    }
    for (const body of table.tBodies) body.hidden = !counts.has(body);
    const rest = shown.filter((row) => row.late).length;
    more.hidden = rest === 0;
    moreButton.textContent = `Show all ${shown.length.toLocaleString("en-US")} rows`;
    const changed = shown.length !== rows.length;
    status.textContent = changed ? `${shown.length.toLocaleString("en-US")} of ${rows.length.toLocaleString("en-US")} rows` : `${rows.length.toLocaleString("en-US")} row${rows.length === 1 ? "" : "s"}`;
    reset.hidden = Object.keys(DEFAULTS).every((key) => state[key] === DEFAULTS[key]);
    document.querySelector(".nothing").hidden = shown.length > 0 || rows.length === 0;
  }
  let priced = DEFAULTS.price;  // as the page was written
  function price() {
    if (priced === state.price) return;
    priced = state.price;
    for (const row of rows) {
      if (row.sort.kwh === null) continue;
      row.tr.querySelector('[data-c="cost"]').textContent = Charts.number(row.sort.kwh * Number(state.price), 2);
      row.text = null;
    }
  }
  const plots = { scatter: document.getElementById("core-hours"), progress: document.getElementById("frontier") };
  const empty = "No ranked run yet";
  function points() {
    return shown.filter((row) => row.full && row.sort.core !== null && row.sort.hours !== null).map((row) => ({
      x: row.sort.hours, y: row.sort.core, low: row.low, high: row.high, kind: row.kind, date: row.sort.date, told: () => told(row),
    }));
  }
  // What a mark says; asked only when somebody points at it.
  function told(row) {
    const named = row.tr.querySelector("th").firstElementChild;
    return {
      title: named.textContent.replace("↗", "").trim(), href: named.getAttribute("href"),
      lines: [`CORE ${row.sort.core.toFixed(4)}${row.low === null ? "" : ` (${row.low.toFixed(3)} to ${row.high.toFixed(3)})`}`, `${Charts.number(row.sort.hours, 2)} h · ${row.tier || "cited"}`],
    };
  }
  function draw() {
    const all = points(), ranked = all.filter((p) => p.kind === "ranked");
    const best = ranked.reduce((a, b) => (a && a.y >= b.y ? a : b), null);
    Charts.scatter(plots.scatter, { points: all, target: TARGET, limit: LIMIT, empty,
      label: `CORE against hours for ${all.length} rows. ${best ? `Best ranked: ${best.told().title}, CORE ${best.y.toFixed(4)} in ${best.x.toFixed(1)} hours.` : "No ranked run yet."} Target ${TARGET} within ${LIMIT} hours.` });
    Charts.progress(plots.progress, { points: ranked.filter((p) => p.date !== null).map((p) => ({ ...p, x: p.date })), target: TARGET, empty, now: Date.parse(table.dataset.now),
      label: best ? `Best ranked CORE over time, now ${best.y.toFixed(4)}.` : "Best ranked CORE over time: no ranked run yet." });
  }
  function apply({ sort = true, address = true } = {}) {
    price();
    if (sort) order();
    filter();
    draw();
    if (address) write();
  }

  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", () => {
    const data = new FormData(form);
    for (const name of ["q", "track", "division", "tier", "price"]) state[name] = String(data.get(name) ?? DEFAULTS[name]);
    apply({ sort: false });
  });
  table.tHead.addEventListener("click", (event) => {
    const th = event.target.closest("th[data-sort]");
    if (!th || !event.target.closest("button")) return;
    const name = th.dataset.sort, first = th.dataset.first ?? "asc";
    state.dir = state.sort === name ? (state.dir === "asc" ? "desc" : "asc") : first;
    state.sort = name;
    apply();
  });
  table.addEventListener("click", (event) => {
    const row = event.target.closest("tr[data-id]");
    const link = row?.querySelector("th a");
    if (!link || event.target.closest("a") || String(getSelection())) return;
    if (event.metaKey || event.ctrlKey) open(link.href, "_blank", "noopener"); else link.click();
  });
  moreButton.addEventListener("click", () => { all = true; filter(); });
  reset.addEventListener("click", () => { Object.assign(state, DEFAULTS); write(); read(); apply(); });
  addEventListener("hashchange", () => { read(); apply({ address: false }); });
  addEventListener("keydown", (event) => {
    if (event.key === "/" && !/^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement.tagName)) { event.preventDefault(); form.elements.q.focus(); }
  });
  form.hidden = false;
  read();
  price();
  const { sort, dir } = DEFAULTS;
  if (state.sort !== sort || state.dir !== dir) order();
  filter();
  for (const plot of Object.values(plots)) Charts.keep(plot, draw);
});
