"""What a run will take, known after the forward pass and before the sweep.

The targets' own rows are a few, so they are made at once. The influence that reaches the features
from them foretells, within a few percent, which features a limited run will choose at every layer:
from there on all is counting. The chunks are those the run would make (`rows.packed`), the bytes
those of its tensors, and the time is that of some of these chunks, tried on this machine now.
From this `max_features="auto"` and `keep_edges="auto"` are decided, and a run that would not fit is
refused with the setting that would (`memory`). How many edges hold a share of a row is read off
some rows that are made for it (`keeping`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache, cached_property
from typing import Literal, NamedTuple

import torch

from circuit_kernels.choice import Choice
from circuit_tracer import carried, memory
from circuit_tracer.errors import InputError, MemoryBudgetError
from circuit_tracer.keeping import SHARES, KeepEdges, Room, checked
from circuit_tracer.local import Local
from circuit_tracer.memory import Estimate
from circuit_tracer.nodes import NodeIndex
from circuit_tracer.rows import Rows, columns, halves, packed, target_groups
from circuit_tracer.shapes import Float, Tensor
from circuit_tracer.sweep import Sweep
from circuit_tracer.targets import Readout

MaxFeatures = int | Literal["auto"] | None

AUTO_SECONDS = 20.0
"""`max_features="auto"` expands every feature when the estimate is below this many seconds."""

TRIED = 12
"""At most so many chunks are tried to learn what a run's chunks cost."""
TRYING = 0.1
"""No more chunks are tried once that took this share of the run, and `LEAST_SECONDS`."""
LEAST_SECONDS = 0.2

PRODUCT, FEW = 1.15, 2
GROUP, STEP, ENTRY, SENT, MOVED = 5e-4, 2e-6, 1.6e-8, 1e-8, 3e-9
"""What a chunk costs, measured on one CPU: its operations at the rate of large products, times
PRODUCT, as if it had FEW targets more than it has; and seconds for each of its groups, its layers x
positions, edges, edges whose influence is passed on, and elements of its gradient. They weigh
chunks against each other; how fast this machine is, trials tell."""

CERTAIN = 8.0
"""A run this many times below `AUTO_SECONDS` by its operations alone is not timed any closer."""


class _Part(NamedTuple):
    """So many targets of one layer and position."""

    layer: int
    position: int
    targets: int


class _Chunk(NamedTuple):
    """What travels together; `joined` where of several layers, with nothing left to choose."""

    parts: list[_Part]
    joined: bool
    meet: int = 0

    @property
    def layer(self) -> int:
        return max(part.layer for part in self.parts)

    @property
    def span(self) -> int:
        return max(part.position for part in self.parts) + 1

    @property
    def targets(self) -> int:
        return sum(part.targets for part in self.parts)


def rehearse(local: Local, directions: Sequence[Readout], kernels: Choice = "auto") -> Plan:
    """The plan of a run, with the rows of targets that read after the last layer already made.

    Raises:
        InputError: kernels that cannot run here.
    """
    positions = torch.tensor([direction.position for direction in directions])
    index = NodeIndex(local.features, local.n_layers, local.n_positions, positions)
    with torch.no_grad():
        clock = _clock(local.errors.device)
        try:
            sweep = Sweep(local, index, kernels)
        except ValueError as error:
            raise InputError(str(error)) from error
        rows = Rows(sweep, directions)
        rows.expand(target_groups(index, directions, local.n_layers))
        return Plan(sweep, rows, directions, _clock(local.errors.device) - clock)


def estimate(
    local: Local,
    directions: Sequence[Readout],
    limit: int | None = None,
    rate: float | None = 0.0,
) -> Estimate:
    """Cost of attributing `limit` features (all where None) and the targets.

    Args:
        rate: matrix-product rate in FLOP/s; measured where 0. Where None no time is estimated.
    """
    return rehearse(local, directions).estimate(limit, rate)


