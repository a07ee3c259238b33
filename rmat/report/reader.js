// The text: coloured tokens, made as they come into view, and the panel that tells what one of them read and wrote.
"use strict";

const DATA = JSON.parse(place("data").textContent);
const TOKENS = DATA.text.tokens, N = TOKENS.length;
const ENTRY_TOKENS = DATA.model.entry_tokens, LAG = DATA.model.write_lag || 0;
const ONE_SOFTMAX = DATA.model.config.memory_projections === "local"; // shares are of a token's whole attention

function unpack(packed) {
  if (!packed) return null;
  const raw = Uint8Array.from(atob(packed.d), (c) => c.charCodeAt(0));
  const kind = { u1: Uint8Array, i1: Int8Array, u2: Uint16Array, i2: Int16Array, u4: Uint32Array, i4: Int32Array }[packed.t];
  const none = { u1: 255, i1: 127, u2: 65535, i2: 32767, u4: 4294967295, i4: 2147483647 }[packed.t];
  const whole = new kind(raw.buffer);
  const values = packed.s === 1 ? new Int32Array(whole.length) : new Float32Array(whole.length);
  for (let k = 0; k < whole.length; k++) values[k] = whole[k] === none ? (packed.s === 1 ? -1 : NaN) : whole[k] * packed.s;
  return values;
}

const BITS = unpack(DATA.text.bits), BITS_ZEROED = unpack(DATA.text.bits_zeroed);
const SEGMENT_STARTS = unpack(DATA.segments), OPENS = new Set(SEGMENT_STARTS);
const MEMORY_LAYERS = DATA.layers.flatMap((layer, k) => (layer.memory ? [k] : []));
const layers_read = new Map();

// One layer's memory, unpacked at first use, with what only the page needs: the entry of a token, the readers of an entry.
function layer_of(index) {
  if (layers_read.has(index)) return layers_read.get(index);
  const from = DATA.layers[index].memory;
  if (!from) return null;
  const { reads, entries } = from, layer = { share: unpack(from.share), null: unpack(from.null), sinks: unpack(from.sinks), scores: unpack(from.write) };
  layer.heads = from.write.n[1] || 1; // scores of a token; its colour is the greatest
  layer.write = Float32Array.from({ length: N }, (_, i) => Math.max(...scores_of(layer, i)));
  layer.entry = unpack(reads.entry);
  layer.weight = unpack(reads.weight);
  layer.head = unpack(reads.head);
  layer.top = reads.entry.n[1];
  for (const name of Object.keys(entries)) layer[name] = unpack(entries[name]);
  layer.of_token = new Int32Array(N).fill(-1);
  layer.next = new Int32Array(layer.source.length).fill(-1); // the next entry of the same token, of another key head
  for (let e = layer.source.length - 1; e >= 0; e--) {
    layer.next[e] = layer.of_token[layer.source[e]];
    for (let i = first_token(layer, e); i <= layer.source[e]; i++) layer.of_token[i] = e;
  }
  layer.readers = Array.from({ length: layer.source.length }, () => []);
  layer.entry.forEach((e, k) => { if (e >= 0) layer.readers[e].push(k); });
  layers_read.set(index, layer);
  return layer;
}

const scores_of = (layer, i) => layer.scores.subarray(i * layer.heads, (i + 1) * layer.heads);

function entries_of(layer, i) {
  const found = [];
  for (let e = layer.of_token[i]; e >= 0; e = layer.next[e]) found.push(e);
  return found;
}

