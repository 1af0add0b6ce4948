// Mouse, touch and keyboard on the graph. Plotly is static: it neither listens nor hovers.

const MOUSE_REACH = 14, TOUCH_REACH = 24, CLICK_SLACK = 5, LONG_PRESS = 550;
const touches = new Map();
let gesture = null;

// A pointer's place in the stage's own pixels, whatever CSS transform a parent has.
function placeIn(event) {
  const box = $("stage").getBoundingClientRect();
  return [((event.clientX - box.left) * G.width) / box.width, ((event.clientY - box.top) * G.height) / box.height];
}

function nearest([px, py], reach) {
  let best = -1, least = reach;
  for (const i of G.shown) {
    if (!inView(i, 4)) continue;
    const [x, y] = project(i);
    const distance = Math.hypot(x - px, y - py) - diameter(D.nodes[i]) / 4;
    if (distance < least) [best, least] = [i, distance];
  }
  return best;
}

function outputAt(event) {
  const part = event.target.closest?.("[data-node]");
  return part ? Number(part.dataset.node) : -1;
}

function listenToPointers() {
  const stage = $("stage");
  stage.addEventListener("pointerdown", pointerDown);
  stage.addEventListener("pointermove", pointerMove);
  stage.addEventListener("pointerup", pointerUp);
  stage.addEventListener("pointercancel", (event) => { touches.delete(event.pointerId); endGesture(); });
  stage.addEventListener("pointerleave", () => hover(-1));
  stage.addEventListener("wheel", wheel, { passive: false });
  stage.addEventListener("contextmenu", (event) => { if (gesture || touches.size) event.preventDefault(); });
}

function pointerDown(event) {
  if (event.target.closest("button") || (event.pointerType === "mouse" && event.button !== 0)) return;
  const at = placeIn(event);
  touches.set(event.pointerId, at);
  $("stage").setPointerCapture(event.pointerId);
  if (touches.size === 1) {
    gesture = { kind: "press", from: at, last: at, output: outputAt(event), column: event.target.dataset?.column, touch: event.pointerType !== "mouse" };
    gesture.timer = setTimeout(() => longPress(at), LONG_PRESS);
  } else if (touches.size === 2) {
    clearTimeout(gesture?.timer);
    gesture = { kind: "pinch", ...spanOfTouches() };
  }
}

function spanOfTouches() {
  const [a, b] = [...touches.values()];
  return { distance: Math.hypot(a[0] - b[0], a[1] - b[1]) || 1, middle: [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2] };
}

function pointerMove(event) {
  const at = placeIn(event);
  if (!touches.has(event.pointerId)) {
    if (event.pointerType === "mouse" && G.frame) hover(nearest(at, MOUSE_REACH));
    return;
  }
  touches.set(event.pointerId, at);
  if (gesture?.kind === "pinch" && touches.size >= 2) return pinch();
  if (gesture?.kind === "press" && Math.hypot(at[0] - gesture.from[0], at[1] - gesture.from[1]) > CLICK_SLACK) {
    clearTimeout(gesture.timer);
    gesture.kind = "pan";
    hover(-1);
    $("stage").classList.add("grabbed");
  }
  if (gesture?.kind !== "pan") return;
  panBy(at[0] - gesture.last[0], at[1] - gesture.last[1]);
  gesture.last = at;
}

function pinch() {
  const now = spanOfTouches();
  zoomAbout(...now.middle, now.distance / gesture.distance);
  panBy(now.middle[0] - gesture.middle[0], now.middle[1] - gesture.middle[1]);
  Object.assign(gesture, now);
}

function pointerUp(event) {
  if (!touches.delete(event.pointerId)) return;
  if (gesture?.kind === "press" && gesture.column) markColumn(Number(gesture.column));
  else if (gesture?.kind === "press") {
    const index = gesture.output >= 0 ? gesture.output
      : nearest(placeIn(event), gesture.touch ? TOUCH_REACH : MOUSE_REACH);
    if ((event.ctrlKey || event.metaKey) && index >= 0) togglePin(index);
    else {
      const e = index < 0 ? edgeAt(placeIn(event), gesture.touch ? EDGE_TOUCH : EDGE_REACH) : -1;
      if (e >= 0) selectEdge(e);
      else select(index);
    }
  }
  endGesture();
}

function endGesture() {
  clearTimeout(gesture?.timer);
  $("stage").classList.remove("grabbed");
  gesture = touches.size === 1 ? { kind: "pan", last: [...touches.values()][0] } : null;
}

function longPress(at) {
  const index = nearest(at, TOUCH_REACH);
  if (index < 0 || gesture?.kind !== "press") return;
  gesture.kind = "held";
  togglePin(index);
  navigator.vibrate?.(15);
}

