"""The two programs: `trace`, which does one thing, and `circuit-tracer`, which holds everything."""

from __future__ import annotations

import click

from circuit_tracer.cli.attribute import attribute
from circuit_tracer.cli.batch import batch
from circuit_tracer.cli.check import check
from circuit_tracer.cli.compare import compare
from circuit_tracer.cli.convert import convert
from circuit_tracer.cli.doctor import doctor
from circuit_tracer.cli.features import features
from circuit_tracer.cli.graft import graft
from circuit_tracer.cli.intervene import intervene
from circuit_tracer.cli.model_questions import query
from circuit_tracer.cli.models import models
from circuit_tracer.cli.open import open_file
from circuit_tracer.cli.publish import publish
from circuit_tracer.cli.steer import steer
from circuit_tracer.cli.swap import swap
from circuit_tracer.cli.trace import trace
from circuit_tracer.cli.train import train

__all__ = ["main", "trace"]

EPILOG = "Exit status: 0 done, 1 the work failed, 2 the words were wrong."


@click.group(
    name="circuit-tracer",
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="trace-circuits", message="trace-circuits %(version)s")
def main() -> None:
    """Trace how a language model arrives at its next token."""


for command in (
    trace,
    attribute,
    batch,
    check,
    compare,
    convert,
    doctor,
    models,
    intervene,
    graft,
    open_file,
    publish,
    query,
    steer,
    swap,
    train,
):
    main.add_command(command)
main.add_command(features)
