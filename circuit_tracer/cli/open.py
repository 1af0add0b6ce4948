"""`circuit-tracer open FILE`: any saved graph, whatever tool saved it, as a page."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from circuit_tracer.cli import destinations, options, progress
from circuit_tracer.cli.task import Task
from circuit_tracer.cli.trace import open_in_browser
from circuit_tracer.errors import InputError

if TYPE_CHECKING:
    import circuit_tracer as ct
    from circuit_tracer.reading import Reading

EPILOG = """\b
Examples:
  circuit-tracer open small.safetensors
  circuit-tracer open downloaded.json.gz --labels mine.json -o page.html --no-open
  circuit-tracer open theirs.pt --tokenizer google/gemma-2-2b
"""
STORE = b"SQLite format 3\0"


@click.command(
    cls=Task,
    name="open",
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@click.argument("file", type=click.Path(path_type=Path))
@options.page_file("The page.  [default: FILE's name and .html, here]")
@click.option(
    "--node-threshold",
    type=options.Share(),
    metavar="SHARE",
    help="Keep nodes that hold this share of the influence.  [default: what a page can "
    "show, and all of a JSON, which is pruned already]",
)
@click.option(
    "--edge-threshold",
    type=options.Share(),
    metavar="SHARE",
    help="Of the influence among them, the share that the edges kept hold.",
)
@click.option(
    "--max-nodes",
    type=options.AT_LEAST_ONE,
    metavar="N",
    help="Keep at most so many features and errors.",
)
@click.option(
    "--labels",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Labels of features: JSON of ours or Neuronpedia's, or a feature store; again for more.",
)
@click.option("--merge", is_flag=True, help="Draw each supernode of a JSON as one node.")
@click.option("--tokenizer", metavar="ID|DIR", help="For a .pt, which has token numbers only.")
@options.json_file(
    "Write the graph in Neuronpedia's schema; - prints it and nothing else (and "
    "writes a page only where -o asks for one)."
)
@click.option("--open/--no-open", "open_page", default=True, help="Open the page in a browser.")
@click.option("-q", "--quiet", is_flag=True, help="Print the page's path only.")
@options.debug
def open_file(**given: Any) -> None:
    """Show the graph in FILE, whichever tool saved it.

    FILE is a graph of ours (.safetensors), a JSON of Neuronpedia, of the reference tool or of ours
    (also compressed), or the reference tool's .pt. What it is, is told by its content.
    """
    from circuit_tracer.features.graphs import annotate_bundled

    page = page_path(given)
    destinations.check(page, given["json_path"])
    quiet = given["quiet"] or given["json_path"] == destinations.STDOUT
    with progress.bar(quiet) as report:
        report(0.0, "reading the graph")
        graph, found = read(given)
        annotate_bundled(graph)
        said = [label(graph, path) for path in given["labels"]]
        report(0.4, "pruning")
        circuit = shown(given, graph, found)
        if found is not None:
            said += marks(found)
        if given["merge"]:
            circuit = merged(graph, circuit, found)
        report(0.7, "writing")
        write_json(given, graph, found)
        if page is not None:
            said += write_page(circuit, page)
    if not quiet:
        tell(given, graph, circuit, page, said)
    elif page is not None and given["json_path"] != destinations.STDOUT:
        click.echo(destinations.said(page))
    if page is not None and given["open_page"]:
        open_in_browser(page, address(graph, circuit, found))


def page_path(given: dict[str, Any]) -> Path | None:
    """Where the page goes; None where only JSON on standard output was asked for."""
    output, name = given["output"], f"{given['file'].name}.html"
    if output is None:
        return None if given["json_path"] == destinations.STDOUT else Path(name)
    if output == destinations.STDOUT:
        raise InputError("a page is a file: give -o a name, not -")
    return output / name if output.is_dir() else output


def read(given: dict[str, Any]) -> tuple[ct.Graph, Reading | None]:
    """The graph, and all that a JSON says besides."""
    from circuit_tracer import neuronpedia, reference_graph
    from circuit_tracer.file_kind import file_kind
    from circuit_tracer.graph import Graph

    path, tokenizer = given["file"], given["tokenizer"]
    kind = file_kind(path)
    if tokenizer is not None and kind != "pickle":
        raise InputError(f"--tokenizer is for a .pt; {path} has its tokens in it")
    if given["merge"] and kind != "json":
        raise InputError(f"--merge is for a JSON with supernodes; {path} is none")
    if kind == "json":
        found = neuronpedia.read(path)
        return named(Graph(**found.parts), found), found
    if kind == "pickle":
        graph = Graph(**reference_graph.read(path).parts)
        return (graph if tokenizer is None else worded(graph, tokenizer)), None
    return Graph.load(path), None


def worded(graph: ct.Graph, tokenizer: str) -> ct.Graph:
    """The graph with the text of its tokens."""
    from transformers import AutoTokenizer

    try:
        known = AutoTokenizer.from_pretrained(tokenizer)
    except (OSError, ValueError) as error:
        raise InputError(f"{tokenizer} is no tokenizer that can be loaded: {error}") from error
    return replace(graph, tokens=tuple(known.decode([one]) for one in graph.token_ids))


def named(graph: ct.Graph, found: Reading) -> ct.Graph:
    """The graph, where features without a label have the name of their supernode."""
    from circuit_tracer.facts import FeatureNote

    for name, rows in found.supernodes:
        for row in rows:
            node = graph.nodes[row]
            if node.kind == "feature":
                graph.notes.setdefault((node.layer, node.feature), FeatureNote(name))
    return graph


def label(graph: ct.Graph, path: Path) -> str:
    """Take labels from a file; how many features of the graph it names."""
    from circuit_tracer.features import labels
    from circuit_tracer.features.graphs import annotate, name
    from circuit_tracer.features.store import Store

    if not path.is_file():
        raise InputError(f"there is no file {path}")
    with open(path, "rb") as file:
        is_store = file.read(len(STORE)) == STORE
    if is_store:
        store = Store(path)
        count = annotate(graph, store)
        store.close()
    else:
        count = name(graph, labels.read(path))
    return f"labels    {counted(count, 'feature')} named by {destinations.said(path)}"


def shown(given: dict[str, Any], graph: ct.Graph, found: Reading | None) -> ct.Circuit:
    """What the page shows: as asked, else what it can hold, or all of a JSON."""
    asked = {"nodes": given["node_threshold"], "edges": given["edge_threshold"]}
    asked = {name: share for name, share in asked.items() if share is not None}
    most = given["max_nodes"]
    if found is not None:
        return graph.prune(**{"nodes": 1.0, "edges": 1.0} | asked, max_nodes=most)
    if asked or most is not None:
        return graph.prune(**asked, max_nodes=most)
    from circuit_tracer.tracing import page_circuit

    return page_circuit(graph)


def merged(graph: ct.Graph, circuit: ct.Circuit, found: Reading | None) -> ct.Circuit:
    """The circuit with the file's supernodes as nodes."""
    there = {node.id for node in circuit.nodes}
    groups = {}
    for name, rows in found.supernodes if found else ():
        members = [one for row in rows if (one := graph.nodes[row].id) in there]
        if members:
            groups[name] = members
    if not groups:
        raise InputError("the file has no supernodes of nodes that are shown: leave out --merge")
    return circuit.merge(groups)


def counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def marks(found: Reading) -> list[str]:
    """What a file's makers pinned and grouped, in words."""
    said = []
    if found.pinned:
        said.append(f"pinned    {counted(len(found.pinned), 'node')}")
    if found.supernodes:
        names = ", ".join(name for name, _ in found.supernodes[:5])
        more = ", …" if len(found.supernodes) > 5 else ""
        said.append(f"grouped   {counted(len(found.supernodes), 'supernode')}: {names}{more}")
    if found.lost:
        said.append(f"missing   {counted(len(found.lost), 'pinned or grouped node')} of the file")
    return said


def write_page(circuit: ct.Circuit, page: Path) -> list[str]:
    """Write the page; what it leaves out, in the words that stand on it."""
    from circuit_tracer.files import write_text
    from circuit_tracer.view import render
    from circuit_tracer.view.drawing import fitted

    drawing = circuit.drawing()
    drawn = fitted(drawing)
    write_text(page, render(drawn))
    return [f"page      {notice}" for notice in drawn.notices[len(drawing.notices) :]]


def address(graph: ct.Graph, circuit: ct.Circuit, found: Reading | None) -> str:
    """The part of the page's address that pins and groups what the file's makers did."""
    there = {node.id for node in circuit.nodes}

    def listed(rows: Sequence[int]) -> str:
        ids = (graph.nodes[row].id for row in rows)
        return ",".join(quote(one, safe="") for one in ids if one in there)

    pinned = listed(found.pinned) if found else ""
    supernodes = found.supernodes if found else ()
    groups = [(quote(name, safe=""), listed(rows)) for name, rows in supernodes]
    grouped = ";".join(f"{name}:{ids}" for name, ids in groups if ids)
    parts = [f"pins={pinned}" if pinned else "", f"groups={grouped}" if grouped else ""]
    parts.append("show=subgraph" if grouped else "tab=pinned" if pinned else "")
    return "#" + "&".join(part for part in parts if part) if any(parts) else ""


def write_json(given: dict[str, Any], graph: ct.Graph, found: Reading | None) -> None:
    """The graph as JSON, pruned as asked, to its file or to standard output."""
    path = given["json_path"]
    if path is None:
        return
    whole = {"node_threshold": 1.0, "edge_threshold": 1.0} if found is not None else {}
    asked = {name: given[name] for name in ("node_threshold", "edge_threshold")}
    thresholds = whole | {name: share for name, share in asked.items() if share is not None}
    if path != destinations.STDOUT:
        graph.to_json(path, **thresholds)
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "graph.json"
        graph.to_json(copy, **thresholds)
        click.echo(copy.read_text(encoding="utf-8"))


def tell(
    given: dict[str, Any],
    graph: ct.Graph,
    circuit: ct.Circuit,
    page: Path | None,
    said: list[str],
) -> None:
    """The short version, in the terminal."""
    from circuit_tracer.cli import report

    click.echo(report.text(graph, circuit))
    for line in said:
        click.echo(report.shown(line))
    for what, path in (("json", given["json_path"]), ("page", page)):
        if path is not None:
            click.echo(f"{what:<10}{destinations.said(path)}")
