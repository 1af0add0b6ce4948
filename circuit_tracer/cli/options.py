"""Option types and groups of options that several commands share."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import circuit_tracer as ct
    from circuit_tracer.features.labels import Labels

FEATURE = r"L?([0-9]+)[.#]([0-9]+)"
"""A feature, `3.417` or `L3#417` as reports write it: layer and id."""


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


class KeepEdges(click.ParamType):
    """What share of each row is stored: above 0 and at most 1, or `auto`."""

    name = "SHARE|auto"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float | str:
        if value == "auto":
            return "auto"
        try:
            share = float(value)
        except ValueError:
            share = math.nan
        if not 0 < share <= 1:
            self.fail(f"{value!r} is neither a share, above 0 and at most 1, nor auto.", param, ctx)
        return share


class EdgeCount(click.ParamType):
    """A number of edges: a number, `all`, `none` or `auto`. `auto` becomes None."""

    name = "N|all|none|auto"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | None:
        if value is None or isinstance(value, int):
            return value
        if value in ("all", "none", "auto"):
            return {"all": sys.maxsize, "none": 0, "auto": None}[value]
        if value.isascii() and value.isdecimal():
            return int(value)
        return self.fail(f"{value!r} is neither a number, nor all, none or auto.", param, ctx)


class Positions(click.ParamType):
    """Positions to leave out: `bos`, `special`, `none`, or numbers (`0,3`) as a tuple."""

    name = "bos|special|none|N,N…"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> str | tuple[int, ...]:
        if value in ("bos", "special") or isinstance(value, tuple):
            return value
        if value == "none":
            return ()
        parts = [part.strip() for part in value.split(",")]
        if not all(part.isascii() and part.isdecimal() for part in parts):
            self.fail(
                f"{value!r} is neither bos, nor special, nor none, nor positions like 0,3.",
                param,
                ctx,
            )
        return tuple(sorted({int(part) for part in parts}))


class FeatureAt(click.ParamType):
    """A feature at a position, `3.417@5` (`L3#417@5` as reports write it), as three numbers."""

    name = "LAYER.ID@POSITION"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int, int]:
        found = re.fullmatch(rf"{FEATURE}@(-?[0-9]+)", value)
        if found is None:
            self.fail(f"{value!r} is not a feature at a position, like 3.417@5.", param, ctx)
        layer, feature, position = map(int, found.groups())
        return layer, position, feature


DTYPES = ["auto", "float32", "bfloat16", "float16", "float64"]
KERNELS = ["auto", "reference", "triton"]
AT_LEAST_ONE = click.IntRange(min=1)

# What to explain, and where it is read.
TARGETS = (
    click.option("--target", "targets", multiple=True, metavar="TOKEN", help="An output token to "
                 "explain; give it again for more.  [default: the likeliest]"),
    click.option("--target-difference", "differences", multiple=True, nargs=2, metavar="A B",
                 help="Explain why token A and not B: logit(A) − logit(B)."),
    click.option("--target-feature", "features", multiple=True, type=FeatureAt(),
                 metavar="LAYER.ID@POSITION", help="Explain the pre-activation of a feature, also "
                 "of one that does not fire."),
    click.option("--position", "positions", multiple=True, type=int, metavar="N",
                 help="Where tokens and differences are read; -1 is the last.  [default: -1]"),
    click.option("--answer", metavar="TEXT", help="Explain every token of this answer to the "
                 "prompt."),
)  # fmt: skip

# Which model to load and where to; the names are those of `ct.load`.
NAMES = (
    click.option("--model", metavar="ID|DIR", help="A model: hub id, id@revision, folder, "
                 "or a preset's word (circuit-tracer models).  [default: the bundled one]"),
    click.option("--transcoders", metavar="ID|DIR", help="Its transcoders, named the same way; plt "
                 "or clt for the bundled model."),
)  # fmt: skip
DEVICE = click.option("--device", metavar="auto|cpu|cuda|mps|balanced", default="auto",
                      help="Where to run; balanced spreads the layers over several "
                      "GPUs.")  # fmt: skip
OFFLOAD = click.option("--offload", type=click.Choice(["cpu", "disk"]),
                       help="Keep the model's layers there and fetch one at a time; "
                       "slower.")  # fmt: skip
DTYPE = click.option("--dtype", type=click.Choice(DTYPES), default="auto",
                     help="Number type of the model's weights.")  # fmt: skip
PLACE = (DEVICE, OFFLOAD, DTYPE)
LOADING = (*NAMES, *PLACE)

# What to trace and how; the names are those of `ct.load` and `ct.trace`.
TRACING = (
    *NAMES,
    *TARGETS,
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
    click.option("--ignore-positions", type=Positions(), metavar="bos|special|none|N,N…",
                 default="bos", help="Positions whose features and errors are left out; closure "
                 "counts them."),
    click.option("--chat", is_flag=True, help="PROMPT is what a user says: put it into the "
                 "tokenizer's chat template."),
    *PLACE,
    click.option("--kernels", type=click.Choice(KERNELS), default="auto",
                 help="Who does the arithmetic; nothing falls back silently."),
)  # fmt: skip


def several(options: Sequence[Callable[[Any], Any]]) -> Callable[[Any], Any]:
    """A decorator that gives a command some options, in their order."""

    def given(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return given


tracing, targets, loading, place = map(several, (TRACING, TARGETS, LOADING, PLACE))


def named(given: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `ct.load` among the options of a command."""
    names = ("model", "transcoders", "device", "dtype", "offload")
    return {name: given[name] for name in names if name in given}


