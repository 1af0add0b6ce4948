"""The options of commands that can work on a cluster."""

from __future__ import annotations

from typing import Any

import click

from circuit_tracer.cli import options
from circuit_tracer.errors import InputError

OPTIONS = (
    click.option("--ray", metavar="auto|ADDRESS", help="Work on a Ray cluster: the one this "
                 "machine belongs to (this machine alone where it belongs to none), or "
                 "HOST:PORT."),
    click.option("--workers", type=options.AT_LEAST_ONE, metavar="N", help="Workers there, each "
                 "with its own copy of the model.  [default: one a GPU, or one a machine]"),
)  # fmt: skip


def clustered(command: Any) -> Any:
    """Give a command `--ray` and `--workers`."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def check(ray: str | None, workers: int | None) -> None:
    """Raise InputError where the two do not go together."""
    if workers and not ray:
        raise InputError("--workers says how many workers a cluster has: give --ray too")
