// Overlap by layer: the curve of a pair, or of all graphs, over what unrelated texts share, beside
// what parallel texts share; how many features each layer has; and, for more than two graphs, every pair as a heatmap.

const COUNTS_WIDE = 62, FEW_FEATURES = 5, HEAT_EDGE = 34;

// What the curve shows, by layer.
function curve() {
  const one = D.overlaps[S.pair], layers = Array.from({ length: D.n_layers }, (_, layer) => layer);
  const known = (name) => layers.map((layer) => one[`${S.overlap}_${name}`][layer] ?? null);
  const features = layers.map((layer) => (D.counts.length ? one.members.map((place) => D.counts[place][layer]) : []));
  return { values: one[S.overlap], bands: known("unrelated"), parallel: known("parallel"), features, places: one.members };
}

function curveName() {
  return setName(D.overlaps[S.pair]);
}

function pairsOf(overlaps) {
  return overlaps.map((one, index) => ({ one, index })).filter(({ one }) => one.members.length === 2);
}

function measureName() {
  return S.overlap === "weighted" ? "influence-weighted Jaccard" : "plain IoU";
}

function featuresAt(features) {
  if (features.length <= 2) return features.map(counted).join(" · ");
  const low = Math.min(...features), high = Math.max(...features);
  return low === high ? counted(low) : `${counted(low)}–${counted(high)}`;
}

// Pieces of a line through the layers whose value is known, from the bottom up.
function pieces(values) {
  const found = [[]];
  values.forEach((value, layer) => (value === null ? found.push([]) : found.at(-1).push([value, layer])));
  return found.filter((piece) => piece.length);
}

// The end of the axis: a round share that holds everything drawn.
function mostShared() {
  const kinds = [S.overlap, `${S.overlap}_unrelated`, `${S.overlap}_parallel`], chosen = D.overlaps[S.pair];
  const values = [...kinds.flatMap((kind) => chosen[kind].map((value) => (Array.isArray(value) ? value[2] : value))), ...pairsOf(D.overlaps).flatMap(({ one }) => one[S.overlap])];
  return [0.1, 0.2, 0.4, 0.6, 0.8].find((end) => values.every((value) => !(value > end))) ?? 1;
}

function drawOverlap(width, rows) {
  const shown = curve(), side = D.counts.length ? COUNTS_WIDE : 12, height = heightOf(rows);
  const left = L.beside ? 12 : L.left, span = width - left - side - 16, most = mostShared(), xOf = (value) => left + value / most * span;
  const picture = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, class: "chart", "aria-hidden": "true" });
  const bottom = heightOf(rows) - FOOT, top = rows.length ? Math.min(...rows.map((row) => row.from)) : L.top;
  picture.append(L.beside ? layerLines(rows, left, left + span).cloneNode(true) : layerLines(rows, left, left + span));
  if (L.beside) picture.querySelectorAll(".tick").forEach((tick) => tick.remove());
  for (const value of [0, 0.25, 0.5, 0.75, 1].map((part) => part * most))
    picture.append(svg("path", { class: "rule", d: `M${xOf(value)} ${top}V${bottom}` }),
      svg("text", { class: "tick", x: xOf(value), y: top - 6, "text-anchor": "middle" }, `${number(100 * value, 2)}%`));
  picture.append(svg("text", { class: "head", x: left + span / 2, y: top - 22, "text-anchor": "middle" }, shortened(curveName(), 34)),
    ...bandParts(shown.bands, rows, xOf), ...otherCurves(rows, xOf),
    svg("path", { class: "parallel", d: line(shown.parallel.map((band) => band && band[1]), rows, xOf) || "M0 0" }), ...mainCurve(shown, rows, xOf));
  if (D.counts.length) picture.append(countColumn(shown.features, rows, width - 4, top));
  const holder = $("overlap");
  holder.replaceChildren(picture);
  holder.setAttribute("aria-label", `Overlap by layer, ${measureName()}, ${curveName()}: `
    + shown.values.map((value, layer) => `layer ${layer} ${percent(value)}`).join(", "));
  holder.onpointermove = (event) => overlapTip(event, shown, rows);
  holder.onpointerleave = hideTip;
}

function bandParts(bands, rows, xOf) {
  return pieces(bands).flatMap((piece) => {
    const at = (part) => piece.map(([band, layer]) => `${xOf(band[part]).toFixed(1)} ${rows[layer].middle.toFixed(1)}`);
    const ends = piece.length === 1 ? oneLayer(piece[0], rows, xOf) : `M${[...at(0), ...at(2).reverse()].join("L")}z`;
    return [svg("path", { class: "baseline-band", d: ends }), svg("path", { class: "baseline", d: `M${at(1).join("L")}` })];
  });
}

// The band of a layer that has no neighbour to be joined to.
function oneLayer([band, layer], rows, xOf) {
  const { from, to } = rows[layer], quarter = (to - from) / 4;
  return `M${xOf(band[0])} ${from + quarter}H${xOf(band[2])}V${to - quarter}H${xOf(band[0])}z`;
}

function line(values, rows, xOf) {
  return pieces(values).map((piece) =>
    `M${piece.map(([value, layer]) => `${xOf(value).toFixed(1)} ${rows[layer].middle.toFixed(1)}`).join("L")}`).join("");
}

function otherCurves(rows, xOf) {
  return pairsOf(D.overlaps).filter(({ index }) => index !== S.pair).map(({ one }) => svg("path", { class: "other-curve", d: line(one[S.overlap], rows, xOf) || "M0 0" }));
}

