// What a feature means: where it fires in the corpus of a feature store, how strongly, what it
// raises, and what is near it. The store is Python's; here it is only shown.

function featureKey(node) {
  return `${node.layer}.${node.feature}`;
}

function detailOf(node) {
  return detailIn(D, node.layer, node.feature);
}

// Above the inputs and outputs: what one looks at first.
function meaningOf(node) {
  if (node.kind !== "feature") return [];
  const detail = detailOf(node), top = detail?.groups[0];
  return [...tokensOf(node), ...(detail ? [] : unknownOf(node)), ...(top ? [examplesOf("Top examples", detail, [top], firingOf(detail))]
    : detail ? [heading("Top examples"), ...firingOf(detail), h("p", { class: "empty" }, "The store holds no text in which it fires.")] : [])];
}

// Below them: all the rest.
function moreOf(node) {
  if (node.kind !== "feature") return [];
  const detail = detailOf(node);
  return [...elsewhereOf(node), ...(detail ? [...histogramOf(detail, node.activation), ...languagesOf(detail),
    ...(detail.groups.length > 1 ? [examplesOf("Weaker and random examples", detail, detail.groups.slice(1))] : []),
    ...kinOf("Nearest decoders", detail.similar, "by cosine", (share) => number(share)),
    ...kinOf("Fires together with", detail.coactive, "of lower layers, share of the places looked at", percent)] : [])];
}

function tokensOf(node) {
  const detail = detailOf(node);
  const raised = node.promoted.length ? node.promoted : detail?.raised ?? [], lowered = node.suppressed.length ? node.suppressed : detail?.lowered ?? [];
  const list = (name, pairs) => pairs.length ? [heading(name), h("ul", { class: "tokens" },
    pairs.map(([token, value]) => h("li", {}, h("bdi", {}, visible(token)), h("small", {}, value === null ? "" : signed(value)))))] : [];
  const known = [...list("Promotes", raised), ...list("Suppresses", lowered)];
  return known.length ? known : [heading("Promotes"), h("p", { class: "empty" }, "This graph holds no token effects.")];
}

// The same feature at other positions of this prompt; one click walks there.
function elsewhereOf(node) {
  const all = D.nodes.filter((other) => other.kind === "feature" && other.layer === node.layer && other.feature === node.feature)
    .sort((a, b) => a.position - b.position);
  if (all.length < 2) return [];
  return [heading("At other positions", all.length - 1), h("ul", { class: "tokens places" }, all.map((other) => h("li", {},
    h("button", { type: "button", disabled: other === node, "aria-current": other === node ? "true" : null, onclick: () => select(other.index, { focus: true }) },
      h("bdi", {}, visible(D.tokens[other.position])), h("small", {}, `at ${other.position} · ${number(other.activation)}`)))))];
}

// Related features: those in the graph are walked to, of others it is said how to read them.
function kinOf(title, kin, what, say) {
  if (!kin.length) return [];
  const line = ([layer, feature, share, label]) => {
    const there = D.features.find((i) => D.nodes[i].layer === layer && D.nodes[i].feature === feature);
    const name = there === undefined ? label || `#${feature}` : titleOf(D.nodes[there]);
    const bar = h("span", { class: "bar", "aria-hidden": "true" }, h("i"));
    bar.firstChild.style.width = `${100 * Math.min(Math.max(share, 0), 1)}%`;
    const inside = [h("span", { class: "what" }, h("bdi", {}, name), h("small", {}, `L${layer}#${feature}${there === undefined ? " · not in this graph" : ""}`)),
      bar, h("span", { class: "value" }, say(share))];
    return h("li", {}, there === undefined ? h("div", { class: "part" }, inside)
      : h("button", { type: "button", class: "part", onclick: () => select(there, { focus: true }) }, inside));
  };
  return [h("section", { class: "kin", "aria-label": title }, heading(title), h("p", { class: "firing" }, what), h("ol", { class: "rows" }, kin.map(line)))];
}

// No store, or a feature beyond those that the page holds: what to run.
function unknownOf(node) {
  const command = (text) => h("p", {}, h("code", { class: "command" }, text));
  const one = Object.values(D.details.of)[0];
  if (one)
    return [heading("Examples"), h("div", { class: "empty" },
      h("p", {}, "The page holds examples of its most influential features, and not of this one. They are shown by"),
      command(`circuit-tracer features show ${featureKey(node)} --store ${quoted(one.store)}`))];
  const named = [["--model", D.model], ["--transcoders", D.transcoders.startsWith(`${D.model} `) ? D.transcoders.slice(D.model.length + 1) : D.transcoders]]
    .filter(([, name]) => name).map(([option, name]) => `${option} ${quoted(name)} `).join("");
  return [heading("Examples"), h("div", { class: "empty" }, h("p", {}, "This page was made without a feature store. Build one, and trace with it:"),
    command(`circuit-tracer features build ${named}--text TEXTS -o features.sqlite`), command(`trace PROMPT ${named}--features features.sqlite`))];
}

// A word as a shell takes it.
function quoted(word) {
  return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
}
