"""Option types and groups of options that several commands share."""

from __future__ import annotations

import math
from typing import Any

import click


class Share(click.ParamType):
    """A share between 0 and 1, both included; NaN is none."""

    name = "share"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        try:
            share = float(value)
        except ValueError:
            share = math.nan
        if not 0 <= share <= 1:
            self.fail(f"{value!r} is not a number between 0 and 1.", param, ctx)
        return share


class FeatureLimit(click.ParamType):
    """How many features to expand: a number, `all`, or `auto`. `all` becomes None."""

    name = "N|all|auto"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str | None:
        if value is None or value == "auto" or isinstance(value, int):
            return value
        if value == "all":
            return None
        if value.isascii() and value.isdecimal():
            return int(value)
        return self.fail(
            f"{value!r} is neither a number (0 or more), nor all, nor auto.", param, ctx
        )


class Positions(click.ParamType):
    """Positions to leave out: `bos`, `none`, or numbers (`0,3`), which become a tuple."""

    name = "bos|none|N,N…"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> str | tuple[int, ...]:
        if value == "bos" or isinstance(value, tuple):
            return value
        if value == "none":
            return ()
        parts = [part.strip() for part in value.split(",")]
        if not all(part.isascii() and part.isdecimal() for part in parts):
            self.fail(f"{value!r} is neither bos, nor none, nor positions like 0,3.", param, ctx)
        return tuple(sorted({int(part) for part in parts}))


DTYPES = ["auto", "float32", "bfloat16", "float16", "float64"]
KERNELS = ["auto", "reference", "triton"]
AT_LEAST_ONE = click.IntRange(min=1)

# What to trace and how; the names are those of `ct.load` and `ct.trace`.
TRACING = (
    click.option("--model", metavar="ID|DIR", help="A model: hub id, id@revision or folder.  "
                 "[default: the bundled one]"),
    click.option("--transcoders", metavar="ID|DIR", help="Its transcoders, named the same way; plt "
                 "or clt for the bundled model."),
    click.option("--target", "targets", multiple=True, metavar="TOKEN", help="An output token to "
                 "explain; give it again for more.  [default: the likeliest]"),
    click.option("--node-threshold", type=Share(), metavar="SHARE", default=0.8,
                 help="Share of the influence that the kept nodes hold."),
    click.option("--edge-threshold", type=Share(), metavar="SHARE", default=0.98,
                 help="Share of the influence that the kept edges hold."),
    click.option("--max-features", type=FeatureLimit(), metavar="N|all|auto", default="auto",
                 help="Features to expand, the most influential first."),
    click.option("--max-logits", type=AT_LEAST_ONE, metavar="N", default=10,
                 help="Output tokens to explain at most."),
    click.option("--logit-probability", type=Share(), metavar="SHARE", default=0.95,
                 help="Output tokens are taken until they hold this probability."),
    click.option("--ignore-positions", type=Positions(), metavar="bos|none|N,N…", default="bos",
                 help="Positions whose features and errors are left out; closure counts them."),
    click.option("--device", metavar="auto|cpu|cuda|mps", default="auto", help="Where to run."),
    click.option("--dtype", type=click.Choice(DTYPES), default="auto",
                 help="Number type of the model's weights."),
    click.option("--kernels", type=click.Choice(KERNELS), default="auto",
                 help="Who does the arithmetic; nothing falls back silently."),
)  # fmt: skip


def tracing(command: Any) -> Any:
    """Give a command all options of `TRACING`, in their order."""
    for option in reversed(TRACING):
        command = option(command)
    return command


def debug(command: Any) -> Any:
    """`--debug`, which every command has: see `task`."""
    return click.option("--debug", is_flag=True, help="Show the traceback of an error.")(command)
