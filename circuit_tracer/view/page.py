"""One HTML file that shows a drawing: works from disk, offline, on a phone, and can be mailed.

The file holds everything: the template, style and scripts of assets/, the drawing, and plotly.js
from the installed plotly package, the last two compressed and unpacked by the browser. Beneath
them stands the same graph as plain text, for readers whose browser runs no script or cannot
unpack. Nothing is fetched, ever, and a content security policy says so.
"""

from __future__ import annotations

import re
from functools import cache
from html import escape
from importlib.resources import files

from circuit_tracer.view.drawing import Drawing, DrawnNode, by_influence, fitted, holding
from circuit_tracer.view.payload import encode, packed
from circuit_tracer.view.wording import number, title, visible, where

SCRIPTS = (
    "data.js",
    "state.js",
    "layout.js",
    "edges.js",
    "graph.js",
    "overlay.js",
    "gestures.js",
    "panels.js",
    "table.js",
    "export.js",
    "app.js",
)
"""The page's script, in the order in which its files are joined."""

PLAIN_FEATURES = 20


def render(drawing: Drawing) -> str:
    """The page. The same drawing gives the same text, byte for byte.

    More than 5,000 nodes or 100,000 edges do not fit: the strongest are kept, and the page says
    what was dropped (`drawing.fitted` says it too, for a caller that wants to warn).
    """
    drawing = fitted(drawing)
    parts = {
        "title": escape(_clean(" ".join(drawing.prompt.split())[:80] or "circuit")),
        "css": _asset("app.css"),
        "js": _script(),
        "plain": _plain(drawing),
        "payload": packed(encode(drawing)),
        "plotly": _plotly(),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _asset("page.html"))


def _asset(name: str) -> str:
    return files("circuit_tracer.view").joinpath("assets", name).read_text(encoding="utf-8")


def _script() -> str:
    """All scripts as one function: they share names with each other and none with the window."""
    body = "\n".join(_asset(name) for name in SCRIPTS)
    return f'(() => {{\n"use strict";\n{body}\n}})();'.replace("</script", "<\\/script")


@cache
def _plotly() -> str:
    """plotly.js, compressed: a slimmer bundle where packaging put one beside the other assets
    (assets/plotly.min.js, never committed), else the one of the installed plotly package."""
    slim = files("circuit_tracer.view").joinpath("assets", "plotly.min.js")
    if slim.is_file():
        return packed(slim.read_bytes())
    from plotly.offline import get_plotlyjs

    return packed(get_plotlyjs().encode("utf-8"))


def _clean(text: str) -> str:
    """Text that can be written as UTF-8: half characters become replacement marks."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\0", "␀")


def _plain(drawing: Drawing) -> str:
    """Prompt, outputs and most influential features as plain HTML."""
    nodes = drawing.nodes
    outputs = [node for node in nodes if node.kind == "logit"]
    features = [
        nodes[i] for i in by_influence(nodes, range(len(nodes))) if nodes[i].kind == "feature"
    ]
    facts = f"{len(nodes):,} nodes, {len(drawing.edges):,} edges"
    shown = len(holding(drawing, 0.8))
    lines = [
        f'<h1 dir="auto">{_text(drawing.prompt)}</h1>',
        f"<p>{_text(drawing.model)} · {_text(drawing.transcoders)} · {facts}; "
        f"{shown:,} of the nodes hold 80 % of the influence.</p>",
        *(f"<p><strong>{_text(notice)}</strong></p>" for notice in drawing.notices),
        "<h2>Outputs</h2>",
        _list([_output(node) for node in outputs]),
        "<h2>Most influential features</h2>",
        _list([_feature(node, drawing) for node in features[:PLAIN_FEATURES]]),
    ]
    return "\n".join(lines)


def _output(node: DrawnNode) -> str:
    chance = "" if node.probability is None else f" {node.probability:.1%}"
    return f"<bdi>{_text(visible(node.token))}</bdi>{chance}"


def _feature(node: DrawnNode, drawing: Drawing) -> str:
    place = where(node, drawing.n_layers, drawing.tokens)
    return (
        f"<bdi>{_text(title(node))}</bdi> <small>{_text(place)} · "
        f"influence {number(node.influence)}</small>"
    )


def _list(items: list[str]) -> str:
    rows = "".join(f"<li>{item}</li>" for item in items)
    return f"<ol>{rows}</ol>" if rows else "<p>None.</p>"


def _text(text: str) -> str:
    return escape(_clean(text))
