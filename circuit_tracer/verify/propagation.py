"""What the graph says an ablation does to later features, against what it does.

Said: with a feature's writing gone, the pre-activation of t falls by A[t, s], and by what comes by
way of the features between, each answering in proportion (its gate stays as it is):

    direct   Δ = −A[:, s]           along all paths   Δ = −(A + A² + …)[:, s],   A per unit of the
                                                      source's activation

Measured: attention patterns and the MLP outputs up to the ablated layer held, everything above
recomputed by the model's own MLPs, features encoded again. Both are compared as changes of
activations, by the number of layers on.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from circuit_tracer.card import StepsOn
from circuit_tracer.patched import Hold
from circuit_tracer.shapes import Float, Int, Tensor
from circuit_tracer.verify.subject import Reading, Subject


def predicted(
    subject: Subject, rows: Int[Tensor, " source"], through: bool = True
) -> Float[Tensor, "node source"]:
    """Change of every row's value as sources are taken away, one a column.

    Args:
        rows: feature rows of the sources.
        through: also by way of other features; False for edges alone.
    """
    edges, pre = subject.graph.edges, subject.pre.cpu()
    blocks = sorted(edges.blocks, key=lambda block: (block.layer, block.position))
    dtype = blocks[0].values.dtype
    relative = torch.zeros(len(edges.index), len(rows), dtype=dtype)
    relative[rows, torch.arange(len(rows))] = -1
    change = torch.zeros_like(relative)
    for block in blocks:
        change[block.rows] = block.values @ relative[edges.columns(block)]
        inner = block.rows[block.rows < edges.index.n_features]
        if through and len(inner):
            relative[inner] += change[inner] / pre[inner, None].to(dtype)
    return change


@dataclass(eq=False)
class _Sums:
    """Running sums of the comparisons so many layers on."""

    cosines: list[float] = field(default_factory=list)
    direct: list[float] = field(default_factory=list)
    wrong: float = 0.0
    inside: float = 0.0
    outside: float = 0.0


class Propagation:
    """Collects comparisons, ablation by ablation."""

    def __init__(self, subject: Subject, rows: Int[Tensor, " source"]):
        self.subject = subject
        self.place = {row: k for k, row in enumerate(rows.tolist())}
        slope = (subject.activations / subject.pre).cpu()[:, None]
        n = subject.graph.index.n_features
        self.all = predicted(subject, rows)[:n] * slope
        self.direct = predicted(subject, rows, through=False)[:n] * slope
        self.sums: dict[int, _Sums] = {}

    def add(self, layer: int, rows: Int[Tensor, " source"], reading: Reading) -> None:
        """Ablations of features of one layer, as the constrained pass shows them."""
        subject, index = self.subject, self.subject.graph.index
        columns = [self.place[row] for row in rows.tolist()]
        known = subject.graph.expanded[: index.n_features]
        for above in range(layer + 1, index.n_layers):
            mine = torch.arange(index.n_features)[index.feature_rows(above)]
            mine = mine[known[mine]]
            measured, everything = self._measured(above, mine, reading)
            self._compare(above - layer, measured, everything, mine, columns)

    def _measured(
        self, layer: int, rows: Int[Tensor, " target"], reading: Reading
    ) -> tuple[Float[Tensor, "source target"], Float[Tensor, " source"]]:
        """(changes of some features' activations, summed squares of all features' changes)."""
        subject, sets = self.subject, self.subject.model.transcoders
        sites = reading.sites[layer]
        cells, values = sets.encode(layer, sites.flatten(0, 1))
        new = values.new_zeros(sites.shape[0] * sites.shape[1], len(sets.layer(layer).encoder))
        new[cells[:, 0], cells[:, 1]] = values
        moved = new.view(*sites.shape[:2], -1) - subject.clean.activations(layer)
        moved = moved * subject.kept.to(moved)[:, None]
        positions, ids = subject.features[rows, 1:].T
        return moved[:, positions, ids].cpu(), moved.flatten(1).square().sum(1).cpu()

    def _compare(
        self,
        steps: int,
        measured: Float[Tensor, "source target"],
        everything: Float[Tensor, " source"],
        rows: Int[Tensor, " target"],
        columns: list[int],
    ) -> None:
        sums = self.sums.setdefault(steps, _Sums())
        said, direct = self.all[rows][:, columns].T, self.direct[rows][:, columns].T
        for k in range(len(columns)):
            size = float(measured[k].norm())
            if size > 0:
                sums.cosines.append(cosine(said[k], measured[k]))
                sums.direct.append(cosine(direct[k], measured[k]))
            sums.wrong += float((said[k] - measured[k]).square().sum())
            sums.inside += size**2
            sums.outside += float(everything[k]) - size**2

    def steps(self) -> tuple[StepsOn, ...]:
        """Results by the number of layers on; those where nothing moved are left out."""
        return tuple(
            StepsOn(
                layers=steps,
                ablations=len(sums.cosines),
                cosine=sum(sums.cosines) / len(sums.cosines),
                direct_cosine=sum(sums.direct) / len(sums.direct),
                nmse=sums.wrong / sums.inside,
                outside=max(0.0, sums.outside / (sums.inside + sums.outside)),
            )
            for steps, sums in sorted(self.sums.items())
            if sums.cosines
        )


def edge_error(subject: Subject, rows: Int[Tensor, " source"]) -> float:
    """Normalised squared error of the edges themselves: with patterns, norms and MLPs held the
    model is linear, and what ablations change in every row is its edge, to rounding."""
    index, n_layers = subject.graph.index, subject.graph.index.n_layers
    hold = Hold(frozenset(range(n_layers)), patterns=True, norms=True)
    reading = subject.read(subject.removal(rows.tolist()), hold)
    said = predicted(subject, rows, through=False)
    targets = (reading.values - subject.before.values).cpu()
    measured = torch.zeros_like(said)
    measured[index.first_target :] = targets.T.to(said)
    for layer in range(n_layers):
        moved = reading.sites[layer] - subject.forward.mlp_inputs[layer]
        for position in range(index.n_positions):
            run = index.feature_rows(layer, position, position + 1)
            ids = index.features[run.start : run.stop, 2]
            x = subject.forward.mlp_inputs[layer][position].expand(len(ids), -1)
            vectors, _ = subject.model.transcoders.read_rows(layer, ids, x)
            measured[run.start : run.stop] = (vectors @ moved[:, position].T).to(said)
    wanted = subject.graph.expanded
    wrong, size = (said - measured)[wanted].square().sum(), measured[wanted].square().sum()
    return float(wrong / size) if size > 0 else 0.0


def cosine(a: Float[Tensor, " n"], b: Float[Tensor, " n"]) -> float:
    """Cosine of two vectors; 0 where one is zero."""
    sizes = float(a.norm()) * float(b.norm())
    return float(a @ b) / sizes if sizes > 0 else 0.0
