// The graphs side by side, each small: columns by token, layers upward, marks in the colours of the
// lanes. The selected feature is ringed in every graph that has it, with its edges there; of a
// supernode, the members that each graph has.

const GRAPH_EDGES = 90, SELECTED_EDGES = 24, MEMBER_EDGES = 6, LEAST_GRAPH = 190, TOKEN_ROOM = 52;

function prepareGraphs() {
  D.linked = D.drawings.map((drawing, place) => {
    const shown = shownOf(drawing), nameOf = (layer, id) => `${layer},${id}`;
    const rowOf = new Map(D.rows.map((row) => [nameOf(row.layer, row.ids[place]), row.index]));
    const nodes = new Map();
    const row = drawing.nodes.map((node) => (node.kind === "feature" ? rowOf.get(nameOf(node.layer, node.feature)) ?? -1 : -1));
    row.forEach((index, node) => index >= 0 && nodes.set(index, [...(nodes.get(index) || []), node]));
    return { drawing, shown, nodes, row };
  });
}

// What is ringed in a graph: nodes of the selected feature, or of the selected supernode.
function ringedIn(place) {
  const { drawing, nodes } = D.linked[place];
  if (S.supernode < 0) return nodes.get(S.selected) || [];
  return D.supernodes[S.supernode].members[place].flatMap(([row, position]) => (nodes.get(row) || []).filter((node) => drawing.nodes[node].position === position));
}

// Nodes that hold the share of influence with which the graph's own page opens.
function shownOf(drawing) {
  const goal = (drawing.start.influence / 100) * drawing.totalInfluence - 1e-9;
  const kept = drawing.ranked.filter((_, at) => drawing.start.influence >= 100 || drawing.heldBefore[at] < goal);
  return new Set([...drawing.nodes.filter((node) => node.kind === "embedding" || node.kind === "logit").map((node) => node.index), ...kept]);
}

function drawGraphs() {
  const holder = $("graphs"), room = holder.clientWidth - 24, size = D.graphs.length;
  if (room <= 0) return;
  const columns = Math.max(1, Math.min(size, Math.floor((room + 10) / (LEAST_GRAPH + 10))));
  const width = Math.floor((room - 10 * (columns - 1)) / columns);
  const lines = Math.ceil(size / columns), high = (holder.clientHeight - 16) / lines - 62;
  const height = Math.min(Math.max(innerWidth > 860 ? high : 270, 210), 420);
  holder.style.setProperty("--columns", columns);
  const scrolled = holder.scrollTop;
  holder.replaceChildren(...D.linked.map((_, place) => graphCard(place, width, height)));
  holder.scrollTop = scrolled;
}

function graphCard(place, width, height) {
  const { drawing } = D.linked[place];
  return h("article", { class: "side-graph", "data-graph": place, "aria-label": `Graph of ${D.names[place]}` },
    h("h2", {}, h("i", { class: `swatch ${laneClass(place)}` }), h("bdi", {}, D.names[place]),
      h("span", { ...textOf(place), class: "prompt", title: drawing.prompt }, drawing.prompt), pageLink(place)),
    h("p", { class: "stand", title: standing(place) }, standing(place)), smallGraph(place, width, height));
}

// To the page of this graph alone, at the selected feature where it has it.
function pageLink(place) {
  const { href } = D.graphs[place], { drawing } = D.linked[place], [node] = ringedIn(place);
  if (!href) return null;
  const at = node === undefined ? "" : `#node=${encodeURIComponent(drawing.nodes[node].id)}`;
  return h("a", { class: "own-page", href: href + at, title: "The page of this graph alone" }, "Open", h("span", { class: "sr" }, ` the page of ${D.names[place]}`));
}

// What can be said of the selected feature in a graph.
function standing(place) {
  const { drawing } = D.linked[place];
  if (S.supernode >= 0) return standingOfSupernode(D.supernodes[S.supernode], place);
  if (S.selected < 0) return `${outputsOf(drawing)}`;
  const row = D.rows[S.selected], ringed = ringedIn(place);
  if (row.ids[place] === null) return "not active here";
  const at = row.positions[place].map((position) => `“\u2068${visible(drawing.tokens[position])}\u2069”`).join(", ");
  const where = at ? ` at ${shortened(at, 48)}` : "";
  const share = `${percent(row.influence[place])} of influence`;
  return ringed.length ? `${share}${where}` : `${share}${where}; pruned from this graph`;
}

function standingOfSupernode({ members, shares }, place) {
  return members[place].length ? `${featureCount(members[place].length)}, ${percent(shares[place])} passes` : "no such supernode here";
}

function outputsOf(drawing) {
  if (!drawing.logits.length) return "no outputs";
  return "→ " + drawing.logits.slice(0, 3).map((i) => {
    const node = drawing.nodes[i];
    return `\u2068${visible(node.token)}\u2069${node.probability === null ? "" : ` ${percent(node.probability)}`}`;
  }).join(", ");
}

