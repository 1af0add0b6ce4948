"""`circuit-tracer batch`: many prompts with one model load, and a table of what came of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from circuit_tracer.cli import clusters, options
from circuit_tracer.cli.destinations import said
from circuit_tracer.cli.progress import bar
from circuit_tracer.cli.task import Task

NOT_HERE = {"targets", "differences", "features", "positions", "answer", "chat"}
"""What belongs to a prompt stands in its line."""

TRACING = ("max_features", "max_logits", "logit_probability", "ignore_positions", "kernels",
           "keep_edges", "pages", "together", "retry")  # fmt: skip

EPILOG = """\b
A line of prompts.jsonl:
  {"id": "capital-fr", "prompt": "The capital of France is"}
  {"prompt": "The Statue of Liberty is in", "answer": " New York City"}

Examples:
  circuit-tracer batch prompts.jsonl -o DIR
  circuit-tracer batch prompts.jsonl -o DIR --together 16
  circuit-tracer batch prompts.jsonl -o DIR --ray auto --workers 8
  circuit-tracer batch prompts.jsonl -o DIR --ray 10.0.0.5:6379
"""


@click.command(
    cls=Task,
    name="batch",
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@click.argument("prompts", metavar="PROMPTS.jsonl|.txt", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Graphs, table and index. The same command goes on where it stopped.",
)
@options.tracing
@options.keep_edges
@click.option("--pages", is_flag=True, help="Write the page of every graph too.")
@click.option(
    "--together",
    default=1,
    type=options.AT_LEAST_ONE,
    metavar="N",
    help="Trace up to N prompts of one length side by side: faster where they are short, and the "
    "same but for rounding.",
)
@clusters.clustered
@click.option("--retry", is_flag=True, help="Trace again what failed before.")
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON lines.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing; the exit status says it.")
@options.debug
def batch(**given: Any) -> None:
    """Trace every prompt of a file: a graph each, tables of figures, what they share, an index.

    A prompt that fails is recorded with its reason and does not stop the rest; the exit status is
    then 1.
    """
    from circuit_tracer.batch import read_jobs, rows, run, run_on
    from circuit_tracer.batch.tables import ARROW, arrow_installed

    clusters.check(given["ray"], given["workers"])
    jobs = read_jobs(given["prompts"])
    with bar(given["quiet"] or given["as_json"]) as progress:
        how = {name: given[name] for name in TRACING} | {
            "nodes": given["node_threshold"],
            "edges": given["edge_threshold"],
            "progress": progress,
        }
        if given["ray"]:
            progress(0.0, "joining the cluster")
            workers = given["workers"]
            loading, folder = options.named(given), given["output"]
            records = run_on(given["ray"], jobs, loading, folder, workers=workers, **how)
        else:
            records = run(jobs, options.load(given, progress), given["output"], **how)
    failed = [record for record in records if record.error is not None]
    if given["as_json"]:
        click.echo("\n".join(json.dumps(row, ensure_ascii=False) for row in rows(records)))
    elif not given["quiet"]:
        click.echo(f"{len(records) - len(failed)} of {len(records)} prompts traced")
        click.echo(said(given["output"] / "index.html"))
        if not arrow_installed():
            click.echo(f"{ARROW} was not written: pip install 'trace-circuits[arrow]'", err=True)
    for record in failed:
        if not given["quiet"]:
            click.echo(f"failed: {record.job['id']}: {record.error}", err=True)
    if failed:
        click.get_current_context().exit(1)


batch.params = [parameter for parameter in batch.params if parameter.name not in NOT_HERE]
