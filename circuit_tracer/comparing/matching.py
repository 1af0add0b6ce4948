"""Matching: which features of several graphs are one and the same.

By default a feature is its (layer, id), which holds within one model and one set of transcoders.
Across checkpoints or sets, ids mean nothing: there, two features of one layer match when each is
the other's nearest by the cosine of what their decoders write (summed over the layers they write
to), and that cosine is at least `LEAST_SIMILARITY`. With more than two graphs such pairs are joined
by falling similarity, and a join that would put two features of one graph together is left out.
Neither graph is the measure of the other: the order of the graphs changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations

import torch

from circuit_tracer.comparing.profile import Profile
from circuit_tracer.errors import InputError
from circuit_tracer.replacement import ReplacementModel
from circuit_tracer.shapes import Float, Int, Tensor

LEAST_SIMILARITY = 0.5

Member = tuple[str, int]
"""(name of a graph, a thing of it)."""
Group = dict[str, int]
"""At most one thing of each graph, by name."""


def by_id(profiles: Sequence[Profile]) -> list[Group]:
    """Groups of equal (layer, id), in that order; a thing is a row of `Profile.keys`."""
    found: dict[tuple[int, int], Group] = {}
    for profile in profiles:
        for key, row in profile.places.items():
            found.setdefault(key, {})[profile.name] = row
    return [found[key] for key in sorted(found)]


def by_decoder(
    profiles: Sequence[Profile],
    models: Sequence[ReplacementModel],
    least: float = LEAST_SIMILARITY,
) -> list[Group]:
    """Groups of features that write alike, by layer.

    Raises:
        InputError: models of different widths or layer counts.
    """
    shapes = {(model.adapter.n_layers, model.adapter.d_model) for model in models}
    if len(shapes) > 1:
        said = ", ".join(f"{layers} layers of width {width}" for layers, width in sorted(shapes))
        raise InputError(
            f"decoders can only be compared between models of one shape; these have {said}"
        )
    groups: list[Group] = []
    for layer in range(profiles[0].graph.index.n_layers):
        rows = [(profile.keys[:, 0] == layer).nonzero()[:, 0] for profile in profiles]
        writes = [
            directions(model, layer, profile.keys[mine, 1])
            for profile, model, mine in zip(profiles, models, rows, strict=True)
        ]
        near: list[tuple[float, Member, Member]] = []
        for a, b in combinations(range(len(profiles)), 2):
            for similarity, i, j in mutual(writes[a] @ writes[b].T, least):
                one, other = int(rows[a][i]), int(rows[b][j])
                near.append((similarity, (profiles[a].name, one), (profiles[b].name, other)))
        members = [
            (profile.name, row)
            for profile, mine in zip(profiles, rows, strict=True)
            for row in mine.tolist()
        ]
        groups += joined(near, members)
    return groups


def directions(
    model: ReplacementModel, layer: int, ids: Int[Tensor, " feature"]
) -> Float[Tensor, "feature d_model"]:
    """What features write, summed over the layers they write to, as unit vectors."""
    transcoders = model.transcoders
    total = torch.zeros(len(ids), model.adapter.d_model, dtype=torch.float64)
    for written in range(layer, layer + len(transcoders.layer(layer).decoders)):
        total += transcoders.decoder_rows(layer, written, ids).cpu()
    return torch.nn.functional.normalize(total, dim=1)


def mutual(
    similarity: Float[Tensor, "one other"], least: float
) -> Iterable[tuple[float, int, int]]:
    """(similarity, row, column) of the pairs that are each other's nearest and at least `least`."""
    if 0 in similarity.shape:
        return []
    best, column = similarity.max(1)
    back = similarity.max(0).indices
    rows = torch.arange(len(similarity))
    good = ((back[column] == rows) & (best >= least)).nonzero()[:, 0].tolist()
    return [(float(best[row]), row, int(column[row])) for row in good]


def joined(pairs: Iterable[tuple[float, Member, Member]], members: Iterable[Member]) -> list[Group]:
    """Groups made by joining pairs, the most similar first, never two things of one graph.

    Args:
        members: everything that is to be in a group, alone if need be.

    Returns:
        Groups, ordered by their members; the order of the arguments does not matter.
    """
    group: dict[Member, dict[str, int]] = {
        member: {member[0]: member[1]} for member in sorted(set(members))
    }
    for _, one, other in sorted(pairs, key=lambda pair: (-pair[0], *sorted(pair[1:]))):
        a, b = group[one], group[other]
        if a is b or a.keys() & b.keys():
            continue
        a.update(b)
        for member in b.items():
            group[member] = a
    distinct = {id(each): each for each in group.values()}
    return sorted(distinct.values(), key=lambda each: sorted(each.items()))