// The curve with its dots, hollow where too few features are active to say much.
function mainCurve({ values, features }, rows, xOf) {
  const dots = values.flatMap((value, layer) => (value === null ? []
    : [svg("circle", { class: Math.min(...features[layer]) < FEW_FEATURES ? "dot few" : "dot", cx: xOf(value).toFixed(1), cy: rows[layer].middle.toFixed(1), r: 3.4, "data-layer": layer })]));
  return [svg("path", { class: "curve", d: line(values, rows, xOf) || "M0 0" }), ...dots];
}

function countColumn(features, rows, right, top) {
  const group = svg("g", { class: "feature-counts" });
  group.append(svg("text", { class: "tick", x: right, y: top - 6, "text-anchor": "end" }, "features"));
  let last = Infinity;
  features.forEach((each, layer) => {
    const y = rows[layer].middle;
    if (last - y < 13) return;
    last = y;
    group.append(svg("text", { class: "tick", x: right, y: y + 4, "text-anchor": "end", "data-layer": layer }, featuresAt(each)));
  });
  return group;
}

function overlapTip(event, shown, rows) {
  const box = $("overlap").getBoundingClientRect(), y = event.clientY - box.top;
  const layer = rows.findIndex(({ from, to }) => y >= from && y < to);
  if (layer < 0) return hideTip();
  const band = shown.bands[layer], parallel = shown.parallel[layer], names = shown.places.map((place) => D.names[place]);
  tipAt(event.clientX, event.clientY, [h("strong", {}, `L${layer} · ${percent(shown.values[layer])}`), h("span", {}, `${curveName()}, ${measureName()}`),
    band ? h("span", {}, `unrelated texts ${interval(band)}`) : null, parallel ? h("span", {}, `parallel texts ${interval(parallel)}`) : null,
    shown.features[layer].length ? h("span", {}, `features: ${names.map((name, k) => `${name} ${counted(shown.features[layer][k])}`).join(", ")}`) : null]);
}

function interval([low, middle, high]) {
  return `${percent(middle)} (${percent(low)} to ${percent(high)})`;
}

// Room above the heatmap for the slanted names of its columns.
function heatRoom() {
  const longest = Math.max(...pairsOf(D.overlaps).map(({ one }) => textWidth(shortened(setName(one), 18), "11px system-ui, sans-serif")));
  return longest * 0.82 + 20;
}

// Whether a pair shares no more in a layer than unrelated texts do.
function atBaseline(one, layer) {
  const band = one[`${S.overlap}_unrelated`][layer], value = one[S.overlap][layer];
  return Boolean(band) && value !== null && value <= band[2];
}

function drawHeat(width, rows) {
  const holder = $("heat");
  const pairs = pairsOf(D.overlaps);
  holder.hidden = pairs.length < 2;
  if (holder.hidden) return;
  const left = L.beside && L.heatBeside ? 8 : L.left, size = (width - left - HEAT_EDGE) / pairs.length;
  const height = heightOf(rows), picture = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, class: "chart", "aria-hidden": "true" });
  if (!(L.beside && L.heatBeside)) {
    const names = layerLines(rows, left, left);
    names.querySelectorAll(".rule").forEach((rule) => rule.remove());
    picture.append(names);
  }
  pairs.forEach(({ one, index }, k) => picture.append(heatColumn(one, index, left + k * size, size, rows)));
  holder.replaceChildren(picture);
  holder.onclick = (event) => {
    const column = event.target.closest("[data-pair]");
    if (column) choosePair(S.pair === Number(column.dataset.pair) ? firstOverlap() : Number(column.dataset.pair));
  };
  holder.onpointermove = (event) => heatTip(event);
  holder.onpointerleave = hideTip;
}

function heatColumn(one, index, x, size, rows) {
  const group = svg("g", { "data-pair": index, class: index === S.pair ? "chosen" : "" });
  const top = Math.min(...rows.map((row) => row.from));
  group.append(svg("text", { class: "head", transform: `translate(${x + size / 2 + 4} ${top - 6}) rotate(-55)` }, shortened(setName(one), 18)));
  rows.forEach(({ from, to, middle }, layer) => {
    const value = one[S.overlap][layer];
    const cell = svg("rect", { class: value === null ? "cell unknown" : "cell", x: x + 0.75, y: from + 0.75, width: Math.max(size - 1.5, 1),
      height: Math.max(to - from - 1.5, 1), "data-layer": layer, "fill-opacity": value === null ? 1 : (0.04 + 0.96 * value).toFixed(3) });
    group.append(cell);
    if (atBaseline(one, layer)) group.append(svg("path", { class: "hatch", d: `M${x + 2} ${to - 2}L${x + size - 2} ${from + 2}` }));
    if (size >= 25 && to - from >= 14 && value !== null)
      group.append(svg("text", { class: value > 0.55 ? "cell-value high" : "cell-value", x: x + size / 2, y: middle + 4, "text-anchor": "middle" }, Math.round(100 * value)));
  });
  return group;
}

function heatTip(event) {
  const part = event.target.closest(".cell"), column = event.target.closest("[data-pair]");
  if (!part || !column) return hideTip();
  const one = D.overlaps[Number(column.dataset.pair)], layer = Number(part.dataset.layer), band = one[`${S.overlap}_unrelated`][layer];
  tipAt(event.clientX, event.clientY, [h("strong", {}, `${setName(one)} · L${layer} · ${percent(one[S.overlap][layer])}`),
    h("span", {}, measureName()), band ? h("span", {}, `unrelated texts ${interval(band)}`) : null]);
}
