"""The loop that everything meets in: prompt → forward pass → targets → rows → graph."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version

import torch

from circuit_kernels.choice import Choice
from circuit_tracer import memory
from circuit_tracer.abreast import Side, attribute_abreast, fits, part
from circuit_tracer.attention.carried import edge_heads
from circuit_tracer.attention.ends import localise
from circuit_tracer.attention.looks import edge_looks
from circuit_tracer.attribute import Progress, attribute
from circuit_tracer.circuit import Circuit, Provenance
from circuit_tracer.edges import EdgeRows
from circuit_tracer.errors import InputError
from circuit_tracer.estimate import Estimate, MaxFeatures, rehearse
from circuit_tracer.features.graphs import annotate_bundled
from circuit_tracer.forward import run_abreast
from circuit_tracer.graph import Graph
from circuit_tracer.keeping import KeepEdges
from circuit_tracer.loading import load
from circuit_tracer.local import Local
from circuit_tracer.notes import describe
from circuit_tracer.question import Choosing, IgnorePositions, Prompt, Question
from circuit_tracer.replacement import ReplacementModel
from circuit_tracer.shapes import Float, Int, Tensor
from circuit_tracer.targets import Readout, Wanted

PAGE_NODES, PAGE_EDGES = 2_000, 40_000
DESCRIBED = 1_000


def trace(
    prompt: Prompt,
    model: ReplacementModel | None = None,
    targets: Sequence[Wanted] | None = None,
    max_features: MaxFeatures = "auto",
    max_logits: int = 10,
    logit_probability: float = 0.95,
    ignore_positions: IgnorePositions = "bos",
    positions: int | Sequence[int] | None = None,
    answer: str | Sequence[int] | None = None,
    chat: bool = False,
    kernels: Choice = "auto",
    progress: Progress | None = None,
    keep_edges: KeepEdges = "auto",
) -> Graph:
    """Trace a prompt to its output.

    Args:
        prompt: text, or token ids taken as they are.
        model: from `load`; None loads the bundled model.
        targets: what to explain, mixed freely: tokens by text or id, `Difference(a, b)`,
            `Direction(vector, label)`, `At(target, position)`, and features as
            `(layer, position, id)`, whose pre-activation is explained whether they fire or not.
            None for the likeliest tokens until they hold `logit_probability`, at most
            `max_logits` a position. Tokens count by their probability, all else by 1.
        max_features: features that get a row: None for all, a number, or "auto" for all where that
            is a matter of seconds and as many as fit into that where it is not.
        ignore_positions: positions whose features and errors are left out ("bos": position 0,
            "special": every position that holds a special token, "none", or a list). What they
            add is kept per row (`Graph.ignored`), so that rows still close.
        positions: where targets are read, one or several, negative counting from the end; default
            the last. `At` and features say it themselves.
        answer: explain this whole answer, text or ids: its tokens follow on the prompt, and each
            is read at the position before it. Each counts by 1, because the log-probability of
            the answer is the sum of theirs: weighed by probability, the token that was hardest to
            come by would count least. Not together with `targets` or `positions`.
        chat: the prompt is what a user says to an instruction model: it is put into the
            tokenizer's template, and "bos" ignores the whole opening of that template.
        kernels: "auto", "reference" (torch) or "triton".
        progress: called with (share done, message).
        keep_edges: which edges of a row are stored: the strongest ones that hold this share of its
            absolute sum, 1 for all, or "auto" for all where they fit into memory and else for the
            largest share that does, 0.99 to 0.9. What is dropped still closes its row, and
            `Graph.scores.pruned_share` says how much influence left that way.

    Returns:
        A `Graph`: rows, closing terms and node notes; it holds no model.

    Raises:
        InputError: an empty or too long prompt, an unknown target, limits out of range, arguments
            that exclude each other.
        MemoryBudgetError: the run would not fit.

    Example:
        >>> import circuit_tracer as ct
        >>> graph = ct.trace("The opposite of small is")
        >>> graph.targets[0].label
        ' large'
    """
    question = Question(
        prompt,
        targets,
        max_features,
        max_logits,
        logit_probability,
        ignore_positions,
        positions,
        answer,
        chat,
        kernels,
        keep_edges,
    )
    return _alone(question, load() if model is None else model, progress)


def _alone(question: Question, model: ReplacementModel, progress: Progress | None = None) -> Graph:
    clock = time.perf_counter()
    local, readouts = _prepare(question, model)
    timings = {"forward": time.perf_counter() - clock}
    limits = question.max_features, question.kernels, progress, question.keep_edges
    rows = attribute(local, readouts, *limits)
    timings["attribution"] = time.perf_counter() - clock - timings["forward"]
    found = _Found(local.forward.token_ids, local.activations, readouts, rows)
    return _graph(question, model, found, local.ignored_positions, timings)


def trace_abreast(questions: Sequence[Question], model: ReplacementModel) -> list[Graph]:
    """Trace prompts of one length in one forward pass and one sweep (`abreast`).

    Where less than everything is asked for, or everything of all prompts is too much at once, each
    is traced by itself.

    Raises:
        InputError: prompts of different lengths; and whatever `trace` raises for any of them.
    """
    clock, put = time.perf_counter(), [question.put(model) for question in questions]
    together = _together(questions, put, model)
    if together is None:
        return [_alone(question, model) for question in questions]
    side, readouts = together
    timings = {"forward": time.perf_counter() - clock}
    rows = attribute_abreast(side, readouts, questions[0].kernels)
    timings["attribution"] = time.perf_counter() - clock - timings["forward"]
    shares = {name: seconds / len(questions) for name, seconds in timings.items()}
    graphs = []
    for number, question in enumerate(questions):
        active = side.activations[side.own(number).to(side.activations.device)]
        found = _Found(torch.tensor(put[number][0]), active, readouts[number], rows[number])
        graphs.append(_graph(question, model, found, side.ignored_by[number], dict(shares)))
    return graphs


def _together(
    questions: Sequence[Question],
    put: Sequence[tuple[list[int], Choosing]],
    model: ReplacementModel,
) -> tuple[Side, list[list[Readout]]] | None:
    """The prompts side by side, and what to read of each; None where they do not go together."""
    adapter, prompts, lengths = model.adapter, len(put), {len(ids) for ids, _ in put}
    if len(lengths) > 1:
        raise InputError(f"side by side go prompts of one length, not of {sorted(lengths)} tokens")
    if not all(question.everything for question in questions):
        return None
    if prompts * memory.forward(adapter, *lengths) > memory.free(adapter.device):
        return None
    forward = run_abreast(adapter, model.transcoders, torch.tensor([ids for ids, _ in put]))
    readouts = [chosen(part(forward, b, prompts)) for b, (_, chosen) in enumerate(put)]
    ignored = [question.ignored(model, put[b][0]) for b, question in enumerate(questions)]
    with torch.no_grad():
        side = Side(adapter, model.transcoders, forward, ignored, questions[0].kernels)
        return (side, readouts) if fits(side, readouts) else None


@dataclass(frozen=True, eq=False)
class _Found:
    """What attribution gave for one prompt."""

    token_ids: Int[Tensor, " position"]
    activations: Float[Tensor, " active"]
    readouts: Sequence[Readout]
    rows: EdgeRows


def _graph(
    question: Question,
    model: ReplacementModel,
    found: _Found,
    ignored: tuple[int, ...],
    timings: dict[str, float],
) -> Graph:
    """A graph with its notes."""
    ids = found.token_ids.tolist()
    graph = Graph(
        edges=found.rows,
        activations=found.activations.cpu(),
        targets=tuple(readout.target for readout in found.readouts),
        tokens=tuple(model.token_text(token) for token in ids),
        token_ids=tuple(ids),
        provenance=_provenance(question, model, ignored),
        timings=timings,
    )
    clock = time.perf_counter()
    ranked = graph.influence[: graph.index.n_features].argsort(descending=True)[:DESCRIBED]
    keys = graph.index.features[ranked][:, [0, 2]].tolist()
    graph.notes.update(describe(model, [(layer, feature) for layer, feature in keys]))
    annotate_bundled(graph)
    timings["describing"] = time.perf_counter() - clock
    return graph


def estimate_trace(
    prompt: Prompt,
    model: ReplacementModel | None = None,
    targets: Sequence[Wanted] | None = None,
    max_features: MaxFeatures = "auto",
    max_logits: int = 10,
    logit_probability: float = 0.95,
    ignore_positions: IgnorePositions = "bos",
    positions: int | Sequence[int] | None = None,
    answer: str | Sequence[int] | None = None,
    chat: bool = False,
    keep_edges: KeepEdges = "auto",
) -> Estimate:
    """What `trace` would take with the same arguments: one forward pass, no attribution."""
    model = load() if model is None else model
    question = Question(
        prompt,
        targets,
        max_features,
        max_logits,
        logit_probability,
        ignore_positions,
        positions,
        answer,
        chat,
    )
    local, readouts = _prepare(question, model)
    plan = rehearse(local, readouts)
    limit = plan.resolve(max_features, keep_edges)
    return plan.estimate(limit, keep=plan.share(limit, keep_edges))


def page_circuit(
    graph: Graph,
    model: ReplacementModel | None = None,
    heads: int | None = None,
    qk: int | None = None,
    targets: Sequence[Wanted] | None = None,
) -> Circuit:
    """What the page holds: wider than the default circuit, so that its sliders have something to
    show, and capped at what a browser draws with ease.

    Args:
        model: the model of the graph, where it is at hand; then the edges that matter most say
            which attention heads carry them, and those heads why they look where they look.
        heads: of how many edges; None for as many as take some tenths of a second.
        qk: how many heads, each at a pair of positions; None for as many as take a tenth.
        targets: as they were given to `trace`, where the graph was read from JSON and some are a
            `Direction`.
    """
    circuit = graph.prune(nodes=0.98, edges=0.99, max_nodes=PAGE_NODES, max_edges=PAGE_EDGES)
    if model is None or heads == 0:
        return circuit
    local = localise(model, graph)
    found = edge_heads(model, graph, circuit, heads, targets, local)
    circuit = replace(circuit, heads=found)
    return replace(circuit, looks=edge_looks(model, graph, circuit, qk, local))


def _prepare(question: Question, model: ReplacementModel) -> tuple[Local, list[Readout]]:
    ids, chosen = question.put(model)
    forward = model.run(ids)
    readouts = chosen(forward)
    ignored = question.ignored(model, ids)
    return model.localise(forward, ignored, owned=True, kernels=question.kernels), readouts


def _provenance(
    question: Question, model: ReplacementModel, ignored: tuple[int, ...]
) -> Provenance:
    prompt = question.prompt
    text = (
        prompt if isinstance(prompt, str) else model.tokenizer.decode([int(one) for one in prompt])
    )
    return Provenance(
        prompt=text,
        model=model.adapter.name,
        transcoders=model.transcoders.name,
        transcoder_kind=model.transcoders.kind,
        ignored_positions=ignored,
        settings=question.settings() | {"family": model.adapter.family.name},
        versions=dict(_versions()),
        dtype=str(model.adapter.model.dtype).removeprefix("torch."),
    )


@cache
def _versions() -> tuple[tuple[str, str], ...]:
    """Of the packages that make a graph; reading them off their files takes milliseconds."""
    found = []
    for name in ("trace-circuits", "torch", "transformers"):
        try:
            found.append((name, version(name)))
        except PackageNotFoundError:
            found.append((name, "unknown"))
    return tuple(found)
