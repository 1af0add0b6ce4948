// The side panel (the selected feature, search, about), the same features as a table, and files.

const TABLE_ROWS = 200;

function drawPanel() {
  markTabs();
  const panel = $("panel"), draw = { feature: featurePanel, search: searchPanel, about: aboutPanel }[S.tab];
  panel.replaceChildren(...draw().flat().filter(Boolean));
  panel.scrollTop = 0;
}

function bar(share, name = "") {
  const holder = h("span", { class: "bar", "aria-hidden": "true" }, h("i", { class: name }));
  holder.firstChild.style.width = `${Math.max(share > 0 ? 2 : 0, 100 * Math.min(share, 1))}%`;
  return holder;
}

function rowOf(index) {
  const row = D.rows[index];
  return h("li", {}, h("button", { type: "button", class: "row", "data-key": row.key, onclick: () => select(index, { focus: true }) },
    laneMark(row.lane), h("span", { class: "what" }, h("bdi", {}, featureName(row)), h("small", {}, `L${row.layer} · ${ownersOf(row)}`)),
    bar(D.most > 0 ? row.most / D.most : 0), h("span", { class: "value" }, percent(row.most))));
}

function featurePanel() {
  if (S.supernode >= 0) return supernodePanel(D.supernodes[S.supernode]);
  return S.selected >= 0 ? selectedPanel(D.rows[S.selected]) : overviewPanel();
}

function overviewPanel() {
  const shared = D.lanes.find(({ lane }) => lane === "all").rows;
  return [h("h2", { class: "sr" }, "Overview"), heading("Who has what"), laneTable(), ...(D.summary ? [h("p", { class: "summary", dir: "auto" }, D.summary)] : []),
    heading(`Most influential features ${laneName("all").toLowerCase()}`, shared.length), rows(shared, rowOf, "No feature is in every graph."),
    ...(D.supernodes.length ? [heading("Supernodes that graphs share", D.supernodes.length), rows(D.supernodes, supernodeRow, "")] : []),
    ...(D.roles.length ? [heading("Different features in one role", D.roles.length), rows(D.roles, roleRow, "")] : [])];
}

// Features that differ and do the same job: a button each.
function roleRow([members, similarity]) {
  return h("li", { class: "role" }, h("span", { class: "who-list" }, members.flatMap((row, place) => (row === null ? [] : [h("button", { type: "button", class: "chip",
    title: `L${D.rows[row].layer} ${numberOf(D.rows[row])}`, onclick: () => select(row, { focus: true }) }, h("i", { class: `swatch ${laneClass(place)}` }),
    h("bdi", { class: "name" }, D.names[place]), h("bdi", {}, shortened(featureName(D.rows[row]), 18)))]))), h("span", { class: "value", title: "Cosine of their inputs and outputs" }, number(similarity, 2)));
}

// Who does in other graphs what this feature does in its own.
function partnersOf(row) {
  const role = D.roleOf.get(row.index);
  return role ? [heading("In the same role"), h("ul", { class: "rows" }, roleRow(role))] : [];
}

// Lanes with their counts, and what each holds of the influence of each graph.
function laneTable() {
  const lines = D.lanes.map(({ lane, rows: members }) => h("tr", {},
    h("th", { scope: "row" }, laneMark(lane), h("bdi", {}, laneName(lane))), h("td", { class: "value", "data-lane-count": lane }, counted(members.length)),
    D.names.map((_, place) => h("td", { class: "value" }, typeof lane === "number" && lane !== place ? "" : percent(heldBy(members, place))))));
  return h("div", { class: "wide", tabindex: 0, role: "region", "aria-label": "Who has what" }, h("table", { class: "lanes-table" }, h("thead", {}, h("tr", {}, h("th", {}, h("span", { class: "sr" }, "Lane")),
    h("th", { scope: "col" }, "features"), D.names.map((name) => h("th", { scope: "col", title: `Share of the influence in ${name}` }, h("bdi", {}, shortened(name, 9)))))),
    h("tbody", {}, lines)));
}

function pairList(pairs) {
  return h("dl", { class: "about" }, pairs.map(([name, value]) => h("div", {}, h("dt", {}, name.replaceAll("_", " ")),
    h("dd", { dir: "auto" }, typeof value === "number" ? number(value, 4) : String(value ?? "–")))));
}

