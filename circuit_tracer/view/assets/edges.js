// Edges on a canvas under plotly's markers: of those between visible nodes the K that carry most
// influence, five bins of rank, positive solid and negative dashed. One path a bin and sign, so that 600 edges are ten
// strokes, and opacity does not add up inside a bin.

const BIN_ENDS = [0.015, 0.06, 0.18, 0.45, 1];
const BIN_WIDTH = [2.8, 1.7, 1.2, 0.9, 0.7];
const BIN_OPACITY = [0.85, 0.55, 0.34, 0.2, 0.11];
const IN_MOTION = 600;  // edges drawn while the picture moves
const DASH = [5, 3];

// The edges to draw, those that carry most first; what lies beyond the K first is never touched.
function chooseEdges(shown) {
  const chosen = [];
  for (const e of D.leading) {
    if (chosen.length >= S.edges) break;
    if (shown.has(D.sources[e]) && shown.has(D.targets[e])) chosen.push(e);
  }
  return chosen;
}

function countEdges(shown) {
  let count = 0;
  for (let e = 0; e < D.n_edges; e++)
    if (shown.has(D.sources[e]) && shown.has(D.targets[e])) count++;
  return count;
}

function binOf(rank, count) {
  const share = (rank + 1) / count;
  return BIN_ENDS.findIndex((end) => share <= end + 1e-12);
}

// The four points of an edge in pixels. It leaves and arrives upright; within one column it bows
// aside, the more layers it spans the further, so that it does not hide behind what lies between.
function curveOf(e) {
  const [x0, y0] = project(D.sources[e]), [x1, y1] = project(D.targets[e]);
  const gap = D.nodes[D.targets[e]].layer - D.nodes[D.sources[e]].layer;
  const near = Math.abs(x1 - x0) < 6 && gap > 1;
  const bow = near ? Math.min(5 + 2.2 * gap, 34) * 1.3 : 0;
  const middle = (y0 + y1) / 2;
  return near
    ? [x0, y0, x0 + bow, y0 + (y1 - y0) * 0.3, x1 + bow, y0 + (y1 - y0) * 0.7, x1, y1]
    : [x0, y0, x0, middle, x1, middle, x1, y1];
}

const CLIP_SLACK = 12;
const bezier = (a, b, c, d, t) => ((a * (1 - t) + 3 * b * t) * (1 - t) + 3 * c * t * t) * (1 - t) + d * t * t * t;

// The part of t in which a curve, monotone along this axis, lies between low and high.
function within(c, axis, low, high) {
  const at = (t) => bezier(c[axis], c[axis + 2], c[axis + 4], c[axis + 6], t);
  const rising = at(1) >= at(0), first = rising ? low : high, last = rising ? high : low;
  const reach = (goal, none, all) => {
    if (rising ? at(0) >= goal : at(0) <= goal) return none;
    if (rising ? at(1) < goal : at(1) > goal) return all;
    let a = 0, b = 1;
    for (let k = 0; k < 22; k++) {
      const t = (a + b) / 2;
      if (rising ? at(t) < goal : at(t) > goal) a = t;
      else b = t;
    }
    return b;
  };
  return [reach(first, 0, 2), reach(last, -1, 1)];
}

// The part of a curve that can be seen, or null. Deep in a zoom an edge is many screens long, and
// a dashed line costs by its length, seen or not.
function seenPart(c) {
  const { l, t, w, h } = G.frame;
  if (Math.abs(c[7] - c[1]) < 2 * h && Math.abs(c[6] - c[0]) < 2 * w) {
    const out = Math.max(c[0], c[2], c[6]) < l || Math.min(c[0], c[6]) > l + w
      || Math.max(c[1], c[7]) < t || Math.min(c[1], c[7]) > t + h;
    return out ? null : c;
  }
  let [from, to] = within(c, 1, t - CLIP_SLACK, t + h + CLIP_SLACK);
  if (c[2] === c[0]) {
    const [left, right] = within(c, 0, l - CLIP_SLACK, l + w + CLIP_SLACK);
    [from, to] = [Math.max(from, left), Math.min(to, right)];
  }
  return from < to ? split(c, from, to) : null;
}

// The piece of a cubic between two parameters, by blossoming.
function split(c, s, t) {
  const mix = (a, b, k) => a + (b - a) * k;
  const blossom = (axis, u, v, w) => {
    const [p, q, r, o] = [c[axis], c[axis + 2], c[axis + 4], c[axis + 6]];
    const a = mix(p, q, u), b = mix(q, r, u), d = mix(r, o, u);
    return mix(mix(a, b, v), mix(b, d, v), w);
  };
  return [[s, s, s], [s, s, t], [s, t, t], [t, t, t]].flatMap((k) => [blossom(0, ...k), blossom(1, ...k)]);
}

function pathOf(e, seenOnly = false) {
  const whole = curveOf(e), part = seenOnly ? seenPart(whole) : whole;
  if (!part) return "";
  const c = part.map((value) => Number(value.toFixed(1)));
  return `M${c[0]} ${c[1]}C${c[2]} ${c[3]} ${c[4]} ${c[5]} ${c[6]} ${c[7]}`;
}

// Sizes the canvas by its own layout box, which a parent's CSS transform does not change.
function sizeCanvas() {
  const canvas = $("canvas"), ratio = window.devicePixelRatio || 1;
  const width = Math.round(G.width * ratio), height = Math.round(G.height * ratio);
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
}

function drawEdges(moving = false) {
  sizeCanvas();
  const canvas = $("canvas"), ratio = canvas.width / G.width, pen = canvas.getContext("2d");
  pen.setTransform(1, 0, 0, 1, 0, 0);
  pen.clearRect(0, 0, canvas.width, canvas.height);
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.save();
  pen.beginPath();
  pen.rect(G.frame.l, G.frame.t, G.frame.w, G.frame.h);
  pen.clip();
  const drawn = moving ? Math.min(G.edges.length, IN_MOTION) : G.edges.length;
  const paths = binned(drawn);
  for (let bin = BIN_ENDS.length - 1; bin >= 0; bin--)
    for (const negative of [true, false]) stroke(pen, paths[bin][negative ? 1 : 0], bin, negative);
  pen.restore();
  canvas.dataset.drawn = drawn;
}

function binned(drawn) {
  const paths = BIN_ENDS.map(() => [new Path2D(), new Path2D()]);
  for (let rank = 0; rank < drawn; rank++) {
    const e = G.edges[rank], c = seenPart(curveOf(e));
    if (!c) continue;
    const path = paths[binOf(rank, G.edges.length)][D.weights[e] < 0 ? 1 : 0];
    path.moveTo(c[0], c[1]);
    path.bezierCurveTo(c[2], c[3], c[4], c[5], c[6], c[7]);
  }
  return paths;
}

function stroke(pen, path, bin, negative) {
  pen.lineWidth = BIN_WIDTH[bin];
  pen.globalAlpha = BIN_OPACITY[bin] * (negative ? 1.1 : 1);
  pen.strokeStyle = negative ? G.colours.negative : G.colours.positive;
  pen.setLineDash(negative ? DASH : []);
  pen.stroke(path);
}
