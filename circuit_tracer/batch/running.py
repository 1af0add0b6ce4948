"""Running a batch: what has no record yet is traced, here or by the workers of a cluster.

The writing is done in one place, here, so that a cluster needs no folder in common, a full disk
stops the batch and not a worker, and no graph can be there twice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from circuit_tracer.loading import load
from circuit_tracer.prune import EDGES, NODES
from circuit_tracer.replacement import ReplacementModel
from circuit_tracer.tracing import page_circuit, trace
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
        options: of `trace`.
    """

    nodes: float = NODES
    edges: float = EDGES
    pages: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

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
    progress: Progress = SILENT,
    **options: Any,
) -> list[Record]:
    """Trace every prompt that has no record yet; write tables, merged graph and index.

    Args:
        folder: made if it is not there.
        nodes, edges: pruning thresholds of the `kept_…` figures and the merged graph.
        retry: also trace again what failed before.
        pages: write the HTML page of every graph too.
        options: of `trace`, for all prompts.

    Returns:
        A record a prompt, in order.

    Raises:
        InputError: the folder holds a batch with another model or other options.
        OutputError: the folder, or a file in it, cannot be written; what is there stays.
    """
    recipe = Recipe(nodes, edges, pages, options)
    work = partial(_one_by_one, model, recipe)
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
    recipe = Recipe(nodes, edges, pages, options)
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
    ask = {"targets": job.targets, "answer": job.answer, "chat": job.chat, **recipe.options}
    try:
        graph = trace(job.prompt, model, **ask)
        circuit = graph.prune(nodes=recipe.nodes, edges=recipe.edges)
        return Traced(
            graph=dataclasses.replace(graph),  # a copy without what was worked out on the way
            figures=statistics(graph, circuit),
            profile=Profiled.of(graph, circuit),
            page=render(page_circuit(graph, model).drawing()) if recipe.pages else None,
        )
    except Exception as error:  # whatever it is, it is this prompt's: the others are traced
        text = " ".join(str(error).split())
        return text if isinstance(error, CircuitTracerError) else f"{type(error).__name__}: {text}"


def _one_by_one(model: ReplacementModel, recipe: Recipe, jobs: Iterable[Job]) -> Outcomes:
    for job in jobs:
        yield job, traced(job, model, recipe)


def _by_crew(crew: cluster.Crew, recipe: Recipe, jobs: Iterable[Job]) -> Outcomes:
    for job, found in crew.each(partial(_on_worker, recipe), jobs):
        yield job, found.reason if isinstance(found, cluster.Lost) else found


def _on_worker(recipe: Recipe, model: ReplacementModel, job: Job) -> Traced | str:
    return traced(job, model, recipe)


def _run(
    jobs: Sequence[Job],
    folder: Path,
    recipe: Recipe,
    names: tuple[str, str],
    work: Callable[[Iterable[Job]], Outcomes],
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
