"""Rows without their weakest edges, and exactly what these came to.

Most edges of a row are weak: on trained models half of them hold 95 % of its absolute sum. `cut`
keeps the strongest edges of every row until they hold a wanted share of it. What is dropped is not
forgotten: its signed sum closes the row (`remainder`), and its absolute sum, by the layer it came
from (`dropped`), keeps shares, influence and the error of each layer what they were. Nothing that
is computed from a row's sums changes; what would have flowed on through a dropped edge is counted
where it left.

An edge kept takes its value and every place one bit that says whether it is kept: column numbers
would take as much as the values, and more than whole rows as soon as half of the edges are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from circuit_tracer.nodes import NodeIndex
from circuit_tracer.shapes import Bool, Float, Int, Tensor

PRECISION = 6
"""Bits after the leading one that a row's threshold is found to."""
COUNTS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1, dtype=np.int64)
"""Bits set in a byte."""


@dataclass(frozen=True, eq=False)
class SparseBlock:
    """Rows of the targets at one (layer, position), like a `RowBlock`, without their weakest edges.

    Attributes:
        layer, position, rows: as in a `RowBlock`.
        width: size of the cone.
        kept: values of the edges kept, row-major.
        mask: (targets, ⌈width / 8⌉) uint8, a bit for every place: 1 where the edge is kept, the
            first in the highest bit.
        remainder: (targets,) sum of the edges dropped, float64.
        dropped: (targets, n_layers) sum of their absolute values by the layer of the source,
            float64; embeddings count to layer 0.
    """

    layer: int
    position: int
    rows: Int[Tensor, " target"]
    width: int
    kept: Float[Tensor, " edge"]
    mask: Int[Tensor, "target byte"]
    remainder: Float[Tensor, " target"]
    dropped: Float[Tensor, "target layer"]

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.rows), self.width

    @property
    def dtype(self) -> torch.dtype:
        return self.kept.dtype

    @property
    def nbytes(self) -> int:
        parts = (self.kept, self.mask, self.remainder, self.dropped)
        return sum(part.nbytes for part in parts)

    @property
    def values(self) -> Float[Tensor, "target source"]:
        """All rows with zeros where edges were dropped, made anew each time."""
        return self._spread(slice(None), self.kept.new_empty(self.shape))

    def some(self, which: Int[Tensor, " some"]) -> Float[Tensor, "some source"]:
        """Some of the rows, as in `values`."""
        room = self.kept.new_empty(len(which), self.width)
        for place, row in enumerate(which.tolist()):
            self._spread(slice(row, row + 1), room[place : place + 1])
        return room

    def fill(self, which: slice, room: Float[Tensor, "some source"]) -> None:
        """Put some of the rows, as in `values`, into other memory of any real type."""
        self._spread(which, room)

    @cached_property
    def starts(self) -> list[int]:
        """Where each row starts in `kept`, and the end."""
        return [0, *COUNTS[self.mask.numpy()].sum(1).cumsum().tolist()]

    def _spread(self, which: slice, room: Tensor) -> Tensor:
        first, stop, _ = which.indices(len(self.rows))
        bits = np.unpackbits(self.mask[which].numpy(), axis=1, count=self.width)
        places = torch.from_numpy(np.flatnonzero(bits))
        values = self.kept[self.starts[first] : self.starts[stop]].to(room.dtype)
        room.zero_().view(-1).index_copy_(0, places, values)
        return room


def cut(
    index: NodeIndex,
    layer: int,
    position: int,
    rows: Int[Tensor, " target"],
    values: Float[Tensor, "target source"],
    share: float,
) -> SparseBlock:
    """The strongest edges of every row that hold a share of its absolute sum.

    Done where the values are: only what is kept travels from a GPU.

    Args:
        values: (targets, cone), columns as `NodeIndex.cone(layer, position)`.
        share: above 0, below 1. At least that much is kept, with all edges as strong as the
            weakest one kept, to `PRECISION` bits.
    """
    absolute = values.abs()
    keep = absolute >= least(absolute, share)[:, None]
    left = torch.mul(values, ~keep, out=absolute)
    exact = torch.float32 if values.device.type == "mps" else torch.float64
    return SparseBlock(
        layer,
        position,
        rows,
        values.shape[1],
        _selected(values, keep).cpu(),
        packed(keep).cpu(),
        left.sum(1, dtype=exact).cpu().double(),
        _by_layer(left.abs_(), index, layer, position, exact).cpu().double(),
    )


def least(absolute: Float[Tensor, "target source"], share: float) -> Float[Tensor, " target"]:
    """The absolute value from which on edges are kept, of every row.

    By bisection over the bits of the numbers, which order as the numbers do: a dozen passes of
    comparing and adding, the same on every device. Below the first bound no row can hold more than
    it may lose; the second is above all values.
    """
    absolute = absolute if absolute.element_size() >= 4 else absolute.float()
    wide = absolute.element_size() == 8
    whole, shift = (torch.int64, 52 - PRECISION) if wide else (torch.int32, 23 - PRECISION)
    wanted = share * absolute.sum(1)
    safe = (1 - share) / max(1, absolute.shape[1]) * absolute.sum(1)
    most = absolute.amax(1) if absolute.shape[1] else safe
    low, high = (number.view(whole) >> shift for number in (safe, most))
    high = high + 1
    room = torch.empty_like(absolute)
    for _ in range(int((high - low).amax()).bit_length() if len(low) else 0):
        middle = (low + high) // 2
        torch.ge(absolute, (middle << shift).view(absolute.dtype)[:, None], out=room)
        enough = room.mul_(absolute).sum(1) >= wanted
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
    found = (low << shift).view(absolute.dtype)
    return found.clamp_(min=torch.finfo(absolute.dtype).tiny)


def _selected(
    values: Float[Tensor, "target source"], keep: Bool[Tensor, "target source"]
) -> Float[Tensor, " edge"]:
    """`masked_select`; by numpy at a quarter of the cost where that can be."""
    if values.device.type != "cpu":
        return values.masked_select(keep)
    places = torch.from_numpy(np.flatnonzero(keep.numpy()))
    return values.flatten().index_select(0, places)


def packed(keep: Bool[Tensor, "target source"]) -> Int[Tensor, "target byte"]:
    """Eight places a byte, the first in the highest bit; as `numpy.packbits`, on any device."""
    whole = torch.nn.functional.pad(keep, (0, -keep.shape[1] % 8))
    powers = 2.0 ** torch.arange(7, -1, -1, device=keep.device)
    return (whole.view(len(keep), whole.shape[1] // 8, 8).float() @ powers).to(torch.uint8)


def _by_layer(
    absolute: Float[Tensor, "target source"],
    index: NodeIndex,
    layer: int,
    position: int,
    dtype: torch.dtype,
) -> Float[Tensor, "target layer"]:
    """Sums by the layer of the source."""
    starts = index.runs(layer, [position])[0].tolist()
    runs = [*range(layer), *range(layer), 0]
    sums = absolute.new_zeros(len(absolute), index.n_layers, dtype=dtype)
    for below, first, stop in zip(runs, starts, starts[1:], strict=False):
        sums[:, below] += absolute[:, first:stop].sum(1, dtype=dtype)
    return sums
