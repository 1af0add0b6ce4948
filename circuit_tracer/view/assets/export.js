// Saving: the picture as SVG (edges included) and PNG, the edges as CSV, the graph as the JSON
// that Neuronpedia and the Anthropic front end read.

function fileName(extension) {
  const slug = D.prompt.normalize("NFKC").replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-+|-+$/g, "").slice(0, 48);
  return `${slug || "circuit"}.${extension}`;
}

// The current view as one SVG element, drawn from the same numbers as the screen.
function pictureSvg() {
  const { l, t, w, h: high } = G.frame, c = G.colours;
  const picture = svg("svg", { xmlns: "http://www.w3.org/2000/svg", width: G.width, height: G.height,
    viewBox: `0 0 ${G.width} ${G.height}`, "font-family": FONT });
  const defs = svg("defs"), clip = svg("clipPath", { id: "plot-area" });
  clip.append(svg("rect", { x: l, y: t, width: w, height: high }));
  defs.append(clip);
  picture.append(svg("title", {}, clean(D.prompt)), defs,
    svg("rect", { width: G.width, height: G.height, fill: c.paper }), axesSvg(), edgesSvg(), nodesSvg(), namesSvg());
  return picture;
}

function axesSvg() {
  const { l, t, w, h: high } = G.frame, c = G.colours, group = svg("g", { id: "axes", fill: c.ink, "font-size": 12 });
  G.layout.columns.forEach(([from, to], i) => {
    const left = Math.max(xOf(from), l), right = Math.min(xOf(to), l + w), middle = (xOf(from) + xOf(to)) / 2;
    if (right <= left) return;
    if (i % 2 === 0) group.append(svg("rect", { x: left, y: t, width: right - left, height: high, fill: c.band }));
    if (middle < l || middle > l + w) return;
    const turn = G.angle ? ` rotate(${G.angle})` : "";
    group.append(svg("text", { transform: `translate(${middle} ${t + high + 18})${turn}`, "text-anchor": G.angle ? "end" : "middle" }, clean(G.names[i])));
  });
  for (const value of layerTicks()) {
    const y = yOf(value);
    if (y < t || y > t + high) continue;
    group.append(svg("path", { d: `M${l} ${y}H${l + w}`, stroke: c.rule }),
      svg("text", { x: l - 4, y: y + 4, "text-anchor": "end" }, layerName(value)));
  }
  return group;
}

function edgesSvg() {
  const group = svg("g", { id: "edges", fill: "none", "clip-path": "url(#plot-area)" });
  const drawn = S.selected >= 0 || S.edge >= 0
    ? [...$("overlay").querySelectorAll("[data-edge]")].map((path) => ({ e: Number(path.dataset.edge),
        width: path.getAttribute("stroke-width"), opacity: path.getAttribute("opacity") ?? 1 }))
    : G.edges.map((e, rank) => ({ e, width: BIN_WIDTH[binOf(rank, G.edges.length)], opacity: BIN_OPACITY[binOf(rank, G.edges.length)] })).reverse();
  for (const { e, width, opacity } of drawn) {
    const negative = D.weights[e] < 0;
    group.append(svg("path", { d: pathOf(e), stroke: negative ? G.colours.negative : G.colours.positive,
      "stroke-width": width, "stroke-opacity": opacity, ...(negative ? { "stroke-dasharray": DASH.join(" ") } : {}) }));
  }
  return group;
}

function nodesSvg() {
  const group = svg("g", { id: "nodes", "clip-path": "url(#plot-area)" }), c = G.colours;
  const near = new Set(S.edge >= 0 ? [D.sources[S.edge], D.targets[S.edge]] : S.selected < 0 ? G.shown
    : [S.selected, ...D.inputs[S.selected].map((e) => D.sources[e]), ...D.outputs[S.selected].map((e) => D.targets[e])]);
  for (const i of G.shown) {
    const node = D.nodes[i], colour = colourOf(node.kind), open = node.kind === "error";
    group.append(shapeOf(node, ...project(i), diameter(node), { fill: open ? c.paper : colour,
      stroke: open ? colour : c.paper, "stroke-width": 1, opacity: near.has(i) ? 0.95 : 0.3 }));
  }
  return group;
}

