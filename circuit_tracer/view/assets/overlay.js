// What lies over the markers: names, outputs, the selection with its edges, rings. All of it is
// SVG built anew whenever something changes; it never holds more than a few hundred elements.

const EDGES_A_SIDE = 60, NEIGHBOUR_NAMES = 9, LEAST_OUTPUT_GAP = 16;

function outputName(node) {
  // The token in an isolate, so that its direction does not turn the number round.
  return `\u2068${shortened(visible(node.token), 13)}\u2069` + (node.probability === null ? "" : ` ${percent(node.probability).replace(" ", "")}`);
}

// Room above the top row for the slanted names of the outputs.
function topMargin() {
  const longest = Math.max(0, ...D.logits.map((i) => textWidth(outputName(D.nodes[i]), 12, 600)));
  return Math.round(longest * Math.sin((52 * Math.PI) / 180)) + 34;
}

function inView(index, slack = 0) {
  const [x, y] = project(index), { l, t, w, h } = G.frame;
  return x >= l - slack && x <= l + w + slack && y >= t - slack && y <= t + h + slack;
}

function drawOverlay() {
  if (!G.layout || !G.frame) return;
  const overlay = $("overlay"), focus = S.selected >= 0 || S.edge >= 0;
  overlay.setAttribute("viewBox", `0 0 ${G.width} ${G.height}`);
  $("stage").classList.toggle("focus", focus);
  const layers = [clipRect(), columnMark(), tokenNames(), layerNames(), ...rings()];
  const near = S.edge >= 0 ? edgeLayers(layers) : focus ? selectionLayers(layers) : new Set();
  layers.push(outputNames(near), names(focus, near), hoverRing());
  overlay.replaceChildren(...layers.filter(Boolean));
}

function clipRect() {
  const { l, t, w, h } = G.frame, defs = svg("defs"), clip = svg("clipPath", { id: "inside" });
  clip.append(svg("rect", { x: l, y: t, width: w, height: h }));
  defs.append(clip);
  return defs;
}

function columnMark() {
  if (S.column < 0) return null;
  const [from, to] = G.layout.columns[S.column], { t, h } = G.frame;
  return svg("rect", { class: "column", x: xOf(from), y: t, width: xOf(to) - xOf(from), height: h, "clip-path": "url(#inside)" });
}

// Names of the tokens under their columns; a click marks the column.
function tokenNames() {
  const group = svg("g", { class: "tokens-axis" }), { l, t, w, h } = G.frame;
  G.layout.columns.forEach(([from, to], position) => {
    const middle = xOf((from + to) / 2);
    if (middle < l - 1 || middle > l + w + 1) return;
    const turn = G.angle ? ` rotate(${G.angle})` : "";
    group.append(svg("text", { class: position === S.column ? "tick marked" : "tick", "data-column": position,
      transform: `translate(${middle.toFixed(1)} ${t + h + (G.angle ? 14 : 20)})${turn}`,
      "text-anchor": G.angle ? "end" : "middle" }, G.names[position]));
  });
  return group;
}

function layerNames() {
  const group = svg("g", { class: "layers-axis" }), { l, t, h } = G.frame;
  for (const value of layerTicks()) {
    const y = yOf(value);
    if (y < t - 1 || y > t + h + 1) continue;
    group.append(svg("text", { class: "tick", x: l - 5, y: (y + 4).toFixed(1), "text-anchor": "end" }, layerName(value)));
  }
  return group;
}

