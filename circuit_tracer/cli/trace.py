"""`trace "prompt"`: from a prompt to a page, with the short version in the terminal."""

from __future__ import annotations

import os
import sys
import tempfile
import time
import webbrowser
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from circuit_tracer.cli import destinations, options, progress
from circuit_tracer.cli.task import Task
from circuit_tracer.errors import InputError, OutputError

if TYPE_CHECKING:
    import circuit_tracer as ct
    from circuit_tracer.features.labels import Labels
    from circuit_tracer.features.store import Store

EPILOG = """\b
Examples:
  trace "The opposite of small is"
  trace "小的反义词是" -o small.html --open
  trace "The capital of France is" --target " Paris" --target " London"
  trace "The Statue of Liberty is in" --answer " New York City"
  trace "The opposite of small is" --target-feature 5.417@-1
  trace "Le contraire de petit est" --json - | python -m json.tool
"""


@dataclass
class Timings:
    """Seconds by phase, in the order they ran."""

    seconds: dict[str, float]
    since: float

    @classmethod
    def start(cls) -> Timings:
        return cls({}, time.perf_counter())

    def lap(self, phase: str) -> None:
        now = time.perf_counter()
        self.seconds[phase], self.since = now - self.since, now


@click.command(
    cls=Task,
    name="trace",
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@click.argument("prompt")
@options.page_file("The page.  [default: named after the prompt, here]")
@options.tracing
@options.keep_edges
@click.option(
    "--save",
    type=click.Path(path_type=Path),
    metavar="FILE.safetensors",
    help="Keep the whole graph, exactly.",
)
@options.json_file(
    "Write the pruned graph in Neuronpedia's schema; - prints it and nothing else "
    "(and writes a page only where -o asks for one)."
)
@click.option("--verify", is_flag=True, help="Test the graph by interventions on the model, and "
              "say in terminal, page and --save file how far it can be trusted.")  # fmt: skip
@click.option(
    "--heads",
    type=options.EdgeCount(),
    metavar=options.EdgeCount.name,
    default="auto",
    help="Of how many edges the page "
    "says which attention heads carry them; auto for some tenths of a second.",
)
@click.option(
    "--qk",
    type=options.EdgeCount(),
    metavar=options.EdgeCount.name,
    default="auto",
    help="Of how many of these heads the page says why they look where they look; auto for a tenth "
    "of a second.",
)
@click.option(
    "--features",
    "store",
    type=click.Path(path_type=Path),
    metavar="FILE.sqlite",
    help="A feature store: examples and labels for the page.  [default: the bundled model's own]",
)
@options.labels
@click.option("--estimate", is_flag=True, help="Say what the run would take, and stop there.")
@click.option("--open", "open_page", is_flag=True, help="Open the page in a browser.")
@click.option("-q", "--quiet", is_flag=True, help="Print the page's path only.")
@click.option("-v", "--verbose", is_flag=True, help="Also token ids and seconds by phase.")
@options.debug
def trace(**given: Any) -> None:
    """Show how a language model arrives at the next token of PROMPT.

    Runs the model once, replaces its MLPs by transcoders, attributes the likeliest next tokens to
    the features and words that caused them, and writes an interactive page. PROMPT may be - to
    read it from standard input.
    """
    timings = Timings.start()
    prompt = read_prompt(given["prompt"])
    check_targets(given)
    page = page_path(given, prompt)
    destinations.check(page, given["save"], given["json_path"])
    quiet = given["quiet"] or given["json_path"] == destinations.STDOUT
    with progress.bar(quiet) as report:
        store, labels = names(given)
        model = load_model(given, timings, report)
        if given["estimate"]:
            estimate = estimate_run(given, prompt, model)
        else:
            graph = run(given, prompt, model, report)
            name_features(graph, store, labels)
            timings.lap("tracing")
            if given["verify"]:
                graph = verify(given, graph, model, report)
                timings.lap("verifying")
            report(1.0, "writing")
            write(given, graph, model, page)
            timings.lap("writing")
    if given["estimate"]:
        click.echo(str(estimate))
        return
    if page is not None and given["quiet"]:
        click.echo(destinations.said(page))
    elif not quiet:
        show(given, graph, page, timings)
    if page is not None and given["open_page"]:
        open_in_browser(page)


def read_prompt(prompt: str) -> str:
    """The prompt itself, or what stands on standard input for `-`."""
    if prompt == "-":
        prompt = os.fsdecode(sys.stdin.buffer.read().removesuffix(b"\n").removesuffix(b"\r"))
    prompt = utf8(prompt, "the prompt")
    if not prompt:
        raise InputError(
            'the prompt is empty; give some text, e.g. trace "The opposite of small is"'
        )
    return prompt


def utf8(argument: str, what: str) -> str:
    """An argument's bytes read as UTF-8, whatever the locale made of them."""
    try:
        return os.fsencode(argument).decode("utf-8")
    except UnicodeError as error:
        raise InputError(f"{what} is not valid UTF-8 text") from error


def page_path(given: dict[str, Any], prompt: str) -> Path | None:
    """Where the page goes; None when only JSON on standard output or an estimate was asked for."""
    if given["estimate"]:
        return None
    only_json = given["json_path"] == destinations.STDOUT and not given["open_page"]
    if only_json and given["output"] is None:
        return None
    return destinations.page(given["output"], prompt)


def load_model(
    given: dict[str, Any], timings: Timings, report: progress.Report
) -> ct.ReplacementModel:
    """Import what is heavy, and load the model with its transcoders."""
    report(0.0, "importing torch and transformers")
    import_module("circuit_tracer.loading")
    timings.lap("importing")
    model = options.load(given, report)
    timings.lap("loading")
    return model


def settings(given: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments that `ct.trace` and its estimate share."""
    names = ("max_features", "max_logits", "logit_probability", "ignore_positions", "chat")
    return {**targets(given), **{name: given[name] for name in (*names, "keep_edges")}}


def targets(given: dict[str, Any]) -> dict[str, Any]:
    """What to explain, as keyword arguments of `ct.trace`."""
    import circuit_tracer as ct

    tokens = [utf8(target, "a target") for target in given["targets"]]
    pairs = [[utf8(target, "a target") for target in pair] for pair in given["differences"]]
    named = [*tokens, *(ct.Difference(a, b) for a, b in pairs), *given["features"]]
    answer = given["answer"]
    return {
        "targets": named or None,
        "positions": given["positions"] or None,
        "answer": None if answer is None else utf8(answer, "the answer"),
    }


def check_targets(given: dict[str, Any]) -> None:
    """Raise where options exclude each other, before anything is loaded."""
    others = ("targets", "differences", "features", "positions")
    if given["answer"] is not None and any(given[name] for name in others):
        raise InputError(
            "--answer says what to explain and where: leave out --target, --target-difference, "
            "--target-feature and --position"
        )


def estimate_run(given: dict[str, Any], prompt: str, model: ct.ReplacementModel) -> Any:
    from circuit_tracer.tracing import estimate_trace

    return estimate_trace(prompt, model, **settings(given))


def run(
    given: dict[str, Any], prompt: str, model: ct.ReplacementModel, report: progress.Report
) -> ct.Graph:
    import circuit_tracer as ct

    return ct.trace(prompt, model, **settings(given), kernels=given["kernels"], progress=report)


def names(given: dict[str, Any]) -> tuple[Store | None, Labels]:
    """(examples, labels) that the options name: read before the work, so that it is not in vain."""
    labels = options.read_labels(given["labels"])
    if given["store"] is None:
        return None, labels
    from circuit_tracer.features import open_store

    return open_store(given["store"]), labels


def name_features(graph: ct.Graph, store: Store | None, labels: Labels) -> None:
    """Give the graph examples and labels."""
    from circuit_tracer.features import annotate
    from circuit_tracer.features.graphs import name

    if store is not None:
        annotate(graph, store, labels=labels)
    else:
        name(graph, labels)


def verify(
    given: dict[str, Any], graph: ct.Graph, model: ct.ReplacementModel, report: progress.Report
) -> ct.Graph:
    """The graph with its faithfulness card, asked of the circuit that is shown."""
    import circuit_tracer as ct

    circuit = graph.prune(nodes=given["node_threshold"], edges=given["edge_threshold"])
    card = ct.faithfulness(graph, model, circuit, progress=report)
    return replace(graph, faithfulness=card)


def write(
    given: dict[str, Any], graph: ct.Graph, model: ct.ReplacementModel, page: Path | None
) -> None:
    """Everything that was asked for, each file whole or not at all."""
    if given["save"] is not None:
        graph.save(given["save"])
    if given["json_path"] is not None:
        write_json(given, graph)
    if page is not None:
        from circuit_tracer.tracing import page_circuit

        page_circuit(graph, model, given["heads"], given["qk"]).save_html(page)


def write_json(given: dict[str, Any], graph: ct.Graph) -> None:
    """The pruned graph as JSON, to its file or to standard output."""
    thresholds = {name: given[name] for name in ("node_threshold", "edge_threshold")}
    if given["json_path"] != destinations.STDOUT:
        graph.to_json(given["json_path"], **thresholds)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.json"
        graph.to_json(path, **thresholds)
        click.echo(path.read_text(encoding="utf-8"))


def show(given: dict[str, Any], graph: ct.Graph, page: Path | None, timings: Timings) -> None:
    """The short version, in the terminal."""
    from circuit_tracer.cli import report

    circuit = graph.prune(nodes=given["node_threshold"], edges=given["edge_threshold"])
    click.echo(report.text(graph, circuit, verbose=given["verbose"]))
    if graph.edges.keep < 1:
        lost = report.percent(graph.scores.pruned_share)
        click.echo(
            f"stored    of each row the strongest edges that hold {graph.edges.keep:.3g} of it; "
            f"{lost} of the influence left along the others and counts as error"
        )
    if given["verbose"]:
        click.echo(report.phases(timings.seconds, graph.timings))
    for what, path in (("graph", given["save"]), ("json", given["json_path"]), ("page", page)):
        if path is not None:
            click.echo(f"{what:<10}{destinations.said(path)}")


def open_in_browser(page: Path, address: str = "") -> None:
    """Show a page; `address` is what follows its name, `#…`."""
    if not webbrowser.open(page.resolve().as_uri() + address):
        raise OutputError(f"no browser could be opened; the page is at {destinations.said(page)}")
