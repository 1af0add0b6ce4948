"""`circuit-tracer features`: what features mean, looked up, searched, and called by name."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from circuit_tracer.cli import destinations, options
from circuit_tracer.cli.feature_building import COMMANDS
from circuit_tracer.cli.task import Task
from circuit_tracer.errors import InputError

if TYPE_CHECKING:
    from circuit_tracer.features.feature import Example, Feature
    from circuit_tracer.features.store import Row

HELP = {"help_option_names": ["-h", "--help"]}


class FeatureName(click.ParamType):
    """A feature, `2.417` (`L2#417` as reports write it), as (layer, id)."""

    name = "LAYER.ID"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        found = re.fullmatch(r"L?([0-9]{1,9})[.#]([0-9]{1,9})", value)
        if found is None:
            self.fail(f"{value!r} is not a feature, like 2.417.", param, ctx)
        return int(found[1]), int(found[2])


def reading(command: Any) -> Any:
    """Give a command the options of all that read a store."""
    for option in reversed((
        click.option("--store", default="plt", show_default=True, metavar="FILE|plt|clt",
                     help="The feature store; plt and clt are the bundled model's."),
        click.option("--json", "json_path", type=click.Path(path_type=Path),
                     metavar="FILE.json|-", help="Write it as JSON; - prints it and nothing else."),
        click.option("-q", "--quiet", is_flag=True, help="Print nothing but what --json asks for."),
        options.debug,
    )):  # fmt: skip
        command = option(command)
    return command


@click.group(name="features", context_settings=HELP)
def features() -> None:
    """Build, read and publish what features mean: examples, outputs, labels."""


@features.command(cls=Task, name="show", context_settings=HELP)
@click.argument("feature", type=FeatureName())
@reading
def show(feature: tuple[int, int], store: str, debug: bool, **out: Any) -> None:
    """Show a feature: figures, outputs, examples, related features."""
    destinations.check(out["json_path"])
    found = _open(store).feature(*feature)
    _put(out, dataclasses.asdict(found), lambda: said(found))


@features.command(cls=Task, name="search", context_settings=HELP)
@click.argument("text")
@click.option("--most", type=options.AT_LEAST_ONE, default=20, metavar="N", help="At most so many.")
@reading
def search(text: str, most: int, store: str, debug: bool, **out: Any) -> None:
    """Find features by a word of their label, or one that they fire at or raise."""
    destinations.check(out["json_path"])
    rows = _open(store).search(text, most)
    _put(out, [dataclasses.asdict(row) for row in rows], lambda: listed(rows))


@features.command(cls=Task, name="lucky", context_settings=HELP)
@click.option("--seed", type=int, metavar="N", help="The same feature for the same number.")
@reading
def lucky(seed: int | None, store: str, debug: bool, **out: Any) -> None:
    """Show some feature that fires."""
    destinations.check(out["json_path"])
    found = _open(store).lucky(seed)
    _put(out, dataclasses.asdict(found), lambda: said(found))


@features.command(cls=Task, name="similar", context_settings=HELP)
@click.argument("feature", type=FeatureName())
@reading
def similar(feature: tuple[int, int], store: str, debug: bool, **out: Any) -> None:
    """List the features whose decoders are nearest."""
    destinations.check(out["json_path"])
    rows = _open(store).similar(*feature)
    plain = [{**dataclasses.asdict(row), "cosine": cosine} for row, cosine in rows]
    extra = [f"{cosine:.2f}" for _, cosine in rows]
    _put(out, plain, lambda: listed([row for row, _ in rows], "cosine", extra))


@features.command(cls=Task, name="top", context_settings=HELP)
@click.option("--prompt", metavar="TEXT", help="The features that fire most in this text.")
@click.option("--graph", type=click.Path(path_type=Path), metavar="FILE.safetensors",
              help="The features with the largest influence in this graph.")  # fmt: skip
@click.option("--model", metavar="ID|DIR", help="For --prompt; the bundled one where left out.")
@click.option("--transcoders", metavar="ID|DIR", help="For --prompt; plt or clt for the bundled "
              "model, which the store's are by default.")  # fmt: skip
@click.option("--most", type=options.AT_LEAST_ONE, default=20, metavar="N", help="At most so many.")
@reading
def top(
    prompt: str | None,
    graph: Path | None,
    model: str | None,
    transcoders: str | None,
    most: int,
    store: str,
    debug: bool,
    **out: Any,
) -> None:
    """List the features that matter most in a text or a graph.

    In a text, features are ranked by their activation as a share of their largest in the corpus.
    """
    if (prompt is None) == (graph is None):
        raise click.UsageError("give either --prompt or --graph")
    destinations.check(out["json_path"])
    import circuit_tracer as ct
    from circuit_tracer.features import graphs

    opened = _open(store)
    if graph is not None:
        ranked, score = graphs.top(opened, ct.Graph.load(graph), most), "influence"
    else:
        assert prompt is not None
        own = model is None and transcoders is None and store in ("plt", "clt")
        loaded = ct.load(model, store if own else transcoders)
        ranked, score = graphs.top_of_prompt(opened, loaded, prompt, most), "of largest"

    def table() -> str:
        from circuit_tracer.cli.report import shown, table

        head = ("feature", "at", "token", "activation", score, "label")
        rows = [
            (f"{one.layer}.{one.id}", str(one.position), shown(one.token).strip(),
             number(one.activation), number(one.score), shown(one.label.text))
            for one in ranked
        ]  # fmt: skip
        return table([head, *rows], right=(1, 3, 4))

    _put(out, [graphs.plain(one) for one in ranked], table)


@features.command(cls=Task, name="label", context_settings=HELP)
@click.argument("feature", type=FeatureName(), required=False)
@click.argument("text", required=False)
@click.option("--from", "source", type=click.Path(path_type=Path), metavar="FILE.json",
              help="Take labels from a file of ours or an export from Neuronpedia.")  # fmt: skip
@click.option("--remove", is_flag=True, help="Take the label of FEATURE away.")
@click.option("--by", default="user", show_default=True, metavar="NAME", help="Who calls it that.")
@reading
def label(
    feature: tuple[int, int] | None,
    text: str | None,
    source: Path | None,
    remove: bool,
    by: str,
    store: str,
    debug: bool,
    **out: Any,
) -> None:
    """Call FEATURE TEXT, take labels from a file, or list those that people gave.

    --json writes the labels of the store as a file that --from reads: to keep and to share.
    """
    destinations.check(out["json_path"])
    from circuit_tracer.features import labels

    opened = _open(store)
    changed: dict[tuple[int, int], Any] = {}
    if source is not None:
        changed.update(labels.read(source))
    if feature is not None:
        if (text is None) != remove:
            raise click.UsageError("give a FEATURE its TEXT, or --remove")
        changed[feature] = None if text is None else labels.checked(text, by)
    if changed and store in ("plt", "clt"):
        raise InputError(
            f"the bundled store is not changed: copy {opened.path} and name the copy with --store"
        )
    if changed:
        opened.set_labels(changed)
    rows = [opened.row(*key) for key in sorted(opened.given)]
    plain = json.loads(labels.text(opened.given))
    _put(out, plain, lambda: listed(rows) if rows else "no feature has a label of its own")


for command in COMMANDS:
    features.add_command(command)


def listed(rows: list[Row], name: str = "", extra: list[str] | None = None) -> str:
    """A table of features."""
    from circuit_tracer.cli.report import shown, table

    if not rows:
        return "nothing found"
    head = ["feature", "fires at", "largest", *([name] if name else []), "label"]
    cells = [
        [f"{row.layer}.{row.id}", percent(row.density), number(row.largest),
         *([extra[k]] if extra else []), shown(row.label.text)]
        for k, row in enumerate(rows)
    ]  # fmt: skip
    return table([head, *cells], right=range(1, len(head) - 1))


def said(feature: Feature) -> str:
    """A feature as text."""
    from circuit_tracer.cli.report import quoted, shown, table

    lines = [f"{feature.layer}.{feature.id}  {shown(feature.label.text)}"]
    lines.append(f"  fires at {percent(feature.density)} of tokens, mean {number(feature.mean)}, "
                 f"largest {number(feature.largest)}")  # fmt: skip
    if feature.spread.rates:
        rates = [f"{name} {percent(rate)}" for name, rate in feature.spread.rates.items()]
        lines.append(f"  languages  {', '.join(rates)}  (evenness {feature.spread.evenness:.2f})")
    for name, tokens in (("raises", feature.raised), ("lowers", feature.lowered)):
        if tokens:
            lines.append(f"  {name}  {', '.join(quoted(token) for token, _ in tokens)}")
    for name, kin in (("fires with", feature.coactive), ("similar to", feature.similar)):
        if kin:
            found = ", ".join(f"{one.layer}.{one.feature} ({one.share:.2f})" for one in kin)
            lines.append(f"  {name}  {found}")
    for group in feature.groups:
        lines += ["", f"{group.name}  {number(group.low)} to {number(group.high)}"]
        rows = [(number(e.activations[e.position]), e.language, _marked(e)) for e in group.examples]
        lines.append(table(rows, right=(0,)))
    return "\n".join(lines)


def _marked(example: Example) -> str:
    """The text, with ⟦ ⟧ around the token that the example is of."""
    from circuit_tracer.cli.report import shown

    parts = [shown(token) for token in example.tokens]
    token = parts[example.position]
    blank = " " if token.startswith(" ") else ""
    parts[example.position] = f"{blank}⟦{token[len(blank) :]}⟧"
    return "".join(parts)


def number(value: float | None) -> str:
    """Three digits, or a dash where nothing is known."""
    return "–" if value is None or math.isnan(value) else f"{value:.3g}"


def percent(share: float | None) -> str:
    """A share as a percentage."""
    return "–" if share is None else f"{100 * share:.3g} %"


def _open(store: str) -> Any:
    from circuit_tracer.features import open_store

    return open_store(store)


def _put(out: dict[str, Any], plain: Any, text: Any) -> None:
    """Write JSON where it was asked for, and the text where nothing forbids it."""
    as_json = json.dumps(_numbers(plain), ensure_ascii=False, indent=1)
    if out["json_path"] == destinations.STDOUT:
        click.echo(as_json)
        return
    if out["json_path"] is not None:
        from circuit_tracer.files import write_text

        write_text(out["json_path"], as_json + "\n")
    if not out["quiet"]:
        click.echo(text())


def _numbers(plain: Any) -> Any:
    """Plain values without NaN, which JSON does not have."""
    if isinstance(plain, dict):
        return {name: _numbers(value) for name, value in plain.items()}
    if isinstance(plain, list | tuple):
        return [_numbers(value) for value in plain]
    return None if isinstance(plain, float) and not math.isfinite(plain) else plain
