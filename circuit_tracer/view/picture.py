"""The drawing as a static picture: SVG with nothing in it that runs or is fetched.

What a saved notebook shows where no plotly is at hand, in some tens of kilobytes: the nodes that
hold most of the influence, and the strongest edges between them, as the figure draws them.
"""

from __future__ import annotations

from html import escape

from circuit_tracer.view import palette
from circuit_tracer.view.drawing import (
    Drawing,
    by_influence,
    fitted,
    holding,
    start_share,
    strongest_edges,
)
from circuit_tracer.view.layout import Layout, layout
from circuit_tracer.view.wording import number, shortened, title, visible, where

EDGES = 200
LABELS = 12
WIDTH, ROW, LEAST_HEIGHT, MOST_HEIGHT = 960, 34, 300, 620
LEFT, RIGHT, TOP, BOTTOM = 44, 56, 74, 34
FONT = "system-ui, sans-serif"
LEGEND = "".join(
    f'<path d="M{x} 16h22" stroke="{colour}" stroke-width="2"{dash}/>'
    f'<text x="{x + 28}" y="20" fill="{palette.INK}">{said}</text>'
    for x, colour, dash, said in (
        (LEFT, palette.POSITIVE, "", "excites"),
        (LEFT + 90, palette.NEGATIVE, ' stroke-dasharray="5 3"', "inhibits"),
    )
)


def picture(drawing: Drawing, edges: int = EDGES, share: float | None = None) -> str:
    """SVG of the drawing; arguments as those of `figure`."""
    drawing = fitted(drawing)
    shown = holding(drawing, start_share(drawing) if share is None else share)
    frame = _Frame(drawing, layout(drawing, shown))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {frame.height}" '
        f'role="img" font-family="{FONT}" font-size="11" '
        f'style="max-width:{WIDTH}px;width:100%;background:{palette.PAPER}">',
        f"<title>{_text(drawing.prompt)}</title>",
        f'<rect width="{WIDTH}" height="{frame.height}" fill="{palette.PAPER}"/>',
        LEGEND,
        *_axes(drawing, frame),
        *_edges(drawing, frame, strongest_edges(drawing, shown, max(edges, 0))),
        *(_mark(drawing, frame, index, largest) for index, largest in _sized(drawing, shown)),
        *_labels(drawing, frame, shown),
        "</svg>",
    ]
    return "\n".join(parts)


class _Frame:
    """From slots and layers to pixels."""

    def __init__(self, drawing: Drawing, places: Layout) -> None:
        wanted = (drawing.n_layers + 2) * ROW + TOP + BOTTOM
        self.places, self.n_layers = places, drawing.n_layers
        self.height = max(LEAST_HEIGHT, min(wanted, MOST_HEIGHT))

    def across(self, x: float) -> float:
        return round(LEFT + x / self.places.width * (WIDTH - LEFT - RIGHT), 1)

    def down(self, y: float) -> float:
        share = (self.n_layers - y) / (self.n_layers + 1)
        return round(TOP + share * (self.height - TOP - BOTTOM), 1)

    def point(self, index: int) -> tuple[float, float]:
        return self.across(self.places.x[index]), self.down(self.places.y[index])


