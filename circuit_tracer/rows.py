"""Rows as a run makes them: which targets travel together, what came in, whom it makes influential.

Targets of one (layer, position) form a group; groups are packed into chunks that go down the layers
together (`packed`, which the estimate shares, so that it counts the very chunks of the run). `Rows`
keeps what comes back, and passes its influence on at once: that decides what is expanded below.
Where everything below is expanded anyway there is nothing to decide, and the features of all layers
at one position travel together, each joining where it reads (`Rows.expand_rest`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from circuit_tracer.edges import Block, EdgeRows, RowBlock
from circuit_tracer.influence import LEAST, strips
from circuit_tracer.local import Local
from circuit_tracer.nodes import NodeIndex
from circuit_tracer.shapes import Float, Int, Tensor
from circuit_tracer.sparse import SparseBlock, cut
from circuit_tracer.sweep import Group, Sweep, Terms
from circuit_tracer.targets import Readout

Progress = Callable[[float, str], None]


def target_groups(index: NodeIndex, directions: Sequence[Readout], layer: int) -> list[Group]:
    """Targets that read at a layer, one group a position."""
    mine = [(d.position, i) for i, d in enumerate(directions) if d.layer == layer]
    groups = []
    for position in sorted({position for position, _ in mine}):
        numbers = [i for at, i in mine if at == position]
        here = [directions[i] for i in numbers]
        like = here[0].vector
        groups.append(
            Group(
                layer=layer,
                position=position,
                rows=torch.tensor([index.target_row(i) for i in numbers]),
                reads=torch.stack([d.vector for d in here]),
                bias=torch.tensor([d.bias for d in here], dtype=like.dtype, device=like.device),
                value=torch.tensor([d.value for d in here], dtype=like.dtype, device=like.device),
            )
        )
    return groups


def feature_groups(local: Local, layer: int, rows: Int[Tensor, " target"]) -> list[Group]:
    """Features of a layer, one group a position."""
    if not len(rows):
        return []
    reads, bias, value = local.read_vectors(layer, rows)
    positions = local.features[rows, 1]
    groups = []
    for position in positions.unique().tolist():
        here = (positions == position).nonzero()[:, 0]
        groups.append(Group(layer, position, rows[here], reads[here], bias[here], value[here]))
    return groups


def _silent(expanded: int, layer: int) -> None:
    """Nobody is told."""


class Rows:
    """Rows as they come in, and the influence that follows from them.

    Attributes:
        keep: share of each row's absolute sum to store, the strongest edges first; 1 for all. What
            a row passes on while there is a choice to make is passed on before it is cut.
    """

    def __init__(self, sweep: Sweep, directions: Sequence[Readout]):
        self.sweep, self.index, self.directions = sweep, sweep.index, directions
        self.found: list[Block] = []
        self.terms: list[Terms] = []
        self.keep = 1.0
        self.expanded = 0
        self._pinned: Tensor | None = None
        self.influence = torch.zeros(len(self.index), dtype=torch.float64)
        self.weights = torch.zeros(len(self.index), dtype=torch.float64)
        self.weights[self.index.first_target :] = torch.tensor([d.weight for d in directions])

    def wants_all(self, layer: int, limit: int) -> bool:
        """Whether a limit leaves room for every feature up to a layer."""
        return limit - self.expanded >= self.index.feature_rows(layer).stop

    def choose(self, layer: int, limit: int) -> Int[Tensor, " target"]:
        """Rows of the features of a layer to expand.

        With a limit, those that are among the most influential of all features not yet passed; the
        influence of this layer is exact, that of lower ones can only grow.
        """
        return self.strongest(layer, limit - self.expanded)

    def strongest(self, layer: int, left: int) -> Int[Tensor, " target"]:
        """Rows of a layer's features that are among the `left` most influential from there down."""
        rows = self.index.feature_rows(layer)
        here = torch.arange(rows.start, rows.stop)
        if left >= rows.stop:
            return here
        if left <= 0:
            return here[:0]
        strongest = self.influence[: rows.stop].topk(left).indices
        return strongest[strongest >= rows.start].sort().values

    def expand(self, groups: list[Group], report: Callable[[int, int], None] = _silent) -> None:
        """Rows of the targets of one layer, and the influence that they pass on.

        Args:
            report: called with the features expanded so far, and their layer.
        """
        span = max((group.position + 1 for group in groups), default=1)
        for together in packed([len(group.rows) for group in groups], columns(self.sweep, span)):
            chunk = [groups[number].part(slice(*part)) for number, *part in together]
            self.take(chunk, passing=True)
            report(self.expanded, chunk[0].layer)

    def expand_rest(self, layer: int, report: Callable[[int, int], None] = _silent) -> None:
        """Rows of every feature and target up to a layer, where nothing is left to choose."""
        count = columns(self.sweep, self.index.n_positions, joined=True)
        for layers, meet in halves(self.sweep, layer):
            cells = self.cells(layers)
            for together in packed([len(cell) for cell in cells], count):
                rows = [
                    torch.arange(cells[n].start + a, cells[n].start + b) for n, a, b in together
                ]
                self.take(self.groups(torch.cat(rows).sort().values), meet=meet)
                report(self.expanded, layer)
        for below in reversed(range(layer + 1)):
            self.expand(target_groups(self.index, self.directions, below))

    def cells(self, layers: range) -> list[range]:
        """Features of every (layer, position) of some layers, position by position."""
        return [
            self.index.feature_rows(below, position, position + 1)
            for position in range(self.index.n_positions)
            for below in reversed(layers)
        ]

    def groups(self, rows: Int[Tensor, " target"]) -> list[Group]:
        """Features of any layers, by falling layer."""
        layers = self.index.features[rows, 0]
        return [
            group
            for layer in layers.unique().flip(0).tolist()
            for group in feature_groups(self.sweep.local, layer, rows[layers == layer])
        ]

    def take(self, groups: list[Group], passing: bool = False, meet: int = 0) -> None:
        """Rows of targets that travel together.

        Args:
            passing: their influence is complete, and passed on to their sources.
            meet: where they meet what comes up to them (`Sweep.chunk`).
        """
        chunk = self.sweep.chunk(groups, meet)
        for block in chunk.blocks():
            if self.keep == 1:
                block = replace(block, values=self._fetched(block.values))
            if passing:
                self._pass_on(block)
            self.found.append(self._stored(block))
        terms = chunk.terms()
        self.terms.append(terms)
        self.expanded += int((terms.rows < self.index.n_features).sum())

    def _fetched(self, values: Float[Tensor, "target source"]) -> Float[Tensor, "target source"]:
        """A block in main memory. From a GPU it comes by way of pinned memory, which the driver
        reaches without a copy of its own, and all threads share in filling fresh pages."""
        if values.device.type != "cuda":
            return values.cpu()
        if self._pinned is None or len(self._pinned) < values.numel():
            self._pinned = torch.empty(values.numel(), dtype=values.dtype, pin_memory=True)
        return self._pinned[: values.numel()].view(values.shape).copy_(values).clone()

    def _stored(self, block: Block) -> Block:
        if self.keep == 1 or isinstance(block, SparseBlock):
            return block
        return cut(self.index, block.layer, block.position, block.rows, block.values, self.keep)

    def store(self, keep: float) -> None:
        """Keep this share of each row, of those already there too."""
        self.keep = keep
        self.found = [self._stored(block) for block in self.found]

    def _pass_on(self, block: RowBlock) -> None:
        """Send the influence of a block's targets, complete by now, to their sources."""
        mass = (self.influence[block.rows] + self.weights[block.rows]).numpy()
        sent = np.zeros(block.shape[1])
        for span, absolute in strips(block):
            per_unit = mass[span] / np.maximum(absolute.sum(1), LEAST)
            sent += np.einsum("t,ts->s", per_unit, absolute)
        columns = self.index.cone(block.layer, block.position)
        self.influence.index_add_(0, columns, torch.from_numpy(sent))

    def edges(self) -> EdgeRows:
        """Everything that came in. Blocks of one site that were split are joined again; sparse
        ones stay apart, because two copies at once would take what cutting them saved."""
        sites: dict[tuple[int, int], list[Block]] = {}
        for block in self.found:
            sites.setdefault((block.layer, block.position), []).append(block)
        self.found = []  # so that parts are freed as they are joined, site by site
        blocks = [block for site in sorted(sites) for block in _joined(sites.pop(site))]
        return EdgeRows(
            self.index,
            tuple(blocks),
            *(self._scatter(name) for name in ("bias", "positional", "ignored", "value")),
            keep=self.keep,
        )

    def _scatter(self, name: str) -> Tensor:
        rows = torch.cat([terms.rows for terms in self.terms])
        values = torch.cat([getattr(terms, name) for terms in self.terms])
        return values.new_zeros(len(self.index)).index_copy(0, rows, values)


