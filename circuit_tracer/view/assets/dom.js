// What every page is built of: elements whose text is never markup, notices, lists, and the marks
// of the four kinds of nodes.

function $(id) {
  return document.getElementById(id);
}

// An element with attributes and children; strings become text, never markup.
function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return element;
}

function svg(tag, attributes = {}, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

function say(text) {
  $("live").textContent = text;
}

function notice(text) {
  const line = h("p", { class: "notice", role: "note" }, h("span", {}, text),
    h("button", { type: "button", "aria-label": "Dismiss", onclick: () => { line.remove(); resized(); } }, "✕"));
  $("notices").append(line);
}

function shapeOf(node, x, y, size, attributes) {
  const r = size / 2;
  const d = {
    embedding: `M${x - r} ${y - r}h${size}v${size}h${-size}z`,
    error: `M${x} ${y - r * 1.3}l${r * 1.3} ${r * 1.3}l${-r * 1.3} ${r * 1.3}l${-r * 1.3} ${-r * 1.3}z`,
    logit: `M${x} ${y - r * 1.1}l${r * 1.15} ${r * 2}h${-r * 2.3}z`,
  }[node.kind];
  return d ? svg("path", { d, ...attributes }) : svg("circle", { cx: x, cy: y, r, ...attributes });
}

function glyph(node, className = "") {
  const picture = svg("svg", { viewBox: "-8 -8 16 16", class: `glyph ${node.kind} ${className}`, "aria-hidden": "true" });
  picture.append(shapeOf(node, 0, node.kind === "logit" ? 0.5 : 0, 10.5, {}));
  return picture;
}

const FIRST_ROWS = 12;

function rows(list, make, empty) {
  if (!list.length) return h("p", { class: "empty" }, empty);
  const items = h("ol", { class: "rows" }, list.slice(0, FIRST_ROWS).map(make));
  if (list.length <= FIRST_ROWS) return items;
  const more = h("button", { type: "button", class: "more", onclick: () => {
    items.append(...list.slice(FIRST_ROWS, FIRST_ROWS + 500).map(make));
    more.remove();
    items.children[FIRST_ROWS]?.querySelector("button")?.focus();
  } }, `Show all ${counted(list.length)}`);
  return h("div", {}, items, more);
}

function heading(text, count) {
  return h("h3", {}, text, count === undefined ? null : h("small", {}, ` ${counted(count)}`));
}

// Shows the plain text instead, and why.
function giveUp(reason) {
  document.documentElement.classList.remove("js");
  $("why").hidden = false;
  $("why").textContent = reason;
}
