// The page itself: unpacks, wires the controls, and is the only place that changes the selection.

function select(index, { push = true, tip = false, focus = false } = {}) {
  if (index === S.selected && index >= 0 && S.edge < 0) return;
  S.selected = index;
  if (push && index >= 0) remember(index);
  S.edge = -1;
  S.walk = null;
  S.hovered = -1;
  S.tab = "node";
  S.section = null;
  if (S.show === "subgraph" && index >= 0) setShow("graph");
  refreshSelection();
  if (index >= 0) reveal(G.layout.x[index], G.layout.y[index]);
  if (tip && index >= 0) showTip(index);
  else hideTip();
  announce(index);
  if (focus) $("panel").focus({ preventScroll: innerWidth > 860 });
  if (push) writeHash(true);
}

// A selected node below the slider joins the picture; otherwise only the overlay changes.
function refreshSelection() {
  const { shown } = visibleNodes();
  if ([...shown].join() !== G.key) rebuild();
  else drawOverlay();
  drawPanel();
  if (S.show !== "graph") drawTable();
}

function announce(index) {
  if (index < 0) return say("Selection cleared");
  const node = D.nodes[index];
  say(`${titleOf(node)}, ${KIND_NAMES[node.kind]}, ${placeOf(node)}, ${D.inputs[index].length} inputs, ${D.outputs[index].length} outputs`);
}

// The trail of selections, on which Back and Forward walk. The browser's own Back and Forward walk
// through addresses; where they meet the trail, it follows.
function remember(index) {
  const { trail, at } = S;
  if (trail[at] === index) return;
  if (trail[at - 1] === index) S.at--;
  else if (trail[at + 1] === index) S.at++;
  else {
    S.trail = [...trail.slice(0, at + 1), index];
    S.at = S.trail.length - 1;
  }
}

// Where Back (-1) or Forward (1) leads; after Clear, Back leads to what was cleared.
function onTrail(by) {
  const to = by < 0 && S.selected < 0 ? S.at : S.at + by;
  return to >= 0 && to < S.trail.length ? to : -1;
}

function go(by) {
  const to = onTrail(by);
  if (to < 0) return say(by < 0 ? "Nothing before" : "Nothing after");
  S.at = to;
  select(S.trail[to], { push: false, focus: true });
  writeHash(true);
}

function setTab(tab) {
  S.tab = tab;
  S.section = null;
  drawPanel();
  writeHash();
}

function setQuery(text) {
  S.query = text;
  if ($("search").value !== text) $("search").value = text;
  if (text) S.tab = "search";
  drawOverlay();
  drawPanel();
  if (text) say(`${found().length} nodes match`);
  writeHash();
}

function setTheme() {
  applyTheme();
  readColours();
}

// The Edges slider is logarithmic: its first half is where a picture is still readable.
function edgesAt(place) {
  return place <= 0 ? 0 : Math.round(Math.exp((place / 100) * Math.log(D.n_edges + 1)) - 1);
}

function placeOfEdges(count) {
  return D.n_edges ? (100 * Math.log(count + 1)) / Math.log(D.n_edges + 1) : 0;
}

function drawControls() {
  $("influence").value = S.influence;
  $("influence-says").replaceChildren(`${S.influence} %, ${counted(G.shown.size)} of ${counted(D.nodes.length)}`, h("span", { class: "unit" }, " nodes"));
  const slider = $("edges");
  if (document.activeElement !== slider) slider.value = placeOfEdges(S.edges);
  slider.disabled = !D.n_edges;
  $("edges-says").textContent = `${counted(G.edges.length)} of ${counted(G.inside)}`;
  slider.setAttribute("aria-valuetext", `${G.edges.length} edges`);
  drawRail();
  if (S.show !== "graph") drawTable();
}

