"""Rows as a run makes them: which targets travel together, what came in, whom it makes influential.

Targets of one (layer, position) form a group; groups are packed into chunks that go down the layers
together (`packed`, which the estimate shares, so that it counts the very chunks of the run). `Rows`
keeps what comes back, and passes its influence on at once: that decides what is expanded below.
Where everything below is expanded anyway there is nothing to decide, and the features of all layers
at one position travel together, each joining where it reads (`Rows.expand_rest`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from circuit_tracer.edges import Block, EdgeRows, RowBlock
from circuit_tracer.fetching import Fetching
from circuit_tracer.influence import LEAST, strips
from circuit_tracer.local import Local
from circuit_tracer.nodes import NodeIndex
from circuit_tracer.shapes import Int, Tensor
from circuit_tracer.sparse import SparseBlock, cut
from circuit_tracer.sweep import Chunk, Group, Sweep, Terms
from circuit_tracer.targets import Readout

Progress = Callable[[float, str], None]
_Site = tuple[int, int, bool]


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
        on_gpu = sweep.local.errors.device.type == "cuda"
        self.fetching = Fetching() if on_gpu else None
        self._sizes: dict[_Site, int] = {}  # rows that each site will have
        self._rooms: dict[_Site, tuple[Tensor, int]] = {}
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
        self._sizes.update({self._site(group): len(group.rows) for group in groups})
        sizes = [(group.position, len(group.rows)) for group in groups]
        for together in packed(sizes, *columns(self.sweep, span)):
            chunk = [groups[number].part(slice(*part)) for number, *part in together]
            self.take(chunk, passing=True)
            report(self.expanded, chunk[0].layer)

    def expand_rest(self, layer: int, report: Callable[[int, int], None] = _silent) -> None:
        """Rows of every feature and target up to a layer, where nothing is left to choose."""
        positions = self.index.n_positions
        limits = columns(self.sweep, positions, joined=True)
        for layers, meet in halves(self.sweep, layer):
            cells = self.cells(layers)
            sizes = [(at, len(cell)) for at, cell in cells]
            for below in layers:
                here = (self.index.feature_rows(below, at, at + 1) for at in range(positions))
                self._sizes.update({(below, at, False): len(cell) for at, cell in enumerate(here)})
            for together in packed(sizes, *limits):
                starts = [(cells[n][1].start, a, b) for n, a, b in together]
                rows = [torch.arange(start + a, start + b) for start, a, b in starts]
                self.take(self.groups(torch.cat(rows).sort().values), meet=meet)
                report(self.expanded, layer)
        for below in reversed(range(layer + 1)):
            self.expand(target_groups(self.index, self.directions, below))

    def cells(self, layers: range) -> list[tuple[int, range]]:
        """(position, features) of every (layer, position) of some layers, position by position."""
        return [
            (position, self.index.feature_rows(below, position, position + 1))
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
        if self.keep == 1 and self.fetching is not None:
            self._send(chunk, passing)
        else:
            for block in chunk.blocks():
                if self.keep == 1:
                    block = replace(block, values=block.values.cpu())
                if passing:
                    self._pass_on(block)
                self.found.append(self._stored(block))
        terms = chunk.terms()
        self.terms.append(terms)
        self.expanded += int((terms.rows < self.index.n_features).sum())

    def _send(self, chunk: Chunk, passing: bool) -> None:
        """Whole rows on their way to main memory; waited for only if they are passed on at once."""
        first = len(self.found)
        for place, block in enumerate(chunk.blocks(), first):
            self.found.append(block)

            def arrived(values: Tensor, place: int = place, block: RowBlock = block) -> None:
                self.found[place] = self._placed(replace(block, values=values))

            assert self.fetching is not None
            self.fetching.send(block.values, arrived)
        if passing:
            self.finish()
            for late in self.found[first:]:
                assert isinstance(late, RowBlock)
                self._pass_on(late)

    def finish(self) -> None:
        """Wait for what is on its way."""
        if self.fetching is not None:
            self.fetching.finish()

    def _stored(self, block: Block) -> Block:
        if isinstance(block, SparseBlock):
            return block
        if self.keep == 1:
            return self._placed(block)
        return cut(self.index, block.layer, block.position, block.rows, block.values, self.keep)

    def _placed(self, block: RowBlock) -> RowBlock:
        """A part of a site's rows goes where all of them will lie: joined at the end, they would
        take their room twice."""
        site, part = self._site(block), len(block.rows)
        if (whole := self._sizes.get(site, part)) == part:
            return block
        room, start = self._rooms.get(site) or (block.values.new_empty(whole, block.shape[1]), 0)
        self._rooms[site] = room, start + part
        return replace(block, values=room[start : start + part].copy_(block.values))

    def _site(self, some: Block | Group) -> _Site:
        """Layer, position, and whether these are targets, which may read where features do."""
        return some.layer, some.position, int(some.rows[0]) >= self.index.first_target

    def store(self, keep: float) -> None:
        """Keep this share of each row, of those already there too."""
        self.finish()
        if keep < 1:
            self.keep = keep
            self.found = [self._stored(block) for block in self.found]
            self._rooms = {}

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
        """Everything that came in, a block a site. Sparse parts of a site stay apart, because two
        copies at once would take what cutting them saved."""
        self.finish()
        sites: dict[tuple[int, int], list[Block]] = {}
        for block in self.found:
            sites.setdefault((block.layer, block.position), []).append(block)
        self.found = []
        blocks = [block for site in sorted(sites) for block in self._joined(sites.pop(site))]
        return EdgeRows(
            self.index,
            tuple(blocks),
            *(self._scatter(name) for name in ("bias", "positional", "ignored", "value")),
            keep=self.keep,
        )

    def _joined(self, parts: list[Block]) -> list[Block]:
        if len(parts) == 1 or isinstance(parts[0], SparseBlock):
            return parts
        first, rows = parts[0], torch.cat([part.rows for part in parts])
        values, filled = self._rooms.get(self._site(first), (rows, 0))
        if filled != len(rows):  # features, and targets that read where they do
            values = torch.cat([part.values for part in parts])
        return [RowBlock(first.layer, first.position, rows, values)]

    def _scatter(self, name: str) -> Tensor:
        rows = torch.cat([terms.rows for terms in self.terms])
        values = torch.cat([getattr(terms, name) for terms in self.terms]).cpu()
        return values.new_zeros(len(self.index)).index_copy(0, rows, values)


COLUMNS = {False: (48, 96), True: (128, 256)}
"""Targets of a chunk on a CPU: a position is its last once it has the first number of them, and no
chunk has more than the second. Of one layer, and of all layers together (`joined`)."""
ELEMENTS = {"cpu": 1 << 27, "cuda": 1 << 28}
"""Elements (positions × d_model × targets) that a chunk's gradient never goes beyond; on a GPU it
is filled up to them."""


def columns(sweep: Sweep, span: int, joined: bool = False) -> tuple[int, int]:
    """How many targets over so many positions are enough for a chunk, and how many its most."""
    cuda = sweep.local.errors.device.type == "cuda"
    most = max(1, ELEMENTS["cuda" if cuda else "cpu"] // (span * sweep.width))
    enough, limit = (most, most) if cuda else COLUMNS[joined]
    return min(enough, most), min(limit, most)


def halves(sweep: Sweep, layer: int) -> list[tuple[range, int]]:
    """All layers up to one, in the order in which their features are expanded together: those that
    meet their sources at some layer, and those below it; each with where they meet."""
    meet = sweep.meeting(layer)
    first = meet + sweep.parallel if meet else 0
    return [(range(first, layer + 1), meet), (range(first), 0)]


def packed(
    cells: Sequence[tuple[int, int]], enough: int, most: int
) -> Iterator[list[tuple[int, int, int]]]:
    """Which targets go together: whole positions, since a chunk works over all positions up to its
    last one, until there are enough; cut into equal parts where that makes more than `most`.

    Args:
        cells: (position, targets) of every cell, by position.

    Yields:
        Lists of (cell, first, stop): targets first to stop of that cell.
    """
    together: list[tuple[int, int]] = []
    count = 0
    for number, (position, size) in enumerate(cells):
        if count >= enough and position != cells[number - 1][0]:
            yield from _cut(together, count, most)
            together, count = [], 0
        together.append((number, size))
        count += size
    yield from _cut(together, count, most)


def _cut(
    cells: list[tuple[int, int]], count: int, most: int
) -> Iterator[list[tuple[int, int, int]]]:
    """Cells (number, targets), `count` together, in as few parts of equal size as `most` allows."""
    if not count:
        return
    size = -(-count // -(-count // most))
    together: list[tuple[int, int, int]] = []
    room = size
    for number, targets in cells:
        start = 0
        while start < targets:
            stop = min(targets, start + room)
            together.append((number, start, stop))
            room -= stop - start
            start = stop
            if not room:
                yield together
                together, room = [], size
    if together:
        yield together
