"""`faithfulness`: the whole card of a graph, in a bounded number of passes.

Features to ablate are taken at even steps down the ranking by influence, so that strong, middling
and weak ones are all there, and the same ones every time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from circuit_tracer.card import Correlation, Faithfulness
from circuit_tracer.circuit import Circuit
from circuit_tracer.errors import InputError
from circuit_tracer.graph import Graph
from circuit_tracer.patched import Hold
from circuit_tracer.replacement import ReplacementModel
from circuit_tracer.shapes import Int, Tensor
from circuit_tracer.targets import Wanted
from circuit_tracer.verify.circuits import necessity, sufficiency
from circuit_tracer.verify.jacobian import jacobian_cosines
from circuit_tracer.verify.propagation import Propagation, edge_error
from circuit_tracer.verify.ranks import correlation
from circuit_tracer.verify.subject import Subject

Progress = Callable[[float, str], None]
FEWEST = 8
"""Fewer ablations than this say nothing about a ranking."""
ROUNDING = (0.1, 0.01)
"""Error of the edges allowed in half precision, and in float32 or better; edges of another model
have one of about 1."""
EXACT = 8
"""Ablations that the edges themselves are checked by."""


def faithfulness(
    graph: Graph,
    model: ReplacementModel,
    circuit: Circuit | None = None,
    max_ablations: int = 60,
    targets: Sequence[Wanted] | None = None,
    progress: Progress | None = None,
) -> Faithfulness:
    """How far a graph agrees with its model: predictions against interventions on its prompt.

    Single features are ablated (activation × 0, all that they write taken away) with attention
    patterns and MLP outputs up to their layer held and everything above recomputed.

    Args:
        graph: from `trace`.
        model: what it was traced on.
        circuit: what necessity and sufficiency are asked of; default `graph.prune()`.
        max_ablations: single features ablated, spread over the ranking by influence.
        targets: as given to `trace`; needed where one is a direction of which the graph has the
            name alone, because it was read from JSON.
        progress: called with (share done, message).

    Returns:
        The card; `dataclasses.replace(graph, faithfulness=card)` keeps it with the graph.

    Raises:
        InputError: a graph of another model or other transcoders, or one that does not know its
            prompt, or has no features; max_ablations below 1.

    Example:
        >>> import circuit_tracer as ct
        >>> model = ct.load()
        >>> graph = ct.trace("The opposite of small is", model)
        >>> ct.faithfulness(graph, model).verdict.split(":")[0]
        'Partly borne out'
    """
    if not isinstance(graph, Graph) or not isinstance(model, ReplacementModel):
        raise InputError(f"faithfulness takes a graph and a model, not {graph!r} and {model!r}")
    if max_ablations < 1:
        raise InputError(f"max_ablations must be at least 1, not {max_ablations}")
    report = progress or (lambda done, message: None)
    report(0.0, "running the prompt again")
    with torch.no_grad():
        subject = Subject.of(graph, model, targets)
        rows = strata(graph, max_ablations)
        if not len(rows):
            raise InputError(
                "this graph has no features, so there is nothing to take away: its positions are "
                f"{', '.join(map(repr, graph.tokens))}, and those ignored are "
                f"{graph.provenance.ignored_positions}"
            )
        exact = edge_error(subject, rows[:: max(1, len(rows) // EXACT)][:EXACT])
        correlations, propagation = _ablate(subject, rows, report)
        kept = _circuit_rows(graph, graph.prune() if circuit is None else circuit)
        report(0.6, "with and without the circuit")
        needed = necessity(subject, kept) if len(kept) else ()
        report(0.75, "the circuit alone")
        enough = sufficiency(subject, kept) if len(kept) else ()
        report(0.9, "comparing derivatives")
        layers = range(graph.index.n_layers)
        jacobians = [jacobian_cosines(subject, layer) for layer in layers]
    report(1.0, "verified")
    return Faithfulness(
        edge_error=exact,
        edge_tolerance=ROUNDING[model.adapter.model.dtype.itemsize > 2],
        correlations=correlations,
        steps=propagation.steps(),
        circuit_features=len(kept),
        active_features=graph.index.n_features,
        necessity=needed,
        sufficiency=enough,
        error_share_by_layer=graph.scores.error_share_by_layer,
        jacobian_by_layer=tuple(random for random, _ in jacobians),
        jacobian_by_writes=tuple(writes for _, writes in jacobians),
        model=model.adapter.name,
        transcoders=model.transcoders.name,
    )


def strata(graph: Graph, count: int) -> Int[Tensor, " source"]:
    """Feature rows at even steps down the ranking by influence, most influential first."""
    ranked = graph.influence[: graph.index.n_features].argsort(descending=True, stable=True)
    if count >= len(ranked):
        return ranked
    return ranked[torch.linspace(0, len(ranked) - 1, count).round().long()]


def _ablate(
    subject: Subject, rows: Int[Tensor, " source"], report: Progress
) -> tuple[tuple[Correlation, ...], Propagation]:
    """Ablate features one by one, several in a pass."""
    propagation, done = Propagation(subject, rows), 0
    effects = torch.zeros(2, subject.graph.index.n_features, dtype=torch.float64)
    before = subject.before
    for layer, part in _passes(subject, rows):
        report(0.05 + 0.55 * done / len(rows), f"ablating {len(rows)} features one by one")
        hold = Hold(frozenset(range(layer + 1)), patterns=True)
        reading = subject.read(subject.removal(part.tolist()), hold)
        moved = (reading.values - before.values).abs().cpu().double()
        effects[0, part] = moved @ subject.weights
        effects[1, part] = reading.kl
        propagation.add(layer, part, reading)
        done += len(part)
    if len(rows) < FEWEST:
        return (), propagation
    influence = subject.graph.influence[rows].tolist()
    positions = subject.features[rows, 1].tolist()
    tokens = any(out.feature is None for out in subject.readouts)
    names = ("targets", "kl") if tokens else ("targets",)
    found = [
        correlation(name, influence, effects[number, rows].tolist(), positions)
        for number, name in enumerate(names)
    ]
    return tuple(found), propagation


def _passes(
    subject: Subject, rows: Int[Tensor, " source"]
) -> Iterator[tuple[int, Int[Tensor, " source"]]]:
    """Features by layer, as many as fit one pass."""
    layers = subject.features[rows, 0]
    for layer in layers.unique().tolist():
        for part in rows[layers == layer].split(subject.copies):
            yield layer, part


def _circuit_rows(graph: Graph, circuit: Circuit) -> Int[Tensor, " some"]:
    """Rows of a circuit's features."""
    names = [node.id for node in circuit.nodes if node.kind == "feature"]
    return torch.tensor([graph.row(name) for name in names], dtype=torch.long)
