"""Questions of `circuit-tracer query` that need more than the graph: the model is loaded again.

It is the one that the graph was traced with, unless the options name another.
"""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from circuit_tracer.cli import options, texts
from circuit_tracer.cli.asking import Answer, in_graph, load_model, question
from circuit_tracer.cli.query import PLACES, ROWS, percent, query

if TYPE_CHECKING:
    import circuit_tracer as ct
    from circuit_tracer.error_nodes import ErrorNode
    from circuit_tracer.global_weights import GlobalWeight

__all__ = ["query"]


class Feature(click.ParamType):
    """A feature wherever it is: `3.417`, or `L3#417`."""

    name = "LAYER.ID"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        found = re.fullmatch(options.FEATURE, value)
        if found is None:
            self.fail(f"{value!r} is not a feature, like 3.417.", param, ctx)
        return int(found[1]), int(found[2])


@question(query, "heads", PLACES, ROWS, *options.LOADING, graph=True)
def heads(circuit: ct.Circuit, given: dict[str, Any], graph: ct.Graph) -> Answer:
    """Attention heads that carry the edge between two NODEs, or every edge of a path of more."""
    from circuit_tracer.attention import path_heads

    names = [in_graph(circuit, name) for name in given["nodes"]]
    found = path_heads(load_model(given, graph), graph, names)
    values = [edge.to_plain(given["k"]) for edge in found.edges]
    return Answer(values, found.table(given["k"]))


@question(
    query,
    "qk",
    click.option("--layer", type=int, required=True, metavar="N"),
    click.option("--head", type=int, required=True, metavar="N"),
    click.option("--query", "query_position", type=int, required=True, metavar="POSITION",
                 help="The position that looks."),
    click.option("--key", "key_position", type=int, required=True, metavar="POSITION",
                 help="The position it looks at."),
    ROWS,
    *options.LOADING,
    graph=True,
)  # fmt: skip
def qk(circuit: ct.Circuit, given: dict[str, Any], graph: ct.Graph) -> Answer:
    """Why a head looks where it looks: its score, split over what was written at both ends."""
    from circuit_tracer.attention import qk as take_apart

    places = (given[name] for name in ("layer", "head", "query_position", "key_position"))
    found = take_apart(load_model(given, graph), graph, *places)
    return Answer(found.to_plain(given["k"]), found.table(given["k"]))


@question(
    query,
    "error",
    click.argument("node", metavar="LAYER@POSITION"),
    click.option("--other", "others", multiple=True, metavar="ID|DIR",
                 help="How other transcoders of the model read it; plt or clt for the bundled "
                 "model. Again for more."),
    ROWS,
    *options.LOADING,
    graph=True,
)  # fmt: skip
def error(circuit: ct.Circuit, given: dict[str, Any], graph: ct.Graph) -> Answer:
    """An error node taken apart, L3@5: size, who reads it, what it says, what goes without it."""
    from circuit_tracer.error_nodes import explain_error

    name = re.sub(r"^L?(?=\d+ ?@)", "error L", given["node"])
    model = load_model(given, graph)
    others = [load_model({**given, "transcoders": one}, graph) for one in given["others"]]
    sets = [other.transcoders for other in others]
    found = explain_error(graph, model, in_graph(circuit, name), sets, k=given["k"])
    return Answer(asdict(found), "\n\n".join(_apart(found, circuit, given["k"])))


