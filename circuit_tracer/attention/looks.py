"""Why heads look: the scores behind the heads that a page lists, taken apart together.

An edge of a page names its strongest heads, each at (the target's position, the position it looks
at). The same head at the same pair carries many edges, so there are far fewer scores than heads
listed. One forward pass says what all heads read, and one sweep a layer and position takes all
vectors read there apart. What each score is made of is that of `qk`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch

from circuit_tracer.attention.ends import localise
from circuit_tracer.attention.scores import LUMPS, PARTS, attention_scales, parts_of
from circuit_tracer.circuit import Circuit
from circuit_tracer.errors import InputError
from circuit_tracer.facts import HeadScore
from circuit_tracer.graph import Graph
from circuit_tracer.local import Local
from circuit_tracer.models.queries import Comparison, Reading, Seen, compare, watch
from circuit_tracer.nodes import node_id
from circuit_tracer.replacement import ReplacementModel
from circuit_tracer.shapes import Float, Int, Tensor
from circuit_tracer.sweep import Sweep

Look = tuple[int, int, int, int]
"""(layer, head, query, key)"""

MOST_LOOKS = 200
MOST_WORK = {"cpu": 1.5e9, "cuda": 1.5e11}
"""Multiplications that go unasked into the scores of a page: about a tenth of a second."""

LISTED = 6


def edge_looks(
    model: ReplacementModel,
    graph: Graph,
    circuit: Circuit,
    most: int | None = None,
    local: Local | None = None,
) -> dict[Look, HeadScore]:
    """Why the heads look that carry most of a circuit's edges.

    Args:
        graph: the graph of this model that the circuit was pruned from.
        circuit: with `heads`; without them there is nothing to explain.
        most: how many scores; None for up to 200, fewer where they would cost more than a page is
            worth. Heads are taken by the loading that they carry over all edges that list them.
        local: the graph's prompt, localised (`ends.localise`); None does that here.

    Returns:
        (layer, head, query, key) → `HeadScore`, each with the six strongest sources of either side.

    Raises:
        InputError: `most` is negative, or the graph is of another model.
        ModelError: the model's queries and keys are not what its family is known to make.

    Example:
        >>> circuit = replace(circuit, heads=edge_heads(model, graph, circuit))
        >>> found = edge_looks(model, graph, circuit)
        >>> found[3, 1, 5, 4].score
    """
    if most is not None and most < 0:
        raise InputError(f"scores of {most} heads were asked for: give 0 or more")
    if most == 0 or not circuit.heads:
        return {}
    local = localise(model, graph) if local is None else local
    chosen = _chosen(local, circuit, most)
    found: dict[Look, HeadScore] = {}
    sweep = Sweep(local, local.index)
    seen = watch(local.adapter, sorted({look[0] for look in chosen}), local.forward.token_ids)
    with torch.no_grad():
        for layer, one in seen.items():
            found |= _layer(local, sweep, one, [look for look in chosen if look[0] == layer])
    return found


def _chosen(local: Local, circuit: Circuit, most: int | None) -> list[Look]:
    """Those that carry most, within what a page is worth."""
    targets = {node.id: node for node in circuit.nodes}
    carried: dict[Look, float] = defaultdict(float)
    for (_, target), split in circuit.heads.items():
        end = targets[target]
        counts = circuit.target_weights.get(target, max(end.influence, 0.0))
        whole = abs(split.residual) + sum(map(abs, split.by_layer)) or 1.0
        for layer, head, part, key in split.heads:
            carried[layer, head, end.position, key] += counts * abs(part) / whole
    ranked = sorted(carried, key=lambda look: (-carried[look], look))
    if most is not None:
        return ranked[:most]
    device = local.errors.device.type
    left, taken = MOST_WORK.get(device, MOST_WORK["cpu"]), []
    for look in ranked[:MOST_LOOKS]:
        left -= _work(local, look[0], look[2]) + _work(local, look[0], look[3])
        if left < 0:
            break
        taken.append(look)
    return taken


def _work(local: Local, layer: int, position: int) -> float:
    """Multiplications that take one vector of a head apart."""
    adapter, block = local.adapter, local.adapter.blocks[0]
    step = 2.0 * adapter.d_model * block.value[0].numel() * (position + 1)
    sources = adapter.d_model * len(local.index.cone(layer, position))
    return adapter.head_dim * (max(layer - 1, 0) * step + sources)


def _layer(local: Local, sweep: Sweep, seen: Seen, looks: Sequence[Look]) -> dict[Look, HeadScore]:
    """The scores of some heads of one layer."""
    layer = seen.layer
    scales = attention_scales(local, layer)
    compared = {look: compare(seen, look[1], (look[2], look[3]), scales) for look in looks}
    share = local.adapter.heads // local.adapter.kv_heads
    # A vector is the same for all looks that share its head and position: take it apart once.
    queries = _apart(sweep, layer, {(x[1], x[2]): c.query for x, c in compared.items()}, "query")
    keys = _apart(sweep, layer, {(x[1] // share, x[3]): c.key for x, c in compared.items()}, "key")
    return {
        look: _score(local, look, one, queries[look[1], look[2]], keys[look[1] // share, look[3]])
        for look, one in compared.items()
    }


def _apart(
    sweep: Sweep, layer: int, readings: Mapping[tuple[int, int], Reading], what: str
) -> dict[tuple[int, int], Float[Tensor, "source head_dim"]]:
    """By (head, position), what every source adds to the vector that is read there."""
    found: dict[tuple[int, int], Tensor] = {}
    for position in sorted({at for _, at in readings}):
        here = [place for place in readings if place[1] == position]
        parts = parts_of(sweep, layer, position, [readings[place] for place in here], what)
        found |= dict(zip(here, parts, strict=True))
    return found


def _score(
    local: Local, look: Look, compared: Comparison, queries: Tensor, keys: Tensor
) -> HeadScore:
    layer, _, query, key = look
    queries = queries * compared.scaling
    of_query = _side(local, layer, query, queries, keys.sum(0))
    of_key = _side(local, layer, key, keys, queries.sum(0))
    return HeadScore(
        score=compared.score,
        pattern=compared.pattern,
        query_side=of_query[0],
        key_side=of_key[0],
        query_kinds=of_query[1],
        key_kinds=of_key[1],
        query_rest=of_query[2],
        key_rest=of_key[2],
    )


def _side(
    local: Local, layer: int, position: int, parts: Tensor, other: Tensor
) -> tuple[tuple[tuple[str, float], ...], dict[str, float], int]:
    """(strongest sources of one side with their parts, all parts by kind, how many are left)."""
    index = local.index
    cone = index.cone(layer, position)
    values, present = parts @ other, parts.any(1)
    order = values.abs().argsort(descending=True, stable=True)
    best = order[present[order]][:LISTED]
    named = _named(local, cone, best.tolist())
    ends = torch.tensor([0, index.first_error, index.first_embedding, len(index)])
    borders = torch.searchsorted(cone, ends).tolist()
    spans = [slice(a, b) for a, b in zip(borders, borders[1:], strict=False)]
    spans += [slice(len(cone) + k, len(cone) + k + 1) for k in range(len(LUMPS))]
    kinds: dict[str, float] = {
        kind: float(values[span].sum())
        for kind, span in zip(PARTS, spans, strict=True)
        if present[span].any()
    }
    strongest = tuple(zip(named, values[best].tolist(), strict=True))
    return strongest, kinds, int(present.sum()) - len(strongest)


def _named(local: Local, cone: Int[Tensor, " source"], places: Sequence[int]) -> list[str]:
    """Node ids of sources by their place in a cone, and the names of lumps, which follow it."""
    names: list[str] = []
    for place in places:
        if place >= len(cone):
            names.append(LUMPS[place - len(cone)])
            continue
        kind, layer, at, number = local.index.locate(int(cone[place]))
        if kind == "embedding":
            number = int(local.forward.token_ids[at])
        names.append(node_id(kind, layer, at, number))
    return names
