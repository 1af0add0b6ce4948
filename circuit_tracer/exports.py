"""A circuit in the words of other tools: networkx, pandas, GraphML, DOT, CSV.

Files are written whole or not at all. Text stands in them as it is, escaped as each format asks;
what XML cannot hold (control characters) is spelled out.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape, quoteattr

from circuit_tracer import files
from circuit_tracer.errors import InputError
from circuit_tracer.nodes import Node

if TYPE_CHECKING:
    import networkx
    import pandas

    from circuit_tracer.circuit import Circuit

NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
GRAPHML_NODE = {
    "kind": "string",
    "layer": "int",
    "position": "int",
    "feature": "int",
    "token": "string",
    "activation": "double",
    "influence": "double",
    "label": "string",
    "probability": "double",
}
SHAPES = {"feature": "ellipse", "error": "diamond", "embedding": "box", "logit": "box"}
WIDEST = 6.0
"""Points that an edge with a share of 1 is wide."""


def fields(node: Node) -> dict[str, Any]:
    """All fields of a node but its id."""
    return {name: getattr(node, name) for name in Node.__dataclass_fields__ if name != "id"}


def to_networkx(circuit: Circuit) -> networkx.DiGraph:
    """A DiGraph by node id; nodes carry the fields of `Node`, edges weight and share."""
    import networkx

    graph = networkx.DiGraph(prompt=circuit.prompt)
    graph.add_nodes_from((node.id, fields(node)) for node in circuit.nodes)
    graph.add_edges_from(
        (source, target, {"weight": weight, "share": share})
        for source, target, weight, share in _edges(circuit)
    )
    return graph


def to_pandas(circuit: Circuit) -> tuple[pandas.DataFrame, pandas.DataFrame]:
    """(nodes, edges): nodes indexed by id, edges with source, target, weight and share."""
    try:
        import pandas
    except ModuleNotFoundError as error:
        missing = "to_pandas needs pandas: pip install 'trace-circuits[pandas]'"
        raise InputError(missing) from error

    nodes = pandas.DataFrame(
        [{"id": node.id, **fields(node)} for node in circuit.nodes],
        columns=list(Node.__dataclass_fields__),
    ).set_index("id")
    columns = ["source", "target", "weight", "share"]
    return nodes, pandas.DataFrame(list(_edges(circuit)), columns=columns)


def to_graphml(circuit: Circuit, path: str | os.PathLike[str]) -> None:
    """Write GraphML; fields that a node does not have are left out."""
    lines = [
        '<?xml version="1.0" encoding="utf-8"?>',
        '<graphml xmlns="http://graphml.graphdrawing.org/xmlns">',
    ]
    for name, kind in GRAPHML_NODE.items():
        lines.append(f'<key id="{name}" for="node" attr.name="{name}" attr.type="{kind}"/>')
    for name in ("weight", "share"):
        lines.append(f'<key id="{name}" for="edge" attr.name="{name}" attr.type="double"/>')
    lines.append('<graph edgedefault="directed">')
    for node in circuit.nodes:
        lines.append(f"<node id={_attribute(node.id)}>")
        for name, value in fields(node).items():
            if value is not None:
                lines.append(f'<data key="{name}">{escape(_xml(str(value)))}</data>')
        lines.append("</node>")
    for source, target, weight, share in _edges(circuit):
        lines.append(
            f"<edge source={_attribute(source)} target={_attribute(target)}>"
            f'<data key="weight">{weight!r}</data><data key="share">{share!r}</data></edge>'
        )
    files.write_text(path, "\n".join([*lines, "</graph>", "</graphml>"]) + "\n")


def to_dot(circuit: Circuit, path: str | os.PathLike[str]) -> None:
    """Write DOT: one row a layer, edges as wide as their share, dashed where they lower."""
    lines = [
        "digraph circuit {",
        f"  label={_quoted(circuit.prompt)}; rankdir=BT;",
        '  edge [color="#2266aa"];',
    ]
    for node in circuit.nodes:
        label = f"{node.label}\n{node.id}" if node.kind == "feature" else node.label
        lines.append(
            f"  {_quoted(node.id)} [label={_quoted(label)}, shape={SHAPES[node.kind]}, "
            f"tooltip={_quoted(f'influence {node.influence:.4g}')}];"
        )
    for layer in sorted({node.layer for node in circuit.nodes}):
        row = (_quoted(node.id) for node in circuit.nodes if node.layer == layer)
        lines.append(f"  {{ rank=same; {'; '.join(row)}; }}")
    for source, target, weight, share in _edges(circuit):
        lowers = ', style=dashed, color="#aa4422"' if weight < 0 else ""
        lines.append(
            f"  {_quoted(source)} -> {_quoted(target)} [penwidth={0.2 + WIDEST * share:.3f}, "
            f'tooltip="{weight:+.4g}, share {share:.4g}"{lowers}];'
        )
    files.write_text(path, "\n".join([*lines, "}"]) + "\n")


def to_csv(circuit: Circuit, path: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Write `NAME.nodes.csv` and `NAME.edges.csv` for `NAME.csv`, and say what they are called."""
    whole = Path(path)
    stem = whole.name.removesuffix(".csv")
    nodes, edges = (whole.with_name(f"{stem}.{part}.csv") for part in ("nodes", "edges"))
    with files.replacing(nodes) as place, open(place, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(Node.__dataclass_fields__)
        writer.writerows([node.id, *fields(node).values()] for node in circuit.nodes)
    with files.replacing(edges) as place, open(place, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("source", "target", "weight", "share"))
        writer.writerows(_edges(circuit))
    return nodes, edges


def _edges(circuit: Circuit) -> Iterator[tuple[str, str, float, float]]:
    names, wiring = [node.id for node in circuit.nodes], circuit.wiring
    weights = circuit.weights.tolist()
    for source, target, weight, share in zip(
        wiring.sources, wiring.targets, weights, wiring.shares, strict=True
    ):
        yield names[source], names[target], weight, share


def _xml(text: str) -> str:
    """Text as XML can hold it: characters it forbids as their escapes."""
    return NOT_XML.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def _attribute(text: str) -> str:
    return quoteattr(_xml(text))


def _quoted(text: str) -> str:
    """Text as a DOT string. Backslashes are doubled: they would start an escape."""
    plain = text.replace("\\", "\\\\").replace('"', '\\"').replace("\x00", "")
    return '"' + plain.replace("\r", "").replace("\n", "\\n") + '"'
