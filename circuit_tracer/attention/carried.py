"""Heads of many edges at once: what a page shows beside an edge.

The split is that of `heads`: all paths, by the first head they meet on the way down from the
target. What differs is the order of work. The sources go up together, a layer at a time; at every
layer each target's gradient, come straight down, meets all the sources of its edges. Nothing is
kept of a layer but its share in each edge, so thousands of edges cost little more than one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from circuit_tracer.attention.ends import Source, Target, find_source, find_target, localise
from circuit_tracer.circuit import Circuit
from circuit_tracer.errors import InputError
from circuit_tracer.facts import EdgeHeads
from circuit_tracer.graph import Graph
from circuit_tracer.local import Local
from circuit_tracer.nodes import Node
from circuit_tracer.replacement import ReplacementModel
from circuit_tracer.shapes import Float, Int, Tensor
from circuit_tracer.targets import Wanted, again, choose

MOST_EDGES = 1_000
MOST_WORK = {"cpu": 1e10, "cuda": 1e12}
"""Multiplications that go unasked into the heads of a page: some tenths of a second."""

AT_ONCE = 2**22
"""Numbers that the values of some edges' sources may hold together."""

CROSSING = 4.0
LISTED = 6


def edge_heads(
    model: ReplacementModel,
    graph: Graph,
    circuit: Circuit,
    most: int | None = None,
    targets: Sequence[Wanted] | None = None,
    local: Local | None = None,
) -> dict[tuple[str, str], EdgeHeads]:
    """Which heads carry the edges that matter most in a circuit.

    Edges are taken by the influence that passes along them; one that crosses positions counts
    fourfold, because all of it went through heads.

    Args:
        graph: the graph of this model that the circuit was pruned from.
        most: how many edges; None for up to 1,000, fewer where their sources would cost more than
            a page is worth.
        targets: as they were given to `trace`, where the graph was read from JSON and some are a
            `Direction`: it does not have their vectors, and edges into them are left out.
        local: the graph's prompt, localised (`ends.localise`); None does that here.

    Returns:
        (id of the source, id of the target) → `EdgeHeads`, each with the six strongest heads.

    Raises:
        InputError: `most` is negative, or the graph is of another model.

    Example:
        >>> found = edge_heads(model, graph, circuit)
        >>> found["1_417_3", "4_29_5"].heads[0]
    """
    if most is not None and most < 0:
        raise InputError(f"heads of {most} edges were asked for: give 0 or more")
    local = localise(model, graph) if local is None else local
    given = _given(model, local, graph, targets or ())
    pairs = _chosen(local, graph, circuit, most, given)
    if not pairs:
        return {}
    starts = [find_source(local, name) for name in dict.fromkeys(s for s, _ in pairs)]
    # By the id that the circuit has: a feature that is a target of the graph has two.
    ends = [
        given[name] if name in given else replace(find_target(model, local, name, graph), id=name)
        for name in dict.fromkeys(target for _, target in pairs)
    ]
    with torch.no_grad():
        return _Gathering(local, starts, ends, pairs).met()


def _given(
    model: ReplacementModel, local: Local, graph: Graph, targets: Sequence[Wanted]
) -> dict[str, Target]:
    """The graph's directions that `targets` describe, by the id of their node."""
    places = [target.position for target in graph.targets]
    readouts = choose(model, local.forward, targets, positions=places) if targets else []
    by_name = {(one.label, one.position): one for one in readouts if one.feature is None}
    found = {}
    for k, target in enumerate(graph.targets):
        one = by_name.get((target.label, target.position))
        if one is not None and target.token_id is None:
            name = graph.nodes[graph.index.target_row(k)].id
            found[name] = Target(name, one.layer, one.position, one.vector)
    return found