function namesSvg() {
  const group = svg("g", { id: "names", fill: G.colours.ink, "font-size": 11 });
  for (const text of $("overlay").querySelectorAll(".names text, .outputs text")) {
    const copy = svg("text", { "paint-order": "stroke", stroke: G.colours.paper, "stroke-width": 3, "stroke-linejoin": "round" }, clean(text.textContent));
    for (const name of ["x", "y", "transform"]) if (text.hasAttribute(name)) copy.setAttribute(name, text.getAttribute(name));
    if (text.hasAttribute("x")) copy.setAttribute("text-anchor", "middle");
    group.append(copy);
  }
  return group;
}

function svgText() {
  return new XMLSerializer().serializeToString(pictureSvg());
}

function csvText() {
  const lines = [["source", "target", "weight", "source_label", "target_label", "source_layer", "target_layer", "source_position", "target_position"]];
  for (const e of D.order) {
    const from = D.nodes[D.sources[e]], to = D.nodes[D.targets[e]];
    lines.push([from.id, to.id, D.weights[e], titleOf(from), titleOf(to), from.layer, to.layer, from.position, to.position]);
  }
  return lines.map((line) => line.map(cell).join(",")).join("\r\n") + "\r\n";
}

function jsonNode(node, cumulative) {
  const pair = (x, y) => ((x + y) * (x + y + 1)) / 2 + y;
  const type = { feature: "cross layer transcoder", error: "mlp reconstruction error", embedding: "embedding", logit: "logit" }[node.kind];
  return {
    node_id: node.id, feature: node.kind === "feature" ? pair(node.layer, node.feature) : null,
    layer: node.kind === "embedding" ? "E" : String(node.kind === "logit" ? D.n_layers + 1 : node.layer), ctx_idx: node.position,
    feature_type: type, jsNodeId: node.id, influence: cumulative[node.index] ?? null, activation: node.activation,
    token_prob: node.probability ?? 0, is_target_logit: node.kind === "logit",
    clerp: node.kind === "logit" ? `Output "${node.token}" (p=${(node.probability ?? 0).toFixed(3)})`
      : node.kind === "embedding" ? `Emb: "${node.token}"` : node.label,
  };
}

// Their "influence" is the share reached at a node's rank: small means important.
function jsonText() {
  const cumulative = {};
  const ranked = D.nodes.filter((node) => node.kind !== "logit").sort((a, b) => b.influence - a.influence || a.index - b.index);
  const total = ranked.reduce((sum, node) => sum + Math.max(node.influence, 0), 0) || 1;
  ranked.reduce((held, node) => (cumulative[node.index] = held + Math.max(node.influence, 0) / total), 0);
  const links = [...D.order].map((e) => ({ source: D.nodes[D.sources[e]].id, target: D.nodes[D.targets[e]].id, weight: D.weights[e] }));
  return JSON.stringify({
    metadata: { slug: fileName("json").slice(0, -5), scan: D.model, transcoder_list: D.transcoders ? [D.transcoders] : [], prompt_tokens: D.tokens, prompt: D.prompt, schema_version: 1 },
    qParams: { pinnedIds: S.pins.map((i) => D.nodes[i].id), supernodes: S.groups.map(({ name, members }) => [name, ...members.map((i) => D.nodes[i].id)]), linkType: "both", clickedId: S.selected >= 0 ? D.nodes[S.selected].id : "", sg_pos: "" },
    nodes: D.nodes.map((node) => jsonNode(node, cumulative)), links,
  });
}

const SAVERS = {
  svg: () => saveAs(fileName("svg"), [svgText()], "image/svg+xml"),
  png: savePng,
  csv: () => saveAs(fileName("csv"), ["\ufeff", csvText()], "text/csv"),
  json: () => saveAs(fileName("json"), [jsonText()], "application/json"),
};