@question(
    query,
    "weights",
    click.argument("pair", metavar="[SOURCE TARGET]", nargs=-1, type=Feature()),
    click.option("--of", type=Feature(), metavar="LAYER.ID",
                 help="Rank the weights of this feature instead."),
    click.option("--side", type=click.Choice(["inputs", "outputs"]), default="inputs",
                 help="Of --of: features that drive it, or that it drives."),
    click.option("--texts", type=click.Path(path_type=Path, exists=True, dir_okay=False),
                 metavar="FILE.txt",
                 help="Of --of: texts, one a line, on which features are to fire together."),
    ROWS,
    *options.LOADING,
    graph=True,
)  # fmt: skip
def weights(circuit: ct.Circuit, given: dict[str, Any], graph: ct.Graph) -> Answer:
    """Weights between features that hold for every prompt: of a pair, or the strongest of one."""
    from circuit_tracer.agreement.measure import pieces
    from circuit_tracer.errors import InputError
    from circuit_tracer.global_weights import coactivation, global_weights, virtual_weight

    pair, of = given["pair"], given["of"]
    if (of is None) == (not pair) or len(pair) not in (0, 2):
        raise InputError("give two features, 3.417 5.20, or one with --of 3.417")
    model = load_model(given, graph)
    if pair:
        if given["texts"] is not None:
            raise InputError("--texts belongs to --of: it ranks the weights of one feature")
        weight = virtual_weight(model, *pair)
        value = {"source": pair[0], "target": pair[1], "weight": weight}
        return Answer(value, f"{_feature(pair[0])} → {_feature(pair[1])}: {weight:+.4g}")
    seen = None
    if given["texts"] is not None:
        read = (ids.tolist() for ids in pieces(model, texts.read(given["texts"])))
        seen = coactivation(model, of, read)
    found = global_weights(model, of, given["side"], given["k"], seen)
    values = [{**asdict(one), "warning": one.warning} for one in found]
    head = ("feature", "weight", "chance", "TWERA", "together", "")
    rows = [head, *(_weight(one, given["side"]) for one in found)]
    title = f"{given['side']} of {_feature(of)}"
    if seen is None:
        rows = [row[:3] for row in rows]
        title += "; many are of features that never meet: --texts FILE ranks by which do"
    return Answer(values, title, rows, (1, 2, 3, 4)[: len(rows[0]) - 1])


def _apart(found: ErrorNode, circuit: ct.Circuit, k: int) -> list[str]:
    """An error node in parts of text."""
    from circuit_tracer.cli.report import quoted, table

    node = found.node
    said = (
        f"error L{node.layer}@{node.position} {quoted(node.token)}: {found.size:.2f} of the MLP's "
        f"output, influence {percent(node.influence)}\n"
        f"says {' '.join(quoted(token) for token, _ in found.promoted)}, "
        f"not {' '.join(quoted(token) for token, _ in found.suppressed)}\n"
        f"targets, on average: {found.before:.3g}, without it {found.after:.3g}"
    )
    read = [("read by", "share")]
    for one in found.heard[:k]:
        where = "targets" if one.layer == circuit.n_layers else f"layer {one.layer}"
        place = f"{where} @{one.position} {quoted(circuit.tokens[one.position])}"
        read.append((place, percent(one.share)))
    tokens = [("next token", "with", "without")]
    tokens += [(quoted(one.token), percent(one.before), percent(one.after)) for one in found.tokens]
    parts = [said, table(read, (1,)), table(tokens, (1, 2))]
    for other in found.others:
        heading = (
            f"{other.transcoders}: its own error is {other.size:.2f} of the output; it explains "
            f"{percent(other.explained)} of this one"
        )
        rows = [("feature", "activation", "along it")]
        for speaker in other.features:
            name = _feature((speaker.layer, speaker.feature))
            rows.append((name, f"{speaker.activation:.2f}", percent(speaker.share)))
        parts.append(heading + "\n" + table(rows, (1, 2)))
    return parts


def _weight(one: GlobalWeight, side: str) -> tuple[str, ...]:
    return (
        _feature(one.source if side == "inputs" else one.target),
        f"{one.weight:+.4g}",
        percent(one.chance),
        "" if one.twera is None else f"{one.twera:+.4g}",
        "" if one.together is None else percent(one.together),
        one.warning or "",
    )


def _feature(feature: tuple[int, int]) -> str:
    return f"L{feature[0]}#{feature[1]}"
