"""`circuit-tracer compare`: prompts or graphs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from circuit_tracer.cli import destinations, options, progress
from circuit_tracer.cli.task import Task
from circuit_tracer.cli.trace import utf8
from circuit_tracer.errors import InputError

if TYPE_CHECKING:
    import circuit_tracer as ct
    from circuit_tracer.comparing.comparison import SharedFeature
    from circuit_tracer.comparing.overlap import LayerOverlap, SetOverlap

EPILOG = """\b
Examples:
  circuit-tracer compare en="The opposite of small is" fr="Le contraire de petit est" \\
      zh="小的反义词是" -o languages.html
  circuit-tracer compare en=en.safetensors fr=fr.safetensors
  circuit-tracer compare plt="The opposite of small is" clt="The opposite of small is" \\
      --transcoders plt=plt --transcoders clt=clt --match decoder
"""
GRAPHS = (".safetensors", ".json")


@click.command(
    cls=Task,
    name="compare",
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@click.argument("prompts", metavar="NAME=PROMPT|GRAPH…", nargs=-1)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE.html|svg",
    help="Write the comparison as a page, or as a still picture.",
)
@click.option("--pages", is_flag=True, help="Write a page a graph beside -o, linked from it.")
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="[NAME=]ID|DIR",
    help="A model, or one for each name.  [default: the bundled one]",
)
@click.option(
    "--transcoders",
    "sets",
    multiple=True,
    metavar="[NAME=]ID|DIR",
    help="Its transcoders, or those of each name.",
)
@click.option(
    "--match",
    type=click.Choice(["id", "decoder"]),
    default="id",
    help="When two features are one: equal layer and id, or decoders that write alike "
    "(for different checkpoints or transcoders).",
)
@click.option(
    "--corpus",
    type=click.Path(path_type=Path),
    metavar="FILE.tsv",
    help="Parallel texts for the baseline, a column a language.  [default: the bundled "
    "corpus for the bundled model]",
)
@click.option(
    "--rows",
    type=click.IntRange(min=2),
    metavar="N",
    default=30,
    help="Rows of the corpus to run at most.",
)
@click.option("--no-baseline", is_flag=True, help="Leave the corpus out; quicker.")
@click.option(
    "--node-threshold",
    type=options.Share(),
    metavar="SHARE",
    default=0.8,
    help="Share of the influence that each circuit holds.",
)
@click.option(
    "-k", "count", type=options.AT_LEAST_ONE, metavar="N", default=10, help="Features to list."
)
@options.labels
@options.place
@options.json_file("Write everything as JSON; - prints it and nothing else.")
@click.option("-q", "--quiet", is_flag=True, help="Print the summary only.")
@options.debug
def compare(**given: Any) -> None:
    """Lay prompts or saved graphs side by side: what do they share, and what has one alone?

    Each is NAME=PROMPT, or NAME=FILE of a graph that `trace` saved. Names that are languages of
    the corpus (en, fr, de, es, zh of the bundled one) are compared with unrelated texts too.
    """
    prompts = [named(word) for word in given["prompts"]]
    check(given, prompts)
    destinations.check(given["output"], given["json_path"])
    silent = given["quiet"] or given["json_path"] == destinations.STDOUT
    with progress.bar(silent) as report:
        found = run(given, prompts, report)
    if given["output"] is not None:
        if is_picture(given["output"]):
            found.save_svg(given["output"])
        else:
            found.save_html(given["output"], given["pages"])
    wanted = given["json_path"]
    if wanted is not None and destinations.put_json(wanted, found.payload()):
        return
    click.echo(found.summary() if given["quiet"] else text(found, given["count"]))
    if given["output"] is not None and not given["quiet"]:
        kind = "picture" if is_picture(given["output"]) else "page   "
        click.echo(f"\n{kind}   {destinations.said(given['output'])}")


def is_picture(path: Path) -> bool:
    """Whether a still picture is asked for, and no page."""
    return path.suffix.lower() == ".svg"


def named(word: str) -> tuple[str, str]:
    """`en=The opposite …` as name and prompt."""
    name, sign, value = utf8(word, "a prompt").partition("=")
    if not (sign and name.strip() and value.strip()):
        raise InputError(
            f'{word!r} should be a name and a prompt or graph, such as en="The opposite of small '
            'is"'
        )
    return name.strip(), value


def check(given: dict[str, Any], prompts: list[tuple[str, str]]) -> None:
    """Raise where the words are wrong, before anything is loaded."""
    names = [name for name, _ in prompts]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise InputError(f"{twice[0]!r} names two prompts; give each a name of its own")
    if len(prompts) < 2:
        raise InputError(
            f"comparing takes at least two prompts or graphs, not {len(prompts)}: give "
            'en="…" fr="…"'
        )
    if given["pages"] and (given["output"] is None or is_picture(given["output"])):
        raise InputError("--pages are written beside the page: give -o FILE.html")
    if given["no_baseline"] and given["corpus"] is not None:
        raise InputError("--no-baseline leaves the corpus out: give one or the other")


def run(
    given: dict[str, Any], prompts: list[tuple[str, str]], report: progress.Report
) -> ct.Comparison:
    report(0.0, "importing torch and transformers")
    import circuit_tracer as ct

    labels = options.read_labels(given["labels"])
    graphs = {name: Path(value) if is_graph(value) else value for name, value in prompts}
    only_graphs = all(isinstance(value, Path) for value in graphs.values())
    needed = not only_graphs or given["corpus"] is not None or given["match"] == "decoder"
    models = load(given, list(graphs), report) if needed or given["models"] else None
    return ct.compare(
        graphs,
        models,
        baseline=None if given["no_baseline"] else given["corpus"] or "auto",
        match=given["match"],
        nodes=given["node_threshold"],
        rows=given["rows"],
        progress=report,
        labels=labels,
    )


def is_graph(value: str) -> bool:
    """Whether a value names a graph file that is there."""
    return value.endswith(GRAPHS) and Path(value).is_file()


def load(
    given: dict[str, Any], names: list[str], report: progress.Report
) -> dict[str, ct.ReplacementModel]:
    """A model a name; names that ask for the same one share it."""
    models = each(given["models"], names, "--model")
    sets = each(given["sets"], names, "--transcoders")
    loaded: dict[tuple[str | None, str | None], ct.ReplacementModel] = {}
    for name in names:
        pair = models[name], sets[name]
        if pair not in loaded:
            asked = {**given, "model": pair[0], "transcoders": pair[1]}
            loaded[pair] = options.load(asked, report)
    return {name: loaded[models[name], sets[name]] for name in names}


def each(words: tuple[str, ...], names: list[str], option: str) -> dict[str, str | None]:
    """What an option says for each name: `NAME=VALUE`, or a value for all others."""
    found: dict[str, str | None] = {}
    rest = None
    for word in words:
        name, sign, value = word.partition("=")
        if sign and name in names:
            found[name] = value
        elif rest is not None:
            raise InputError(f"{option} is given twice for all: write {option} NAME={word}")
        else:
            rest = word
    return {name: found.get(name, rest) for name in names}


def text(found: ct.Comparison, count: int) -> str:
    """The comparison in the terminal."""
    parts = [found.summary(), classes(found), overlaps(found), features(found, count)]
    if found.roles:
        parts.append(roles(found, count))
    parts += [f"note: {said}" for said in found.notices]
    return "\n\n".join(parts)


def classes(found: ct.Comparison) -> str:
    """Counts by layer and class, and the influence each class holds."""
    from circuit_tracer.cli.report import percent, table

    rows = [["layer", *found.classes]]
    rows += [[str(n), *map(str, row.values())] for n, row in enumerate(found.by_layer())]
    rows.append(["all", *(str(each.count) for each in found.classes.values())])
    for name in found.names:
        shares = (percent(each.influence[name]) for each in found.classes.values())
        rows.append([f"influence in {name}", *shares])
    return "features in circuits\n" + table(rows, right=range(1, len(rows[0])))


def overlaps(found: ct.Comparison) -> str:
    """Overlap by layer of all texts, and of each pair where they are few."""
    pairs = found.overlap.pairs
    shown = pairs if len(pairs) <= 3 else ()
    whole = () if len(found.names) == 2 else (found.overlap.all,)
    return "\n\n".join(overlap(each) for each in (*shown, *whole))


def overlap(found: SetOverlap) -> str:
    from circuit_tracer.cli.report import table

    head = ("layer", "shared", "weighted", "equal size", "random", "unrelated", "parallel")
    with_corpus = any(layer.baseline is not None for layer in found.layers)
    rows = [head, *map(row, found.layers)]
    rows = rows if with_corpus else [each[:5] for each in rows]
    title = f"overlap of {', '.join(found.names)} (% of the features active in any of them)"
    return f"{title}\n{table(rows, right=range(1, len(rows[0])))}"


def row(layer: LayerOverlap) -> tuple[str, ...]:
    shares = (layer.iou, layer.weighted, layer.equal, layer.expected)
    said = [number(share) for share in shares]
    for each in (layer.baseline.unrelated, layer.baseline.parallel) if layer.baseline else ():
        said.append(f"{number(each.mean)} ({number(each.low)}–{number(each.high)})")
    return (str(layer.layer), *said, *["–"] * (6 - len(said)))


def number(share: float | None) -> str:
    return "–" if share is None or share != share else f"{100 * share:.1f}"


def features(found: ct.Comparison, count: int) -> str:
    """The most influential features of each class."""
    from circuit_tracer.cli.report import percent, shown, table

    parts = []
    kinds = {"shared by all": found.shared, "shared by some": found.some}
    kinds |= {f"only in {name}": found.only(name) for name in found.names}
    for kind, members in kinds.items():
        rows = [("feature", "promotes", *found.names, "language")]
        for feature in members[:count]:
            held = (feature.influence.get(name) for name in found.names)
            said = ", ".join(shown(token.strip()) for token in feature.says)
            shares = ("–" if share is None else percent(share) for share in held)
            rows.append((shown(feature.label), said, *shares, language(feature)))
        if len(rows) > 1:
            right = range(2, 2 + len(found.names))
            parts.append(f"{kind}, with its share of the influence\n{table(rows, right)}")
    return "\n\n".join(parts)


def language(feature: SharedFeature) -> str:
    """The language of a feature in a word or two."""
    spread = feature.spread
    if spread is None:
        return ""
    said = spread.verdict
    return f"{spread.language} {100 * spread.largest:.0f} %" if said == "specific" else said


def roles(found: ct.Comparison, count: int) -> str:
    """Features that differ and do the same job."""
    from circuit_tracer.cli.report import table

    rows = [("similarity", *found.names)]
    for role in found.roles[:count]:
        keys = (role.members.get(name) for name in found.names)
        said = ("–" if key is None else f"L{key[0]}#{key[1]}" for key in keys)
        rows.append((f"{role.similarity:.2f}", *said))
    return f"different features in one role\n{table(rows)}"
