// What features are called: labels that the reader gives, kept in this page until it closes, saved
// as a small JSON and read from one; and a feature picked by luck.

const LONGEST_LABEL = 400, AUTOMATIC_MARK = "~";

function isAutomatic(text) {
  return text.startsWith(AUTOMATIC_MARK);
}

// Labels given here or loaded: "layer.id" → { label, source }.
function givenLabels() {
  D.given ??= new Map();
  return D.given;
}

// Calls features so; an empty text takes the label away that was given here.
function relabel(changes) {
  const given = givenLabels(), named = new Map();
  D.first ??= new Map();
  for (const [key, label] of changes) {
    if (label) given.set(key, label);
    else given.delete(key);
    named.set(key, label);
  }
  for (const node of D.nodes) {
    if (node.kind !== "feature" || !named.has(featureKey(node))) continue;
    const key = featureKey(node);
    if (!D.first.has(key)) D.first.set(key, node.label);
    node.label = given.get(key)?.label ?? D.first.get(key);
  }
  D.haystack = null;
  found.query = null;
  drawOverlay();
  drawPanel();
  if (S.show !== "graph") setShow(S.show);
}

// A label as Python's features.labels takes it; null with a notice where it is none.
function checkedLabel(text) {
  const words = text.replace(/\s+/gu, " ").trim();
  if (words.length > LONGEST_LABEL) return refuse(`A label has at most ${LONGEST_LABEL} characters.`);
  if (isAutomatic(words)) return refuse("A label that begins with ~ is an automatic one; begin with something else.");
  return words;
}

function refuse(words) {
  notice(words);
  say(words);
  return null;
}

// Beneath the title: where the label comes from, and the field to change it.
function labelOf(node) {
  if (node.kind !== "feature") return [];
  const key = featureKey(node), given = givenLabels().get(key), automatic = node.label && isAutomatic(node.label);
  const from = given ? (given.source === "page" ? "your label, kept until this page closes" : `label from ${given.source}`)
    : automatic ? "automatic label, from what it fires at and raises" : node.label ? "label that came with the graph" : "no label yet";
  const origin = h("p", { class: automatic && !given ? "origin automatic" : "origin" }, from);
  if (S.renaming !== key) return [origin, ...pendingLabels()];
  const field = h("input", { type: "text", id: "label", dir: "auto", maxlength: LONGEST_LABEL, autocomplete: "off", spellcheck: "false", placeholder: "what it stands for" });
  field.value = automatic ? "" : node.label;
  const close = () => { S.renaming = null; drawPanel(); $("panel").querySelector("[data-key=rename]")?.focus(); };
  const form = h("form", { class: "rename", onsubmit: (event) => {
    event.preventDefault();
    const words = checkedLabel(field.value);
    if (words === null) return field.focus();
    S.renaming = null;
    relabel([[key, words ? { label: words, source: "page" } : null]]);
    say(words ? `Now called ${words}` : "The label is as it was");
    $("panel").querySelector("[data-key=rename]")?.focus();
  }, onkeydown: (event) => { if (event.key === "Escape") { event.stopPropagation(); close(); } } },
  h("label", { for: "label" }, "Label"), field, h("button", { type: "submit" }, "Keep"), h("button", { type: "button", onclick: close }, "Cancel"));
  return [form, origin];
}

function renameButton(node) {
  if (node.kind !== "feature") return null;
  return h("button", { type: "button", "data-key": "rename", title: "Give it a label (E)", onclick: () => startRenaming(node) }, "Label…");
}

function startRenaming(node) {
  S.renaming = featureKey(node);
  if (S.tab !== "node") S.tab = "node";
  drawPanel();
  const field = $("label");
  field.focus();
  field.select();
}

// How many labels wait to be saved, and the way to do it.
function pendingLabels() {
  const mine = [...givenLabels().values()].filter(({ source }) => source === "page").length;
  if (!mine) return [];
  return [h("p", { class: "pending" }, h("span", {}, `${counted(mine)} label${mine === 1 ? "" : "s"} given here`),
    h("button", { type: "button", onclick: saveLabels }, "Save labels"))];
}

