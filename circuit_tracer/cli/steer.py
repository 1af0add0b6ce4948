"""`circuit-tracer steer`: what a model writes while features are held at values, and without."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from circuit_tracer.cli import destinations, options, progress, texts
from circuit_tracer.cli.task import Task
from circuit_tracer.cli.trace import read_prompt
from circuit_tracer.errors import InputError

if TYPE_CHECKING:
    import circuit_tracer as ct
    from circuit_tracer.steer import Generation, Listener, Step

EPILOG = """\b
Examples:
  circuit-tracer steer "The opposite of small is" --clamp 4.1023=10x
  circuit-tracer steer "The capital of France is" --clamp 4.1023=8.0 --temperature 0.8 --seed 3
"""
TEXTS = 200


class Held(click.ParamType):
    """`4.1023=8.0` is a value, `4.1023=10x` ten times the feature's maximum."""

    name = "LAYER.ID=VALUE|Nx"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[tuple[int, int], float, bool]:
        found = re.fullmatch(rf"{options.FEATURE}=(.+?)([x×]?)", value)
        try:
            if found is None:
                raise ValueError
            layer, feature, number, times = found.groups()
            return (int(layer), int(feature)), float(number), bool(times)
        except ValueError:
            self.fail(
                f"{value!r} is not a feature and a value, like 4.1023=8.0, or like 4.1023=10x for "
                "ten times its maximum.",
                param,
                ctx,
            )


@click.command(
    cls=Task,
    name="steer",
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@click.argument("prompt")
@click.option(
    "--clamp",
    "clamps",
    multiple=True,
    required=True,
    type=Held(),
    metavar="LAYER.ID=VALUE|Nx",
    help="Hold a feature at a value, or at N times its maximum over --texts. Again for more.",
)
@click.option(
    "--max-new-tokens",
    type=options.AT_LEAST_ONE,
    metavar="N",
    default=20,
    help="Length of the texts at most.",
)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0),
    default=0.0,
    metavar="T",
    help="0 takes the likeliest token; above, tokens are drawn.",
)
@click.option("--top-k", type=options.AT_LEAST_ONE, metavar="K", help="Draw among the K likeliest.")
@click.option("--seed", type=int, default=0, metavar="N", help="Of the draws.")
@click.option(
    "--texts",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE.txt",
    help="Texts for a feature's maximum, one a line.  [default: bundled sentences]",
)
@options.loading
@options.json_file("Write both texts, token by token, as JSON; - prints it and nothing else.")
@click.option("-q", "--quiet", is_flag=True, help="Print the steered text only.")
@options.debug
def steer(**given: Any) -> None:
    """Continue PROMPT with features held at values at every position, and without.

    A feature is LAYER.ID, as `trace` prints it. The texts appear as they are written. PROMPT may
    be - to read it from standard input.
    """
    prompt = read_prompt(given["prompt"])
    destinations.check(given["json_path"])
    silent = given["quiet"] or given["json_path"] == destinations.STDOUT
    with progress.bar(silent) as report:
        model = options.load(given, report)
        report(0.5, "measuring maxima")
        values = held_values(given, model)
    result = run(given, prompt, model, values, None if silent else told(prompt))
    if destinations.put_json(given["json_path"], facts(values, result)):
        return
    click.echo(result.steered if given["quiet"] else "\n\n" + text(values, result))


def held_values(given: dict[str, Any], model: ct.ReplacementModel) -> dict[tuple[int, int], float]:
    """The value of every feature, multiples worked out.

    Raises:
        InputError: a feature named twice, or a multiple of a maximum that is zero.
    """
    from circuit_tracer.changes import Clamp, resolve_everywhere

    values: dict[tuple[int, int], float] = {}
    for key, number, _ in given["clamps"]:
        if key in values:
            raise InputError(f"feature {key[0]}.{key[1]} is held twice; name it once")
        values[key] = number
    steered = {key: Clamp(number) for key, number in values.items()}
    resolve_everywhere(steered, model.transcoders)  # refuses unknown features before the long work
    multiples = [key for key, _, times in given["clamps"] if times]
    if not multiples:
        return values
    found = model.maxima(multiples, corpus_ids(given["texts"], model))
    for layer, feature in multiples:
        if found[layer, feature] <= 0:
            raise InputError(
                f"feature {layer}.{feature} never fires on these texts, so there is no maximum to "
                "multiply; give a value (without x), or --texts on which it fires"
            )
        values[layer, feature] *= found[layer, feature]
    return values


def corpus_ids(path: Path | None, model: ct.ReplacementModel) -> list[Any]:
    """Token ids to look for maxima in: of a file's lines, or of sentences of the bundled corpus."""
    from circuit_tracer.agreement.measure import pieces

    if path is not None:
        return list(pieces(model, texts.read(path)))
    from circuit_tracer.bundled.corpus import corpus

    sentences = corpus()
    chosen = sentences[:: max(1, len(sentences) // TEXTS)]
    return list(pieces(model, [sentence.text for sentence in chosen]))


def run(
    given: dict[str, Any],
    prompt: str,
    model: ct.ReplacementModel,
    values: dict[tuple[int, int], float],
    listener: Listener | None,
) -> Generation:
    import circuit_tracer as ct

    return model.generate(
        prompt,
        {key: ct.Clamp(value) for key, value in values.items()},
        max_new_tokens=given["max_new_tokens"],
        temperature=given["temperature"],
        top_k=given["top_k"],
        seed=given["seed"],
        listener=listener,
    )


def told(prompt: str) -> Listener:
    """A listener that writes both texts to the terminal as they come."""
    from circuit_tracer.cli.report import shown

    begun: set[bool] = set()

    def listener(step: Step, steered: bool) -> None:
        if steered not in begun:
            heading = "steered" if steered else "unsteered"
            gap = "\n\n" if begun else ""
            click.echo(f"{gap}{heading}\n  {shown(prompt)}", nl=False)
            begun.add(steered)
        click.echo(shown(step.text), nl=False)

    return listener


def text(values: dict[tuple[int, int], float], result: Generation) -> str:
    """Both texts token by token, side by side."""
    from circuit_tracer.cli.report import percent, quoted, table

    rows = [("unsteered", "", "steered", "", "without")]
    steps = (result.unsteered_steps, result.steered_steps)
    for number in range(max(map(len, steps))):
        plain, other = (part[number] if number < len(part) else None for part in steps)
        rows.append(
            (
                *(("", "") if plain is None else (quoted(plain.text), percent(plain.probability))),
                *(
                    ("", "", "")
                    if other is None
                    else (quoted(other.text), percent(other.probability), percent(other.unsteered))
                ),
            )
        )
    held = ", ".join(
        f"L{layer}#{feature} = {value:.2f}" for (layer, feature), value in values.items()
    )
    return f"{table(rows, right=(1, 3, 4))}\n\nheld: {held}"


def facts(values: dict[tuple[int, int], float], result: Generation) -> dict[str, Any]:
    """The result as JSON."""
    held = [
        {"layer": layer, "feature": feature, "value": value}
        for (layer, feature), value in values.items()
    ]
    return {"held": held, **dataclasses.asdict(result)}