def _axes(drawing: Drawing, frame: _Frame) -> list[str]:
    parts = []
    foot = frame.height - 12
    for number_of, (left, right) in enumerate(frame.places.columns):
        x0, x1 = frame.across(left), frame.across(right)
        if number_of % 2 == 0:
            parts.append(
                f'<rect x="{x0}" y="{TOP - 20}" width="{x1 - x0:.1f}" '
                f'height="{frame.height - TOP - 4}" fill="{palette.INK}" fill-opacity="0.035"/>'
            )
        most = max(1, int((x1 - x0) / 6.5))
        name = _text(shortened(visible(drawing.tokens[number_of]), most))
        parts.append(
            f'<text x="{(x0 + x1) / 2:.1f}" y="{foot}" text-anchor="middle" '
            f'fill="{palette.INK}">{name}</text>'
        )
    step = max(1, -(-drawing.n_layers // 14))
    names = {-1: "Emb", drawing.n_layers: "Out"}
    names |= {layer: f"L{layer}" for layer in range(0, drawing.n_layers, step)}
    for layer, name in names.items():
        y = frame.down(layer)
        parts.append(
            f'<path d="M{LEFT} {y}H{WIDTH - RIGHT}" stroke="{palette.INK}" stroke-opacity="0.09"/>'
            f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end" '
            f'fill="{palette.QUIET}">{name}</text>'
        )
    return parts


def _edges(drawing: Drawing, frame: _Frame, chosen: list[int]) -> list[str]:
    """The edges, weakest first so that the strongest lie on top."""
    parts = []
    for rank in range(len(chosen) - 1, -1, -1):
        source, target, weight = drawing.edges[chosen[rank]]
        (x0, y0), (x1, y1) = frame.point(source), frame.point(target)
        bow = 14 if abs(x1 - x0) < 8 and abs(y1 - y0) > 1.5 * ROW else 0
        strength = palette.bin_of(rank, len(chosen))
        colour = palette.NEGATIVE if weight < 0 else palette.POSITIVE
        dash = ' stroke-dasharray="5 3"' if weight < 0 else ""
        middle = round((y0 + y1) / 2, 1)
        parts.append(
            f'<path d="M{x0} {y0}C{x0 + bow:g} {middle} {x1 + bow:g} {middle} {x1} {y1}" '
            f'fill="none" stroke="{colour}" stroke-width="{palette.BIN_WIDTH[strength]}" '
            f'stroke-opacity="{palette.BIN_OPACITY[strength]}"{dash}/>'
        )
    return parts


def _sized(drawing: Drawing, shown: list[int]) -> list[tuple[int, float]]:
    """Nodes with the largest measure of their kind."""
    largest: dict[str, float] = {}
    for index in shown:
        kind = drawing.nodes[index].kind
        largest[kind] = max(largest.get(kind, 0.0), _measure(drawing, index))
    return [(index, largest[drawing.nodes[index].kind]) for index in shown]


def _measure(drawing: Drawing, index: int) -> float:
    node = drawing.nodes[index]
    return node.probability or 0.0 if node.kind == "logit" else max(node.influence, 0.0)


def _mark(drawing: Drawing, frame: _Frame, index: int, largest: float) -> str:
    """A node, in the shape of its kind, with what it is when the mouse rests on it."""
    node = drawing.nodes[index]
    x, y = frame.point(index)
    r = round(palette.marker_size(node.kind, _measure(drawing, index), largest) / 2, 1)
    colour = palette.KIND_COLOUR[node.kind]
    style = f'fill="{colour}" stroke="{palette.PAPER}"'
    if node.kind == "feature":
        shape = f'circle cx="{x}" cy="{y}" r="{r}" {style}'
    elif node.kind == "embedding":
        shape = f'rect x="{x - r:g}" y="{y - r:g}" width="{2 * r:g}" height="{2 * r:g}" {style}'
    elif node.kind == "logit":
        shape = f'path d="M{x} {y - r:g}l{r} {1.8 * r:g}h-{2 * r:g}z" {style}'
    else:
        shape = (
            f'path d="M{x} {y - r:g}l{r} {r}l-{r} {r}l-{r} -{r}z" '
            f'fill="{palette.PAPER}" stroke="{colour}"'
        )
    place = where(node, drawing.n_layers, drawing.tokens)
    said = f"{title(node)} · {place} · influence {number(node.influence)}"
    return f"<{shape}><title>{_text(said)}</title></{shape.partition(' ')[0]}>"


def _labels(drawing: Drawing, frame: _Frame, shown: list[int]) -> list[str]:
    """Names of the outputs, slanted, and of the most influential features, kept apart."""
    parts: list[str] = []
    taken: list[tuple[float, float]] = []
    for index in (i for i in shown if drawing.nodes[i].kind == "logit"):
        node, (x, y) = drawing.nodes[index], frame.point(index)
        chance = f" {node.probability:.0%}" if node.probability else ""
        name = _text(shortened(visible(node.token), 14) + chance)
        parts.append(
            f'<text transform="translate({x + 4:g} {y - 8:g}) rotate(-50)" font-weight="600" '
            f'fill="{palette.INK}">{name}</text>'
        )
    features = [i for i in shown if drawing.nodes[i].kind == "feature"]
    for index in by_influence(drawing.nodes, features):
        x, y = frame.point(index)
        if len(taken) == LABELS:
            break
        if any(abs(x - a) < 110 and abs(y - b) < 16 for a, b in taken):
            continue
        taken.append((x, y))
        anchor = "start" if x < 90 else "end" if x > WIDTH - 90 else "middle"
        parts.append(
            f'<text x="{x}" y="{y - 9:g}" text-anchor="{anchor}" fill="{palette.INK}" '
            f'stroke="{palette.PAPER}" stroke-width="3" paint-order="stroke">'
            f"{_text(shortened(title(drawing.nodes[index]), 24))}</text>"
        )
    return parts


def _text(words: str) -> str:
    """Words that SVG shows literally; what XML cannot hold becomes a replacement mark."""
    clean = words.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return escape("".join(c if c >= " " or c in "\t\n" else "\ufffd" for c in clean))