class Plan:
    """A run about to start.

    Args:
        sweep: of the prompt.
        rows: those of the targets after the last layer.
        directions: all targets.
        started: seconds that sweep and rows took.
    """

    def __init__(self, sweep: Sweep, rows: Rows, directions: Sequence[Readout], started: float):
        self.sweep, self.rows, self.directions, self.started = sweep, rows, directions, started
        self.local, self.index = sweep.local, rows.index
        self.layers, self.positions = self.local.n_layers, self.local.n_positions
        self.device = self.local.errors.device
        self._held = memory.held(self.local)
        parts = (value for name, value in vars(sweep).items() if name != "_buffers")
        self._swept = memory.tensors(parts)
        self._room = Room(sweep, directions)
        self._apart = self.device.type == "cuda"
        self._known: dict[int, Float[Tensor, "layer position"]] = {}

    def resolve(self, max_features: MaxFeatures, keep_edges: KeepEdges = 1.0) -> int:
        """How many features `max_features` means; where both are "auto", weak edges are given up
        before features are.

        Raises:
            InputError: below 0.
        """
        active = len(self.local.features)
        if max_features is None:
            return active
        if max_features != "auto":
            if not isinstance(max_features, int) or max_features < 0:
                raise InputError(f"max_features is 0 or more, None or auto, not {max_features!r}")
            return min(active, max_features)
        shares = (SHARES[0], SHARES[-1]) if keep_edges == "auto" else (checked(keep_edges),)
        rate = matrix_rate(self.device)

        def good(limit: int, slowness: float, keep: float = shares[-1]) -> bool:
            planned = self._counted(limit, rate, slowness, keep)
            return planned.seconds <= AUTO_SECONDS and self._lacks(planned) is None

        if any(good(active, CERTAIN, keep) for keep in shares):
            return active
        slowness = self._slowness(active, rate)
        return max(1, _largest(lambda limit: good(limit, slowness), active))

    def share(self, limit: int, keep_edges: KeepEdges) -> float:
        """What share of each row `keep_edges` means for so many features.

        Raises:
            InputError: neither "auto" nor above 0 and at most 1.
        """
        if keep_edges != "auto":
            return checked(keep_edges)
        for share in SHARES:
            if self._lacks(self._counted(limit, None, keep=share)) is None:
                return share
        return SHARES[-1]

    def check_memory(self, limit: int, keep: float = 1.0) -> None:
        """Raise MemoryBudgetError, naming what would fit, unless this run does."""
        lacks = self._lacks(self._counted(limit, None, keep=keep))
        if lacks is None:
            return
        fitting = _largest(
            lambda fewer: self._lacks(self._counted(fewer, None, keep=keep)) is None, limit
        )
        advice = (
            f"expand fewer features: --max-features {fitting} fits"
            if fitting
            else "not even the targets alone fit: shorten the prompt, or take the weights out of "
            "the way with --offload cpu (or disk)"
        )
        raise MemoryBudgetError(
            f"this graph needs about {memory.said(lacks[0])} more and "
            f"{memory.said(lacks[1])} are free; {advice}"
        )

    def _lacks(self, planned: Estimate) -> tuple[float, float] | None:
        """Bytes needed and bytes free, where the latter are fewer: of the device, of main memory
        beside it. None where the run fits."""
        sides = [(_needs(planned), memory.free(self.device))]
        if planned.host_bytes:
            sides.append((planned.host_bytes, memory.free(torch.device("cpu"))))
        return next((side for side in sides if side[0] > side[1]), None)

    def estimate(
        self, limit: int | None = None, rate: float | None = 0.0, keep: float = 1.0
    ) -> Estimate:
        """Cost of the rows of `limit` features (all where None) and the targets; see `estimate`."""
        limit = len(self.local.features) if limit is None else limit
        if rate is None:
            return self._counted(limit, None, keep=keep)
        rate = matrix_rate(self.device) if rate == 0.0 else rate
        return self._counted(limit, rate, self._slowness(limit, rate), keep)

    def _counted(
        self, limit: int, rate: float | None, slowness: float = 1.0, keep: float = 1.0
    ) -> Estimate:
        counts = self._targets(limit)
        chunks = list(self._chunks(counts))
        entries, n_rows = float((counts * self._cones).sum()), int(counts.sum())
        result = self._room.bytes(entries, n_rows, keep)
        seconds = 0.0
        if rate is not None:
            weight = sum(self._weight(chunk, rate) for chunk in chunks)
            seconds = self.started + slowness * weight
        return Estimate(
            n_positions=self.positions,
            n_active=len(self.local.features),
            n_targets=n_rows,
            flops=self._flops(chunks),
            seconds=seconds,
            result_bytes=result,
            held_bytes=self._held,
            peak_bytes=self._peak(counts, chunks, 0 if self._apart else result, keep),
            host_bytes=result if self._apart else 0,
            keep=keep,
        )

    # What there is to do.

    def _targets(self, limit: int) -> Float[Tensor, "layer position"]:
        """Targets at each layer (one more for what is read after the last) and position."""
        counts = torch.zeros(self.layers + 1, self.positions, dtype=torch.float64)
        left = min(limit, len(self.local.features))
        for layer in reversed(range(self.layers)):
            chosen = self.rows.strongest(layer, left)
            left -= len(chosen)
            at = self.local.features[chosen, 1]
            counts[layer] = torch.bincount(at, minlength=self.positions)
        for direction in self.directions:
            counts[direction.layer, direction.position] += 1
        return counts

    @cached_property
    def _features(self) -> Float[Tensor, "layer position"]:
        """Active features at each layer and position."""
        cells = self.local.features[:, 0] * self.positions + self.local.features[:, 1]
        counts = torch.bincount(cells, minlength=self.layers * self.positions)
        return counts.view(self.layers, self.positions).double()

    @cached_property
    def _cones(self) -> Float[Tensor, "layer position"]:
        """Sources that a target at each layer and position can have."""
        below = torch.zeros(self.layers + 1, self.positions, dtype=torch.float64)
        below[1:] = self._features.cumsum(1).cumsum(0)
        span = torch.arange(1, self.positions + 1)
        return below + span * torch.arange(1, self.layers + 2)[:, None]

    def _chunks(self, counts: Tensor) -> Iterator[_Chunk]:
        """The chunks of the run: layer by layer while there is a choice, then all that is left."""
        rest = self.layers - 1
        while rest >= 0 and not torch.equal(counts[: rest + 1], self._features[: rest + 1]):
            here = [_Part(rest, p, int(counts[rest, p])) for p in range(self.positions)]
            yield from self._packed([part for part in here if part.targets], joined=False)
            rest -= 1
        for layers, meet in halves(self.sweep, rest) if rest >= 0 else ():
            cells = [
                _Part(layer, position, int(counts[layer, position]))
                for position in range(self.positions)
                for layer in reversed(layers)
            ]
            yield from self._packed(cells, joined=True, meet=meet)

    def _packed(self, parts: list[_Part], joined: bool, meet: int = 0) -> Iterator[_Chunk]:
        span = max((part.position + 1 for part in parts), default=1)
        sizes = [(part.position, part.targets) for part in parts]
        for together in packed(sizes, *columns(self.sweep, span, joined)):
            yield _Chunk([parts[n]._replace(targets=b - a) for n, a, b in together], joined, meet)

    def _flops(self, chunks: Sequence[_Chunk]) -> float:
        """Operations of the run: every target's alone, and of carrying up what they meet."""
        own = sum(
            part.targets * float(self._operations(chunk.meet)[part.layer, part.position])
            for chunk in chunks
            for part in chunk.parts
        )
        meet = max((chunk.meet for chunk in chunks), default=0)
        adapter, features = self.local.adapter, self._features
        directions = sum(
            float(self._operations(0)[d.layer, d.position])
            for d in self.directions
            if d.layer == self.layers
        )
        return own + directions + carried.operations_of_carrying(adapter, features, meet)

    def _operations(self, meet: int) -> Float[Tensor, "layer position"]:
        """Operations of one target at each layer and position."""
        if meet not in self._known:
            layer = meet if self.sweep.carries_up else None
            cross_layer = self.local.transcoders.kind == "clt"
            self._known[meet] = carried.operations_of_a_target(
                self.local.adapter, self._features, layer, cross_layer
            )
        return self._known[meet]

    # How long it takes.

    def _weight(self, chunk: _Chunk, rate: float) -> float:
        """About what a chunk takes: its operations at a rate, and its many small products."""
        each_target = self._operations(chunk.meet)[:, chunk.span - 1]
        work = sum(targets * float(each_target[layer]) for layer, _, targets in chunk.parts)
        steps = (chunk.layer + 1) * chunk.span
        edges = chunk.targets * float(self._cones[chunk.layer, chunk.span - 1])
        moved = chunk.targets * chunk.span * self.sweep.width
        each = ENTRY if chunk.joined else ENTRY + SENT
        small = GROUP * len(chunk.parts) + STEP * steps + each * edges + MOVED * moved
        return PRODUCT * (1 + FEW / chunk.targets) * work / rate + small

    def _slowness(self, limit: int, rate: float) -> float:
        """What chunks of the run take over their weight, on this machine now.

        Chunks are tried evenly over the weight of all, the middle one first: the mean ratio is then
        unbiased whatever the weights leave out. A tried chunk's rows are thrown away, so not many
        are: `TRYING` of the run.
        """
        chunks = list(self._chunks(self._targets(limit)))
        weights = torch.tensor([self._weight(chunk, rate) for chunk in chunks], dtype=torch.float64)
        if not len(chunks):
            return 1.0
        found: dict[int, float] = {}
        ratios: list[float] = []
        for mark in _spread(TRIED):
            at = int(torch.searchsorted(weights.cumsum(0), mark * weights.sum()))
            number = min(at, len(chunks) - 1)
            if number not in found:
                for _ in range(1 + self._apart):  # a GPU may compile kernels at the first
                    found[number] = self._seconds(chunks[number])
            ratios.append(found[number] / float(weights[number]))
            whole = float(weights.sum()) * sum(ratios) / len(ratios)
            if sum(found.values()) > max(LEAST_SECONDS, TRYING * whole):
                break
        return sum(ratios) / len(ratios)

    def _seconds(self, chunk: _Chunk) -> float:
        """Measured time of one chunk, its rows thrown away."""
        rows = []
        for layer, position, targets in chunk.parts:
            cell = self.index.feature_rows(layer, position, position + 1)
            rows.append(torch.arange(cell.start, min(cell.start + targets, cell.stop)))
        scratch = Rows(self.sweep, self.directions)
        with torch.no_grad():
            if self.sweep.carries_up:
                self.sweep.carried(chunk.meet)
            clock = _clock(self.device)
            groups = scratch.groups(torch.cat(rows).sort().values)
            if chunk.joined and groups:
                scratch.take(groups, meet=chunk.meet)
            else:
                scratch.expand(groups)
            scratch.finish()
            return _clock(self.device) - clock

    # How much room it takes.

    def _peak(self, counts: Tensor, chunks: Sequence[_Chunk], result: int, keep: float) -> int:
        """Bytes at the worst moment: of the forward pass, of taking it apart, or of the sweep."""
        adapter, item = self.local.adapter, self.local.errors.element_size()
        width, heads = self.sweep.width, adapter.heads + adapter.kv_heads
        wide = 2 * width + adapter.head_dim * heads
        room = 0
        for chunk in chunks:
            cone = int(self._cones[chunk.layer, chunk.span - 1])
            moved = max(part.targets for part in chunk.parts) * cone if chunk.layer else 0
            moved *= 1 if keep == 1 else CUTTING
            room = max(room, chunk.targets * (cone + chunk.span * wide) + moved)
        most = int(counts[: self.layers].sum(1).max())
        nodes = len(self.index)
        sweep = (
            self._held
            + self._swept
            + result
            + item * (room + READ_COPIES * most * width + self._carried(chunks))
            + NODE_BYTES * nodes
            + BLOCK_BYTES * int((counts > 0).sum())
        )
        apart = self._held + memory.taking_apart(self.local)
        return max(sweep, memory.forward(adapter, self.positions), apart)

    def _carried(self, chunks: Sequence[_Chunk]) -> int:
        """Elements of what is carried up to where the run's chunks meet it."""
        meet = max((chunk.meet for chunk in chunks), default=0)
        return carried.elements(self.local.adapter, self._features, meet) if meet else 0


