"""The two programs: `trace`, which does one thing, and `circuit-tracer`, which holds everything."""

from __future__ import annotations

from importlib import import_module

import click

from circuit_tracer.cli.task import Tasks
from circuit_tracer.cli.trace import trace

__all__ = ["main", "trace"]

EPILOG = "Exit status: 0 done, 1 the work failed, 2 the words were wrong."

COMMANDS = {
    "attribute": "attribute",
    "batch": "batch",
    "check": "check",
    "compare": "compare",
    "convert": "convert",
    "doctor": "doctor",
    "features": "features",
    "graft": "graft",
    "intervene": "intervene",
    "models": "models",
    "open": "open",
    "publish": "publish",
    "query": "model_questions",
    "steer": "steer",
    "swap": "swap",
    "trace": "trace",
    "train": "train",
}
"""Name of a command → module of this package that holds it."""


class Commands(Tasks):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"circuit_tracer.cli.{COMMANDS[cmd_name]}")
        command: click.Command = getattr(module, "open_file" if cmd_name == "open" else cmd_name)
        return command


@click.group(
    name="circuit-tracer",
    cls=Commands,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="trace-circuits", message="trace-circuits %(version)s")
def main() -> None:
    """Trace how a language model arrives at its next token."""
