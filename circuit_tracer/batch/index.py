"""The index page of a batch: how the figures are spread, every prompt, and what all share.

One HTML file that fetches nothing; the table sorts and filters where scripts run, and is all there
where they do not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from circuit_tracer.batch import plots
from circuit_tracer.batch.folder import Folder, Record
from circuit_tracer.files import write_text

SHOWN, SHARED = 80, 50
"""Letters of a prompt, and shared features, that are shown."""

HEAD = {
    "tokens": "tokens",
    "target": "target",
    "probability": "its probability",
    "features": "features",
    "replacement": "replacement",
    "completeness": "completeness",
    "mean_path_length": "path length",
    "error_share": "error share",
    "kept_nodes": "kept nodes",
    "kept_edges": "kept edges",
}
SPREAD = (
    "replacement",
    "completeness",
    "error_share",
    "mean_path_length",
    "features",
    "kept_nodes",
)
LAYERED = {
    "features_by_layer": "active features",
    "influence_by_layer": "share of the influence",
    "error_share_by_layer": "error share",
}
DOWNLOADS = ("table.csv", "table.jsonl", "table.arrow", "merged.json")


def write(
    folder: Folder,
    records: Sequence[Record],
    identity: Mapping[str, Any],
    whole: Mapping[str, Any],
) -> None:
    """Write the page of a batch.

    Args:
        whole: its merged graph.
    """
    good = [record.figures for record in records if record.error is None]
    there = [name for name in DOWNLOADS if (folder.root / name).is_file()]
    page = Template(_asset("index.html")).substitute(
        style=_asset("index.css"),
        script=_asset("index.js"),
        said=_said(len(records), len(good)),
        facts="".join(
            f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>"
            for name, value in identity.items()
        ),
        files="".join(f'<li><a href="{name}">{name}</a></li>' for name in there),
        plots=_plots(good),
        head="".join(_column(name) for name in ("id", "prompt", *HEAD.values())),
        rows="".join(_row(folder, record) for record in records),
        shared=_shared(whole),
    )
    write_text(folder.root / "index.html", page)


def short(prompt: str | Sequence[int]) -> str:
    """A prompt in a line."""
    text = " ".join(prompt.split()) if isinstance(prompt, str) else str(list(prompt))
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"


def _said(count: int, good: int) -> str:
    said = f"{good:,} of {count:,} prompts were traced."
    return said if good == count else f"{said} The others say why not."


def _plots(good: Sequence[Mapping[str, Any]]) -> str:
    if not good:
        return ""
    drawn = [plots.histogram([one[name] for one in good], HEAD[name]) for name in SPREAD]
    for name, title in LAYERED.items():
        columns = zip(*(one[name] for one in good), strict=True)
        drawn.append(plots.layers([sum(column) / len(good) for column in columns], title))
    return "".join(drawn)


def _column(name: str) -> str:
    return f'<th scope="col"><button type="button">{escape(name)}</button></th>'


def _row(folder: Folder, record: Record) -> str:
    name, figures = str(record.job["id"]), record.figures
    cells = [f'<th scope="row">{_link(folder, name, record)}</th>']
    prompt = record.job["prompt"]
    cells.append(f'<td class="text" dir="auto">{escape(short(prompt))}</td>')
    if record.error is not None:
        cells.append(f'<td class="failed" colspan="{len(HEAD)}">{escape(record.error)}</td>')
    for column in HEAD if record.error is None else ():
        value = figures[column]
        if isinstance(value, str):
            cells.append(f'<td class="text" dir="auto">{escape(value)}</td>')
        else:
            said = "" if value is None else str(value)
            cells.append(f'<td data-value="{said}">{_number(value)}</td>')
    return f"<tr>{''.join(cells)}</tr>\n"


def _link(folder: Folder, name: str, record: Record) -> str:
    """The page of a graph where there is one, or else the graph."""
    if record.error is not None:
        return escape(name)
    graph = f'<a href="graphs/{name}.safetensors">{escape(name)}</a>'
    page = f'<a href="pages/{name}.html">{escape(name)}</a>'
    return page if folder.page(name).is_file() else graph


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"


def _shared(whole: Mapping[str, Any]) -> str:
    """Rows of the features that most circuits hold."""
    n, found = whole["graph"]["n"], []
    largest = max((node["high"] or node["influence"] for node in whole["nodes"]), default=0.0)
    for node in whole["nodes"][:SHARED]:
        said = plots.interval(node["influence"], node["low"], node["high"], largest)
        label = node["label"] or "–"
        found.append(
            f'<tr><th scope="row">{node["id"]}</th><td class="text">{escape(label)}</td>'
            f"<td>{node['kept']:,} of {n:,}</td><td>{node['count']:,}</td><td>{said}</td></tr>\n"
        )
    return "".join(found)


def _asset(name: str) -> str:
    return (files("circuit_tracer.batch") / "assets" / name).read_text(encoding="utf-8")
