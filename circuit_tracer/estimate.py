"""What a run will take, known after the forward pass and before the sweep.

Counting is enough: how many rows there are, how far down each is carried, over how many positions,
and how many sources lie in its cone. The operations at the matrix-product rate measured here and
now give the time, the rows and buffers the memory. From this `max_features="auto"` is decided, and
a run that would not fit is refused.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

import torch

from circuit_tracer.errors import InputError, MemoryBudgetError
from circuit_tracer.local import Local

MaxFeatures = int | Literal["auto"] | None

AUTO_SECONDS = 20.0
"""`max_features="auto"` expands every feature when the estimate is below this many seconds."""

CHUNK_ELEMENTS = {"cpu": (1 << 19, 1 << 21), "cuda": (1 << 24, 1 << 28)}
"""Elements (positions × d_model × targets) a chunk is filled up to, and never goes beyond."""


OVER_THE_FLOOR, SECONDS_A_STEP = 1.7, 2e-4
"""Measured time over the operation count, and what a step costs whatever its size
(docs/performance.md)."""


@dataclass(frozen=True)
class Estimate:
    """What a run takes, known after the forward pass and before the sweep.

    Attributes:
        n_positions, n_active, n_targets: size of the prompt and of its graph; `n_targets` counts
            the rows to attribute, logits included.
        flops: floating point operations of the sweep.
        seconds: those operations at the matrix-product rate measured here and now, with what is
            measured to come on top.
        result_bytes: the rows.
        peak_bytes: rows, write vectors, folded attention and working buffers.
    """

    n_positions: int
    n_active: int
    n_targets: int
    flops: float
    seconds: float
    result_bytes: int
    peak_bytes: int

    def __str__(self) -> str:
        return (
            f"{self.n_targets:,} rows over {self.n_active:,} active features and "
            f"{self.n_positions} tokens: {self.flops / 1e9:,.1f} GFLOP, about "
            f"{self.seconds:.1f} s, peak {self.peak_bytes / 2**20:,.0f} MiB above loading"
        )


def resolve_limit(local: Local, n_directions: int, max_features: MaxFeatures) -> int:
    """How many features `max_features` means for this prompt."""
    active = len(local.features)
    if max_features is None:
        return active
    if max_features != "auto":
        if max_features < 0:
            raise InputError(f"max_features must be 0 or more, not {max_features}")
        return min(active, max_features)
    whole = estimate(local, n_directions, active)
    if whole.seconds <= AUTO_SECONDS and whole.peak_bytes <= _free_memory(local.errors.device):
        return active
    share = AUTO_SECONDS / whole.seconds
    share = min(share, _free_memory(local.errors.device) / whole.peak_bytes)
    return max(1, int(active * share))


def estimate(
    local: Local, n_directions: int, limit: int | None = None, rate: float | None = 0.0
) -> Estimate:
    """Cost of attributing `limit` features (all where None) and the directions.

    Args:
        rate: matrix-product rate in FLOP/s; measured where 0, not needed (seconds = 0) where None.
    """
    index, adapter = local.index, local.adapter
    positions, layers, width = local.n_positions, local.n_layers, adapter.d_model
    counts = torch.zeros(layers + 1, positions, dtype=torch.float64)
    cells = local.features[:, 0] * positions + local.features[:, 1]
    counts[:layers] = torch.bincount(cells, minlength=layers * positions).view(layers, positions)
    below = torch.zeros_like(counts)
    below[1:] = counts[:layers].cumsum(1).cumsum(0)
    counts[layers, -1] = n_directions
    span = torch.arange(1, positions + 1)
    depth = torch.arange(layers + 1)[:, None]
    cone = below + span * (depth + 1)
    heads = adapter.head_dim * adapter.heads
    projections = 2.0 * width * adapter.head_dim * (adapter.heads + adapter.kv_heads) * span
    attention = projections + 2.0 * span**2 * heads
    flops = float((counts * ((depth - 1).clamp(min=0) * attention + 2.0 * width * cone)).sum())
    entries = float((counts * cone).sum())
    active = len(local.features)
    share = 1.0 if limit is None or not active else min(1.0, limit / active)
    flops, entries = flops * share, entries * share
    item = local.errors.element_size()
    written = sum(
        len(index.feature_rows(source))
        for layer in range(layers)
        for source in local.transcoders.writers(layer)
    )
    widest = max([n_directions, *(len(index.feature_rows(layer)) for layer in range(layers))])
    chunk = min(widest, max(1, chunk_elements(local.errors.device)[1] // (positions * width)))
    buffers = chunk * (3 * positions * width + active + layers * positions)
    result = int(entries * item)
    steps = positions * layers * (layers + 1) / 2
    rate = matrix_rate(local.errors.device) if rate == 0.0 else rate
    return Estimate(
        n_positions=positions,
        n_active=active,
        n_targets=int(active * share) + n_directions,
        flops=flops,
        seconds=flops * OVER_THE_FLOOR / rate + steps * SECONDS_A_STEP if rate else 0.0,
        result_bytes=result,
        peak_bytes=result + item * (written * width + buffers + 6 * layers * positions * width),
    )


def matrix_rate(device: torch.device, size: int = 512, repeats: int = 4) -> float:
    """Measured float32 matrix-product rate in FLOP/s; takes a few milliseconds."""
    a = torch.ones(size, size, device=device)
    best = float("inf")
    for _ in range(repeats):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best


def chunk_elements(device: torch.device) -> tuple[int, int]:
    return CHUNK_ELEMENTS["cuda" if device.type == "cuda" else "cpu"]


def _free_memory(device: torch.device) -> float:
    """Bytes that can still be taken, as far as the system says."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            fields = dict(line.split(":", 1) for line in file)
        return float(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return float("inf")


def check_memory(planned: Estimate, device: torch.device) -> None:
    free = _free_memory(device)
    if planned.peak_bytes > free:
        fitting = max(1, int(planned.n_targets * free / planned.peak_bytes * 0.8))
        raise MemoryBudgetError(
            f"this graph needs about {planned.peak_bytes / 2**30:.1f} GiB and {free / 2**30:.1f} "
            f"GiB are free; expand fewer features, e.g. --max-features {fitting}"
        )