// Strongest edges on either side of the selection, its neighbours in the colour of the sign, and
// under them the strongest path to an output.
function selectionLayers(layers) {
  const index = S.selected, visibleEdge = (e) => G.shown.has(D.sources[e]) && G.shown.has(D.targets[e]);
  const edges = [D.inputs[index], D.outputs[index]]
    .flatMap((list) => list.filter(visibleEdge).slice(0, EDGES_A_SIDE))
    .sort((a, b) => Math.abs(D.weights[a]) - Math.abs(D.weights[b]));
  const most = edges.length ? Math.abs(D.weights[edges.at(-1)]) : 1;
  const lines = svg("g", { class: "selected-edges", "clip-path": "url(#inside)", fill: "none" });
  for (const e of [...pathTo(D, index), ...pathFrom(D, index)].filter(visibleEdge)) lines.append(svg("path", { d: pathOf(e, true), class: "way" }));
  for (const e of edges) {
    const share = Math.abs(D.weights[e]) / most;
    lines.append(svg("path", { d: pathOf(e, true), class: D.weights[e] < 0 ? "negative" : "positive",
      "data-edge": e, "stroke-width": (0.8 + 4.2 * share).toFixed(2), opacity: (0.4 + 0.6 * Math.sqrt(share)).toFixed(2) }));
  }
  const dots = svg("g", { class: "neighbours", "clip-path": "url(#inside)" }), near = new Set();
  for (const e of edges) {
    const other = D.sources[e] === index ? D.targets[e] : D.sources[e], node = D.nodes[other];
    dots.append(shapeOf(node, ...project(other), diameter(node) + 1.5, { class: D.weights[e] < 0 ? "negative" : "positive" }));
    near.add(other);
  }
  const node = D.nodes[index];
  dots.append(shapeOf(node, ...project(index), Math.max(diameter(node), 9) + 3, { class: "self" }));
  layers.push(lines, dots);
  near.ranked = edges.reverse().map((e) => (D.sources[e] === index ? D.targets[e] : D.sources[e]));
  return near;
}

function rings() {
  const group = svg("g", { class: "rings", "clip-path": "url(#inside)" });
  const ring = (i, kind) => group.append(svg("circle", { cx: project(i)[0], cy: project(i)[1],
    r: diameter(D.nodes[i]) / 2 + 4, class: kind }));
  if (S.query) for (const i of found().filter((i) => G.shown.has(i)).slice(0, 300)) ring(i, "found");
  const chosen = S.groups.find((group) => group.name === S.card)?.members ?? [];
  for (const i of S.pins) if (G.shown.has(i)) ring(i, chosen.includes(i) ? "pin chosen" : groupOf(i) ? "pin grouped" : "pin");
  return [group];
}

function hoverRing() {
  const i = S.hovered;
  if (i < 0 || !G.shown.has(i) || !inView(i)) return null;
  return svg("circle", { cx: project(i)[0], cy: project(i)[1], r: diameter(D.nodes[i]) / 2 + 4, class: "hover-ring" });
}

// Names of the outputs: slanted, at least 16 px apart, with a fine line to a triangle that had to
// be left behind. They are spread, never dropped, while they fit the width.
function outputNames(near) {
  const group = svg("g", { class: "outputs" }), focus = S.selected >= 0 || S.edge >= 0;
  const seen = D.logits.filter((i) => inView(i, 1)).map((i) => ({ i, at: project(i)[0] })).sort((a, b) => a.at - b.at);
  const most = Math.floor((G.width - 40) / LEAST_OUTPUT_GAP);
  const shown = seen.length <= most ? seen
    : seen.filter(({ i }) => D.logits.indexOf(i) < most);
  spread(shown);
  for (const { i, at, x } of shown) {
    const node = D.nodes[i], y = project(i)[1], size = diameter(node) / 2, foot = y - size - 12;
    const quiet = focus && i !== S.selected && !near.has(i);
    const part = svg("g", { class: quiet ? "output quiet" : "output", "data-node": i });
    part.append(svg("path", { class: "leader", d: `M${at.toFixed(1)} ${(y - size - 2).toFixed(1)}L${x.toFixed(1)} ${foot.toFixed(1)}` }));
    part.append(svg("text", { transform: `translate(${(x + 3).toFixed(1)} ${(foot - 2).toFixed(1)}) rotate(-52)`,
      "data-x": x.toFixed(1) }, outputName(node)));
    group.append(part);
  }
  return group;
}

function spread(list) {
  if (!list.length) return;
  const middle = list.reduce((sum, one) => sum + one.at, 0) / list.length;
  list.forEach((one, k) => {
    one.x = Math.max(one.at, k ? list[k - 1].x + LEAST_OUTPUT_GAP : -Infinity);
  });
  const drift = list.reduce((sum, one) => sum + one.x, 0) / list.length - middle;
  const reach = list.map(({ i }) => textWidth(outputName(D.nodes[i]), 12, 600) * 0.62 + 12);
  const over = Math.max(...list.map((one, k) => one.x - drift + reach[k] - G.width), 0);
  const under = Math.max(...list.map((one) => 24 - (one.x - drift - over)), 0);
  for (const one of list) one.x += under - drift - over;
}