CUTTING = 4
"""Copies of a group's rows while they are cut: absolute values, those compared, and masks."""
READ_COPIES = 4
"""Copies of a layer's read vectors while they are put together."""
NODE_BYTES = 12 * 8
"""Node order, influence and closing terms."""
BLOCK_BYTES = 2048
"""A block of rows, its tensors' Python objects and allocator headers."""


def _spread(count: int) -> Iterator[float]:
    """Numbers between 0 and 1, each where the most room was left: 1/2, 1/4, 3/4, 1/8, ..."""
    for number in range(1, count + 1):
        yield sum((number >> bit & 1) / (2 << bit) for bit in range(number.bit_length()))


def _needs(planned: Estimate) -> int:
    return planned.peak_bytes - planned.held_bytes


def _largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest number up to `most` that fits, 0 where none does; what fits below a fit."""
    low, high = 0, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    if device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


@cache
def matrix_rate(device: torch.device, size: int = 512, repeats: int = 4) -> float:
    """Measured float32 matrix-product rate in FLOP/s; takes a few milliseconds, once a process:
    how busy the machine is now, the chunks that are tried tell."""
    a, best = torch.ones(size, size, device=device), float("inf")
    for _ in range(repeats):
        start = _clock(device)
        a @ a
        best = min(best, _clock(device) - start)
    return 2.0 * size**3 / best
