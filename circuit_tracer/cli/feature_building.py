"""`circuit-tracer features build` and what else makes, moves or publishes a feature store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from circuit_tracer.cli import clusters, destinations, options
from circuit_tracer.cli.progress import bar
from circuit_tracer.cli.task import Task
from circuit_tracer.errors import InputError

if TYPE_CHECKING:
    import circuit_tracer as ct

HELP = {"help_option_names": ["-h", "--help"], "show_default": True}
STORE = click.option("--store", default="plt", metavar="FILE|plt|clt",
                     help="The feature store; plt and clt are the bundled model's.")  # fmt: skip
OUTPUT = click.option("-o", "--output", type=click.Path(path_type=Path), required=True,
                      metavar="STORE.sqlite", help="The store to write.")  # fmt: skip
QUIET = click.option("-q", "--quiet", is_flag=True, help="Print nothing; the exit status says it.")


class Shard(click.ParamType):
    """One of several shards, `0/4` to `3/4`."""

    name = "K/N"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        parts = str(value).split("/")
        if len(parts) == 2 and all(part.isascii() and part.isdecimal() for part in parts):
            k, n = map(int, parts)
            if k < n:
                return k, n
        return self.fail(f"{value!r} is not a shard, like 0/4 (the first of 0 to 3).", param, ctx)


class Layers(click.ParamType):
    """Some layers, `0-5` or `0,2,4-7`, as a tuple."""

    name = "LAYERS"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        layers: set[int] = set()
        for part in str(value).split(","):
            ends = part.strip().split("-")
            if len(ends) > 2 or not all(end.isascii() and end.isdecimal() for end in ends):
                self.fail(f"{value!r} are no layers, like 0-5 or 0,2,4.", param, ctx)
            first, last = int(ends[0]), int(ends[-1])
            if last < first or last > 9999:
                self.fail(f"{part!r} are no layers: give the first, then the last.", param, ctx)
            layers.update(range(first, last + 1))
        return tuple(sorted(layers))


@click.command(cls=Task, name="build", context_settings=HELP)
@click.option("--text", "sources", multiple=True, required=True, metavar="FILE|DIR|DATASET",
              help="Texts: .txt (one a line), .tsv, .csv or .jsonl with a column text and maybe "
              "language, any of them with .gz after it, a folder of these, or a dataset's name; "
              "give it again for more.")  # fmt: skip
@click.option("--language", default="", metavar="CODE", help="Of texts that do not say it.")
@click.option("--limit", type=options.AT_LEAST_ONE, metavar="N", help="Read so many texts at most.")
@click.option("--top", type=options.AT_LEAST_ONE, default=8, metavar="N",
              help="Strongest examples of a feature to keep.")  # fmt: skip
@click.option("--sample", type=options.AT_LEAST_ONE, default=24, metavar="N",
              help="Examples of a feature to draw evenly.")  # fmt: skip
@click.option("--layers", type=Layers(), metavar="A-B",
              help="Describe only these layers' features, like 0-5; `features join` makes one "
              "store of several.")  # fmt: skip
@click.option("--shard", type=Shard(), metavar="K/N",
              help="Only count every N-th text, from the K-th on; `features merge` puts the shards "
              "together.")  # fmt: skip
@clusters.clustered
@OUTPUT
@options.loading
@QUIET
@options.debug
def build(
    sources: tuple[str, ...],
    language: str,
    limit: int | None,
    shard: tuple[int, int] | None,
    ray: str | None,
    workers: int | None,
    output: Path,
    quiet: bool,
    debug: bool,
    **given: Any,
) -> None:
    """Pass texts through a model and write what fires where as a feature store.

    An interrupted build goes on where it was last saved when the same command is given again; until
    it is done, its counts lie beside the store, in a file that ends in .part.
    """
    from itertools import islice

    from circuit_tracer.features import building as making
    from circuit_tracer.features.corpus import documents

    _check(output)
    clusters.check(ray, workers)
    if ray and shard:
        raise InputError("--ray makes shards of its own: leave --shard out")
    texts = islice(documents(sources, language), limit)
    local = all(Path(source).expanduser().exists() for source in sources)
    total = sum(1 for _ in islice(documents(sources, language), limit)) if local else limit
    kept = {name: given.pop(name) for name in ("top", "sample", "layers")}
    with bar(quiet) as report:
        if ray:
            from circuit_tracer.features.spreading import Corpus, build_on

            corpus = Corpus(sources, language, limit, total)
            build_on(ray, given, corpus, output, workers=workers, **kept, progress=report)
            return _done(quiet, output)
        model = _load(given, report)
        more: dict[str, Any] = {**kept, "total": total, "progress": report}
        if shard is None:
            making.build(model, texts, output, **more)
        else:
            making.count(model, texts, output, shard=shard, **more)
    _done(quiet, output)


@click.command(cls=Task, name="merge", context_settings=HELP)
@click.argument("parts", nargs=-1, required=True, type=click.Path(path_type=Path))
@OUTPUT
@options.loading
@QUIET
@options.debug
def merge(parts: tuple[Path, ...], output: Path, quiet: bool, debug: bool, **given: Any) -> None:
    """Make one store of PARTS, which `features build --shard` counted."""
    from circuit_tracer.features import building as making

    _check(output)
    with bar(quiet) as report:
        making.merge(_load(given, report), parts, output, progress=report)
    _done(quiet, output)


@click.command(cls=Task, name="join", context_settings=HELP)
@click.argument("stores", nargs=-1, required=True, type=click.Path(path_type=Path))
@OUTPUT
@QUIET
@options.debug
def join(stores: tuple[Path, ...], output: Path, quiet: bool, debug: bool) -> None:
    """Make one store of STORES of different layers, which `features build --layers` built."""
    from circuit_tracer.features import joining

    _check(output)
    with bar(quiet) as report:
        joining.join(stores, output, report)
    _done(quiet, output)


@click.command(cls=Task, name="import", context_settings=HELP)
@click.argument("folder", type=click.Path(path_type=Path))
@OUTPUT
@QUIET
@options.debug
def import_(folder: Path, output: Path, quiet: bool, debug: bool) -> None:
    """Make a store of feature files of the reference tool in FOLDER, packed or JSON."""
    from circuit_tracer.features.reference import import_features

    _check(output)
    with bar(quiet) as report:
        import_features(folder, output, report)
    _done(quiet, output)


@click.command(cls=Task, name="export", context_settings=HELP)
@click.argument("folder", type=click.Path(path_type=Path))
@STORE
@click.option("--to", "form", type=click.Choice(["html", "packed", "json"]), default="html",
              help="Pages to read, or feature files of the reference tool.")  # fmt: skip
@QUIET
@options.debug
def export(folder: Path, store: str, form: str, quiet: bool, debug: bool) -> None:
    """Write a store into FOLDER as static pages, or as feature files of the reference tool."""
    from circuit_tracer.features import open_store, site
    from circuit_tracer.features.reference import export_features

    opened = open_store(store)
    with bar(quiet) as report:
        if form == "html":
            site.export(opened, folder, report)
        else:
            export_features(opened, folder, form == "packed", report)
    _done(quiet, folder)


@click.command(cls=Task, name="serve", context_settings=HELP)
@STORE
@click.option("--host", default="127.0.0.1", metavar="ADDRESS",
              help="Who may look; another address lets other machines in.")  # fmt: skip
@click.option("--port", type=click.IntRange(0, 65535), default=8417, metavar="N",
              help="0 takes a free one.")  # fmt: skip
@QUIET
@options.debug
def serve(store: str, host: str, port: int, quiet: bool, debug: bool) -> None:
    """Show a store as a local site, read-only, until interrupted."""
    from circuit_tracer.features import open_store
    from circuit_tracer.features.serving import server

    with server(open_store(store), host, port) as site:
        if not quiet:
            click.echo(f"http://{host}:{site.server_address[1]}/  (Ctrl+C ends it)")
        try:
            site.serve_forever()
        except KeyboardInterrupt:
            return


COMMANDS = (build, merge, join, import_, export, serve)


def _check(output: Path) -> None:
    """Raise unless a store can be written there."""
    if output == destinations.STDOUT:
        raise InputError("a store is a file: give -o a name, not -")
    destinations.check(output)


def _load(given: dict[str, Any], report: Any) -> ct.ReplacementModel:
    report(0.0, "loading the model")
    import circuit_tracer as ct

    return ct.load(**given)


def _done(quiet: bool, output: Path) -> None:
    if not quiet:
        click.echo(destinations.said(output))
