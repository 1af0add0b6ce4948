// One edge: finding it under a pointer, drawing it over the graph, and the panel that says how much
// it carries and which attention heads carry it.

const EDGE_REACH = 5, EDGE_TOUCH = 12, CURVE_STEPS = 24;

function edgeNamed(text) {
  const ends = text.split(",").map((id) => D.byId.get(decode(id)));
  if (ends.length !== 2 || ends.includes(undefined)) return -1;
  return D.inputs[ends[1]].find((e) => D.sources[e] === ends[0]) ?? -1;
}

function edgeName(e) {
  return [D.sources[e], D.targets[e]].map((i) => encodeURIComponent(D.nodes[i].id)).join(",");
}

function selectEdge(e, { focus = false } = {}) {
  if (e === S.edge) return;
  S.edge = e;
  S.head = null;
  S.walk = null;
  S.hovered = -1;
  S.tab = "node";
  hideTip();
  refreshSelection();
  const [source, target] = e >= 0 ? [D.nodes[D.sources[e]], D.nodes[D.targets[e]]] : [];
  say(e >= 0 ? `Edge from ${titleOf(source)} to ${titleOf(target)}, ${signed(D.weights[e])}` : "Edge closed");
  if (focus) $("panel").focus({ preventScroll: innerWidth > 860 });
  writeHash(true);
}

// The drawn edge whose curve passes nearest: of the selected node where there is one, else of all.
function edgeAt([px, py], reach) {
  const marked = [...$("overlay").querySelectorAll("[data-edge]")].map((line) => Number(line.dataset.edge));
  let best = -1, least = reach;
  for (const e of S.selected >= 0 || S.edge >= 0 ? marked : G.edges) {
    const c = curveOf(e);
    if (px < Math.min(c[0], c[2], c[6]) - reach || px > Math.max(c[0], c[2], c[4], c[6]) + reach
      || py < Math.min(c[1], c[7]) - reach || py > Math.max(c[1], c[7]) + reach) continue;
    const distance = distanceTo(c, px, py);
    if (distance < least) [best, least] = [e, distance];
  }
  return best;
}

function distanceTo(c, px, py) {
  let least = Infinity, [x0, y0] = c;
  for (let k = 1; k <= CURVE_STEPS; k++) {
    const x1 = bezier(c[0], c[2], c[4], c[6], k / CURVE_STEPS), y1 = bezier(c[1], c[3], c[5], c[7], k / CURVE_STEPS);
    const dx = x1 - x0, dy = y1 - y0, along = ((px - x0) * dx + (py - y0) * dy) / (dx * dx + dy * dy || 1);
    const t = Math.min(Math.max(along, 0), 1);
    least = Math.min(least, Math.hypot(x0 + t * dx - px, y0 + t * dy - py));
    [x0, y0] = [x1, y1];
  }
  return least;
}

function edgeLayers(layers) {
  const e = S.edge, ends = [D.sources[e], D.targets[e]], negative = D.weights[e] < 0;
  const lines = svg("g", { class: "selected-edges", "clip-path": "url(#inside)", fill: "none" });
  lines.append(svg("path", { d: pathOf(e, true), class: negative ? "negative" : "positive", "data-edge": e, "stroke-width": 4 }));
  const dots = svg("g", { class: "neighbours", "clip-path": "url(#inside)" });
  for (const i of ends)
    dots.append(shapeOf(D.nodes[i], ...project(i), Math.max(diameter(D.nodes[i]), 9) + 3, { class: "self" }));
  layers.push(lines, dots);
  const near = new Set(ends);
  near.ranked = ends;
  return near;
}

function edgePanel(e) {
  const source = D.nodes[D.sources[e]], target = D.nodes[D.targets[e]], weight = D.weights[e];
  const end = (name, node) => h("li", {}, h("small", {}, name), row(node.index, "", 0).firstChild);
  const total = D.total[target.index], facts = [["Weight", signed(weight)]];
  if (total) facts.push(["Share of target", percent(Math.abs(weight) / total)]);
  facts.push(["Positions", source.position === target.position ? `at ${source.position}` : `${source.position} → ${target.position}`]);
  return [
    h("div", { class: "title" }, h("h2", {}, "Edge"),
      h("a", { class: "link", href: `#edge=${edgeName(e)}`, title: "Link to this edge", "aria-label": "Link to this edge" }, "#")),
    h("ol", { class: "rows ends" }, end("from", source), end("to", target)),
    h("dl", { class: "facts" }, facts.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))),
    h("p", { class: "actions" }, h("button", { type: "button", onclick: () => selectEdge(-1, { focus: true }) },
      S.selected >= 0 ? "← Back to the node" : "Close")),
    ...headsOf(e),
  ];
}

