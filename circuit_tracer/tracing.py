"""The loop that everything meets in: prompt → forward pass → targets → rows → graph."""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

import torch

from circuit_tracer.attribute import Progress, attribute
from circuit_tracer.circuit import Circuit, Provenance
from circuit_tracer.errors import InputError
from circuit_tracer.estimate import Estimate, MaxFeatures, estimate, resolve_limit
from circuit_tracer.graph import Graph, Target
from circuit_tracer.loading import load
from circuit_tracer.local import Local
from circuit_tracer.notes import describe
from circuit_tracer.replacement import ReplacementModel
from circuit_tracer.targets import Difference, Direction, choose

Prompt = str | Sequence[int] | torch.Tensor
IgnorePositions = Literal["bos", "none"] | Sequence[int]

PAGE_NODES, PAGE_EDGES = 2_000, 40_000
DESCRIBED = 1_000


def trace(
    prompt: Prompt,
    model: ReplacementModel | None = None,
    targets: Sequence[str | int | Difference] | None = None,
    max_features: MaxFeatures = "auto",
    max_logits: int = 10,
    logit_probability: float = 0.95,
    ignore_positions: IgnorePositions = "bos",
    kernels: Literal["auto", "reference", "triton"] = "auto",
    progress: Progress | None = None,
) -> Graph:
    """Trace a prompt to its output.

    Args:
        prompt: text, or token ids taken as they are.
        model: from `load`; None loads the bundled model.
        targets: tokens by text or id, or `Difference(a, b)`; None for the likeliest tokens until
            they hold `logit_probability`, at most `max_logits`.
        max_features: features that get a row: None for all, a number, or "auto" for all where that
            is a matter of seconds and as many as fit into that where it is not.
        ignore_positions: positions whose features and errors are left out ("bos": position 0,
            "none", or a list). What they add is kept per row, so that rows still close.
        kernels: "auto", "reference" (torch) or "triton".
        progress: called with (share done, message).

    Returns:
        A `Graph`: rows, closing terms and node notes; it holds no model.

    Raises:
        InputError: an empty or too long prompt, an unknown target, limits out of range.
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
        prompt, model, targets, max_logits, logit_probability, ignore_positions
    )
    timings["forward"] = time.perf_counter() - clock
    rows = attribute(local, directions, max_features, kernels, progress)
    timings["attribution"] = time.perf_counter() - clock - timings["forward"]
    settings = {
        "max_features": max_features,
        "max_logits": max_logits,
        "logit_probability": logit_probability,
        "kernels": kernels,
    }
    ids = local.forward.token_ids.tolist()
    graph = Graph(
        edges=rows,
        activations=local.activations.cpu(),
        targets=tuple(
            Target(d.label, d.token_id, d.position, d.probability, d.weight) for d in directions
        ),
        tokens=tuple(model.token_text(token) for token in ids),
        token_ids=tuple(ids),
        provenance=_provenance(prompt, model, local, settings),
        timings=timings,
    )
    clock = time.perf_counter()
    ranked = graph.influence[: graph.index.n_features].argsort(descending=True)[:DESCRIBED]
    keys = graph.index.features[ranked][:, [0, 2]].tolist()
    graph.notes.update(describe(model, [(layer, feature) for layer, feature in keys]))
    timings["describing"] = time.perf_counter() - clock
    return graph


def estimate_trace(
    prompt: Prompt,
    model: ReplacementModel | None = None,
    targets: Sequence[str | int | Difference] | None = None,
    max_features: MaxFeatures = "auto",
    max_logits: int = 10,
    logit_probability: float = 0.95,
    ignore_positions: IgnorePositions = "bos",
) -> Estimate:
    """What `trace` would take with the same arguments: one forward pass, no attribution."""
    model = load() if model is None else model
    local, directions = _prepare(
        prompt, model, targets, max_logits, logit_probability, ignore_positions
    )
    return estimate(local, len(directions), resolve_limit(local, len(directions), max_features))


def page_circuit(graph: Graph) -> Circuit:
    """What the page holds: wider than the default circuit, so that its sliders have something to
    show, and capped at what a browser draws with ease."""
    return graph.prune(nodes=0.98, edges=0.99, max_nodes=PAGE_NODES, max_edges=PAGE_EDGES)


def _prepare(
    prompt: Prompt,
    model: ReplacementModel,
    targets: Sequence[str | int | Difference] | None,
    max_logits: int,
    logit_probability: float,
    ignore_positions: IgnorePositions,
) -> tuple[Local, list[Direction]]:
    forward = model.run(prompt)
    directions = choose(model, forward, targets, max_logits, logit_probability)
    ignored = _positions(ignore_positions, len(forward.token_ids))
    return model.localise(forward, ignored), directions


def _positions(ignore: IgnorePositions, n_positions: int) -> tuple[int, ...]:
    if isinstance(ignore, str):
        if ignore not in ("bos", "none"):
            raise InputError(
                f'ignore_positions must be "bos", "none" or a list of positions, not {ignore!r}'
            )
        return (0,) if ignore == "bos" else ()
    wrong = [position for position in ignore if not 0 <= position < n_positions]
    if wrong:
        raise InputError(
            f"position {wrong[0]} cannot be ignored: the prompt has positions 0 to "
            f"{n_positions - 1}"
        )
    return tuple(ignore)


def _provenance(
    prompt: Prompt, model: ReplacementModel, local: Local, settings: dict
) -> Provenance:
    ids = local.forward.token_ids.tolist()
    text = prompt if isinstance(prompt, str) else model.tokenizer.decode(ids)
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
