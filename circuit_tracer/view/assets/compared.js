// The comparison as the page holds it: rows, lanes and words; what the reader has chosen; and how
// both are read and written. view/comparison.py writes what is read here and sorts rows alike.

let D;  // the comparison
const S = { selected: -1, supernode: -1, pair: -1, overlap: "weighted", among: [], tab: "feature", theme: null,
  query: "", show: "charts" };  // supernode: one that graphs share; pair: the overlap shown, of two graphs or more
const TABS = ["feature", "search", "about"];

function readComparison(head, drawings) {
  const names = head.graphs.map((graph) => graph.name);
  const rows = head.key.map((key, index) => {
    const ids = head.ids[index], owners = names.flatMap((_, place) => (ids[place] === null ? [] : [place]));
    return { index, key, layer: head.layer[index], ids, owners, influence: head.influence[index],
      positions: head.positions[index], label: head.label[index] || "", promoted: head.promoted[index] || [],
      suppressed: head.suppressed[index] || [], spread: head.spread[index] || null,
      verdict: head.verdict[index] || "", most: Math.max(...head.influence[index]),
      lane: owners.length === names.length ? "all" : owners.length === 1 ? owners[0] : "some" };
  });
  const ranked = rows.map((row) => row.index).sort((a, b) => rows[b].most - rows[a].most || a - b);
  const lanes = laneOrder(names.length).map((lane) => ({ lane, rows: ranked.filter((i) => rows[i].lane === lane) }));
  const inputs = rows.map(() => []), outputs = rows.map(() => []);
  for (const [source, target, shares] of head.edges) {
    const edge = { source, target, shares, most: Math.max(...shares.map((share) => share ?? 0)) };
    inputs[target].push(edge);
    outputs[source].push(edge);
  }
  for (const list of [...inputs, ...outputs]) list.sort((a, b) => b.most - a.most || a.source - b.source || a.target - b.target);
  const roleOf = new Map();
  for (const role of head.roles) for (const row of role[0]) if (row !== null) roleOf.set(row, role);
  const supernodes = head.supernodes.map((one, index) => ({ ...one, index, rows: new Set([...one.common, ...one.members.flatMap((each) => each.map(([row]) => row))]) }));
  const totals = names.map((_, place) => rows.reduce((sum, row) => sum + row.influence[place], 0));
  return { ...head, names, rows, ranked, lanes, inputs, outputs, roleOf, supernodes, totals, drawings,
    most: Math.max(...rows.map((row) => row.most), 0), byKey: new Map(rows.map((row) => [row.key, row.index])) };
}

// Two graphs: A only, both, B only. More: all, some, and one lane for each.
function laneOrder(count) {
  const alone = Array.from({ length: count }, (_, place) => place);
  return count === 2 ? [0, "all", 1] : ["all", "some", ...alone];
}

function laneName(lane) {
  if (lane === "all") return D.names.length === 2 ? "In both" : `In all ${D.names.length}`;
  return lane === "some" ? "In some" : `${D.names[lane]} only`;
}

// The share of a graph's influence that some rows hold; null where it has none.
function heldBy(rows, place) {
  const part = rows.reduce((sum, index) => sum + D.rows[index].influence[place], 0);
  return D.totals[place] > 0 ? part / D.totals[place] : null;
}

function featureName(row) {
  if (row.label) return row.label;
  if (row.promoted.length)
    return "says " + row.promoted.slice(0, 2).map(([token]) => `“${visible(token)}”`).join(", ");
  return numberOf(row);
}

function numberOf(row) {
  return [...new Set(row.ids.filter((id) => id !== null))].map((id) => `#${id}`).join(" / ");
}

function ownersOf(row) {
  return row.owners.length === D.names.length ? laneName("all").toLowerCase()
    : `in ${row.owners.map((place) => D.names[place]).join(", ")}`;
}

// Attributes of text in the language of a graph: fonts, hyphens and voices depend on them.
function textOf(place) {
  const { lang } = D.graphs[place];
  return lang ? { lang, dir: "auto" } : { dir: "auto" };
}

