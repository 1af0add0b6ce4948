// The pinned subgraph as a picture: a card for each supernode and each loose pin, tokens below and
// outputs above, edges with their weights summed. Cards are dragged to move them, and onto each
// other to group them.

const CARD_HIGH = 40, CARD_GAP = 10, ROW_ROOM = 34, WIDEST_CARD = 190, MOST_CARD_EDGES = 80;
let drag = null;

const meanOf = (members, read) => members.reduce((sum, i) => sum + read(D.nodes[i]), 0) / members.length;

// Rows of cards from the bottom up: cards of near layers share one while they fit and no edge
// joins them.
function cardRows(list, edges, width) {
  const joined = new Set(edges.flatMap(({ from, to }) => [`${from},${to}`, `${to},${from}`]));
  const order = list.map((card, k) => k).sort((a, b) => list[a].layer - list[b].layer || list[a].position - list[b].position || a - b);
  const end = (card) => (card.layer < 0 ? "tokens" : card.layer >= D.n_layers ? "outputs" : "between");
  const made = [];
  for (const k of order) {
    const row = made.at(-1), card = list[k];
    const fits = row && row.wide + card.wide + CARD_GAP <= width && end(list[row.members[0]]) === end(card)
      && card.layer - list[row.members[0]].layer <= 1.5 && !row.members.some((other) => joined.has(`${k},${other}`));
    if (fits) {
      row.members.push(k);
      row.wide += card.wide + CARD_GAP;
    } else made.push({ members: [k], wide: card.wide });
  }
  return made;
}

// Where every card stands: in its row, as near to the place of its token as its neighbours allow.
function placeCards(list, edges, width, high) {
  const widest = Math.min(WIDEST_CARD, width * 0.46);
  for (const card of list) {
    card.layer = meanOf(card.members, (node) => node.layer);
    card.position = meanOf(card.members, (node) => node.position);
    card.text = fitting(card.name, widest - 16, 12, 600);
    card.wide = Math.min(Math.max(textWidth(card.text, 12, 600), textWidth(cardPlace(card), 10.5)) + 16, widest);
  }
  const columns = [...new Set(list.map((card) => card.position))].sort((a, b) => a - b);
  const made = cardRows(list, edges, width - 8), needed = made.length * (CARD_HIGH + ROW_ROOM);
  const step = CARD_HIGH + Math.max(ROW_ROOM, Math.min((high - made.length * CARD_HIGH) / made.length, 110));
  const total = Math.max(needed, step * made.length) + 4;
  made.forEach((row, at) => {
    const members = row.members.map((k) => list[k]).sort((a, b) => a.position - b.position || a.layer - b.layer);
    let edge = 4;
    for (const card of members) {
      const wanted = ((columns.indexOf(card.position) + 0.5) / columns.length) * width;
      card.x = Math.max(wanted, edge + card.wide / 2);
      edge = card.x + card.wide / 2 + CARD_GAP;
    }
    let limit = width - 8;
    for (const card of members.reverse()) {
      card.x = Math.min(card.x, limit - card.wide / 2);
      limit = card.x - card.wide / 2 - CARD_GAP;
    }
    for (const card of members) card.y = total - (at + 0.5) * step;
  });
  for (const card of list) {
    const moved = S.moved.get(card.key);
    if (moved) [card.x, card.y] = [Math.min(Math.max((moved[0] / 1000) * width, card.wide / 2), width - card.wide / 2), (moved[1] / 1000) * total];
  }
  return total;
}

function fitting(words, room, size, weight) {
  let text = words;
  for (let most = charactersOf(words).length; most > 3 && textWidth(text, size, weight) > room; most--) text = shortened(words, most - 1);
  return text;
}

function cardPlace(card) {
  const node = D.nodes[card.members[0]];
  if (card.members.length === 1 && node.kind === "embedding") return `at ${node.position}`;
  if (card.members.length === 1 && node.kind === "logit") return percent(node.probability);
  if (card.members.length === 1) return placeOf(node);
  const layers = card.members.map((i) => D.nodes[i].layer), low = Math.min(...layers), top = Math.max(...layers);
  return `${counted(card.members.length)} nodes · ${layerName(low)}${top > low ? `–${layerName(top).replace("L", "")}` : ""}`;
}

