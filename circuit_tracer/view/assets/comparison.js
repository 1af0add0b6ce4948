// The page itself: unpacks, sizes the charts, wires the controls, and is the only place that changes
// the selection.

const MOUSE_REACH = 16, TOUCH_REACH = 26;
let asked = 0;

function select(index, { push = true, focus = false, tip = false } = {}) {
  S.selected = index === S.selected && !focus && !tip ? -1 : index;
  S.supernode = -1;
  selectionChanged({ push, focus, tip });
}

// A supernode, by its place among them.
function selectSupernode(index) {
  S.selected = -1;
  S.supernode = index;
  selectionChanged({ push: true, focus: true });
}

function selectionChanged({ push, focus, tip }) {
  S.tab = "feature";
  refresh();
  announce();
  if (tip) showTip(S.selected);
  else hideTip();
  if (focus) $("panel").focus({ preventScroll: innerWidth > 860 });
  if (push) writeHash(true);
}

// Everything that shows the selection, the search or the chosen graphs.
function refresh() {
  refreshLanes();
  drawChips();
  drawGraphs();
  drawPanel();
  drawTable();
  drawJump();
}

function announce() {
  if (S.supernode >= 0) return say(`Supernode ${supernodeName(D.supernodes[S.supernode])}, ${graphsOf(D.supernodes[S.supernode])}`);
  if (S.selected < 0) return say("Selection cleared");
  const row = D.rows[S.selected], ringed = D.linked.filter(({ nodes }) => nodes.has(S.selected)).length;
  say(`${featureName(row)}, layer ${row.layer}, ${ownersOf(row)}, ringed in ${ringed} of ${D.names.length} graphs`);
}

// Sizes of the three charts: beside each other where there is room, sharing their rows.
function drawCharts() {
  const width = $("figures").clientWidth, pairs = pairsOf(D.overlaps).length;
  if (!width) return;
  const heat = pairs > 1 ? 8 + HEAT_EDGE + pairs * Math.min(26, Math.max(17, 210 / pairs)) : 0;
  L.beside = pairs > 0 && width >= 640;
  L.heatBeside = L.beside && width >= 660 + heat;
  const side = L.heatBeside ? heat : 0, curveWide = L.beside ? Math.min(Math.max((width - side) * 0.32, 240), 380) : width;
  const goal = innerWidth > 860 ? $("charts").clientHeight - $("bar").offsetHeight - 34 : 0;
  drawLanes(Math.floor(L.beside ? width - side - curveWide : width), goal);
  $("overlap").hidden = !pairs;
  const apart = stacked(Array.from({ length: D.n_layers }, () => 22));
  if (pairs) drawOverlap(Math.floor(curveWide), L.beside ? L.rows : apart);
  const heatWide = L.heatBeside ? heat : Math.min(width, L.left + HEAT_EDGE + pairs * 40);
  drawHeat(Math.floor(heatWide), L.heatBeside ? L.rows : moved(apart, heatRoom() - L.top));
}

function moved(rows, by) {
  return rows.map(({ from, to, middle }) => ({ from: from + by, to: to + by, middle: middle + by }));
}

function resized() {
  cancelAnimationFrame(asked);
  asked = requestAnimationFrame(() => {
    asked = 0;
    drawCharts();
    drawGraphs();
  });
}

function drawControls() {
  for (const button of document.querySelectorAll("[data-overlap]")) button.setAttribute("aria-pressed", button.dataset.overlap === S.overlap);
  for (const entry of document.querySelectorAll("#legend [data-kind]")) entry.hidden = !D.overlaps.length || !knows(D.overlaps[S.pair], S.overlap, entry.dataset.kind);
  $("options").hidden = !D.overlaps.length;
  $("pair-label").hidden = D.overlaps.length < 2;
  $("pair").value = S.pair;
}

