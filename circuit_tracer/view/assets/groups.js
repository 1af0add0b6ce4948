// Pinned nodes and the supernodes made of them: which there are, what they are called, and what
// passes between them. A supernode is a name and its members, all of them pinned.

const DRAFT_GROUPS = 8, DRAFT_TOKENS = 8, DRAFT_OUTPUTS = 3, LONGEST_GROUP_NAME = 80;

function groupOf(index) {
  return S.groups.find((group) => group.members.includes(index));
}

// A card is what the subgraph shows as one: a supernode, or a pinned node that is in none.
function cards() {
  const inside = new Set(S.groups.flatMap((group) => group.members));
  const loose = S.pins.filter((i) => !inside.has(i));
  return [...S.groups.map((group) => ({ key: group.name, name: group.name, members: group.members, group })),
    ...loose.map((i) => ({ key: D.nodes[i].id, name: titleOf(D.nodes[i]), members: [i], group: null }))];
}

// Edges between cards, strongest first: weights of all edges between their members, summed.
function cardEdges(list) {
  const holder = new Map(list.flatMap((card, k) => card.members.map((i) => [i, k])));
  const sums = new Map();
  for (const [index, to] of holder) {
    for (const e of D.inputs[index]) {
      const from = holder.get(D.sources[e]), key = `${from},${to}`;
      if (from === undefined || from === to) continue;
      if (!sums.has(key)) sums.set(key, { from, to, weight: 0, count: 0, edge: e });
      const sum = sums.get(key);
      sum.weight += D.weights[e];
      sum.count++;
    }
  }
  return [...sums.values()].sort((a, b) => Math.abs(b.weight) - Math.abs(a.weight) || a.edge - b.edge);
}

// A name that no other supernode and no node has.
function freeName(wanted, mine = null) {
  const plain = [...wanted.trim()].slice(0, LONGEST_GROUP_NAME).join("") || "Supernode";
  const taken = (name) => D.byId.has(name) || S.groups.some((group) => group !== mine && group.name === name);
  let name = plain;
  for (let number = 2; taken(name); number++) name = `${plain} (${number})`;
  return name;
}

function pin(members) {
  S.pins = [...new Set([...S.pins, ...members])];
}

function leaveGroups(members) {
  const going = new Set(members);
  for (const group of S.groups) group.members = group.members.filter((i) => !going.has(i));
  S.groups = S.groups.filter((group) => group.members.length);
}

function unpin(members) {
  leaveGroups(members);
  S.pins = S.pins.filter((i) => !members.includes(i));
}

function togglePin(index) {
  const pinned = S.pins.includes(index);
  if (pinned) unpin([index]);
  else pin([index]);
  pinsChanged(`${titleOf(D.nodes[index])} ${pinned ? "unpinned" : "pinned"}`);
}

// Makes one supernode of some nodes; it is called as asked, or as its most influential member is.
function makeGroup(members, name = null) {
  const leading = members.reduce((a, b) => (D.nodes[b].influence > D.nodes[a].influence ? b : a));
  leaveGroups(members);
  pin(members);
  const group = { name: freeName(name ?? titleOf(D.nodes[leading])), members: [...members] };
  S.groups.push(group);
  return group;
}

function renameGroup(group, name) {
  const before = group.name;
  group.name = freeName(name, group);
  if (S.moved.has(before)) S.moved.set(group.name, S.moved.get(before)).delete(before);
  if (S.card === before) S.card = group.name;
  pinsChanged(`Now called ${group.name}`);
}

function ungroup(group) {
  S.groups = S.groups.filter((other) => other !== group);
  pinsChanged(`${group.name} ungrouped`);
}

// One supernode of several cards; a supernode among them gives the name.
function joinCards(keys) {
  const joined = cards().filter((card) => keys.includes(card.key));
  if (joined.length < 2) return;
  const named = joined.find((card) => card.group), place = S.moved.get(joined[0].key);
  const group = makeGroup(joined.flatMap((card) => card.members), named?.name);
  if (place) S.moved.set(group.name, place);
  S.ticked.clear();
  pinsChanged(`${group.members.length} nodes grouped as ${group.name}`);
}

// Suggested supernodes that are not there yet: nothing of them is in a supernode of the reader's.
function suggestions() {
  const inside = new Set(S.groups.flatMap((group) => group.members));
  return D.groups.filter(([, members]) => !members.some((i) => inside.has(i)));
}

function addSuggestion([name, members]) {
  makeGroup(members, name);
}

// A first draft: the strongest suggestions between the tokens and the outputs that matter.
function draftSubgraph() {
  for (const one of suggestions().slice(0, DRAFT_GROUPS)) addSuggestion(one);
  const tokens = D.nodes.filter((node) => node.kind === "embedding" && node.influence > 0)
    .sort((a, b) => b.influence - a.influence || a.index - b.index).slice(0, DRAFT_TOKENS);
  pin([...tokens.map((node) => node.index), ...D.logits.slice(0, DRAFT_OUTPUTS)]);
  pinsChanged("A draft of the subgraph is pinned");
}

function unpinAll() {
  S.pins = [];
  S.groups = [];
  pinsChanged("Nothing is pinned");
}

function pinsChanged(words) {
  const keys = new Set(cards().map((card) => card.key));
  for (const key of S.moved.keys()) if (!keys.has(key)) S.moved.delete(key);
  for (const key of S.ticked) if (!keys.has(key)) S.ticked.delete(key);
  if (!keys.has(S.card)) S.card = null;
  refreshSelection();
  say(words);
  writeHash();
}
