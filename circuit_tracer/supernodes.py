"""Supernodes: features of a circuit that do the same thing, found by what they read and write.

Two features are alike where the same sources drive them and they drive the same targets. Each has a
profile of edges in (signed shares) and one of edges out (signed, by the influence that passes), and
with the model at hand a third, what it writes into the residual stream; the similarity of two
features is the mean of the cosines. Groups grow by joining the two most similar ones (average
linkage) that stand at one position within a band of layers, until none is similar enough. A
joint that would make a loop of groups is left out, so that the merged circuit is one that paths run
through. Ties go by the order of nodes: the same circuit gives the same supernodes everywhere.

What comes of it is a proposal. `Supernode` is plain data: drop, add and rename at will, then
`Circuit.merge`.
"""

from __future__ import annotations

import heapq
import warnings
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from circuit_tracer.errors import InputError
from circuit_tracer.facts import FeatureNote
from circuit_tracer.nodes import Node
from circuit_tracer.shapes import Float, Tensor
from circuit_tracer.summary import percent

if TYPE_CHECKING:
    from circuit_tracer.circuit import Circuit
    from circuit_tracer.replacement import ReplacementModel

SIMILARITY = 0.6
BAND = 3
LEAST = 1e-300
"""What the length of a profile is taken to be at least, so that empty ones are like nothing."""
Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Supernode:
    """Features that belong together.

    Attributes:
        name: unique among those found with it; from labels, from what the features promote, or
            from the token and layers where they stand.
        members: most influential first.
        cohesion: mean similarity of all pairs of members, at most 1; 1 for one alone.
        share: share of all that drives the targets that passes any member.
    """

    name: str
    members: tuple[Node, ...]
    cohesion: float
    share: float

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """In a notebook: without its members, which fill a screen."""
        said = f"{len(self.members)} features, {percent(self.share)} passes, "
        printer.text(f"Supernode({self.name!r}: {said}cohesion {self.cohesion:.2f})")


def supernodes(
    circuit: Circuit,
    model: ReplacementModel | None,
    similarity: float,
    band: int,
    same_position: bool,
    min_size: int,
) -> list[Supernode]:
    """See `Circuit.supernodes`."""
    if not -1 <= similarity <= 1:
        raise InputError(f"similarity={similarity} is not a cosine: give a number from -1 to 1")
    for name, value in (("band", band), ("min_size", min_size)):
        if value < 1:
            raise InputError(f"{name}={value} allows nothing: give at least 1")
    places = [place for place, node in enumerate(circuit.nodes) if node.feature >= 0]
    places = [place for place in places if circuit.nodes[place].kind == "feature"]
    groups: dict[int, list[int]] = defaultdict(list)
    for place in places:
        groups[circuit.nodes[place].position if same_position else 0].append(place)
    profiles = _Profiles(circuit, _decoders(circuit, places, model))
    loops, found = _Loops(circuit), []
    for _, members in sorted(groups.items()):
        alike = profiles.similarities(members, band)
        joined = _joined(members, alike, profiles.layers, similarity, band, loops)
        found += [(group, alike) for group in joined if len(group.places) >= min_size]
    return _described(circuit, found)


class _Profiles:
    """What similarity is taken between."""

    def __init__(self, circuit: Circuit, decoders: Mapping[int, Array]) -> None:
        self.layers = [node.layer for node in circuit.nodes]
        self.decoders = decoders
        mass = np.array(
            [node.influence + circuit.target_weights.get(node.id, 0.0) for node in circuit.nodes]
        )
        sources, targets = circuit.sources.numpy(), circuit.targets.numpy()
        signed = circuit.shares.numpy() * np.sign(circuit.weights.double().numpy())
        self.inwards = sources, signed, circuit.wiring.inputs
        self.outwards = targets, signed * mass[targets], circuit.wiring.outputs

    def similarities(self, places: Sequence[int], band: int) -> Array:
        """(n, n) mean cosine of what both have; -2 for pairs that are not within `band` layers."""
        inwards, outwards = (self._cosines(places, *side) for side in (self.inwards, self.outwards))
        total = (inwards + outwards).to_dense().numpy()
        if self.decoders:
            rows = np.stack([self.decoders[place] for place in places])
            rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), LEAST)
            total += rows @ rows.T
        total /= 3 if self.decoders else 2
        layers = np.array([self.layers[place] for place in places], dtype=np.int16)
        total[np.abs(layers[:, None] - layers) >= band] = -2.0
        return total.round(9, out=total)  # what differs only by rounding is a tie

    def _cosines(
        self, places: Sequence[int], far: Array, values: Array, edges: Sequence[Sequence[int]]
    ) -> Tensor:
        """(n, n), sparse: cosines of rows, one column for every node at an edge's other end."""
        numbers = [np.array(edges[place], dtype=np.int64) for place in places]
        flat = np.concatenate(numbers)
        row = np.repeat(np.arange(len(places)), [len(part) for part in numbers])
        length = np.sqrt(np.bincount(row, values[flat] ** 2, len(places)))
        table = torch.sparse_coo_tensor(
            torch.from_numpy(np.stack([row, far[flat]])),
            torch.from_numpy(values[flat] / np.maximum(length[row], LEAST)),
            (len(places), len(self.layers)),
            check_invariants=False,
        )
        with warnings.catch_warnings():  # torch calls the format it takes on the way a beta
            warnings.simplefilter("ignore")
            return torch.sparse.mm(table, table.t())