function smallGraph(place, width, height) {
  const { drawing, shown: usual, row } = D.linked[place], ringed = ringedIn(place);
  const shown = new Set([...usual, ...ringed]), layout = layoutOf(shown, drawing);
  const frame = { l: 30, t: 16, w: width - 38, h: height - 16 - TOKEN_ROOM };
  const at = (i) => [frame.l + (layout.x[i] / layout.width) * frame.w,
    frame.t + frame.h * (1 - (layout.y[i] + 1.3) / (drawing.n_layers + 1.6))];
  const picture = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, class: ringed.length ? "chart small focus" : "chart small", role: "img",
    "aria-label": `${D.names[place]}: ${shown.size} nodes. ${standing(place)}` });
  picture.append(smallAxes(drawing, layout, frame, place), smallEdges(drawing, shown, at, ringed), smallNodes(drawing, shown, row, at, ringed));
  picture.addEventListener("click", (event) => {
    const node = event.target.closest("[data-row]");
    if (node) select(Number(node.dataset.row));
  });
  return picture;
}

function smallAxes(drawing, layout, frame, place) {
  const group = svg("g", { class: "axes" }), yOf = (layer) => frame.t + frame.h * (1 - (layer + 1.3) / (drawing.n_layers + 1.6));
  const step = [1, 2, 4, 5, 10, 20, 50].find((size) => size * (yOf(0) - yOf(1)) >= 17) ?? 100;
  layout.columns.forEach(([from, to], position) => {
    const x = frame.l + (from / layout.width) * frame.w, wide = ((to - from) / layout.width) * frame.w;
    if (position % 2 === 0) group.append(svg("rect", { class: "band", x, y: frame.t, width: wide, height: frame.h }));
    if (wide < 7 && position % 2) return;
    const name = svg("text", { class: "tick", transform: `translate(${(x + wide / 2 + 3).toFixed(1)} ${frame.t + frame.h + 12}) rotate(-42)`, "text-anchor": "end" },
      shortened(visible(drawing.tokens[position]), 10));
    if (D.graphs[place].lang) name.setAttribute("lang", D.graphs[place].lang);
    group.append(name);
  });
  for (let layer = 0; layer < drawing.n_layers; layer += step)
    group.append(svg("path", { class: "rule", d: `M${frame.l} ${yOf(layer)}h${frame.w}` }),
      svg("text", { class: "tick", x: frame.l - 4, y: yOf(layer) + 4, "text-anchor": "end" }, `L${layer}`));
  return group;
}

function smallEdges(drawing, shown, at, ringed) {
  const group = svg("g", { class: "edges" }), seen = (e) => shown.has(drawing.sources[e]) && shown.has(drawing.targets[e]);
  const each = S.supernode >= 0 ? MEMBER_EDGES : SELECTED_EDGES;
  const chosen = ringed.length ? ringed.flatMap((i) => [drawing.inputs[i], drawing.outputs[i]].flatMap((list) => list.filter(seen).slice(0, each))) : [];
  if (!ringed.length)
    for (const e of drawing.order) if (chosen.length < GRAPH_EDGES && seen(e)) chosen.push(e);
  const most = Math.max(...chosen.map((e) => Math.abs(drawing.weights[e])), 1e-12);
  for (const e of [...new Set(chosen)].reverse()) {
    const [x0, y0] = at(drawing.sources[e]), [x1, y1] = at(drawing.targets[e]), middle = (y0 + y1) / 2, share = Math.abs(drawing.weights[e]) / most;
    group.append(svg("path", { class: drawing.weights[e] < 0 ? "negative" : "positive", "stroke-width": (0.5 + 2.5 * share).toFixed(2),
      "stroke-opacity": ((ringed.length ? 0.35 : 0.14) + 0.5 * share).toFixed(2),
      d: `M${[x0, y0].map((v) => v.toFixed(1)).join(" ")}C${[x0, middle, x1, middle, x1, y1].map((v) => v.toFixed(1)).join(" ")}` }));
  }
  return group;
}

function smallNodes(drawing, shown, row, at, ringed) {
  const group = svg("g", { class: "nodes" }), near = new Set(ringed.flatMap((i) => [...drawing.inputs[i].map((e) => drawing.sources[e]), ...drawing.outputs[i].map((e) => drawing.targets[e])]));
  for (const i of [...shown].sort((a, b) => a - b)) {
    const node = drawing.nodes[i], index = row[i], largest = drawing.largest[node.kind] || 1;
    const lane = index >= 0 ? laneClass(D.rows[index].lane) : node.kind;
    const faded = ringed.length && !near.has(i) && !ringed.includes(i);
    group.append(shapeOf(node, ...at(i), 4 + 5.5 * Math.sqrt(measure(node) / largest),
      { class: `${lane}${faded ? " faded" : ""}`, ...(index >= 0 ? { "data-row": index } : {}) }));
  }
  for (const i of ringed) {
    const [x, y] = at(i);
    group.append(svg("circle", { class: "ring", cx: x.toFixed(1), cy: y.toFixed(1), r: ringed.length > 3 ? 6.5 : 9, "data-ring": drawing.nodes[i].id }));
  }
  return group;
}
