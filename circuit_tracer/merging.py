"""Parts of a circuit, and nodes merged into one.

`subset` keeps some nodes; all that ran through others is lost and counts as error, so scores are
worked out anew. `merge` makes one node of several and loses nothing: weights of parallel edges are
summed, and shares are set so that exactly as much arrives everywhere as before. With I the
influence along the circuit's edges (`Wiring.leaving` the targets) and N its shares, for a group S

    share[t <- S] = sum over m in S of N[t, m]
    share[S <- s] = sum over m in S of I_m N[m, s]  /  (sum over t outside S, m in S of I_t N[t, m])

Edges within a group are inside it and seen no more. What was two paths through different members is
then one path through the group: a merged path says what the group as a whole hands on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from circuit_tracer.errors import InputError
from circuit_tracer.influence import ROUNDING, Scores
from circuit_tracer.nodes import Node

if TYPE_CHECKING:
    from circuit_tracer.circuit import Circuit, Which

ENDS = ("embedding", "logit")
Ends = tuple[tuple[str, ...], tuple[str, ...]]


def cut_to(circuit: Circuit, kept: Iterable[int]) -> Circuit:
    """The nodes at some places and the edges between them; all else, scores too, as it is."""
    mask = torch.zeros(len(circuit.nodes), dtype=torch.bool)
    mask[list(kept)] = True
    edges = mask[circuit.sources] & mask[circuit.targets]
    renumber = mask.cumsum(0) - 1
    nodes = tuple(circuit.nodes[place] for place in mask.nonzero()[:, 0].tolist())
    ids = {node.id for node in nodes}
    return replace(
        circuit,
        nodes=nodes,
        sources=renumber[circuit.sources[edges]],
        targets=renumber[circuit.targets[edges]],
        weights=circuit.weights[edges],
        shares=circuit.shares[edges],
        members={name: found for name, found in circuit.members.items() if name in ids},
    )


def subset(circuit: Circuit, nodes: Which, ends: bool) -> Circuit:
    """See `Circuit.subset`."""
    kept = set(circuit.places(nodes))
    if ends:
        kept |= {place for place, node in enumerate(circuit.nodes) if node.kind in ENDS}
    part = cut_to(circuit, kept)
    return replace(part, scores=rescored(part), part_of=None)


def rescored(circuit: Circuit) -> Scores:
    """Scores with everything that is not in the circuit merged into the errors.

    How that divides over layers is not known, so `error_share_by_layer` is empty. A target without
    inputs counts as explained by errors alone.
    """
    goals = circuit.goals(None)
    out = circuit.wiring.leaving(goals)
    mass = dict.fromkeys(("feature", "error", "embedding", "logit"), 0.0)
    for node, share in zip(circuit.nodes, out, strict=True):
        mass[node.kind] += share
    if not goals:
        return Scores(0.0, 0.0, 0.0, (), 0.0, 0.0, 0.0)
    hidden = 1 - mass["embedding"] - mass["error"]
    hidden = hidden if hidden > ROUNDING else 0.0
    inside = mass["feature"]
    travelled = inside + mass["embedding"] + mass["error"] + hidden
    return Scores(
        replacement=mass["embedding"],
        completeness=(inside + mass["embedding"]) / (inside + 1),
        completeness_ct=1 - (mass["error"] + hidden) / (travelled + 1),
        error_share_by_layer=(),
        unexpanded_share=0.0,
        pruned_share=hidden,
        mean_path_length=travelled,
    )


def renamed(circuit: Circuit, labels: Mapping[str | Node, str]) -> Circuit:
    """See `Circuit.rename`."""
    wanted = {circuit.places(which)[0]: label for which, label in labels.items()}
    nodes = tuple(
        replace(node, label=wanted[place]) if place in wanted else node
        for place, node in enumerate(circuit.nodes)
    )
    return replace(circuit, nodes=nodes)


def merge(circuit: Circuit, groups: Mapping[str, Which]) -> Circuit:
    """See `Circuit.merge`."""
    named = {name: circuit.places(nodes) for name, nodes in groups.items()}
    _check(circuit, named)
    group = list(range(len(circuit.nodes)))
    for places in named.values():
        for place in places:
            group[place] = places[0]
    lumps = {places[0]: _Lump(name, places) for name, places in named.items()}
    firsts = sorted(set(group))
    renumber = {first: number for number, first in enumerate(firsts)}
    edges = _edges(circuit, group, lumps)
    renames = {circuit.nodes[m].id: x.name for x in lumps.values() for m in x.places}
    merged = replace(
        circuit,
        nodes=tuple(
            _node(circuit, lumps[first], edges.inside[first])
            if first in lumps
            else circuit.nodes[first]
            for first in firsts
        ),
        sources=torch.tensor([renumber[source] for _, source in edges.ends], dtype=torch.long),
        targets=torch.tensor([renumber[target] for target, _ in edges.ends], dtype=torch.long),
        weights=torch.tensor(edges.weights, dtype=circuit.weights.dtype),
        shares=torch.tensor(edges.shares, dtype=torch.float64),
        target_weights=_summed(circuit.target_weights, renames),
        ignored=_summed(circuit.ignored, renames),
        members={
            **{name: nodes for name, nodes in circuit.members.items() if name not in renames},
            **{x.name: _members(circuit, x.places) for x in lumps.values()},
        },
        part_of=_renamed(circuit.part_of, renames),
    )
    _check_order(merged, set(named))
    return merged


@dataclass(frozen=True, slots=True)
class _Lump:
    """A group to be: its name, and the places of its members, ascending."""

    name: str
    places: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Edges:
    """Edges after merging: (target, source) as first places of their groups, ascending.

    Attributes:
        inside: for the first place of a group, what passes along edges within it, in the units of
            `Node.influence`.
    """

    ends: list[tuple[int, int]]
    weights: list[float]
    shares: list[float]
    inside: dict[int, float]


def _edges(circuit: Circuit, group: Sequence[int], lumps: Mapping[int, _Lump]) -> _Edges:
    wiring, goals = circuit.wiring, circuit.goals(None)
    out = wiring.leaving(goals)
    throughput = {first: sum(goals.get(m, 0.0) for m in x.places) for first, x in lumps.items()}
    inside = dict.fromkeys(lumps, 0.0)
    weight: dict[tuple[int, int], float] = {}
    share: dict[tuple[int, int], float] = {}
    flow: dict[tuple[int, int], float] = {}
    weights = circuit.weights.tolist()
    for number, (source, target) in enumerate(zip(wiring.sources, wiring.targets, strict=True)):
        key, part = (group[target], group[source]), wiring.shares[number]
        if key[0] == key[1]:
            inside[key[0]] += part * circuit.nodes[target].influence
            continue
        weight[key] = weight.get(key, 0.0) + weights[number]
        share[key] = share.get(key, 0.0) + part
        flow[key] = flow.get(key, 0.0) + part * out[target]
        if key[1] in throughput:
            throughput[key[1]] += part * out[target]
    ends = sorted(weight)
    shares = []
    for key in ends:
        if key[0] not in lumps:
            shares.append(share[key])
        elif throughput[key[0]] > 0:
            shares.append(flow[key] / throughput[key[0]])
        else:  # nothing passes the group: the mean over its members
            shares.append(share[key] / len(lumps[key[0]].places))
    return _Edges(ends, [weight[key] for key in ends], shares, inside)


def _node(circuit: Circuit, lump: _Lump, inside: float) -> Node:
    """The node that stands for a group, where its most influential member stands.

    Its influence is what reaches it from outside: that of the members less what they pass on to
    each other.
    """
    members = [circuit.nodes[place] for place in lump.places]
    leading = max(
        members, key=lambda node: (node.influence, circuit.target_weights.get(node.id, 0.0))
    )
    probabilities = [node.probability for node in members if node.probability is not None]
    same = len({node.token for node in members}) == 1
    return Node(
        id=lump.name,
        kind=leading.kind,
        layer=leading.layer,
        position=leading.position,
        feature=-1,
        token=leading.token if same or leading.kind in ("feature", "error") else lump.name,
        influence=max(0.0, sum(node.influence for node in members) - inside),
        label=lump.name,
        probability=sum(probabilities) if len(probabilities) == len(members) else None,
    )


def _check(circuit: Circuit, named: Mapping[str, tuple[int, ...]]) -> None:
    owner: dict[int, str] = {}
    for name, places in named.items():
        kinds = sorted({circuit.nodes[place].kind for place in places})
        if len(kinds) > 1:
            raise InputError(f"{name!r} would mix {' and '.join(kinds)} nodes; merge one kind")
        for place in places:
            if place in owner:
                raise InputError(
                    f"{circuit.nodes[place].id} is in both {owner[place]!r} and {name!r}; "
                    "a node is merged once"
                )
            owner[place] = name
    for name in named:
        if not name.strip():
            raise InputError("a merged node needs a name that is not blank")
        if any(node.id == name for k, node in enumerate(circuit.nodes) if owner.get(k) != name):
            raise InputError(f"there is a node {name!r} already; give the merged one another name")


def _check_order(merged: Circuit, names: set[str]) -> None:
    """Raise where a group both leads to and comes from a node outside it."""
    if len(merged.wiring.order) == len(merged.nodes):
        return
    left = set(range(len(merged.nodes))) - set(merged.wiring.order)
    lumps = sorted(place for place in left if merged.nodes[place].id in names)
    for place in lumps:
        after = merged.wiring.reach(
            {merged.wiring.targets[e] for e in merged.wiring.outputs[place]}
        )
        if place in after:
            loop = (after & merged.wiring.reach([place], down=True)) - {place}
            among = ", ".join(merged.nodes[other].id for other in sorted(loop)[:5])
            raise InputError(
                f"{merged.nodes[place].id!r} would both lead to and come from {among}: add what "
                "lies between its members, or split it by layer"
            )


def _members(circuit: Circuit, places: Iterable[int]) -> tuple[Node, ...]:
    """The nodes at some places, those merged before taken apart."""
    nodes = (circuit.nodes[place] for place in places)
    return tuple(one for node in nodes for one in circuit.members.get(node.id, (node,)))


def _summed(values: Mapping[str, float], renames: Mapping[str, str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, value in values.items():
        new = renames.get(name, name)
        found[new] = found.get(new, 0.0) + value
    return found


def _renamed(ends: Ends | None, renames: Mapping[str, str]) -> Ends | None:
    if ends is None:
        return None
    starts, goals = (
        tuple(dict.fromkeys(renames.get(name, name) for name in side)) for side in ends
    )
    return starts, goals
