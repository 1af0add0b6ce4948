"""One HTML file that shows a drawing: works from disk, offline, on a phone, and can be mailed.

The file holds everything: the template, style and scripts of assets/, the drawing, and plotly.js
from the installed plotly package, the last two compressed and unpacked by the browser. Beneath
them stands the same graph as plain text, for readers whose browser runs no script or cannot
unpack. Nothing is fetched, ever, and a content security policy says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from html import escape
from importlib.resources import files

from circuit_tracer.view.drawing import Drawing, DrawnNode, by_influence, fitted, holding
from circuit_tracer.view.payload import encode, packed
from circuit_tracer.view.wording import number, title, visible, where

SHARED_SCRIPTS = ("data.js", "dom.js", "address.js", "saving.js", "chrome.js", "layout.js")
"""What every page needs, in the order in which the files are joined."""

SCRIPTS = (
    *SHARED_SCRIPTS,
    "state.js",
    "edges.js",
    "edge.js",
    "looks.js",
    "graph.js",
    "overlay.js",
    "gestures.js",
    "panels.js",
    "examples.js",
    "meaning.js",
    "groups.js",
    "subgraph.js",
    "pinned.js",
    "table.js",
    "export.js",
    "labels.js",
    "app.js",
)

PLAIN_FEATURES = 20


def render(drawing: Drawing) -> str:
    """The page. The same drawing gives the same text, byte for byte.

    More than 5,000 nodes or 100,000 edges do not fit: the strongest are kept, and the page says
    what was dropped (`drawing.fitted` says it too, for a caller that wants to warn).
    """
    drawing = fitted(drawing)
    return assembled(
        "page.html",
        ("app.css", "meaning.css"),
        SCRIPTS,
        title=" ".join(drawing.prompt.split())[:80] or "circuit",
        plain=_plain(drawing),
        payload=packed(encode(drawing)),
        plotly=_plotly(),
    )


def assembled(
    body: str, styles: Iterable[str], scripts: Iterable[str], title: str, **parts: str
) -> str:
    """A page made of assets: the common head, the template `body`, and what fills its gaps.

    Args:
        body: name of the template.
        styles: names of style sheets, joined in this order.
        scripts: names of scripts, joined in this order.
        title: of the window, as plain text.
        parts: HTML for every other gap of the template, by name.
    """
    parts |= {
        "title": text(title),
        "css": "\n".join(_asset(name) for name in styles),
        "js": _script(scripts),
    }
    template = _asset("head.html") + _asset(body)
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def _asset(name: str) -> str:
    return files("circuit_tracer.view").joinpath("assets", name).read_text(encoding="utf-8")


def _script(names: Iterable[str]) -> str:
    """All scripts as one function: they share names with each other and none with the window."""
    body = "\n".join(_asset(name) for name in names)
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
        f'<h1 dir="auto">{text(drawing.prompt)}</h1>',
        f"<p>{text(drawing.model)} · {text(drawing.transcoders)} · {facts}; "
        f"{shown:,} of the nodes hold 80 % of the influence.</p>",
        *(f"<p><strong>{text(notice)}</strong></p>" for notice in drawing.notices),
        "<h2>Outputs</h2>",
        ordered([_output(node) for node in outputs]),
        "<h2>Most influential features</h2>",
        ordered([_feature(node, drawing) for node in features[:PLAIN_FEATURES]]),
    ]
    return "\n".join(lines)


def _output(node: DrawnNode) -> str:
    chance = "" if node.probability is None else f" {node.probability:.1%}"
    return f"<bdi>{text(visible(node.token))}</bdi>{chance}"


def _feature(node: DrawnNode, drawing: Drawing) -> str:
    place = where(node, drawing.n_layers, drawing.tokens)
    return (
        f"<bdi>{text(title(node))}</bdi> <small>{text(place)} · "
        f"influence {number(node.influence)}</small>"
    )


def ordered(items: list[str]) -> str:
    """Pieces of HTML as a numbered list."""
    rows = "".join(f"<li>{item}</li>" for item in items)
    return f"<ol>{rows}</ol>" if rows else "<p>None.</p>"


def text(words: str) -> str:
    """Words as HTML shows them literally."""
    return escape(_clean(words))