def _chosen(
    local: Local, graph: Graph, circuit: Circuit, most: int | None, given: Mapping[str, Target]
) -> list[tuple[str, str]]:
    """Ids of the ends of the edges to split, those that matter most first."""
    nodes, wiring = circuit.nodes, circuit.wiring
    counts = [circuit.target_weights.get(node.id, node.influence) for node in nodes]

    def matters(number: int) -> float:
        source, target = wiring.sources[number], wiring.targets[number]
        crosses = nodes[source].position != nodes[target].position
        return wiring.shares[number] * counts[target] * (CROSSING if crosses else 1.0)

    def described(node: Node) -> bool:
        """Whether it is known what a node reads; of a `Direction` a JSON has the name alone."""
        if node.kind != "logit" or node.feature >= 0 or node.id in given:
            return True
        return again(graph.targets[-1 - node.feature]) is not None

    known = [described(node) for node in nodes]
    numbers = [number for number, target in enumerate(wiring.targets) if known[target]]
    order = sorted(numbers, key=lambda number: (-matters(number), number))
    affordable = len(nodes)
    if most is None:
        device = local.errors.device.type
        affordable = int(MOST_WORK.get(device, MOST_WORK["cpu"]) / _work(local))
    taken: dict[int, None] = {}
    pairs = []
    for number in order[: MOST_EDGES if most is None else most]:
        source = wiring.sources[number]
        if source not in taken and len(taken) >= affordable:
            continue
        taken[source] = None
        pairs.append((nodes[source].id, nodes[wiring.targets[number]].id))
    return pairs


def _work(local: Local) -> float:
    """Multiplications that carry one source through all layers."""
    adapter = local.adapter
    wide = adapter.d_model * sum(adapter.blocks[0].value.shape[1:])
    mixing = adapter.heads * adapter.blocks[0].value.shape[-1] * local.n_positions
    return float(local.n_layers * local.n_positions * (2 * wide + mixing))


