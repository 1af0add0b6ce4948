"""Edge rows in Triton: one grouped matrix product for all positions in one launch.

The reference launches one product a position, most of them too small to fill a GPU. Here a
program is one tile of (sources of a position × targets), and positions with fewer tiles than the
longest end theirs at once. Vectors laid out or gathered from a decoder table, and the rows that
stand beside the features, are the same product: a tile's rows are the position's features, then
its rows beside. Sums are in float32 (float64 for float64), in a fixed order: deterministic.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from circuit_kernels import launch
from circuit_kernels.edge_rows import check, check_gathered


@triton.jit
def _kernel(
    gradient, table, ids, activations, starts, out, beside, beside_out, partial,
    width, targets, rows_beside, counted, g_position, g_width, g_target, t_row, t_width,
    o_row, o_column, b_position, b_row, bo_position, bo_row, bo_column,
    SOURCES: tl.constexpr, TARGETS: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
    SUM: tl.constexpr, GATHER: tl.constexpr, BESIDE: tl.constexpr, SUMS: tl.constexpr,
):  # fmt: skip
    tile, position = tl.program_id(0), tl.program_id(2).to(tl.int64)
    first = tl.load(starts + position)
    here = tl.load(starts + position + 1) - first
    place = tile.to(tl.int64) * SOURCES + tl.arange(0, SOURCES).to(tl.int64)
    columns = tl.program_id(1).to(tl.int64) * TARGETS + tl.arange(0, TARGETS).to(tl.int64)
    source, extra = place < here, (place >= here) & (place < here + rows_beside)
    row = first + place
    if GATHER:
        row = tl.load(ids + row, mask=source, other=0).to(tl.int64)
    total = tl.zeros((SOURCES, TARGETS), dtype=SUM)
    extras = beside + position * b_position + (place - here)[:, None] * b_row
    if tile * SOURCES < here + rows_beside:
        for start in range(0, width, WIDTH):
            depth = start + tl.arange(0, WIDTH).to(tl.int64)
            inside = (depth < width)[None, :]
            across = depth[:, None] * g_width + columns[None, :] * g_target
            b = tl.load(
                gradient + position * g_position + across,
                mask=(depth < width)[:, None] & (columns < targets)[None, :],
                other=0.0,
            )
            a = tl.load(
                table + row[:, None] * t_row + depth[None, :] * t_width,
                mask=source[:, None] & inside,
                other=0.0,
            ).to(b.dtype)
            if BESIDE:
                a += tl.load(extras + depth[None, :], mask=extra[:, None] & inside, other=0.0).to(
                    b.dtype
                )
            total = tl.dot(a, b, total, input_precision=PRECISION)
    if GATHER:
        scale = tl.load(activations + first + place, mask=source, other=1.0).to(SUM)
        total *= scale[:, None]
    within = (columns < targets)[None, :]
    where = out + (first + place)[:, None] * o_row + columns[None, :] * o_column
    found = tl.load(where, mask=source[:, None] & within, other=0.0) + total
    tl.store(where, found, mask=source[:, None] & within)
    edges = source
    if BESIDE:
        where = beside_out + position * bo_position + (place - here)[:, None] * bo_row
        where += columns[None, :] * bo_column
        added = tl.load(where, mask=extra[:, None] & within, other=0.0) + total
        tl.store(where, added, mask=extra[:, None] & within)
        found = tl.where(extra[:, None], added, found)
        edges = source | (extra & (place < here + counted))
    if SUMS:
        line = position * tl.num_programs(0) + tile
        absolute = tl.sum(tl.where(edges[:, None], tl.abs(found.to(SUM)), 0.0), axis=0)
        tl.store(partial + line * targets + columns, absolute, mask=columns < targets)


def _launch(
    gradient: Tensor,
    table: Tensor,
    ids: Tensor | None,
    activations: Tensor | None,
    starts: Sequence[int],
    out: Tensor,
    beside: Tensor | None,
    beside_out: Tensor | None,
    counted: int | None,
    sums: Tensor | None,
    exact: bool | None,
    tiles: launch.Tiles | None,
) -> None:
    if beside is not None and beside.numel() and beside.stride(-1) != 1:
        raise ValueError("beside must be contiguous in its last axis")
    positions, width, targets = gradient.shape
    rows_beside = 0 if beside is None else beside.shape[1]
    counts = [stop - first for first, stop in zip(starts, starts[1:], strict=False)]
    most = max(counts, default=0) + rows_beside
    if most == 0 or targets == 0:
        return
    double = gradient.dtype == torch.float64
    tiles = launch.tiles("edge_rows", out.device, gradient.dtype, exact) if tiles is None else tiles
    grid = (triton.cdiv(most, tiles["SOURCES"]), triton.cdiv(targets, tiles["TARGETS"]), positions)
    partial = None
    if sums is not None:
        partial = sums.new_empty(
            positions * grid[0], targets, dtype=torch.float64 if double else torch.float32
        )
    given = gradient if beside is None else beside  # any pointer will do where none is followed
    written = out if beside_out is None else beside_out
    with launch.on(out.device):
        _kernel[grid](
            gradient, table, ids, activations, launch.offsets(tuple(starts), out.device), out,
            given, written, partial, width, targets, rows_beside,
            rows_beside if counted is None else counted,
            *gradient.stride(), *table.stride(), *out.stride(),
            given.stride(0), given.stride(1), written.stride(0), written.stride(1),
            written.stride(-1),
            PRECISION=launch.precision(exact), SUM=tl.float64 if double else tl.float32,
            GATHER=ids is not None, BESIDE=rows_beside > 0, SUMS=sums is not None, **tiles,
        )  # fmt: skip
    if sums is not None:
        sums += partial.sum(0)


def edge_rows(
    gradient: Tensor,
    vectors: Tensor,
    starts: Sequence[int],
    out: Tensor,
    exact: bool | None = None,
    tiles: launch.Tiles | None = None,
) -> None:
    """As `circuit_kernels.edge_rows.edge_rows`; `exact` as in `launch.precision`."""
    check(gradient, vectors, starts, out)
    _launch(gradient, vectors, None, None, starts, out, None, None, None, None, exact, tiles)


def gathered_edge_rows(
    gradient: Tensor,
    table: Tensor,
    ids: Tensor,
    activations: Tensor,
    starts: Sequence[int],
    out: Tensor,
    beside: Tensor | None = None,
    beside_out: Tensor | None = None,
    counted: int | None = None,
    sums: Tensor | None = None,
    exact: bool | None = None,
    tiles: launch.Tiles | None = None,
) -> None:
    """As `circuit_kernels.edge_rows.gathered_edge_rows`; `exact` as in `launch.precision`."""
    check_gathered(gradient, table, ids, activations, starts, out, beside, beside_out, sums)
    _launch(
        gradient, table, ids.contiguous(), activations.contiguous(), starts, out,
        beside, beside_out, counted, sums, exact, tiles,
    )  # fmt: skip
