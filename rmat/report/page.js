// Everything around the text: summary, curves, slots, fusion, settings.
"use strict";

const OF_HEADS = DATA.model.config.slots_per === "key_head";

function draw_summary() {
  const { model, text, total, training } = DATA, c = model.config;
  document.title = `Memory report: ${model.name}`;
  place("subtitle").textContent = `${model.name}, read over ${text.name}`;
  const on = total.bits, zeroed = total.bits_zeroed, unit = text.unit;
  const cards = [
    ["text", `${count(total.tokens)} tokens`, `${count(total.bytes)} bytes in ${text.documents.length} document${text.documents.length > 1 ? "s" : ""}`],
    [`bits per ${unit}`, fixed(on, 3), zeroed === null ? "the model has no memory" : `memory zeroed ${fixed(zeroed, 3)}`],
    zeroed === null ? null : ["memory saves", `${signed(zeroed - on, 4)}`, `bits per ${unit}, zeroed − on`],
    ["parameters", brief(model.parameters), `${c.n_layers} layers, width ${c.d_model}, ${c.n_heads} heads`],
    ["state of a stream", bytes(model.state_bytes), "float32, however long the text"],
    MEMORY_LAYERS.length
      ? ["bank", `${count(c.n_slots)} slots`, `a ${OF_HEADS ? "key head" : "layer"}; ${c.writer === "mean" ? "the mean" : c.writer === "all" ? "all tokens" : `up to ${c.writes_per_segment}`} of every ${c.segment_len} tokens (${c.writer})`]
      : ["window", `${count(c.segment_len)} tokens`, "no memory"],
    training ? ["trained on", training.splits.train && training.splits.train.bytes ? bytes(training.splits.train.bytes) : "a task", training.data.join(", ")] : null,
  ];
  for (const card of cards) if (card) place("cards").append(make("div", null, make("dt", null, card[0]), make("dd", null, card[1], make("small", null, card[2]))));
  place("guide").textContent = MEMORY_LAYERS.length
    ? `The model read the text in segments of ${count(c.segment_len)} tokens. ${LAG ? "When local attention loses sight of a segment's length of tokens, the chosen ones (underlined) enter" : ENTRY_TOKENS > 1 ? "When a segment closes, its summary enters" : "When a segment closes, its chosen tokens (underlined) enter"} ${OF_HEADS ? "each key head's" : "the layer's"} memory bank of ${count(c.n_slots)} slots, and ${c.eviction === "weakest" ? "those with the weakest gates are evicted, the oldest first among equals" : "the oldest ones are evicted: first in, first out"}.${c.n_sinks ? ` The first ${count(c.n_sinks)} tokens of a document stay beside it as sinks.` : ""} Later tokens can read the slots${c.null_slot ? ", or the null slot, which says “nothing found”" : ""}. Choose a token below: orange frames show where in the text the slots come from that it read, dashed purple frames who read it later. Every percentage of attention is the mean over heads of one layer${ONE_SOFTMAX ? ", and of all that a token attends to: slots stand in one softmax with local keys" : ""}. “Memory zeroed” is a second reading of the same text in which every read finds the bank empty: what it loses is what the memory is worth.`
    : "This model has no memory: the page shows what every token cost in bits, how the streams are mixed and how training went.";
  const nav = [["text", "Text"], ["positions", "Bits by position"], ["slots", "Slots"], ["fusion", "Fusion"], ["training", "Training"], ["config", "Model"]];
  for (const [id, name] of nav) if (place(id)) place("nav").append(make("a", { href: "#" + id }, name));
}

function draw_positions() {
  const rows = DATA.positions, last = rows[rows.length - 1], host = place("positions-charts");
  const both = rows.some((row) => row.bits_zeroed !== null), unit = DATA.text.unit, where = unit === "byte" ? "bytes" : "tokens", points = (key) => rows.map((row, k) => [k, row[key]]);
  const shared = {
    categories: rows.map((row) => (row.to >= 1024 ? row.to / 1024 + " Ki" : String(row.to))), xlabel: `${where} into the document, up to`,
    say: (k) => `${where} ${count(rows[k].from)}–${count(rows[k].to)} (${count(rows[k].units)} ${unit}s)`,
  };
  chart(host, {
    ...shared, title: "Loss", ylabel: `bits per ${unit}`, format: (x) => fixed(x, 3),
    series: [{ name: both ? "memory on" : "loss", points: points("bits") }, { name: "memory zeroed", points: points("bits_zeroed"), style: { stroke: PALETTE[1], dash: "7 4" } }],
  });
  if (both) chart(host, {
    ...shared, title: "What the memory saves", ylabel: `bits per ${unit}, zeroed − on`, zero: true, format: (x) => signed(x, 4),
    series: [{ name: "saved", bar: (x) => (x < 0 ? PALETTE[1] : PALETTE[0]), points: rows.map((row, k) => [k, row.bits_zeroed - row.bits]) }],
  });
  place("positions-note").textContent = `Each bucket ends at twice the position of the one before it, over ${DATA.text.documents.length > 1 ? "all documents" : "this one document"}; the last one holds ${count(last.units)} ${unit}s.` + (both ? " Above zero, the memory helps." : "");
}