function selectedPanel(row) {
  const most = Math.max(row.most, 1e-12);
  return [
    h("div", { class: "title" }, laneMark(row.lane, 13), h("h2", { dir: "auto" }, featureName(row)),
      h("a", { class: "link", href: `#feature=${encodeURIComponent(row.key)}`, title: "Link to this feature", "aria-label": "Link to this feature" }, "#")),
    h("dl", { class: "facts" }, [["Layer", row.layer], ["Feature", numberOf(row)], ["Found", ownersOf(row)], ...(row.verdict ? [["Language", row.verdict]] : [])]
      .map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, String(value))))),
    h("p", { class: "actions" }, h("button", { type: "button", onclick: () => select(-1, { focus: true }) }, "Clear")),
    heading("Share of influence"),
    h("ul", { class: "shares" }, D.names.map((name, place) => shareOf(row, place, most))),
    ...partnersOf(row), ...supernodesOf(row), ...spreadOf(row), ...effects("Promotes", row.promoted), ...effects("Suppresses", row.suppressed),
    ...(row.promoted.length || row.suppressed.length ? [] : [heading("Promotes"), h("p", { class: "empty" }, "This comparison holds no token effects.")]),
    ...meaningOf(row),
    ...edgesOf("inputs", "Inputs", D.inputs[row.index], "source"), ...edgesOf("outputs", "Outputs", D.outputs[row.index], "target"),
  ];
}

function shareOf(row, place, most) {
  const active = row.ids[place] !== null, { tokens } = D.drawings[place];
  const at = row.positions[place].map((position) => h("bdi", { ...textOf(place), class: "token", title: `position ${position}` }, visible(tokens[position])));
  return h("li", { "data-share": place }, h("span", { class: "who" }, h("i", { class: `swatch ${laneClass(place)}` }), h("bdi", {}, D.names[place])),
    bar(row.influence[place] / most, laneClass(place)), h("span", { class: "value" }, active ? percent(row.influence[place]) : "–"),
    h("span", { class: "at" }, active ? (at.length ? at : "") : "not active"));
}

function spreadOf(row) {
  if (!row.spread) return [];
  const entries = Object.entries(row.spread), most = Math.max(...entries.map(([, value]) => value ?? 0), 1e-12);
  return [heading("Mean activation on the corpus"), h("ul", { class: "shares spread" }, entries.map(([name, value]) => h("li", {},
    h("span", { class: "who" }, h("bdi", {}, name)), bar((value ?? 0) / most), h("span", { class: "value" }, number(value)))))];
}

// Examples from the store of the first graph that has them.
function meaningOf(row) {
  const place = row.ids.findIndex((id, at) => id !== null && D.drawings[at].details.of[`${row.layer}.${id}`]);
  if (place < 0) return [];
  const detail = detailIn(D.drawings[place], row.layer, row.ids[place]), [top, ...weaker] = detail.groups;
  return [...(top ? [examplesOf("Top examples", detail, [top], firingOf(detail))] : []),
    ...(weaker.length ? [examplesOf("Weaker and random examples", detail, weaker)] : []),
    ...histogramOf(detail), ...(row.spread ? [] : languagesOf(detail))];
}

function effects(name, pairs) {
  return pairs.length ? [heading(name), h("ul", { class: "tokens" }, pairs.map(([token, value]) =>
    h("li", {}, h("bdi", {}, visible(token)), h("small", {}, value === null ? "" : signed(value)))))] : [];
}

function edgesOf(side, name, edges, end) {
  if (!edges.length) return [];
  const most = edges[0].most || 1;
  const item = (edge) => {
    const row = D.rows[edge[end]], has = edge.shares.flatMap((share, place) => (share === null ? [] : [`${D.names[place]} ${percent(share)}`]));
    return h("li", {}, h("button", { type: "button", class: "row", onclick: () => select(row.index, { focus: true }) }, laneMark(row.lane),
      h("span", { class: "what" }, h("bdi", {}, featureName(row)), h("small", {}, `L${row.layer} · ${has.join(", ")}`)), bar(edge.most / most),
      h("span", { class: "value" }, `${has.length}/${D.names.length}`)));
  };
  return [h("section", { "data-side": side, "aria-label": name }, heading(name, edges.length), rows(edges, item, ""))];
}

