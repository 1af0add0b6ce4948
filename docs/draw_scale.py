"""Draw docs/images/scale.svg: bytes and times of docs/scale.py against the features of a set."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import scale

PICTURE = Path(__file__).parent / "images" / "scale.svg"
WIDTH, HEIGHT, TOP = 300, 250, 40
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#7f8c8d")
STYLE = """
  text { font: 12px ui-sans-serif, system-ui, sans-serif; fill: #1c1e21 }
  .title { font-weight: 600 }
  .quiet { font-size: 10.5px; fill: #50565c }
  .grid { stroke: #7f8c8d; opacity: .25 }
  @media (prefers-color-scheme: dark) { text { fill: #e8eaed } .quiet { fill: #a5acb3 } }
"""
Of = Callable[[scale.Shape], float]
BYTES: dict[str, Of] = {
    "cross-layer set": lambda s: 2 * s.cross_layer,
    "per-layer set": lambda s: 4 * s.encoders,
    "model": lambda s: 2 * s.parameters,
    "counts of a feature store": lambda s: s.all_features * scale.tally(),
    "a graph, 10,000 rows": lambda s: 4 * s.sweep(scale.TOKENS, scale.ROWS)[1],
}
TIMES: dict[str, Of] = {
    "store of 10⁹ tokens: encoders": scale.copied,
    "training on 10⁹ tokens, per-layer": lambda s: scale.training(s, 2 * s.encoders),
    "store of 10⁹ tokens: operations": lambda s: s.forward(scale.CORPUS) / scale.RATE,
    "1,000 graphs, 10,000 rows": lambda s: scale.PROMPTS * s.seconds(scale.TOKENS, scale.ROWS),
    "one graph, all rows": lambda s: s.seconds(scale.TOKENS, None),
}
CLOCK = ((1, "1 s"), (60, "1 min"), (3600, "1 h"), (86_400, "1 d"), (8_640_000, "100 d"))
SIZES = tuple((10.0**k, scale.size(10.0**k)) for k in (6, 8, 10, 12))


def panel(title: str, lines: dict[str, Of], ticks: Sequence[tuple[float, str]], left: int) -> str:
    """One log-log plot; the names of its lines stand at their right ends."""
    shapes = scale.SHAPES[1:] if lines is TIMES else scale.SHAPES
    across = [math.log10(shape.all_features) for shape in shapes]
    values = {name: [math.log10(of(shape)) for shape in shapes] for name, of in lines.items()}
    marks = [math.log10(value) for value, _ in ticks]
    low = min(*marks, *(min(line) for line in values.values()))
    high = max(*marks, *(max(line) for line in values.values()))

    def x(value: float) -> float:
        return left + WIDTH * (value - across[0]) / (across[-1] - across[0])

    def y(value: float) -> float:
        return TOP + HEIGHT * (high - value) / (high - low)

    parts = [f'<text class="title" x="{left}" y="20">{title}</text>']
    for mark, (_, said) in zip(marks, ticks, strict=True):
        parts.append(
            f'<line class="grid" x1="{left}" x2="{left + WIDTH}" y1="{y(mark):.1f}" '
            f'y2="{y(mark):.1f}"/><text class="quiet" text-anchor="end" x="{left - 6}" '
            f'y="{y(mark) + 4:.1f}">{said}</text>'
        )
    for place, shape in zip(across, shapes, strict=True):
        said = scale.size(shape.all_features, "")
        parts.append(
            f'<text class="quiet" text-anchor="middle" x="{x(place):.1f}" '
            f'y="{TOP + HEIGHT + 20}">{said}</text>'
        )
    ends = spread({name: y(line[-1]) for name, line in values.items()})
    for colour, (name, line) in zip(COLOURS, values.items(), strict=True):
        points = [(x(a), y(b)) for a, b in zip(across, line, strict=True)]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{path}"/>')
        parts += [f'<circle r="3" fill="{colour}" cx="{a:.1f}" cy="{b:.1f}"/>' for a, b in points]
        parts.append(
            f'<text class="quiet" style="fill: {colour}" x="{left + WIDTH + 8}" '
            f'y="{ends[name] + 4:.1f}">{name}</text>'
        )
    return "\n".join(parts)


def spread(heights: dict[str, float], gap: float = 14) -> dict[str, float]:
    """The same heights, moved down where names would lie on each other."""
    names = sorted(heights, key=heights.__getitem__)
    for above, below in pairwise(names):
        heights[below] = max(heights[below], heights[above] + gap)
    return heights


def drawing() -> str:
    """The picture, as SVG."""
    return "\n".join(
        [
            '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1090 330" role="img">',
            "<title>Bytes and times against the features of a set, both on logarithmic scales"
            "</title>",
            f"<style>{STYLE}</style>",
            panel("Bytes, by features of the set", BYTES, SIZES, 60),
            panel("Time on one GPU, arithmetic", TIMES, CLOCK, 570),
            "</svg>",
            "",
        ]
    )


if __name__ == "__main__":
    PICTURE.write_text(drawing(), encoding="utf-8")
