"""How attribution grows with the prompt and with the dictionary, against its operation count.

    python tests/benchmarks/scaling.py [--kinds plt clt neurons] [--threads 2] [--picture FILE.svg]

A random Llama of 4 layers, d_model 128, 4 heads; random ReLU transcoders, per-layer or cross-layer,
or its own MLP neurons. Prompts of 16 to 256 tokens with 1,024 features a layer, and 1,024 to
32,768 features a layer over 12 tokens, about one in 50 of them active at each (layer, position); of
neurons one for 64 of these is kept there. CPU seconds of one thread, best of three, or of
as many runs as `ENOUGH` seconds hold: the forward pass and the encoders, and the complete sweep.
Beside them stand the operations that each has to do. Slopes are those of a straight line through
the logarithms. With --threads the sweep also runs with so many threads, in turn with one, and wall
times are compared: that needs a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from circuit_tracer.attribute import attribute
from circuit_tracer.estimate import estimate
from circuit_tracer.local import Local
from circuit_tracer.models.adapter import Adapter
from circuit_tracer.neurons import neurons
from circuit_tracer.replacement import ReplacementModel
from circuit_tracer.targets import Readout, choose
from circuit_tracer.transcoders.base import LayerWeights, TranscoderSet

LAYERS, WIDTH, HEADS, VOCABULARY, SHARE = 4, 128, 4, 512, 256
SHORT = 12
TOKENS = (16, 32, 64, 128, 256)
FEATURES = (1024, 2048, 4096, 8192, 16384, 32768)
KINDS = {"plt": "#0072B2", "clt": "#C4500A", "neurons": "#00805F"}
"""What stands for the MLPs, and its colour in the picture."""
KEPT = 64
"""A layer keeps one neuron a position for so many features of a transcoder."""
ENOUGH = 6.0
"""CPU seconds after which a case is not repeated."""
MANY = 16384
"""Features a layer of the case on which memory is measured (our_run.py)."""


class NoTokenizer:
    """Prompts here are token ids."""

    all_special_ids = (0,)

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))


def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=max(TOKENS),
        attn_implementation="eager",
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def transcoders(net: LlamaForCausalLM, features: int, kind: str = "plt") -> TranscoderSet:
    """Random ones, "plt" or "clt", whose biases let few of them fire."""
    draw = torch.Generator().manual_seed(features)
    text = torch.randint(1, VOCABULARY, (8, 32), generator=draw)
    seen: list[torch.Tensor] = []
    handles = [
        block.mlp.register_forward_pre_hook(
            lambda _module, args: seen.append(args[0].flatten(0, 1))
        )
        for block in net.model.layers
    ]
    net(text)
    for handle in handles:
        handle.remove()
    layers = []
    for layer, read in enumerate(seen):
        encoder = torch.randn(features, WIDTH, generator=draw) / WIDTH**0.5
        level = (read @ encoder.T).kthvalue(int(len(read) * (1 - 1 / SHARE)), dim=0).values
        written = range(layer, LAYERS if kind == "clt" else layer + 1)
        decoders = [torch.randn(features, WIDTH, generator=draw) * 0.02 for _ in written]
        layers.append(LayerWeights(encoder, -level, decoders, torch.zeros(WIDTH)))
    return TranscoderSet(kind, "mlp.hook_in", "mlp.hook_out", LAYERS, layers.__getitem__, "random")


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def replacement(net: LlamaForCausalLM, features: int, kind: str = "plt") -> ReplacementModel:
    adapter = Adapter(net, "random")
    if kind == "neurons":
        found = neurons(adapter, f"neurons:{features // KEPT}")
    else:
        found = transcoders(net, features, kind)
    return ReplacementModel(adapter, NoTokenizer(), found)


def prompt(tokens: int) -> list[int]:
    draw = torch.Generator().manual_seed(1)
    return torch.randint(1, VOCABULARY, (tokens,), generator=draw).tolist()


def measure(
    net: LlamaForCausalLM, tokens: int, features: int, kind: str = "plt", threads: int = 1
) -> dict[str, float]:
    replaced, ids = replacement(net, features, kind), prompt(tokens)
    best: dict[str, float] = {}
    started = cpu_seconds()
    for _ in range(3):
        start = cpu_seconds()
        forward = replaced.run(ids)
        local, directions = replaced.localise(forward), choose(replaced, forward)
        times = {"forward_s": cpu_seconds() - start}
        start, clock = cpu_seconds(), time.perf_counter()
        attribute(local, directions, None)
        times |= {"sweep_s": cpu_seconds() - start, "wall_s": time.perf_counter() - clock}
        if threads > 1:
            times["threaded_wall_s"] = threaded_wall(local, directions, threads)
        best = {name: min(best.get(name, math.inf), spent) for name, spent in times.items()}
        if cpu_seconds() - started > ENOUGH:
            break
    planned = estimate(local, directions, None, rate=None)
    return {
        "tokens": tokens,
        "features_per_layer": features,
        "active_features": len(local.features),
        **best,
        "sweep_gflop": planned.flops / 1e9,
        "encode_gflop": 2.0 * LAYERS * tokens * features * WIDTH / 1e9,
    }


def threaded_wall(local: Local, directions: Sequence[Readout], threads: int) -> float:
    """Wall seconds of the complete sweep with several threads."""
    torch.set_num_threads(threads)
    clock = time.perf_counter()
    attribute(local, directions, None)
    spent = time.perf_counter() - clock
    torch.set_num_threads(1)
    return spent


def slope(rows: list[dict[str, float]], x: str, y: str) -> float:
    """Of the straight line through the logarithms."""
    xs = [math.log(row[x]) for row in rows]
    ys = [math.log(row[y]) for row in rows]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    over = sum((a - mean_x) * (b - mean_y) for a, b in zip(xs, ys, strict=True))
    return over / sum((a - mean_x) ** 2 for a in xs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="+", choices=tuple(KINDS), default=list(KINDS))
    parser.add_argument("--threads", type=int, default=1, help="compare one thread with so many")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    net = model()
    series: dict[str, Any] = {"tokens": {}, "active_features": {}}
    for kind in given.kinds:
        series["tokens"][kind] = [
            measure(net, tokens, FEATURES[0], kind, given.threads) for tokens in TOKENS
        ]
        series["active_features"][kind] = [
            measure(net, SHORT, features, kind, given.threads) for features in FEATURES
        ]
        for name, found in series.items():
            report(kind, name, found[kind])
    if given.json:
        given.json.write_text(json.dumps(series, indent=1))
    if given.picture:
        given.picture.write_text(picture(series))


def report(kind: str, name: str, rows: list[dict[str, float]]) -> None:
    """Print one series of a kind."""
    time_, work = slope(rows, name, "sweep_s"), slope(rows, name, "sweep_gflop")
    print(f"{kind} against {name}: exponent {time_:.2f} of time, {work:.2f} of operations")
    print(f"{'tokens':>7}{'active':>9}{'forward s':>11}{'sweep s':>9}{'GFLOP':>9}")
    for row in rows:
        wall = row.get("threaded_wall_s")
        print(
            f"{row['tokens']:7.0f}{row['active_features']:9,.0f}{row['forward_s']:11.3f}"
            f"{row['sweep_s']:9.3f}{row['sweep_gflop']:9.2f}"
            + (f"  threads take {wall / row['wall_s']:.2f} of the wall time" if wall else ""),
            flush=True,
        )


def picture(series: dict[str, Any]) -> str:
    """Two log-log panels: measured seconds, and operations at the rate of the largest case."""
    panels = [
        panel(found, name, 60 + 400 * number) for number, (name, found) in enumerate(series.items())
    ]
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 850 380" font-family="sans-serif" '
        'font-size="12"><rect width="850" height="380" fill="#fbfbf9"/>'
        + "".join(panels)
        + "</svg>\n"
    )


def panel(found: dict[str, list[dict[str, float]]], name: str, left: int) -> str:
    """One of them, 330 wide: a line a kind, and its operations dashed."""
    lines: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for kind, rows in found.items():
        rate = rows[-1]["sweep_s"] / rows[-1]["sweep_gflop"]
        lines[kind, "time"] = [(row[name], row["sweep_s"]) for row in rows]
        lines[kind, "operations"] = [(row[name], row["sweep_gflop"] * rate) for row in rows]
    points = [point for line in lines.values() for point in line]
    (first, final), (low, high) = ((min(side), max(side)) for side in zip(*points, strict=True))

    def place(x: float, y: float) -> tuple[float, float]:
        across, up = math.log(x / first) / math.log(final / first), math.log(y / low)
        return left + 330 * across, 280 - 240 * up / math.log(high / low)

    drawn = [
        f'<text x="{left}" y="20" font-weight="bold">sweep, by {name.replace("_", " ")} '
        "(log-log)</text>",
        f'<text x="{left}" y="370">dashed: operations, at the rate of the last point</text>',
    ]
    for (kind, which), line in lines.items():
        style = 'stroke-width="2"' if which == "time" else 'stroke-dasharray="5 4"'
        path = " ".join("{:.1f},{:.1f}".format(*place(*point)) for point in line)
        drawn.append(f'<polyline fill="none" stroke="{KINDS[kind]}" {style} points="{path}"/>')
    for number, (kind, rows) in enumerate(found.items()):
        drawn.append(
            f'<text x="{left}" y="{322 + 16 * number}" fill="{KINDS[kind]}">'
            f"{kind}: time grows with "
            f"exponent {slope(rows, name, 'sweep_s'):.2f}, operations with "
            f"{slope(rows, name, 'sweep_gflop'):.2f}</text>"
        )
        for row in rows:
            x, y = place(row[name], row["sweep_s"])
            drawn.append(f'<circle r="4" fill="{KINDS[kind]}" cx="{x:.1f}" cy="{y:.1f}"/>')
            if not number:
                drawn.append(mark(x, y, f"{row[name]:,.0f}", f"{row['sweep_s']:.2g} s"))
    return "".join(drawn)


def mark(x: float, y: float, below: str, beside: str) -> str:
    """What a point is, and how high."""
    return (
        f'<text x="{x:.1f}" y="300" text-anchor="middle">{below}</text>'
        f'<text x="{x + 8:.1f}" y="{y + 14:.1f}">{beside}</text>'
    )


if __name__ == "__main__":
    main()
