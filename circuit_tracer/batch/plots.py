"""Small plots for the index page, as SVG: some lines of text each, in the page's own colours."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT, FOOT, BINS = 220, 70, 16, 20
BAR = 120


def histogram(values: Sequence[float], title: str) -> str:
    """How values are spread: their median, and bars of equally wide ranges."""
    low, high = min(values), max(values)
    whole = all(isinstance(value, int) for value in values)
    step = (high - low) / BINS or 1.0
    if whole:
        step = max(1, -(-(high - low + 1) // BINS))  # a bar an integer, or an equal number of them
    counts = [0] * (int((high - low) / step) + 1)
    for value in values:
        counts[int((value - low) / step)] += 1
    if not whole and len(counts) > BINS:  # the largest value is the end of the last range
        counts[-2:] = [counts[-2] + counts[-1]]
    ordered = sorted(values)
    half = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
    ends = [f"{low + k * step:.4g}" for k in range(len(counts) + 1)]
    says = [
        f"{count} with {ends[k]}"
        if whole and step == 1
        else f"{count} in {ends[k]} to {ends[k + 1]}"
        for k, count in enumerate(counts)
    ]
    return _figure(counts, says, f"{title}, median {half:.3g}", f"{low:.3g}", f"{high:.3g}")


def layers(values: Sequence[float], title: str) -> str:
    """The mean of something at each layer."""
    says = [f"layer {layer}: {value:.3g}" for layer, value in enumerate(values)]
    return _figure(values, says, f"{title} by layer, mean", "0", str(len(values) - 1))


def interval(mean: float, low: float | None, high: float | None, largest: float) -> str:
    """A share as a bar with its interval, and in words."""
    scale = BAR / largest if largest > 0 else 0.0
    says = f"{100 * mean:.2f} %"
    line = ""
    if low is not None and high is not None:
        says += f" ({100 * low:.2f}–{100 * high:.2f})"
        line = f'<path d="M{low * scale:.1f} 7H{high * scale:.1f}"/>'
    bar = f'<rect width="{mean * scale:.1f}" height="14"/>'
    drawn = f'<svg class="bar" viewBox="0 0 {BAR} 14" width="{BAR}" height="14" aria-hidden="true">'
    return f"{drawn}{bar}{line}</svg> <span>{says}</span>"


def _figure(
    heights: Sequence[float], says: Sequence[str], title: str, first: str, last: str
) -> str:
    most = max((*heights, 0.0)) or 1.0
    wide = WIDTH / max(1, len(heights))
    bars = []
    for k, (height, said) in enumerate(zip(heights, says, strict=True)):
        tall = HEIGHT * height / most
        bars.append(
            f'<rect x="{k * wide:.1f}" y="{HEIGHT - tall:.1f}" width="{max(1.0, wide - 1):.1f}" '
            f'height="{tall:.1f}"><title>{escape(said)}</title></rect>'
        )
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT + FOOT}" role="img" aria-label="{escape(title)}; '
        f'from {first} to {last}">{"".join(bars)}<path d="M0 {HEIGHT}H{WIDTH}"/>'
        f'<text x="0" y="{HEIGHT + FOOT - 3}">{first}</text>'
        f'<text x="{WIDTH}" y="{HEIGHT + FOOT - 3}" text-anchor="end">{last}</text></svg>'
        "</figure>\n"
    )
