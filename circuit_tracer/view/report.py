"""A report: figures, a table and plotly charts as one HTML file that fetches nothing.

What `circuit-tracer check` and training write. Whoever calls this decides what the numbers mean;
here they are only set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  color: #1b1f24; background: #fbfbf9 }
table { border-collapse: collapse; display: block; overflow-x: auto }
td, th { text-align: right; padding: 0.1rem 1rem 0.1rem 0 }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 1rem }
dd { margin: 0 }
"""


def bars(
    across: Sequence[int],
    heights: Mapping[str, Sequence[float | None]],
    title: str,
    marks: Mapping[str, float] | None = None,
) -> Any:
    """A plotly figure of bars by layer, one panel a name.

    Args:
        across: the layers.
        heights: a name → its height at each layer; None where there is none.
        marks: a name → a height to draw a dashed line at, in its panel.
    """
    from plotly.subplots import make_subplots

    names = list(heights)
    drawn = make_subplots(rows=len(names), cols=1, shared_xaxes=True, subplot_titles=names)
    for row, name in enumerate(names, start=1):
        drawn.add_bar(
            x=list(across), y=heights[name], name=name, marker_color="#0072B2", row=row, col=1
        )
        if marks and name in marks:
            line = {"line_dash": "dash", "line_color": "#C4500A"}
            drawn.add_hline(y=marks[name], row=row, col=1, **line)
    ticks = 1 if len(across) <= 40 else None
    drawn.update_xaxes(title_text="layer", dtick=ticks, row=len(names), col=1)
    drawn.update_layout(
        title=title, template="plotly_white", showlegend=False, height=160 + 160 * len(names)
    )
    return drawn


def page(
    title: str,
    said: str,
    figures: Sequence[tuple[str, str]],
    charts: Sequence[Any] = (),
    table: Sequence[Sequence[str]] = (),
) -> str:
    """The file.

    Args:
        said: a paragraph below the title.
        figures: (name, value) pairs.
        charts: plotly figures.
        table: rows of cells, the head first.
    """
    drawn = "".join(
        chart.to_html(full_html=False, include_plotlyjs=number == 0, div_id=f"chart-{number}")
        for number, chart in enumerate(charts)
    )
    facts = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in figures)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data: blob:; \
style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width">
<style>{STYLE}</style></head>
<body><h1>{escape(title)}</h1><p>{escape(said)}</p><dl>{facts}</dl>
{drawn}
{_table(table)}</body></html>
"""


def _table(rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    head, *body = rows
    names = "".join(f"<th>{escape(name)}</th>" for name in head)
    cells = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in body
    )
    return f"<table><thead><tr>{names}</tr></thead><tbody>{cells}</tbody></table>"
