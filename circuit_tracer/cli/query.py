"""`circuit-tracer query FILE …`: ask a saved graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from circuit_tracer.cli import options
from circuit_tracer.cli.asking import Answer, Questions, load_model, plain, question

if TYPE_CHECKING:
    import circuit_tracer as ct
    from circuit_tracer.circuit import Edge

EPILOG = """\b
FILE is a graph that `trace --save` or `--json` wrote. A node is an id (3_417_5), layer, feature and
position (L3#417@5), or a token that only one node has.
\b
Examples:
  circuit-tracer query small.safetensors paths --from small -k 3
  circuit-tracer query small.safetensors carriers --from small --position -1
  circuit-tracer query small.safetensors supernodes --json -
"""
EXPORTS = {"graphml": "to_graphml", "dot": "to_dot", "csv": "to_csv", "html": "save_html"}


@click.group(
    name="query",
    cls=Questions,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
    subcommand_metavar="FILE QUESTION [ARGS]...",
)
def query() -> None:
    """Ask the graph in FILE; without a question, for its summary."""


ROWS = click.option("-k", "k", type=options.AT_LEAST_ONE, default=10, metavar="N", help="Rows.")
SOURCE = click.option("--from", "source", multiple=True, metavar="NODE",
                      help="A start; again for more.  [default: the embeddings]")  # fmt: skip
TARGET = click.option("--to", "target", multiple=True, metavar="NODE",
                      help="An end; again for more.  [default: all targets]")  # fmt: skip
PLACE = click.argument("node", metavar="NODE")
PLACES = click.argument("nodes", metavar="NODE...", nargs=-1, required=True)


@question(query, "summary")
def summary(circuit: ct.Circuit, given: dict[str, Any]) -> Answer:
    """What the circuit says, in a few sentences."""
    return Answer(circuit.summary(), circuit.summary())


@question(
    query,
    "nodes",
    click.option("--kind", multiple=True, metavar="KIND",
                 help="feature, error, embedding or logit; again for more."),
    click.option("--layer", type=int, multiple=True, metavar="N", help="Again for more."),
    click.option("--position", type=int, multiple=True, metavar="N",
                 help="Negative counts from the end; again for more."),
    click.option("--token", metavar="TEXT", help="The token there."),
    click.option("--label", metavar="TEXT", help="A part of the label."),
    click.option("--feature", type=int, multiple=True, metavar="N", help="Again for more."),
    click.option("--text", metavar="TEXT",
                 help="A part of id, label, token or a token that the feature promotes."),
    ROWS,
)  # fmt: skip
def nodes(circuit: ct.Circuit, given: dict[str, Any]) -> Answer:
    """Nodes that fit everything given, most influential first."""
    several = {name: given[name] or None for name in ("kind", "layer", "position", "feature")}
    texts = {name: given[name] for name in ("token", "label", "text")}
    found = circuit.find(**several, **texts)
    shown = found[: given["k"]]
    rows = [(*said(circuit, node), f"{node.influence:.4f}") for node in shown]
    title = f"{len(found)} node{'' if len(found) == 1 else 's'}"
    table = [("node", "", "influence"), *rows]
    return Answer([plain(node) for node in shown], title, table, (2,))


@question(query, "paths", SOURCE, TARGET, ROWS)
def paths(circuit: ct.Circuit, given: dict[str, Any]) -> Answer:
    """The strongest paths; of all: the part of everything that flows from there to there."""
    from circuit_tracer.cli.report import steps

    ends = given["source"] or None, given["target"] or None
    found = circuit.paths(*ends, k=given["k"])
    rows = [(steps(path, circuit), percent(path.share), percent(path.part)) for path in found]
    flow = circuit.flow(*ends)
    values = [
        {
            "nodes": [node.id for node in path.nodes],
            "weights": list(path.weights),
            "share": path.share,
            "part": path.part,
            "sign": path.sign,
        }
        for path in found
    ]
    answer = {"flow": flow, "paths": values}
    title = f"all paths carry {percent(flow)}"
    return Answer(answer, title, [("path", "share", "of all"), *rows], (1, 2))


@question(query, "inputs", PLACE, ROWS)
def inputs(circuit: ct.Circuit, given: dict[str, Any]) -> Answer:
    """The strongest edges into NODE."""
    found = circuit.inputs(given["node"], given["k"])
    return _edges(circuit, found, [edge.source for edge in found])


@question(query, "outputs", PLACE, ROWS)
def outputs(circuit: ct.Circuit, given: dict[str, Any]) -> Answer:
    """The edges out of NODE that most influence passes."""
    found = circuit.outputs(given["node"], given["k"])
    return _edges(circuit, found, [edge.target for edge in found])


@question(
    query,
    "between",
    click.argument("source", metavar="SOURCE"),
    click.argument("target", metavar="TARGET"),
    ROWS,
)
def between(circuit: ct.Circuit, given: dict[str, Any]) -> Answer:
    """All that lies on paths from SOURCE to TARGET."""
    inside = circuit.between(given["source"], given["target"])
    through = inside.bottlenecks(given["k"]) if inside.nodes else []
    rows = [(*said(circuit, node), percent(share)) for node, share in through]
    value = {
        "flow": inside.flow() if inside.nodes else 0.0,
        "nodes": [plain(node) for node in inside.nodes],
        "edges": [_edge(edge) for edge in inside.edges],
    }
    return Answer(value, inside.summary(), [("node", "", "carries"), *rows], (2,))


@question(
    query,
    "carriers",
    SOURCE,
    click.option("--position", type=int, required=True, metavar="N",
                 help="Negative counts from the end."),
    TARGET,
    ROWS,
)  # fmt: skip
def carriers(circuit: ct.Circuit, given: dict[str, Any]) -> Answer:
    """What carries --from to a position: nodes there by the flow that passes them."""
    source = given["source"] or circuit.find("embedding")
    found = circuit.carriers(source, given["position"], given["target"] or None, given["k"])
    rows = [(*said(circuit, x.node), percent(x.arriving), percent(x.share)) for x in found]
    value = [{**_short(x.node), "arriving": x.arriving, "share": x.share} for x in found]
    return Answer(value, "", [("node", "", "comes from there", "carries"), *rows], (2, 3))


@question(query, "bottlenecks", ROWS)
def bottlenecks(circuit: ct.Circuit, given: dict[str, Any]) -> Answer:
    """Features that most of what is explained passes."""
    found = circuit.bottlenecks(given["k"])
    rows = [(*said(circuit, node), percent(share)) for node, share in found]
    value = [{**_short(node), "share": share} for node, share in found]
    return Answer(value, "", [("node", "", "passes"), *rows], (2,))


@question(query, "dominators", SOURCE, TARGET)
def dominators(circuit: ct.Circuit, given: dict[str, Any]) -> Answer:
    """Nodes that every path passes."""
    found = circuit.dominators(given["source"] or None, given["target"] or None)
    rows = [said(circuit, node) for node in found]
    title = "" if found else "no node is passed by every path"
    return Answer([_short(node) for node in found], title, [("node", ""), *rows])


@question(query, "cut", SOURCE, TARGET)
def cut(circuit: ct.Circuit, given: dict[str, Any]) -> Answer:
    """The fewest nodes whose removal leaves no path but straight edges."""
    found = circuit.minimum_cut(given["source"] or None, given["target"] or None)
    count = f"{len(found.nodes)} node{'' if len(found.nodes) == 1 else 's'}"
    title = (
        f"{count} cut all that passes any node ({percent(found.share)}); "
        f"straight edges carry {percent(found.direct)}"
    )
    value = {
        "nodes": [_short(node) for node in found.nodes],
        "share": found.share,
        "direct": found.direct,
    }
    return Answer(value, title, [("node", ""), *(said(circuit, node) for node in found.nodes)])


@question(query, "ancestors", PLACES, ROWS)
def ancestors(circuit: ct.Circuit, given: dict[str, Any]) -> Answer:
    """Nodes that have influence on all of two or more others."""
    found = circuit.common_ancestors(*given["nodes"], k=given["k"])
    rows = [(*said(circuit, x.node), *map(percent, x.influences)) for x in found]
    value = [
        {**_short(x.node), "influences": list(x.influences), "product": x.product} for x in found
    ]
    names = [f"on {circuit.node(name).id}" for name in given["nodes"]]
    return Answer(value, "", [("node", "", *names), *rows], range(2, 2 + len(names)))


@question(query, "influence", PLACES, TARGET)
def influence(circuit: ct.Circuit, given: dict[str, Any]) -> Answer:
    """The share of what drives --to that passes any NODE, each path counted once."""
    share = circuit.influence_of(given["nodes"], given["target"] or None)
    return Answer(share, percent(share))


@question(
    query,
    "contributions",
    click.option("--by", type=click.Choice(["layer", "position", "token"]), default="position"),
    TARGET,
)
def contributions(circuit: ct.Circuit, given: dict[str, Any]) -> Answer:
    """What each layer, position or token adds to --to: what starts there, and what passes."""
    from circuit_tracer.cli.report import quoted

    found = circuit.contributions(given["by"], given["target"] or None)
    rows = [
        (
            quoted(str(row.group)) if given["by"] == "token" else str(row.group),
            quoted(circuit.tokens[int(row.group)]) if given["by"] == "position" else "",
            *map(percent, (row.inputs, row.errors, row.passing)),
            str(row.n_nodes),
        )
        for row in found
    ]
    head = (given["by"], "", "tokens", "errors", "passes", "nodes")
    return Answer([asdict(row) for row in found], "", [head, *rows], (2, 3, 4, 5))


@question(
    query,
    "supernodes",
    click.option("--similarity", type=click.FloatRange(-1, 1), metavar="COSINE",
                 help="The least that joins two groups.  [default: 0.6]"),
    click.option("--band", type=options.AT_LEAST_ONE, default=3, metavar="N",
                 help="Members are in so many neighbouring layers at most."),
    click.option("--any-position", is_flag=True, help="Members may stand at several positions."),
    click.option("--min-size", type=options.AT_LEAST_ONE, default=2, metavar="N"),
    click.option("--with-decoders", is_flag=True, help="Load the model and compare decoders too."),
    *options.LOADING,
    graph=True,
)  # fmt: skip
def supernodes(circuit: ct.Circuit, given: dict[str, Any], graph: ct.Graph) -> Answer:
    """Features that do the same thing, grouped; and what is left when nothing else is kept."""
    from circuit_tracer.cli.report import shown

    names = ("similarity", "band", "min_size")
    chosen = {name: given[name] for name in names if given[name] is not None}
    model = load_model(given, graph) if given["with_decoders"] else None
    found = circuit.supernodes(model, same_position=not given["any_position"], **chosen)
    scores = circuit.merged(found, rest=False).scores
    rows = [
        (
            shown(one.name),
            percent(one.share),
            f"{one.cohesion:.2f}",
            str(len(one.members)),
            " ".join(node.id for node in one.members[:4]) + (" …" if len(one.members) > 4 else ""),
        )
        for one in found
    ]
    title = (
        f"{len(found)} supernodes; with all other features merged into errors: replacement "
        f"{scores.replacement:.2f}, completeness {scores.completeness:.2f} "
        f"(before {circuit.scores.replacement:.2f}, {circuit.scores.completeness:.2f})"
    )
    value = {
        "replacement": scores.replacement,
        "completeness": scores.completeness,
        "supernodes": [
            {
                "name": one.name,
                "share": one.share,
                "cohesion": one.cohesion,
                "members": [node.id for node in one.members],
            }
            for one in found
        ],
    }
    head = ("supernode", "passes", "cohesion", "size", "members")
    return Answer(value, title, [head, *rows], (1, 2, 3))


@question(query, "export", click.argument("output", type=click.Path(path_type=Path)))
def export(circuit: ct.Circuit, given: dict[str, Any]) -> Answer:
    """Write the circuit to OUTPUT: .graphml, .dot, .csv (nodes and edges apart) or .html."""
    from circuit_tracer.errors import InputError

    kind = given["output"].suffix.lower().removeprefix(".")
    if kind not in EXPORTS:
        raise InputError(f"{given['output'].name}: the name should end in .{', .'.join(EXPORTS)}")
    written = getattr(circuit, EXPORTS[kind])(given["output"]) or (given["output"],)
    return Answer([str(path) for path in written], "\n".join(map(str, written)))


def said(circuit: ct.Circuit, node: ct.Node) -> tuple[str, str]:
    """A node as two cells: its id, and what to call it."""
    from circuit_tracer.cli.report import name

    return node.id, name(node, circuit)


def percent(share: float) -> str:
    """A share with at least two digits that say something."""
    from circuit_tracer.summary import percent

    return percent(share)


def _edges(circuit: ct.Circuit, found: Sequence[Edge], far: Sequence[ct.Node]) -> Answer:
    rows = [
        (*said(circuit, node), f"{edge.weight:+.4g}", percent(edge.share))
        for edge, node in zip(found, far, strict=True)
    ]
    head = ("node", "", "weight", "share")
    return Answer([_edge(edge) for edge in found], "", [head, *rows], (2, 3))


def _edge(edge: Edge) -> dict[str, Any]:
    ends = {"source": edge.source.id, "target": edge.target.id}
    return {**ends, "weight": edge.weight, "share": edge.share}


def _short(node: ct.Node) -> dict[str, Any]:
    return {"id": node.id, "kind": node.kind, "label": node.label}
