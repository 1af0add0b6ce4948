"""A comparison as a still picture: one SVG, for documents and papers.

What the page shows first: a row a layer, a lane for the features that all graphs have, that some
have and that each has alone, each feature a mark of the size of its influence; beside them the
plain overlap of all graphs over what unrelated texts share.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from circuit_tracer.view.compared import Band, ComparisonDrawing, LayerOverlaps

STEP, LEAST_ROW, LEFT, TOP, FOOT = 10, 22, 34, 58, 30
LANE, GAP, CURVE = 92, 8, 250
LIGHT = ("0072B2", "C4500A", "9b3d78", "6b5f00", "6a4bc4", "b3261e", "00707a", "5b6673")
DARK = ("56B4E9", "F08A3C", "e08bc0", "d3c54a", "b3a0f5", "ff8a80", "4fc3cf", "a5b0bc")
STYLE = """
text { font: 12px ui-sans-serif, system-ui, sans-serif; fill: #1c1e21 } .name { font-weight: 600 }
.quiet { fill: #5f666d } .line { stroke: #8a929b; stroke-opacity: .3 }
.shade { fill: #8a929b; fill-opacity: .1 } .band { fill: #8a929b; fill-opacity: .3 }
.curve, .unrelated, .parallel { fill: none; stroke: #00795a }
.curve { stroke-width: 2.4 } .unrelated { stroke: #5f666d; stroke-dasharray: 3 3 }
.parallel { stroke-width: 1.6; stroke-dasharray: 1.5 3.5 }
"""
LANES = {
    "all": ("00795a", "3fc79a"),
    "some": ("8a6100", "d9ab3f"),
    **{f"g{place}": pair for place, pair in enumerate(zip(LIGHT, DARK, strict=True))},
}
FOOTNOTE = "line: these prompts · grey: unrelated texts · dots: texts that say the same"


def svg(comparison: ComparisonDrawing) -> str:
    """The picture. The same comparison gives the same text."""
    lanes, n_layers = comparison.lanes(), comparison.n_layers
    slots = LANE // STEP
    cells = [_cells(comparison, rows, n_layers) for rows in lanes.values()]
    heights = [
        max(LEAST_ROW, *(-(-len(lane[k]) // slots) * STEP + 8 for lane in cells))
        for k in range(n_layers)
    ]
    bottoms = [TOP + sum(heights[k:]) for k in range(n_layers)]
    middles = [bottom - height / 2 for bottom, height in zip(bottoms, heights, strict=True)]
    whole = max(comparison.overlaps, key=lambda one: len(one.members), default=None)
    right = LEFT + len(lanes) * (LANE + GAP)
    width = right + (CURVE if whole else 0) + 10
    parts = [_layer_line(k, y, width) for k, y in enumerate(middles)]
    largest = max((max(one.influence) for one in comparison.features), default=1.0) or 1.0
    for number, (name, lane) in enumerate(zip(lanes, cells, strict=True)):
        x = LEFT + number * (LANE + GAP)
        kind = _class(comparison, name)
        parts.append(_head(comparison, name, kind, len(lanes[name]), x, number, bottoms[0]))
        for rows, middle in zip(lane, middles, strict=True):
            parts += _marks(comparison, rows, x, middle, slots, kind, largest)
    if whole:
        parts += _curves(whole, middles, right + 16, CURVE - 40)
        known = any(whole.plain_unrelated)
        said = FOOTNOTE if known else FOOTNOTE.split(" · ")[0]
        parts.append(
            f'<text class="quiet" x="{width - 10}" y="{bottoms[0] + 20}" text-anchor="end">'
            f"{said}</text>"
        )
    title = escape(" · ".join(graph.name for graph in comparison.graphs))
    height = bottoms[0] + FOOT
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" role="img"><title>{title}</title>'
        f"<style>{_style()}</style>\n" + "\n".join(parts) + "\n</svg>\n"
    )


def _cells(comparison: ComparisonDrawing, rows: Sequence[int], n_layers: int) -> list[list[int]]:
    """Rows of a lane by layer."""
    found: list[list[int]] = [[] for _ in range(n_layers)]
    for row in rows:
        found[comparison.features[row].layer].append(row)
    return found


def _style() -> str:
    """Colours of both themes."""
    light = " ".join(f".{name} {{ fill: #{pair[0]} }}" for name, pair in LANES.items())
    dark = " ".join(f".{name} {{ fill: #{pair[1]} }}" for name, pair in LANES.items())
    quiet = "text { fill: #e8eaed } .quiet { fill: #a5acb3 } .unrelated { stroke: #a5acb3 }"
    lines = ".curve, .parallel { stroke: #3fc79a }"
    return f"{STYLE}{light}\n@media (prefers-color-scheme: dark) {{ {quiet} {lines} {dark} }}"


def _class(comparison: ComparisonDrawing, name: str) -> str:
    """The class of a lane's colour, that of its graph on the page."""
    names = [f"only {graph.name}" for graph in comparison.graphs]
    return f"g{names.index(name) % len(LIGHT)}" if name in names else name


def _layer_line(layer: int, y: float, width: int) -> str:
    return (
        f'<path class="line" d="M{LEFT} {y:g}H{width - 10}"/>'
        f'<text class="quiet" x="{LEFT - 6}" y="{y + 4:g}" text-anchor="end">L{layer}</text>'
    )


def _head(
    comparison: ComparisonDrawing,
    name: str,
    kind: str,
    count: int,
    x: int,
    number: int,
    bottom: float,
) -> str:
    """Name and count of a lane, shaded every other one."""
    size = len(comparison.graphs)
    said = {"all": "in both" if size == 2 else f"in all {size}", "some": "in some"}.get(name, name)
    middle = x + LANE / 2
    shade = (
        f'<rect class="shade" x="{x}" y="{TOP - 6}" width="{LANE}" height="{bottom - TOP + 8}"/>'
    )
    return (
        ("" if number % 2 else shade)
        + f'<text class="name {kind}" x="{middle:g}" y="22" text-anchor="middle">'
        f"{escape(_short(said))}</text>"
        f'<text class="quiet" x="{middle:g}" y="40" text-anchor="middle">{count}</text>'
    )


def _short(name: str) -> str:
    return name if len(name) <= 14 else name[:13] + "…"


def _marks(
    comparison: ComparisonDrawing,
    rows: Sequence[int],
    x: int,
    middle: float,
    slots: int,
    kind: str,
    largest: float,
) -> list[str]:
    """The features of a cell, in lines, the most influential first."""
    found, lines = [], -(-len(rows) // slots)
    for place, row in enumerate(rows):
        line, column = divmod(place, slots)
        here = min(slots, len(rows) - line * slots)
        at = x + LANE / 2 + (column - (here - 1) / 2) * STEP
        y = middle + (line - (lines - 1) / 2) * STEP
        radius = 1.8 + 3 * math.sqrt(max(comparison.features[row].influence) / largest)
        found.append(f'<circle class="{kind}" cx="{at:g}" cy="{y:g}" r="{radius:.2f}"/>')
    return found


def _curves(whole: LayerOverlaps, middles: Sequence[float], left: int, wide: int) -> list[str]:
    """Overlap of all graphs by layer, over what unrelated texts share."""
    bands = whole.plain_unrelated or (None,) * len(middles)
    parallel = whole.plain_parallel or (None,) * len(middles)
    known = [value for value in whole.plain if value is not None]
    most = _round(max(known + [band[2] for band in (*bands, *parallel) if band], default=1.0))

    def line(name: str, values: Sequence[float | None]) -> str:
        pairs = zip(values, middles, strict=True)
        points = [f"{left + wide * v / most:.1f} {y:g}" for v, y in pairs if v is not None]
        return f'<path class="{name}" d="M{"L".join(points)}"/>' if len(points) > 1 else ""

    parts = [
        f'<text class="name" x="{left + wide / 2:g}" y="22" text-anchor="middle">'
        f"overlap of {'both' if len(whole.members) == 2 else f'all {len(whole.members)}'}</text>"
    ]
    for share in (0.0, most / 2, most):
        x = left + wide * share / most
        parts.append(
            f'<path class="line" d="M{x:g} {TOP - 6}V{middles[0]:g}"/><text class="quiet" '
            f'x="{x:g}" y="40" text-anchor="middle">{100 * share:g} %</text>'
        )
    parts.append(_area(bands, middles, left, wide / most))
    parts.append(line("unrelated", [band and band[1] for band in bands]))
    parts.append(line("parallel", [band and band[1] for band in parallel]))
    parts.append(line("curve", whole.plain))
    return [part for part in parts if part]


def _area(bands: Sequence[Band | None], middles: Sequence[float], left: int, scale: float) -> str:
    """The interval of the unrelated texts."""
    pairs = [(band, y) for band, y in zip(bands, middles, strict=True) if band]
    if len(pairs) < 2:
        return ""
    low = [f"{left + scale * band[0]:.1f} {y:g}" for band, y in pairs]
    high = [f"{left + scale * band[2]:.1f} {y:g}" for band, y in reversed(pairs)]
    return f'<path class="band" d="M{"L".join([*low, *high])}z"/>'


def _round(share: float) -> float:
    """The end of an axis that holds a share."""
    return next(
        end for end in (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0) if share <= end + 1e-9
    )