function wheel(event) {
  if (!G.frame) return;
  event.preventDefault();
  const unit = event.deltaMode === 1 ? 16 : 1, dx = event.deltaX * unit, dy = event.deltaY * unit;
  if (event.shiftKey) panBy(-(dx || dy), 0);
  else if (Math.abs(dx) > Math.abs(dy) && !event.ctrlKey) panBy(-dx, 0);
  else zoomAbout(...placeIn(event), Math.exp(-dy * (event.ctrlKey ? 0.01 : 0.0018)));
}

function hover(index) {
  const before = S.hovered;
  if (index !== before) {
    S.hovered = index;
    $("overlay").querySelector(".hover-ring")?.remove();
    const ring = hoverRing();
    if (ring) $("overlay").append(ring);
    $("stage").classList.toggle("over", index >= 0);
  }
  if (index >= 0) showTip(index);
  else if (before >= 0) hideTip();
}

function hideTip() {
  $("tip").hidden = true;
}

function showTip(index) {
  const node = D.nodes[index], tip = $("tip");
  tip.replaceChildren(h("strong", { dir: "auto" }, titleOf(node)), h("span", {}, h("bdi", {}, placeOf(node)),
    node.kind === "feature" ? ` · #${node.feature}` : ""),
    h("span", {}, factLine(node)));
  tip.hidden = false;
  const [x, y] = project(index), left = x + 14 + tip.offsetWidth > G.width ? x - tip.offsetWidth - 14 : x + 14;
  tip.style.left = `${Math.max(4, left)}px`;
  tip.style.top = `${Math.max(4, Math.min(y - tip.offsetHeight / 2, G.height - tip.offsetHeight - 4))}px`;
}

function factLine(node) {
  const facts = [];
  if (node.activation !== null) facts.push(`activation ${number(node.activation)}`);
  if (node.probability !== null) facts.push(`probability ${percent(node.probability)}`);
  if (node.kind !== "logit") facts.push(`influence ${number(node.influence)}`);
  return facts.join(" · ");
}

// The nearest visible node in a direction; along it counts once, across it twice and a half.
function neighbourTo(dx, dy) {
  const from = S.selected >= 0 ? project(S.selected) : [G.frame.l + G.frame.w, G.frame.t];
  if (S.selected < 0) return D.logits.find((i) => G.shown.has(i)) ?? D.features[0] ?? [...G.shown][0] ?? -1;
  let best = -1, least = Infinity;
  for (const i of G.shown) {
    const [x, y] = project(i), along = (x - from[0]) * dx + (y - from[1]) * dy;
    const across = Math.abs((x - from[0]) * dy) + Math.abs((y - from[1]) * dx);
    if (i === S.selected || along < 0.5) continue;
    if (along + 2.5 * across < least) [best, least] = [i, along + 2.5 * across];
  }
  return best;
}

// [ and ] walk round the inputs and outputs of the node where the walk began.
function step(side) {
  if (S.selected < 0) return;
  const walk = S.walk && S.walk.side === side && S.walk.now === S.selected ? S.walk : { side, origin: S.selected, at: -1 };
  const list = D[side][walk.origin];
  if (!list.length) return say(`No ${side}`);
  walk.at = (walk.at + 1) % list.length;
  walk.now = side === "inputs" ? D.sources[list[walk.at]] : D.targets[list[walk.at]];
  select(walk.now, { tip: true });
  S.walk = walk;
}

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const KEYS = {
  "0": () => fit(),
  "+": () => zoomAbout(G.frame.l + G.frame.w / 2, G.frame.t + G.frame.h / 2, 1.4),
  "=": () => KEYS["+"](),
  "-": () => zoomAbout(G.frame.l + G.frame.w / 2, G.frame.t + G.frame.h / 2, 1 / 1.4),
  "/": () => { $("search").focus(); $("search").select(); },
  "?": () => $("keys").showModal(),
  "[": () => step("inputs"),
  "]": () => step("outputs"),
  p: () => S.selected >= 0 && togglePin(S.selected),
  t: () => $("as-table").click(),
  s: () => setShow(S.show === "subgraph" ? "graph" : "subgraph"),
  b: () => go(-1),
  f: () => go(1),
  Escape: () => clear(),
};

function clear() {
  $("save").open = false;
  hideTip();
  if (document.activeElement === $("search")) $("stage").focus();
  if (S.query) setQuery("");
  else if (S.edge >= 0) selectEdge(-1);
  else select(-1);
}

function listenToKeys() {
  document.addEventListener("keydown", (event) => {
    const writing = event.target.matches("input:not([type=range], [type=checkbox]), textarea, select");
    if (event.ctrlKey || event.metaKey || event.altKey || $("keys").open) return;
    if (writing && event.key !== "Escape") return;
    const arrow = ARROWS[event.key];
    if (arrow && event.target !== $("stage") && event.target !== document.body) return;
    if (arrow) {
      const to = neighbourTo(...arrow);
      if (to >= 0) select(to, { tip: true });
    } else if (Object.hasOwn(KEYS, event.key)) KEYS[event.key]();
    else return;
    event.preventDefault();
  });
}