function draw_slots() {
  if (!MEMORY_LAYERS.length) { place("slots").remove(); return; }
  const told = MEMORY_LAYERS.map((k) => [k, DATA.layers[k].memory]);
  const starts = unpack(DATA.segments), openness = told.map(([k, memory]) => [k, unpack(memory.openness)]);
  const mean = (values) => { const real = Array.from(values).filter(Number.isFinite); return real.reduce((a, b) => a + b, 0) / real.length; };
  table(place("slots-table"), ["layer", "written", "of all tokens", "evicted", "never read", "null slot", "memory's share", ...(DATA.model.config.n_sinks ? ["sinks"] : [])],
    told.map(([k, memory], j) => [String(k + 1), count(memory.written), percent(mean(openness[j][1]), 1), count(memory.evicted),
      memory.readable ? `${count(memory.dead)} of ${count(memory.readable)} (${percent(memory.dead / memory.readable, 1)})` : "none could be",
      memory.null_of_head ? percent(mean(memory.null_of_head), 1) : "has none", percent(mean(layer_of(k).share), 1), ...(memory.sinks ? [percent(mean(layer_of(k).sinks), 1)] : [])]));
  place("slots-note").textContent = `“Never read” are dead slots: of the entries that a later segment could read, those to which no token ever gave more than ${percent(DATA.model.read_threshold)} of its attention. Ages are in tokens, from an entry's source to the start of the reading segment (in the bank), to the reading token (read), or to the eviction.${OF_HEADS ? " Entries of all key heads are counted together; a token can enter the bank of each." : ""}`;
  const charts = place("slots-charts");
  chart(charts, {
    title: "Gate openness over the text", xlabel: "token", ylabel: "tokens of the segment that entered, %", zero: true, always: true, height: 250,
    format: (x) => x.toFixed(1) + " %", series: openness.map(([k, values]) => ({ name: `layer ${k + 1}`, points: Array.from(values, (x, s) => [starts[s], 100 * x]) })),
  });
  for (const [k, memory] of told) {
    if (!memory.ages.length) continue;
    const sum = (key) => memory.ages.reduce((total, bucket) => total + bucket[key], 0);
    const points = (key) => { const whole = sum(key); return memory.ages.map((bucket, x) => [x, whole ? (100 * bucket[key]) / whole : NaN]); };
    chart(charts, {
      title: `Ages, layer ${k + 1}`, xlabel: "age in tokens, below", ylabel: "%", zero: true, height: 250, format: (x) => x.toFixed(1) + " %",
      categories: memory.ages.map((bucket) => brief(bucket.to)), say: (x) => `${count(memory.ages[x].from)}–${count(memory.ages[x].to - 1)} tokens`,
      series: [{ name: "in the bank", bar: true, points: points("held"), style: { stroke: "#9aa4ae" } }, { name: "read (by attention)", bar: true, points: points("read"), style: { stroke: PALETTE[0] } }, { name: "evicted", bar: true, points: points("evicted"), style: { stroke: PALETTE[5] } }],
    });
  }
}

const STREAMS = { full: ["#0072b2", "#fff"], chunked: ["#009e73", "#000"], local: ["#0072b2", "#fff"], memory: ["#e69f00", "#000"], sinks: ["#cc79a7", "#000"], null: ["#f7e2b0", "#000"] };
const STREAM_NAMES = { full: "full (the segment)", chunked: "chunked (the window)", local: "full and chunked together", memory: "memory: slots", sinks: "memory: sinks", null: "memory: null slot" };

