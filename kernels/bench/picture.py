"""docs/images/performance.svg: seconds of ours and of the reference tool, on one logarithmic scale.

Drawn by table.py from the same rows as the tables: CPU seconds on a CPU, wall seconds on a GPU.
"""

from __future__ import annotations

import math
from html import escape
from pathlib import Path
from typing import Any

PICTURE = Path(__file__).resolve().parents[2] / "docs" / "images" / "performance.svg"
WIDTH, LEFT, RIGHT, TOP, BAR, GAP = 860, 300, 90, 34, 13, 14
STYLE = """
  .ours { fill: #0072b2 } .reference { fill: #d55e00; fill-opacity: .75 }
  .grid { stroke: #7f8c8d; stroke-opacity: .35 }
  text { font: 12px ui-sans-serif, system-ui, sans-serif; fill: #1c1e21 }
  .say { font-size: 10.5px; fill: #50565c }
  @media (prefers-color-scheme: dark) {
    .ours { fill: #56b4e9 } .reference { fill: #e69f00 }
    text { fill: #e8eaed } .say { fill: #a5acb3 }
  }
"""
Row = dict[str, Any]


def pairs(rows: list[Row]) -> list[tuple[str, float, float]]:
    """(work, our seconds, the reference tool's) of the rows that have both."""
    found = []
    for row in rows:
        if "reference" in row:
            gpu = row["work"].startswith("gpu ")
            name = row["work"].removeprefix("gpu ") + (f", {row['device']}" if gpu else "")
            nodes = row["shapes"].get("nodes")
            seconds = "wall_s" if gpu else "cpu_s"
            ours, theirs = (row[side][seconds]["p50"] for side in ("ours", "reference"))
            found.append((name + (f", {nodes:,} nodes" if nodes else ""), ours, theirs))
    return found


def drawing(rows: list[Row]) -> str:
    """The picture, as SVG."""
    shown = pairs(rows)
    seconds = [value for _, *both in shown for value in both] or [1.0]
    low, high = math.floor(math.log10(min(seconds))), math.ceil(math.log10(max(seconds)))
    high = max(high, low + 1)
    height = TOP + len(shown) * (2 * BAR + GAP) + 24

    def x(value: float) -> float:
        return LEFT + (math.log10(value) - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        "<title>Seconds of ours and of the reference tool, logarithmic</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="ours" x="{LEFT}" y="8" width="12" height="12"/>',
        f'<text x="{LEFT + 18}" y="18">ours</text>',
        f'<rect class="reference" x="{LEFT + 70}" y="8" width="12" height="12"/>',
        f'<text x="{LEFT + 88}" y="18">reference tool (seconds; shorter is better)</text>',
    ]
    for power in range(low, high + 1):
        at = x(10.0**power)
        parts.append(f'<path class="grid" d="M{at:.1f} {TOP - 6}V{height - 18}"/>')
        parts.append(f'<text class="say" x="{at - 8:.1f}" y="{height - 5}">{10.0**power:g}</text>')
    for number, (name, ours, theirs) in enumerate(shown):
        y = TOP + number * (2 * BAR + GAP)
        parts.append(f'<text x="8" y="{y + BAR + 4}">{escape(name)}</text>')
        for side, value, top in (("ours", ours, y), ("reference", theirs, y + BAR)):
            end = max(x(value), LEFT + 1)
            parts.append(
                f'<rect class="{side}" x="{LEFT}" y="{top}" width="{end - LEFT:.1f}" '
                f'height="{BAR - 1}"/>'
            )
            parts.append(f'<text class="say" x="{end + 5:.1f}" y="{top + 10}">{value:.3g} s</text>')
    return "\n".join([*parts, "</svg>", ""])