def _decoders(
    circuit: Circuit, places: Sequence[int], model: ReplacementModel | None
) -> dict[int, Array]:
    """What each feature writes, summed over the layers it writes to."""
    if model is None:
        return {}
    by_layer: dict[int, list[int]] = defaultdict(list)
    for place in places:
        by_layer[circuit.nodes[place].layer].append(place)
    found: dict[int, Array] = {}
    transcoders = model.transcoders
    for layer, here in by_layer.items():
        if not 0 <= layer < transcoders.n_layers:
            raise InputError(f"the circuit has features in layer {layer}; {model!r} has none there")
        ids = torch.tensor([circuit.nodes[place].feature for place in here])
        size = len(transcoders.layer(layer).encoder)
        if int(ids.max()) >= size:
            raise InputError(
                f"the circuit has feature {int(ids.max())} of layer {layer}; the transcoder of "
                f"{model!r} has {size} features there: give the model that was traced"
            )
        written = range(layer, layer + len(transcoders.layer(layer).decoders))
        rows = [transcoders.decoder_rows(layer, to, ids).cpu().double() for to in written]
        total: Float[Tensor, "feature d_model"] = torch.stack(rows).sum(0)
        found.update(zip(here, total.numpy(), strict=True))
    return found


@dataclass(slots=True)
class _Group:
    """Places joined so far, and the lowest and highest of their layers. `rows` in similarities."""

    places: list[int]
    rows: list[int]
    low: int
    high: int


def _joined(
    places: Sequence[int],
    alike: Array,
    layers: Sequence[int],
    similarity: float,
    band: int,
    loops: _Loops,
) -> list[_Group]:
    """Average linkage, the most similar pair first."""
    groups = {
        row: _Group([place], [row], layers[place], layers[place])
        for row, place in enumerate(places)
    }
    link = alike.copy()
    firsts = np.argwhere(np.triu(link >= similarity, 1)).tolist()
    heap = [(-link[one, other], one, other) for one, other in firsts]
    heapq.heapify(heap)
    while heap:
        value, one, other = heapq.heappop(heap)
        if one not in groups or other not in groups or -value != link[one, other]:
            continue
        a, b = groups[one], groups[other]
        low, high = min(a.low, b.low), max(a.high, b.high)
        if high - low >= band or not loops.join(places[one], places[other]):
            continue
        mean = (len(a.rows) * link[one] + len(b.rows) * link[other]) / (len(a.rows) + len(b.rows))
        link[one] = link[:, one] = mean.round(9)
        groups[one] = _Group(a.places + b.places, a.rows + b.rows, low, high)
        del groups[other]
        for near in np.flatnonzero(link[one] >= similarity).tolist():
            if near in groups and near != one:
                pair = min(one, near), max(one, near)
                heapq.heappush(heap, (-link[one, near], *pair))
    return list(groups.values())