class _Gathering:
    """Sources carried up together, met by targets carried straight down together."""

    def __init__(
        self,
        local: Local,
        starts: Sequence[Source],
        ends: Sequence[Target],
        pairs: Sequence[tuple[str, str]],
    ):
        self.local, self.adapter, self.ends, self.pairs = local, local.adapter, ends, pairs
        self.starts = sorted(starts, key=lambda start: start.layer)
        below = {start.id: place for place, start in enumerate(self.starts)}
        above = {end.id: place for place, end in enumerate(ends)}
        self.sources = torch.tensor([below[source] for source, _ in pairs])
        self.targets = torch.tensor([above[target] for _, target in pairs])
        self.levels = torch.tensor([end.layer for end in ends])
        self.columns = torch.tensor([end.position for end in ends])

    def met(self) -> dict[tuple[str, str], EdgeHeads]:
        """Carry the sources up and let every target meet its own at every layer."""
        local, top = self.local, int(self.levels.max())
        straight, reads = self.down()
        x = local.errors.new_zeros(len(self.starts), local.n_positions, self.adapter.d_model)
        self.write(x, -1)
        parts, keys = [], []
        for layer in range(min(top + 1, local.n_layers)):
            # Only what has been written by now is carried on.
            begun = sum(start.layer < layer for start in self.starts)
            values = self.values(layer, x[:begun])
            part, key = self.meet(layer, straight[layer], values)
            parts.append(part)
            keys.append(key)
            if layer < top:
                self.step(layer, x[:begun], values)
                self.write(x, layer)
        return self.split(torch.stack(parts, 1), torch.stack(keys, 1), reads)

    def write(self, x: Tensor, layer: int) -> None:
        for place, start in enumerate(self.starts):
            if layer in start.writes:
                x[place, start.position] += start.writes[layer]

    def values(self, layer: int, x: Tensor) -> Float[Tensor, "source key head head_dim"]:
        """What the heads of a layer read, norm scales aside (they are in the patterns)."""
        read = torch.einsum("skd,dgc->skgc", x, self.adapter.blocks[layer].value)
        return read.repeat_interleave(self.adapter.heads // self.adapter.kv_heads, dim=2)

    def step(self, layer: int, x: Tensor, values: Tensor) -> None:
        """Carry x through the attention and the skip of a layer, in place."""
        mixed = torch.einsum("hqk,skhc->sqhc", self.local.patterns[layer], values)
        attended = torch.einsum("sqhc,hcd->sqd", mixed, self.adapter.blocks[layer].output)
        before = x.clone() if self.adapter.parallel else x
        x += attended
        if (skip := self.local.skip_map(layer)) is not None:
            x += self.local.skip_scale(layer)[:, None] * (before @ skip.T)

    def meet(
        self, layer: int, straight: Float[Tensor, "target d_model"], values: Tensor
    ) -> tuple[Float[Tensor, "edge head"], Int[Tensor, "edge head"]]:
        """What every head of a layer carries of each edge, and the position it looks at for it."""
        shape = len(self.pairs), self.adapter.heads
        part, key = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.long)
        # A feature reads behind the attention of its block, in a parallel block before it.
        inside = (self.levels < self.local.n_layers) & (not self.adapter.parallel)
        passes = (self.levels + inside.long())[self.targets] > layer
        rows = (passes & (self.sources < len(values))).nonzero().flatten()
        read = torch.einsum("hcd,td->thc", self.adapter.blocks[layer].output, straight)
        for some in rows.split(max(1, AT_ONCE // max(1, values[:1].numel()))):
            targets = self.targets[some].to(read.device)
            met = torch.einsum("ekhc,ehc->ehk", values[self.sources[some]], read[targets])
            seen = self.local.patterns[layer][:, self.columns[self.targets[some]]].transpose(0, 1)
            loading = (met * seen).cpu().double()
            part[some], key[some] = loading.sum(-1), loading.abs().argmax(-1)
        return part, key

    def down(self) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """The targets' gradients on their way straight down.

        Returns:
            (layer → at its attention's output, layer → at its MLP's output, -1 at the bottom),
            each (target, d_model).
        """
        attention, mlp = {}, {}
        gradient = torch.stack([end.reads for end in self.ends])
        for layer in reversed(range(min(int(self.levels.max()) + 1, self.local.n_layers))):
            attention[layer] = mlp[layer] = gradient
            if (skip := self.local.skip_map(layer)) is not None:
                scale = self.local.skip_scale(layer)[self.columns] * (self.levels > layer).to(skip)
                gradient = gradient + scale[:, None] * (gradient @ skip)
            if not self.adapter.parallel:
                attention[layer] = gradient
        return attention, {**mlp, -1: gradient}

    def split(
        self, parts: Tensor, keys: Tensor, reads: dict[int, Tensor]
    ) -> dict[tuple[str, str], EdgeHeads]:
        """Every edge as it is told, from (edge, layer, head) parts and the positions looked at."""
        heads = self.adapter.heads
        order = parts.abs().flatten(1).argsort(dim=1, descending=True, stable=True)[:, :LISTED]
        values = parts.flatten(1).gather(1, order).tolist()
        looks = keys.flatten(1).gather(1, order).tolist()
        by_layer = parts.sum(2).tolist()
        found = {}
        for row, flat in enumerate(order.tolist()):
            start, end = self.starts[self.sources[row]], self.ends[int(self.targets[row])]
            found[self.pairs[row]] = EdgeHeads(
                residual=self.residual(start, end, reads, int(self.targets[row])),
                by_layer=tuple(by_layer[row]),
                heads=tuple(
                    (*divmod(place, heads), part, key)
                    for place, part, key in zip(flat, values[row], looks[row], strict=True)
                    if part != 0
                ),
            )
        return found

    def residual(self, start: Source, end: Target, reads: dict[int, Tensor], place: int) -> float:
        """What no head carries of an edge."""
        if start.position != end.position:
            return 0.0
        met = [(write, reads[at][place]) for at, write in start.writes.items() if at < end.layer]
        return sum(float(write.cpu().double() @ read.cpu().double()) for write, read in met)
