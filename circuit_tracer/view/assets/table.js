// The same graph as a table, for readers to whom a picture says little: every visible node with
// the same way of selecting it, sorted by any column.

const TABLE_ROWS = 200;
const COLUMNS = {
  name: { title: "Node", of: (node) => folded(titleOf(node)) },
  kind: { title: "Kind", of: (node) => KIND_NAMES[node.kind] },
  layer: { title: "Layer", of: (node) => node.layer, down: true },
  token: { title: "Token", of: (node) => node.position },
  activation: { title: "Activation", of: (node) => node.activation ?? -Infinity, down: true },
  influence: { title: "Influence", of: (node) => node.influence, down: true },
  input: { title: "Strongest input", of: (node) => strengthOf(D.inputs[node.index]), down: true },
  output: { title: "Strongest output", of: (node) => strengthOf(D.outputs[node.index]), down: true },
};

const strengthOf = (edges) => (edges.length ? Math.abs(D.weights[edges[0]]) : -Infinity);

// What a sort is called in the address: the column, with a minus where it falls.
function sortNamed(text) {
  return Object.hasOwn(COLUMNS, text.replace(/^-/, ""));
}

function sortBy(name) {
  const first = COLUMNS[name].down ? `-${name}` : name, second = COLUMNS[name].down ? name : `-${name}`;
  S.sort = (S.sort ?? "-influence") === first ? second : first;
  drawTable();
  $("table").querySelector(`[data-sort=${name}]`).focus();
  say(`Sorted by ${COLUMNS[name].title}, ${S.sort.startsWith("-") ? "falling" : "rising"}`);
  writeHash();
}

function sortedNodes() {
  const wanted = S.sort ?? "-influence", sign = wanted.startsWith("-") ? -1 : 1, { of } = COLUMNS[wanted.replace(/^-/, "")];
  const key = new Map([...G.shown].map((i) => [i, of(D.nodes[i])]));
  const compare = (a, b) => (a < b ? -1 : a > b ? 1 : 0);
  return [...G.shown].sort((a, b) => sign * compare(key.get(a), key.get(b)) || D.nodes[b].influence - D.nodes[a].influence || a - b);
}

// Shows the graph, the table or the large subgraph, whichever is asked for.
function drawTable(most = TABLE_ROWS) {
  const place = $("table");
  place.hidden = S.show !== "table";
  $("stage").hidden = $("foot").hidden = S.show !== "graph";
  $("as-table").setAttribute("aria-pressed", S.show === "table");
  drawLargeSubgraph();
  if (place.hidden) return;
  const order = sortedNodes();
  place.replaceChildren(h("table", {},
    h("caption", {}, `${counted(order.length)} visible nodes${S.sort ? "" : ", most influential first"}`),
    h("thead", {}, h("tr", {}, Object.keys(COLUMNS).map(headCell))),
    h("tbody", {}, order.slice(0, most).map((i) => tableRow(D.nodes[i])))));
  if (order.length > most)
    place.append(h("button", { type: "button", class: "more", onclick: () => drawTable(Infinity) }, `Show all ${counted(order.length)}`));
}

function headCell(name) {
  const wanted = S.sort ?? "-influence", falls = wanted === `-${name}`, here = falls || wanted === name;
  return h("th", { scope: "col", "aria-sort": here ? (falls ? "descending" : "ascending") : null },
    h("button", { type: "button", "data-sort": name, onclick: () => sortBy(name) }, COLUMNS[name].title,
      h("span", { "aria-hidden": "true" }, here ? (falls ? " ↓" : " ↑") : "")));
}

function tableRow(node) {
  const end = (edges, ends) => edges.length
    ? h("span", {}, h("bdi", {}, shortened(titleOf(D.nodes[ends[edges[0]]]), 24)), ` ${signed(D.weights[edges[0]])}`) : "–";
  return h("tr", { "aria-selected": node.index === S.selected },
    h("th", { scope: "row" }, h("button", { type: "button", onclick: () => select(node.index) }, glyph(node), h("bdi", {}, titleOf(node)))),
    h("td", {}, KIND_NAMES[node.kind]), h("td", {}, layerName(node.layer)),
    h("td", {}, h("bdi", {}, visible(D.tokens[node.position]))),
    h("td", { class: "value" }, number(node.activation)), h("td", { class: "value" }, number(node.influence)),
    h("td", {}, end(D.inputs[node.index], D.sources)), h("td", {}, end(D.outputs[node.index], D.targets)));
}
