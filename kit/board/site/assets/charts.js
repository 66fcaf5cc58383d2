// Charts as plain SVG, drawn at the width they have. Text enters by textContent only.
"use strict";
const Charts = (() => {
  const NS = "http://www.w3.org/2000/svg";
  function el(name, attributes = {}, ...children) {
    const node = document.createElementNS(NS, name);
    for (const [key, value] of Object.entries(attributes)) if (value !== null) node.setAttribute(key, value);
    for (const child of children) node.append(child);
    return node;
  }
  const number = (value, digits) => value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits }).replace("-", "−");

  // Round steps: 1, 2, 2.5 or 5 times a power of ten.
  function ticks(low, high, wanted) {
    const span = high - low || 1;
    const raw = span / Math.max(1, wanted);
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 2.5, 5, 10].find((factor) => factor * power >= raw) * power;
    const digits = Math.max(0, Math.min(6, -Math.floor(Math.log10(step) + 1e-9) + (Math.abs(step / power - 2.5) < 1e-9 ? 1 : 0)));
    const found = [];
    for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-9; at += step) found.push(Math.abs(at) < step * 1e-9 ? 0 : at);
    return { at: found, text: (value) => number(value, digits) };
  }
  const scale = (d0, d1, r0, r1) => (value) => r0 + ((value - d0) / (d1 - d0 || 1)) * (r1 - r0);

  function frame(plot, { x, y, height, label, xTitle, left = 46 }) {
    const width = Math.max(260, plot.clientWidth);
    const box = { left, right: width - 12, top: 14, bottom: height - (xTitle ? 38 : 24) };
    const svg = el("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": label });
    const sx = scale(x.low, x.high, box.left, box.right), sy = scale(y.low, y.high, box.bottom, box.top);
    const yt = ticks(y.low, y.high, Math.max(2, Math.round((box.bottom - box.top) / 40)));
    for (const at of yt.at) {
      svg.append(el("line", { class: "gridline", x1: box.left, x2: box.right, y1: sy(at), y2: sy(at) }),
        el("text", { x: box.left - 8, y: sy(at) + 4, "text-anchor": "end" }, yt.text(at)));
    }
    const xt = x.ticks ? x.ticks(box.right - box.left) : ticks(x.low, x.high, Math.max(2, Math.round((box.right - box.left) / 80)));
    for (const at of xt.at) svg.append(el("text", { x: sx(at), y: box.bottom + 18, "text-anchor": "middle" }, xt.text(at)));
    svg.append(el("line", { class: "axis", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom }));
    if (xTitle) svg.append(el("text", { x: box.right, y: height - 4, "text-anchor": "end" }, xTitle));
    return { svg, sx, sy, box, width, height };
  }

  function tooltip(figure) {
    const tip = document.createElement("div");
    tip.className = "tip";
    tip.setAttribute("aria-hidden", "true");
    figure.append(tip);
    return {
      show(px, py, title, lines) {
        const b = document.createElement("b");
        b.textContent = title;
        tip.replaceChildren(b, ...lines.map((line) => { const div = document.createElement("div"); div.textContent = line; return div; }));
        const room = figure.clientWidth - tip.offsetWidth - 4;
        tip.style.left = `${Math.max(0, Math.min(room, px + 12))}px`;
        tip.style.top = `${Math.max(0, py - tip.offsetHeight - 12)}px`;
        tip.dataset.on = "";
      },
      hide() { delete tip.dataset.on; },
    };
  }

  function shape(kind, x, y, attributes) {
    if (kind === "reference") return el("path", { d: `M${x} ${y - 5.5}l5.5 5.5l-5.5 5.5l-5.5 -5.5z`, class: "mark reference", ...attributes });
    return el("circle", { cx: x, cy: y, r: kind === "smoke" ? 3.5 : 5, class: `mark ${kind}`, ...attributes });
  }

  // Best so far, as a step line: points sorted along x, value only rising.
  function frontier(points) {
    const best = [];
    for (const point of [...points].sort((a, b) => a.x - b.x || b.y - a.y)) if (!best.length || point.y > best[best.length - 1].y) best.push(point);
    return best;
  }
  function stepPath(best, sx, sy, end) {
    if (!best.length) return null;
    let path = `M${sx(best[0].x)} ${sy(best[0].y)}`;
    for (const point of best.slice(1)) path += `H${sx(point.x)}V${sy(point.y)}`;
    return `${path}H${end}`;
  }

  // CORE from a little below what is there to a little above the target.
  const span = (values) => ({ low: Math.min(0.15, Math.floor(Math.min(0.3, ...values) * 20) / 20), high: Math.max(0.295, Math.max(0, ...values) + 0.01) });

  function scatter(plot, { points, target, limit, empty, label }) {
    const tip = plot.parentElement.tip ??= tooltip(plot.parentElement);
    const ys = points.flatMap((p) => [p.low ?? p.y, p.high ?? p.y, p.y]);
    const y = span(ys);
    const x = { low: 0, high: Math.max(26, ...points.map((p) => p.x * 1.04)) };
    const f = frame(plot, { x, y, height: plot.clientWidth < 560 ? 300 : 380, label, xTitle: "hours, everything counted" });
    const { svg, sx, sy, box } = f;
    svg.append(el("rect", { class: "goal", x: box.left, y: box.top, width: sx(limit) - box.left, height: sy(target) - box.top }),
      el("line", { class: "limit", x1: box.left, x2: box.right, y1: sy(target), y2: sy(target) }),
      el("line", { class: "limit", x1: sx(limit), x2: sx(limit), y1: box.top, y2: box.bottom }),
      el("text", { class: "on", x: box.left + 8, y: sy(target) - 7 }, `GPT-2 1.5B  ${target}`),
      el("text", { class: "on", x: sx(limit) - 7, y: box.bottom - 9, "text-anchor": "end" }, `${limit} h`));
    const ranked = points.filter((p) => p.kind === "ranked");
    const path = stepPath(frontier(ranked), sx, sy, box.right);
    if (path) svg.append(el("path", { class: "frontier", d: path }));
    if (!ranked.length) svg.append(el("text", { class: "hush", x: (box.left + sx(limit)) / 2, y: (box.top + sy(target)) / 2 + 4, "text-anchor": "middle" }, empty));
    const order = { smoke: 0, reference: 1, open: 2, unranked: 3, disputed: 4, ranked: 5 };
    for (const p of [...points].sort((a, b) => order[a.kind] - order[b.kind])) {
      if (p.low !== null && p.kind !== "smoke" && points.length <= 120) svg.append(el("line", { class: "whisker", x1: sx(p.x), x2: sx(p.x), y1: sy(p.low), y2: sy(p.high) }));
      svg.append(known(shape(p.kind, sx(p.x), sy(p.y), {}), p, sx, sy));
    }
    listen(svg, plot, tip);
    plot.replaceChildren(svg);
  }

  // One listener for all marks; each mark knows its point.
  const points = new WeakMap();
  function known(mark, point, sx, sy) { points.set(mark, { ...point, px: sx(point.x), py: sy(point.y) }); return mark; }
  function listen(svg, plot, tip) {
    svg.addEventListener("pointerover", (event) => {
      const p = points.get(event.target);
      if (!p) { tip.hide(); return; }
      const { title, lines } = p.told();
      tip.show(p.px, p.py + plot.offsetTop, title, lines);
    });
    svg.addEventListener("pointerleave", tip.hide);
    svg.addEventListener("click", (event) => { const href = points.get(event.target)?.told().href; if (href) location.href = href; });
  }

  function dates(low, high) {
    return (room) => {
      const wanted = Math.max(2, Math.floor(room / 90)), span = high - low, day = 864e5;
      const step = Math.max(1, Math.ceil(span / day / wanted)) * day, at = [];
      for (let t = Math.ceil(low / day) * day; t <= high; t += step) at.push(t);
      const long = span > 300 * day;
      return { at, text: (t) => new Date(t).toLocaleDateString("en-GB", { timeZone: "UTC", ...(long ? { month: "short", year: "numeric" } : { day: "numeric", month: "short" }) }) };
    };
  }

  function progress(plot, { points, target, empty, label, now }) {
    const tip = plot.parentElement.tip ??= tooltip(plot.parentElement);
    const day = 864e5, times = points.map((p) => p.x);
    const x = { low: Math.min(now - 30 * day, ...times) - day, high: Math.max(now, ...times) + day };
    x.ticks = dates(x.low, x.high);
    const y = span(points.map((p) => p.y));
    const { svg, sx, sy, box } = frame(plot, { x, y, height: plot.clientWidth < 380 ? 300 : 380, label, xTitle: "date of submission" });
    svg.append(el("line", { class: "limit", x1: box.left, x2: box.right, y1: sy(target), y2: sy(target) }));
    const best = frontier(points);
    const path = stepPath(best, sx, sy, box.right);
    if (path) svg.append(el("path", { class: "frontier", d: path }));
    else svg.append(el("text", { class: "hush", x: (box.left + box.right) / 2, y: (box.top + sy(target)) / 2 + 4, "text-anchor": "middle" }, empty));
    for (const p of best) svg.append(known(shape("ranked", sx(p.x), sy(p.y), {}), p, sx, sy));
    listen(svg, plot, tip);
    plot.replaceChildren(svg);
  }

  // Lines over time, with the value under the pointer in every chart of the page at once.
  const crossed = [];
  function lines(plot, spec) {
    const figure = plot.parentElement, tip = figure.tip ??= tooltip(figure);
    const all = spec.series.flatMap((s) => s.points);
    let low = Math.min(...all.map((p) => p[1])), high = Math.max(...all.map((p) => p[1]));
    if (spec.zero) low = Math.min(0, low);
    if (high - low < spec.least) { const middle = (high + low) / 2; low = middle - spec.least / 2; high = middle + spec.least / 2; }
    const pad = (high - low || Math.abs(high) || 1) * 0.06;
    const y = { low: spec.zero && low === 0 ? 0 : low - pad, high: high + pad };
    const f = frame(plot, { x: { low: 0, high: spec.end }, y, height: 210, label: spec.label, xTitle: spec.unit, left: 54 });
    const { svg, sx, sy, box } = f;
    spec.series.forEach((s, index) => {
      const path = s.points.map(([px, py], i) => `${i ? "L" : "M"}${sx(px).toFixed(1)} ${sy(py).toFixed(1)}`).join("");
      if (s.dots || s.points.length === 1) for (const [px, py] of s.points) svg.append(el("circle", { cx: sx(px), cy: sy(py), r: 3, class: `line s${index}` }));
      svg.append(el("path", { d: path, class: `line s${index}` }));
    });
    const cross = el("line", { class: "axis", y1: box.top, y2: box.bottom, visibility: "hidden" });
    svg.append(cross);
    const entry = {
      at(value) {
        cross.setAttribute("visibility", "visible");
        cross.setAttribute("x1", sx(value)); cross.setAttribute("x2", sx(value));
      },
      off() { cross.setAttribute("visibility", "hidden"); tip.hide(); },
    };
    crossed.push(entry);
    svg.addEventListener("pointermove", (event) => {
      const bounds = svg.getBoundingClientRect();
      const px = ((event.clientX - bounds.left) / bounds.width) * f.width;
      const value = Math.max(0, Math.min(spec.end, ((px - box.left) / (box.right - box.left)) * spec.end));
      for (const other of crossed) other.at(value);
      tip.show(sx(value), box.top + plot.offsetTop + 40, `${number(value, 2)} ${spec.unit}`, spec.series.map((s) => {
        const near = s.points.reduce((a, b) => (Math.abs(b[0] - value) < Math.abs(a[0] - value) ? b : a));
        return `${s.name} ${near[1].toLocaleString("en-US", { maximumSignificantDigits: 5 })}`;
      }));
    });
    svg.addEventListener("pointerleave", () => { for (const other of crossed) other.off(); });
    plot.replaceChildren(svg);
  }

  // Draws now and whenever the width changes.
  function keep(plot, draw) {
    let width = 0;
    new ResizeObserver(() => {
      if (plot.clientWidth && plot.clientWidth !== width) { width = plot.clientWidth; draw(); }
    }).observe(plot);
  }
  return { scatter, progress, lines, keep, number };
})();

addEventListener("DOMContentLoaded", () => {
  const data = document.getElementById("series");
  if (!data) return;
  for (const spec of JSON.parse(data.textContent)) {
    const plot = document.getElementById(spec.id);
    if (plot) Charts.keep(plot, () => Charts.lines(plot, spec));
  }
});
