"""`circuit-tracer swap`: what one prompt has put into another, language by language."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from circuit_tracer.cli import destinations, options, progress
from circuit_tracer.cli.compare import is_graph, named
from circuit_tracer.cli.graft import Several
from circuit_tracer.cli.task import Task
from circuit_tracer.errors import InputError

if TYPE_CHECKING:
    import circuit_tracer as ct
    from circuit_tracer.comparing.corpus import Corpus
    from circuit_tracer.comparing.experiment import Experiment

EPILOG = """\b
Examples:
  circuit-tracer swap en="The opposite of small is" --donor en="The opposite of hot is"
  circuit-tracer swap en="The opposite of small is" fr="Le contraire de petit est" \\
      --donor en="The opposite of hot is" --donor fr="Le contraire de chaud est" \\
      --kind abroad --layers 2-7 --end-layer 3,5,7 -o swaps.html
  circuit-tracer swap en="The opposite of small is" fr="Le contraire de petit est" \\
      --kind language
"""
TOKENS = 3


@click.command(
    cls=Task,
    name="swap",
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@click.argument("prompts", metavar="NAME=PROMPT|GRAPH…", nargs=-1, required=True)
@click.option(
    "--donor",
    "donors",
    multiple=True,
    metavar="NAME=PROMPT|GRAPH",
    help="What is put into the prompt of that name. One for each.",
)
@click.option(
    "--kind",
    type=click.Choice(["here", "abroad", "language"]),
    default="here",
    help="here: each donor into its own prompt. abroad: each into those of the other names. "
    "language: the prompts into each other, features of one language alone.",
)
@click.option(
    "--want",
    "wanted",
    multiple=True,
    metavar="NAME=TEXT",
    help='The answer that shows success, with its space: en=" cold".  [default: what the donor, '
    "or for language the other prompt, says]",
)
@click.option(
    "--feature",
    "features",
    multiple=True,
    metavar="LAYER.ID",
    help="Swap this feature only. Again for more.",
)
@click.option("--layers", metavar="FIRST-LAST", help="Swap features of these layers only.")
@click.option(
    "--strength",
    "strengths",
    type=Several("numbers, like 1,2,6", float),
    default="1,1.5,2,3,6",
    metavar="N,N…",
    help="What the donor's activations are multiplied by; the prompt's own by 1 - N.",
)
@click.option(
    "--end-layer",
    "ends",
    type=Several("layers, like 3,5, or free", int, "free"),
    metavar="N,N…|free",
    help="Hold attention and the MLPs up to this layer; free recomputes everything.  "
    "[default: every layer]",
)
@click.option(
    "--corpus",
    type=click.Path(path_type=Path),
    metavar="FILE.tsv",
    help="Parallel texts that say which features are of a language.  [default: the bundled "
    "corpus for the bundled model]",
)
@click.option("--rows", type=click.IntRange(min=2), metavar="N", default=30, help="Of it to run.")
@click.option(
    "--node-threshold",
    type=options.Share(),
    metavar="SHARE",
    default=0.8,
    help="Share of the influence that each circuit holds.",
)
@click.option("--seed", type=int, metavar="N", default=0, help="Of the null's draw.")
@options.loading
@options.page_file("Write a page with the curves.")
@options.json_file("Write everything as JSON; - prints it and nothing else.")
@click.option("-q", "--quiet", is_flag=True, help="Print how many succeed only.")
@options.debug
def swap(**given: Any) -> None:
    """Take out of prompts what they alone have, put in what their donors alone have, and look.

    A donor differs from its prompt in what is to be swapped: an operand (hot for small) or an
    operation (a synonym for the opposite). The features are found by comparing the two. All
    strengths are tried with all end layers; a swap succeeds where the donor's answer becomes the
    likeliest. Beside each stands a null: random features of equal influence, treated alike.
    """
    prompts, donors = unique(given["prompts"], "prompt"), unique(given["donors"], "donor")
    destinations.check(given["output"], given["json_path"])
    among = chosen(given["features"])
    silent = given["quiet"] or given["json_path"] == destinations.STDOUT
    with progress.bar(silent) as report:
        model = options.load(given, report)
        found = run(given, prompts, donors, among, model, report)
    write(given, found)
    if destinations.put_json(given["json_path"], found.to_plain()):
        return
    if given["quiet"]:
        click.echo(said(found))
    else:
        click.echo(text(found))
        if given["output"] is not None:
            click.echo(f"\npage      {destinations.said(given['output'])}")


def unique(words: tuple[str, ...], what: str) -> dict[str, str]:
    """Names and what they stand for. Raises InputError for a name that comes twice."""
    found: dict[str, str] = {}
    for name, value in map(named, words):
        if name in found:
            raise InputError(f"{name!r} names two {what}s; give each a name of its own")
        found[name] = value
    return found


def chosen(features: tuple[str, ...]) -> set[tuple[int, int]]:
    """(layer, id) that `--feature` names."""
    found = set()
    for word in features:
        match = re.fullmatch(r"(\d+)\.(\d+)", word)
        if match is None:
            raise InputError(f"{word!r} should be LAYER.ID, such as 2.949")
        found.add((int(match[1]), int(match[2])))
    return found


def run(
    given: dict[str, Any],
    prompts: dict[str, str],
    donors: dict[str, str],
    among: set[tuple[int, int]],
    model: ct.ReplacementModel,
    report: progress.Report,
) -> Experiment:
    from circuit_tracer.comparing.experiment import experiment

    return experiment(
        {name: read(value) for name, value in prompts.items()},
        {name: read(value) for name, value in donors.items()},
        model,
        given["kind"],
        dict(map(named, given["wanted"])),
        among or within(given["layers"], model),
        corpus(given, model, list(prompts)) if given["kind"] == "language" else None,
        given["strengths"],
        given["ends"],
        given["node_threshold"],
        given["seed"],
        lambda done, message: report(0.1 + 0.9 * done, message),
    )


def read(value: str) -> ct.Graph | str:
    """A graph where a file of one is named, else the prompt."""
    if not is_graph(value):
        return value
    import circuit_tracer as ct

    return ct.Graph.read(value)


def within(layers: str | None, model: ct.ReplacementModel) -> set[tuple[int, int]] | None:
    """All (layer, id) of `--layers`; None for no such words."""
    if layers is None:
        return None
    match, last = re.fullmatch(r"(\d+)(?:-(\d+))?", layers), model.adapter.n_layers - 1
    low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
    if not low <= high <= last:
        raise InputError(f"--layers {layers} should be like 2-{last}; layers are 0 to {last}")
    return {
        (layer, one)
        for layer in range(low, high + 1)
        for one in range(len(model.transcoders.layer(layer).encoder))
    }


def corpus(given: dict[str, Any], model: ct.ReplacementModel, names: list[str]) -> Corpus | None:
    """Parallel texts in the languages of the prompts."""
    from circuit_tracer.comparing.corpus import bundled_corpus, read_corpus
    from circuit_tracer.loading import BUNDLED

    if given["corpus"] is None and model.adapter.name != BUNDLED:
        raise InputError("which features are of a language is found on texts: give --corpus")
    whole = bundled_corpus() if given["corpus"] is None else read_corpus(given["corpus"])
    return whole.sample(given["rows"])


def write(given: dict[str, Any], found: Experiment) -> None:
    """The page, where it was asked for."""
    if given["output"] is not None:
        from circuit_tracer.files import write_text
        from circuit_tracer.view.report import page

        drawn = page("Swaps", said(found), facts(found), [found.figure()], found.rows())
        write_text(given["output"], drawn)


def said(found: Experiment) -> str:
    """What came of it, in a sentence."""
    from circuit_tracer.comparing.experiment import ending

    (strength, end), (null_strength, null_end) = found.best, found.null_best
    hits, null = found.successes(found.best), found.successes(found.null_best, null=True)
    return (
        f"{hits} of {len(found.tried)} succeed at strength {strength:g}, {ending(end)}; of the "
        f"nulls, {found.successes(found.best, null=True)} there, and {null} at their own best "
        f"(strength {null_strength:g}, {ending(null_end)})."
    )


def facts(found: Experiment) -> list[tuple[str, str]]:
    """Each swap, as a name and what was done."""
    rows = []
    for one in found.tried:
        made = one.swap
        lost = f", {made.lost} with no place left out" if made.lost else ""
        rows.append(
            (
                one.into if one.into == one.origin else f"{one.origin} into {one.into}",
                f"{made.donor} into {made.receiver}: {made.taken} taken, {made.put} put{lost}; "
                f"{made.wanted!r} {100 * made.before:.1f} % before; influence "
                f"{made.influence:.2f}, of the null {made.null_influence:.2f}",
            )
        )
    rows += [
        (f"{origin} into {into}", "left out: they say the same") for into, origin in found.left_out
    ]
    return rows


def text(found: Experiment) -> str:
    """Success by language, and each swap, in the terminal."""
    from circuit_tracer.cli.report import shown, table

    table_of = table(found.rows(), right=range(1, len(found.rows()[0])))
    head = ("", "wanted", "before", "at best", "null", "features taken, put")
    rows = [head, *(each(one, found.best) for one in found.tried)]
    parts = [
        said(found),
        "success by language\n" + table_of,
        "each swap\n" + table(rows, (2, 3, 4)),
    ]
    if found.left_out:
        names = ", ".join(f"{origin} into {into}" for into, origin in found.left_out)
        parts.append(f"left out, as the answers are the same: {shown(names)}")
    return "\n\n".join(parts)


def each(one: Any, best: tuple[float, int | None]) -> tuple[str, ...]:
    """One swap: the probability of what is wanted, and its strongest features."""
    from circuit_tracer.cli.report import shown

    made = one.swap
    trial = next(t for t in made.trials if (t.strength, t.end) == best)
    values = (f"{100 * x:.1f} %" for x in (made.before, trial.probability, trial.null_probability))
    name = one.into if one.into == one.origin else f"{one.origin} → {one.into}"
    return (shown(name), repr(made.wanted), *values, f"{strongest(made.own)}; "
            f"{strongest(made.foreign)}")  # fmt: skip


def strongest(keys: tuple[tuple[int, int], ...]) -> str:
    """`2.77 1.3 … (40)`: the first few, and how many there are."""
    names = " ".join(f"{layer}.{one}" for layer, one in keys[:TOKENS]) or "none"
    return f"{names} … ({len(keys)})" if len(keys) > TOKENS else names
