// Why a head looks where it looks: its score before the softmax, split over what was written at the
// query and at the key. Either side adds up to the score.

const KIND_SUMS = { feature: "features", error: "errors", embedding: "tokens", positional: "position embeddings", bias: "biases", ignored: "ignored positions" };
const LUMP_NAMES = { positional: "Position embeddings", bias: "Biases", ignored: "Ignored positions" };

READERS.head = (text) => {
  const good = /^\d{1,4}\.\d{1,4}$/.test(text) && S.edge >= 0 && D.heads.get(S.edge)?.heads.some((one) => headName(one) === text);
  if (good) S.head = text;
  return Boolean(good);
};

function headName({ layer, head }) {
  return `${layer}.${head}`;
}

// The score of a head at (query, key); undefined where the page does not hold it.
function lookAt(layer, head, query, key) {
  D.lookOf ??= new Map(D.looks.map(([l, n, q, k, score, pattern, ...sides]) => [`${l}.${n}.${q}.${k}`, { score, pattern,
    query: { flat: sides[0], rest: sides[1], kinds: sides[2] }, key: { flat: sides[3], rest: sides[4], kinds: sides[5] } }]));
  return D.lookOf.get(`${layer}.${head}.${query}.${key}`);
}

function toggleHead(one) {
  S.head = S.head === headName(one) ? null : headName(one);
  drawPanel();
  say(S.head ? `Why L${one.layer}·H${one.head} looks there` : "Closed");
  writeHash();
}

// The button beside a head that opens its score.
function lookButton(one) {
  const open = S.head === headName(one);
  return h("button", { type: "button", class: "link open", "data-key": `head ${headName(one)}`, "aria-expanded": String(open), title: "Why it looks there",
    "aria-label": `Why L${one.layer}·H${one.head} looks there`, onclick: () => toggleHead(one) }, open ? "⌄" : "›");
}

function lookOf(e) {
  const one = D.heads.get(e)?.heads.find((other) => headName(other) === S.head);
  if (!one) return [];
  const query = D.nodes[D.targets[e]].position, found = lookAt(one.layer, one.head, query, one.key);
  const title = heading(`Why L${one.layer}·H${one.head} looks at “${visible(D.tokens[one.key])}”`);
  if (!found)
    return [h("section", { class: "look" }, title, h("div", { class: "empty" },
      h("p", {}, "This score is not among those that were taken apart for this page. Trace with ", h("code", {}, "--qk all"), ", or ask the saved graph:"),
      h("p", {}, h("code", { class: "command" }, `circuit-tracer query FILE qk --layer ${one.layer} --head ${one.head} --query ${query} --key ${one.key}`))))];
  return [h("section", { class: "look" }, title,
    h("dl", { class: "facts" }, [["Score", signed(found.score)], ["Attention", percent(found.pattern)]].map(([name, value]) =>
      h("div", {}, h("dt", {}, name), h("dd", {}, value)))),
    ...sideOf("query", "What the query holds", query, found), ...sideOf("key", "What the key holds", one.key, found),
    h("p", { class: "firing" }, "Either side adds up to the score, which is taken before the softmax: it says how well the pair fits, and the softmax compares it with other keys."))];
}

function sideOf(name, title, position, { score, [name]: side }) {
  const terms = Array.from({ length: side.flat.length / 2 }, (_, k) => [side.flat[2 * k], side.flat[2 * k + 1]]);
  const rest = score - terms.reduce((sum, [, part]) => sum + part, 0);
  const most = Math.max(...terms.map(([, part]) => Math.abs(part)), side.rest ? Math.abs(rest) : 0) || 1;
  const sums = Object.entries(side.kinds).map(([kind, part]) => `${KIND_SUMS[kind] ?? kind} ${signed(part)}`);
  return [h("h4", {}, title, h("small", {}, " “", h("bdi", {}, visible(D.tokens[position])), `” at ${position}`)),
    h("ol", { class: "rows", "data-side": name }, terms.map(([source, part]) => termRow(source, part, most)),
      side.rest ? h("li", {}, h("div", { class: "row" }, h("span"), h("span", { class: "what" }, `${counted(side.rest)} more`), signedBar(rest, most), h("span", { class: "value" }, signed(rest)))) : null),
    h("p", { class: "sum" }, h("span", {}, sums.join(", ")), h("strong", { class: "value" }, signed(score)))];
}

function signedBar(value, most) {
  const bar = h("span", { class: value < 0 ? "bar negative" : "bar", "aria-hidden": "true" }, h("i"));
  bar.firstChild.style.width = value ? `${Math.max(2, (100 * Math.abs(value)) / most)}%` : "0";
  return bar;
}

// One source: a node of the graph, which is walked to, or one that was pruned, or a lump.
function termRow(source, part, most) {
  const end = [signedBar(part, most), h("span", { class: "value" }, signed(part))];
  if (typeof source === "number") {
    const node = D.nodes[source];
    return h("li", {}, h("button", { type: "button", class: "row", "data-id": node.id, onclick: () => select(source, { focus: true }) }, glyph(node),
      h("span", { class: "what" }, h("bdi", {}, titleOf(node)), h("small", {}, h("bdi", {}, placeOf(node)))), end));
  }
  const [layer, number_, position] = source.split("_");
  const kind = LUMP_NAMES[source] ? null : layer === "E" ? "embedding" : number_ === "-1" ? "error" : "feature";
  const token = kind && visible(D.tokens[position]);
  const name = { embedding: `Token “${token}”`, error: "Error", feature: D.names[source] || `#${number_}` }[kind] ?? LUMP_NAMES[source];
  return h("li", {}, h("div", { class: "row" }, kind ? glyph({ kind }) : h("span"),
    h("span", { class: "what" }, h("bdi", {}, name), h("small", {}, h("bdi", {}, kind ? `${layer === "E" ? "Emb" : `L${layer}`} · “${token}” · not drawn` : "in no node"))), end));
}
