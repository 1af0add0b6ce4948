// Where each visible node stands: the sums of view/layout.py, redone when the sliders move.
// A test holds the two together.

const ROW_GAP = 0.26, LEAST_SLOTS = 2, SLOTS_A_CHARACTER = 0.42, LONGEST_NAME = 9;

function rowsOf(count) {
  return count <= 3 ? 1 : count <= 8 ? 2 : 3;
}

// Nodes that hold the wanted share of the influence, and those the reader holds on to.
function visibleNodes() {
  const goal = (S.influence / 100) * D.totalInfluence - 1e-9;
  const shown = new Set();
  for (const node of D.nodes)
    if (node.kind === "embedding" || node.kind === "logit") shown.add(node.index);
  D.ranked.forEach((index, at) => {
    if (S.influence >= 100 || D.heldBefore[at] < goal) shown.add(index);
  });
  const held = shown.size;
  if (S.selected >= 0) shown.add(S.selected);
  if (S.edge >= 0) shown.add(D.sources[S.edge]).add(D.targets[S.edge]);
  for (const i of S.pins) {
    const group = groupOf(i);
    if (!group || group.name === S.card) shown.add(i);
  }
  return { shown, held };
}

function layoutOf(shown, drawing = D) {
  const { nodes } = drawing;
  const order = [...shown].sort((a, b) => nodes[b].influence - nodes[a].influence || a - b);
  const cells = new Map();
  for (const index of order) {
    const key = `${nodes[index].layer},${nodes[index].position}`;
    if (!cells.has(key)) cells.set(key, []);
    cells.get(key).push(index);
  }
  const rows = (index, count) =>
    nodes[index].layer >= 0 && nodes[index].layer < drawing.n_layers ? rowsOf(count) : 1;
  const fullest = drawing.tokens.map(() => LEAST_SLOTS);
  for (const members of cells.values()) {
    const aRow = Math.ceil(members.length / rows(members[0], members.length));
    const { position } = nodes[members[0]];
    fullest[position] = Math.max(fullest[position], aRow);
  }
  let left = 0;
  const columns = drawing.tokens.map((token, position) => {
    const name = Math.min([...visible(token)].length, LONGEST_NAME) * SLOTS_A_CHARACTER;
    const right = left + Math.max(fullest[position], name) + 1, column = [left, right];
    left = right;
    return column;
  });
  const x = new Float64Array(nodes.length).fill(NaN), y = new Float64Array(nodes.length).fill(NaN);
  for (const members of cells.values()) {
    const { layer, position } = nodes[members[0]], [from, to] = columns[position];
    const count = rows(members[0], members.length), aRow = Math.ceil(members.length / count);
    members.forEach((index, place) => {
      const row = Math.floor(place / aRow), slot = place % aRow;
      const here = Math.min(aRow, members.length - row * aRow);
      x[index] = (from + to) / 2 + slot - (here - 1) / 2;
      y[index] = layer + ((count - 1) / 2 - row) * ROW_GAP;
    });
  }
  return { x, y, columns, width: left || 1 };
}