def _joined(parts: list[Block]) -> list[Block]:
    if len(parts) == 1 or isinstance(parts[0], SparseBlock):
        return parts
    rows, values = (torch.cat([getattr(p, name) for p in parts]) for name in ("rows", "values"))
    return [RowBlock(parts[0].layer, parts[0].position, rows, values)]


COLUMNS = {False: 48, True: 160}
"""Targets a chunk is filled up to on a CPU, where its matrix products run best: of one layer (more
would bring positions together that are far apart), and of all layers at a position (`joined`)."""
ELEMENTS = {"cpu": 1 << 27, "cuda": 1 << 28}
"""Elements (positions × d_model × targets) that a chunk's gradient never goes beyond; on a GPU it
is filled up to them."""


def columns(sweep: Sweep, span: int, joined: bool = False) -> int:
    """How many targets travel together over so many positions."""
    cuda = sweep.local.errors.device.type == "cuda"
    most = max(1, ELEMENTS["cuda" if cuda else "cpu"] // (span * sweep.width))
    return most if cuda else min(most, COLUMNS[joined])


def halves(sweep: Sweep, layer: int) -> list[tuple[range, int]]:
    """All layers up to one, in the order in which their features are expanded together: those that
    meet their sources at some layer, and those below it; each with where they meet."""
    meet = sweep.meeting(layer)
    first = meet + sweep.parallel if meet else 0
    return [(range(first, layer + 1), meet), (range(first), 0)]


def packed(sizes: Iterable[int], columns: int) -> Iterator[list[tuple[int, int, int]]]:
    """Which targets go together: groups in their order, cut into chunks of exactly `columns`
    targets, but for the last.

    Args:
        sizes: targets of every group.

    Yields:
        Lists of (group, first, stop): targets first to stop of that group.
    """
    together: list[tuple[int, int, int]] = []
    room = columns
    for number, count in enumerate(sizes):
        start = 0
        while start < count:
            stop = min(count, start + room)
            together.append((number, start, stop))
            room -= stop - start
            start = stop
            if not room:
                yield together
                together, room = [], columns
    if together:
        yield together