const is_sink = (layer, e) => layer.source[e] < document_of(layer.source[e]).start + (DATA.model.config.n_sinks || 0);
const first_token = (layer, entry) => layer.source[entry] - ENTRY_TOKENS + 1;
const visible = (text) => text.replace(/\n/g, "↵").replace(/\t/g, "⇥");
const name_of = (i) => (DATA.text.specials[i] ? `⟨${DATA.text.specials[i]}⟩` : TOKENS[i] === "" ? "⟨part of a character⟩" : TOKENS[i].trim() ? visible(TOKENS[i]) : visible(TOKENS[i]).replace(/ /g, "␣"));
const following = (i) => (DATA.text.answers[i] !== undefined ? DATA.text.answers[i] || "⟨end⟩" : i + 1 < N ? name_of(i + 1) : "");
const document_of = (i) => DATA.text.documents.findLast((one) => one.start <= i);

// ---- colours: each way gives a colour of a token and a legend

const mix = (a, b, t) => `rgb(${a.map((x, k) => Math.round(x + (b[k] - x) * Math.min(1, Math.max(0, t)))).join(",")})`;
const WHITE = [255, 255, 255], BLUE = [92, 172, 230], ORANGE = [245, 166, 70];
const CLASSES = [["#fff", "not written"], ["#8ec7ec", "written, still held at the end"], ["#f9d48b", "written and evicted"], ["#c9ced4", "written, never read"]];

function spread(values, low, high) {
  const sorted = Float32Array.from(values.filter(Number.isFinite)).sort();
  if (!sorted.length) return [0, 1];
  return [sorted[Math.floor(low * (sorted.length - 1))], sorted[Math.floor(high * (sorted.length - 1))]];
}

function ramp_scale(values, unit, format, from = null) {
  let [low, high] = spread(values, 0.02, 0.98);
  if (from !== null) low = from;
  const one = high - low < 1e-6;
  const colour = (i) => (Number.isFinite(values[i]) ? mix(WHITE, BLUE, one ? 0.5 : (values[i] - low) / (high - low)) : null);
  const legend = one
    ? [`${unit} ${format(low)} everywhere`]
    : [make("span", null, format(low), make("i", { class: "ramp", style: { background: `linear-gradient(90deg, #fff, ${mix(WHITE, BLUE, 1)})` } }), format(high), ` ${unit}`)];
  return { colour, legend };
}

// Where the gate refuses scores that are not above 0: greys for those, blues for the others.
function score_scale(values, unit) {
  if (!["push", "both"].includes(DATA.model.config.gate)) return ramp_scale(values, unit, (x) => fixed(x, 2));
  const sides = [["refused", values.filter((x) => x <= 0), WHITE, [205, 211, 218]], ["may enter", values.filter((x) => x > 0), [205, 230, 248], BLUE]]
    .map(([name, part, from, to]) => ({ name, from, to, some: part.length > 0, range: spread(part, 0.02, 0.98) }));
  const colour = (i) => {
    const side = sides[values[i] > 0 ? 1 : 0], [low, high] = side.range;
    return Number.isFinite(values[i]) ? mix(side.from, side.to, high > low ? (values[i] - low) / (high - low) : 1) : null;
  };
  const legend = sides.filter((side) => side.some).map(({ name, from, to, range }) =>
    make("span", null, fixed(range[0], 2), make("i", { class: "ramp", style: { background: `linear-gradient(90deg, ${mix(from, to, 0)}, ${mix(from, to, 1)})` } }), `${fixed(range[1], 2)} ${name}`));
  return { colour, legend: [make("span", null, unit), ...legend] };
}

