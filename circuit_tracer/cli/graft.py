"""`circuit-tracer graft`: features of one prompt put into another, and what it says then."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from circuit_tracer.cli import destinations, options, progress
from circuit_tracer.cli.task import Task
from circuit_tracer.cli.trace import read_prompt

if TYPE_CHECKING:
    import circuit_tracer as ct
    from circuit_tracer.graft import Grafts

EPILOG = """\b
Examples:
  circuit-tracer graft "The opposite of small is" --donor "The opposite of hot is" \\
      --take 2.949@4 --remove 2.77@4 --strength 1,3,6 --end-layer free,2,5 -o graft.html
"""
PLACE = "LAYER.ID@POSITION"


class Several(click.ParamType):
    """Values between commas, each read by a function; a word may stand for none."""

    def __init__(self, name: str, read: Callable[[str], float], none: str | None = None):
        self.name, self.read, self.none = name, read, none

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float | None, ...]:
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in value.split(",")]
        try:
            return tuple(None if part == self.none else self.read(part) for part in parts)
        except ValueError:
            self.fail(f"{value!r} is not {self.name}.", param, ctx)


@click.command(
    cls=Task,
    name="graft",
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@click.argument("prompt")
@click.option("--donor", required=True, metavar="PROMPT", help="Where features are taken from.")
@click.option(
    "--take",
    multiple=True,
    required=True,
    type=options.FeatureAt(),
    metavar=PLACE,
    help="A feature of the donor. Again for more.",
)
@click.option(
    "--remove",
    multiple=True,
    type=options.FeatureAt(),
    metavar=PLACE,
    help="A feature of PROMPT to scale. Again for more.",
)
@click.option(
    "--strength",
    "strengths",
    type=Several("numbers, like 1,2,6", float),
    default="1",
    metavar="N,N…",
    help="What the donor's activations are multiplied by.",
)
@click.option(
    "--removal",
    type=float,
    metavar="N",
    help="What activations of --remove are multiplied by.  [default: 1 - strength]",
)
@click.option(
    "--end-layer",
    "end_layers",
    default="free",
    metavar="N,N…|free",
    type=Several("layers, like 3,5, or free", int, "free"),
    help="Hold attention and the MLPs up to this layer; free recomputes everything.",
)
@click.option(
    "--at",
    type=int,
    metavar="POSITION",
    help="Where in PROMPT it all goes.  [default: the same position from the end]",
)
@click.option(
    "--token",
    "tokens",
    multiple=True,
    metavar="TEXT",
    help='A further token to follow, with its space: " cold". Again for more.',
)
@options.loading
@options.page_file("Write a page with the plot.")
@options.json_file("Write the result as JSON; - prints it and nothing else.")
@click.option(
    "-q", "--quiet", is_flag=True, help="Print the most probable token of each trial only."
)
@options.debug
def graft(**given: Any) -> None:  # fmt: skip
    """Put features of a donor prompt into PROMPT, and see what it says next.

    A feature is LAYER.ID@POSITION, as `trace` prints it; @-1 is the last position. It is set to its
    activation in the donor times each strength. PROMPT may be - to read it from standard input.
    """
    prompt = read_prompt(given["prompt"])
    destinations.check(given["output"], given["json_path"])
    silent = given["quiet"] or given["json_path"] == destinations.STDOUT
    with progress.bar(silent) as report:
        model = options.load(given, report)
        report(0.8, "grafting")
        result = run(given, prompt, model)
    write(given, result)
    if destinations.put_json(given["json_path"], result.to_plain()):
        return
    if given["quiet"]:
        click.echo("\n".join(trial.top for trial in result.trials))
    else:
        click.echo(text(result))


def run(given: dict[str, Any], prompt: str, model: ct.ReplacementModel) -> Grafts:
    from circuit_tracer.targets import answer_tokens

    return model.graft(
        prompt,
        given["donor"],
        given["take"],
        given["remove"],
        given["strengths"],
        given["removal"],
        given["end_layers"],
        given["at"],
        [answer_tokens(model, prompt, text)[0] for text in given["tokens"]],
    )


def write(given: dict[str, Any], result: Grafts) -> None:
    """The page, where it was asked for."""
    if given["output"] is not None:
        from circuit_tracer.files import write_text
        from circuit_tracer.view.report import page

        said = f"Into {prompt_of(result.receiver)} from {prompt_of(result.donor)}."
        drawn = page("Graft", said, facts(result), [result.figure()], result.rows())
        write_text(given["output"], drawn)


def facts(result: Grafts) -> list[tuple[str, str]]:
    """What was taken and removed, as names and values."""
    found = [
        (
            f"taken L{one.layer}#{one.feature}@{one.donor_position}",
            f"put at {one.position}, {one.activation:.2f} in the donor",
        )
        for one in result.taken
    ]
    places = ", ".join(f"L{layer}#{feature}@{at}" for layer, at, feature in result.removed)
    return [*found, ("removed", places)] if places else found


def prompt_of(tokens: tuple[str, ...]) -> str:
    return f"“{''.join(tokens)}”"


def text(result: Grafts) -> str:
    """The result as a table, with what was taken above it."""
    from circuit_tracer.cli.report import table

    head, *rows = result.rows()
    lines = [f"{name}: {value}" for name, value in facts(result)]
    right = (0, 1, *range(4, len(head)))
    return "\n".join(lines) + "\n\n" + table([head, *rows], right)
