"""One run of ours, measured: attribution, pruning, what attribution costs at the least, or how much
memory it takes where only the strongest edges are stored.

    python tests/benchmarks/our_run.py attribute CASE [--max-features N] [--matrix FILE]
    python tests/benchmarks/our_run.py prune NODES
    python tests/benchmarks/our_run.py floor CASE
    python tests/benchmarks/our_run.py keep SHARE

Loading is not measured; --threads N is 1 by default. The result is one JSON object on standard
output.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import case
import torch
from meter import Meter

from circuit_tracer.attribute import attribute as edges_of
from circuit_tracer.edges import EdgeRows, RowBlock
from circuit_tracer.estimate import estimate, rehearse
from circuit_tracer.graph import Graph, Provenance, Target
from circuit_tracer.influence import flow, scores
from circuit_tracer.loading import load
from circuit_tracer.nodes import NodeIndex
from circuit_tracer.targets import choose


def attribute(folder: Path, max_features: int | None, matrix: Path | None) -> dict[str, Any]:
    model = load(str(folder / "model"), str(folder / "transcoders"), device="cpu")
    ids = case.prompt(folder)
    with Meter() as meter:
        forward = model.run(ids)
        local, directions = model.localise(forward), choose(model, forward)
        rows = edges_of(local, directions, max_features)
    if matrix is not None:
        from safetensors.torch import save_file

        tensors = {"features": local.features, "matrix": rows.dense(), "rows": rows.rows}
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, matrix)
    planned = estimate(local, directions, max_features, rate=None)
    return {
        **meter.figures,
        "active_features": len(local.features),
        "nodes": len(rows.index),
        "rows": len(rows.rows),
        "rows_mib": sum(block.values.nbytes for block in rows.blocks) / 2**20,
        "planned_mib": planned.peak_bytes / 2**20,
        "planned_gflop": planned.flops / 1e9,
        "closure": float(rows.residual.abs().max()),
    }


def floor(folder: Path) -> dict[str, Any]:
    """CPU seconds of the sweep beside its operations at the measured matrix-product rate.

    The rate is measured before and after, in CPU seconds too; the floor is the sweep alone,
    without the forward pass, since that is what the operation count counts.
    """
    model = load(str(folder / "model"), str(folder / "transcoders"), device="cpu")
    forward = model.run(case.prompt(folder))
    local, directions = model.localise(forward), choose(model, forward)
    edges_of(local, directions, 100)  # warm up
    before = product_rate()
    with Meter() as meter:
        edges_of(local, directions, None)
    rate = statistics.mean((before, product_rate()))
    flops = estimate(local, directions, None, rate=None).flops
    return {
        **meter.figures,
        "gflop": flops / 1e9,
        "gflop_per_s": rate / 1e9,
        "floor_s": flops / rate,
        "over_floor": meter.figures["cpu_s"] * rate / flops,
    }


def keep(share: float) -> dict[str, Any]:
    """A complete graph of many features (scaling.py), the strongest edges of each row stored."""
    import scaling

    net = scaling.model()
    model = scaling.replacement(net, scaling.MANY)
    ids = scaling.prompt(scaling.SHORT)
    with Meter() as meter:
        forward = model.run(ids)
        local, directions = model.localise(forward, owned=True), choose(model, forward)
        del forward
        rows = edges_of(local, directions, None, keep_edges=share)
    planned = rehearse(local, directions).estimate(None, None, share)
    weights = torch.tensor([direction.weight for direction in directions], dtype=torch.float64)
    with Meter() as flowing:
        found = flow(rows, weights)
    ends = scores(rows, weights, found=found)
    return {
        **meter.figures,
        "active_features": len(local.features),
        "edges": found.n_edges,
        "rows_mib": sum(block.nbytes for block in rows.blocks) / 2**20,
        "planned_rows_mib": planned.result_bytes / 2**20,
        "planned_mib": planned.peak_bytes / 2**20,
        "left_along_others": ends.pruned_share,
        "replacement": ends.replacement,
        "closure": float(rows.residual.abs().max()),
        "influence_s": flowing.figures["cpu_s"],
    }


def product_rate(size: int = 512, repeats: int = 30) -> float:
    """FLOP per CPU second of a float32 matrix product, median."""
    a, b = torch.randn(2, size, size)
    out, seconds = torch.empty(size, size), []
    for _ in range(repeats):
        start = time.process_time()
        torch.mm(a, b, out=out)
        seconds.append(time.process_time() - start)
    return 2.0 * size**3 / statistics.median(seconds)


def prune(nodes: int) -> dict[str, Any]:
    graph = graph_of(*case.dag(nodes))
    with Meter() as meter:
        circuit = graph.prune(nodes=0.8, edges=0.98)
        scores = graph.scores
    return {
        **meter.figures,
        "kept_nodes": len(circuit.nodes),
        "kept_edges": len(circuit.weights),
        "replacement": scores.replacement,
    }


def graph_of(features: torch.Tensor, matrix: torch.Tensor, chances: torch.Tensor) -> Graph:
    """A graph with the edges of a dense matrix."""
    logits = len(chances)
    at_end = torch.full((logits,), case.TOKENS - 1)
    index = NodeIndex(features, case.LAYERS, case.TOKENS, at_end)
    cells, blocks = index.layers * case.TOKENS + index.positions, []
    first_source = index.first_error
    for cell in cells[:first_source].unique().tolist() + [int(cells[-1])]:
        layer, position = divmod(cell, case.TOKENS)
        mine = (cells == cell).nonzero()[:, 0]
        mine = mine[(mine < first_source) | (mine >= index.first_target)]
        values = matrix[mine[:, None], index.cone(layer, position)]
        blocks.append(RowBlock(layer, position, mine, values))
    zero = torch.zeros(len(index))
    return Graph(
        edges=EdgeRows(index, tuple(blocks), zero, zero, zero, torch.full_like(zero, torch.nan)),
        activations=torch.ones(len(features)),
        targets=tuple(
            Target(f"w{number}", number, case.TOKENS - 1, chance, chance)
            for number, chance in enumerate(chances.tolist())
        ),
        tokens=tuple(f"w{position}" for position in range(case.TOKENS)),
        token_ids=tuple(range(case.TOKENS)),
        provenance=Provenance(
            prompt="", model="random", transcoders="random", transcoder_kind="plt"
        ),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", choices=("attribute", "floor", "prune", "keep"))
    parser.add_argument("what", help="the case's folder, a number of nodes, or a share")
    parser.add_argument("--max-features", type=int)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--matrix", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.work == "prune":
        found = prune(int(given.what))
    elif given.work == "keep":
        found = keep(float(given.what))
    elif given.work == "floor":
        found = floor(Path(given.what))
    else:
        found = attribute(Path(given.what), given.max_features, given.matrix)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
