"""Curves: panels of lines or points, for a report (`report.page`). What they are of is not known
here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

COLUMNS, HEIGHT = 2, 300
EARLY, LATE = (0x2B, 0x5C, 0x8A), (0xC4, 0x50, 0x0A)


@dataclass(frozen=True)
class Panel:
    """One plot.

    Attributes:
        title, across, up: of the plot and of its axes.
        curves: name → (x, y).
        points: marks instead of lines.
        logarithmic: the y axis.
    """

    title: str
    across: str
    up: str
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    points: bool = False
    logarithmic: bool = False


def figure(panels: Sequence[Panel]) -> Figure:
    """All panels as one plotly figure; curves of one name share a colour, early ones blue."""
    from plotly.subplots import make_subplots

    rows = -(-len(panels) // COLUMNS)
    titles = [panel.title for panel in panels]
    drawn = make_subplots(rows=rows, cols=COLUMNS, subplot_titles=titles)
    names = list(dict.fromkeys(name for panel in panels for name in panel.curves))
    for number, panel in enumerate(panels):
        row, column = divmod(number, COLUMNS)
        place = {"row": row + 1, "col": column + 1}
        for name, (x, y) in panel.curves.items():
            colour = _colour(names.index(name), len(names))
            drawn.add_scatter(
                x=list(x),
                y=list(y),
                name=name,
                mode="markers" if panel.points else "lines",
                line={"color": colour, "width": 1.5},
                marker={"color": colour, "size": 9},
                **place,
            )
        drawn.update_xaxes(title_text=panel.across, **place)
        scale = "log" if panel.logarithmic else "linear"
        drawn.update_yaxes(title_text=panel.up, type=scale, **place)
    drawn.update_layout(template="plotly_white", showlegend=False, height=HEIGHT * rows)
    return drawn


def _colour(number: int, count: int) -> str:
    """From blue to orange."""
    share = number / max(1, count - 1)
    mixed = (round(a + (b - a) * share) for a, b in zip(EARLY, LATE, strict=True))
    return f"rgb({', '.join(map(str, mixed))})"
