"""The drawing as a plotly figure: a complete picture in a notebook.

Axes, token bands, markers by kind, and the strongest edges with their sign told by colour and by
dash. The page draws the same picture with its own edges and its own gestures; this one is what
`figure().show()` gives, and what plotly can export.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from circuit_tracer.view import palette
from circuit_tracer.view.drawing import (
    KINDS,
    START_EDGES,
    Drawing,
    by_influence,
    fitted,
    holding,
    start_share,
    strongest_edges,
)
from circuit_tracer.view.layout import Layout, layout
from circuit_tracer.view.wording import literal, number, shortened, title, visible, where

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

CURVE_POINTS = 14
LABELS = 12


def figure(drawing: Drawing, edges: int = START_EDGES, share: float | None = None) -> Figure:
    """A plotly figure of the drawing.

    Args:
        drawing: what to draw.
        edges: how many of the strongest edges between the shown nodes to draw.
        share: of the influence, held by the nodes shown; None opens as the page does.
    """
    from plotly.graph_objects import Figure

    drawing = fitted(drawing)
    shown = holding(drawing, start_share(drawing) if share is None else share)
    places = layout(drawing, shown)
    chosen = strongest_edges(drawing, shown, max(edges, 0))
    drawn = Figure(data=_edge_traces(drawing, places, chosen) + _markers(drawing, places, shown))
    drawn.update_layout(**_frame(drawing, places))
    for annotation in _labels(drawing, places, shown):
        drawn.add_annotation(**annotation)
    return drawn


def curve(places: Layout, source: int, target: int) -> tuple[list[float], list[float]]:
    """Points of an edge: leaves and arrives upright; bows aside within one column."""
    x0, y0, x1, y1 = places.x[source], places.y[source], places.x[target], places.y[target]
    bow = 0.25 + 0.06 * abs(y1 - y0) if abs(x1 - x0) < 0.5 and abs(y1 - y0) > 1.5 else 0.0
    middle = (y0 + y1) / 2
    xs, ys = [], []
    for step in range(CURVE_POINTS + 1):
        t = step / CURVE_POINTS
        a, b, c, d = (1 - t) ** 3, 3 * (1 - t) ** 2 * t, 3 * (1 - t) * t**2, t**3
        xs.append(a * x0 + b * (x0 + bow) + c * (x1 + bow) + d * x1)
        ys.append(a * y0 + b * middle + c * middle + d * y1)
    return xs, ys


def _edge_traces(drawing: Drawing, places: Layout, chosen: list[int]) -> list[Any]:
    """One trace a sign and bin of strength, weakest first so that the strongest lie on top."""
    from plotly.graph_objects import Scatter

    lines: dict[tuple[int, bool], tuple[list[Any], list[Any]]] = {}
    for rank, index in enumerate(chosen):
        source, target, weight = drawing.edges[index]
        xs, ys = lines.setdefault((palette.bin_of(rank, len(chosen)), weight < 0), ([], []))
        cx, cy = curve(places, source, target)
        xs.extend([*cx, None])
        ys.extend([*cy, None])
    strongest = {negative: min(b for b, sign in lines if sign == negative) for _, negative in lines}
    traces = []
    for (strength, negative), (xs, ys) in sorted(lines.items(), reverse=True):
        line = {
            "width": palette.BIN_WIDTH[strength],
            "color": palette.NEGATIVE if negative else palette.POSITIVE,
            "dash": "dash" if negative else "solid",
        }
        name = "inhibits" if negative else "excites"
        traces.append(
            Scatter(
                x=xs,
                y=ys,
                mode="lines",
                line=line,
                name=name,
                legendgroup=name,
                opacity=palette.BIN_OPACITY[strength],
                hoverinfo="skip",
                showlegend=strength == strongest[negative],
            )
        )
    return traces


def _markers(drawing: Drawing, places: Layout, shown: list[int]) -> list[Any]:
    from plotly.graph_objects import Scatter

    traces = []
    for kind in KINDS:
        members = [i for i in shown if drawing.nodes[i].kind == kind]
        if not members:
            continue
        measure = [_measure(drawing, i) for i in members]
        sizes = [palette.marker_size(kind, value, max(measure)) for value in measure]
        marker = {
            "symbol": palette.KIND_SYMBOL[kind],
            "color": palette.KIND_COLOUR[kind],
            "size": sizes,
            "line": {"width": 1, "color": palette.PAPER},
            "opacity": 0.9,
        }
        if kind == "error":
            marker["line"] = {"width": 1.2, "color": palette.QUIET}
        traces.append(
            Scatter(
                x=[places.x[i] for i in members],
                y=[places.y[i] for i in members],
                mode="markers",
                marker=marker,
                name=palette.KIND_NAME[kind],
                text=[_hover(drawing, i) for i in members],
                customdata=[drawing.nodes[i].id for i in members],
                hovertemplate="%{text}<extra></extra>",
            )
        )
    return traces


def _measure(drawing: Drawing, index: int) -> float:
    """What the size of a node tells: the probability of an output, else influence."""
    node = drawing.nodes[index]
    return node.probability or 0.0 if node.kind == "logit" else max(node.influence, 0.0)


def _hover(drawing: Drawing, index: int) -> str:
    node = drawing.nodes[index]
    lines = [
        f"<b>{literal(title(node))}</b>",
        literal(where(node, drawing.n_layers, drawing.tokens)),
    ]
    if node.kind == "feature":
        lines.append(f"feature {node.feature}")
    if node.activation is not None:
        lines.append(f"activation {number(node.activation)}")
    if node.probability is not None:
        lines.append(f"probability {number(node.probability)}")
    lines.append(f"influence {number(node.influence)}")
    # plotly fills in %{...} after it has read the text, so that a token may hold even that.
    return "<br>".join(lines)


def _labels(drawing: Drawing, places: Layout, shown: list[int]) -> list[dict[str, Any]]:
    """Names of the outputs and of the most influential features, the latter kept apart."""
    nodes = drawing.nodes
    notes = []
    for index in (i for i in shown if nodes[i].kind == "logit"):
        chance = f" {nodes[index].probability:.0%}" if nodes[index].probability else ""
        text = literal(shortened(visible(nodes[index].token), 14) + chance)
        notes.append(
            {
                "x": places.x[index],
                "y": places.y[index],
                "text": f"<b>{text}</b>",
                "textangle": -50,
                "xanchor": "left",
                "yanchor": "bottom",
                "showarrow": False,
                "font": {"size": 11, "color": palette.INK},
            }
        )
    taken: list[tuple[float, float]] = []
    for index in by_influence(nodes, [i for i in shown if nodes[i].kind == "feature"]):
        x, y = places.x[index], places.y[index]
        near = any(
            abs(x - a) < places.width / 9 and abs(y - b) < drawing.n_layers / 22 for a, b in taken
        )
        if near or len(taken) == LABELS:
            continue
        taken.append((x, y))
        edge = "left" if x < places.width / 12 else "center"
        notes.append(
            {
                "x": x,
                "y": y,
                "text": literal(shortened(title(nodes[index]), 24)),
                "yshift": 13,
                "xanchor": edge,
                "showarrow": False,
                "borderpad": 0,
                "bgcolor": "rgba(251,251,249,0.75)",
                "font": {"size": 11, "color": palette.INK},
            }
        )
    return notes


def _frame(drawing: Drawing, places: Layout) -> dict[str, Any]:
    step = max(1, -(-drawing.n_layers // 14))
    layers = list(range(0, drawing.n_layers, step))
    names = [literal(shortened(visible(token))) for token in drawing.tokens]
    bands = [
        {
            "type": "rect",
            "xref": "x",
            "yref": "paper",
            "x0": left,
            "x1": right,
            "y0": 0,
            "y1": 1,
            "fillcolor": palette.BAND,
            "line": {"width": 0},
            "layer": "below",
        }
        for left, right in places.columns[::2]
    ]
    return {
        "template": "none",
        "paper_bgcolor": palette.PAPER,
        "plot_bgcolor": palette.PAPER,
        "font": {"color": palette.INK, "family": "system-ui, sans-serif", "size": 12},
        "height": 640,
        "margin": {"l": 48, "r": 48, "t": 90, "b": 70},
        "hovermode": "closest",
        "dragmode": "pan",
        "shapes": bands,
        "legend": {"orientation": "h", "y": -0.12},
        "xaxis": {
            "range": [0, places.width],
            "showgrid": False,
            "zeroline": False,
            "tickvals": [(left + right) / 2 for left, right in places.columns],
            "ticktext": names,
            "ticks": "",
        },
        "yaxis": {
            "range": [-1.6, drawing.n_layers + 0.6],
            "zeroline": False,
            "ticks": "",
            "gridcolor": palette.RULE,
            "tickvals": [-1, *layers, drawing.n_layers],
            "ticktext": ["Emb", *(f"L{layer}" for layer in layers), "Out"],
        },
    }
