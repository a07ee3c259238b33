// Small drawing tools: elements, numbers, line and bar charts as SVG with axes and a readout for mouse, touch and keys.
"use strict";

// Okabe and Ito's colours, which people with any kind of colour vision tell apart.
const PALETTE = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000"];
const DASHES = ["", "7 4", "2 3", "9 3 2 3"];

function make(name, settings, ...children) {
  const svg = ["svg", "g", "line", "path", "rect", "circle", "text", "title"].includes(name);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(settings || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key === "style") Object.assign(node.style, value);
    else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

const place = (id) => document.getElementById(id);
const count = (x) => Math.round(x).toLocaleString("en");
const fixed = (x, digits) => (Number.isFinite(x) ? x.toFixed(digits) : "none");
const percent = (x, digits = 0) => (Number.isFinite(x) ? (100 * x).toFixed(digits) + " %" : "none");
const signed = (x, digits) => (x > 0 ? "+" : x < 0 ? "−" : "") + Math.abs(x).toFixed(digits);
const bytes = (x) => (x < 1024 ? x + " B" : x < 1048576 ? (x / 1024).toPrecision(3) + " KiB" : (x / 1048576).toPrecision(3) + " MiB");
const brief = (x) => (x >= 1e9 ? x / 1e9 + "G" : x >= 1e6 ? +(x / 1e6).toPrecision(3) + "M" : x >= 1e4 ? +(x / 1e3).toPrecision(3) + "k" : String(+x.toPrecision(4)));

function ticks(low, high, wanted) {
  const rough = (high - low) / Math.max(1, wanted);
  const power = 10 ** Math.floor(Math.log10(rough || 1));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= rough * 0.999) || power;
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) found.push(+(k * step).toPrecision(12));
  return found;
}

const line_style = (k) => ({ stroke: PALETTE[k % PALETTE.length], dash: DASHES[Math.floor(k / PALETTE.length) % DASHES.length] });

