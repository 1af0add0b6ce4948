"""One HTML file that shows a comparison: lanes, overlap by layer, and the graphs side by side.

Made like the page of a graph (`page`), and as self-contained; it draws with SVG alone and carries
no plotly. Beneath the picture stands the same comparison as text.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from circuit_tracer.view.compared import (
    ComparedFeature,
    ComparedGraph,
    ComparedSupernode,
    ComparisonDrawing,
    LayerOverlaps,
    ranked,
)
from circuit_tracer.view.drawing import by_influence, fitted
from circuit_tracer.view.page import SHARED_SCRIPTS, assembled, ordered, text
from circuit_tracer.view.payload import encode, packed
from circuit_tracer.view.wording import number, visible

FORMAT = 1
MOST_FEATURES, MOST_EDGES = 6_000, 30_000
NODES_A_GRAPH, EDGES_A_GRAPH = 1_500, 15_000
PLAIN_FEATURES = 20
SCRIPTS = (
    *SHARED_SCRIPTS,
    "compared.js",
    "lanes.js",
    "overlap.js",
    "linked.js",
    "examples.js",
    "supernodes.js",
    "feature.js",
    "comparison.js",
)


def render(comparison: ComparisonDrawing) -> str:
    """The page. The same comparison gives the same text, byte for byte.

    Of more than 6,000 features the most influential are kept, of more than 30,000 edges the first,
    and of each graph its strongest 1,500 nodes and 15,000 edges; the page says what was dropped.
    """
    comparison = _fitted(comparison)
    graphs = comparison.graphs
    return assembled(
        "comparison.html",
        ("app.css", "meaning.css", "comparison.css"),
        SCRIPTS,
        title=" · ".join(graph.name for graph in graphs)[:80],
        plain=_plain(comparison),
        payload=packed(_encoded(comparison)),
        graphs="\n".join(
            f'<script type="text/plain" id="graph-{place}">{packed(encode(graph.drawing))}</script>'
            for place, graph in enumerate(graphs)
        ),
    )


def _fitted(comparison: ComparisonDrawing) -> ComparisonDrawing:
    """The comparison itself if a page can carry it, else its strongest part with notices."""
    features, edges = comparison.features, comparison.edges
    kept = sorted(ranked(features)[:MOST_FEATURES])
    row = {old: new for new, old in enumerate(kept)}
    inside = [edge for edge in edges if edge.source in row and edge.target in row][:MOST_EDGES]
    said = [
        f"Only the {most:,} most influential of {count:,} {what} are here"
        for most, count, what in (
            (len(kept), len(features), "features"),
            (len(inside), len(edges), "edges between features"),
        )
        if most < count
    ]
    return replace(
        comparison,
        graphs=tuple(
            replace(graph, drawing=fitted(graph.drawing, NODES_A_GRAPH, EDGES_A_GRAPH))
            for graph in comparison.graphs
        ),
        features=tuple(features[old] for old in kept),
        edges=tuple(
            replace(edge, source=row[edge.source], target=row[edge.target]) for edge in inside
        ),
        roles=tuple(
            replace(role, members=tuple(None if at is None else row[at] for at in role.members))
            for role in comparison.roles
            if all(at is None or at in row for at in role.members)
        ),
        supernodes=tuple(
            replace(
                one,
                members=tuple(
                    tuple((row[old], position) for old, position in each) for each in one.members
                ),
                common=tuple(row[old] for old in one.common),
            )
            for one in comparison.supernodes
            if one.rows <= row.keys()
        ),
        notices=(*comparison.notices, *(f"{sentence}." for sentence in said)),
    )


def _encoded(comparison: ComparisonDrawing) -> bytes:
    features = comparison.features

    def known(value: Callable[[ComparedFeature], Any]) -> dict[int, Any]:
        return {row: value(one) for row, one in enumerate(features) if value(one)}

    plain = {
        "format": FORMAT,
        "n_layers": comparison.n_layers,
        "graphs": [
            {"name": graph.name, "lang": graph.lang, "href": graph.href}
            for graph in comparison.graphs
        ],
        "key": [feature.key for feature in features],
        "layer": [feature.layer for feature in features],
        "ids": [feature.ids for feature in features],
        "influence": [feature.influence for feature in features],
        "positions": [feature.positions for feature in features],
        "label": known(lambda one: one.label),
        "promoted": known(lambda one: one.promoted),
        "suppressed": known(lambda one: one.suppressed),
        "spread": known(lambda one: one.spread),
        "verdict": known(lambda one: one.verdict),
        "overlaps": [asdict(one) for one in comparison.overlaps],
        "counts": comparison.counts,
        "edges": [(edge.source, edge.target, edge.shares) for edge in comparison.edges],
        "roles": [(role.members, role.similarity) for role in comparison.roles],
        "supernodes": [asdict(one) for one in comparison.supernodes],
        "summary": comparison.summary,
        "about": comparison.about,
        "notices": comparison.notices,
    }
    return json.dumps(_rounded(plain), separators=(",", ":"), allow_nan=False).encode("ascii")


def _rounded(value: Any) -> Any:
    """The same with six significant digits; what is not finite is unknown."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(one) for one in value]
    return value


