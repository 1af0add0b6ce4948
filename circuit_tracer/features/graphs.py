"""Where graphs and stores meet: labels in graphs, and the features of a graph or a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from circuit_tracer.bundled import features_file
from circuit_tracer.errors import InputError
from circuit_tracer.facts import FeatureNote
from circuit_tracer.features.feature import Label
from circuit_tracer.features.firing import firing
from circuit_tracer.features.store import Store
from circuit_tracer.graph import Graph
from circuit_tracer.replacement import ReplacementModel


@dataclass(frozen=True)
class Ranked:
    """A feature that matters in a graph or a prompt.

    Attributes:
        position, token: where it fires, or matters, most.
        activation: there.
        score: what it is ranked by: its influence in a graph, or in a prompt its activation as a
            share of its largest in the store's corpus.
    """

    layer: int
    id: int
    label: Label
    position: int
    token: str
    activation: float | None
    score: float

    @property
    def name(self) -> str:
        """`L2#417`, as nodes are called."""
        return f"L{self.layer}#{self.id}"


def annotate(graph: Graph, store: Store, automatic: bool = True) -> int:
    """Put a store's labels into a graph's notes; how many features have one now.

    Labels that are there already stay; those made by machine begin with "~".

    Args:
        automatic: also those made by machine.

    Raises:
        InputError: a store of other transcoders.
    """
    known, wanted = store.about.get("transcoders"), graph.provenance.transcoders
    if known and wanted and known != wanted:
        raise InputError(
            f"the features of {store.path} are those of {known}, and the graph is of {wanted}"
        )
    layers = graph.index.features[:, [0, 2]].unique(dim=0).tolist()
    named = 0
    for layer, feature in layers:
        note = graph.notes.get((layer, feature), FeatureNote())
        label = None if note.label else store.label(layer, feature)
        if label is not None and (automatic or not label.automatic):
            graph.notes[layer, feature] = replace(note, label=label.text)
            named += 1
    return named


def annotate_bundled(graph: Graph, model: ReplacementModel) -> None:
    """Put the labels that ship with the bundled model into a graph of it; leave others alone."""
    for kind in ("plt", "clt"):
        path = features_file(kind)
        if model.transcoders.name == f"bundled {kind}" and path.is_file():
            store = Store(path)
            annotate(graph, store)
            store.close()


def top(store: Store, graph: Graph, most: int = 20) -> list[Ranked]:
    """The features with the largest influence in a graph, each once, where it has most of it."""
    rows = graph.influence[: graph.index.n_features].argsort(descending=True).tolist()
    found: dict[tuple[int, int], Ranked] = {}
    for row in rows:
        node = graph.nodes[row]
        key = node.layer, node.feature
        label = store.label(*key)
        if label is not None and key not in found:
            found[key] = Ranked(
                *key, label, node.position, node.token, node.activation, node.influence
            )
        if len(found) == most:
            break
    return list(found.values())


def top_of_prompt(
    store: Store, model: ReplacementModel, prompt: str | Sequence[int], most: int = 20
) -> list[Ranked]:
    """The features that fire most in a prompt, against their largest activation in the corpus.

    One forward pass and no tracing; the first token is left out.

    Raises:
        InputError: a store of other transcoders, an empty prompt.
    """
    known = store.about.get("transcoders")
    if known and known != model.transcoders.name:
        raise InputError(f"{store.path} is of {known}, and not of {model.transcoders.name}")
    ids = model.tokenize(prompt)
    ignored = model.ignored_by_default(ids)
    best: dict[tuple[int, int], tuple[float, int, float]] = {}
    for layer, entries in enumerate(firing(model, ids)):
        for feature, value, _, position in entries.tolist():
            largest = _largest(store, layer, feature) if position not in ignored else None
            if largest:
                cell = value / largest, position, value
                best[layer, feature] = max(best.get((layer, feature), cell), cell)
    ranked = sorted(best.items(), key=lambda item: (-item[1][0], item[0]))[:most]
    return [
        Ranked(
            *key,
            store.row(*key).label,
            position,
            model.token_text(int(ids[position])),
            value,
            score,
        )
        for key, (score, position, value) in ranked
    ]


def _largest(store: Store, layer: int, feature: int) -> float | None:
    """The largest activation in the corpus; None where the store does not know it."""
    try:
        return store.row(layer, feature).largest
    except InputError:
        return None


def plain(ranked: Ranked) -> dict[str, Any]:
    """As JSON."""
    return {
        "feature": f"{ranked.layer}.{ranked.id}",
        "label": ranked.label.text,
        "automatic": ranked.label.automatic,
        "position": ranked.position,
        "token": ranked.token,
        "activation": ranked.activation,
        "score": ranked.score,
    }