// One chart. `spec`: title, xlabel, ylabel, format (of y), series [{name, points: [[x, y]], bar}], and either numbers on
// the x axis or `categories` (then x counts them from 0). `zero` puts 0 on the y axis, `say` names an x in the readout.
function chart(host, spec) {
  const series = spec.series.filter((one) => one.points.some((p) => Number.isFinite(p[1])));
  if (!series.length) return;
  const keys = make("div", { class: "keys" }, series.length < 2 && !spec.always ? [] : series.map((one, k) => {
    const { stroke, dash } = one.style || line_style(k);
    const sample = one.bar
      ? make("rect", { x: 4, y: 0, width: 14, height: 11, fill: stroke })
      : make("line", { x1: 0, x2: 26, y1: 6, y2: 6, stroke, "stroke-width": 3, "stroke-dasharray": dash });
    return make("span", null, make("svg", { viewBox: "0 0 26 12", "aria-hidden": "true" }, sample), one.name);
  }));
  const readout = make("div", { class: "readout", "aria-live": "polite" });
  const frame = make("svg", { tabindex: 0, role: "img", "aria-label": spec.title + "; the arrow keys read values" });
  host.append(make("figure", null, make("figcaption", null, spec.title), keys, frame, readout));
  const xs = [...new Set(series.flatMap((one) => one.points.map((p) => p[0])))].sort((a, b) => a - b);
  let chosen = -1, toX = null;

  function draw() {
    const width = Math.max(260, frame.clientWidth || 400), height = spec.height || 230;
    const left = 54, right = 14, top = 22, bottom = 42;
    frame.setAttribute("viewBox", `0 0 ${width} ${height}`);
    frame.style.height = height + "px";
    frame.replaceChildren();
    const ys = series.flatMap((one) => one.points.map((p) => p[1])).filter(Number.isFinite);
    let low = Math.min(...ys), high = Math.max(...ys);
    if (spec.zero) { low = Math.min(0, low); high = Math.max(0, high); }
    if (high - low < 1e-9) { high += Math.abs(high) * 0.1 || 1; low -= spec.zero ? 0 : Math.abs(low) * 0.1; }
    const pad = (high - low) * 0.06;
    high += high === 0 ? 0 : pad;
    low -= spec.zero && low === 0 ? 0 : pad;
    const n = spec.categories ? spec.categories.length : 0;
    const x0 = n ? -0.5 : xs[0], x1 = n ? n - 0.5 : xs[xs.length - 1] === xs[0] ? xs[0] + 1 : xs[xs.length - 1];
    const at_x = (x) => left + ((x - x0) / (x1 - x0)) * (width - left - right);
    const at_y = (y) => height - bottom - ((y - low) / (high - low)) * (height - top - bottom);
    toX = (pixel) => x0 + ((pixel - left) / (width - left - right)) * (x1 - x0);
    for (const y of ticks(low, high, 4)) {
      frame.append(make("line", { x1: left, x2: width - right, y1: at_y(y), y2: at_y(y), stroke: Math.abs(y) < 1e-12 ? "#57606a" : "#e3e7eb" }));
      frame.append(make("text", { x: left - 6, y: at_y(y) + 4, "text-anchor": "end" }, spec.tick ? spec.tick(y) : String(+y.toPrecision(6))));
    }
    const every = n ? Math.ceil(n / Math.max(2, (width - left - right) / 46)) : 1;
    const marks = n ? spec.categories.map((_, k) => k).filter((k) => (n - 1 - k) % every === 0) : ticks(x0, x1, (width - left) / 90);
    for (const x of marks) {
      frame.append(make("line", { x1: at_x(x), x2: at_x(x), y1: height - bottom, y2: height - bottom + 4, stroke: "#8c959f" }));
      frame.append(make("text", { x: at_x(x), y: height - bottom + 17, "text-anchor": "middle" }, n ? spec.categories[x] : brief(x)));
    }
    frame.append(make("line", { x1: left, x2: width - right, y1: height - bottom, y2: height - bottom, stroke: "#8c959f" }));
    frame.append(make("text", { x: (left + width - right) / 2, y: height - 7, "text-anchor": "middle" }, spec.xlabel));
    frame.append(make("text", { x: 6, y: 14 }, spec.ylabel));
    if (chosen >= 0) frame.append(make("line", { x1: at_x(xs[chosen]), x2: at_x(xs[chosen]), y1: top, y2: height - bottom, stroke: "#1b1f24", "stroke-dasharray": "3 3" }));
    const bars = series.filter((one) => one.bar), slot = bars.length ? ((width - left - right) / n) * 0.8 / bars.length : 0;
    series.forEach((one, k) => {
      const { stroke, dash } = one.style || line_style(k);
      if (one.bar) {
        const shift = (bars.indexOf(one) - bars.length / 2) * slot;
        for (const [x, y] of one.points) {
          if (!Number.isFinite(y)) continue;
          const from = at_y(Math.max(0, y)), to = at_y(Math.min(0, y));
          const fill = typeof one.bar === "function" ? one.bar(y) : stroke;
          frame.append(make("rect", { x: at_x(x) + shift, y: from, width: Math.max(1, slot - 1), height: Math.max(y ? 1 : 0, to - from), fill }));
        }
        return;
      }
      let path = "", pen = "M";
      for (const [x, y] of one.points) {
        if (!Number.isFinite(y)) { pen = "M"; continue; }
        path += `${pen}${at_x(x).toFixed(1)} ${at_y(y).toFixed(1)}`;
        pen = "L";
      }
      frame.append(make("path", { d: path, fill: "none", stroke, "stroke-width": 2, "stroke-dasharray": dash, "stroke-linejoin": "round" }));
      const dots = one.points.length <= 24 ? one.points : one.points.filter((p) => chosen >= 0 && p[0] === xs[chosen]);
      for (const [x, y] of dots) if (Number.isFinite(y)) frame.append(make("circle", { cx: at_x(x), cy: at_y(y), r: 3.2, fill: stroke }));
    });
  }

  function choose(index) {
    if (index === chosen) return;
    chosen = Math.max(-1, Math.min(xs.length - 1, index));
    draw();
    if (chosen < 0) { readout.textContent = ""; return; }
    const x = xs[chosen];
    const told = series.map((one) => [one, one.points.find((p) => p[0] === x)]).filter(([, p]) => p && Number.isFinite(p[1]))
      .map(([one, p]) => `${series.length > 1 || spec.always ? one.name + " " : ""}${spec.format(p[1])}`);
    readout.textContent = `${spec.say ? spec.say(x) : spec.xlabel + " " + count(x)}: ${told.join(", ")}`;
  }

  frame.addEventListener("pointermove", (event) => {
    const box = frame.getBoundingClientRect();
    const x = toX(event.clientX - box.left);
    let best = 0;
    xs.forEach((value, k) => { if (Math.abs(value - x) < Math.abs(xs[best] - x)) best = k; });
    choose(best);
  });
  frame.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") choose(-1); });
  frame.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -1e9, End: 1e9 }[event.key];
    if (event.key === "Escape") choose(-1);
    if (move === undefined) return;
    event.preventDefault();
    choose(Math.max(0, chosen + move));
  });
  draw();
  let last = frame.clientWidth;
  new ResizeObserver(() => { if (frame.clientWidth !== last) { last = frame.clientWidth; draw(); } }).observe(frame);
}

function table(host, columns, rows) {
  host.append(make("table", null,
    make("thead", null, make("tr", null, columns.map((name) => make("th", { scope: "col" }, name)))),
    make("tbody", null, rows.map((row) => make("tr", null, row.map((cell) => make("td", null, cell)))))));
}
