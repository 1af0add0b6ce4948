"""Seconds of a piece of work on a device, and their percentiles."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch

Spread = dict[str, float]


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


LONGEST = 3.0
"""Seconds that the rounds of one measurement may take together; there are three at least."""


def seconds(call: Callable[[], object], device: torch.device, rounds: int) -> list[float]:
    """Seconds of each of some calls, after one that is not counted; by events on a GPU."""
    call()
    synchronize(device)
    once = _wall(lambda: (call(), synchronize(device)))
    rounds = min(rounds, max(3, int(LONGEST / once)))
    if device.type != "cuda":
        return [once, *(_wall(call) for _ in range(rounds - 1))]
    marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(rounds)]
    for start, stop in marks:
        start.record()
        call()
        stop.record()
    synchronize(device)
    return [start.elapsed_time(stop) / 1e3 for start, stop in marks]


def _wall(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def percentiles(values: Sequence[float]) -> Spread:
    """p20, p50 and p80 to four digits."""
    if len(values) == 1:
        cuts = [values[0]] * 3
    else:
        fifths = statistics.quantiles(values, n=5, method="inclusive")
        cuts = [fifths[0], statistics.median(values), fifths[3]]
    names = ("p20", "p50", "p80")
    return {name: float(f"{cut:.4g}") for name, cut in zip(names, cuts, strict=True)}


def gemm_rate(device: torch.device, dtype: torch.dtype, size: int, rounds: int) -> float:
    """FLOP/s of a square matrix product, median; float32 at torch's present precision."""
    a, b = torch.randn(2, size, size, device=device).to(dtype)
    out = torch.empty_like(a)
    return (
        2.0 * size**3 / statistics.median(seconds(lambda: torch.mm(a, b, out=out), device, rounds))
    )


def copy_rate(device: torch.device, elements: int, rounds: int) -> float:
    """Bytes read and written a second by a copy of float32, median."""
    a = torch.zeros(elements, device=device)
    b = torch.empty_like(a)
    return 2.0 * a.nbytes / statistics.median(seconds(lambda: b.copy_(a), device, rounds))
