"""How attribution grows with the prompt and with the dictionary, against its operation count.

    python tests/benchmarks/scaling.py [--picture FILE.svg] [--json FILE]

A random Llama of 4 layers, d_model 128, 4 heads; random ReLU transcoders. Prompts of 16 to 256
tokens with 1,024 features a layer, and 1,024 to 32,768 features a layer over 12 tokens, about one
in 50 of them active at each (layer, position). CPU seconds of one thread, best of three: the
forward pass and the encoders, and the complete sweep. Beside them stand the operations that each
has to do. Slopes are those of a straight line through the logarithms.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from circuit_tracer.attribute import attribute
from circuit_tracer.estimate import estimate
from circuit_tracer.models.adapter import Adapter
from circuit_tracer.replacement import ReplacementModel
from circuit_tracer.targets import choose
from circuit_tracer.transcoders.base import LayerWeights, TranscoderSet

LAYERS, WIDTH, HEADS, VOCABULARY, SHARE = 4, 128, 4, 512, 256
SHORT = 12
TOKENS = (16, 32, 64, 128, 256)
FEATURES = (1024, 2048, 4096, 8192, 16384, 32768)
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


def transcoders(net: LlamaForCausalLM, features: int) -> TranscoderSet:
    """Random ones whose biases let few of them fire."""
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
    for read in seen:
        encoder = torch.randn(features, WIDTH, generator=draw) / WIDTH**0.5
        level = (read @ encoder.T).kthvalue(int(len(read) * (1 - 1 / SHARE)), dim=0).values
        decoder = torch.randn(features, WIDTH, generator=draw) * 0.02
        layers.append(LayerWeights(encoder, -level, (decoder,), torch.zeros(WIDTH)))
    return TranscoderSet("plt", "mlp.hook_in", "mlp.hook_out", LAYERS, layers.__getitem__, "random")


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def replacement(net: LlamaForCausalLM, features: int) -> ReplacementModel:
    return ReplacementModel(Adapter(net, "random"), NoTokenizer(), transcoders(net, features))


def prompt(tokens: int) -> list[int]:
    draw = torch.Generator().manual_seed(1)
    return torch.randint(1, VOCABULARY, (tokens,), generator=draw).tolist()


def measure(net: LlamaForCausalLM, tokens: int, features: int) -> dict[str, float]:
    replaced, ids = replacement(net, features), prompt(tokens)
    best: dict[str, float] = {}
    for _ in range(3):
        start = cpu_seconds()
        forward = replaced.run(ids)
        local, directions = replaced.localise(forward), choose(replaced, forward)
        middle = cpu_seconds()
        attribute(local, directions, None)
        times = {"forward_s": middle - start, "sweep_s": cpu_seconds() - middle}
        best = {name: min(best.get(name, math.inf), time) for name, time in times.items()}
    planned = estimate(local, directions, None, rate=None)
    return {
        "tokens": tokens,
        "features_per_layer": features,
        "active_features": len(local.features),
        **best,
        "sweep_gflop": planned.flops / 1e9,
        "encode_gflop": 2.0 * LAYERS * tokens * features * WIDTH / 1e9,
    }


def slope(rows: list[dict[str, float]], x: str, y: str) -> float:
    """Of the straight line through the logarithms."""
    xs = [math.log(row[x]) for row in rows]
    ys = [math.log(row[y]) for row in rows]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    over = sum((a - mean_x) * (b - mean_y) for a, b in zip(xs, ys, strict=True))
    return over / sum((a - mean_x) ** 2 for a in xs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    net = model()
    series: dict[str, Any] = {
        "tokens": [measure(net, tokens, FEATURES[0]) for tokens in TOKENS],
        "active_features": [measure(net, SHORT, features) for features in FEATURES],
    }
    print(f"{'tokens':>7}{'features':>10}{'active':>9}{'forward s':>11}{'sweep s':>9}{'GFLOP':>9}")
    for rows in series.values():
        for row in rows:
            print(
                f"{row['tokens']:7.0f}{row['features_per_layer']:10,.0f}"
                f"{row['active_features']:9,.0f}{row['forward_s']:11.3f}{row['sweep_s']:9.3f}"
                f"{row['sweep_gflop']:9.2f}"
            )
    for name, rows in series.items():
        time, work = slope(rows, name, "sweep_s"), slope(rows, name, "sweep_gflop")
        print(f"sweep against {name}: exponent {time:.2f} of time, {work:.2f} of operations")
    if given.json:
        given.json.write_text(json.dumps(series, indent=1))
    if given.picture:
        given.picture.write_text(picture(series))


def picture(series: dict[str, Any]) -> str:
    """Two log-log panels: measured seconds, and operations at the rate of the largest case."""
    panels = [
        panel(rows, name, 60 + 400 * number) for number, (name, rows) in enumerate(series.items())
    ]
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 830 330" font-family="sans-serif" '
        'font-size="12"><rect width="830" height="330" fill="#fbfbf9"/>'
        + "".join(panels)
        + "</svg>\n"
    )


def panel(rows: list[dict[str, float]], name: str, left: int) -> str:
    """One of them, 330 wide."""
    last = rows[-1]
    ideal = [row["sweep_gflop"] * last["sweep_s"] / last["sweep_gflop"] for row in rows]
    times = [row["sweep_s"] for row in rows]
    low, high = math.log10(min(times + ideal)), math.log10(max(times + ideal))
    first, final = math.log10(rows[0][name]), math.log10(last[name])

    def place(x: float, y: float) -> tuple[float, float]:
        across = (math.log10(x) - first) / (final - first)
        up = (math.log10(y) - low) / (high - low)
        return left + 330 * across, 280 - 240 * up

    def line(values: list[float], style: str) -> str:
        points = " ".join(
            "{:.1f},{:.1f}".format(*place(row[name], value))
            for row, value in zip(rows, values, strict=True)
        )
        return f'<polyline fill="none" {style} points="{points}"/>'

    marks = "".join(
        mark(*place(row[name], time), f"{row[name]:,.0f}", f"{time:.2g} s")
        for row, time in zip(rows, times, strict=True)
    )
    title = f"sweep, by {name.replace('_', ' ')} (log-log)"
    return (
        f'<text x="{left}" y="20" font-weight="bold">{title}</text>'
        + line(ideal, 'stroke="#C4500A" stroke-dasharray="5 4"')
        + line(times, 'stroke="#0072B2" stroke-width="2"')
        + marks
        + f'<text x="{left}" y="322" fill="#C4500A">dashed: operations, at the rate of the last '
        "point</text>"
    )


def mark(x: float, y: float, below: str, above: str) -> str:
    """A point, what it is, and how high."""
    return (
        f'<circle r="4" fill="#0072B2" cx="{x:.1f}" cy="{y:.1f}"/>'
        f'<text x="{x:.1f}" y="300" text-anchor="middle">{below}</text>'
        f'<text x="{x:.1f}" y="{y - 10:.1f}" text-anchor="middle">{above}</text>'
    )


if __name__ == "__main__":
    main()
