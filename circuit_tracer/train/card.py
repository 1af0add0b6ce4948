"""What goes beside the weights: a model card, the figures as JSON, and a page of curves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circuit_tracer.agreement import report
from circuit_tracer.agreement.measure import Agreement
from circuit_tracer.files import write_text
from circuit_tracer.train.moment import Moment
from circuit_tracer.train.settings import Settings
from circuit_tracer.view.curves import Panel, figure
from circuit_tracer.view.report import page

CARD, FIGURES, CURVES = "README.md", "training.json", "report.html"


@dataclass(frozen=True)
class Record:
    """A finished training.

    Attributes:
        model, name: of the model, and of the set.
        settings: how it was trained.
        tokens, epoch_tokens: trained on, repeated ones counted again, and those of the text.
        read, write: the sites.
        moments: what was noted.
        agreement: of the folded set, on text that was held out.
        unlike: why the reference tool would misread the folder, or None.
        seconds: of training.
    """

    model: str
    name: str
    settings: Settings
    tokens: int
    epoch_tokens: int
    read: str
    write: str
    moments: Sequence[Moment]
    agreement: Agreement
    unlike: str | None
    seconds: float


def write_all(record: Record, folder: Path) -> None:
    """Card, figures and curves, into the folder of the set."""
    write_text(folder / CARD, card(record))
    write_text(folder / FIGURES, json.dumps(plain(record), indent=1) + "\n")
    write_text(folder / CURVES, curves(record))


def plain(record: Record) -> dict[str, Any]:
    """Everything as JSON values."""
    return {
        "model": record.model,
        "settings": record.settings.plain(),
        "tokens": record.tokens,
        "epoch_tokens": record.epoch_tokens,
        "seconds": round(record.seconds, 1),
        "read": record.read,
        "write": record.write,
        "agreement": report.plain(record.agreement),
        "unlike_reference": record.unlike,
        "warnings": [worry for moment in record.moments for worry in moment.warnings],
        "moments": [moment.plain() for moment in record.moments],
    }


def card(record: Record) -> str:
    """The model card, in Markdown."""
    settings = record.settings
    what = "Per-layer" if settings.kind == "plt" else "Cross-layer"
    head, *rows = report.rows(record.agreement)
    table = [_row(head), _row(["---"] * len(head)), *map(_row, rows)]
    whole = [f"- {name}: {said}" for name, said in report.figures(record.agreement)]
    worries = [f"- {worry}" for moment in record.moments for worry in moment.warnings]
    knobs = [
        f"- {name}: {json.dumps(value)}"
        for name, value in settings.plain().items()
        if name not in ("kind", "features")
    ]
    reads = "The reference tool reads this folder too."
    if record.unlike:
        reads = f"The reference tool would misread this folder: {record.unlike}."
    parts = [
        f"# {record.name}",
        f"{what} transcoders for `{record.model}`: {settings.features:,} features a layer, "
        f"`{record.read}` → `{record.write}`. Trained on {record.tokens:,} tokens (the text has "
        f"{record.epoch_tokens:,}) in {record.seconds / 60:.1f} minutes. {reads}",
        "## How well they stand in for the MLPs",
        "On text held out of training, first tokens left out. " + report.verdict(record.agreement),
        "\n".join(whole),
        "\n".join(table),
        "## How they were trained",
        "\n".join(knobs),
    ]
    if worries:
        parts += ["## Warnings while training", "\n".join(worries)]
    return "\n\n".join(parts) + "\n"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def curves(record: Record) -> str:
    """The page of curves."""
    moments, agreement = record.moments, record.agreement
    steps = [moment.step for moment in moments]
    loss = {"loss": (steps, [moment.loss for moment in moments])}
    panels = [Panel("loss a layer", "step", "loss", loss, logarithmic=True)]
    for name, title in (("nmse", "normalised MSE"), ("l0", "L0"), ("dead", "dead share")):
        by_layer = {
            f"layer {layer}": (steps, [getattr(moment, name)[layer] for moment in moments])
            for layer in range(len(moments[0].nmse))
        }
        panels.append(Panel(f"{title}, training batches", "step", title, by_layer))
    held = {
        f"layer {layer.layer}": ([layer.l0], [layer.nmse])
        for layer in agreement.layers
        if layer.nmse is not None
    }
    panels.append(Panel("L0 against MSE, held-out text", "L0", "normalised MSE", held, points=True))
    for name, title in (("top1", "top-1 agreement"), ("kl", "KL, nats")):
        seen = [(m.step, getattr(m, name)) for m in moments if getattr(m, name) is not None]
        places, values = zip(*seen, (steps[-1], getattr(agreement, name)), strict=True)
        whole = {"replacement model": (places, values)}
        panels.append(Panel(f"{title}, held-out text", "step", title, whole, points=len(seen) == 0))
    return page(
        f"{record.name} for {record.model}",
        report.verdict(agreement),
        report.figures(agreement),
        [figure(panels)],
        report.rows(agreement),
    )
