// What the reader has chosen, and its only two-way street: location.hash. Everything in S that is
// worth sharing can be written to the hash and read back; what cannot be read is ignored aloud.

let D;  // the drawing
const S = {
  selected: -1, edge: -1, hovered: -1, pins: [], influence: 80, edges: 600, view: null, tab: "node",
  theme: null, query: "", show: "graph", trail: [], column: -1,
};
const TABS = ["node", "pinned", "search", "about"];

function hashOf() {
  const parts = [];
  const put = (key, value) => parts.push(`${key}=${encodeURIComponent(value)}`);
  if (S.selected >= 0) put("node", D.nodes[S.selected].id);
  if (S.edge >= 0) parts.push(`edge=${edgeName(S.edge)}`);
  if (S.pins.length) parts.push("pins=" + S.pins.map((i) => encodeURIComponent(D.nodes[i].id)).join(","));
  if (S.influence !== D.start.influence) put("influence", S.influence);
  if (S.edges !== startEdges()) put("edges", S.edges);
  if (S.view && !atHome()) {
    const box = [...S.view.x, ...S.view.y].map((value) => Number(value.toFixed(3)));
    parts.push("view=" + box.join(","));
  }
  if (S.tab !== "node") put("tab", S.tab);
  if (S.theme) put("theme", S.theme);
  if (S.query) put("q", S.query);
  if (S.show !== "graph") put("show", S.show);
  return parts.join("&");
}

const READERS = {
  node: (text) => nodeNamed(text, (i) => { S.selected = i; }),
  edge: (text) => (S.edge = edgeNamed(text)) >= 0,
  pins: (text) => text.split(",").every((id) => nodeNamed(id, (i) => {
    if (!S.pins.includes(i)) S.pins.push(i);
  })),
  influence: (text) => whole(text, 10, 100, (value) => { S.influence = value; }),
  edges: (text) => whole(text, 0, D.n_edges, (value) => { S.edges = value; }),
  view: (text) => {
    const box = text.split(",").map(Number);
    const good = box.length === 4 && box.every(Number.isFinite) && box[0] < box[1] && box[2] < box[3];
    if (good) S.view = { x: [box[0], box[1]], y: [box[2], box[3]] };
    return good;
  },
  tab: (text) => TABS.includes(text) && Boolean(S.tab = text),
  theme: (text) => ["light", "dark"].includes(text) && Boolean(S.theme = text),
  q: (text) => { S.query = decode(text) ?? ""; return decode(text) !== null; },
  show: (text) => ["graph", "table"].includes(text) && Boolean(S.show = text),
};

function nodeNamed(text, use) {
  const index = D.byId.get(decode(text));
  if (index !== undefined) use(index);
  return index !== undefined;
}

function startEdges() {
  return Math.min(D.start.edges, D.n_edges);
}

function resetState() {
  Object.assign(S, { selected: -1, edge: -1, pins: [], influence: D.start.influence, edges: startEdges(),
    view: null, tab: "node", theme: null, query: "", show: "graph" });
}
