// Sort, filter and search the table that is already there; draw its charts; keep the state in the address.
"use strict";
addEventListener("DOMContentLoaded", () => {
  const table = document.querySelector("table.board"), form = document.querySelector("form.tools");
  if (!table || !form) return;
  const TARGET = Number(table.dataset.target), LIMIT = Number(table.dataset.limit);
  const attribute = (tr, name) => (tr.dataset[name] ? Number(tr.dataset[name]) : null);
  const rows = [...table.querySelectorAll("tr[data-id]")].map((tr, index) => ({
    tr, index, group: tr.parentElement, track: tr.dataset.track, division: tr.dataset.division, tier: tr.dataset.tier, state: tr.dataset.state,
    kind: tr.dataset.mark, text: null, link: tr.querySelector("th a"),
    sort: { rank: attribute(tr, "rank"), core: attribute(tr, "core"), hours: attribute(tr, "hours"), n: attribute(tr, "n"), tier: tr.dataset.tier ? Number(tr.dataset.tier.slice(1)) : null,
      kwh: attribute(tr, "kwh"), cost: attribute(tr, "kwh"), date: tr.dataset.date ? Date.parse(tr.dataset.date) : null, recipe: null, gpu: null, who: null },
    low: attribute(tr, "low"), high: attribute(tr, "high"),
  }));
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
  let shown = [];

  function order() {
    const text = ["recipe", "gpu", "who"].includes(state.sort), sign = state.dir === "desc" ? -1 : 1;
    const value = (row) => (text ? cell(row, state.sort) : row.sort[state.sort]);
    const sorted = [...rows].sort((a, b) => {
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
    const set = new Set(shown);
    for (const row of rows) row.tr.hidden = !set.has(row);
    for (const body of table.tBodies) body.hidden = !shown.some((row) => row.group === body);
    const changed = shown.length !== rows.length;
    status.textContent = changed ? `${shown.length.toLocaleString("en-US")} of ${rows.length.toLocaleString("en-US")} rows` : `${rows.length.toLocaleString("en-US")} row${rows.length === 1 ? "" : "s"}`;
    reset.hidden = Object.keys(DEFAULTS).every((key) => state[key] === DEFAULTS[key]);
    document.querySelector(".nothing").hidden = shown.length > 0 || rows.length === 0;
  }
  let priced = null;
  function price() {
    if (priced === state.price) return;
    priced = state.price;
    for (const row of rows) {
      if (row.sort.kwh !== null) row.tr.querySelector('[data-c="cost"]').textContent = Charts.number(row.sort.kwh * Number(state.price), 2);
      row.text = null;
    }
  }
  const plots = { scatter: document.getElementById("core-hours"), progress: document.getElementById("frontier") };
  const empty = "No ranked run yet";
  function points() {
    return shown.filter((row) => row.sort.core !== null && row.sort.hours !== null && row.tr.dataset.full === "1").map((row) => ({
      x: row.sort.hours, y: row.sort.core, low: row.low, high: row.high, kind: row.kind, href: row.link?.getAttribute("href"), date: row.sort.date,
      title: row.tr.querySelector("th").firstElementChild.textContent.trim(),
      lines: [`CORE ${row.sort.core.toFixed(4)}${row.low === null ? "" : ` (${row.low.toFixed(3)} to ${row.high.toFixed(3)})`}`, `${Charts.number(row.sort.hours, 2)} h · ${row.tr.dataset.tier || "cited"}`],
    }));
  }
  function draw() {
    const all = points(), ranked = all.filter((p) => p.kind === "ranked");
    const best = ranked.reduce((a, b) => (a && a.y >= b.y ? a : b), null);
    Charts.scatter(plots.scatter, { points: all, target: TARGET, limit: LIMIT, empty,
      label: `CORE against hours for ${all.length} rows. ${best ? `Best ranked: ${best.title}, CORE ${best.y.toFixed(4)} in ${best.x.toFixed(1)} hours.` : "No ranked run yet."} Target ${TARGET} within ${LIMIT} hours.` });
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