// Draws into a holder, which keeps the listeners; its content is made anew.
function drawSubgraph(holder, width, high) {
  const list = cards(), edges = cardEdges(list).slice(0, MOST_CARD_EDGES), total = placeCards(list, edges, width, high);
  const picture = svg("svg", { viewBox: `0 0 ${width} ${total}`, width, height: total, role: "group",
    "aria-label": `Pinned subgraph: ${list.length} cards, ${edges.length} edges` });
  const most = edges.length ? Math.abs(edges[0].weight) || 1 : 1, named = width > 600 ? 14 : 5;
  const lines = svg("g", { class: "card-edges", fill: "none" }), figures = svg("g", { class: "card-figures" });
  const boxes = list.map((card) => [card.x - card.wide / 2, card.y - CARD_HIGH / 2, card.x + card.wide / 2, card.y + CARD_HIGH / 2]);
  edges.forEach((edge, rank) => {
    const from = list[edge.from], to = list[edge.to], share = Math.abs(edge.weight) / most;
    const near = S.card === null || S.card === from.key || S.card === to.key;
    const up = from.y > to.y, y0 = from.y + (up ? -1 : 1) * CARD_HIGH / 2, y1 = to.y + (up ? 1 : -1) * CARD_HIGH / 2;
    const line = svg("path", { class: edge.weight < 0 ? "negative" : "positive", "data-from": from.key, "data-to": to.key, "data-weight": edge.weight,
      d: `M${from.x.toFixed(1)} ${y0.toFixed(1)}C${from.x.toFixed(1)} ${((y0 + y1) / 2).toFixed(1)} ${to.x.toFixed(1)} ${((y0 + y1) / 2).toFixed(1)} ${to.x.toFixed(1)} ${y1.toFixed(1)}`,
      "stroke-width": (0.7 + 5.3 * share).toFixed(2), opacity: ((0.16 + 0.74 * Math.sqrt(share)) * (near ? 1 : 0.15)).toFixed(2) });
    line.append(svg("title", {}, `${from.name} → ${to.name}: ${signed(edge.weight)} (${edge.count === 1 ? "1 edge" : `${counted(edge.count)} edges`})`));
    lines.prepend(line);
    const text = edge.weight < 0 ? number(edge.weight) : `+${number(edge.weight)}`, half = textWidth(text, 10.5) / 2 + 2, [x, y] = [(from.x + to.x) / 2, (y0 + y1) / 2];
    const box = [x - half, y - 7, x + half, y + 7];
    if (rank >= named || !near || boxes.some((other) => overlaps(other, box))) return;
    boxes.push(box);
    figures.append(svg("text", { x: x.toFixed(1), y: (y + 3.5).toFixed(1) }, text));
  });
  picture.append(lines, figures, ...list.map(cardMark));
  const focused = document.activeElement?.dataset?.card;
  holder.replaceChildren(picture);
  if (focused !== undefined) [...picture.querySelectorAll("[data-card]")].find((card) => card.dataset.card === focused)?.focus();
  Object.assign(holder, { list, wide: width, total });
}

function cardMark(card) {
  const node = D.nodes[card.members[0]], place = fitting(cardPlace(card), card.wide - 6, 10.5, 400), [x, y] = [-card.wide / 2, -CARD_HIGH / 2], size = { width: card.wide, height: CARD_HIGH, rx: 8 };
  const mark = svg("g", { class: `card ${card.group ? "group" : node.kind}${S.card === card.key ? " chosen" : ""}${drag?.onto === card.key ? " onto" : ""}`,
    transform: `translate(${card.x.toFixed(1)} ${card.y.toFixed(1)})`, "data-card": card.key, tabindex: 0, role: "button" });
  mark.append(svg("title", {}, `${card.name}, ${cardPlace(card)}`));
  if (card.group) mark.append(svg("rect", { class: "behind", x: x + 3, y: y - 3, ...size }));
  mark.append(svg("rect", { x, y, ...size }), svg("text", { class: "name", y: -2 }, card.text), svg("text", { class: "place", y: 13 }, place));
  return mark;
}

