"""Running a batch: what has no record yet is traced, here or by the workers of a cluster.

The writing is done in one place, here, so that a cluster needs no folder in common, a full disk
stops the batch and not a worker, and no graph can be there twice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from circuit_tracer import cluster
from circuit_tracer.batch import index, tables
from circuit_tracer.batch.folder import Folder, Record, Traced
from circuit_tracer.batch.jobs import Job
from circuit_tracer.batch.merged import Profiled, merged, write_merged
from circuit_tracer.batch.statistics import statistics
from circuit_tracer.errors import CircuitTracerError
from circuit_tracer.graph import Graph
from circuit_tracer.loading import load
from circuit_tracer.prune import EDGES, NODES
from circuit_tracer.question import Question
from circuit_tracer.replacement import ReplacementModel
from circuit_tracer.tracing import page_circuit, trace, trace_abreast
from circuit_tracer.view.page import render

Progress = Callable[[float, str], None]
Outcomes = Iterator[tuple[Job, Traced | str]]
SILENT: Progress = lambda done, message: None  # noqa: E731


@dataclass(frozen=True)
class Recipe:
    """How every prompt of a batch is traced.

    Attributes:
        nodes, edges: pruning thresholds of the `kept_…` figures and the merged graph.
        pages: whether every graph gets a page.
        together: at most so many prompts of one length are traced side by side.
        options: of `trace`.
    """

    nodes: float = NODES
    edges: float = EDGES
    pages: bool = False
    together: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)

    def asked(self, job: Job) -> dict[str, Any]:
        """Arguments of `trace` for one job."""
        own = {"prompt": job.prompt, "targets": job.targets, "answer": job.answer}
        return {**own, "chat": job.chat, **self.options}

    def identity(self, names: tuple[str, str]) -> dict[str, Any]:
        """What must be the same for all graphs of a folder; how they are computed may change."""
        shared = {name: value for name, value in self.options.items() if name != "kernels"}
        model, transcoders = names
        return {
            "model": model,
            "transcoders": transcoders,
            "nodes": self.nodes,
            "edges": self.edges,
            **shared,
        }


def run(
    jobs: Sequence[Job],
    model: ReplacementModel,
    folder: Path,
    nodes: float = NODES,
    edges: float = EDGES,
    retry: bool = False,
    pages: bool = False,
    together: int = 1,
    progress: Progress = SILENT,
    **options: Any,
) -> list[Record]:
    """Trace every prompt that has no record yet; write tables, merged graph and index.

    Args:
        folder: made if it is not there.
        nodes, edges: pruning thresholds of the `kept_…` figures and the merged graph.
        retry: also trace again what failed before.
        pages: write the HTML page of every graph too.
        together: trace at most so many prompts of one length side by side; more than 1 gives the
            same graphs but for rounding, and is meant for many short prompts.
        options: of `trace`, for all prompts.

    Returns:
        A record a prompt, in order.

    Raises:
        InputError: the folder holds a batch with another model or other options.
        OutputError: the folder, or a file in it, cannot be written; what is there stays.
    """
    recipe = Recipe(nodes, edges, pages, together, options)
    work = partial(_here, model, recipe)
    return _run(jobs, folder, recipe, names(model), work, retry, progress)


def run_on(
    address: str,
    jobs: Sequence[Job],
    loading: Mapping[str, Any],
    folder: Path,
    nodes: float = NODES,
    edges: float = EDGES,
    retry: bool = False,
    pages: bool = False,
    together: int = 1,
    workers: int | None = None,
    progress: Progress = SILENT,
    **options: Any,
) -> list[Record]:
    """`run` on a Ray cluster: the same folder, but for the order in which it fills.

    Args:
        address: of the cluster, as in `cluster.connected`.
        loading: arguments of `load`, which each worker calls once.
        workers: how many, as in `cluster.Crew`.

    Raises:
        InputError: also where Ray is not installed, nothing answers, or there is no room.
        CircuitTracerError: no worker can be had.
    """
    recipe = Recipe(nodes, edges, pages, together, options)
    gpu = not str(loading.get("device", "auto")).startswith("cpu")
    make = partial(load, **loading)
    with cluster.connected(address) as ray, cluster.Crew(ray, make, workers, gpu) as crew:
        progress(0.0, f"starting {crew.size} workers")
        found = crew.ask(names)
        work = partial(_by_crew, crew, recipe)
        return _run(jobs, folder, recipe, found, work, retry, progress)


def names(model: ReplacementModel) -> tuple[str, str]:
    """Of a model and its transcoders."""
    return model.adapter.name, model.transcoders.name


def traced(job: Job, model: ReplacementModel, recipe: Recipe) -> Traced | str:
    """Trace one prompt; the reason where that fails."""
    try:
        return _finished(trace(model=model, **recipe.asked(job)), model, recipe)
    except Exception as error:  # whatever it is, it is this prompt's: the others are traced
        text = " ".join(str(error).split())
        return text if isinstance(error, CircuitTracerError) else f"{type(error).__name__}: {text}"


def traced_together(
    jobs: Sequence[Job], model: ReplacementModel, recipe: Recipe
) -> list[Traced | str]:
    """Trace prompts of one length side by side; one by one where any of them fails."""
    if len(jobs) > 1:
        try:
            graphs = trace_abreast([Question(**recipe.asked(job)) for job in jobs], model)
            return [_finished(graph, model, recipe) for graph in graphs]
        except Exception:  # which prompt it was, and why, tracing each by itself will say
            pass
    return [traced(job, model, recipe) for job in jobs]


def _finished(graph: Graph, model: ReplacementModel, recipe: Recipe) -> Traced:
    circuit = graph.prune(nodes=recipe.nodes, edges=recipe.edges)
    return Traced(
        graph=dataclasses.replace(graph),  # a copy without what was worked out on the way
        figures=statistics(graph, circuit),
        profile=Profiled.of(graph, circuit),
        page=render(page_circuit(graph, model).drawing()) if recipe.pages else None,
    )


def groups(jobs: Sequence[Job], recipe: Recipe, model: ReplacementModel) -> list[list[Job]]:
    """Which jobs are traced together: those of one length, in their order; what cannot even be
    put into tokens is by itself."""
    if recipe.together == 1:
        return [[job] for job in jobs]
    found: list[list[Job]] = []
    filling: dict[int, list[Job]] = {}
    for job in jobs:
        try:
            length = len(Question(**recipe.asked(job)).put(model)[0])
        except Exception:  # tracing it will say why
            found.append([job])
            continue
        group = filling.get(length)
        if group is None or len(group) == recipe.together:
            group = filling[length] = []
            found.append(group)
        group.append(job)
    return found


def _here(model: ReplacementModel, recipe: Recipe, jobs: Sequence[Job]) -> Outcomes:
    for group in groups(jobs, recipe, model):
        yield from zip(group, traced_together(group, model, recipe), strict=True)


def _by_crew(crew: cluster.Crew, recipe: Recipe, jobs: Sequence[Job]) -> Outcomes:
    work = partial(_on_worker, recipe)
    again: list[list[Job]] = []
    grouped = [[job] for job in jobs]
    if recipe.together > 1 and jobs:
        grouped = crew.ask(partial(groups, jobs, recipe))
    for group, found in crew.each(work, grouped):
        if not isinstance(found, cluster.Lost):
            yield from zip(group, found, strict=True)
        elif len(group) == 1:
            yield group[0], found.reason
        else:
            again += [[job] for job in group]
    for (job,), found in crew.each(work, again):
        yield job, found.reason if isinstance(found, cluster.Lost) else found[0]


def _on_worker(recipe: Recipe, model: ReplacementModel, jobs: list[Job]) -> list[Traced | str]:
    return traced_together(jobs, model, recipe)


def _run(
    jobs: Sequence[Job],
    folder: Path,
    recipe: Recipe,
    names: tuple[str, str],
    work: Callable[[Sequence[Job]], Outcomes],
    retry: bool,
    progress: Progress,
) -> list[Record]:
    identity, place = recipe.identity(names), Folder(folder, recipe.pages)
    place.open(identity)
    known = {job.id: place.known(job) for job in jobs}
    records = {
        name: record
        for name, record in known.items()
        if record is not None and not (retry and record.error is not None)
    }
    todo = [job for job in jobs if job.id not in records]
    progress(len(records) / len(jobs), f"{len(records):,} of {len(jobs):,} prompts done")
    for job, found in work(todo):
        records[job.id] = place.keep(job, found)
        done = len(records)
        progress(done / len(jobs), f"{done:,} of {len(jobs):,}: {index.short(job.prompt)}")
    progress(1.0, "writing tables and merged graph")
    ordered = [records[job.id] for job in jobs]
    tables.write(folder, ordered)
    good = [job.id for job in jobs if records[job.id].error is None]
    whole = merged(good, (Profiled.load(place.profile(name)) for name in good))
    write_merged(folder, whole)
    index.write(place, ordered, identity, whole)
    return ordered
