"""`circuit-tracer features`: what features mean, looked up, searched, and called by name."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from circuit_tracer.cli import destinations, feature_building, options
from circuit_tracer.cli.feature_labels import label
from circuit_tracer.cli.feature_options import HELP, FeatureName, opened, put, reading
from circuit_tracer.cli.feature_report import listed, number, said
from circuit_tracer.cli.task import Task, Tasks


@click.group(name="features", cls=Tasks, context_settings=HELP)
def features() -> None:
    """Build, read and publish what features mean: examples, outputs, labels."""


@features.command(cls=Task, name="show", context_settings=HELP)
@click.argument("feature", type=FeatureName())
@options.labels
@reading
def show(
    feature: tuple[int, int], labels: Path | None, store: str, debug: bool, **out: Any
) -> None:
    """Show a feature: figures, outputs, examples, related features."""
    destinations.check(out["json_path"])
    called = options.read_labels(labels)
    known = opened(store)
    found = known.feature(*feature)
    found = dataclasses.replace(found, label=called.get(feature, found.label))
    put(out, dataclasses.asdict(found), lambda: said(found, known))


@features.command(cls=Task, name="search", context_settings=HELP)
@click.argument("text")
@click.option("--most", type=options.AT_LEAST_ONE, default=20, metavar="N", help="At most so many.")
@reading
def search(text: str, most: int, store: str, debug: bool, **out: Any) -> None:
    """Find features by a word of their label, or one that they fire at or raise."""
    destinations.check(out["json_path"])
    rows = opened(store).search(text, most)
    put(out, [dataclasses.asdict(row) for row in rows], lambda: listed(rows))


@features.command(cls=Task, name="lucky", context_settings=HELP)
@click.option("--seed", type=int, metavar="N", help="The same feature for the same number.")
@reading
def lucky(seed: int | None, store: str, debug: bool, **out: Any) -> None:
    """Show some feature that fires."""
    destinations.check(out["json_path"])
    known = opened(store)
    found = known.lucky(seed)
    put(out, dataclasses.asdict(found), lambda: said(found, known))


@features.command(cls=Task, name="similar", context_settings=HELP)
@click.argument("feature", type=FeatureName())
@reading
def similar(feature: tuple[int, int], store: str, debug: bool, **out: Any) -> None:
    """List the features whose decoders are nearest."""
    destinations.check(out["json_path"])
    rows = opened(store).similar(*feature)
    plain = [{**dataclasses.asdict(row), "cosine": cosine} for row, cosine in rows]
    extra = [f"{cosine:.2f}" for _, cosine in rows]
    put(out, plain, lambda: listed([row for row, _ in rows], "cosine", extra))


@features.command(cls=Task, name="top", context_settings=HELP)
@click.option("--prompt", metavar="TEXT", help="The features that fire most in this text.")
@click.option("--graph", type=click.Path(path_type=Path), metavar="FILE.safetensors",
              help="The features with the largest influence in this graph.")  # fmt: skip
@options.labels
@click.option("--model", metavar="ID|DIR", help="For --prompt; the bundled one where left out.")
@click.option("--transcoders", metavar="ID|DIR", help="For --prompt; plt or clt for the bundled "
              "model, which the store's are by default.")  # fmt: skip
@options.place
@click.option("--most", type=options.AT_LEAST_ONE, default=20, metavar="N", help="At most so many.")
@reading
def top(
    prompt: str | None,
    graph: Path | None,
    labels: Path | None,
    most: int,
    store: str,
    debug: bool,
    json_path: Path | None,
    quiet: bool,
    **named: Any,
) -> None:
    """List the features that matter most in a text or a graph.

    In a text, features are ranked by their activation as a share of their largest in the corpus.
    """
    if (prompt is None) == (graph is None):
        raise click.UsageError("give either --prompt or --graph")
    destinations.check(json_path)
    import circuit_tracer as ct
    from circuit_tracer.features import graphs

    called, known = options.read_labels(labels), opened(store)
    if graph is not None:
        ranked, score = graphs.top(known, ct.Graph.read(graph), most), "influence"
    else:
        assert prompt is not None
        if named["model"] is None and named["transcoders"] is None and store in ("plt", "clt"):
            named["transcoders"] = store
        loaded = ct.load(**named)
        ranked, score = graphs.top_of_prompt(known, loaded, prompt, most), "of largest"
    ranked = [
        dataclasses.replace(one, label=called.get((one.layer, one.id), one.label)) for one in ranked
    ]

    def table() -> str:
        from circuit_tracer.cli.report import shown, table

        head = ("feature", "at", "token", "activation", score, "label")
        rows = [
            (f"{one.layer}.{one.id}", str(one.position), shown(one.token).strip(),
             number(one.activation), number(one.score), shown(one.label.text))
            for one in ranked
        ]  # fmt: skip
        return table([head, *rows], right=(1, 3, 4))

    out = {"json_path": json_path, "quiet": quiet}
    put(out, [graphs.plain(one) for one in ranked], table)


for command in (label, *feature_building.COMMANDS):
    features.add_command(command)
