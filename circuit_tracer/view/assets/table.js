// The same graph as a table, for readers to whom a picture says little: every visible node with
// the same way of selecting it.

const TABLE_ROWS = 200;

function drawTable(most = TABLE_ROWS) {
  const place = $("table");
  place.hidden = S.show !== "table";
  $("stage").hidden = $("foot").hidden = S.show === "table";
  $("as-table").setAttribute("aria-pressed", S.show === "table");
  if (place.hidden) return;
  const order = [...G.shown].sort((a, b) => D.nodes[b].influence - D.nodes[a].influence || a - b);
  const head = ["Node", "Kind", "Layer", "Token", "Activation", "Influence", "Strongest input", "Strongest output"];
  const body = order.slice(0, most).map((i) => tableRow(D.nodes[i]));
  place.replaceChildren(h("table", {},
    h("caption", {}, `${counted(order.length)} visible nodes, most influential first`),
    h("thead", {}, h("tr", {}, head.map((name) => h("th", { scope: "col" }, name)))), h("tbody", {}, body)));
  if (order.length > most)
    place.append(h("button", { type: "button", class: "more", onclick: () => drawTable(Infinity) }, `Show all ${counted(order.length)}`));
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
