"""Where graphs and stores meet: labels in graphs, and the features of a graph or a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from circuit_tracer.bundled import features_file
from circuit_tracer.errors import InputError
from circuit_tracer.facts import FeatureNote
from circuit_tracer.features.feature import MARK, Label
from circuit_tracer.features.firing import firing
from circuit_tracer.features.labels import Labels
from circuit_tracer.features.panel import panel
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


def annotate(
    graph: Graph,
    store: Store | None = None,
    automatic: bool = True,
    labels: Labels | None = None,
) -> int:
    """Give a graph what is known of its features; how many were named by the store.

    Labels come into its notes, those made by machine with "~" before them; what people called a
    feature before stays. Examples and figures are looked up when a page is made.

    Args:
        store: from `open_store`; None for that of the bundled model, where the graph is of it.
        automatic: also labels made by machine.
        labels: from `labels.read`; these come before all others.

    Raises:
        InputError: a store of other transcoders; none was given, and the graph is of another model.

    Example:
        >>> graph = ct.Graph.load("small.safetensors")
        >>> annotate(graph)
        >>> graph.prune().save_html("small.html")
    """
    if store is None:
        path = bundled_store(graph)
        if path is None:
            raise InputError(
                f"the graph is of {graph.provenance.transcoders or 'unknown transcoders'}, and "
                "only the bundled ones come with a store: open one with open_store(FILE)"
            )
        store = Store(path)
    name(graph, labels or {})
    known, wanted = store.about.get("transcoders"), graph.provenance.transcoders
    if known and wanted and known != wanted:
        raise InputError(
            f"the features of {store.path} are those of {known}, and the graph is of {wanted}"
        )
    named = 0
    for key, label in store.labels(_features(graph)).items():
        note = graph.notes.get(key, FeatureNote())
        if note.label and not note.label.startswith(MARK):
            continue
        if automatic and not note.label or not label.automatic:
            graph.notes[key] = replace(note, label=label.text)
            named += 1
    graph.lookups[:0] = [panel(store, labels)]
    return named


def annotate_bundled(graph: Graph) -> None:
    """Give a graph of the bundled model what ships with it; leave others alone."""
    path = bundled_store(graph)
    if path is not None and not graph.lookups:
        annotate(graph, _kept_open(path, path.stat().st_mtime_ns))


@lru_cache(maxsize=2)
def _kept_open(path: Path, changed: int) -> Store:
    """A store from one graph to the next, until its file changes."""
    return Store(path)


def bundled_store(graph: Graph) -> Path | None:
    """The store that ships with a graph's transcoders; None where none does."""
    for kind in ("plt", "clt"):
        path = features_file(kind)
        if graph.provenance.transcoders == f"bundled {kind}" and path.is_file():
            return path
    return None


def name(graph: Graph, labels: Labels) -> int:
    """Call features of a graph so, whatever they were called; how many of them it has."""
    known = _features(graph)
    found = {key: label for key, label in labels.items() if key in known}
    for key, label in found.items():
        graph.notes[key] = replace(graph.notes.get(key, FeatureNote()), label=label.text)
    return len(found)


def _features(graph: Graph) -> set[tuple[int, int]]:
    """(layer, id) of all features of a graph."""
    pairs = graph.index.features[:, [0, 2]].tolist() if graph.index.n_features else []
    return {(layer, feature) for layer, feature in pairs}


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
    cells = [
        ((layer, feature), position, value)
        for layer, entries in enumerate(firing(model, ids))
        for feature, value, _, position in entries.tolist()
        if position not in ignored
    ]
    rows = store.found(key for key, _, _ in cells)
    best: dict[tuple[int, int], tuple[float, int, float]] = {}
    for key, position, value in cells:
        if key in rows and (largest := rows[key].largest):
            best[key] = max(best.get(key, (0.0, 0, 0.0)), (value / largest, position, value))
    ranked = sorted(best.items(), key=lambda item: (-item[1][0], item[0]))[:most]
    return [
        Ranked(
            *key,
            rows[key].label,
            position,
            model.token_text(int(ids[position])),
            value,
            score,
        )
        for key, (score, position, value) in ranked
    ]


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