function drawHead() {
  $("prompt").replaceChildren(...D.tokens.map((token, position) => h("button", {
    type: "button", class: "chip", "aria-pressed": false, title: `Column ${position}`,
    onclick: () => markColumn(position) }, h("bdi", {}, token.startsWith(" ") ? h("i", { "aria-hidden": "true" }, "·") : null, visible(token)))));
  $("facts").replaceChildren(h("span", { dir: "auto" }, D.model), ...(D.transcoders ? [" · ", h("span", { dir: "auto" }, D.transcoders)] : []),
    ` · ${counted(D.nodes.length)} nodes · ${counted(D.n_edges)} edges`,
    ...(D.error_share === null ? [] : [" · ", h("span", { class: "whole" }, `${percent(D.error_share)} of influence`), " through errors"]),
    ...D.links.flatMap(([name, href]) => [" · ", h("a", { class: "page", href }, name)]));
  $("legend").replaceChildren(...legendItems());
  for (const text of D.notices) notice(text);
  const keys = [["click, tap", "select a node or an edge"], ["ctrl-click, long press, P", "pin"], ["drag, shift-wheel", "pan"],
    ["wheel, pinch, + −", "zoom"], ["0", "fit"], ["arrows", "nearest node"], ["[ and ]", "step through inputs, outputs"],
    ["B, F", "back, forward"], ["/", "search"], ["S", "pinned subgraph"], ["T", "table"], ["E", "label a feature"], ["L", "some feature, by luck"], ["Esc", "clear"], ["?", "this help"]];
  $("keys").replaceChildren(h("h2", {}, "Keys and gestures"), h("dl", {}, keys.map(([key, what]) => h("div", {}, h("dt", {}, key), h("dd", {}, what)))),
    h("form", { method: "dialog" }, h("button", {}, "Close")));
}

function markColumn(position) {
  S.column = S.column === position ? -1 : position;
  pressChips();
  if (S.column >= 0) reveal((G.layout.columns[position][0] + G.layout.columns[position][1]) / 2, null);
  drawOverlay();
  writeHash();
}

function pressChips() {
  [...$("prompt").children].forEach((chip, at) => chip.setAttribute("aria-pressed", at === S.column));
}

function wireSliders() {
  let asked = 0;
  const soon = () => {
    cancelAnimationFrame(asked);
    asked = requestAnimationFrame(() => { rebuild(); writeHash(); });
  };
  $("influence").addEventListener("input", (event) => { S.influence = Number(event.target.value); soon(); });
  $("influence").addEventListener("change", drawPanel);
  $("edges").addEventListener("input", (event) => { S.edges = edgesAt(Number(event.target.value)); soon(); });
}

function wireButtons() {
  $("search").addEventListener("keydown", (event) => { if (event.key === "Enter" && found().length) select(found()[0]); });
  $("as-table").addEventListener("click", () => setShow(S.show === "table" ? "graph" : "table"));
  for (const button of document.querySelectorAll("[data-zoom]"))
    button.addEventListener("click", () => KEYS[{ in: "+", out: "-", fit: "0" }[button.dataset.zoom]]());
}

function setShow(show) {
  S.show = show;
  drawTable();
  if (show === "graph") { G.width = 0; resized(); }
  if (S.tab === "pinned") drawPanel();
  writeHash();
}

function applyHash() {
  readHash();
  if (S.selected >= 0) remember(S.selected);
  setTheme();
  pressChips();
  $("search").value = S.query;
  rebuild();
  drawPanel();
  drawTable();
}

// Shows a drawing in place of whatever was shown.
function show(buffer) {
  D = readDrawing(buffer);
  Object.assign(G, { layout: null, key: null, frame: null, boxesOf: null });
  Object.assign(S, { trail: [], at: -1, hovered: -1 });
  found.query = null;
  $("notices").replaceChildren();
  drawHead();
  applyHash();
}

function wire() {
  wireSliders();
  wireButtons();
  wireChrome(() => { setTheme(); rebuild(); });
  listenToPointers();
  listenToKeys();
  addEventListener("hashchange", applyHash);
  addEventListener("beforeprint", resized);
  new ResizeObserver(resized).observe($("stage"));
}

function runScript(buffer) {
  const url = URL.createObjectURL(new Blob([buffer], { type: "text/javascript" }));
  return new Promise((resolve, reject) => {
    const script = h("script", { src: url, onload: resolve, onerror: () => reject(new Error("plotly.js did not load")) });
    document.head.append(script);
  }).finally(() => URL.revokeObjectURL(url));
}

async function start() {
  if (typeof DecompressionStream !== "function")
    return giveUp("This browser cannot unpack the graph; here it is as text. Any browser since 2023 shows the picture.");
  try {
    const [drawing, script] = await Promise.all([unpack("payload"), unpack("plotly")]);
    await runScript(script);
    show(drawing);
    wire();
    $("loading").remove();
    $("plain").remove();
    document.documentElement.dataset.ready = "yes";
  } catch (error) {
    giveUp(`The picture could not be drawn (${error.message}); here is the graph as text.`);
    throw error;
  }
}

// For tests and the console: where things are, and what is chosen.
window.circuit = { state: S, graph: G, drawing: () => D, project, pathOf, svgText, csvText, jsonText, labelsText,
  busy: () => Boolean(writing || settling || frameAsked),
  open: async (packed) => show(await inflate(packed)) };
start();
