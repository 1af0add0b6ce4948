"""What each kernel is measured on: inputs of a real shape, how to tell that it is right, its floor.

Shapes are those of Gemma 2 2B (d_model 2304, 8 heads of 256 over 4 key-value heads, 16,384 features
a layer, 60 of them active at each of 64 positions); `clt` has the ragged positions and many more
features that write to one layer in a cross-layer transcoder. `tiny` runs the same in a second.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Inputs = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    positions: int = 64
    width: int = 2304
    features: int = 16384
    active: int = 60
    targets: int = 1024
    heads: int = 8
    kv_heads: int = 4
    head_dim: int = 256
    mixed_targets: int = 256
    rows: int = 1500
    columns: int = 50_000


TINY = Sizes(2, 20, 40, 3, 5, 2, 1, 4, 3, 2, 40)
REAL = Sizes()


@dataclass(frozen=True)
class Case:
    """One kernel on one shape.

    Attributes:
        kernel: name in `circuit_kernels.choice.KERNELS`.
        name: of the shape.
        shapes: for the record.
        inputs: keyword arguments of the kernel.
        outputs: names of what it writes in place; where empty it returns its result.
        flops, traffic: operations, and bytes that have to be moved at the least.
        rivals: other torch forms, by name; they are given the inputs.
        check: error of a result against a truth, where closeness of tensors is not the measure.
    """

    kernel: str
    name: str
    shapes: dict[str, int]
    inputs: Inputs
    outputs: tuple[str, ...]
    flops: float
    traffic: float
    rivals: dict[str, Callable[[Inputs], object]] = field(default_factory=dict)
    check: Callable[[Any, Any], float] | None = None

    def fresh(self, double: bool = False) -> Inputs:
        """A copy of the inputs, floats as float64 where asked."""
        return {name: _copied(value, double) for name, value in self.inputs.items()}

    def result(self, form: Callable[..., Any], double: bool = False) -> Any:
        """What a form makes of a copy of the inputs."""
        given = self.fresh(double)
        returned = form(**given)
        return {name: given[name] for name in self.outputs} if self.outputs else returned

    def error(self, found: Any, truth: Any) -> float:
        """Largest error, relative to the largest entry."""
        if self.check is not None:
            return self.check(found, truth)
        apart = 0.0
        for name in self.outputs:
            scale = max(float(truth[name].abs().max()), 1e-30)
            worst = float((found[name].double() - truth[name]).abs().max()) / scale
            apart = max(apart, worst) if worst == worst else float("inf")
        return apart


def _copied(value: Any, double: bool) -> Any:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    return value.double() if double and value.dtype != torch.float64 else value.clone()


def cases(device: torch.device, tiny: bool) -> Iterator[Case]:
    """All cases, made one at a time."""
    sizes = TINY if tiny else REAL
    draw = torch.Generator(device).manual_seed(0)
    for make in (edge_rows, gathered_plt, gathered_clt, encode_threshold, encode_topk,
                 sparse_decode, attention_mix, influence, threshold_selection):  # fmt: skip
        yield make(sizes, draw)


def _random(draw: torch.Generator, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=draw, device=draw.device).to(dtype)


def _sources(s: Sizes, draw: torch.Generator, counts: list[int]) -> Inputs:
    """A bfloat16 decoder table, and which of its rows are active at each position."""
    starts = [0, *itertools.accumulate(counts)]
    return {
        "table": _random(draw, s.features, s.width, dtype=torch.bfloat16),
        "ids": torch.randint(s.features, (starts[-1],), generator=draw, device=draw.device),
        "activations": _random(draw, starts[-1]).abs(),
        "starts": starts,
    }


def _gradient(s: Sizes, draw: torch.Generator) -> Tensor:
    """(positions, d_model, targets), target by target in memory, as the sweep has it."""
    return _random(draw, s.targets, s.positions, s.width).permute(1, 2, 0)


def edge_rows(s: Sizes, draw: torch.Generator) -> Case:
    starts = [0, *itertools.accumulate([s.active] * s.positions)]
    given = {
        "gradient": _gradient(s, draw),
        "vectors": _random(draw, starts[-1], s.width),
        "starts": starts,
        "out": _random(draw, s.targets, starts[-1]).T,
    }
    return Case(
        kernel="edge_rows",
        name="plt",
        shapes={"positions": s.positions, "d_model": s.width, "targets": s.targets,
                "sources": starts[-1]},
        inputs=given,
        outputs=("out",),
        flops=2.0 * starts[-1] * s.width * s.targets,
        traffic=given["gradient"].nbytes + given["vectors"].nbytes + 2.0 * given["out"].nbytes,
        rivals={"one bmm": lambda given: _as_one_bmm(given, s)},
    )  # fmt: skip


def _as_one_bmm(given: Inputs, s: Sizes) -> None:
    """Best case of a batched product: all positions have the same number of sources."""
    vectors = given["vectors"].view(s.positions, s.active, s.width)
    given["out"].view(s.positions, s.active, s.targets).baddbmm_(vectors, given["gradient"])


def _gathered(s: Sizes, draw: torch.Generator, name: str, counts: list[int]) -> Case:
    given = {
        "gradient": _gradient(s, draw),
        **_sources(s, draw, counts),
        "out": _random(draw, s.targets, sum(counts)).T,
        "beside": _random(draw, s.positions, 3, s.width),
        "beside_out": _random(draw, s.positions, 3, s.targets),
        "counted": 1,
        "sums": torch.zeros(s.targets, device=draw.device),
    }
    sources = sum(counts) + 3 * s.positions
    return Case(
        kernel="gathered_edge_rows",
        name=name,
        shapes={"positions": s.positions, "d_model": s.width, "targets": s.targets,
                "features": s.features, "sources": sum(counts), "beside": 3},
        inputs=given,
        outputs=("out", "beside_out", "sums"),
        flops=2.0 * sources * s.width * s.targets,
        traffic=given["gradient"].nbytes + 2.0 * sum(counts) * s.width
        + 2.0 * (given["out"].nbytes + given["beside_out"].nbytes),
    )  # fmt: skip


def gathered_plt(s: Sizes, draw: torch.Generator) -> Case:
    return _gathered(s, draw, "plt", [s.active] * s.positions)


def gathered_clt(s: Sizes, draw: torch.Generator) -> Case:
    """Ragged: from none at all to three times as many as on the average of a per-layer set."""
    counts = [3 * s.active * p // max(1, s.positions - 1) for p in range(s.positions)]
    return _gathered(s, draw, "clt", counts)


def _encode(s: Sizes, draw: torch.Generator, name: str, k: int | None) -> Case:
    given: Inputs = {
        "x": _random(draw, s.positions, s.width),
        "weight": _random(draw, s.features, s.width, dtype=torch.bfloat16),
        "bias": torch.zeros(s.features, device=draw.device),
        "threshold": None,
        "k": k,
    }
    pre = given["x"] @ given["weight"].float().T
    if k is None:
        level = pre.flatten().kthvalue(pre.numel() - s.active * s.positions).values
        given["threshold"] = level.expand(s.features).clone()

    def check(found: Any, truth: Any) -> float:
        """Cells that only one side has must lie at their threshold; values must agree."""
        dense = [torch.zeros_like(pre, dtype=torch.float64) for _ in range(2)]
        for into, side in zip(dense, (found, truth), strict=True):
            into[side.cells[:, 0], side.cells[:, 1]] = side.values.double()
        either = (dense[0] != 0) | (dense[1] != 0)
        lowest = dense[1].where(dense[1] > 0, torch.inf).amin(1, keepdim=True)
        apart = (dense[0] - dense[1]).abs()
        lone = either & ((dense[0] != 0) != (dense[1] != 0))
        apart = torch.where(lone, (dense[0] + dense[1] - lowest).abs(), apart)
        return float(apart.max()) / max(float(dense[1].abs().max()), 1e-30)

    return Case(
        kernel="encode",
        name=name,
        shapes={"positions": s.positions, "d_model": s.width, "features": s.features,
                "active": s.active},
        inputs=given,
        outputs=(),
        flops=2.0 * pre.numel() * s.width,
        traffic=given["weight"].nbytes + given["x"].nbytes,
        check=check,
    )  # fmt: skip


def encode_threshold(s: Sizes, draw: torch.Generator) -> Case:
    return _encode(s, draw, "jump_relu", None)


def encode_topk(s: Sizes, draw: torch.Generator) -> Case:
    return _encode(s, draw, "topk", s.active)


def sparse_decode(s: Sizes, draw: torch.Generator) -> Case:
    given = {
        **_sources(s, draw, [s.active] * s.positions),
        "out": _random(draw, s.positions, s.width),
    }
    return Case(
        kernel="sparse_decode",
        name="plt",
        shapes={"positions": s.positions, "d_model": s.width, "active": s.active * s.positions},
        inputs=given,
        outputs=("out",),
        flops=2.0 * s.active * s.positions * s.width,
        traffic=2.0 * s.active * s.positions * s.width + 2.0 * given["out"].nbytes,
    )


def attention_mix(s: Sizes, draw: torch.Generator) -> Case:
    columns = s.head_dim * s.mixed_targets
    given = {
        "read": _random(draw, s.heads, columns, s.positions).permute(2, 0, 1),
        "pattern": _random(draw, s.heads, s.positions, s.positions).softmax(-1).tril(),
        "out": torch.zeros(s.kv_heads, columns, s.positions, device=draw.device).permute(2, 0, 1),
    }
    return Case(
        kernel="attention_mix",
        name="grouped heads",
        shapes={"positions": s.positions, "heads": s.heads, "kv_heads": s.kv_heads,
                "columns": columns},
        inputs=given,
        outputs=("out",),
        flops=1.0 * s.heads * s.positions * (s.positions + 1) * columns,
        traffic=float(given["read"].nbytes + given["out"].nbytes),
    )  # fmt: skip


def influence(s: Sizes, draw: torch.Generator) -> Case:
    nodes = torch.randperm(2 * s.columns, generator=draw, device=draw.device)[: s.columns]
    given = {
        "values": _random(draw, s.rows, s.columns),
        "mass": _random(draw, s.rows).abs().double(),
        "columns": nodes,
        "out": torch.zeros(2 * s.columns, dtype=torch.float64, device=draw.device),
    }
    return Case(
        kernel="influence",
        name="one block",
        shapes={"rows": s.rows, "columns": s.columns},
        inputs=given,
        outputs=("out",),
        flops=4.0 * s.rows * s.columns,
        traffic=2.0 * given["values"].nbytes,
    )


def threshold_selection(s: Sizes, draw: torch.Generator) -> Case:
    block = (_random(draw, s.rows, s.columns), _random(draw, s.rows).abs())

    def check(found: Any, truth: Any) -> float:
        """Apart by what rounding of sums may do to the number kept."""
        return abs(found.kept - truth.kept) / max(1, truth.kept)

    def by_sorting(_given: Inputs) -> object:
        scores = (block[0].abs() * block[1][:, None]).flatten().sort(descending=True).values
        return scores.double().cumsum(0)

    return Case(
        kernel="threshold_selection",
        name="one block",
        shapes={"rows": s.rows, "columns": s.columns},
        inputs={"blocks": [block], "share": 0.98},
        outputs=(),
        flops=0.0,
        traffic=float(block[0].nbytes),
        rivals={"a sort": by_sorting},
        check=check,
    )