def _plain(comparison: ComparisonDrawing) -> str:
    """Prompts, lanes, overlap and the most influential shared features as plain HTML."""
    lanes = comparison.lanes()
    counts = [f"{text(name)}: {len(rows):,}" for name, rows in lanes.items()]
    shared = lanes["all"][:PLAIN_FEATURES]
    lines = [
        f"<h1>{text(' · '.join(graph.name for graph in comparison.graphs))}</h1>",
        *(f"<p><strong>{text(notice)}</strong></p>" for notice in comparison.notices),
        f"<p>{text(comparison.summary)}</p>",
        *(_plain_graph(graph) for graph in comparison.graphs),
        f"<h2>Features</h2><p>{'; '.join(counts)}.</p>",
        "<h2>Most influential features of all graphs</h2>",
        ordered([_plain_feature(comparison.features[row]) for row in shared]),
        *_plain_supernodes(comparison),
        _plain_overlap(comparison),
    ]
    return "\n".join(lines)


def _plain_graph(graph: ComparedGraph) -> str:
    nodes = graph.drawing.nodes
    outputs = [nodes[i] for i in by_influence(nodes, range(len(nodes))) if nodes[i].kind == "logit"]
    said = ", ".join(
        f"<bdi>{text(visible(node.token))}</bdi>"
        + ("" if node.probability is None else f" {node.probability:.1%}")
        for node in outputs
    )
    lang = f' lang="{text(graph.lang)}"' if graph.lang else ""
    return (
        f'<h2>{text(graph.name)}</h2><p{lang} dir="auto">{text(graph.drawing.prompt)}</p>'
        f"<p>{said or 'No outputs.'}</p>"
    )


def _plain_feature(feature: ComparedFeature) -> str:
    says = ", ".join(f"“{visible(token)}”" for token, _ in feature.promoted[:2])
    name = feature.label or (f"says {says}" if says else feature.key)
    values = ", ".join(number(value) for value in feature.influence)
    return f"<bdi>{text(name)}</bdi> <small>L{feature.layer} · influence {values}</small>"


def _plain_supernodes(comparison: ComparisonDrawing) -> list[str]:
    found = [_plain_supernode(comparison, one) for one in comparison.supernodes[:PLAIN_FEATURES]]
    return ["<h2>Supernodes that graphs share</h2>", ordered(found)] if found else []


def _plain_supernode(comparison: ComparisonDrawing, supernode: ComparedSupernode) -> str:
    pairs = zip(comparison.graphs, supernode.members, strict=True)
    each = ", ".join(f"{len(members)} in {text(graph.name)}" for graph, members in pairs if members)
    first = _plain_feature(comparison.features[supernode.common[0]])
    return (
        f"{first} <small>and {len(supernode.common) - 1} more in common; features: {each}</small>"
    )


def _plain_overlap(comparison: ComparisonDrawing) -> str:
    overlaps = comparison.overlaps
    if not overlaps:
        return ""

    def name(overlap: LayerOverlaps) -> str:
        return text(" – ".join(comparison.graphs[place].name for place in overlap.members))

    head = "".join(f'<th scope="col">{name(one)}</th>' for one in overlaps)
    body = "".join(
        f'<tr><th scope="row">L{layer}</th>'
        + "".join(f"<td>{_share(one.weighted[layer])}</td>" for one in overlaps)
        + "</tr>"
        for layer in range(comparison.n_layers)
    )
    return (
        "<h2>Overlap by layer (influence-weighted Jaccard)</h2>"
        f'<div class="wide"><table><tr><th scope="col">Layer</th>{head}</tr>{body}</table></div>'
    )


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"