function draw_fusion() {
  const used = new Set();
  DATA.layers.forEach((layer, k) => {
    const same = layer.fusion.every((head) => head.every((x, a) => x === layer.fusion[0][a])) && !(layer.memory && layer.memory.null_of_head);
    const rows = (same ? [layer.fusion[0]] : layer.fusion).map((weights, h) => {
      const parts = [];
      layer.streams.forEach((stream, a) => {
        const empty = stream === "memory" && !ONE_SOFTMAX && layer.memory.null_of_head ? layer.memory.null_of_head[h] : 0;
        parts.push([stream, weights[a] * (1 - empty)]);
        if (empty) parts.push(["null", weights[a] * empty]);
      });
      parts.forEach(([stream]) => used.add(stream));
      return make("div", { class: "head" }, make("span", null, same ? "all heads" : `head ${h + 1}`),
        make("div", { class: "stack", role: "img", "aria-label": parts.map(([stream, x]) => `${STREAM_NAMES[stream]} ${percent(x)}`).join(", ") },
          parts.map(([stream, x]) => make("span", { title: `${STREAM_NAMES[stream]}: ${percent(x, 1)}`, style: { width: 100 * x + "%", background: STREAMS[stream][0], color: STREAMS[stream][1] } }, x >= 0.09 ? percent(x) : ""))));
    });
    place("fusion-bars").append(make("div", null, make("h3", null, `Layer ${k + 1}`), rows));
  });
  for (const stream of Object.keys(STREAMS)) if (used.has(stream)) place("fusion-legend").append(make("span", null, make("i", { class: "swatch", style: { background: STREAMS[stream][0] } }), STREAM_NAMES[stream]));
  const nulls = used.has("null") && !ONE_SOFTMAX ? " The memory's part is split by what the read found, mean over the text." : "";
  place("fusion-note").textContent = (DATA.model.fusion_is_measured ? "Mean weight of each attention stream over the text." : "Learned weight of each attention stream; the same for every token.") + nulls;
}

function draw_training() {
  const training = DATA.training;
  if (!training || !(training.train.length + training.eval.length)) { place("training").remove(); return; }
  const curve = (rows, key) => rows.filter((row) => Number.isFinite(row[key])).map((row) => [row.step, row[key]]);
  const zeroed = training.eval.some((row) => row.bits_per_byte_memory_zeroed !== row.bits_per_byte) ? curve(training.eval, "bits_per_byte_memory_zeroed") : [];
  const host = place("training-charts"), last = training.train[training.train.length - 1];
  const size = Object.entries(training.splits).filter(([, split]) => split.bytes).map(([name, split]) => `${name} ${bytes(split.bytes)} in ${count(split.documents)} documents`).join(", ");
  place("training-note").textContent = `${training.preset || ""} ${training.variant || ""} on ${training.data.join(", ")}${size ? ` (${size})` : ""}${last ? `; ${count(last.tokens)} tokens in ${count(last.step)} steps` : ""}.`.trim();
  const format = (x) => fixed(x, 3), xlabel = "step";
  chart(host, {
    title: "Bits per byte", xlabel, ylabel: "bits per byte", format,
    series: [{ name: "training", points: curve(training.train, "bits_per_byte"), style: { stroke: "#8c959f", dash: "" } }, { name: "validation", points: curve(training.eval, "bits_per_byte"), style: { stroke: PALETTE[0], dash: "" } }, { name: "validation, memory zeroed", points: zeroed, style: { stroke: PALETTE[1], dash: "7 4" } }],
  });
  chart(host, { title: "Training loss", xlabel, ylabel: "nats per token", format, series: [{ name: "loss", points: curve(training.train, "loss") }] });
  const other = new Set(training.eval.flatMap(Object.keys));
  for (const key of ["step", "bits_per_byte", "bits_per_byte_memory_zeroed"]) other.delete(key);
  for (const key of other) {
    const name = key.replaceAll("_", " ");
    chart(host, { title: `Validation: ${name}`, xlabel, ylabel: name, format, series: [{ name, points: curve(training.eval, key) }] });
  }
  const wide = Math.max(0, ...training.train.map((row) => (row.openness || []).length));
  chart(host, {
    title: "Gate openness in training", xlabel, ylabel: "tokens written, %", zero: true, always: true, format: (x) => x.toFixed(1) + " %",
    series: Array.from({ length: wide }, (_, k) => ({ name: `layer ${(wide === MEMORY_LAYERS.length ? MEMORY_LAYERS[k] : k) + 1}`, points: training.train.filter((row) => row.openness && row.openness.length > k).map((row) => [row.step, 100 * row.openness[k]]) })),
  });
}

function draw_config() {
  const rows = Object.entries(DATA.model.config).map(([name, value]) => [name, Array.isArray(value) ? value.join(", ") : String(value)]);
  table(place("config-table"), ["field", "value"], [...rows, ["memory horizon", DATA.model.horizon]]);
}

start_reader();
draw_positions();
draw_slots();
draw_fusion();
draw_training();
draw_config();
draw_summary();