const WRITE_NAMES = { token_score: "write score", segment_score: "write score of the segment", gru_gate: "gate z of the segment, mean" };
const colours = {
  write: { name: WRITE_NAMES[DATA.model.write], needs: DATA.model.write, scale: (l) => (DATA.model.write === "gru_gate" ? ramp_scale(l.write, WRITE_NAMES.gru_gate, (x) => fixed(x, 2)) : score_scale(l.write, WRITE_NAMES[DATA.model.write])) },
  entered: {
    name: "entered the bank", needs: true,
    scale: (l) => {
      const kind = (all) => (all.every((e) => l.most_read[e] <= DATA.model.read_threshold) ? 3 : all.some((e) => l.evicted[e] < 0) ? 1 : 2);
      return {
        colour: (i) => (l.of_token[i] < 0 ? null : CLASSES[kind(entries_of(l, i))][0]),
        legend: CLASSES.map(([colour, name]) => make("span", null, make("i", { class: "swatch", style: { background: colour } }), name)),
      };
    },
  },
  share: { name: "memory's share of the mix", needs: true, scale: (l) => ramp_scale(l.share, "of the mixed streams", (x) => percent(x), 0) },
  bits: { name: "loss of what follows", plain: true, scale: () => ramp_scale(BITS, "bits", (x) => fixed(x, 1), 0) },
  saved: {
    name: "loss of what follows, zeroed − on", plain: true, needs: BITS_ZEROED,
    scale: () => {
      const saved = BITS.map((x, i) => BITS_ZEROED[i] - x);
      const most = Math.max(0.1, ...spread(saved, 0.02, 0.98).map(Math.abs));
      return {
        colour: (i) => (Number.isFinite(saved[i]) ? mix(WHITE, saved[i] > 0 ? BLUE : ORANGE, Math.abs(saved[i]) / most) : null),
        legend: [make("span", null, `memory costs ${fixed(most, 1)}`, make("i", { class: "ramp", style: { background: `linear-gradient(90deg, ${mix(WHITE, ORANGE, 1)}, #fff, ${mix(WHITE, BLUE, 1)})` } }), `saves ${fixed(most, 1)} bits`)],
      };
    },
  },
};

// ---- the text in blocks: plain text first, tokens once a block comes near

const SIZE = 256, pane = place("pane"), panel = place("panel"), map = place("map");
const blocks = [];
const marks = new Map();
const used = (k) => layer_of(k).share.reduce((sum, x) => sum + x, 0); // what the whole text read from a layer's slots
let layer_index = MEMORY_LAYERS.reduce((best, k) => (best < 0 || used(k) > used(best) ? k : best), -1), layer = null;
if (layer_index < 0) layer_index = 0;
else layer = layer_of(layer_index);
let way = null, scale = null, active = -1, held = false;

const shown_text = (i) => (DATA.text.specials[i] ? (DATA.text.specials[i] === "document" ? `▸ ${document_of(i).name}` : DATA.text.specials[i]) : TOKENS[i]);

function dress(span, i) {
  let classes = "t";
  if (DATA.text.specials[i]) classes += " x";
  else if (TOKENS[i].includes("\n")) classes += " n";
  if (layer && layer.of_token[i] >= 0 && ENTRY_TOKENS === 1) classes += " w";
  if (OPENS.has(i)) classes += " g";
  const mark = marks.get(i);
  span.className = mark ? `${classes} ${mark}` : classes;
  span.style.backgroundColor = scale.colour(i) || "";
}

function fill(block) {
  block.spans = [];
  for (let i = block.start; i < block.stop; i++) {
    const span = make("span", { id: "t" + i }, shown_text(i));
    span.index = i;
    block.spans.push(span);
    dress(span, i);
  }
  block.node.replaceChildren(...block.spans);
  block.fresh = true;
}

function refresh(block) {
  if (!block.spans) fill(block);
  else if (!block.fresh) { block.spans.forEach((span, k) => dress(span, block.start + k)); block.fresh = true; }
}

const watcher = new IntersectionObserver((seen) => {
  for (const one of seen) {
    const block = blocks[one.target.number];
    block.near = one.isIntersecting;
    if (block.near) refresh(block);
  }
}, { root: pane, rootMargin: "800px 0px" });

function lay_out() {
  for (let start = 0; start < N; start += SIZE) {
    const stop = Math.min(start + SIZE, N);
    let text = "";
    for (let i = start; i < stop; i++) text += shown_text(i);
    const node = make("span", null, text);
    node.number = blocks.length;
    blocks.push({ start, stop, node, spans: null, fresh: false, near: false });
    pane.append(node);
  }
  blocks.forEach((block) => watcher.observe(block.node));
}

