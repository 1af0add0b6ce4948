// The lanes: a row a layer, a lane for each set of graphs, a mark for each feature, most influential
// first. Rows grow with their fullest cell, so that no mark lies on another; the charts beside the
// lanes use the same rows.

const L = { step: 14, left: 38, top: 30, rows: [], lanes: [], at: new Map(), beside: true };
const LEAST_ROW = 19, LANE_GAP = 8, EDGES_DRAWN = 30, FOOT = 8;
const pen = document.createElement("canvas").getContext("2d");

function textWidth(text, font = "600 12px system-ui, sans-serif") {
  pen.font = font;
  return pen.measureText(text).width;
}

// Eight colours go round; names tell graphs apart.
function laneClass(lane) {
  return typeof lane === "number" ? `graph-${lane % 8}` : `lane-${lane}`;
}

// A mark says its lane by shape as well as by colour.
function markPath(lane, x, y, size) {
  const r = size / 2, two = D.names.length === 2;
  if (lane === "all") return `M${x} ${y - r * 1.15}l${r * 1.15} ${r * 1.15}l${-r * 1.15} ${r * 1.15}l${-r * 1.15} ${-r * 1.15}z`;
  if (lane === "some") return `M${x - r * 0.85} ${y - r * 0.85}h${r * 1.7}v${r * 1.7}h${-r * 1.7}z`;
  if (two && lane === 0) return `M${x - r} ${y}l${r * 1.8} ${-r}v${size}z`;
  if (two) return `M${x + r} ${y}l${-r * 1.8} ${-r}v${size}z`;
  return `M${x - r} ${y}a${r} ${r} 0 1 0 ${size} 0a${r} ${r} 0 1 0 ${-size} 0z`;
}

function markSize(row) {
  return 4.5 + (L.step - 3) * Math.sqrt(D.most > 0 ? row.most / D.most : 0);
}

function laneMark(lane, size = 11) {
  const picture = svg("svg", { viewBox: "-8 -8 16 16", class: `mark ${laneClass(lane)}`, "aria-hidden": "true" });
  picture.append(svg("path", { d: markPath(lane, 0, 0, size) }));
  return picture;
}

// Widths of the lanes: a third of the room evenly, the rest by the square root of the fullest cell.
function layLanes(width) {
  const fullest = D.lanes.map(({ rows }) => {
    const cells = new Map();
    for (const index of rows) cells.set(D.rows[index].layer, (cells.get(D.rows[index].layer) || 0) + 1);
    return Math.max(1, ...cells.values());
  });
  const roots = fullest.map(Math.sqrt), sum = roots.reduce((a, b) => a + b, 0);
  const count = D.lanes.length, least = 1.2 * L.step;
  const room = Math.max(width - L.left - 6 - LANE_GAP * count - least * count, 0);
  let x = L.left;
  L.lanes = D.lanes.map(({ lane, rows }, k) => {
    const wide = least + room * (0.35 / count + 0.65 * (roots[k] / sum));
    const placed = { lane, rows, from: x, to: x + wide + LANE_GAP, slots: Math.max(1, Math.floor(wide / L.step)) };
    x = placed.to;
    return placed;
  });
}

// Rows of the layers, 0 at the bottom: as high as their fullest cell, stretched to fill `goal`.
function layRows(goal) {
  const heights = Array.from({ length: D.n_layers }, () => LEAST_ROW);
  for (const { rows, slots } of L.lanes) {
    const cells = new Map();
    for (const index of rows) cells.set(D.rows[index].layer, (cells.get(D.rows[index].layer) || 0) + 1);
    for (const [layer, count] of cells) heights[layer] = Math.max(heights[layer], Math.ceil(count / slots) * L.step + 6);
  }
  const total = heights.reduce((a, b) => a + b, 0), extra = Math.min(Math.max(goal - total, 0) / D.n_layers, 60);
  return stacked(heights.map((height) => height + extra));
}

function stacked(heights) {
  let y = L.top;
  const rows = [];
  for (let layer = heights.length - 1; layer >= 0; layer--) {
    rows[layer] = { from: y, to: y + heights[layer], middle: y + heights[layer] / 2 };
    y += heights[layer];
  }
  return rows;
}

function heightOf(rows) {
  return rows.length ? Math.max(...rows.map((row) => row.to)) + FOOT : L.top + FOOT;
}

function placeMarks() {
  L.at = new Map();
  for (const { rows, from, to, slots } of L.lanes) {
    const cells = new Map();
    for (const index of rows) {
      const { layer } = D.rows[index];
      if (!cells.has(layer)) cells.set(layer, []);
      cells.get(layer).push(index);
    }
    for (const [layer, members] of cells) {
      const lines = Math.ceil(members.length / slots), across = Math.ceil(members.length / lines);
      members.forEach((index, place) => {
        const line = Math.floor(place / across), here = Math.min(across, members.length - line * across);
        const x = (from + to) / 2 + (place % across - (here - 1) / 2) * L.step;
        L.at.set(index, [x, L.rows[layer].middle + (line - (lines - 1) / 2) * L.step]);
      });
    }
  }
}

