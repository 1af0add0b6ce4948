"""`circuit-tracer attribute`: the reference tool's options, so that its users' scripts work.

What differs is said here and in `--help`: the graph file is safetensors (the reference tool's .pt
is a pickle, which we do not write), and `--batch_size` changes nothing because edges are not
computed by batches of backward passes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from circuit_tracer.cli import destinations, options, progress
from circuit_tracer.cli.task import Task
from circuit_tracer.cli.trace import check_targets, targets
from circuit_tracer.errors import InputError

DTYPES = ["float32", "bfloat16", "float16", "fp32", "bf16", "fp16"]
LONG_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


@click.command(
    cls=Task,
    name="attribute",
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@click.option("-p", "--prompt", required=True, help="The prompt.")
@click.option("-t", "--transcoder_set", required=True, help="Hub id, id@revision or folder.")
@click.option(
    "-m", "--model", help="Hub id or folder.  [default: the one the transcoders' config names]"
)
@click.option("--slug", help="Name of the JSON graph; needs --graph_file_dir.")
@click.option(
    "--graph_file_dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for SLUG.json, created if it is not there; needs --slug.",
)
@click.option(
    "-o",
    "--graph_output_path",
    type=click.Path(path_type=Path),
    help="The whole graph as one safetensors file; a name ending in .pt gets that suffix instead.",
)
@click.option(
    "--max_n_logits", type=click.IntRange(min=1), metavar="N", default=10, help="Targets at most."
)
@click.option(
    "--desired_logit_prob",
    type=options.Share(),
    metavar="SHARE",
    default=0.95,
    help="Their probability.",
)
@click.option(
    "--max_feature_nodes",
    type=click.IntRange(min=0),
    metavar="N",
    default=7500,
    help="Features to expand.",
)
@click.option(
    "--batch_size",
    type=click.IntRange(min=1),
    metavar="N",
    default=256,
    help="Changes nothing here.",
)
@click.option(
    "--node_threshold",
    type=options.Share(),
    metavar="SHARE",
    default=0.8,
    help="Of the pruned JSON.",
)
@click.option(
    "--edge_threshold",
    type=options.Share(),
    metavar="SHARE",
    default=0.98,
    help="Of the pruned JSON.",
)
@options.targets
@options.keep_edges
@click.option("--dtype", type=click.Choice(DTYPES), default="float32", help="Of the weights.")
@options.DEVICE
@options.OFFLOAD
@click.option("--verbose", is_flag=True, help="Show progress.")
@options.debug
def attribute(**given: Any) -> None:
    """Attribute a prompt with the option names of the reference tool.

    --target, --target-difference, --target-feature, --position, --answer and --keep-edges are those
    of `trace`.
    """
    check_targets(given)
    graph_path, json_path = outputs(given)
    destinations.check(graph_path, json_path)
    with progress.bar(quiet=not given["verbose"]) as report:
        graph = attributed(given, report)
        if graph_path is not None:
            graph.save(graph_path)
            click.echo(destinations.said(graph_path))
        if json_path is not None:
            thresholds = {name: given[name] for name in ("node_threshold", "edge_threshold")}
            graph.to_json(json_path, slug=given["slug"], **thresholds)
            click.echo(destinations.said(json_path))


def outputs(given: dict[str, Any]) -> tuple[Path | None, Path | None]:
    """Paths of the graph and of the JSON, from the options that name them; at least one is set."""
    slug, folder, graph_path = (
        given[name] for name in ("slug", "graph_file_dir", "graph_output_path")
    )
    if bool(slug) != bool(folder):
        missing = "--graph_file_dir" if slug else "--slug"
        raise InputError(
            f"a JSON graph needs both --slug and --graph_file_dir; {missing} is missing"
        )
    if slug is None and graph_path is None:
        raise InputError("name an output: --graph_output_path, or --slug with --graph_file_dir")
    if slug is not None and (Path(slug).name != slug or slug in {".", ".."}):
        raise InputError(f"--slug is a name, not a path: {slug!r}")
    if graph_path is not None and graph_path.suffix == ".pt":
        graph_path = graph_path.with_suffix(".safetensors")
        click.echo(
            f"writing {graph_path}: graphs are safetensors files here, not pickles", err=True
        )
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    return graph_path, None if slug is None else folder / f"{slug}.json"


def attributed(given: dict[str, Any], report: progress.Report) -> Any:
    """The graph. The model comes from the transcoders' config unless named."""
    report(0.0, "importing torch and transformers")
    import circuit_tracer as ct

    dtype = LONG_NAMES.get(given["dtype"], given["dtype"])
    place = {name: given[name] for name in ("device", "offload")}
    model = ct.load(given["model"], given["transcoder_set"], dtype=dtype, **place)
    return ct.trace(
        given["prompt"],
        model,
        **targets(given),
        max_features=given["max_feature_nodes"],
        max_logits=given["max_n_logits"],
        logit_probability=given["desired_logit_prob"],
        keep_edges=given["keep_edges"],
        progress=report,
    )
