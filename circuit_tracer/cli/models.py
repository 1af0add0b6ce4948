"""`circuit-tracer models`: the families that can be traced, and public transcoders that fit."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from circuit_tracer.cli import destinations, options
from circuit_tracer.cli.task import Task

if TYPE_CHECKING:
    from circuit_tracer.models.presets import Preset


@click.command(cls=Task, name="models", context_settings={"help_option_names": ["-h", "--help"]})
@options.json_file("Write them as JSON; - prints it and nothing else.")
@click.option("-q", "--quiet", is_flag=True, help="Print the presets' names only.")
@options.debug
def models(json_path: Path | None, quiet: bool, debug: bool) -> None:
    """List the models that can be traced, and words for public ones with transcoders.

    A word is given where a model is: `trace "…" --model gemma`. A model of another architecture is
    checked when it is loaded, and traced if it passes. Nothing is downloaded here.
    """
    destinations.check(json_path)
    from circuit_tracer.files import write_text
    from circuit_tracer.models.families import FAMILIES
    from circuit_tracer.models.presets import PRESETS

    if json_path is not None:
        found = {
            "families": [
                {"name": family.name, "architectures": family.architectures} for family in FAMILIES
            ],
            "presets": [dataclasses.asdict(preset) for preset in PRESETS],
        }
        if json_path == destinations.STDOUT:
            click.echo(json.dumps(found, indent=2))
            return
        write_text(json_path, json.dumps(found, indent=2) + "\n")
    if quiet:
        click.echo("\n".join(preset.name for preset in PRESETS))
        return
    click.echo("Families: " + ", ".join(family.name for family in FAMILIES))
    click.echo("\nPresets (layers × width of the model, features of the whole set where known)")
    for preset in PRESETS:
        click.echo(row(preset))


def row(preset: Preset) -> str:
    """One preset on two lines: what it stands for, and where its transcoders are."""
    features = "" if preset.features is None else f", about {preset.features / 1000:,.0f}k features"
    size = f"{preset.parameters:g}B, {preset.layers} × {preset.d_model}"
    return (
        f"  {preset.name:<16}{preset.model}  ({size})\n"
        f"  {'':<16}{preset.kind.upper()} {preset.transcoders}{features}"
    )
