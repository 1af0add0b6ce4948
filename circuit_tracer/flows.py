"""What passes where: sums over all paths of a circuit, each exact and none counted twice.

The share of a path is the product of its edges' shares; sums of them are taken in one or two
passes over the edges (`paths.Wiring`), never by listing paths.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from circuit_tracer.errors import InputError
from circuit_tracer.nodes import Node
from circuit_tracer.summary import percent

if TYPE_CHECKING:
    from circuit_tracer.circuit import Circuit, Which

By = Literal["layer", "position", "token"]


@dataclass(frozen=True, slots=True)
class Carrier:
    """A node that carries something on.

    Attributes:
        arriving: summed share of all paths from the source to the node: what part of what drives
            it comes from there.
        share: of all that flows from the source to the target, the part that passes the node.
    """

    node: Node
    arriving: float
    share: float

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """In a notebook: the node by id and label."""
        said = f"{percent(self.arriving)} comes from there, carries {percent(self.share)}"
        printer.text(f"Carrier({self.node.id} {self.node.label!r}: {said})")


@dataclass(frozen=True, slots=True)
class Ancestor:
    """A node that several others come from.

    Attributes:
        influences: its summed share of each of them, in the order they were given.
        product: of the influences, what ancestors are ranked by; `least` the smallest of them.
    """

    node: Node
    influences: tuple[float, ...]

    @property
    def product(self) -> float:
        return math.prod(self.influences)

    @property
    def least(self) -> float:
        return min(self.influences)


@dataclass(frozen=True, slots=True)
class Contribution:
    """What one layer, position or token adds to a target, in shares of all that drives it.

    Attributes:
        group: the layer (-1 for embeddings), the position, or the token's text.
        inputs: what starts there at embeddings; `errors` what starts there at error nodes. Over all
            groups these two and what was pruned away sum to 1.
        passing: what passes any node there, those two included. Over groups this overlaps.
        n_nodes: how many nodes of the circuit are there, targets aside.
    """

    group: int | str
    inputs: float
    errors: float
    passing: float
    n_nodes: int


def bottlenecks(circuit: Circuit, k: int) -> list[tuple[Node, float]]:
    """See `Circuit.bottlenecks`."""
    goals = circuit.goals(None)
    into, out = circuit.wiring.arriving(circuit.starts(None)), circuit.wiring.leaving(goals)
    everything = sum(into[place] * part for place, part in goals.items())
    through = [
        (node, into[place] * out[place] / everything if everything > 0 else 0.0)
        for place, node in enumerate(circuit.nodes)
        if node.kind == "feature"
    ]
    return heapq.nsmallest(k, through, key=lambda pair: -pair[1])


def carriers(
    circuit: Circuit, source: Which, position: int, target: Which | None, k: int
) -> list[Carrier]:
    """See `Circuit.carriers`."""
    starts, goals = circuit.starts(source), circuit.goals(target)
    into, out = circuit.wiring.arriving(starts), circuit.wiring.leaving(goals)
    everything = sum(into[place] * part for place, part in goals.items())
    found = [
        Carrier(node, into[place], into[place] * out[place] / everything if everything > 0 else 0.0)
        for place, node in enumerate(circuit.nodes)
        if node.position == position
        and into[place] > 0
        and place not in starts
        and place not in goals
    ]
    return heapq.nsmallest(k, found, key=lambda carrier: (-carrier.share, -carrier.arriving))


def common_ancestors(circuit: Circuit, descendants: Sequence[Which], k: int) -> list[Ancestor]:
    """See `Circuit.common_ancestors`."""
    if len(descendants) < 2:
        raise InputError(f"common ancestors are of two nodes or more; got {len(descendants)}")
    goals = [circuit.goals(one) for one in descendants]
    among = set().union(*goals)
    sums = [circuit.wiring.leaving(ends) for ends in goals]
    found = [
        Ancestor(node, influences)
        for place, node in enumerate(circuit.nodes)
        if place not in among and min(influences := tuple(part[place] for part in sums)) > 0
    ]
    return heapq.nsmallest(k, found, key=lambda ancestor: -ancestor.product)


def influence_of(circuit: Circuit, some: Which, target: Which | None) -> float:
    """See `Circuit.influence_of`."""
    groups = [-1] * len(circuit.nodes)
    for place in circuit.places(some):
        groups[place] = 0
    return circuit.wiring.passing(circuit.goals(target), groups, 1)[0]


def contributions(circuit: Circuit, by: By, target: Which | None) -> list[Contribution]:
    """See `Circuit.contributions`."""
    if by not in get_args(By):
        raise InputError(f"contributions come by {', '.join(get_args(By))}, not by {by!r}")
    goals = circuit.goals(target)
    keys = [None if node.kind == "logit" else _group(node, by) for node in circuit.nodes]
    for place in goals:
        keys[place] = None
    names = list(dict.fromkeys(key for key in keys if key is not None))
    numbers = {name: number for number, name in enumerate(names)}
    groups = [-1 if key is None else numbers[key] for key in keys]
    passing, out = circuit.wiring.passing(goals, groups, len(names)), circuit.wiring.leaving(goals)
    inputs, errors, counts = ([0.0] * len(names) for _ in range(3))
    for node, group, share in zip(circuit.nodes, groups, out, strict=True):
        if group >= 0:
            counts[group] += 1
            inputs[group] += share if node.kind == "embedding" else 0.0
            errors[group] += share if node.kind == "error" else 0.0
    table = [
        Contribution(name, inputs[k], errors[k], passing[k], int(counts[k]))
        for k, name in enumerate(names)
    ]
    if by == "token":
        return sorted(table, key=lambda row: -row.passing)
    return sorted(table, key=lambda row: int(row.group))


def _group(node: Node, by: By) -> int | str:
    return node.token if by == "token" else node.layer if by == "layer" else node.position
