// The main graph: plotly draws the markers; this file decides what it is given, keeps the view
// inside the data, and tells every other file where a node stands in pixels. Bands and lines are
// in an SVG below, names of tokens and layers in the overlay: plotly measures each of its own on
// every frame and reads markup in them. While the picture moves, its markers are moved here, and
// plotly hears of it when it rests: restyling every marker took half the time of a pan.

const G = { layout: null, shown: null, held: 0, edges: [], inside: 0, frame: null, width: 0,
  height: 0, colours: {}, angle: 0, scale: 1 };
const LEAST_COLUMN = 28;  // pixels a column, on average, before a long prompt pans instead
const LEAST_SLOT = 9;  // pixels from marker to marker, once it pans
const DEEPEST_ZOOM = 40;
const FONT = "system-ui, -apple-system, 'Segoe UI', 'Noto Sans', 'Noto Sans CJK SC', sans-serif";
const SIZE = { feature: [6, 14], error: [6, 11], embedding: [6, 12], logit: [8, 15] };
const SYMBOL = { feature: "circle", error: "diamond-open", embedding: "square", logit: "triangle-up" };

function readColours() {
  const style = getComputedStyle(document.documentElement);
  for (const name of ["paper", "ink", "quiet", "band", "rule", "positive", "negative", "feature",
    "token", "output"]) G.colours[name] = style.getPropertyValue(`--${name}`).trim();
}

function colourOf(kind) {
  const { feature, quiet, token, output } = G.colours;
  return { feature, error: quiet, embedding: token, logit: output }[kind];
}

function diameter(node) {
  const [low, high] = SIZE[node.kind], largest = D.largest[node.kind];
  return G.scale * (low + (high - low) * Math.sqrt(largest > 0 ? measure(node) / largest : 0));
}

function fullView() {
  const pad = Math.min(Math.max(D.n_layers * 0.03, 0.3), 0.6);
  return { x: [0, G.layout.width], y: [-1 - pad, D.n_layers + pad] };
}

// What a fresh page and the key 0 show: everything, or, of a prompt too long for the screen, its
// end, where the outputs are; they stand in the middle of a last column wider than the screen.
function homeView() {
  const full = fullView(), needed = LEAST_COLUMN * D.tokens.length;
  if (needed <= G.frame.w * 1.15) return full;
  const span = Math.min(G.layout.width * (G.frame.w / needed), G.frame.w / LEAST_SLOT);
  const [from, to] = G.layout.columns.at(-1), end = to - from > span ? (from + to + span) / 2 : full.x[1];
  return { x: [end - span, end], y: full.y };
}

function atHome() {
  const home = homeView();
  return ["x", "y"].every((axis) => [0, 1].every((end) => Math.abs(S.view[axis][end] - home[axis][end]) < 1e-3));
}

// The nearest view that neither leaves the data nor zooms beyond reason.
function clamped(view) {
  const full = fullView(), kept = {};
  for (const axis of ["x", "y"]) {
    const [low, high] = full[axis], whole = high - low;
    const span = Math.min(Math.max(view[axis][1] - view[axis][0], whole / DEEPEST_ZOOM), whole);
    const middle = (view[axis][0] + view[axis][1]) / 2;
    const from = Math.min(Math.max(middle - span / 2, low), high - span);
    kept[axis] = [from, from + span];
  }
  return kept;
}

function project(index) {
  return [xOf(G.layout.x[index]), yOf(G.layout.y[index])];
}

function xOf(value) {
  return G.frame.l + ((value - S.view.x[0]) / (S.view.x[1] - S.view.x[0])) * G.frame.w;
}

function yOf(value) {
  return G.frame.t + G.frame.h - ((value - S.view.y[0]) / (S.view.y[1] - S.view.y[0])) * G.frame.h;
}

// Sizes the picture by the stage's layout box: never by getBoundingClientRect, which a CSS
// transform on any parent would change.
function measureStage() {
  const stage = $("stage");
  G.width = Math.max(stage.clientWidth, 120);
  G.height = Math.max(stage.clientHeight, 160);
  const narrow = G.width < 560, left = narrow ? 34 : 46, right = narrow ? 14 : 46;
  const names = D.tokens.map((token) => shortened(visible(token)));
  const column = (G.width - left - right) / Math.min(D.tokens.length, (G.width - left - right) / LEAST_COLUMN);
  const widths = names.map((name) => textWidth(name, 12.5));
  const spans = G.layout.columns.map(([from, to]) => ((to - from) / G.layout.width) * D.tokens.length * column);
  G.names = names;
  $("prompt").classList.toggle("wide", $("prompt").scrollWidth > $("prompt").clientWidth + 1);
  G.angle = widths.some((width, i) => width > spans[i] - 4) ? -50 : 0;
  const longest = Math.max(...widths, 0);
  const bottom = G.angle ? Math.min(longest, 100) * 0.78 + 26 : 34;
  const top = topMargin();
  G.frame = { l: left, t: top, w: G.width - left - right, h: Math.max(G.height - top - bottom, 60), r: right, b: bottom };
  G.scale = Math.min(Math.max(Math.sqrt((G.frame.w * G.frame.h) / (3000 * (G.shown.size + 1))), 1), 1.35);
}

