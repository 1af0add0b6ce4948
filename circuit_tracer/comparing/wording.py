"""A comparison in words: sentences that its numbers bear out, and what stands in their way."""

from __future__ import annotations

from typing import TYPE_CHECKING

from circuit_tracer.comparing.overlap import FEW_ROWS, LayerOverlap, Overlap, SetOverlap
from circuit_tracer.summary import percent

if TYPE_CHECKING:
    from circuit_tracer.comparing.comparison import Comparison

SPELLED_OUT = 3


def sentences(comparison: Comparison) -> list[str]:
    """What the comparison says."""
    classes, names, total = comparison.classes, comparison.names, len(comparison.features)
    everyone = "both" if len(names) == 2 else f"all {len(names)}"
    held = ", ".join(f"{percent(classes['shared'].influence[name])} in {name}" for name in names)
    alone = ", ".join(f"{classes[f'only {name}'].count} in {name} only" for name in names)
    said = [
        f"Of {total:,} features in the circuit of at least one of {', '.join(names)}, "
        f"{classes['shared'].count:,} are active in {everyone}"
        + (f", {classes['some'].count:,} in some" if len(names) > 2 else "")
        + f", {alone}.",
        f"Those active in {everyone} hold {held} of the influence of these features.",
        f"{len(comparison.kept_in_all):,} are in the circuit of {everyone}.",
    ]
    said.append(_about_supernodes(comparison))
    said.append(_about_layers(comparison.overlap.all))
    said += _about_baseline(comparison.overlap)
    return [sentence for sentence in said if sentence]


def _about_supernodes(comparison: Comparison) -> str:
    found, size = comparison.supernodes(), len(comparison.names)
    if not found:
        return ""
    said = "1 supernode turns" if len(found) == 1 else f"{len(found)} supernodes turn"
    if size == 2:
        return f"{said} up in both circuits."
    whole = sum(len(one.members) == size for one in found)
    return f"{said} up in at least two circuits, {whole or 'none'} of them in all {size}."


def _about_layers(overlap: SetOverlap) -> str:
    known = [layer for layer in overlap.layers if layer.iou == layer.iou and not layer.few]
    if not known:
        return "Too few features are active to speak of overlap by layer."
    best = max(known, key=lambda layer: (layer.iou, -layer.layer))
    return (
        f"Overlap is highest in layer {best.layer}, where {percent(best.iou)} of the features "
        "active anywhere are active everywhere."
    )


def _about_baseline(overlap: Overlap) -> list[str]:
    """Each pair against unrelated texts; of many pairs the two ends."""
    peaks = [(pair, *found) for pair in overlap.pairs if (found := _clear(pair)) is not None]
    if not peaks:
        return []
    if len(peaks) <= SPELLED_OUT:
        return [_about_pair(pair, clear, known, peak) for pair, clear, known, peak in peaks]
    most = sum(2 * clear > known for _, clear, known, _ in peaks)
    low, high = (end(peaks, key=lambda found: (found[3].iou, found[0].names)) for end in (min, max))
    return [
        f"{most} of {len(peaks)} pairs share more than the mean of unrelated texts in most layers; "
        f"the highest overlap of a pair is between {_peak(low[0], low[3])} and "
        f"{_peak(high[0], high[3])}."
    ]


def _clear(pair: SetOverlap) -> tuple[int, int, LayerOverlap] | None:
    """(layers above the interval of unrelated texts, layers that say something, the highest)."""
    known = [layer for layer in pair.layers if layer.baseline is not None and not layer.few]
    if not known:
        return None
    clear = [one for one in known if one.baseline and one.iou > one.baseline.unrelated.high]
    return len(clear), len(known), max(clear or known, key=lambda one: (one.iou, -one.layer))


def _about_pair(pair: SetOverlap, clear: int, known: int, peak: LayerOverlap) -> str:
    joint = "–".join(pair.names)
    if not clear or peak.baseline is None:
        return f"{joint} share no more than unrelated texts in any layer."
    return (
        f"{joint} share more than the mean of unrelated texts in {clear} of {known} layers; in "
        f"layer {peak.layer}, {percent(peak.iou)} against {percent(peak.baseline.unrelated.mean)}, "
        f"which is above {percent(peak.baseline.above)} of unrelated pairs."
    )


def _peak(pair: SetOverlap, layer: LayerOverlap) -> str:
    said = "" if layer.baseline is None else percent(layer.baseline.unrelated.mean)
    return f"{percent(layer.iou)} ({'–'.join(pair.names)}, layer {layer.layer}; unrelated {said})"


def notices(
    overlap: Overlap, absent: list[str], corpus_given: bool, one_prompt: bool
) -> tuple[str, ...]:
    """What to keep in mind.

    Args:
        absent: names without a column in the corpus.
        one_prompt: all graphs are of the same words.
    """
    said = []
    if not corpus_given:
        corpus = "texts to run" if one_prompt else "a parallel corpus of these languages"
        said.append(
            f"There is no baseline: without {corpus} (--corpus) an overlap cannot be told from "
            "what any two texts share."
        )
    elif absent:
        said.append(f"The corpus has no column {', '.join(absent)}: no baseline with these.")
    elif overlap.rows < FEW_ROWS:
        said.append(
            f"The corpus has {overlap.rows} rows only: its intervals say little; "
            f"give at least {FEW_ROWS}."
        )
    few = [layer.layer for layer in overlap.all.layers if layer.few]
    if few:
        said.append(
            f"Too few features are active to conclude anything in layer {', '.join(map(str, few))}."
        )
    if not one_prompt:
        said.append(
            "One prompt a side: differences may be of these words and not of their languages. Rows "
            "of the corpus are where languages are compared."
        )
    return tuple(said)