function drawLanes(room, goal) {
  L.step = room < 480 ? 12 : 15;
  const width = Math.max(room, L.left + 6 + D.lanes.length * (1.2 * L.step + LANE_GAP));
  layLanes(width);
  const slant = L.lanes.some(({ lane, from, to }) => textWidth(laneName(lane)) > to - from - 6);
  const longest = Math.max(...L.lanes.map(({ lane }) => textWidth(laneName(lane))));
  L.top = Math.max(slant ? Math.min(longest * 0.77, 110) + 34 : 44, L.heatBeside ? heatRoom() : 0);
  L.rows = layRows(goal - L.top - FOOT);
  placeMarks();
  const height = heightOf(L.rows);
  const picture = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, class: "chart", "aria-hidden": "true" });
  picture.append(layerLines(L.rows, L.left, width), laneHeads(slant, height), svg("g", { class: "links" }), marks(), svg("g", { class: "rings" }));
  $("lanes").replaceChildren(picture);
  refreshLanes();
}

// Layer names where there is room for them, and a line under each row.
function layerLines(rows, left, right) {
  const group = svg("g", { class: "layers" });
  let last = Infinity;
  rows.forEach((row, layer) => {
    group.append(svg("path", { class: "rule", d: `M${left} ${row.middle}H${right}` }));
    if (last - row.middle < 15) return;
    last = row.middle;
    group.append(svg("text", { class: "tick", x: left - 6, y: row.middle + 4, "text-anchor": "end" }, `L${layer}`));
  });
  return group;
}

function laneHeads(slant, height) {
  const group = svg("g", { class: "heads" });
  L.lanes.forEach(({ lane, rows, from, to }, k) => {
    if (k % 2 === 0) group.append(svg("rect", { class: "band", x: from, y: L.top - 4, width: to - from, height: height - L.top - FOOT + 8 }));
    const middle = (from + to) / 2, at = slant ? `translate(${from + 8} ${L.top - 24}) rotate(-50)` : `translate(${middle} ${L.top - 26})`;
    group.append(svg("text", { class: `head ${laneClass(lane)}`, transform: at, "text-anchor": slant ? "start" : "middle",
      "data-lane": lane }, shortened(laneName(lane), 22)));
    group.append(svg("text", { class: "count", x: middle, y: L.top - 10, "text-anchor": "middle", "data-count": lane }, counted(rows.length)));
  });
  return group;
}

function marks() {
  const group = svg("g", { class: "marks" });
  for (const { lane, rows } of L.lanes)
    for (const index of rows) {
      const [x, y] = L.at.get(index);
      group.append(svg("path", { class: laneClass(lane), "data-row": index, d: markPath(lane, x, y, markSize(D.rows[index])) }));
    }
  return group;
}

// What changes with the selection, the search and the chosen graphs.
function refreshLanes() {
  const picture = $("lanes").firstElementChild;
  if (!picture) return;
  const hits = S.query.trim() ? new Set(found()) : null, kin = kinOf(S.selected), inside = S.supernode >= 0 ? D.supernodes[S.supernode].rows : null;
  for (const mark of picture.querySelectorAll("[data-row]")) {
    const index = Number(mark.dataset.row);
    const faded = !among(D.rows[index]) || (hits && !hits.has(index)) || (S.selected >= 0 && index !== S.selected && !kin.has(index)) || (inside && !inside.has(index));
    mark.classList.toggle("faded", faded);
  }
  picture.querySelector(".links").replaceChildren(...links());
  const ring = (index, name) => {
    const [x, y] = L.at.get(index);
    return svg("circle", { cx: x, cy: y, r: markSize(D.rows[index]) / 2 + 4, class: name });
  };
  picture.querySelector(".rings").replaceChildren(...(hits ? [...hits].slice(0, 300).map((index) => ring(index, "found")) : []),
    ...[...(inside || []), ...(S.selected >= 0 ? [S.selected] : [])].map((index) => ring(index, "self")));
}

function kinOf(index) {
  if (index < 0) return new Set();
  return new Set([...D.inputs[index].map(({ source }) => source), ...D.outputs[index].map(({ target }) => target)]);
}

// The edges of the selected feature to other rows.
function links() {
  if (S.selected < 0) return [];
  const edges = [...D.inputs[S.selected].slice(0, EDGES_DRAWN), ...D.outputs[S.selected].slice(0, EDGES_DRAWN)];
  const most = Math.max(...edges.map(({ most: weight }) => weight), 1e-12);
  return edges.map(({ source, target, most: weight }) => {
    const [x0, y0] = L.at.get(source), [x1, y1] = L.at.get(target), middle = (y0 + y1) / 2;
    return svg("path", { d: `M${x0} ${y0}C${x0} ${middle} ${x1} ${middle} ${x1} ${y1}`, "stroke-width": (0.6 + 2.8 * weight / most).toFixed(2) });
  });
}

// The nearest mark to a place in the picture, within reach.
function nearestMark(x, y, reach) {
  let best = -1, least = reach;
  for (const [index, [mx, my]] of L.at) {
    const distance = Math.hypot(mx - x, my - y);
    if (distance < least) [best, least] = [index, distance];
  }
  return best;
}

// The nearest feature in a direction; along it counts once, across it twice and a half.
function neighbourTo(dx, dy) {
  if (S.selected < 0) return D.ranked[0] ?? -1;
  const [x, y] = L.at.get(S.selected);
  let best = -1, least = Infinity;
  for (const [index, [mx, my]] of L.at) {
    const along = (mx - x) * dx + (my - y) * dy, across = Math.abs((mx - x) * dy) + Math.abs((my - y) * dx);
    if (index === S.selected || along < 0.5 || !among(D.rows[index])) continue;
    if (along + 2.5 * across < least) [best, least] = [index, along + 2.5 * across];
  }
  return best;
}
