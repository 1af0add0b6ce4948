"""Roles: features that do the same job in two graphs without being the same feature.

The role of a feature is where its influence comes from and where it goes: shares of its inputs from
each feature that both graphs have, from the words and from the errors; shares of its outputs to
each such feature and to the output. Two features that are each active in one of the graphs only are
aligned when each is the other's nearest by the cosine of these shares, and it is at least
`LEAST_ALIKE`. With more than two graphs, pairs are joined as `matching.joined` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch

from circuit_tracer.comparing.matching import Group, Member, joined, mutual
from circuit_tracer.shapes import Bool, Float, Tensor

LEAST_ALIKE = 0.7


@dataclass(frozen=True)
class Role:
    """Features of several graphs in one role.

    Attributes:
        members: by name of the graph, its feature's (layer, id).
        similarity: the least cosine among the pairs of them.
        influence: the sum of their influence shares.
    """

    members: dict[str, tuple[int, int]]
    similarity: float
    influence: float


def aligned(
    names: Sequence[str],
    kept: Bool[Tensor, "feature graph"],
    active: Bool[Tensor, "feature graph"],
    flows: Sequence[Float[Tensor, "target source"]],
) -> list[tuple[Group, float]]:
    """Groups of features in one role, at least two, with their least similarity.

    Args:
        names: of the graphs.
        kept: features in each circuit: only these are given roles.
        active: features active in each graph.
        flows: of each graph, as `Profile.flows`.
    """
    pairs: list[tuple[float, Member, Member]] = []
    alike: dict[tuple[Member, Member], float] = {}
    order = sorted(range(len(names)), key=lambda k: names[k])
    for a, b in combinations(order, 2):
        both = active[:, a] & active[:, b]
        one = (kept[:, a] & ~active[:, b]).nonzero()[:, 0]
        other = (kept[:, b] & ~active[:, a]).nonzero()[:, 0]
        similarity = _role(flows[a], one, both) @ _role(flows[b], other, both).T
        for i, row in enumerate(one.tolist()):
            for j, column in enumerate(other.tolist()):
                alike[(names[a], row), (names[b], column)] = float(similarity[i, j])
        pairs += [
            (value, (names[a], int(one[i])), (names[b], int(other[j])))
            for value, i, j in mutual(similarity, LEAST_ALIKE)
        ]
    found = []
    for group in joined(pairs, [member for pair in pairs for member in pair[1:]]):
        members = sorted(group.items())
        least = min(
            (alike.get(pair, 0.0) for pair in combinations(members, 2)),
            default=0.0,
        )
        if len(members) > 1 and least >= LEAST_ALIKE:
            found.append((group, least))
    return found


def _role(
    flows: Float[Tensor, "target source"], rows: Tensor, both: Tensor
) -> Float[Tensor, "feature share"]:
    """Unit vectors of input and output shares."""
    size = len(both)
    ends = torch.tensor([True, True, False])
    inputs = flows[:size][rows][:, torch.cat([both, ends])]
    outputs = flows[:, :size][:, rows][torch.cat([both, ends[:1]])].T
    halves = (inputs / inputs.sum(1, keepdim=True), outputs / outputs.sum(1, keepdim=True))
    whole = torch.cat([half.nan_to_num(0.0) for half in halves], 1)
    return torch.nn.functional.normalize(whole, dim=1)
