// What the reader has chosen, and its only two-way street: location.hash. Everything in S that is
// worth sharing can be written to the hash and read back; what cannot be read is ignored aloud.

let D;  // the drawing
const S = {
  selected: -1, hovered: -1, pins: [], influence: 80, edges: 600, view: null, tab: "node",
  theme: null, query: "", show: "graph", trail: [], column: -1,
};
const TABS = ["node", "pinned", "search", "about"];

function $(id) {
  return document.getElementById(id);
}

// An element with attributes and children; strings become text, never markup.
function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return element;
}

function svg(tag, attributes = {}, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

function say(text) {
  $("live").textContent = text;
}

function notice(text) {
  const line = h("p", { class: "notice", role: "note" }, h("span", {}, text),
    h("button", { type: "button", "aria-label": "Dismiss", onclick: () => { line.remove(); resized(); } }, "✕"));
  $("notices").append(line);
}

function hashOf() {
  const parts = [];
  const put = (key, value) => parts.push(`${key}=${encodeURIComponent(value)}`);
  if (S.selected >= 0) put("node", D.nodes[S.selected].id);
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

let writing = 0;
// Writes the state to the address: at once with push (a step that the browser's Back undoes),
// else a little later, so that a slider does not write a hundred times.
function writeHash(push = false) {
  clearTimeout(writing);
  const write = () => {
    writing = 0;
    const wanted = "#" + hashOf();
    if (wanted === (location.hash || "#")) return;
    try {
      history[push ? "pushState" : "replaceState"](null, "", wanted);
    } catch {
      // Some frames may not write their address; the page works without.
    }
  };
  if (push) write();
  else writing = setTimeout(write, 120);
}

const READERS = {
  node: (text) => nodeNamed(text, (i) => { S.selected = i; }),
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

function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return null;
  }
}

function nodeNamed(text, use) {
  const index = D.byId.get(decode(text));
  if (index !== undefined) use(index);
  return index !== undefined;
}

function whole(text, low, high, use) {
  const value = /^\d{1,9}$/.test(text) ? Number(text) : NaN;
  if (value >= low && value <= high) use(value);
  return value >= low && value <= high;
}

function startEdges() {
  return Math.min(D.start.edges, D.n_edges);
}

// Sets S from the address; values that name nothing are ignored, and a notice says which.
function readHash() {
  Object.assign(S, { selected: -1, pins: [], influence: D.start.influence, edges: startEdges(),
    view: null, tab: "node", theme: null, query: "", show: "graph" });
  const ignored = [];
  for (const part of location.hash.replace(/^#/, "").split("&").filter(Boolean)) {
    const cut = part.indexOf("=");
    const key = cut < 0 ? part : part.slice(0, cut), text = cut < 0 ? "" : part.slice(cut + 1);
    const reader = Object.hasOwn(READERS, key) ? READERS[key] : null;
    if (!reader || !reader(text)) ignored.push(shortened(decode(key) ?? key, 24));
  }
  document.querySelectorAll("#notices .from-hash").forEach((line) => line.remove());
  if (!ignored.length) return;
  notice(`The address asks for something this page does not have (${ignored.join(", ")}); it is ignored.`);
  $("notices").lastElementChild.classList.add("from-hash");
}