// Rows that the chosen graphs all have; everything where none is chosen.
function among(row) {
  return S.among.every((place) => row.ids[place] !== null);
}

function setName({ members }) {
  return members.length > 2 && members.length === D.names.length ? `All ${members.length}` : members.map((place) => D.names[place]).join(" – ");
}

// The overlap that a fresh page shows: of as many graphs as there is one for.
function firstOverlap() {
  const sizes = D.overlaps.map(({ members }) => members.length);
  return sizes.indexOf(Math.max(...sizes));
}

// The measure that a fresh page shows: by influence, but where only the plain one has a baseline.
function firstMeasure() {
  const known = (measure) => D.overlaps.some((one) => knows(one, measure, "unrelated"));
  return known("plain") && !known("weighted") ? "plain" : "weighted";
}

// Whether an overlap was measured on texts of a kind too.
function knows(overlap, measure, kind) {
  return overlap[`${measure}_${kind}`].some(Boolean);
}

// What sets the graphs apart besides their prompts: models, transcoders.
function originOf(place) {
  return ["model", "transcoders"].filter((name) => D.drawings.some((one) => one[name] !== D.drawings[0][name]))
    .map((name) => D.drawings[place][name]).join(", ");
}

// Of each path its last two parts, as long as a hub's ids.
function briefly(origin) {
  return origin.split(", ").map((one) => one.split("/").slice(-2).join("/")).join(", ");
}

function hashOf() {
  const parts = [], put = (key, value) => parts.push(`${key}=${encodeURIComponent(value)}`);
  const names = (places) => places.map((place) => encodeURIComponent(D.names[place])).join(",");
  if (S.selected >= 0) put("feature", D.rows[S.selected].key);
  if (S.supernode >= 0) put("supernode", S.supernode + 1);
  if (S.pair !== firstOverlap()) parts.push(`of=${names(D.overlaps[S.pair].members)}`);
  if (S.overlap !== firstMeasure()) put("overlap", S.overlap);
  if (S.among.length) parts.push(`in=${names(S.among)}`);
  if (S.tab !== "feature") put("tab", S.tab);
  if (S.theme) put("theme", S.theme);
  if (S.query) put("q", S.query);
  if (S.show !== "charts") put("show", S.show);
  return parts.join("&");
}

// The graphs that a list names, or null where it names something else.
function placesIn(text) {
  const places = text.split(",").map((name) => D.names.indexOf(decode(name)));
  return places.includes(-1) ? null : [...new Set(places)].sort((a, b) => a - b);
}

const READERS = {
  feature: (text) => {
    const index = D.byKey.get(decode(text));
    if (index !== undefined) S.selected = index;
    return index !== undefined;
  },
  supernode: (text) => {
    const known = /^[1-9][0-9]*$/.test(text) && Number(text) <= D.supernodes.length;
    if (known) S.supernode = Number(text) - 1;
    return known;
  },
  of: (text) => {
    const places = placesIn(text);
    const found = D.overlaps.findIndex(({ members }) => places && members.join() === places.join());
    if (found >= 0) S.pair = found;
    return found >= 0;
  },
  overlap: (text) => ["weighted", "plain"].includes(text) && Boolean(S.overlap = text),
  in: (text) => Boolean(placesIn(text) && (S.among = placesIn(text))),
  tab: (text) => TABS.includes(text) && Boolean(S.tab = text),
  theme: (text) => ["light", "dark"].includes(text) && Boolean(S.theme = text),
  q: (text) => { S.query = decode(text) ?? ""; return decode(text) !== null; },
  show: (text) => ["charts", "table"].includes(text) && Boolean(S.show = text),
};

function resetState() {
  Object.assign(S, { selected: -1, supernode: -1, pair: firstOverlap(), overlap: firstMeasure(), among: [],
    tab: "feature", theme: null, query: "", show: "charts" });
}
