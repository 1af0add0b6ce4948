// The side panel: Node, Pinned, Search, About. Every row that names a node walks to it.

function drawPanel() {
  markTabs();
  $("tab-pinned").textContent = S.pins.length ? `Pinned ${cards().length}` : "Pinned";
  const draw = { node: nodePanel, pinned: pinnedPanel, search: searchPanel, about: aboutPanel }[S.tab];
  const panel = $("panel");
  const holds = [S.tab, S.selected, S.edge, S.query].join(), same = drawPanel.holds === holds;
  const { scrollTop } = panel, key = panel.contains(document.activeElement) ? keyOf(document.activeElement) : undefined;
  panel.replaceChildren(...draw().filter(Boolean));
  linkSections(panel);
  panel.scrollTop = same ? scrollTop : 0;
  if (same && key !== undefined) [...panel.querySelectorAll("[data-key], [data-card]")].find((one) => keyOf(one) === key)?.focus({ preventScroll: true });
  drawPanel.holds = holds;
}

// What an element is known by when its panel is drawn anew, so that the focus stays with it.
const keyOf = (element) => element.dataset.key ?? element.dataset.card;

// Every heading has a link of its own, to the same page with that section in sight.
function linkSections(panel) {
  let found = S.section === null;
  for (const title of panel.querySelectorAll("h3")) {
    const words = title.firstChild.textContent, name = slugOf(words), wanted = S.section === name;
    title.append(h("a", { class: "link", href: `#${hashOf()}&section=${encodeURIComponent(name)}`.replace("#&", "#"), "aria-label": `Link to ${words}` }));
    if (!wanted) continue;
    found = true;
    title.id = "section";
    requestAnimationFrame(() => title.scrollIntoView({ block: "start" }));
  }
  if (!found) {
    notice(`The address asks for a section that is not here (${shortened(S.section, 24)}).`);
    $("notices").lastElementChild.classList.add("from-hash");
  }
  S.section = null;
}

function slugOf(words) {
  return words.normalize("NFKC").toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-+|-+$/g, "").slice(0, 60);
}

// One row: marker, name, place, bar, value. `share` is the length of the bar.
function row(index, value, share, negative = false) {
  const node = D.nodes[index], hidden = !G.shown.has(index);
  const bar = h("span", { class: negative ? "bar negative" : "bar", "aria-hidden": "true" }, h("i"));
  bar.firstChild.style.width = `${Math.max(2, 100 * Math.min(share, 1))}%`;
  return h("li", {}, h("button", {
    type: "button", class: hidden ? "row below" : "row", "data-id": node.id,
    title: hidden ? "Below the Influence slider; a click shows it" : null,
    onclick: () => select(index, { focus: true }),
    onmouseenter: (event) => (event.movementX || event.movementY) && point(index), onmouseleave: () => unpoint(index),
    onfocus: () => point(index), onblur: () => unpoint(index),
  }, glyph(node), h("span", { class: "what" }, h("bdi", {}, titleOf(node)), h("small", {}, h("bdi", {}, placeOf(node)))),
  bar, h("span", { class: "value" }, value)));
}

// A row points at its node while the mouse or the focus is on it. A list that is redrawn under a
// mouse at rest is not a mouse on it, and has no say over what the keyboard shows.
function point(index) {
  if (G.shown.has(index)) hover(index);
}

function unpoint(index) {
  if (S.hovered === index) hover(-1);
}

function nodePanel() {
  if (S.edge >= 0) return edgePanel(S.edge);
  return S.selected >= 0 ? selectedPanel(D.nodes[S.selected]) : overviewPanel();
}

function overviewPanel() {
  const most = D.features.length ? D.nodes[D.features[0]].influence : 1;
  return [
    h("h2", { class: "sr" }, "Overview"),
    ...labelTools(),
    heading("Outputs"),
    rows(D.logits, (i) => row(i, percent(D.nodes[i].probability), D.nodes[i].probability ?? 0), "The graph has no outputs."),
    heading("Most influential features", D.features.length),
    rows(D.features, (i) => row(i, number(D.nodes[i].influence), D.nodes[i].influence / most), "The graph has no features."),
  ];
}

function selectedPanel(node) {
  const pinned = S.pins.includes(node.index);
  return [
    h("div", { class: "title" }, glyph(node, "large"), h("h2", { dir: "auto" }, titleOf(node)),
      h("a", { class: "link", href: `#node=${encodeURIComponent(node.id)}`, title: "Link to this node", "aria-label": "Link to this node" }, "#")),
    ...labelOf(node),
    factsOf(node),
    h("p", { class: "actions" },
      h("button", { type: "button", disabled: onTrail(-1) < 0, onclick: () => go(-1), title: "Back (B)" }, "← Back"),
      h("button", { type: "button", disabled: onTrail(1) < 0, onclick: () => go(1), title: "Forward (F)", "aria-label": "Forward" }, "→"),
      h("button", { type: "button", "aria-pressed": pinned, onclick: () => togglePin(node.index) }, pinned ? "Unpin" : "Pin"),
      renameButton(node),
      h("button", { type: "button", onclick: () => select(-1, { focus: true }) }, "Clear")),
    wayOf(node),
    ...meaningOf(node),
    ...(node.kind === "embedding" || node.kind === "error" ? [] : linksOf(node, "inputs", "Inputs", D.sources)),
    ...(node.kind === "logit" ? [] : linksOf(node, "outputs", "Outputs", D.targets)),
    ...moreOf(node),
  ];
}

