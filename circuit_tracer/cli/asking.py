"""What the questions of `circuit-tracer query` share: the file, the answer, the model.

A question is a function from a circuit and its options to an `Answer`, which is printed as a table
or, with --json, as plain values.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from circuit_tracer.cli import destinations, options, progress
from circuit_tracer.cli.task import Task, Tasks

if TYPE_CHECKING:
    import circuit_tracer as ct
    from circuit_tracer.nodes import Node

NODE = re.compile(r"(E|\d+)_(-?\d+)_(\d+)")


@dataclass(frozen=True)
class Answer:
    """What comes of a question.

    Attributes:
        plain: the same as plain JSON values.
        said: lines above the table.
        rows: of the table, the heading first; cells that are numbers stand in columns `right`.
    """

    plain: Any
    said: str = ""
    rows: Sequence[Sequence[str]] = ()
    right: Sequence[int] = ()


class Questions(Tasks):
    """A group whose commands come after the file they are about: `query FILE paths -k 3`.

    A file alone is asked for its summary.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and not args[0].startswith("-"):
            if len(args) > 1 and args[1] in self.commands:
                args = [args[1], args[0], *args[2:]]
            elif len(args) > 1 and not args[1].startswith("-") and args[0] not in self.commands:
                near = difflib.get_close_matches(args[1], self.commands)
                raise click.UsageError(
                    f"{args[1]!r} is no question; "
                    + (f"did you mean {' or '.join(near)}? " if near else "")
                    + f"They are {', '.join(self.commands)}.",
                    ctx,
                )
            elif args[0] not in self.commands:
                args = ["summary", *args]
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


SHARED = (
    click.option("--node-threshold", type=options.Share(), metavar="SHARE",
                 help="Keep nodes that hold this share of the influence.  [default: 0.8, and 1 for "
                 "JSON, which is pruned already]"),
    click.option("--edge-threshold", type=options.Share(), metavar="SHARE",
                 help="Of the influence among them, the share that the edges kept hold.  [default: "
                 "0.98, and 1 for JSON]"),
    click.option("--max-nodes", type=options.AT_LEAST_ONE, metavar="N",
                 help="Keep at most so many features and errors."),
    click.option("--json", "json_path", type=click.Path(path_type=Path), metavar="FILE.json|-",
                 help="Write the answer as JSON; - prints it and nothing else."),
    options.labels,
    click.option("-q", "--quiet", is_flag=True,
                 help="Print the first column of the table only, without its heading."),
    options.debug,
)  # fmt: skip


def question(
    group: click.Group, name: str, *parameters: Callable[[Any], Any], graph: bool = False
) -> Callable[[Callable[..., Answer]], click.Command]:
    """Make a command of a function (circuit, options) → Answer; `graph`: the graph comes third."""

    def made(ask: Callable[..., Answer]) -> click.Command:
        def command(**given: Any) -> None:
            destinations.check(given["json_path"])
            with progress.bar(given["quiet"] or given["json_path"] == destinations.STDOUT) as bar:
                bar(0.0, "reading the graph")
                found, circuit = opened(given)
                bar(0.2, "asking")
                answer = ask(circuit, given, found) if graph else ask(circuit, given)
            show(name, given, circuit, answer)

        command.__doc__ = ask.__doc__
        for option in (*reversed(SHARED), *reversed(parameters)):
            command = option(command)
        command = click.argument("file", type=click.Path(path_type=Path))(command)
        settings = {"help_option_names": ["-h", "--help"], "show_default": True}
        return group.command(name, cls=Task, context_settings=settings)(command)

    return made


def opened(given: dict[str, Any]) -> tuple[ct.Graph, ct.Circuit]:
    """The graph in a file, and what is left of it after pruning."""
    import circuit_tracer as ct
    from circuit_tracer.features.graphs import annotate_bundled, name
    from circuit_tracer.file_kind import file_kind

    path: Path = given["file"]
    as_json = file_kind(path) == "json"
    graph = ct.Graph.read(path)
    annotate_bundled(graph)
    name(graph, options.read_labels(given["labels"]))
    nodes, edges, most = (given[k] for k in ("node_threshold", "edge_threshold", "max_nodes"))
    if as_json:
        nodes = 1.0 if nodes is None else nodes
        edges = 1.0 if edges is None else edges
    kept = {} if edges is None else {"edges": edges}
    return graph, graph.prune(nodes, max_nodes=most, **kept)


def show(name: str, given: dict[str, Any], circuit: ct.Circuit, answer: Answer) -> None:
    """Print an answer, and write it where that was asked for."""
    from circuit_tracer.cli.report import table

    document = {"question": name, "prompt": circuit.prompt, "answer": answer.plain}
    if destinations.put_json(given["json_path"], document):
        return
    if given["quiet"]:
        lines = [row[0] for row in answer.rows[1:]] if answer.rows else [answer.said]
        click.echo("".join(f"{line}\n" for line in lines), nl=False)
        return
    parts = [answer.said] if answer.said else []
    if len(answer.rows) > 1:
        parts.append(table(answer.rows, answer.right))
    click.echo("\n".join(parts) or "  none")


def load_model(given: dict[str, Any], graph: ct.Graph) -> ct.ReplacementModel:
    """The model that a graph was traced with, or the one that the options name."""
    from circuit_tracer.errors import InputError

    origin = graph.provenance
    model, transcoders = given["model"], given["transcoders"]
    if model is None:
        if not origin.model:
            raise InputError("the file does not say which model it is of: give --model")
        model = origin.model
        if transcoders is None:
            transcoders = origin.transcoders.removeprefix(f"{origin.model} ")
    dtype = given["dtype"]
    if dtype == "auto" and origin.dtype in options.DTYPES:
        dtype = origin.dtype
    wanted = {**given, "model": model, "transcoders": transcoders, "dtype": dtype}
    return options.load(wanted, lambda *_: None)


def in_graph(circuit: ct.Circuit, name: str) -> str:
    """The id of a node by any of its names, or an id of one that was pruned away."""
    from circuit_tracer.errors import InputError
    from circuit_tracer.lookup import written

    try:
        return circuit.node(name).id
    except InputError:
        found = written(name, len(circuit.tokens)) or name
        if NODE.fullmatch(found):
            return found
        raise


def plain(node: Node) -> dict[str, Any]:
    """A node as JSON."""
    return asdict(node)
