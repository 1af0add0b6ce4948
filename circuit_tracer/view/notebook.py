"""What notebooks show: a picture by itself, and the whole page where it is asked for.

A saved notebook keeps whatever its cells showed, so what shows by itself is small: a plotly figure
as data (some tens of kilobytes; JupyterLab and VS Code draw it), and an SVG of the same in HTML for
those that do not. The page carries plotly.js, about two megabytes, and stands in the notebook only
after `show()`. Neither fetches anything.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from circuit_tracer.view.drawing import Drawing
from circuit_tracer.view.figure import figure
from circuit_tracer.view.page import text as literal
from circuit_tracer.view.picture import EDGES, picture

PLOTLY = "application/vnd.plotly.v1+json"
Bundle = dict[str, Any]

STYLE = (
    "font:13px/1.45 system-ui,sans-serif;max-width:960px;color:#1b1f24;background:#fbfbf9;"
    "padding:10px 12px;border-radius:6px"
)
FRAME = "width:100%;border:1px solid #d0d4d9;border-radius:6px;background:#fbfbf9"


@dataclass(frozen=True)
class Shown:
    """An interactive page that shows itself in a notebook.

    Attributes:
        make: gives the page's HTML when it is needed.
        name: what the page is of.
        height: of the frame, in pixels.
    """

    make: Callable[[], str]
    name: str
    height: int

    def __repr__(self) -> str:
        return f"<page of {self.name!r}: shows itself in a notebook; elsewhere use save_html>"

    def _repr_html_(self) -> str:
        """The page in a frame that may run its scripts and reach nothing else."""
        return (
            f'<iframe title="{literal(self.name)}" sandbox="allow-scripts allow-downloads" '
            f'style="{FRAME};height:{self.height}px" srcdoc="{literal(self.make())}"></iframe>'
        )


def circuit_bundle(drawing: Drawing, said: str, text: str) -> Bundle:
    """A circuit by MIME type.

    Args:
        said: sentences that stand below the picture.
        text: what a plain console shows.
    """
    bold = "".join(f"<p><strong>{literal(notice)}</strong></p>" for notice in drawing.notices)
    note = "<p><code>circuit.show()</code> opens the interactive page here.</p>"
    html = f'<div style="{STYLE}">{picture(drawing)}{bold}<p>{literal(said)}</p>{note}</div>'
    return {PLOTLY: rounded(figure(drawing, EDGES)), "text/html": html, "text/plain": text}


def table_bundle(
    title: str, said: Iterable[str], rows: Sequence[Sequence[str]], note: str, text: str
) -> Bundle:
    """Sentences and a table by MIME type.

    Args:
        rows: of the table, the heading first; cells are text.
        note: a sentence in HTML below.
        text: what a plain console shows.
    """
    head, *body = ([literal(cell) for cell in row] for row in rows)
    cells = "".join(f"<th style='text-align:left;padding-right:1em'>{cell}</th>" for cell in head)
    lines = "".join(
        "<tr>" + "".join(f"<td style='text-align:left'>{cell}</td>" for cell in row) + "</tr>"
        for row in body
    )
    sentences = "".join(f"<p>{literal(one)}</p>" for one in said)
    html = (
        f'<div style="{STYLE}"><p><strong>{literal(title)}</strong></p>{sentences}'
        f"<table style='border-collapse:collapse;color:inherit'><thead><tr>{cells}</tr></thead>"
        f"<tbody>{lines}</tbody></table><p>{note}</p></div>"
    )
    return {"text/html": html, "text/plain": text}


def rounded(drawn: Any) -> Bundle:
    """A plotly figure as plain data, coordinates to a thousandth."""
    plain: Bundle = json.loads(drawn.to_json())
    for trace in plain["data"]:
        for axis in ("x", "y"):
            trace[axis] = [None if at is None else round(at, 3) for at in trace[axis]]
    plain["layout"].pop("template", None)
    return plain
