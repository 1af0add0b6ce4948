"""`circuit-tracer intervene`: the next token, before and after features are changed."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any

import click

from circuit_tracer.cli import destinations, options, progress
from circuit_tracer.cli.task import Task
from circuit_tracer.cli.trace import read_prompt

if TYPE_CHECKING:
    import circuit_tracer as ct
    from circuit_tracer.intervene import Intervention

EPILOG = """\b
Examples:
  circuit-tracer intervene "The opposite of small is" --scale 3.417@5=-1
  circuit-tracer intervene "The opposite of small is" --clamp 2.10@*=8 --mode constrained
"""
Place = tuple[int, "int | None", int]


class ChangeAt(click.ParamType):
    """`3.417@5=-1`: a feature, where, and a number. `@*`, or no @, is every position."""

    name = "LAYER.ID@POSITION=NUMBER"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Place, float]:
        found = re.fullmatch(rf"{options.FEATURE}(?:@(\*|all|-?[0-9]+))?=(.+)", value)
        try:
            if found is None:
                raise ValueError
            layer, feature, where, number = found.groups()
            position = None if where in (None, "*", "all") else int(where)
            return (int(layer), position, int(feature)), float(number)
        except ValueError:
            self.fail(
                f"{value!r} is not a feature and a number, like 3.417@5=-1 or 3.417@*=8.",
                param,
                ctx,
            )


@click.command(
    cls=Task,
    name="intervene",
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@click.argument("prompt")
@click.option(
    "--scale",
    "scales",
    multiple=True,
    type=ChangeAt(),
    metavar="LAYER.ID@POSITION=FACTOR",
    help="Make an activation this many times what it is: 0 ablates, -1 flips. Again for more.",
)
@click.option(
    "--clamp",
    "clamps",
    multiple=True,
    type=ChangeAt(),
    metavar="LAYER.ID@POSITION=VALUE",
    help="Set an activation to a value, also of a feature that is not active. Again for more.",
)
@click.option(
    "--mode",
    type=click.Choice(["free", "constrained", "direct"]),
    default="free",
    help="Recompute everything; hold attention and the MLPs of --layers; or hold all, as a graph "
    "does.",
)
@click.option(
    "--layers",
    type=click.IntRange(min=0),
    nargs=2,
    metavar="FIRST LAST",
    help="Of --mode constrained.  [default: 0 to the last one changed]",
)
@click.option("--freeze-attention", is_flag=True, help="Of --mode free: hold attention patterns.")
@click.option(
    "-k", "count", type=options.AT_LEAST_ONE, metavar="N", default=10, help="Rows of the tables."
)
@options.loading
@options.json_file("Write the result as JSON; - prints it and nothing else.")
@click.option("-q", "--quiet", is_flag=True, help="Print the most probable token afterwards only.")
@options.debug
def intervene(**given: Any) -> None:
    """Change features of PROMPT while the model runs, and compare what it says next.

    A feature is LAYER.ID@POSITION, as `trace` prints it; @-1 is the last position, @* every one.
    PROMPT may be - to read it from standard input.
    """
    prompt = read_prompt(given["prompt"])
    destinations.check(given["json_path"])
    silent = given["quiet"] or given["json_path"] == destinations.STDOUT
    with progress.bar(silent) as report:
        model = options.load(given, report)
        report(0.8, "intervening")
        result = run(given, prompt, model)
    if destinations.put_json(given["json_path"], facts(given, prompt, result)):
        return
    if given["quiet"]:
        click.echo(max(result.table(1), key=lambda row: row.after).token)
    else:
        click.echo(text(result, given["count"]))


def run(given: dict[str, Any], prompt: str, model: ct.ReplacementModel) -> Intervention:
    import circuit_tracer as ct

    changes: list[tuple[Place, ct.Scale | ct.Clamp]] = [
        *((place, ct.Scale(number)) for place, number in given["scales"]),
        *((place, ct.Clamp(number)) for place, number in given["clamps"]),
    ]
    first, last = given["layers"] or (0, 0)
    return model.intervene(
        prompt,
        changes,
        mode=given["mode"],
        layers=range(first, last + 1) if given["layers"] else None,
        freeze_attention=given["freeze_attention"],
    )


def facts(given: dict[str, Any], prompt: str, result: Intervention) -> dict[str, Any]:
    """The result as JSON."""
    return {
        "prompt": prompt,
        "mode": result.mode,
        "held_layers": list(result.held_layers),
        "edits": [dataclasses.asdict(edit) for edit in result.edits],
        "tokens": [dataclasses.asdict(row) for row in result.table(given["count"])],
        "features": [dataclasses.asdict(row) for row in result.changed(given["count"])],
    }


def text(result: Intervention, count: int) -> str:
    """The result as tables."""
    from circuit_tracer.cli.report import percent, quoted, table

    tokens = [("next token", "before", "after", "logit")]
    for row in result.table(count):
        change = f"{row.logit_after - row.logit_before:+.2f}"
        tokens.append((quoted(row.token), percent(row.before), percent(row.after), change))
    features = [("feature", "before", "after")]
    for moved in result.changed(count):
        place = f"L{moved.layer}#{moved.feature}@{moved.position}"
        features.append((place, f"{moved.before:.2f}", f"{moved.after:.2f}"))
    parts = [table(tokens, right=(1, 2, 3))]
    if len(features) > 1:
        parts.append("features that moved most\n" + table(features, right=(1, 2)))
    return "\n\n".join(parts)
