"""`circuit-tracer compare`: prompts or graphs side by side."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from circuit_tracer.cli import destinations, options, progress
from circuit_tracer.cli.task import Task
from circuit_tracer.cli.trace import utf8
from circuit_tracer.errors import InputError

if TYPE_CHECKING:
    import circuit_tracer as ct

EPILOG = """\b
Examples:
  circuit-tracer compare en="The opposite of small is" fr="Le contraire de petit est" \\
      zh="小的反义词是" -o languages.html
  circuit-tracer compare en=en.safetensors fr=fr.safetensors
  circuit-tracer compare en="The opposite of small is" fr="Le contraire de petit est" \\
      --target en=" large" --target fr=" grand"
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
    "--target",
    "targets",
    multiple=True,
    metavar="[NAME=]TOKEN",
    help="An output token to explain, or one for each name; give it again for more.  [default: the "
    "likeliest]",
)
@click.option(
    "--answer",
    "answers",
    multiple=True,
    metavar="[NAME=]TEXT",
    help="Explain every token of this answer, or of that of each name.",
)
@click.option(
    "--ignore-positions",
    "ignored",
    multiple=True,
    metavar="[NAME=]bos|special|none|N,N…",
    help="Positions whose features and errors are left out.  [default: bos]",
)
@click.option(
    "--max-features",
    "limits",
    multiple=True,
    metavar="[NAME=]N|all|auto",
    help="Features to expand, the most influential first.  [default: auto]",
)
@click.option(
    "--chat",
    "chats",
    multiple=True,
    metavar="NAME|all",
    help="The prompt of this name is what a user says: put it into the tokenizer's chat template.",
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
    if given["quiet"]:
        click.echo(found.summary())
    else:
        from circuit_tracer.cli.compared import text

        click.echo(text(found, given["count"]))
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
    settings(given, prompts)


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
        **settings(given, prompts),
    )


def is_graph(value: str) -> bool:
    """Whether a value names a graph file and is no prompt.

    Raises InputError for what only a file would be called and is none.
    """
    if not value.endswith(GRAPHS) or Path(value).is_file():
        return value.endswith(GRAPHS)
    if any(letter.isspace() for letter in value):
        return False
    raise InputError(f"{value} names a graph, but there is no such file")


def load(
    given: dict[str, Any], names: list[str], report: progress.Report
) -> dict[str, ct.ReplacementModel]:
    """A model a name; names that ask for the same one share it."""
    models = each(given["models"], names, "--model")
    sets = each(given["sets"], names, "--transcoders")
    loaded: dict[tuple[str | None, str | None], ct.ReplacementModel] = {}
    for name in names:
        pair = models.get(name), sets.get(name)
        if pair not in loaded:
            asked = {**given, "model": pair[0], "transcoders": pair[1]}
            loaded[pair] = options.load(asked, report)
    return {name: loaded[models.get(name), sets.get(name)] for name in names}


def settings(given: dict[str, Any], prompts: list[tuple[str, str]]) -> dict[str, Any]:
    """What `ct.compare` is told of single prompts, by setting and name; empty ones left out."""
    names = [name for name, _ in prompts]
    traced = [name for name, value in prompts if not is_graph(value)]

    def said(words: tuple[str, ...], option: str, read: Callable[[str], Any]) -> dict[str, Any]:
        found = each(words, names, option, traced)
        return {name: read(word) for name, word in found.items()}

    found: dict[str, dict[str, Any]] = {
        "targets": {
            name: [utf8(word, "a target") for word in words]
            for name, words in by_name(given["targets"], names, "--target", traced).items()
        },
        "answer": said(given["answers"], "--answer", lambda word: utf8(word, "the answer")),
        "ignore_positions": said(
            given["ignored"], "--ignore-positions", reader(options.Positions())
        ),
        "max_features": said(given["limits"], "--max-features", reader(options.FeatureLimit())),
        "chat": dict.fromkeys(chosen(given["chats"], names), True),
    }
    both = [name for name in names if name in found["targets"] and name in found["answer"]]
    if both:
        raise InputError(f"--answer says what to explain of {both[0]!r}: leave out its --target")
    return {setting: values for setting, values in found.items() if values}


def reader(kind: click.ParamType) -> Callable[[str], Any]:
    """How a value of that kind is read."""

    def read(word: str) -> Any:
        try:
            return kind.convert(word, None, None)
        except click.BadParameter as error:
            raise InputError(error.message) from None

    return read


def chosen(words: tuple[str, ...], names: list[str]) -> list[str]:
    """The names that `--chat` means."""
    for word in words:
        if word not in names and word != "all":
            raise InputError(f"--chat takes a name ({', '.join(names)}) or all, not {word!r}")
    return [name for name in names if name in words or "all" in words]


def each(
    words: tuple[str, ...], names: list[str], option: str, others: list[str] | None = None
) -> dict[str, str]:
    """The one value of an option for each name, see `by_name`."""
    found = by_name(words, names, option, others)
    for name, values in found.items():
        if len(values) > 1:
            whom = name if f"{name}={values[-1]}" in words else "all"
            raise InputError(
                f"{option} is given twice for {whom}: write {option} NAME={values[-1]}"
            )
    return {name: values[0] for name, values in found.items()}


def by_name(
    words: tuple[str, ...], names: list[str], option: str, others: list[str] | None = None
) -> dict[str, list[str]]:
    """The values of an option for each name: its own ones, else those that were given for all.

    Args:
        others: those that values for all are for; None for all names.

    Raises InputError where `NAME=` is no prompt's; a file whose name holds "=" is one for all.
    """
    own: dict[str, list[str]] = {}
    rest = []
    for word in words:
        name, sign, value = word.partition("=")
        if sign and name in names:
            own.setdefault(name, []).append(value)
        elif sign and name.strip() and not Path(word).exists():
            raise InputError(
                f"{option} {word!r} is for {name!r}, but no prompt has this name; names are "
                f"{', '.join(names)} (write NAME={word} for a value that holds =)"
            )
        else:
            rest.append(word)
    if rest and others == []:
        raise InputError(f"{option} is for prompts, and all of these are graphs, traced already")
    own |= {name: rest for name in others or names if rest and name not in own}
    return own
