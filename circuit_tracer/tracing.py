"""The loop that everything meets in: prompt → forward pass → targets → rows → graph."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

import torch

from circuit_kernels.choice import Choice
from circuit_tracer.attention.carried import edge_heads
from circuit_tracer.attention.ends import localise
from circuit_tracer.attention.looks import edge_looks
from circuit_tracer.attribute import Progress, attribute
from circuit_tracer.circuit import Circuit, Provenance
from circuit_tracer.errors import InputError
from circuit_tracer.estimate import Estimate, MaxFeatures, rehearse
from circuit_tracer.features.graphs import annotate_bundled
from circuit_tracer.graph import Graph
from circuit_tracer.keeping import KeepEdges
from circuit_tracer.loading import load
from circuit_tracer.local import Local
from circuit_tracer.notes import describe
from circuit_tracer.replacement import ReplacementModel
from circuit_tracer.targets import At, Readout, Wanted, answer_tokens, choose, place

Prompt = str | Sequence[int] | torch.Tensor
IgnorePositions = Literal["bos", "special", "none"] | Sequence[int]

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
    model = load() if model is None else model
    clock, timings = time.perf_counter(), {}
    local, directions = _prepare(
        prompt,
        model,
        targets,
        max_logits,
        logit_probability,
        ignore_positions,
        positions,
        answer,
        chat,
        kernels,
    )
    timings["forward"] = time.perf_counter() - clock
    rows = attribute(local, directions, max_features, kernels, progress, keep_edges)
    timings["attribution"] = time.perf_counter() - clock - timings["forward"]
    settings = {
        "max_features": max_features,
        "max_logits": max_logits,
        "logit_probability": logit_probability,
        "kernels": kernels,
        "keep_edges": keep_edges,
        "positions": _plain(positions),
        "answer": _plain(answer),
        "chat": chat,
        "family": model.adapter.family.name,
    }
    ids = local.forward.token_ids.tolist()
    graph = Graph(
        edges=rows,
        activations=local.activations.cpu(),
        targets=tuple(direction.target for direction in directions),
        tokens=tuple(model.token_text(token) for token in ids),
        token_ids=tuple(ids),
        provenance=_provenance(prompt, model, local, settings),
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
    local, directions = _prepare(
        prompt,
        model,
        targets,
        max_logits,
        logit_probability,
        ignore_positions,
        positions,
        answer,
        chat,
    )
    plan = rehearse(local, directions)
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
        targets: as they were given to `trace`, where some are a `Direction`.
    """
    circuit = graph.prune(nodes=0.98, edges=0.99, max_nodes=PAGE_NODES, max_edges=PAGE_EDGES)
    if model is None or heads == 0:
        return circuit
    local = localise(model, graph)
    found = edge_heads(model, graph, circuit, heads, targets, local)
    circuit = replace(circuit, heads=found)
    return replace(circuit, looks=edge_looks(model, graph, circuit, qk, local))


def _prepare(
    prompt: Prompt,
    model: ReplacementModel,
    targets: Sequence[Wanted] | None,
    max_logits: int,
    logit_probability: float,
    ignore_positions: IgnorePositions,
    positions: int | Sequence[int] | None,
    answer: str | Sequence[int] | None,
    chat: bool,
    kernels: Choice = "auto",
) -> tuple[Local, list[Readout]]:
    if chat:
        prompt = model.tokenize(prompt, chat=True)
    if answer is None:
        forward = model.run(prompt)
        places = -1 if positions is None else positions
        readouts = choose(model, forward, targets, max_logits, logit_probability, places)
    else:
        if targets is not None or positions is not None:
            raise InputError("answer says what to explain and where: leave out targets, positions")
        start = model.tokenize(prompt).tolist()
        follows = answer_tokens(model, prompt if isinstance(prompt, str) else start, answer)
        forward = model.run([*start, *follows[:-1]])
        wanted = [At(token, len(start) - 1 + k) for k, token in enumerate(follows)]
        readouts = [replace(found, weight=1.0) for found in choose(model, forward, wanted)]
    ignored = _ignored(ignore_positions, model, forward.token_ids.tolist(), chat)
    return model.localise(forward, ignored, owned=True, kernels=kernels), readouts


def _ignored(
    ignore: IgnorePositions, model: ReplacementModel, ids: list[int], chat: bool
) -> tuple[int, ...]:
    if not isinstance(ignore, str):
        return tuple(dict.fromkeys(place(position, len(ids)) for position in ignore))
    if ignore == "special":
        return tuple(model.special_positions(ids))
    if ignore not in ("bos", "none"):
        raise InputError(
            'ignore_positions must be "bos", "special", "none" or a list of positions, not '
            f"{ignore!r}"
        )
    return model.ignored_by_default(ids, chat) if ignore == "bos" else ()


def _plain(value: int | str | Sequence[int] | None) -> int | str | list[int] | None:
    """A setting as JSON holds it."""
    return value if value is None or isinstance(value, int | str) else [int(one) for one in value]


def _provenance(
    prompt: Prompt, model: ReplacementModel, local: Local, settings: dict
) -> Provenance:
    text = (
        prompt if isinstance(prompt, str) else model.tokenizer.decode([int(one) for one in prompt])
    )
    versions = {}
    for name in ("trace-circuits", "torch", "transformers"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "unknown"
    return Provenance(
        prompt=text,
        model=model.adapter.name,
        transcoders=model.transcoders.name,
        transcoder_kind=model.transcoders.kind,
        ignored_positions=local.ignored_positions,
        settings=settings,
        versions=versions,
        dtype=str(model.adapter.model.dtype).removeprefix("torch."),
    )