// The labels of this page as a file that `--labels` reads.
function labelsText() {
  const rows = [...givenLabels()].map(([key, { label, source }]) => {
    const [layer, feature] = key.split(".").map(Number);
    return { layer, feature, label, source };
  }).sort((a, b) => a.layer - b.layer || a.feature - b.feature);
  return JSON.stringify({ labels: rows }, null, 1) + "\n";
}

function saveLabels() {
  if (!givenLabels().size) return refuse("No label was given or loaded here yet.");
  saveAs(fileName("labels.json"), [labelsText()], "application/json");
  say("Labels saved");
}

// Labels of a file of ours or an export of Neuronpedia, whole or a line an entry.
function readLabels(text, name) {
  let whole;
  try {
    whole = JSON.parse(text);
  } catch {
    whole = text.split("\n").filter((line) => line.trim()).map((line) => JSON.parse(line));
  }
  const entries = Array.isArray(whole) ? whole : Array.isArray(whole?.labels) ? whole.labels : [whole];
  return entries.flatMap((entry) => {
    const layer = /^\d+/.exec(String(entry?.layer ?? "")), feature = /^\d+$/.exec(String(entry?.feature ?? entry?.index ?? ""));
    const words = entry?.label ?? entry?.description;
    if (!layer || !feature || typeof words !== "string") throw new Error("an entry has no layer, feature and label");
    const label = words.replace(/\s+/gu, " ").trim().slice(0, LONGEST_LABEL);
    if (!label || isAutomatic(label)) return [];
    return [[`${Number(layer[0])}.${Number(feature[0])}`, { label, source: String(entry.source || ("description" in entry ? "Neuronpedia" : name)) }]];
  });
}

async function loadLabels(file) {
  try {
    const read = readLabels(await file.text(), file.name), there = new Set(D.features.map((i) => featureKey(D.nodes[i])));
    const taken = read.filter(([key]) => there.has(key));
    relabel(taken);
    const words = `${counted(taken.length)} of ${counted(read.length)} labels of ${file.name} are of features in this graph.`;
    notice(words);
    say(words);
  } catch (error) {
    refuse(`${file.name} holds no labels (${error.message}).`);
  }
}

// In the overview: load, save, and luck.
function labelTools() {
  const field = h("input", { type: "file", accept: ".json,.jsonl,application/json", class: "sr", tabindex: -1, "aria-label": "File of labels",
    onchange: (event) => event.target.files[0] && loadLabels(event.target.files[0]) });
  return [h("p", { class: "actions" }, h("button", { type: "button", onclick: lucky, title: "Some feature that says something (L)" }, "I’m feeling lucky"),
    h("button", { type: "button", onclick: () => field.click(), title: "Or drop the file on the page" }, "Load labels…"), field,
    givenLabels().size ? h("button", { type: "button", onclick: saveLabels }, "Save labels") : null)];
}

// Features worth meeting: those that people named, else those with examples, else any.
function luckyFeatures() {
  const pools = [(node) => node.label && !isAutomatic(node.label), (node) => detailOf(node), () => true];
  for (const good of pools) {
    const keys = new Map(), pool = [];
    for (const i of D.features) if (good(D.nodes[i]) && !keys.has(featureKey(D.nodes[i]))) { keys.set(featureKey(D.nodes[i]), i); pool.push(i); }
    if (pool.length > 1) return pool;
  }
  return D.features;
}

function lucky() {
  const pool = luckyFeatures().filter((i) => i !== S.selected);
  if (pool.length) select(pool[Math.floor(Math.random() * pool.length)], { focus: true });
}

SAVERS.labels = saveLabels;
KEYS.l = () => lucky();
KEYS.e = () => S.selected >= 0 && S.edge < 0 && D.nodes[S.selected].kind === "feature" && startRenaming(D.nodes[S.selected]);

addEventListener("dragover", (event) => { if (event.dataTransfer?.types.includes("Files")) event.preventDefault(); });
addEventListener("drop", (event) => {
  const file = event.dataTransfer?.files[0];
  if (!file) return;
  event.preventDefault();
  loadLabels(file);
});