// A fresh holder: what a pointer or the keyboard does to a card stays with it while cards are redrawn.
function subgraphHolder() {
  const holder = h("div", { class: "subgraph", onpointerdown: cardDown, onpointermove: cardMove, onpointerup: cardUp,
    onpointercancel: () => { drag = null; }, onkeydown: cardKey });
  return holder;
}

function cardDown(event) {
  const key = event.target.closest("[data-card]")?.dataset.card, holder = event.currentTarget;
  if (key === undefined || event.button > 0) return;
  const card = holder.list.find((one) => one.key === key);
  drag = { key, from: [event.clientX, event.clientY], at: [card.x, card.y], moved: false, onto: null };
  holder.setPointerCapture(event.pointerId);
}

function cardMove(event) {
  if (!drag) return;
  const dx = event.clientX - drag.from[0], dy = event.clientY - drag.from[1], holder = event.currentTarget;
  if (!drag.moved && Math.hypot(dx, dy) < CLICK_SLACK) return;
  drag.moved = true;
  moveCard(holder, drag.key, drag.at[0] + dx, drag.at[1] + dy);
  const mine = holder.list.find((one) => one.key === drag.key);
  drag.onto = holder.list.find((one) => one !== mine && Math.abs(one.x - mine.x) < one.wide / 2 && Math.abs(one.y - mine.y) < CARD_HIGH / 2)?.key ?? null;
}

function moveCard(holder, key, x, y) {
  const keep = (value) => Math.round(Math.min(Math.max(value, 0), 1) * 1000);
  const low = CARD_HIGH / 2 / holder.total;
  S.moved.set(key, [keep(x / holder.wide), keep(Math.min(Math.max(y / holder.total, low), 1 - low))]);
  drawSubgraph(holder, holder.wide, holder.high);
}

function cardUp() {
  const done = drag;
  drag = null;
  if (!done) return;
  if (!done.moved) chooseCard(done.key);
  else if (done.onto !== null) {
    S.moved.delete(done.key);
    joinCards([done.onto, done.key]);
  } else pinsChanged("Moved");
}

// A loose pin leads to its node; a supernode is marked, here and in the graph.
function chooseCard(key) {
  const card = cards().find((one) => one.key === key);
  if (!card) return;
  if (!card.group) return select(card.members[0], { focus: true });
  S.card = S.card === key ? null : key;
  refreshSelection();
}

function cardKey(event) {
  const key = event.target.dataset?.card, by = ARROWS[event.key], holder = event.currentTarget;
  if (key === undefined) return;
  if (event.key === "Enter" || event.key === " ") chooseCard(key);
  else if (event.key === "Delete") unpinCard(key);
  else if (by) {
    const card = holder.list.find((one) => one.key === key);
    moveCard(holder, key, card.x + 12 * by[0], card.y + 12 * by[1]);
    writeHash();
  } else return;
  event.preventDefault();
  event.stopPropagation();
}

function unpinCard(key) {
  const card = cards().find((one) => one.key === key);
  unpin(card.members);
  pinsChanged(`${card.name} unpinned`);
}

// The picture in place of the graph.
function drawLargeSubgraph() {
  const place = $("subgraph");
  place.hidden = S.show !== "subgraph";
  if (place.hidden) return place.replaceChildren();
  if (!S.pins.length) return place.replaceChildren(h("p", { class: "empty" }, "Nothing is pinned yet."));
  const holder = place.querySelector(".subgraph") ?? subgraphHolder();
  if (!holder.isConnected) place.replaceChildren(holder);
  holder.high = place.clientHeight - 24;
  drawSubgraph(holder, Math.max(place.clientWidth - 24, 240), holder.high);
}
