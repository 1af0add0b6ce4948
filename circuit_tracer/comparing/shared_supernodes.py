"""Supernodes across graphs: groups of features that several circuits have, each in its own form.

Each circuit proposes its supernodes (`Circuit.supernodes`). Two of different circuits match when
each is the other's nearest by the features they have in common, over the features either has, and
that is at least `LEAST_COMMON`. With more than two graphs pairs are joined as `matching.joined`
says: the order of the graphs changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch

from circuit_tracer.circuit import Circuit
from circuit_tracer.comparing.matching import Member, joined, mutual
from circuit_tracer.comparing.profile import Key
from circuit_tracer.supernodes import Supernode

LEAST_COMMON = 1 / 3


@dataclass(frozen=True)
class SharedSupernode:
    """Supernodes of several graphs that are one.

    Attributes:
        members: by name of the graph.
        places: by name of the graph, of each member, its place in `Comparison.features` and its
            position in the prompt.
        common: places in `Comparison.features` of what all of them hold, most influential first.
        overlap: the least share of common features among the pairs of them.
    """

    members: dict[str, Supernode]
    places: dict[str, tuple[tuple[int, int], ...]]
    common: tuple[int, ...]
    overlap: float

    def to_plain(self) -> dict[str, Any]:
        """As JSON values."""
        members = {
            name: {
                "name": node.name,
                "share": node.share,
                "cohesion": node.cohesion,
                "features": [list(place) for place in self.places[name]],
            }
            for name, node in self.members.items()
        }
        return {"members": members, "common": list(self.common), "overlap": self.overlap}


def shared_supernodes(
    circuits: Mapping[str, Circuit], rows: Mapping[tuple[str, Key], int]
) -> tuple[SharedSupernode, ...]:
    """Those that at least two graphs have, the most widely shared first, then the largest.

    Args:
        circuits: by name of the graph.
        rows: (name, (layer, id)) → place of the matched feature.
    """
    found = {name: circuits[name].supernodes() for name in sorted(circuits)}
    places = {
        (name, number): tuple(
            (rows[name, (node.layer, node.feature)], node.position) for node in one.members
        )
        for name, each in found.items()
        for number, one in enumerate(each)
    }
    held = {member: frozenset(row for row, _ in each) for member, each in places.items()}
    pairs: list[tuple[float, Member, Member]] = []
    for a, b in combinations(found, 2):
        table = [
            [_common((held[a, i], held[b, j])) for j in range(len(found[b]))]
            for i in range(len(found[a]))
        ]
        shape = len(found[a]), len(found[b])
        alike = torch.tensor(table, dtype=torch.float64).reshape(shape)
        pairs += [(share, (a, i), (b, j)) for share, i, j in mutual(alike, LEAST_COMMON)]
    made = []
    for group in joined(pairs, [member for pair in pairs for member in pair[1:]]):
        sets = [held[member] for member in sorted(group.items())]
        least = min(_common(pair) for pair in combinations(sets, 2))
        common = tuple(sorted(frozenset.intersection(*sets)))
        if common:
            members = {name: found[name][number] for name, number in sorted(group.items())}
            where = {member[0]: places[member] for member in sorted(group.items())}
            made.append(SharedSupernode(members, where, common, least))
    return tuple(sorted(made, key=lambda one: (-len(one.members), -len(one.common), one.common)))


def _common(sets: Sequence[frozenset[int]]) -> float:
    """What two sets share of what either has."""
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])
