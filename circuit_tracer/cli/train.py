"""`circuit-tracer train`: transcoders for a model, from text."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from circuit_tracer.cli import options
from circuit_tracer.cli.destinations import said
from circuit_tracer.cli.progress import Report, bar
from circuit_tracer.cli.task import Task

if TYPE_CHECKING:
    from rich.table import Table

    from circuit_tracer.train.moment import Moment
    from circuit_tracer.train.ranks import Split
    from circuit_tracer.train.settings import Settings

NUMBER_TYPES = ["float32", "bfloat16", "float16"]
READ = ["hook_resid_mid", "ln2.hook_normalized", "mlp.hook_in"]
WRITE = ["mlp.hook_out", "hook_mlp_out"]
EPILOG = """\b
Examples:
  circuit-tracer train --model DIR --text corpus.txt --features 4096 -o plt
  circuit-tracer train --model DIR --text texts/ --kind clt --features 2048 --store -o clt
  torchrun --nproc-per-node 8 -m circuit_tracer.cli train --model DIR --text texts/ …
"""
KNOBS = (
    click.option("--kind", type=click.Choice(["plt", "clt"]), default="plt", show_default=True,
                 help="plt: each feature writes to its own layer; clt: also to every later one."),
    click.option("--activation", type=click.Choice(["topk", "batchtopk", "jumprelu", "relu"]),
                 default="batchtopk", show_default=True, help="topk: K a token; batchtopk: K on "
                 "average, then fixed thresholds; jumprelu: learned thresholds; relu: none."),
    click.option("--features", type=options.AT_LEAST_ONE, required=True, metavar="N",
                 help="Features a layer; 8 to 32 times the width is usual."),
    click.option("--k", type=options.AT_LEAST_ONE, default=32, show_default=True, metavar="N",
                 help="Active features a token and layer to aim at; more reconstruct better and "
                 "make larger graphs."),
    click.option("--skip", is_flag=True, help="Add a linear map beside the features: better "
                 "reconstruction, not always better graphs."),
    click.option("--start", type=click.Choice(["small", "tied"]), default="small",
                 show_default=True, help="Decoders start small and random, or along the encoders."),
    click.option("--steps", type=options.AT_LEAST_ONE, default=5000, show_default=True,
                 metavar="N", help="Steps; the text is gone through again as often as needed."),
    click.option("--batch", type=options.AT_LEAST_ONE, default=2048, show_default=True,
                 metavar="N", help="Tokens a step."),
    click.option("--rate", type=float, metavar="X", help="Peak learning rate.  [default: "
                 "0.003·√(1024 / features), at most 0.003]"),
    click.option("--clip", type=float, default=1.0, show_default=True, metavar="X",
                 help="Largest gradient norm of a step."),
    click.option("--penalty", type=float, default=1e-3, show_default=True, metavar="X",
                 help="relu, jumprelu: where the price of activity starts."),
    click.option("--adapt", type=float, default=0.03, show_default=True, metavar="X",
                 help="relu, jumprelu: how fast that price follows L0 to K; 0 holds it fixed."),
    click.option("--seed", type=int, default=0, show_default=True, metavar="N",
                 help="Draws weights and order of the text."),
)  # fmt: skip


def knobs(command: Any) -> Any:
    """Give a command the options that are `Settings`, by their names."""
    for option in reversed(KNOBS):
        command = option(command)
    return command


@click.command(
    cls=Task,
    name="train",
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option("--model", required=True, metavar="ID|DIR", help="Hub id, folder, or bundled.")
@click.option(
    "--text",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE|DIR",
    help='UTF-8: a text a line, or a text a file of a folder; .jsonl: objects with "text".',
)
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The folder to make. DIR.unfinished holds what is not done; the same command goes on.",
)
@knobs
@click.option("--read", type=click.Choice(READ), default="mlp.hook_in", help="Site to read.")
@click.option("--write", type=click.Choice(WRITE), default="hook_mlp_out", help="Site to predict.")
@click.option("--store", is_flag=True, help="Keep activations on disk: the model runs once.")
@click.option(
    "--store-in",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Likewise, in a folder that stays for other trainings on the same text.",
)
@click.option("--eight-bit", is_flag=True, help="Keep them in 8 bits, a quarter of the bytes.")
@click.option(
    "--buffer",
    type=click.FloatRange(min=0, min_open=True),
    default=2.0,
    show_default=True,
    metavar="GIB",
    help="Activations in memory at once; more mixes the text better.",
)
@click.option(
    "--save-every",
    type=options.AT_LEAST_ONE,
    default=500,
    show_default=True,
    metavar="N",
    help="Steps between checkpoints.",
)
@click.option(
    "--save-dtype", type=click.Choice(NUMBER_TYPES), default="float32", help="Of the weights."
)
@click.option("--saelens", is_flag=True, help="Write DIR/saelens too, in SAELens' format.")
@click.option(
    "--track",
    "trackers",
    multiple=True,
    type=click.Choice(["tensorboard", "wandb"]),
    help="Also send the figures there; the package must be installed.",
)
@click.option("--device", metavar="auto|cpu|cuda|mps", default="auto", help="Where to run.")
@options.OFFLOAD
@click.option(
    "--split",
    type=click.Choice(["batch", "features", "fsdp"]),
    help="What the processes of torchrun share out.  [default: batch for plt, features for clt]",
)
@click.option("--dtype", type=click.Choice(options.DTYPES), default="auto", help="Of the model.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON, nothing else.")
@click.option("--force", is_flag=True, help="Replace DIR if it is a folder of transcoders.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing; the exit status says it.")
@options.debug
def train(**given: Any) -> None:
    """Train transcoders that stand in for the MLPs of a model, and check them.

    The result is a folder that `trace --transcoders DIR` reads (and the reference tool, but for
    topk), with a model card (README.md), all figures (training.json) and a page of curves
    (report.html). A tenth of the text is held out; the check is that of `circuit-tracer check`.
    """
    settings = _settings(given)
    _check_output(given)
    from circuit_tracer.agreement import report

    first = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun started
    with _shown(given["quiet"] or given["as_json"] or not first) as (progress, listener):
        found = _made(given, settings, listener, progress)
    if not first:
        return
    if given["as_json"]:
        import json

        click.echo(json.dumps(report.plain(found), indent=2))
    elif not given["quiet"]:
        from circuit_tracer.cli.report import table

        layers = table(report.rows(found), right=range(len(report.HEAD)))
        whole = "\n".join(f"{name:<17}{value}" for name, value in report.figures(found))
        click.echo(f"{layers}\n\n{whole}\n\n{report.verdict(found)}\n\n{said(given['output'])}")


def _settings(given: dict[str, Any]) -> Settings:
    from dataclasses import fields

    from circuit_tracer.train.settings import Settings

    named = [field.name for field in fields(Settings) if field.name in given]
    return Settings(**{name: given[name] for name in named})


def _check_output(given: dict[str, Any]) -> None:
    """Before anything is loaded."""
    from circuit_tracer.transcoders.formats.writing import check_destination

    check_destination(given["output"], given["force"])


def _made(
    given: dict[str, Any],
    settings: Settings,
    listener: Callable[[Moment], None],
    progress: Report,
) -> Any:
    """Everything that takes time."""
    progress(0.0, "importing torch and transformers")
    from circuit_tracer.loading import BUNDLED
    from circuit_tracer.models.load import DTYPES, open_model, resolve_device, resolve_dtype
    from circuit_tracer.train.corpus import read_texts
    from circuit_tracer.train.making import GIB, Plan, make
    from circuit_tracer.train.ranks import joined
    from circuit_tracer.train.trackers import tracker

    texts = read_texts(given["text"])
    plan = Plan(
        read=given["read"],
        write=given["write"],
        store=given["store_in"] or given["store"],
        eight_bit=given["eight_bit"],
        buffer=int(given["buffer"] * GIB),
        save_every=given["save_every"],
        dtype=DTYPES[given["save_dtype"]],
        replace=given["force"],
        saelens=given["saelens"],
    )
    folder = given["output"].resolve().parent
    name = given["model"]
    if name == BUNDLED:
        from circuit_tracer.bundled import model_dir

        name = str(model_dir())
    split: Split = given["split"] or ("features" if settings.kind == "clt" else "batch")
    with joined(split, resolve_device(given["device"])) as (ranks, place):
        ranks.check(settings)
        tracked = given["trackers"] if ranks.first else ()
        listeners = [listener, *(tracker(t, folder, settings.plain()) for t in tracked)]
        dtype = resolve_dtype(given["dtype"], place)
        adapter, tokenizer = open_model(name, place, dtype, offload=given["offload"])
        adapter.name = given["model"]

        def tell(moment: Moment) -> None:
            for one in listeners if ranks.first else ():
                one(moment)

        output = given["output"]
        return make(adapter, tokenizer, texts, output, settings, plan, tell, progress, ranks)


@contextmanager
def _shown(quiet: bool) -> Iterator[tuple[Report, Callable[[Moment], None]]]:
    """(progress, listener): a bar and a table by layer on a terminal; warnings anywhere."""
    if quiet or sys.stderr is None or not sys.stderr.isatty():
        with bar(quiet=True) as progress:
            yield progress, (lambda moment: None) if quiet else _warn
        return
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    state: dict[str, Any] = {"said": "starting", "table": Text("")}
    with Live(console=Console(stderr=True), transient=True, refresh_per_second=4) as live:

        def progress(done: float, message: str) -> None:
            state["said"] = f"{100 * done:5.1f} %  {message}"
            live.update(Group(state["table"], Text(state["said"])))

        def listener(moment: Moment) -> None:
            state["table"] = _by_layer(moment)
            for worry in moment.warnings:
                live.console.print(Text(f"warning: {worry}"))

        yield progress, listener


def _warn(moment: Moment) -> None:
    for worry in moment.warnings:
        click.echo(f"warning: step {moment.step:,}: {worry}", err=True)


def _by_layer(moment: Moment) -> Table:
    """The figures of a moment, for a terminal."""
    from rich.table import Table

    shown = Table("layer", "NMSE", "L0", "dead", title=f"loss {moment.loss:.4f}")
    for layer, (error, active, dead) in enumerate(
        zip(moment.nmse, moment.l0, moment.dead, strict=True)
    ):
        shown.add_row(str(layer), f"{error:.3f}", f"{active:.1f}", f"{100 * dead:.1f} %")
    return shown
