// The drawing as the page holds it: unpacked columns, edges by strength, and the words for them.
// view/payload.py writes what is read here; view/wording.py words tokens alike.

const KINDS = ["feature", "error", "embedding", "logit"];
const KIND_NAMES = { feature: "feature", error: "error", embedding: "token", logit: "output" };

// What an element of the page holds; the element goes, so that its megabytes are held once.
function unpack(id) {
  const holder = document.getElementById(id);
  const packed = holder.textContent.trim();
  holder.remove();
  return inflate(packed);
}

async function inflate(packed) {
  const text = atob(packed);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

function readDrawing(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const n = head.n_edges, at = 4 + length;
  const targets = new Uint32Array(buffer, at, n);
  const sources = new Uint32Array(buffer, at + 4 * n, n);
  const weights = new Float32Array(buffer, at + 8 * n, n);
  const nodes = head.id.map((id, i) => ({
    index: i, id, kind: KINDS[head.kind[i]], layer: head.layer[i], position: head.position[i],
    feature: head.feature[i], label: head.label[i] || "", activation: head.activation[i],
    token: head.token[i] ?? head.tokens[head.position[i]], influence: head.influence[i] ?? 0,
    probability: head.probability[i] ?? null, promoted: head.promoted[i] || [],
    suppressed: head.suppressed[i] || [],
  }));
  const order = Uint32Array.from({ length: n }, (_, e) => e)
    .sort((a, b) => Math.abs(weights[b]) - Math.abs(weights[a]) || a - b);
  const drawing = { ...head, nodes, sources, targets, weights, order };
  drawing.heads = new Map(head.heads.map(([e, residual, layers, flat]) => [e, { residual, layers,
    heads: Array.from({ length: flat.length / 4 }, (_, k) => {
      const [layer, number, part, key] = flat.slice(4 * k, 4 * k + 4);
      return { layer, head: number, part, key };
    }) }]));
  drawing.byId = new Map(nodes.map((node) => [node.id, node.index]));
  link(drawing);
  rank(drawing);
  return drawing;
}

// Edges of every node, strongest first: inputs[i] and outputs[i] hold edge numbers.
function link(drawing) {
  drawing.inputs = drawing.nodes.map(() => []);
  drawing.outputs = drawing.nodes.map(() => []);
  for (const e of drawing.order) {
    drawing.inputs[drawing.targets[e]].push(e);
    drawing.outputs[drawing.sources[e]].push(e);
  }
}

// Features and errors by falling influence with the share that each completes; and, for sizes,
// the largest measure of each kind.
function rank(drawing) {
  const ranked = drawing.nodes.filter((node) => node.kind === "feature" || node.kind === "error")
    .sort((a, b) => b.influence - a.influence || a.index - b.index);
  let held = 0;
  const total = ranked.reduce((sum, node) => sum + Math.max(node.influence, 0), 0);
  drawing.ranked = ranked.map((node) => node.index);
  drawing.heldBefore = ranked.map((node) => {
    const before = held;
    held += Math.max(node.influence, 0);
    return before;
  });
  drawing.totalInfluence = total;
  drawing.features = ranked.filter((node) => node.kind === "feature").map((node) => node.index);
  drawing.logits = drawing.nodes.filter((node) => node.kind === "logit")
    .sort((a, b) => b.probability - a.probability || a.index - b.index).map((node) => node.index);
  drawing.into = drawing.nodes.map((node) => drawing.total[node.index]
    || drawing.inputs[node.index].reduce((sum, e) => sum + Math.abs(drawing.weights[e]), 0));
  lead(drawing);
  drawing.largest = {};
  for (const node of drawing.nodes)
    drawing.largest[node.kind] = Math.max(drawing.largest[node.kind] || 0, measure(node));
}

// Edges by the influence that passes them, as view/drawing.py ranks them: the share of what enters
// the target, times what the target is worth. Ties keep the order by weight.
function lead(drawing) {
  const { nodes, targets, weights, into, order } = drawing, carried = new Float64Array(order.length);
  for (const e of order) {
    const target = nodes[targets[e]], worth = target.kind === "logit" ? target.probability ?? 1 : Math.max(target.influence, 0);
    carried[e] = weights[e] ? (Math.abs(weights[e]) / into[target.index]) * worth : 0;
  }
  drawing.leading = order.slice().sort((a, b) => carried[b] - carried[a]);
}

// What the size of a node tells.
function measure(node) {
  return node.kind === "logit" ? node.probability || 0 : Math.max(node.influence, 0);
}

// The strongest paths through every node: to an output, where each step counts by its share of what
// enters its target and the end by its probability; and from a token, counted alike. Steps go up
// in layers, so that one pass over the nodes finds each.
function findPaths(drawing) {
  const { nodes, sources, targets, weights, into } = drawing;
  const upward = nodes.map((node) => node.index).sort((a, b) => nodes[a].layer - nodes[b].layer);
  const share = (e) => Math.abs(weights[e]) / (into[targets[e]] || 1);
  const strongest = (order, starts, edgesOf, far) => {
    const best = new Float64Array(nodes.length), step = new Int32Array(nodes.length).fill(-1);
    for (const [i, value] of starts) best[i] = value;
    for (const index of order) {
      if (!best[index]) continue;
      for (const e of edgesOf[index]) {
        const other = far[e], reached = best[index] * share(e);
        if (nodes[sources[e]].layer < nodes[targets[e]].layer && reached > best[other]) {
          best[other] = reached;
          step[other] = e;
        }
      }
    }
    return step;
  };
  const tokens = upward.filter((i) => nodes[i].kind === "embedding").map((i) => [i, 1]);
  drawing.pathNext = strongest([...upward].reverse(), drawing.logits.map((i) => [i, nodes[i].probability ?? 1]), drawing.inputs, sources);
  drawing.pathBefore = strongest(upward, tokens, drawing.outputs, targets);
}

// Edges of the strongest path from a node to an output; empty where there is none.
function pathFrom(drawing, index) {
  if (!drawing.pathNext) findPaths(drawing);
  const path = [];
  for (let e = drawing.pathNext[index]; e >= 0; e = drawing.pathNext[drawing.targets[e]]) path.push(e);
  return path;
}

// Edges of the strongest path from a token to a node, in the order in which they are walked.
function pathTo(drawing, index) {
  if (!drawing.pathBefore) findPaths(drawing);
  const path = [];
  for (let e = drawing.pathBefore[index]; e >= 0; e = drawing.pathBefore[drawing.sources[e]]) path.unshift(e);
  return path;
}

const SEEN = { "\n": "⏎", "\r": "␍", "\t": "⇥", "\u00a0": "⍽", "\u2028": "␤", "\u2029": "␤",
  "\u200b": "∅", "\ufeff": "∅" };

// A token with what cannot be seen made visible.
function visible(token) {
  const text = [...token].map((character) => SEEN[character] ?? character).join("");
  const bare = text.replace(/^ +| +$/g, "");
  return bare || (text ? "␣".repeat(text.length) : "∅");
}

// In at most so many characters as readers count them: a flag or a letter with its marks is one.
const readers = typeof Intl.Segmenter === "function" ? new Intl.Segmenter() : null;
const charactersOf = (text) => (readers && /[^\u0000-\u02ff]/.test(text) ? [...readers.segment(text)].map((one) => one.segment) : [...text]);

function shortened(text, most = 12) {
  if (text.length <= most) return text;
  const characters = charactersOf(text);
  return characters.length <= most ? text : characters.slice(0, most - 1).join("") + "…";
}

function titleOf(node) {
  const plain = node.kind === "logit" && node.label === `Output "${node.token}"`;
  if (node.label && !plain) return node.label;
  if (node.kind === "logit") return `Output “${visible(node.token)}”`;
  if (node.kind === "embedding") return `Token “${visible(node.token)}”`;
  if (node.kind === "error") return "Error";
  if (node.promoted.length)
    return "says " + node.promoted.slice(0, 2).map(([token]) => `“${visible(token)}”`).join(", ");
  return `#${node.feature}`;
}

function layerName(layer) {
  return layer < 0 ? "Emb" : layer >= D.n_layers ? "Out" : `L${layer}`;
}

function placeOf(node) {
  return `${layerName(node.layer)} · “${visible(D.tokens[node.position])}”`;
}

function number(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-4 || size >= 1e6)) return value.toExponential(2).replace("-", "−");
  return String(Number(value.toPrecision(digits))).replace("-", "−");
}

function signed(value) {
  const size = Math.abs(value);
  const text = size >= 100 ? size.toFixed(0) : size >= 0.001 ? size.toFixed(3) : number(size, 2);
  return (value < 0 ? "−" : "+") + text;
}

function percent(share) {
  return share === null || share === undefined ? "–" : `${Number((100 * share).toPrecision(2))} %`;
}

function counted(n) {
  return n.toString().replace(/\B(?=(\d{3})+$)/g, ",");
}

function folded(text) {
  return text.normalize("NFKD").replace(/\p{Mn}/gu, "").toLowerCase();
}