// Names of the most influential features, or of the strongest neighbours of the selection: each
// above its marker, below or beside it, where it covers no other name and no marker.
function names(focus, near) {
  const group = svg("g", { class: "names" }), boxes = [...outputBoxes(), ...layerBoxes()];
  const area = G.frame.w * G.frame.h, zoom = zoomOf();
  const most = focus ? NEIGHBOUR_NAMES : Math.min(Math.round((area / 34000) * Math.min(zoom, 2.5)), 70);
  const selves = S.edge >= 0 ? [...near] : focus ? [S.selected] : [];
  for (const i of selves) if (inView(i)) addName(group, i, boxes, true, true);
  const wanted = focus ? [...new Set(near.ranked)].filter((i) => !selves.includes(i) && D.nodes[i].kind === "feature") : D.features;
  let placed = 0, tried = 0;
  for (const i of wanted) {
    if (placed >= most || tried >= 3 * most) break;
    if (!G.shown.has(i) || !inView(i, -2)) continue;
    tried++;
    if (addName(group, i, boxes, false, focus)) placed++;
  }
  return group;
}

function outputBoxes() {
  return D.logits.filter((i) => inView(i, 1)).map((i) => {
    const [x, y] = project(i);
    return [x - 9, y - 14, x + 9, y + 9];
  });
}

// Where the names of the layers stand.
function layerBoxes() {
  return layerTicks().map((value) => [0, yOf(value) - 7, G.frame.l - 3, yOf(value) + 6]);
}

function zoomOf() {
  const full = fullView();
  return ((full.x[1] - full.x[0]) / (S.view.x[1] - S.view.x[0])) * ((full.y[1] - full.y[0]) / (S.view.y[1] - S.view.y[0]));
}

function addName(group, i, boxes, bold, force) {
  const node = D.nodes[i], text = shortened(titleOf(node), G.width < 560 ? 20 : 26);
  const width = textWidth(text, bold ? 12 : 11, bold ? 650 : 400), [x, y] = project(i);
  const half = width / 2, { l, w } = G.frame, reach = diameter(node) / 2 + (bold ? 3 : 0);
  const inside = (middle) => Math.min(Math.max(middle, l + half - 24), l + w + G.frame.r - half - 2);
  const spots = [[inside(x), y - reach - 4], [inside(x), y + reach + 12],
    ...[1, -1].map((side) => [x + side * (reach + half + 5), y + 4]).filter(([middle]) => middle === inside(middle))];
  const boxOf = ([middle, base]) => [middle - half - 3, base - 11, middle + half + 3, base + 3];
  const free = (spot, others) => !others.some((box) => box[4] !== i && overlaps(box, boxOf(spot)));
  const hidden = (spot) => markerBoxes().reduce((sum, box) => sum + (box[4] !== i && overlaps(box, boxOf(spot))), 0);
  const open = spots.filter((spot) => free(spot, boxes));
  const place = open.find((spot) => free(spot, markerBoxes()))
    ?? (force ? open.sort((a, b) => hidden(a) - hidden(b))[0] : undefined) ?? (bold ? spots[0] : undefined);
  if (!place) return false;
  const [middle, base] = place;
  boxes.push(boxOf(place));
  group.append(svg("text", { x: middle.toFixed(1), y: base.toFixed(1), class: bold ? "name self" : "name" }, text));
  return true;
}

function overlaps(a, b) {
  return a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3];
}

// Boxes of the markers that a name should not cover.
function markerBoxes() {
  if (G.boxesFor !== S.view || G.boxesOf !== G.layout) {
    G.boxesFor = S.view;
    G.boxesOf = G.layout;
    G.boxes = [...G.shown].map((i) => {
      const [x, y] = project(i), r = diameter(D.nodes[i]) / 2 - 1;
      return [x - r, y - r, x + r, y + r, i];
    }).filter((box) => box[2] > 0 && box[0] < G.width && box[3] > 0 && box[1] < G.height);
  }
  return G.boxes;
}
