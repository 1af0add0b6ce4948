"""Features as text: one, whole, or many in a table."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from circuit_tracer.features.feature import Example, Feature
    from circuit_tracer.features.store import Row, Store


def listed(rows: list[Row], name: str = "", extra: list[str] | None = None) -> str:
    """A table of features."""
    from circuit_tracer.cli.report import shown, table

    if not rows:
        return "nothing found"
    if not name and any(row.label.score is not None for row in rows):
        name, extra = "score", [number(row.label.score) for row in rows]
    head = ["feature", "fires at", "largest", *([name] if name else []), "label"]
    cells = [
        [f"{row.layer}.{row.id}", percent(row.density), number(row.largest),
         *([extra[k]] if extra else []), shown(row.label.text)]
        for k, row in enumerate(rows)
    ]  # fmt: skip
    return table([head, *cells], right=range(1, len(head) - 1))


def said(feature: Feature, store: Store) -> str:
    """A feature as text; the store knows what related ones are called."""
    from circuit_tracer.cli.report import quoted, shown, table

    lines = [f"{feature.layer}.{feature.id}  {shown(feature.label.text)}"]
    lines.append(f"  fires at {percent(feature.density)} of tokens, mean {number(feature.mean)}, "
                 f"largest {number(feature.largest)}")  # fmt: skip
    if feature.spread.rates:
        rates = [f"{name} {percent(rate)}" for name, rate in feature.spread.rates.items()]
        lines.append(f"  languages  {', '.join(rates)}  (evenness {feature.spread.evenness:.2f})")
    for name, tokens in (("raises", feature.raised), ("lowers", feature.lowered)):
        if tokens:
            lines.append(f"  {name}  {', '.join(quoted(token) for token, _ in tokens)}")
    for group in feature.groups:
        lines += ["", f"{group.name}  {number(group.low)} to {number(group.high)}"]
        rows = [(number(e.activations[e.position]), e.language, _marked(e)) for e in group.examples]
        lines.append(table(rows, right=(0,)))
    for name, kin in (("fires with", feature.coactive), ("similar to", feature.similar)):
        if kin:
            lines += ["", name]
            labels = [store.label(one.layer, one.feature) for one in kin]
            texts = [shown(label.text) if label else "" for label in labels]
            figures = [(f"{one.share:.2f}", f"{one.layer}.{one.feature}") for one in kin]
            rows = [(*pair, text) for pair, text in zip(figures, texts, strict=True)]
            lines.append(table(rows, right=(0,)))
    return "\n".join(lines)


def _marked(example: Example) -> str:
    """The text, with ⟦ ⟧ around the token that the example is of."""
    from circuit_tracer.cli.report import shown

    parts = [shown(token) for token in example.tokens]
    token = parts[example.position]
    blank = " " if token.startswith(" ") else ""
    parts[example.position] = f"{blank}⟦{token[len(blank) :]}⟧"
    return "".join(parts)


def number(value: float | None) -> str:
    """Three digits, or a dash where nothing is known."""
    return "–" if value is None or math.isnan(value) else f"{value:.3g}"


def percent(share: float | None) -> str:
    """A share as a percentage."""
    return "–" if share is None else f"{100 * share:.3g} %"
