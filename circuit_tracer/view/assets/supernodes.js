// Supernodes that several graphs share: their rows, their panel and their table.

// As the strongest of the features that its graphs have in common.
function supernodeName({ common }) {
  return featureName(D.rows[common[0]]);
}

// A group: three dots in a ring.
function supernodeMark() {
  const picture = svg("svg", { viewBox: "-8 -8 16 16", class: "mark supernode", "aria-hidden": "true" });
  picture.append(svg("circle", { r: 7 }), ...[[-2.7, 2], [2.7, 2], [0, -2.8]].map(([cx, cy]) => svg("circle", { cx, cy, r: 1.6, class: "dot" })));
  return picture;
}

function featureCount(n) {
  return `${counted(n)} feature${n === 1 ? "" : "s"}`;
}

function graphsOf({ members }) {
  const names = D.names.filter((_, place) => members[place].length);
  return names.length === D.names.length ? laneName("all").toLowerCase() : `in ${names.join(", ")}`;
}

function supernodeRow(supernode) {
  return h("li", {}, h("button", { type: "button", class: "row", "data-supernode": supernode.index + 1, onclick: () => selectSupernode(supernode.index) }, supernodeMark(),
    h("span", { class: "what" }, h("bdi", {}, supernodeName(supernode)), h("small", {}, `${supernode.common.length} in common · `,
      supernode.members.flatMap((each, place) => (each.length ? [h("span", { class: "who" }, h("i", { class: `swatch ${laneClass(place)}` }), h("bdi", {}, D.names[place]), ` ${each.length}`)] : [])))),
    bar(supernode.overlap), h("span", { class: "value", title: "Least share of common features of two of its graphs" }, percent(supernode.overlap))));
}

function supernodePanel(supernode) {
  const most = Math.max(...supernode.shares.map((share) => share ?? 0), 1e-12), inSome = D.ranked.filter((row) => supernode.rows.has(row) && !supernode.common.includes(row));
  return [
    h("div", { class: "title" }, supernodeMark(), h("h2", { dir: "auto" }, supernodeName(supernode)),
      h("a", { class: "link", href: `#supernode=${supernode.index + 1}`, title: "Link to this supernode", "aria-label": "Link to this supernode" }, "#")),
    h("dl", { class: "facts" }, [["Supernode", graphsOf(supernode)], ["In common", featureCount(supernode.common.length)], ["Overlap", percent(supernode.overlap)]]
      .map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))),
    h("p", { class: "actions" }, h("button", { type: "button", onclick: () => select(-1, { focus: true }) }, "Clear")),
    heading("What passes it"),
    h("ul", { class: "shares" }, D.names.map((name, place) => h("li", { "data-share": place },
      h("span", { class: "who" }, h("i", { class: `swatch ${laneClass(place)}` }), h("bdi", {}, name)), bar((supernode.shares[place] ?? 0) / most, laneClass(place)),
      h("span", { class: "value" }, supernode.shares[place] === null ? "–" : percent(supernode.shares[place])),
      h("span", { class: "at" }, supernode.members[place].length ? featureCount(supernode.members[place].length) : "not there")))),
    heading("In common", supernode.common.length), rows(supernode.common, (row) => memberRow(row, supernode), ""),
    ...(inSome.length ? [heading("In some of its graphs", inSome.length), rows(inSome, (row) => memberRow(row, supernode), "")] : []),
  ];
}

function memberRow(index, { members }) {
  const row = D.rows[index], names = D.names.filter((_, place) => members[place].some(([one]) => one === index));
  return h("li", {}, h("button", { type: "button", class: "row", "data-key": row.key, onclick: () => select(index, { focus: true }) }, laneMark(row.lane),
    h("span", { class: "what" }, h("bdi", {}, featureName(row)), h("small", {}, `L${row.layer} · member in ${names.join(", ")}`)),
    bar(D.most > 0 ? row.most / D.most : 0), h("span", { class: "value" }, percent(row.most))));
}

// The supernodes that a feature is in.
function supernodesOf({ index }) {
  const list = D.supernodes.filter((supernode) => supernode.rows.has(index));
  return list.length ? [heading("In a supernode that graphs share"), rows(list, supernodeRow, "")] : [];
}

function supernodeTable() {
  return h("table", { class: "supernode-table" }, h("caption", {}, "Supernodes that graphs share, with the number of features that each has in it"),
    h("thead", {}, h("tr", {}, ["Supernode", "In common", "Overlap", ...D.names].map((name) => h("th", { scope: "col" }, h("bdi", {}, name))))),
    h("tbody", {}, D.supernodes.map((supernode) => h("tr", { "aria-selected": supernode.index === S.supernode },
      h("th", { scope: "row" }, h("button", { type: "button", onclick: () => selectSupernode(supernode.index) }, h("bdi", {}, supernodeName(supernode)))),
      h("td", { class: "value" }, supernode.common.length), h("td", { class: "value" }, percent(supernode.overlap)),
      supernode.members.map((each) => h("td", { class: "value" }, each.length || "–"))))));
}