function redress() {
  for (const block of blocks) { block.fresh = false; if (block.near) refresh(block); }
  draw_map();
}

function mark_all(changes) {
  const before = [...marks.keys()];
  marks.clear();
  for (const [i, name] of changes) marks.set(i, marks.has(i) ? `${marks.get(i)} ${name}` : name);
  for (const i of new Set([...before, ...marks.keys()])) {
    const block = blocks[Math.floor(i / SIZE)];
    if (block.spans) dress(block.spans[i - block.start], i);
  }
}

function draw_map() {
  const width = map.clientWidth, ratio = window.devicePixelRatio || 1, tall = 30;
  map.width = width * ratio;
  map.height = tall * ratio;
  const pen = map.getContext("2d");
  pen.scale(ratio, ratio);
  for (let x = 0; x < width; x++) {
    const from = Math.floor((x / width) * N), to = Math.max(from + 1, Math.floor(((x + 1) / width) * N));
    const step = Math.max(1, Math.floor((to - from) / 12));
    const sum = [0, 0, 0];
    let seen = 0;
    for (let i = from; i < to && i < N; i += step) {
      const colour = scale.colour(i) || "rgb(255,255,255)";
      const parts = colour[0] === "#" ? colour.length === 4 ? [255, 255, 255] : [1, 3, 5].map((k) => parseInt(colour.slice(k, k + 2), 16)) : colour.slice(4, -1).split(",");
      parts.forEach((part, k) => { sum[k] += +part; });
      seen++;
    }
    pen.fillStyle = `rgb(${sum.map((x) => Math.round(x / Math.max(1, seen))).join(",")})`;
    pen.fillRect(x, 0, 1, tall);
  }
  const tick = (i, colour, wide, high) => { pen.fillStyle = colour; pen.fillRect((i / N) * width - wide / 2, tall - high, wide, high); };
  for (const [i, name] of marks) tick(i, name.includes("a") ? "#000" : name.includes("s") ? "#d55e00" : "#9b3d78", name.includes("a") ? 4 : 3, name.includes("a") ? tall : tall * 0.6);
}

// ---- one token

function snippet(first, last = first) {
  const put = (from, to) => { let text = ""; for (let k = from; k < to; k++) text += DATA.text.specials[k] ? name_of(k) : visible(TOKENS[k]); return text; };
  let before = first, after = last + 1;
  for (let room = 28; before > 0 && room > 0; room -= TOKENS[before].length || 1) before--;
  for (let room = 20; after < N && room > 0; room -= TOKENS[after - 1].length || 1) after++;
  const middle = last - first > 12 ? `${put(first, first + 6)} … ${put(last - 5, last + 1)}` : last > first ? put(first, last + 1) : name_of(first);
  return make("div", { class: "text" }, last > first ? "" : put(before, first), make("mark", null, middle || " "), last > first ? "" : put(last + 1, Math.min(N, after)));
}

function reference(i, last, weight, words, most) {
  return make("li", null, make("button", { type: "button", "data-token": i, onclick: () => choose(i, true, true) },
    make("div", { class: "row" }, make("b", null, percent(weight, 1)), make("span", null, words)), snippet(i, last),
    make("span", { class: "bar", style: { width: `${(100 * weight) / most}%` } })));
}

function reads_of(i) {
  const found = [];
  if (layer) for (let k = i * layer.top; k < (i + 1) * layer.top; k++) if (layer.entry[k] >= 0) found.push({ entry: layer.entry[k], weight: layer.weight[k], head: layer.head ? layer.head[k] : -1 });
  return found;
}

