"""`circuit-tracer check`: how well transcoders stand in for a model, before a graph is trusted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from circuit_tracer.cli import destinations, options, texts
from circuit_tracer.cli.progress import bar
from circuit_tracer.cli.task import Task

if TYPE_CHECKING:
    from circuit_tracer.agreement.measure import Agreement

BUNDLED_TEXTS = 1000


@click.command(cls=Task, name="check", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", metavar="[MODEL]", required=False)
@click.argument("transcoders", metavar="[TRANSCODERS]", required=False)
@click.option(
    "--text",
    "source",
    metavar="FILE|-",
    help="Text to measure on, one a line; - reads stdin.  [default: sentences of the bundled "
    "corpus, in five languages]",
)
@click.option(
    "--tokens", type=options.AT_LEAST_ONE, metavar="N", default=2000, help="Measure so many tokens."
)
@click.option(
    "--positions",
    type=click.Choice(["all", "last"]),
    default="all",
    help="Every token of a text, or the last of each.",
)
@options.json_file("Write the figures as JSON; - prints them and nothing else.")
@options.page_file("Draw the figures by layer.")
@options.place
@click.option("-q", "--quiet", is_flag=True, help="Print nothing; the exit status says it.")
@options.debug
def check(
    model: str | None,
    transcoders: str | None,
    source: str | None,
    tokens: int,
    positions: str,
    json_path: Path | None,
    output: Path | None,
    quiet: bool,
    debug: bool,
    **place: Any,
) -> None:
    """Measure how well TRANSCODERS stand in for the MLPs of MODEL.

    By layer: normalised MSE, features active at once (L0), share of features that never fire. With
    every MLP replaced: how often the likeliest token stays the same, KL, increase of cross-entropy.
    The first token of a text is left out. Without arguments, the bundled model is measured.
    """
    destinations.check(json_path, output)
    from circuit_tracer.agreement import measure, report
    from circuit_tracer.loading import load

    if output is not None:
        report.check_suffix(output)
    given = _texts(source)
    replaced = load(model, transcoders, **place)
    with bar(quiet) as progress:
        found = measure.measure(
            replaced,
            given,
            tokens=tokens,
            positions="last" if positions == "last" else "all",
            progress=progress,
        )
    if output is not None:
        report.write(found, output)
    if destinations.put_json(json_path, report.plain(found)):
        return
    if not quiet:
        click.echo(_said(found))
        if output is not None:
            click.echo(f"\n{destinations.said(output)}")


def _texts(source: str | None) -> list[str]:
    """The user's text, one a line; or sentences that the bundled model was not trained on."""
    if source is None:
        from circuit_tracer.bundled.measure import unseen

        return [sentence.text for sentence in unseen(BUNDLED_TEXTS)]
    return texts.read(Path(source))


def _said(found: Agreement) -> str:
    """Table, figures and verdict."""
    from circuit_tracer.agreement import report
    from circuit_tracer.cli.report import shown, table

    title = f"{shown(found.transcoders)} in place of the MLPs of {shown(found.model)}"
    whole = "\n".join(f"{name:<17}{said}" for name, said in report.figures(found))
    layers = table(report.rows(found), right=range(len(report.HEAD)))
    return f"{title}\n\n{layers}\n\n{whole}\n\n{report.verdict(found)}"