class _Loops:
    """Which groups lead to which, kept while groups are joined.

    Row p of `reached` has one bit for every place that paths lead to from the group p stands for.
    """

    def __init__(self, circuit: Circuit) -> None:
        wiring, size = circuit.wiring, len(circuit.nodes)
        self.above = [{wiring.targets[edge] for edge in edges} for edges in wiring.outputs]
        self.stands = list(range(size))
        self.reached = np.zeros((size, (size + 7) // 8), dtype=np.uint8)
        for place in reversed(wiring.order):
            targets = sorted(self.above[place])
            if targets:
                self.reached[place] = np.bitwise_or.reduce(self.reached[targets], axis=0)
                bits = np.array(targets)
                np.bitwise_or.at(self.reached[place], bits >> 3, _bit(bits))

    def join(self, one: int, other: int) -> bool:
        """Let `one` stand for both, unless a path leads from either to the other over a third."""
        one, other = self._of(one), self._of(other)
        above = [{self._of(place) for place in self.above[group]} for group in (one, other)]
        for start, end in ((0, other), (1, one)):
            between = sorted(above[start] - {one, other})
            if between and (self.reached[between, end >> 3] & _bit(end)).any():
                return False
        self.above[one] = (above[0] | above[1]) - {one, other}
        both = self.reached[one] | self.reached[other]
        leads = (self.reached[:, [one >> 3, other >> 3]] & _bit(np.array([one, other]))).any(1)
        self.reached[one] = both
        for place in (one, other):
            both = both.copy()
            both[place >> 3] |= _bit(place)
        self.reached[leads] |= both
        self.stands[other] = one
        return True

    def _of(self, place: int) -> int:
        while self.stands[place] != place:
            place = self.stands[place]
        return place


def _bit(place: Any) -> Any:
    return np.uint8(1) << np.asarray(place & 7, dtype=np.uint8)


def _described(circuit: Circuit, found: Sequence[tuple[_Group, Array]]) -> list[Supernode]:
    """Names and figures, those that most passes first."""
    groups = [-1] * len(circuit.nodes)
    for number, (group, _) in enumerate(found):
        for place in group.places:
            groups[place] = number
    shares = _passing(circuit, groups, len(found))
    order = sorted(range(len(found)), key=lambda number: (-shares[number], number))
    taken = {node.id for node in circuit.nodes}
    result = []
    for number in order:
        group, alike = found[number]
        members = sorted(group.places, key=lambda p: (-circuit.nodes[p].influence, p))
        pairs = alike[np.ix_(group.rows, group.rows)][np.triu_indices(len(group.rows), 1)]
        nodes = tuple(circuit.nodes[place] for place in members)
        name = _free(_name(nodes, circuit.notes, circuit.n_layers), taken)
        taken.add(name)
        cohesion = float(pairs.mean()) if len(pairs) else 1.0
        result.append(Supernode(name, nodes, cohesion, shares[number]))
    return result


def _passing(circuit: Circuit, groups: Sequence[int], count: int) -> list[float]:
    """Share of what drives the targets that passes each group: since no path that leaves a group
    comes back, what its members pass, less what they pass to each other."""
    wiring, shares = circuit.wiring, [0.0] * count
    out = wiring.leaving(circuit.goals(None))
    for group, share in zip(groups, out, strict=True):
        if group >= 0:
            shares[group] += share
    for source, target, share in zip(wiring.sources, wiring.targets, wiring.shares, strict=True):
        if groups[source] == groups[target] >= 0:
            shares[groups[source]] -= share * out[target]
    return shares


def _name(
    nodes: Sequence[Node], notes: Mapping[tuple[int, int], FeatureNote], n_layers: int
) -> str:
    """A label most of the influence shares; in the upper half of the model, where it means
    something, what is promoted most; else where the features stand."""
    labels: dict[str, float] = defaultdict(float)
    tokens: dict[str, float] = defaultdict(float)
    for node in nodes:
        note = notes.get((node.layer, node.feature), FeatureNote())
        if note.label:
            labels[note.label] += node.influence
        for token, logit in note.promoted:
            tokens[token.strip()] += node.influence * max(logit, 0.0)
    if labels:
        return _most(labels)
    layers = sorted({node.layer for node in nodes})
    span = f"L{layers[0]}" + (f"–{layers[-1]}" if len(layers) > 1 else "")
    position = nodes[0].position
    if tokens and sum(layers) / len(layers) >= n_layers / 2:
        return f'says "{_most(tokens)}" {span}@{position}'
    return f'at "{nodes[0].token.strip()}" {span}@{position}'


def _most(weights: Mapping[str, float]) -> str:
    return min(weights, key=lambda text: (-weights[text], text))


def _free(name: str, taken: Collection[str]) -> str:
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name} ({number})"
    return free