function facts_of(i) {
  const rows = [["place", `token ${count(i)}${DATA.text.documents.length > 1 ? " of " + document_of(i).name : ""}`]];
  if (Number.isFinite(BITS[i])) {
    const saved = BITS_ZEROED ? BITS_ZEROED[i] - BITS[i] : NaN;
    const worth = Number.isFinite(saved) ? `; memory zeroed ${fixed(BITS_ZEROED[i], 2)}, so the memory ${Math.abs(saved) < 0.005 ? "changes nothing" : (saved > 0 ? "saves " : "costs ") + fixed(Math.abs(saved), 2)}` : "";
    rows.push([DATA.text.unit === "byte" ? "next token" : "answer", make("span", null, make("code", null, following(i)), ` costs ${fixed(BITS[i], 2)} bits${worth}`)]);
  }
  if (!layer) return rows;
  rows.push(["memory", `${percent(layer.share[i])} of the mix of this layer`]);
  if (layer.sinks) rows.push(["sinks", `${percent(layer.sinks[i], 1)} of the attention`]);
  if (layer.null) rows.push(["null slot", ONE_SOFTMAX ? `${percent(layer.null[i], 1)} of the attention` : `${percent(layer.null[i], 1)} of the read found nothing`]);
  if (DATA.model.write && Number.isFinite(layer.write[i])) rows.push([DATA.model.write === "gru_gate" ? "gate z" : "score", `${Array.from(scores_of(layer, i), (x) => fixed(x, 2)).join(", ")} (${WRITE_NAMES[DATA.model.write]}${layer.heads > 1 ? ", by key head" : ""})`]);
  return rows;
}

/** Why a token could read nothing: nothing had entered the bank of its document yet, for one of two reasons. */
function why_empty(i) {
  const config = DATA.model.config, start = document_of(i).start, opened = SEGMENT_STARTS.findLast((s) => s <= i);
  if (layer.entered.some((at, e) => layer.source[e] >= start && at <= i)) return "No slot stood out.";
  if (LAG && opened - start <= LAG) return `Nothing: the bank was empty, since the first write comes when local attention loses sight of a token (after ${count(LAG)} tokens and a segment of ${count(config.segment_len)}).`;
  if (opened - start < config.segment_len) return `Nothing: the bank was empty, since the first write comes when a segment closes (every ${count(config.segment_len)} tokens).`;
  return "Nothing: the bank was empty, since the gate had refused every token so far.";
}

function reading_of(i) {
  const found = reads_of(i);
  if (!found.length) return [make("p", null, why_empty(i))];
  const listed = found.reduce((sum, one) => sum + one.weight, 0), sinks = layer.sinks ? layer.sinks[i] : 0, whole = ONE_SOFTMAX ? layer.share[i] + sinks : 1 - (layer.null ? layer.null[i] : 0), rest = whole - listed;
  const list = found.map(({ entry, weight, head }) => {
    const age = i - layer.source[entry];
    return reference(first_token(layer, entry), layer.source[entry], weight, `${is_sink(layer, entry) ? "sink, " : ""}${count(age)} tokens ago${head >= 0 ? `, most by head ${head + 1}` : ""}`, found[0].weight);
  });
  return [make("ul", { class: "refs sources" }, list), rest > 0.005 ? make("p", null, `All other slots together: ${percent(rest, 1)}.`) : null];
}

function writing_of(i) {
  const config = DATA.model.config, all = entries_of(layer, i);
  if (all.length) return all.flatMap(life_of);
  const one = document_of(i), offered = one.start + (Math.floor((i - one.start + LAG) / config.segment_len) + 1) * config.segment_len; // when
  if (offered > one.start + one.tokens) return [make("p", null, `Not written: ${LAG ? "local attention still saw it" : "its segment was still open"} when the document ended.`)];
  const refused = ["push", "both"].includes(config.gate) && DATA.model.write && layer.write[i] <= 0;
  return [make("p", null, refused ? "Not written: the gate refused it (score not above 0)." : `Not written: not among the ${config.writes_per_segment} best of ${LAG ? `the ${count(config.segment_len)} offered with it` : "its segment"}${config.eviction === "weakest" ? ", or weaker than what the bank held" : ""}.`)];
}