function factsOf(node) {
  const facts = [["Kind", KIND_NAMES[node.kind]]];
  if (node.kind === "feature") facts.push(["Feature", `#${node.feature}`]);
  if (node.layer >= 0 && node.layer < D.n_layers) facts.push(["Layer", String(node.layer)]);
  facts.push(["Token", h("span", {}, h("bdi", { class: "token" }, `“${visible(D.tokens[node.position])}”`), ` at ${node.position}`)]);
  if (node.activation !== null) facts.push(["Activation", number(node.activation, 4)]);
  if (node.probability !== null) facts.push(["Probability", percent(node.probability)]);
  if (node.kind !== "logit") facts.push(["Influence", number(node.influence)]);
  facts.push(["Id", h("code", {}, node.id)]);
  return h("dl", { class: "facts" }, facts.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
}

function linksOf(node, side, name, ends) {
  const list = D[side][node.index], most = list.length ? Math.abs(D.weights[list[0]]) : 1;
  const section = h("section", { "data-side": side, "aria-label": name }, heading(name, list.length),
    rows(list, (e) => edgeRow(e, ends[e], most),
      `No ${side} in this graph.`));
  return [section];
}

// A row that walks to the other end, with a way to the edge itself.
function edgeRow(e, other, most) {
  const item = row(other, signed(D.weights[e]), Math.abs(D.weights[e]) / most, D.weights[e] < 0);
  item.append(h("a", { class: "link open", href: `#edge=${edgeName(e)}`, title: "This edge: share and attention heads",
    "aria-label": `Edge with ${titleOf(D.nodes[other])}`, onclick: (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      selectEdge(e, { focus: true });
    } }, "›"));
  return item;
}

// The strongest path from a token through the node to an output, as a line of steps.
function wayOf(node) {
  const before = pathTo(D, node.index), after = pathFrom(D, node.index);
  const steps = [...before.map((e) => D.sources[e]), node.index, ...after.map((e) => D.targets[e])];
  if (steps.length === 1) return null;
  const words = before.length && after.length ? "Strongest path from a token, on to an output"
    : before.length ? "Strongest path from a token" : "Strongest path to an output";
  const links = steps.map((i, k) => [k ? " → " : "", h("button", { type: "button", class: "step",
    disabled: i === node.index, onclick: () => select(i, { focus: true }) }, h("bdi", {}, shortened(titleOf(D.nodes[i]), 22)))]);
  return h("p", { class: "way" }, h("small", {}, words), h("span", {}, links));
}

// Nodes that match the query in name, id, token or promoted tokens, most influential first.
function found() {
  const wanted = folded(S.query.trim());
  if (!wanted) return [];
  if (found.query === wanted) return found.result;
  D.haystack ??= D.nodes.map((node) => folded([titleOf(node), node.id, `#${node.feature}`, layerName(node.layer), node.token,
    visible(node.token), ...node.promoted.map(([token]) => token)].join("\n")));
  const words = wanted.split(/\s+/);
  found.query = wanted;
  found.result = D.nodes.filter((node) => words.every((word) => D.haystack[node.index].includes(word)))
    .sort((a, b) => b.influence - a.influence || a.index - b.index).map((node) => node.index);
  return found.result;
}

function searchPanel() {
  if (!S.query.trim())
    return [h("p", { class: "empty" }, "Type to search names, tokens, promoted tokens, feature numbers and ids.")];
  const hits = found(), most = Math.max(...hits.map((i) => D.nodes[i].influence), 1e-12);
  return [heading(`“${shortened(S.query, 30)}”`, hits.length),
    rows(hits, (i) => row(i, number(D.nodes[i].influence), D.nodes[i].influence / most), "Nothing matches.")];
}

function legendItems() {
  const line = (className) => {
    const picture = svg("svg", { viewBox: "0 0 26 10", class: `line ${className}`, "aria-hidden": "true" });
    picture.append(svg("path", { d: "M1 5H25" }));
    return picture;
  };
  return [h("span", {}, line("positive"), "excites"), h("span", {}, line("negative"), "inhibits"),
    ...["feature", "embedding", "error", "logit"].map((kind) => h("span", {}, glyph({ kind }), KIND_NAMES[kind]))];
}

function aboutPanel() {
  const table = (pairs) => h("dl", { class: "about" }, pairs.map(([name, value]) =>
    h("div", {}, h("dt", {}, name.replaceAll("_", " ")), h("dd", { dir: "auto" }, typeof value === "number" ? number(value, 4) : String(value ?? "–")))));
  return [
    h("h2", { class: "sr" }, "About this graph"),
    heading("Graph"), table([["prompt", D.prompt], ["model", D.model], ["transcoders", D.transcoders], ["layers", D.n_layers],
      ["tokens", D.tokens.length], ["nodes", counted(D.nodes.length)], ["edges", counted(D.n_edges)],
      ["influence through errors", percent(D.error_share)]]),
    ...(Object.keys(D.scores).length ? [heading("Scores"), table(Object.entries(D.scores))] : []),
    ...(D.checks.length ? [heading("Is it true?"), table(D.checks)] : []),
    ...(Object.keys(D.about).length ? [heading("Parameters"), table(Object.entries(D.about))] : []),
    ...(D.notices.length ? [heading("Notices"), h("ul", {}, D.notices.map((text) => h("li", { dir: "auto" }, text)))] : []),
    heading("Legend"), h("p", { class: "legend" }, legendItems()),
    h("p", {}, "A node stands in the column of its token, at the height of its layer; its area grows with its influence on the outputs. "
      + "An edge is the part of its target's input that its source causes: solid excites, dashed inhibits; width and strength of colour tell its rank by the influence that passes it: "
      + "its share of what enters its target, times the influence of the target."),
    heading("Licences"), h("p", {}, `Drawn with plotly.js ${window.Plotly?.version ?? ""} (MIT licence), which this page holds.`),
  ];
}
