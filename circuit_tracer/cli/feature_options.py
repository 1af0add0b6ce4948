"""What the commands that read a feature store share: its options, opening it, and writing JSON."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import click

from circuit_tracer.cli import destinations, options

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


def opened(store: str) -> Any:
    """The store of that name."""
    from circuit_tracer.features import open_store

    return open_store(store)


def put(out: dict[str, Any], plain: Any, text: Any) -> None:
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
