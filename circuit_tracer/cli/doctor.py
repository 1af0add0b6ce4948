"""`circuit-tracer doctor`: the findings of `circuit_tracer.doctor` as a table or as JSON."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from circuit_tracer.cli import destinations, options
from circuit_tracer.cli.task import Task
from circuit_tracer.errors import InputError

if TYPE_CHECKING:
    from circuit_tracer.models.placement import Offload

MARKS = {True: "✓", False: "✗"}


@click.command(cls=Task, name="doctor", context_settings={"help_option_names": ["-h", "--help"]})
@options.json_file("Write the findings as JSON; - prints them and nothing else.")
@click.option(
    "--model",
    metavar="ID|DIR",
    help="Also load this model and hold its arithmetic against what tracing takes it to be.",
)
@options.OFFLOAD
@click.option("-q", "--quiet", is_flag=True, help="Print nothing; the exit status says it.")
@options.debug
@click.pass_context
def doctor(
    ctx: click.Context,
    json_path: Path | None,
    model: str | None,
    offload: Offload,
    quiet: bool,
    debug: bool,
) -> None:
    """Say what this machine can do, and how to mend what is missing.

    Exit status 1 if something is missing that tracing the bundled model needs, or --model cannot
    be traced.
    """
    if offload is not None and model is None:
        raise InputError("--offload says where the layers of --model live: give --model too")
    destinations.check(json_path)
    from circuit_tracer.doctor import examine, examine_model
    from circuit_tracer.files import write_text

    findings = examine() if model is None else [*examine(), *examine_model(model, offload)]
    as_json = json.dumps([dataclasses.asdict(finding) for finding in findings], indent=2)
    if json_path == destinations.STDOUT:
        click.echo(as_json)
    elif json_path is not None:
        write_text(json_path, as_json + "\n")
    if not quiet and json_path != destinations.STDOUT:
        for finding in findings:
            mark = MARKS[finding.ok] if finding.ok or finding.needed else "–"
            click.echo(f"{mark} {finding.name:<14}{finding.found}")
            if finding.remedy:
                click.echo(f"  {'':<14}→ {finding.remedy}")
    if any(finding.needed and not finding.ok for finding in findings):
        ctx.exit(1)