function life_of(e) {
  const what = ENTRY_TOKENS > 1 ? `As part of tokens ${count(first_token(layer, e))}–${count(layer.source[e])}, it` : "It";
  const bank = layer.key_head ? `the bank of key head ${layer.key_head[e] + 1}` : "the bank", when = LAG ? "local attention lost sight of it" : "its segment closed";
  const gate = layer.gate && Number.isFinite(layer.gate[e]) ? `, gate ${percent(layer.gate[e])}` : "";
  const end = layer.evicted[e] < 0 ? "was still held when the document ended" : `was evicted at token ${count(layer.evicted[e])}, ${count(layer.evicted[e] - layer.source[e])} tokens old`;
  const told = [make("p", null, is_sink(layer, e) ? `It is a sink: every token from ${count(layer.entered[e])} on sees it beside the bank.` : `${what} entered ${bank} when ${when} at token ${count(layer.entered[e])}${gate}, and ${end}.`)];
  const best = layer.readers[e].slice().sort((a, b) => layer.weight[b] - layer.weight[a]).slice(0, 5);
  if (layer.most_read[e] <= DATA.model.read_threshold) told.push(make("p", null, `Never read: no later token gave it more than ${percent(DATA.model.read_threshold)} of its attention.`));
  else told.push(make("p", null, `Read with ${layer.total_read[e] < 100 ? fixed(layer.total_read[e], 1) : count(layer.total_read[e])} tokens' worth of attention in all; most by:`));
  if (best.length && layer.most_read[e] > DATA.model.read_threshold) {
    const reader = (k) => Math.floor(k / layer.top);
    told.push(make("ul", { class: "refs readers" }, best.map((k) => reference(reader(k), reader(k), layer.weight[k], `${count(reader(k) - layer.source[e])} tokens later`, layer.weight[best[0]]))));
  }
  return told;
}

function show() {
  const changes = [];
  panel.replaceChildren();
  if (active < 0) {
    panel.append(make("p", null, "Choose a token in the text: this panel then tells what it read from the memory, whether it was written, and who read it later."));
  } else {
    panel.append(make("span", { class: "big" }, name_of(active)));
    panel.append(make("dl", { class: "facts" }, facts_of(active).flatMap(([name, value]) => [make("dt", null, name), make("dd", null, value)])));
    if (layer) {
      panel.append(make("h3", null, `Read from the memory, layer ${layer_index + 1}`), ...reading_of(active).filter(Boolean));
      panel.append(make("h3", null, "Written to the memory"), ...writing_of(active).filter(Boolean));
      for (const { entry } of reads_of(active)) for (let i = first_token(layer, entry); i <= layer.source[entry]; i++) changes.push([i, "s"]);
      for (const node of panel.querySelectorAll(".readers button")) changes.push([+node.dataset.token, "r"]);
    } else if (DATA.model.config.streams.includes("memory")) {
      panel.append(make("p", null, `Layer ${layer_index + 1} has no memory: choose another layer.`));
    } else {
      panel.append(make("p", null, "This model has no memory: only the loss is told."));
    }
    changes.push([active, "a"]);
  }
  panel.scrollTop = 0;
  mark_all(changes);
  draw_map();
}

function choose(i, hold, jump) {
  active = i;
  held = hold && i >= 0;
  show();
  if (i < 0) { pane.removeAttribute("aria-activedescendant"); return; }
  if (hold) place("status").textContent = `Token ${count(i)}: ${name_of(i)}. ${reads_of(i).slice(0, 1).map((one) => `Read most: ${name_of(layer.source[one.entry])}, ${percent(one.weight)}`).join("")}`;
  if (jump) {
    const block = blocks[Math.floor(i / SIZE)];
    refresh(block);
    const span = block.spans[i - block.start], box = span.getBoundingClientRect(), frame = pane.getBoundingClientRect();
    if (box.top < frame.top + 20 || box.bottom > frame.bottom - 20) pane.scrollTop += box.top - frame.top - frame.height / 2.5;
    pane.setAttribute("aria-activedescendant", span.id);
  }
}

