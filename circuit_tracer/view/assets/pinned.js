// The tab of pinned nodes: the subgraph small, its supernodes and nodes to tick, group and rename,
// the edges between them, and what is suggested.

const MOST_SUGGESTED = 12;

function pinnedPanel() {
  const list = cards(), parts = [h("h2", { class: "sr" }, "Pinned")];
  if (!list.length) parts.push(heading("Pinned subgraph"), h("p", { class: "empty" },
    "Nothing is pinned. Ctrl-click a node, hold it on a touch screen, or press P; several pins make a subgraph, and pins that belong together a supernode."));
  else if (S.show !== "subgraph") parts.push(heading("Pinned subgraph", list.length), smallSubgraph());
  parts.push(pinActions(list));
  if (list.length) parts.push(...cardLists(list), ...cardEdgeList(list));
  parts.push(...suggestionList());
  return parts;
}

function smallSubgraph() {
  const holder = subgraphHolder(), style = getComputedStyle($("panel"));
  holder.high = 220;
  drawSubgraph(holder, Math.max($("panel").clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight), 220), holder.high);
  return holder;
}

function action(name, key, act, attributes = {}) {
  return h("button", { type: "button", "data-key": key, onclick: act, ...attributes }, name);
}

function pinActions(list) {
  const ticked = S.ticked.size;
  return h("p", { class: "actions" },
    list.length ? action(S.show === "subgraph" ? "Show the graph" : "Enlarge", "enlarge", () => setShow(S.show === "subgraph" ? "graph" : "subgraph")) : null,
    list.length > 1 ? action(`Group ${ticked || ""}`.trim(), "group", () => joinCards([...S.ticked]), { disabled: ticked < 2, title: "Tick two or more below, or drag one card onto another" }) : null,
    suggestions().length ? action("Draft", "draft", draftSubgraph, { title: "Pin the strongest suggested supernodes with the tokens and outputs that matter" }) : null,
    list.length ? action("Unpin all", "unpin-all", unpinAll) : null);
}

function cardLists(list) {
  const groups = list.filter((card) => card.group), loose = list.filter((card) => !card.group);
  return [...(groups.length ? [heading("Supernodes", groups.length), h("ul", { class: "cards" }, groups.map(groupItem))] : []),
    ...(loose.length ? [heading("Nodes", loose.length), h("ol", { class: "rows pins" }, loose.map(pinItem))] : [])];
}

function tick(card) {
  return h("label", { class: "tick-box" }, h("input", { type: "checkbox", "aria-label": `Tick ${card.name} to group it`, "data-key": `tick ${card.key}`,
    checked: S.ticked.has(card.key), onchange: (event) => {
      S.ticked[event.target.checked ? "add" : "delete"](card.key);
      drawPanel();
    } }));
}

function pinRow(index, label, act) {
  const top = D.nodes[D.features[0]]?.influence || 1, node = D.nodes[index];
  const item = row(index, number(node.influence), node.influence / top);
  item.append(h("button", { type: "button", class: "drop", "aria-label": `${label} ${titleOf(node)}`, title: label, onclick: act }, "✕"));
  return item;
}

function pinItem(card) {
  const item = pinRow(card.members[0], "Unpin", () => togglePin(card.members[0]));
  item.prepend(tick(card));
  return item;
}

function groupItem(card) {
  const { group } = card, name = h("input", { type: "text", dir: "auto", value: group.name, maxlength: LONGEST_GROUP_NAME, "aria-label": "Name of the supernode",
    autocomplete: "off", spellcheck: "false", "data-key": `name ${group.members[0]}`,
    onchange: (event) => renameGroup(group, event.target.value), onkeydown: (event) => { if (event.key === "Enter") event.target.blur(); } });
  const members = h("details", { open: S.card === card.key || S.opened.has(group.name), ontoggle: (event) => S.opened[event.target.open ? "add" : "delete"](group.name) },
    h("summary", {}, cardPlace(card)),
    h("ol", { class: "rows" }, group.members.map((i) => pinRow(i, "Take out", () => { leaveGroups([i]); pinsChanged(`${titleOf(D.nodes[i])} taken out`); }))));
  return h("li", { class: S.card === card.key ? "card-item chosen" : "card-item" },
    h("div", { class: "card-head" }, tick(card), name,
      action("Ungroup", `ungroup ${group.name}`, () => ungroup(group)),
      h("button", { type: "button", class: "drop", "aria-label": `Unpin ${group.name}`, title: "Unpin", onclick: () => unpinCard(card.key) }, "✕")), members);
}

// Summed edges as a list: what the picture shows, for those who read rather than look.
function cardEdgeList(list) {
  const edges = cardEdges(list), most = edges.length ? Math.abs(edges[0].weight) || 1 : 1;
  const item = ({ from, to, weight, count, edge }) => {
    const bar = h("span", { class: weight < 0 ? "bar negative" : "bar", "aria-hidden": "true" }, h("i"));
    bar.firstChild.style.width = `${Math.max(2, (100 * Math.abs(weight)) / most)}%`;
    const what = [h("span", { class: "what" }, h("span", {}, h("bdi", {}, shortened(list[from].name, 24)), " → ", h("bdi", {}, shortened(list[to].name, 24))),
      h("small", {}, count === 1 ? "1 edge" : `${counted(count)} edges, summed`)), bar, h("span", { class: "value" }, signed(weight))];
    return h("li", {}, count === 1 ? h("button", { type: "button", class: "part", onclick: () => selectEdge(edge, { focus: true }) }, what) : h("div", { class: "part" }, what));
  };
  return [heading("Edges between them", edges.length), h("div", { "data-side": "pinned" }, rows(edges, item, "No edge joins two of them."))];
}

function suggestionList() {
  const offered = suggestions();
  if (!D.groups.length || !offered.length) return [];
  return [heading("Suggested supernodes", offered.length), h("p", { class: "hint" }, "Features that the same sources drive and that drive the same targets, with the share of the influence that passes them."),
    h("ul", { class: "rows offered" }, offered.slice(0, MOST_SUGGESTED).map((one) => h("li", {},
      h("button", { type: "button", class: "part", "data-key": `offer ${one[0]}`, title: "Pin as a supernode", onclick: () => { addSuggestion(one); pinsChanged(`${one[0]} pinned`); } },
        h("span", { class: "what" }, h("bdi", {}, one[0]), h("small", {}, cardPlace({ members: one[1] }))),
        h("span", { class: "value" }, percent(one[2])), h("span", { class: "plus", "aria-hidden": "true" }, "+ Pin")))))];
}