def load(given: dict[str, Any], report: Callable[[float, str], None]) -> ct.ReplacementModel:
    """The model that a command's options name."""
    report(0.0, "importing torch and transformers")
    import circuit_tracer as ct

    loader = ct.load
    report(0.1, f"loading {given['model'] or 'the bundled model'}")
    model = loader(**named(given))
    sets = model.transcoders
    without = [str(layer) for layer in range(sets.n_layers) if layer not in sets.present]
    if without and not given.get("quiet"):
        layers = f"layer{'s' if len(without) > 1 else ''} {', '.join(without)}"
        said = f"no transcoder for {layers}: what the MLP does there counts as error"
        click.echo(f"{sets.name} has {said}", err=True)
    return model


def labels(command: Any) -> Any:
    """`--labels`: what features are called."""
    return click.option(
        "--labels",
        type=click.Path(path_type=Path),
        metavar="FILE.json",
        help="What features are called: a file that a page saved, or an export from Neuronpedia.",
    )(command)


def read_labels(path: Path | None) -> Labels:
    """The labels that `--labels` names; none where it was not given."""
    if path is None:
        return {}
    from circuit_tracer.features.labels import read

    return read(path)


def json_file(help: str) -> Callable[[Any], Any]:
    """`--json FILE.json|-`, which arrives as `json_path`."""
    return click.option(
        "--json",
        "json_path",
        type=click.Path(path_type=Path),
        metavar="FILE.json|-",
        help=help,
    )


def page_file(help: str) -> Callable[[Any], Any]:
    """`-o FILE.html`, which arrives as `output`."""
    return click.option(
        "-o",
        "--output",
        type=click.Path(path_type=Path),
        metavar="FILE.html",
        help=help,
    )


def keep_edges(command: Any) -> Any:
    """`--keep-edges`: which edges of a row are stored."""
    return click.option(
        "--keep-edges",
        type=KeepEdges(),
        metavar="SHARE|auto",
        default="auto",
        help="Store the strongest edges that hold this share of each row; auto for all where they "
        "fit into memory.",
    )(command)


def debug(command: Any) -> Any:
    """`--debug`, which every command has: see `task`."""
    return click.option("--debug", is_flag=True, help="Show the traceback of an error.")(command)
