"""What `keep_edges` means, and how much room rows take that store their strongest edges.

How many edges hold a share of a row differs from model to model, and grows with neither prompt nor
dictionary; so some features' rows are made before a run, and counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Literal

import torch

from circuit_tracer.edges import RowBlock
from circuit_tracer.errors import InputError
from circuit_tracer.rows import Rows
from circuit_tracer.sparse import least
from circuit_tracer.sweep import Sweep
from circuit_tracer.targets import Readout

KeepEdges = float | Literal["auto"]

SHARES = (1.0, 0.99, 0.98, 0.95, 0.9)
"""What `keep_edges="auto"` tries, in this order, until the rows fit into memory."""
SAMPLED = 48
"""Features whose rows tell how many edges hold a share of a row."""


def checked(keep_edges: float | str) -> float:
    """The share that `keep_edges` names where it is not "auto".

    Raises:
        InputError: it is not above 0 and at most 1.
    """
    if not (isinstance(keep_edges, int | float) and 0 < keep_edges <= 1):
        raise InputError(
            f'keep_edges must be "auto" or a share, above 0 and at most 1, not {keep_edges!r}'
        )
    return float(keep_edges)


class Room:
    """Bytes of rows, by the share of each that is stored."""

    def __init__(self, sweep: Sweep, directions: Sequence[Readout]):
        self.sweep, self.directions = sweep, directions
        self._densities: dict[float, float] = {1.0: 1.0}

    def bytes(self, entries: float, n_rows: int, keep: float) -> int:
        """What so many rows take that have so many sources together."""
        item, layers = self.sweep.local.errors.element_size(), self.sweep.layers
        if keep == 1:
            return int(entries * item)
        return int(entries * (item * self.density(keep) + 1 / 8)) + n_rows * 8 * (1 + layers)

    def density(self, keep: float) -> float:
        """The part of a row's edges that holds a share of it, of `SAMPLED` features evenly."""
        if keep not in self._densities:
            kept, entries = 0, 0
            for block in self._sample:
                absolute = block.values.abs()
                kept += int((absolute >= least(absolute, keep)[:, None]).sum())
                entries += absolute.numel()
            self._densities[keep] = kept / entries if entries else 1.0
        return self._densities[keep]

    @cached_property
    def _sample(self) -> list[RowBlock]:
        features = self.sweep.index.n_features
        if not features:
            return []
        rows = torch.linspace(0, features - 1, SAMPLED, dtype=torch.float64).long().unique()
        with torch.no_grad():
            return self.sweep.rows(Rows(self.sweep, self.directions).groups(rows))[0]