function drawHead() {
  document.title = `${D.names.join(" · ")} – comparison`;
  $("title").replaceChildren(`${D.names.length} graphs, `, h("span", { id: "facts" }, `${counted(D.rows.length)} features`));
  $("pair").replaceChildren(...D.overlaps.map((one, k) => h("option", { value: k }, setName(one))));
  $("legend").replaceChildren(...D.lanes.filter(({ lane }) => D.names.length === 2 || typeof lane !== "number" || lane === 0)
    .map(({ lane }) => h("span", {}, laneMark(lane), D.names.length === 2 || typeof lane !== "number" ? laneName(lane) : "In one only")),
    ...(D.overlaps.length ? [h("span", {}, swatchLine("curve"), "overlap")] : []),
    h("span", { "data-kind": "unrelated" }, swatchLine("baseline"), "unrelated texts"), h("span", { "data-kind": "parallel" }, swatchLine("parallel"), "parallel texts"));
  for (const words of D.notices) notice(words);
  const keys = [["click, tap", "select: rings it in every graph"], ["arrows", "nearest feature"], ["[ and ]", "previous, next by influence"],
    ["I", "weighted or plain overlap"], ["/", "search"], ["T", "table"], ["Esc", "clear"], ["?", "this help"]];
  $("keys").replaceChildren(h("h2", {}, "Keys and gestures"), h("dl", {}, keys.map(([key, what]) => h("div", {}, h("dt", {}, key), h("dd", {}, what)))),
    h("form", { method: "dialog" }, h("button", {}, "Close")));
}

function swatchLine(name) {
  const picture = svg("svg", { viewBox: "0 0 26 12", class: "sample", "aria-hidden": "true" });
  if (name === "baseline") picture.append(svg("path", { class: "baseline-band", d: "M1 1H25V11H1z" }));
  picture.append(svg("path", { class: name, d: "M1 6H25" }));
  return picture;
}

// One chip a graph, with its prompt: pressed, only features of that graph stay in full colour.
function drawChips() {
  $("names").replaceChildren(...D.names.map((name, place) => h("button", { type: "button", class: "chip", "data-chip": place,
    "aria-pressed": S.among.includes(place), title: `Show features of ${name}`, onclick: () => toggleAmong(place) },
    h("i", { class: `swatch ${laneClass(place)}` }), h("bdi", { class: "name" }, name), h("span", { ...textOf(place), class: "prompt" }, D.drawings[place].prompt),
    originOf(place) ? h("bdi", { class: "origin", title: originOf(place) }, shortened(briefly(originOf(place)), 48)) : null)));
}

function toggleAmong(place) {
  S.among = S.among.includes(place) ? S.among.filter((one) => one !== place) : [...S.among, place].sort((a, b) => a - b);
  refresh();
  $("names").children[place].focus();
  const count = D.rows.filter(among).length;
  say(S.among.length ? `${count} features in ${S.among.map((one) => D.names[one]).join(" and ")}` : "All features");
  writeHash();
}

// On a phone: the way from the selected mark to its details and graphs.
function drawJump() {
  const jump = $("jump"), to = (id) => () => $(id).scrollIntoView({ block: "start" });
  jump.hidden = (S.selected < 0 && S.supernode < 0) || S.show === "table";
  if (jump.hidden) return jump.replaceChildren();
  const row = D.rows[S.supernode >= 0 ? D.supernodes[S.supernode].common[0] : S.selected];
  jump.replaceChildren(S.supernode >= 0 ? supernodeMark() : laneMark(row.lane), h("bdi", {}, featureName(row)), h("button", { type: "button", onclick: to("side") }, "Details"),
    h("button", { type: "button", onclick: to("graphs") }, "Graphs"), h("button", { type: "button", "aria-label": "Clear", onclick: () => select(-1) }, "✕"));
}

function choosePair(pair) {
  S.pair = pair;
  drawControls();
  drawCharts();
  drawTable();
  writeHash();
}

function setOverlap(measure) {
  S.overlap = measure;
  drawControls();
  drawCharts();
  drawTable();
  say(`Overlap: ${measureName()}`);
  writeHash();
}

function setTab(tab) {
  S.tab = tab;
  drawPanel();
  writeHash();
}

function setQuery(text) {
  S.query = text;
  if ($("search").value !== text) $("search").value = text;
  if (text) S.tab = "search";
  refreshLanes();
  drawPanel();
  if (text) say(`${found().length} features match`);
  writeHash();
}

function setShow(show) {
  S.show = show;
  drawTable();
  drawJump();
  if (show === "charts") resized();
  writeHash();
}

function hideTip() {
  $("tip").hidden = true;
}

