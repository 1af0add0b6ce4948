"""`circuit-tracer convert`: any transcoders that can be opened, as a folder of one format."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from circuit_tracer.cli import options
from circuit_tracer.cli.destinations import said
from circuit_tracer.cli.progress import bar
from circuit_tracer.cli.task import Task

if TYPE_CHECKING:
    from circuit_tracer.transcoders.base import TranscoderSet


@click.command(cls=Task, name="convert", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST", type=click.Path(path_type=Path))
@click.option(
    "--to",
    "reader",
    type=click.Choice(["reference", "saelens"]),
    help="For whom. reference: refuse what the reference tool would misread, the files are the "
    "same; saelens: in SAELens' format.",
)
@click.option("--model-name", default="", metavar="ID", help="The model they belong to.")
@click.option("--scan", metavar="NAME", help="Where their features are described.")
@click.option("--force", is_flag=True, help="Replace DST if it is a folder of transcoders.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing; the exit status says it.")
@options.debug
def convert(
    source: str,
    destination: Path,
    reader: str | None,
    model_name: str,
    scan: str | None,
    force: bool,
    quiet: bool,
    debug: bool,
) -> None:
    """Write the transcoders SRC as a folder DST.

    SRC is a folder or a hub id (org/repo, org/repo/sub, either with @revision) in any format that
    can be traced with: GemmaScope, GemmaScope 2, SAELens, sparsify, the reference tool's. DST is in
    the reference tool's format, which is also ours: config.yaml and one safetensors file a layer,
    opened without reading it whole. With --to saelens it is a folder a layer, as SAELens reads it.
    Numbers and number types stay as they are.
    """
    from circuit_tracer.transcoders.formats.writing import (
        check_destination,
        write_folder,
        write_saelens,
    )

    check_destination(destination, force)
    found = _opened(source, destination, reader)
    known_name, known_scan = _described(source)
    with bar(quiet) as report:
        named = model_name or known_name
        if reader == "saelens":
            write_saelens(found, destination, model_name=named, replace=force, report=report)
        else:
            write_folder(
                found,
                destination,
                model_name=named,
                scan=scan or known_scan,
                replace=force,
                report=report,
            )
    if not quiet:
        features = sum(len(found.layer(layer).encoder) for layer in found.present)
        click.echo(f"{len(found.present)} layers, {features} features: {said(destination)}")


def _opened(source: str, destination: Path, reader: str | None) -> TranscoderSet:
    """The source's transcoders. Raises OutputError if they may not be written there, or for it."""
    from circuit_tracer.errors import OutputError
    from circuit_tracer.models.load import open_transcoders
    from circuit_tracer.transcoders.formats.writing import unlike_reference

    if Path(source).exists() and destination.resolve() == Path(source).resolve():
        raise OutputError("SRC and DST are the same folder; name another DST")
    found = open_transcoders(source)
    why = unlike_reference(found) if reader == "reference" else None
    if why:
        raise OutputError(f"the reference tool cannot read these transcoders: {why}")
    return found


def _described(source: str) -> tuple[str, str | list[str] | None]:
    """Model name and scan in the config of a local source."""
    from circuit_tracer.transcoders.formats.config import NAME, read_config

    folder = Path(source).expanduser()
    if not (folder / NAME).is_file():
        return "", None
    config = read_config(folder)
    return config.model_name, config.scan
