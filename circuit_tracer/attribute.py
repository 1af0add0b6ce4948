"""Attribution: which targets get a row, in which order, within which budget.

The sweep goes down the layers. When it reaches one, every row above is complete, so the influence
of that layer's features is exact there, and choosing which of them to expand needs no ranking
rounds. Features that are not expanded stay in the graph as sources; the influence that stops in
them is counted as unexplained by the scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from circuit_kernels.choice import Choice, edge_rows
from circuit_tracer.edges import EdgeRows, RowBlock
from circuit_tracer.errors import InputError
from circuit_tracer.estimate import (
    MaxFeatures,
    check_memory,
    chunk_elements,
    estimate,
    resolve_limit,
)
from circuit_tracer.influence import strips
from circuit_tracer.local import Local
from circuit_tracer.nodes import NodeIndex
from circuit_tracer.shapes import Int, Tensor
from circuit_tracer.sweep import Group, Sweep, Terms
from circuit_tracer.targets import Direction

Progress = Callable[[float, str], None]


def attribute(
    local: Local,
    directions: Sequence[Direction],
    max_features: MaxFeatures = "auto",
    kernels: Choice = "auto",
    progress: Progress | None = None,
) -> EdgeRows:
    """Edge rows of the directions and of active features.

    Args:
        local: the prompt's local replacement model.
        directions: what to explain.
        max_features: how many features get a row: all (None), at most a number, or "auto": all if
            that is estimated to take less than `AUTO_SECONDS`, else as many as fit into it.
        kernels: "auto", "reference" or "triton".
        progress: called with (share done, message).

    Raises:
        InputError: `max_features` below 0, kernels that cannot run here.
        MemoryBudgetError: the run would not fit into memory.
    """
    device = local.errors.device
    try:
        kernel = edge_rows(kernels, device)
    except ValueError as error:
        raise InputError(str(error)) from error
    positions = torch.tensor([direction.position for direction in directions])
    index = NodeIndex(local.features, local.n_layers, local.n_positions, positions)
    limit = resolve_limit(local, len(directions), max_features)
    check_memory(estimate(local, len(directions), limit, rate=None), device)
    with torch.no_grad():
        sweep = Sweep(local, index, kernel)
        done = _Rows(index, directions, chunk_elements(device))
        done.expand(sweep, local.n_layers, _logit_groups(index, directions))
        for layer in reversed(range(local.n_layers)):
            chosen = done.choose(layer, limit)
            done.expand(sweep, layer, _feature_groups(local, layer, chosen), progress, limit)
    return done.edges()


def _logit_groups(index: NodeIndex, directions: Sequence[Direction]) -> list[Group]:
    groups = []
    for position in sorted({direction.position for direction in directions}):
        numbers = [i for i, d in enumerate(directions) if d.position == position]
        here = [directions[i] for i in numbers]
        like = here[0].vector
        groups.append(
            Group(
                position=position,
                rows=torch.tensor([index.target_row(i) for i in numbers]),
                reads=torch.stack([d.vector for d in here]),
                bias=torch.tensor([d.bias for d in here], dtype=like.dtype, device=like.device),
                value=torch.tensor([d.value for d in here], dtype=like.dtype, device=like.device),
            )
        )
    return groups


def _feature_groups(local: Local, layer: int, rows: Int[Tensor, " target"]) -> list[Group]:
    """Features of a layer, one group a position."""
    if not len(rows):
        return []
    reads, bias, value = local.read_vectors(layer, rows)
    positions = local.features[rows, 1]
    groups = []
    for position in positions.unique().tolist():
        here = (positions == position).nonzero()[:, 0]
        groups.append(Group(position, rows[here], reads[here], bias[here], value[here]))
    return groups


class _Rows:
    """Rows as they come in, and the influence that follows from them."""

    def __init__(self, index: NodeIndex, directions: Sequence[Direction], chunk: tuple[int, int]):
        self.index, self.fill, self.most = index, *chunk
        self.found: list[RowBlock] = []
        self.terms: list[Terms] = []
        self.expanded = 0
        self.influence = torch.zeros(len(index), dtype=torch.float64)
        self.weights = torch.zeros(len(index), dtype=torch.float64)
        self.weights[index.first_target :] = torch.tensor([d.weight for d in directions])

    def choose(self, layer: int, limit: int) -> Int[Tensor, " target"]:
        """Rows of the features of a layer to expand.

        With a limit, those that are among the most influential of all features not yet passed; the
        influence of this layer is exact, that of lower ones can only grow.
        """
        rows = self.index.feature_rows(layer)
        here = torch.arange(rows.start, rows.stop)
        left = limit - self.expanded
        if left >= rows.stop:
            return here
        if left <= 0:
            return here[:0]
        strongest = self.influence[: rows.stop].topk(left).indices
        return strongest[strongest >= rows.start].sort().values

    def expand(
        self,
        sweep: Sweep,
        layer: int,
        groups: list[Group],
        progress: Progress | None = None,
        limit: int = 0,
    ) -> None:
        for chunk in _chunks(groups, sweep.width, self.fill, self.most):
            blocks, terms = sweep.rows(layer, chunk)
            self.found += blocks
            self.terms.append(terms)
            for block in blocks:
                self._pass_on(block)
            if layer < sweep.layers:
                self.expanded += len(terms.rows)
            if progress is not None:
                progress(self.expanded / max(1, limit), f"layer {layer}")

    def _pass_on(self, block: RowBlock) -> None:
        """Send the influence of a block's targets, complete by now, to their sources."""
        columns = self.index.cone(block.layer, block.position)
        for span, absolute in strips(block):
            targets, sums = block.rows[span], absolute.sum(1)
            mass = self.influence[targets] + self.weights[targets]
            self.influence[columns] += (mass / sums.where(sums > 0, torch.inf)) @ absolute

    def edges(self) -> EdgeRows:
        """Everything that came in. Blocks of one site that were split are joined again."""
        joined: dict[tuple[int, int], list[RowBlock]] = {}
        for block in self.found:
            joined.setdefault((block.layer, block.position), []).append(block)
        blocks = tuple(
            parts[0]
            if len(parts) == 1
            else RowBlock(
                *site,
                rows=torch.cat([part.rows for part in parts]),
                values=torch.cat([part.values for part in parts]),
            )
            for site, parts in sorted(joined.items())
        )
        return EdgeRows(
            self.index,
            blocks,
            *(self._scatter(name) for name in ("bias", "positional", "ignored", "value")),
        )

    def _scatter(self, name: str) -> Tensor:
        rows = torch.cat([terms.rows for terms in self.terms])
        values = torch.cat([getattr(terms, name) for terms in self.terms])
        return values.new_zeros(len(self.index)).index_copy(0, rows, values)


def _chunks(groups: list[Group], width: int, fill: int, most: int) -> Iterator[list[Group]]:
    """Groups packed so that products are large and buffers are not.

    Small neighbours go together until `fill` elements; a group of more than `most` is split.
    """
    packed: list[Group] = []
    for group in groups:
        limit = max(1, most // ((group.position + 1) * width))
        for start in range(0, len(group.rows), limit):
            part = slice(start, start + limit)
            packed.append(
                Group(
                    group.position,
                    group.rows[part],
                    group.reads[part],
                    group.bias[part],
                    group.value[part],
                )
            )
            targets = sum(len(one.rows) for one in packed)
            if targets * (group.position + 1) * width >= fill:
                yield packed
                packed = []
    if packed:
        yield packed