// Rows that match the query in name, number, layer, graph or tokens, most influential first.
function found() {
  const wanted = folded(S.query.trim());
  if (!wanted) return [];
  if (found.query === wanted) return found.result;
  D.haystack ??= D.rows.map((row) => folded([featureName(row), numberOf(row), row.key, `L${row.layer}`, ownersOf(row), row.verdict,
    ...row.promoted.map(([token]) => token), ...row.positions.flatMap((at, place) => at.map((position) => D.drawings[place].tokens[position]))].join("\n")));
  const words = wanted.split(/\s+/);
  found.query = wanted;
  found.result = D.ranked.filter((index) => words.every((word) => D.haystack[index].includes(word)));
  return found.result;
}

function searchPanel() {
  if (!S.query.trim())
    return [h("p", { class: "empty" }, "Type to search names, tokens, promoted tokens, feature numbers, layers (L3) and graphs.")];
  return [heading(`“${shortened(S.query, 30)}”`, found().length), rows(found(), rowOf, "Nothing matches.")];
}

function aboutPanel() {
  return [h("h2", { class: "sr" }, "About this comparison"), heading("Prompts"),
    h("dl", { class: "about" }, D.graphs.map((graph, place) => h("div", {}, h("dt", {}, h("bdi", {}, graph.name)),
      h("dd", textOf(place), D.drawings[place].prompt), originOf(place) ? h("dd", {}, h("bdi", {}, originOf(place))) : null, h("dd", { class: "notes" }, D.drawings[place].notices.map((words) => h("small", {}, words)))))),
    heading("Models"), pairList([["model", [...new Set(D.drawings.map(({ model }) => model))].join(", ")],
      ["transcoders", [...new Set(D.drawings.map(({ transcoders }) => transcoders))].join(", ")]]),
    ...(Object.keys(D.about).length ? [heading("Parameters"), pairList(Object.entries(D.about))] : []),
    ...(D.notices.length ? [heading("Notices"), h("ul", {}, D.notices.map((words) => h("li", { dir: "auto" }, words)))] : []),
    heading("How to read it"),
    h("p", {}, "A mark is a feature, counted once wherever in a prompt it is active; its row is its layer, its lane the graphs that have it, and its area grows with the largest share that it holds of the influence in any of them."),
    h("p", {}, "Overlap is, layer by layer, what two graphs share: by influence (the sum of the smaller shares over the sum of the larger) or plain (features active in both over features active in either). "
      + "The grey band is what texts of the same languages share that have nothing to do with each other, the dotted line what texts share that say the same. The numbers beside the curve say how many features are active; a dot is hollow where they are too few to conclude anything. In the heatmap, a line through a cell says that the pair shares no more there than unrelated texts."),
    ...(D.supernodes.length ? [h("p", {}, "A supernode is a group of features that do the same thing in one graph. Those of two graphs are taken for one where each is the other's nearest by the features they have in common, and these are at least a third of what either has. The figure beside one is the least such share among its graphs.")] : []),
    h("p", {}, "In the graphs, marks have the colour of their lane; solid edges excite, dashed edges inhibit. An edge between two features of the comparison is what passes between them at any positions, as a share of all that is explained.")];
}

function drawTable(most = TABLE_ROWS) {
  const place = $("table"), on = S.show === "table";
  place.hidden = !on;
  $("charts").hidden = $("graphs").hidden = on;
  $("as-table").setAttribute("aria-pressed", on);
  if (!on) return;
  const shown = D.ranked.filter((index) => among(D.rows[index]));
  place.replaceChildren(featureTable(shown.slice(0, most), shown.length), ...(shown.length > most
    ? [h("button", { type: "button", class: "more", onclick: () => drawTable(Infinity) }, `Show all ${counted(shown.length)}`)] : []),
    ...(D.supernodes.length ? [supernodeTable()] : []), ...(D.overlaps.length ? [overlapTable()] : []));
}

function featureTable(shown, count) {
  const head = ["Feature", "Layer", "Number", "Found", ...D.names, "Positions"];
  return h("table", {}, h("caption", {}, `${counted(count)} features, most influential first, with their share of the influence in each graph`),
    h("thead", {}, h("tr", {}, head.map((name) => h("th", { scope: "col" }, h("bdi", {}, name))))),
    h("tbody", {}, shown.map((index) => {
      const row = D.rows[index], at = row.positions.flatMap((each, place) => (each.length ? [`${D.names[place]} ${each.join(" ")}`] : []));
      return h("tr", { "aria-selected": index === S.selected },
        h("th", { scope: "row" }, h("button", { type: "button", onclick: () => select(index) }, laneMark(row.lane), h("bdi", {}, featureName(row)))),
        h("td", {}, `L${row.layer}`), h("td", {}, numberOf(row)), h("td", {}, ownersOf(row)),
        row.influence.map((value, place) => h("td", { class: "value" }, row.ids[place] === null ? "–" : percent(value))), h("td", {}, at.join("; ")));
    })));
}

