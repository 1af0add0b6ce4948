"""An agreement for people: a table for the terminal, a verdict, and a picture.

The picture is three bars a layer, in a page that fetches nothing.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from circuit_tracer.agreement.measure import Agreement, LayerAgreement
from circuit_tracer.errors import InputError
from circuit_tracer.files import write_text

PUBLISHED_TOP1, PUBLISHED_NMSE, PUBLISHED_L0 = 0.50, 0.217, 235
"""Ameisen et al. 2025: the best cross-layer transcoders agree with their model on the likeliest
token at half of all positions; those of Claude 3.5 Haiku have these normalised MSE and L0."""

POOR_TOP1, POOR_NMSE = 0.25, 0.5
HEAD = ("layer", "features", "NMSE", "L0", "dead")


def rows(agreement: Agreement) -> list[tuple[str, ...]]:
    """The table by layer, its head first."""
    return [HEAD, *(_row(layer) for layer in agreement.layers)]


def _row(layer: LayerAgreement) -> tuple[str, ...]:
    if layer.nmse is None or layer.dead is None:
        return (str(layer.layer), "none", "–", "–", "–")
    shares = (f"{layer.nmse:.3f}", f"{layer.l0:.1f}", f"{100 * layer.dead:.1f} %")
    return (str(layer.layer), f"{layer.features:,}", *shares)


def figures(agreement: Agreement) -> list[tuple[str, str]]:
    """What holds of the whole set: (name, said)."""
    said = [
        ("top-1 agreement", f"{100 * agreement.top1:.1f} %"),
        ("KL", f"{agreement.kl:.3f} nats"),
    ]
    increase = agreement.cross_entropy_increase
    if increase is not None:
        was, now = agreement.cross_entropy, agreement.cross_entropy_replaced
        said.append(("cross-entropy", f"{was:.3f} → {now:.3f} nats ({increase:+.3f})"))
    said.append(("NMSE", f"{agreement.nmse:.3f}, mean of layers"))
    said.append(("measured", f"{agreement.positions:,} tokens of {agreement.texts:,} texts"))
    return said


def verdict(agreement: Agreement) -> str:
    """What the figures mean for graphs, beside what is published."""
    published = (
        f"published: {100 * PUBLISHED_TOP1:.0f} % top-1 for the best cross-layer set, NMSE "
        f"{PUBLISHED_NMSE} and L0 {PUBLISHED_L0} for Claude 3.5 Haiku"
    )
    if agreement.top1 >= PUBLISHED_TOP1 and agreement.nmse <= PUBLISHED_NMSE:
        word = "good: at least as close to the model as published sets"
    elif agreement.top1 < POOR_TOP1 or agreement.nmse > POOR_NMSE:
        word = "poor: much of any graph will be errors; do these belong to this model?"
    else:
        word = "fair: short of published sets; look at the error share of each graph"
    count, layers = len(agreement.replaced), len(agreement.layers)
    partly = "" if count == layers else f" Only {count} of {layers} layers are replaced."
    return f"{word} ({published}).{partly}"


def plain(agreement: Agreement) -> dict[str, Any]:
    """As JSON values, with what follows from the figures."""
    return dataclasses.asdict(agreement) | {
        "nmse": agreement.nmse,
        "cross_entropy_increase": agreement.cross_entropy_increase,
        "verdict": verdict(agreement),
    }


def check_suffix(path: Path) -> None:
    """Raise InputError unless a page can be written under this name."""
    if path.suffix.lower() != ".html":
        raise InputError(f"{path} should end in .html: the report is one HTML file")


def write(agreement: Agreement, path: Path) -> None:
    """Write the figures, three bars a layer and the table as one HTML file.

    Raises:
        InputError: another suffix. OutputError: it cannot be written.
    """
    check_suffix(path)
    write_text(path, page(agreement))


def page(agreement: Agreement) -> str:
    """The page as text."""
    from circuit_tracer.view import report

    layers = agreement.layers
    title = f"{agreement.transcoders} in place of the MLPs of {agreement.model}"
    chart = report.bars(
        [layer.layer for layer in layers],
        {
            "normalised MSE": [layer.nmse for layer in layers],
            "L0": [layer.l0 for layer in layers],
            "dead share": [layer.dead for layer in layers],
        },
        title,
        marks={"normalised MSE": PUBLISHED_NMSE},
    )
    return report.page(title, verdict(agreement), figures(agreement), [chart], rows(agreement))