function next_written(i, step) {
  for (let k = i < 0 && step < 0 ? N - 1 : i + step; k >= 0 && k < N; k += step) if (layer && layer.of_token[k] >= 0 && (ENTRY_TOKENS === 1 || layer.of_token[k] !== layer.of_token[i])) return k;
  return Math.max(i, 0);
}

function listen() {
  const token_of = (event) => { const span = event.target.closest && event.target.closest(".t"); return span ? span.index : -1; };
  pane.addEventListener("click", (event) => { const i = token_of(event); if (i >= 0) choose(held && i === active ? -1 : i, true, false); });
  pane.addEventListener("pointerover", (event) => { const i = token_of(event); if (event.pointerType === "mouse" && !held && i >= 0 && i !== active) choose(i, false, false); });
  pane.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.key === "Escape") choose(-1, false, false);
    else if (event.key === "Home") choose(0, true, true);
    else if (event.key === "End") choose(N - 1, true, true);
    else if (step) choose(Math.max(0, Math.min(N - 1, event.shiftKey ? next_written(active, step) : active + step)), true, true);
    else return;
    event.preventDefault();
  });
  for (const button of document.querySelectorAll("#steps button")) button.addEventListener("click", () => choose(next_written(active, +button.value), true, true));
  map.addEventListener("click", (event) => choose(Math.min(N - 1, Math.floor((event.offsetX / map.clientWidth) * N)), true, true));
  new ResizeObserver(draw_map).observe(map);
}

function colour_by(key) {
  way = key;
  scale = colours[key].plain || layer ? colours[key].scale(layer) : { colour: () => null, legend: ["this layer has no memory"] };
  const signs = layer ? [ENTRY_TOKENS === 1 ? make("span", null, make("i", { class: "mark-w" }, "a"), "written") : null, make("span", null, make("i", { class: "mark-s" }, "a"), "read by the token"), make("span", null, make("i", { class: "mark-r" }, "a"), "reads the token")] : [];
  place("legend").replaceChildren(...scale.legend, ...signs.filter(Boolean));
  redress();
}

function start_reader() {
  if (MEMORY_LAYERS.length) {
    for (let k = 0; k < DATA.layers.length; k++) {
      const input = make("input", { type: "radio", name: "layer", value: k, disabled: !DATA.layers[k].memory, onchange: () => { layer_index = k; layer = layer_of(k); colour_by(way); show(); } });
      input.checked = k === layer_index;
      place("layers").append(make("label", null, input, make("span", null, String(k + 1))));
    }
  } else {
    place("layers").remove();
    place("steps").remove();
  }
  const select = place("colour");
  for (const [key, one] of Object.entries(colours)) if (one.plain ? one.needs !== null : layer && one.needs) select.append(make("option", { value: key }, one.name));
  select.addEventListener("change", () => colour_by(select.value));
  lay_out();
  colour_by(select.value);
  listen();
  const jumps = place("jumps");
  if (!BITS_ZEROED) { jumps.remove(); show(); return; }
  const all = Array.from(BITS, (x, i) => [BITS_ZEROED[i] - x, i]).filter(([x]) => x >= 0.5).sort((a, b) => b[0] - a[0]);
  const words = all.filter(([, i]) => /[\p{L}\p{N}]{2}/u.test(following(i)));
  const saved = (words.length >= 8 ? words : all).slice(0, 16);
  if (!saved.length) jumps.remove();
  else jumps.append("Memory saved most on:", ...saved.map(([x, i]) => make("button", { type: "button", onclick: () => choose(i, true, true) }, make("code", null, following(i).trim()), ` ${fixed(x, 1)} bits`)));
  if (saved.length) choose(saved[0][1], true, true);
  else show();
}