function overlapTable() {
  return h("table", { class: "overlap-table" }, h("caption", {}, `Overlap by layer, ${measureName()}, with what unrelated texts share`),
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Layer"), D.overlaps.map((one) => h("th", { scope: "col" }, h("bdi", {}, setName(one)))))),
    h("tbody", {}, Array.from({ length: D.n_layers }, (_, layer) => h("tr", {}, h("th", { scope: "row" }, `L${layer}`), D.overlaps.map((one) => {
      const band = one[`${S.overlap}_unrelated`][layer];
      return h("td", { class: "value" }, percent(one[S.overlap][layer]) + (band ? `, unrelated ${interval(band)}` : ""));
    })))));
}

function csvOf(lines) {
  return lines.map((line) => line.map(cell).join(",")).join("\r\n") + "\r\n";
}

function csvText() {
  const head = ["key", "layer", "name", "found", ...D.names.flatMap((name) => [`id ${name}`, `influence ${name}`, `positions ${name}`])];
  return csvOf([head, ...D.ranked.map((index) => {
    const row = D.rows[index];
    return [row.key, row.layer, featureName(row), row.owners.map((place) => D.names[place]).join(" "),
      ...D.names.flatMap((_, place) => [row.ids[place], row.ids[place] === null ? null : row.influence[place], row.positions[place].join(" ")])];
  })]);
}

function overlapText() {
  const kinds = ["weighted", "plain"].flatMap((measure) => [`${measure}_unrelated`, `${measure}_parallel`]);
  const head = ["layer", "graphs", "weighted", "plain", ...kinds.flatMap((kind) => ["low", "mean", "high"].map((end) => `${kind}_${end}`)), "features"];
  const layers = Array.from({ length: D.n_layers }, (_, layer) => layer);
  return csvOf([head, ...D.overlaps.flatMap((one) => layers.map((layer) => [layer, one.members.map((place) => D.names[place]).join(" "),
    one.weighted[layer], one.plain[layer], ...kinds.flatMap((kind) => one[kind][layer] ?? [null, null, null]),
    one.members.map((place) => D.counts[place]?.[layer] ?? "").join(" ")]))]);
}

const DRAWN = ["fill", "fill-opacity", "stroke", "stroke-width", "stroke-opacity", "stroke-dasharray", "opacity", "font-size", "font-weight", "font-family", "text-anchor"];

// The charts as one SVG element that needs no style sheet.
function svgText() {
  const charts = [...$("figures").querySelectorAll(":scope > :not([hidden]) > svg")], origin = $("figures").getBoundingClientRect();
  const picture = svg("svg", { xmlns: "http://www.w3.org/2000/svg", width: Math.ceil(origin.width), height: Math.ceil($("figures").scrollHeight) });
  picture.append(svg("title", {}, clean(D.names.join(" · "))),
    svg("rect", { width: "100%", height: "100%", fill: getComputedStyle(document.documentElement).getPropertyValue("--paper").trim() }));
  for (const chart of charts) {
    const box = chart.getBoundingClientRect(), group = svg("g", { transform: `translate(${box.left - origin.left} ${box.top - origin.top})` });
    for (const child of chart.children) group.append(styled(child));
    picture.append(group);
  }
  return new XMLSerializer().serializeToString(picture);
}

function styled(element) {
  const copy = element.cloneNode(false), style = getComputedStyle(element);
  copy.removeAttribute("class");
  if (element.localName !== "g" || style.opacity !== "1")
    for (const name of DRAWN) if (style.getPropertyValue(name)) copy.setAttribute(name, style.getPropertyValue(name));
  for (const child of element.childNodes) copy.append(child.nodeType === 3 ? document.createTextNode(clean(child.data)) : styled(child));
  return copy;
}

function fileName(extension) {
  const slug = D.names.join("-").normalize("NFKC").replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-+|-+$/g, "").slice(0, 48);
  return `comparison-${slug || "graphs"}.${extension}`;
}

const SAVERS = {
  svg: () => saveAs(fileName("svg"), [svgText()], "image/svg+xml"),
  png: savePng,
  csv: () => saveAs(fileName("csv"), ["\ufeff", csvText()], "text/csv"),
  overlap: () => saveAs(fileName("overlap.csv"), ["\ufeff", overlapText()], "text/csv"),
};
