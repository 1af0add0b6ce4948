"""`circuit-tracer features label`: names for features, from people, files, or a language model."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from circuit_tracer.cli import destinations, options
from circuit_tracer.cli.feature_options import HELP, FeatureName, opened, put, reading
from circuit_tracer.cli.feature_report import listed
from circuit_tracer.cli.progress import bar
from circuit_tracer.cli.task import Task
from circuit_tracer.errors import EndpointError, InputError

if TYPE_CHECKING:
    from circuit_tracer.features.endpoint import Endpoint
    from circuit_tracer.features.store import Store

EPILOG = """\b
Examples:
  circuit-tracer features label 2.417 "antonyms" --by me --store mine.sqlite
  circuit-tracer features label --store mine.sqlite --json labels.json
  circuit-tracer features label --from labels.json --store other.sqlite
  circuit-tracer features label --endpoint http://localhost:8000/v1 --model NAME --store mine.sqlite
"""

ASKING = (
    click.option("--endpoint", metavar="URL", help="Ask a language model there, at any address "
                 "that speaks OpenAI's chat completions, for the names of features that have "
                 "none. The texts of their examples are sent to it."),
    click.option("--model", metavar="NAME", help="The language model's name there."),
    click.option("--key-env", metavar="VAR", help="The environment variable with the key, if it "
                 "takes one."),
    click.option("--graph", type=click.Path(path_type=Path), metavar="FILE.safetensors",
                 help="Ask about the features with the largest influence in this graph."),
    click.option("--most", type=options.AT_LEAST_ONE, default=100, show_default=True, metavar="N",
                 help="Ask about so many features at most; the same command goes on with the "
                 "next."),
    click.option("--workers", type=click.IntRange(1, 64), default=4, show_default=True,
                 metavar="N", help="Requests on their way at a time."),
    click.option("--per-minute", type=click.FloatRange(0, min_open=True), metavar="N",
                 help="Requests a minute at most."),
    click.option("--yes", is_flag=True, help="Ask the model without asking you again."),
)  # fmt: skip


def asking(command: Any) -> Any:
    """Give a command the options of `ASKING`."""
    for option in reversed(ASKING):
        command = option(command)
    return command


@click.command(cls=Task, name="label", epilog=EPILOG, context_settings=HELP)
@click.argument("feature", type=FeatureName(), required=False)
@click.argument("text", required=False)
@click.option("--from", "source", type=click.Path(path_type=Path), metavar="FILE.json",
              help="Take labels from a file of ours or an export from Neuronpedia.")  # fmt: skip
@click.option("--remove", is_flag=True, help="Take the label of FEATURE away.")
@click.option("--by", default="user", show_default=True, metavar="NAME", help="Who calls it that.")
@asking
@reading
def label(
    feature: tuple[int, int] | None,
    text: str | None,
    source: Path | None,
    remove: bool,
    by: str,
    store: str,
    debug: bool,
    json_path: Path | None,
    quiet: bool,
    **asked: Any,
) -> None:
    """Call FEATURE TEXT, take labels from a file, ask a language model, or list the labels given.

    --json writes the labels of the store as a file that --from reads: to keep and to share.
    """
    destinations.check(json_path)
    from circuit_tracer.features import labels

    if asked["endpoint"] and (text is not None or remove or source is not None):
        raise click.UsageError("--endpoint asks for a name: give no TEXT, --remove or --from")
    known = opened(store)
    changed: dict[tuple[int, int], Any] = {}
    if source is not None:
        changed.update(labels.read(source))
    if feature is not None and not asked["endpoint"]:
        if (text is None) != remove:
            raise click.UsageError("give a FEATURE its TEXT, or --remove")
        changed[feature] = None if text is None else labels.checked(text, by)
    if (changed or asked["endpoint"]) and store in ("plt", "clt"):
        raise InputError(
            f"the bundled store is not changed: copy {known.path} and name the copy with --store"
        )
    if changed:
        known.set_labels(changed)
    if asked["endpoint"]:
        _ask(known, feature, quiet, asked)
    rows = [known.row(*key) for key in sorted(known.given)]
    plain = json.loads(labels.text(known.given))
    out = {"json_path": json_path, "quiet": quiet}
    put(out, plain, lambda: listed(rows) if rows else "no feature has a label of its own")


def _ask(store: Store, feature: tuple[int, int] | None, quiet: bool, asked: dict[str, Any]) -> None:
    """Ask a language model, after saying what that takes."""
    from circuit_tracer.features import explaining

    endpoint = _endpoint(asked)
    keys = _wanted(store, feature, asked)
    if not keys:
        click.echo("all of these features have a label", err=True)
        return
    costs = explaining.estimate(store, keys)
    click.echo(
        f"{costs.features:,} features: {costs.requests:,} requests to {endpoint.model} at "
        f"{endpoint.host}, about {costs.tokens:,} tokens sent",
        err=True,
    )
    if not asked["yes"]:
        if not sys.stdin.isatty():
            raise InputError("nothing was sent: add --yes to send it")
        click.confirm("send it?", abort=True, err=True)
    with bar(quiet) as report:
        told = explaining.explain(store, keys, endpoint, asked["workers"], report)
    click.echo(
        f"{len(told.labels):,} named; {told.requests:,} requests, {told.sent:,} tokens sent, "
        f"{told.received:,} received",
        err=True,
    )
    _failures(told.failed, len(told.labels))


def _endpoint(asked: dict[str, Any]) -> Endpoint:
    from circuit_tracer.features.endpoint import Endpoint

    if not asked["model"]:
        raise click.UsageError("name the language model with --model")
    variable = asked["key_env"]
    if variable and not os.environ.get(variable):
        raise InputError(f"the environment variable {variable} is empty or not set")
    key = os.environ[variable].strip() if variable else None
    return Endpoint(asked["endpoint"], asked["model"], key, per_minute=asked["per_minute"])


def _wanted(
    store: Store, feature: tuple[int, int] | None, asked: dict[str, Any]
) -> Sequence[tuple[int, int]]:
    """The features to ask about: the one named, those of a graph, or the first without a name."""
    from circuit_tracer.features import explaining, graphs

    if feature is not None:
        store.row(*feature)
        return [feature]
    if asked["graph"] is None:
        return list(islice(explaining.unnamed(store), asked["most"]))
    import circuit_tracer as ct

    graph = ct.Graph.load(asked["graph"])
    ranked = graphs.top(store, graph, len(store))
    return [(one.layer, one.id) for one in ranked if one.label.automatic][: asked["most"]]


def _failures(failed: dict[tuple[int, int], str], named: int) -> None:
    if not failed:
        return
    (layer, one), first = next(iter(failed.items()))
    said = f"{len(failed):,} without a label or score; {layer}.{one}: {first}"
    if not named:
        raise EndpointError(said)
    click.echo(said, err=True)