const textPen = document.createElement("canvas").getContext("2d");
const widthsSeen = new Map();
function textWidth(text, size = 11, weight = 400) {
  const key = `${weight} ${size}px ${text}`;
  if (!widthsSeen.has(key)) {
    textPen.font = `${weight} ${size}px ${FONT}`;
    widthsSeen.set(key, textPen.measureText(text).width);
  }
  return widthsSeen.get(key);
}

// Everything again: after the sliders, a new size, a new theme.
function rebuild() {
  const { shown, held } = visibleNodes();
  const key = [...shown].join(), atRest = G.layout && S.view && atHome();
  if (key !== G.key) {
    G.layout = layoutOf(shown);
    G.key = key;
    if (atRest) S.view = null;
  }
  Object.assign(G, { shown, held });
  measureStage();
  S.view = S.view ? clamped(S.view) : homeView();
  G.edges = chooseEdges(shown);
  G.inside = countEdges(shown);
  Plotly.react($("plot"), traces(), plotLayout(), { staticPlot: true, displayModeBar: false });
  settleMarkers();
  drawGround();
  drawEdges();
  drawOverlay();
  drawControls();
  scrollChips();
}

function traces() {
  G.members = KINDS.map((kind) => [...G.shown].filter((i) => D.nodes[i].kind === kind));
  return KINDS.map((kind, k) => {
    const members = G.members[k];
    const open = kind === "error";
    return {
      type: "scatter", mode: "markers", name: kind, hoverinfo: "skip",
      x: members.map((i) => G.layout.x[i]), y: members.map((i) => G.layout.y[i]),
      marker: {
        symbol: SYMBOL[kind], color: colourOf(kind), opacity: open ? 0.85 : 0.92,
        size: members.map((i) => diameter(D.nodes[i])),
        line: { width: open ? 1.2 : 1, color: open ? G.colours.quiet : G.colours.paper },
      },
    };
  });
}