function headsOf(e) {
  const found = D.heads.get(e);
  if (!found) return [heading("Attention heads"), uncomputed(e)];
  const carried = found.layers.reduce((sum, part) => sum + part, 0);
  const rest = carried - found.heads.reduce((sum, one) => sum + one.part, 0);
  const most = Math.max(Math.abs(found.residual), Math.abs(rest), ...found.heads.map((one) => Math.abs(one.part))) || 1;
  const part = (name, small, value, key, more) => {
    const what = [h("span", { class: "what" }, h("span", {}, name), small && h("small", {}, small)), signedBar(value, most), h("span", { class: "value" }, value ? signed(value) : "0")];
    return h("li", {}, key === undefined ? [h("div", { class: "part" }, what), h("span", { class: "beside" })]
      : [h("button", { type: "button", class: "part", title: "Mark the column it looks at", onclick: () => markColumn(key) }, what), more]);
  };
  return [
    heading("What carries it"),
    h("ol", { class: "rows parts", "data-side": "heads" },
      part("Residual stream", "no head", found.residual),
      found.heads.map((one) => part(`L${one.layer}·H${one.head}`,
        ["looks at ", h("bdi", {}, `“${visible(D.tokens[one.key])}”`), ` at ${one.key}`], one.part, one.key, lookButton(one))),
      Math.abs(rest) > most * 1e-3 ? part("Other heads", null, rest) : null),
    h("p", { class: "sum" }, h("span", {}, found.residual && carried ? `residual ${signed(found.residual)}, heads ${signed(carried)}` : "together"),
      h("strong", { class: "value" }, signed(found.residual + carried))),
    ...lookOf(e),
    ...layerBars(found.layers),
  ];
}

function uncomputed(e) {
  const [a, b] = [D.sources[e], D.targets[e]].map((i) => D.nodes[i].id);
  return h("div", { class: "empty" },
    D.heads.size
      ? h("p", {}, "This edge is not among those whose heads were worked out for this page. Trace with ", h("code", {}, "--heads all"), ", or ask the saved graph:")
      : h("p", {}, "This page was made without heads. Trace with ", h("code", {}, "--heads all"), ", or ask the saved graph:"),
    h("p", {}, h("code", { class: "command" }, `circuit-tracer query FILE heads ${a} ${b}`)));
}

// What the heads of each layer carry together: up excites, down inhibits.
function layerBars(layers) {
  if (!layers.some(Boolean)) return [];
  const up = Math.max(...layers, 0), down = Math.max(...layers.map((part) => -part), 0), zero = (42 * up) / (up + down) + 1;
  const width = 100 / layers.length, picture = svg("svg", { viewBox: "0 0 100 44", preserveAspectRatio: "none", class: "by-layer", role: "img",
    "aria-label": `Heads by layer: ${layers.map((part, layer) => `layer ${layer} ${signed(part)}`).join(", ")}` });
  layers.forEach((part, layer) => {
    const size = (42 * Math.abs(part)) / (up + down), bar = svg("rect", { x: ((layer + 0.12) * width).toFixed(2), width: (width * 0.76).toFixed(2),
      y: (part < 0 ? zero : zero - size).toFixed(2), height: size.toFixed(2), class: part < 0 ? "negative" : "positive" });
    bar.append(svg("title", {}, `L${layer} ${signed(part)}`));
    picture.append(bar);
  });
  picture.append(svg("path", { d: `M0 ${zero.toFixed(2)}H100`, class: "zero" }));
  const step = Math.ceil(layers.length / 13);
  return [heading("Heads by layer"), picture, h("p", { class: "layer-names", "aria-hidden": "true" },
    layers.map((_, layer) => h("span", {}, layer % step ? "" : String(layer))))];
}