function tipAt(x, y, children) {
  const tip = $("tip");
  tip.replaceChildren(...children.filter(Boolean));
  tip.hidden = false;
  tip.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${Math.max(4, Math.min(y + 12, innerHeight - tip.offsetHeight - 8))}px`;
}

function showTip(index) {
  if (index < 0) return hideTip();
  const row = D.rows[index], box = $("lanes").firstElementChild.getBoundingClientRect(), [x, y] = L.at.get(index);
  tipAt(box.left + x, box.top + y, [h("strong", { dir: "auto" }, featureName(row)), h("span", {}, `L${row.layer} · ${numberOf(row)} · ${ownersOf(row)}`),
    ...row.owners.map((place) => h("span", {}, h("bdi", {}, D.names[place]), ` ${percent(row.influence[place])}`))]);
}

function listenToLanes() {
  const holder = $("lanes"), at = (event, reach) => {
    const box = holder.firstElementChild.getBoundingClientRect();
    return nearestMark(event.clientX - box.left, event.clientY - box.top, reach);
  };
  holder.addEventListener("click", (event) => {
    const index = at(event, event.pointerType === "touch" ? TOUCH_REACH : MOUSE_REACH);
    if (index >= 0 || S.selected >= 0 || S.supernode >= 0) select(index);
  });
  holder.addEventListener("pointermove", (event) => {
    const index = event.pointerType === "mouse" ? at(event, MOUSE_REACH) : -1;
    holder.classList.toggle("over", index >= 0);
    showTip(index);
  });
  holder.addEventListener("pointerleave", hideTip);
}

// [ and ] step through the features by influence, among those of the chosen graphs.
function step(by) {
  const list = D.ranked.filter((index) => among(D.rows[index]));
  if (!list.length) return;
  const at = list.indexOf(S.selected);
  select(list[at < 0 ? 0 : (at + by + list.length) % list.length], { tip: S.show === "charts" });
}

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const KEYS = {
  "/": () => { $("search").focus(); $("search").select(); },
  "?": () => $("keys").showModal(),
  "[": () => step(-1),
  "]": () => step(1),
  i: () => D.overlaps.length && setOverlap(S.overlap === "weighted" ? "plain" : "weighted"),
  t: () => setShow(S.show === "table" ? "charts" : "table"),
  Escape: () => clear(),
};

function clear() {
  $("save").open = false;
  hideTip();
  if (document.activeElement === $("search")) $("lanes").focus();
  if (S.query) setQuery("");
  else if (S.selected >= 0 || S.supernode >= 0) select(-1);
}

function listenToKeys() {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || $("keys").open) return;
    if (event.target.matches("input[type=search], select") && event.key !== "Escape") return;
    const arrow = ARROWS[event.key];
    if (arrow && event.target !== $("lanes")) return;
    if (arrow) {
      const to = neighbourTo(...arrow);
      if (to >= 0) select(to, { tip: true });
    } else if (Object.hasOwn(KEYS, event.key)) KEYS[event.key]();
    else return;
    event.preventDefault();
  });
}

function wireControls() {
  $("search").addEventListener("keydown", (event) => { if (event.key === "Enter" && found().length) select(found()[0], { focus: true }); });
  $("as-table").addEventListener("click", () => KEYS.t());
  $("pair").addEventListener("change", (event) => choosePair(Number(event.target.value)));
  for (const button of document.querySelectorAll("[data-overlap]")) button.addEventListener("click", () => setOverlap(button.dataset.overlap));
}

function applyHash() {
  readHash();
  if (S.supernode >= 0) S.selected = -1;
  applyTheme();
  hideTip();
  $("search").value = S.query;
  drawControls();
  drawTable();
  drawCharts();
  refresh();
}

async function start() {
  if (typeof DecompressionStream !== "function")
    return giveUp("This browser cannot unpack the comparison; here it is as text. Any browser since 2023 shows the picture.");
  try {
    const head = JSON.parse(new TextDecoder().decode(await unpack("payload")));
    const graphs = await Promise.all(head.graphs.map((_, place) => unpack(`graph-${place}`)));
    D = readComparison(head, graphs.map(readDrawing));
    prepareGraphs();
    drawHead();
    applyHash();
    wireControls();
    wireChrome(applyTheme);
    listenToLanes();
    listenToKeys();
    addEventListener("hashchange", applyHash);
    addEventListener("beforeprint", resized);
    new ResizeObserver(resized).observe($("main"));
    $("plain").remove();
    document.documentElement.dataset.ready = "yes";
  } catch (error) {
    giveUp(`The picture could not be drawn (${error.message}); here is the comparison as text.`);
    throw error;
  }
}

// For tests and the console: what is shown, and what is chosen.
window.circuit = { state: S, comparison: () => D, places: L, svgText, csvText, overlapText, curve, busy: () => Boolean(writing || asked) };
start();