function plotLayout() {
  const { l, t, r, b } = G.frame;
  const axis = { showgrid: false, zeroline: false, showline: false, ticks: "", fixedrange: true,
    automargin: false, autorange: false, showticklabels: false };
  return {
    width: G.width, height: G.height, autosize: false, showlegend: false, hovermode: false,
    margin: { l, t, r, b, pad: 0 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    xaxis: { ...axis, range: S.view.x.slice() }, yaxis: { ...axis, range: S.view.y.slice() },
  };
}

// Bands of the tokens and lines of the layers, as far as they are in view.
function drawGround() {
  const { l, t, w, h } = G.frame, bands = [], lines = [];
  G.layout.columns.forEach(([from, to], i) => {
    const left = Math.max(xOf(from), l), right = Math.min(xOf(to), l + w);
    if (i % 2 === 0 && right > left) bands.push(`M${left.toFixed(1)} ${t}H${right.toFixed(1)}V${t + h}H${left.toFixed(1)}z`);
  });
  for (const value of layerTicks()) {
    const y = Math.round(yOf(value)) + 0.5;
    if (y >= t && y <= t + h) lines.push(`M${l} ${y}H${l + w}`);
  }
  $("ground").setAttribute("viewBox", `0 0 ${G.width} ${G.height}`);
  $("ground").replaceChildren(svg("path", { class: "bands", d: bands.join("") }), svg("path", { class: "lines", d: lines.join("") }));
}

// Markers where the view has them, without plotly: all of them shifted as one where it only
// panned since they were last placed, else each by itself.
function moveMarkers() {
  const layer = $("plot").querySelector(".scatterlayer"), { x, y } = G.placed, { l, t } = G.frame;
  if (!layer) return;  // a graph without nodes
  const span = (axis, view) => view[axis][1] - view[axis][0];
  const panned = ["x", "y"].every((axis) => Math.abs(span(axis, S.view) / span(axis, G.placed) - 1) < 1e-9);
  if (panned) {
    const dx = ((x[0] - S.view.x[0]) / span("x", S.view)) * G.frame.w, dy = ((S.view.y[0] - y[0]) / span("y", S.view)) * G.frame.h;
    layer.setAttribute("transform", `translate(${dx} ${dy})`);
    return;
  }
  layer.removeAttribute("transform");
  const drawn = G.members.flat();  // kind by kind, as plotly was given them
  layer.querySelectorAll("path.point").forEach((point, k) => {
    const [px, py] = project(drawn[k]);
    point.setAttribute("transform", `translate(${px - l},${py - t})`);
  });
  G.placed = { x: S.view.x.slice(), y: S.view.y.slice() };
}

// Layers that get a line and a name at this zoom.
function layerTicks() {
  const pixels = G.frame.h / (S.view.y[1] - S.view.y[0]);
  const step = [1, 2, 4, 5, 10, 20, 50, 100].find((size) => size * pixels >= 26) ?? 100;
  const values = [];
  for (let layer = 0; layer < D.n_layers; layer += step) values.push(layer);
  if (values.length > 1 && (D.n_layers - values.at(-1)) * pixels < 14) values.pop();
  return [-1, ...values, D.n_layers];
}

let frameAsked = 0, settling = 0;
// Shows another part: ground, markers, edges and overlay in the same frame.
function look(view) {
  S.view = clamped(view);
  if (!frameAsked) frameAsked = requestAnimationFrame(() => {
    frameAsked = 0;
    applyView(true);
  });
  clearTimeout(settling);
  settling = setTimeout(() => { settling = 0; applyView(false); writeHash(); }, 140);
}

function applyView(moving) {
  if (moving) moveMarkers();
  else if (G.moved) {
    Plotly.relayout($("plot"), { "xaxis.range": S.view.x.slice(), "yaxis.range": S.view.y.slice() });
    settleMarkers();
  }
  G.moved = moving;
  drawGround();
  drawEdges(moving);
  drawOverlay();
  drawRail();
  if (!moving) scrollChips();
}

// Plotly has placed every marker by itself.
function settleMarkers() {
  $("plot").querySelector(".scatterlayer")?.removeAttribute("transform");
  G.placed = { x: S.view.x.slice(), y: S.view.y.slice() };
}

function zoomAbout(px, py, factor) {
  const fx = (px - G.frame.l) / G.frame.w, fy = 1 - (py - G.frame.t) / G.frame.h;
  const view = {};
  for (const [axis, part] of [["x", fx], ["y", fy]]) {
    const [low, high] = S.view[axis], at = low + Math.min(Math.max(part, 0), 1) * (high - low);
    view[axis] = [at - (at - low) / factor, at + (high - at) / factor];
  }
  look(view);
}

function panBy(dx, dy) {
  const across = (S.view.x[1] - S.view.x[0]) / G.frame.w, up = (S.view.y[1] - S.view.y[0]) / G.frame.h;
  look({ x: S.view.x.map((value) => value - dx * across), y: S.view.y.map((value) => value + dy * up) });
}

// Brings a node, or a column, into view without changing the zoom.
function reveal(x, y) {
  const view = { x: S.view.x.slice(), y: S.view.y.slice() };
  for (const [axis, value] of [["x", x], ["y", y]]) {
    if (value === null) continue;
    const [low, high] = view[axis], span = high - low, margin = span * 0.04;
    if (value < low + margin / 4 || value > high - margin / 4) view[axis] = [value - span / 2, value + span / 2];
  }
  if (view.x[0] !== S.view.x[0] || view.y[0] !== S.view.y[0]) look(view);
}

function fit() {
  look(homeView());
  say("Fitted");
}

// The strip that says which part of a long prompt is on screen.
function drawRail() {
  const full = fullView(), rail = $("rail"), bar = rail.firstElementChild;
  const span = (S.view.x[1] - S.view.x[0]) / full.x[1];
  rail.hidden = span > 0.995;
  rail.style.left = `${G.frame.l}px`;
  rail.style.width = `${G.frame.w}px`;
  bar.style.left = `${(100 * S.view.x[0]) / full.x[1]}%`;
  bar.style.width = `${100 * span}%`;
  $("stage").style.touchAction = S.view.y[1] - S.view.y[0] > (full.y[1] - full.y[0]) * 0.995 ? "pan-y" : "none";
}

// Keeps the chips of the tokens on screen in sight.
function scrollChips() {
  if ($("rail").hidden) return;
  const chips = $("prompt"), share = (S.view.x[0] + S.view.x[1]) / 2 / fullView().x[1];
  chips.scrollLeft = share * chips.scrollWidth - chips.clientWidth / 2;
}

let sizing = 0;
function resized() {
  cancelAnimationFrame(sizing);
  sizing = requestAnimationFrame(() => {
    if (!G.frame) return;
    const home = atHome(), stage = $("stage");
    if (stage.clientWidth < 1 || (stage.clientWidth === G.width && stage.clientHeight === G.height)) return;
    if (home) S.view = null;
    rebuild();
  });
}
