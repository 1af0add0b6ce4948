// What the reader has chosen, and its only two-way street: location.hash. Everything in S that is
// worth sharing can be written to the hash and read back; what cannot be read is ignored aloud.

let D;  // the drawing
const S = {
  selected: -1, edge: -1, hovered: -1, pins: [], influence: 80, edges: 600, view: null, tab: "node",
  theme: null, query: "", show: "graph", trail: [], at: -1, column: -1, section: null,
  groups: [], moved: new Map(), card: null, ticked: new Set(), opened: new Set(),
};
const SHOWS = ["graph", "table", "subgraph"];
const TABS = ["node", "pinned", "search", "about"];

function hashOf() {
  const parts = [];
  const put = (key, value) => parts.push(`${key}=${encodeURIComponent(value)}`);
  if (S.selected >= 0) put("node", D.nodes[S.selected].id);
  if (S.edge >= 0) parts.push(`edge=${edgeName(S.edge)}`);
  if (S.edge >= 0 && S.head) put("head", S.head);
  const ids = (members) => members.map((i) => encodeURIComponent(D.nodes[i].id)).join(",");
  const loose = S.pins.filter((i) => !groupOf(i));
  if (loose.length) parts.push("pins=" + ids(loose));
  if (S.groups.length) parts.push("groups=" + S.groups.map(({ name, members }) => `${encodeURIComponent(name)}:${ids(members)}`).join(";"));
  if (S.moved.size) parts.push("moved=" + [...S.moved].map(([key, place]) => `${encodeURIComponent(key)}:${place.join(",")}`).join(";"));
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
  if (S.show === "table" && S.sort) put("sort", S.sort);
  if (S.column >= 0) put("column", S.column);
  return parts.join("&");
}

const READERS = {
  node: (text) => nodeNamed(text, (i) => { S.selected = i; }),
  feature: (text) => {
    const [layer, feature] = /^\d{1,4}\.\d{1,9}$/.test(text) ? text.split(".").map(Number) : [-2, -2];
    S.selected = D.features.find((i) => D.nodes[i].layer === layer && D.nodes[i].feature === feature) ?? -1;
    return S.selected >= 0;
  },
  edge: (text) => (S.edge = edgeNamed(text)) >= 0,
  pins: (text) => text.split(",").every((id) => nodeNamed(id, (i) => {
    if (!S.pins.includes(i)) S.pins.push(i);
  })),
  groups: (text) => text.split(";").every(readGroup),
  moved: (text) => text.split(";").every(readMoved),
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
  show: (text) => SHOWS.includes(text) && Boolean(S.show = text),
  sort: (text) => sortNamed(text) && Boolean(S.sort = text),
  column: (text) => whole(text, 0, D.tokens.length - 1, (value) => { S.column = value; }),
  section: (text) => /^[\p{L}\p{N}-]{1,60}$/u.test(decode(text) ?? "") && Boolean(S.section = decode(text)),
};

function nodeNamed(text, use) {
  const index = D.byId.get(decode(text));
  if (index !== undefined) use(index);
  return index !== undefined;
}

// NAME:ID,ID… of a supernode; its members are pinned with it.
function readGroup(part) {
  const cut = part.indexOf(":"), name = decode(part.slice(0, Math.max(cut, 0))), members = [];
  const good = Boolean(name) && part.slice(cut + 1).split(",").every((id) => nodeNamed(id, (i) => {
    if (!groupOf(i) && !members.includes(i)) members.push(i);
  }));
  if (good && members.length) makeGroup(members, name);
  return good && members.length > 0;
}

// KEY:X,Y of a card that was moved, in thousandths of the picture.
function readMoved(part) {
  const cut = part.indexOf(":"), key = decode(part.slice(0, Math.max(cut, 0)));
  const place = /^\d{1,4},\d{1,4}$/.test(part.slice(cut + 1)) ? part.slice(cut + 1).split(",").map(Number) : [];
  const good = Boolean(key) && place.length === 2 && place.every((value) => value <= 1000);
  if (good) S.moved.set(key, place);
  return good;
}

function startEdges() {
  return Math.min(D.start.edges, D.n_edges);
}

function resetState() {
  Object.assign(S, { selected: -1, edge: -1, head: null, pins: [], influence: D.start.influence, edges: startEdges(),
    view: null, tab: "node", theme: null, query: "", show: "graph", sort: null, column: -1, section: null,
    groups: [], moved: new Map(), card: null });
}
