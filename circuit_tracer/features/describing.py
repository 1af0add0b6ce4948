"""From counts to a store: examples with what fires around them, outputs, kin.

What was counted is final here, so what is left is worked out from it alone: the pieces of text that
hold examples go through the model once more, and of each feature is written down

    examples    the strongest; some of each quarter of what was drawn, by activation; random ones
    silent      texts drawn among those where other features of its layer fire and it does not,
                but perhaps at the positions that are left out
    outputs     tokens its writing raises and lowers (`notes`)
    coactive    features of lower layers that fire at the same positions: the share of the drawn
                places where both do, less the share of all positions where that feature fires
    similar     features whose decoders, summed over the layers they write to, point the same way
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from circuit_tracer import notes
from circuit_tracer.errors import InputError
from circuit_tracer.features import file
from circuit_tracer.features.firing import firing
from circuit_tracer.features.part import Part
from circuit_tracer.features.similar import similar
from circuit_tracer.features.tally import Counts, Entries, Tally, groups, priority
from circuit_tracer.replacement import ReplacementModel

Progress = Callable[[float, str], None]
Key = tuple[int, int]
"""(feature, piece)."""

PAIRS = 20_000_000
"""Pairs of features that fire together that may wait in memory."""

COMMON = 0.15
"""A word that a feature fires at is named where it has this share of the examples."""

STRONGEST, RANDOM = "Top", "Random"

LOTS = 8
"""Pieces that are looked at for a feature until enough are found where it does not fire."""


@dataclass(frozen=True)
class Detail:
    """How much of a feature is written down.

    Args:
        top: strongest examples shown.
        intervals: quantiles of what was drawn, by activation, the strongest first.
        each: examples of every interval.
        random: examples drawn among all.
        silent: texts in which the feature does not fire.
        tokens: raised, and as many lowered.
        coactive, similar: related features.
        similar_among: "all" features, those of the same "layer", or "auto": all where that is a
            matter of minutes.
    """

    top: int = 6
    intervals: int = 4
    each: int = 3
    random: int = 4
    silent: int = 2
    tokens: int = 8
    coactive: int = 5
    similar: int = 5
    similar_among: Literal["auto", "all", "layer"] = "auto"

    def __post_init__(self) -> None:
        numbers = self.top, self.intervals, self.each, self.random, self.silent, self.tokens
        if min(*numbers, self.coactive, self.similar) < 0 or self.intervals < 1:
            raise InputError("counts of what is written down are 0 or more, intervals 1 or more")


def describe(
    model: ReplacementModel,
    part: Part,
    path: str | os.PathLike[str],
    detail: Detail,
    progress: Progress | None = None,
) -> None:
    """Write the store of a part that is complete."""
    order = sorted(range(len(part.languages)), key=lambda k: part.languages[k])
    about = {
        **_about(part),
        "languages": {part.languages[k]: part.positions[k] for k in order},
    }
    near = similar(model, detail.similar, detail.similar_among, part.settings.layers)
    said: set[int] = set()

    def records() -> Iterator[file.Record]:
        for layers in _batches(part):
            again = _Reread(model, part, detail, layers)
            again.read(progress)
            for layer in layers:
                yield from _records(again, layer, order, near[layer])

    def pieces() -> Iterator[file.Piece]:
        for _, ids, language in part.pieces():
            said.update(ids)
            yield file.Piece(ids, language)

    def tokens() -> Iterator[tuple[int, str]]:
        yield from ((token, model.token_text(token)) for token in sorted(said))

    file.write(path, about, records(), pieces(), tokens())


def _records(
    again: _Reread, layer: int, order: Sequence[int], near: Sequence[list]
) -> Iterator[file.Record]:
    """What is written down of a layer's features, in order.

    Args:
        order: the languages in the order they are written in.
        near: of each feature, those that are similar.
    """
    tally, k = again.part.tallies[layer], again.detail.tokens
    outputs = _outputs(again.model, layer, tally.features, k)
    mean, shown, coactive = tally.mean(), again.shown(layer), again.coactive(layer)
    words = again.words(layer)
    for one in range(tally.features):
        raised, lowered = outputs[one]
        fires = tally.count[one] > 0
        yield file.Record(
            layer,
            one,
            count=int(tally.count[one]),
            largest=float(tally.largest[one]) if fires else 0.0,
            mean=float(mean[one]),
            fires=words[one],
            says=tuple(token.strip() for token, _ in raised[:3]),
            detail={
                "bins": _run(tally.bins[one]),
                "spoken": tally.spoken[one, order].tolist() if fires else [],
                **shown[one],
                "raised": [token for token, _ in raised],
                "raised_by": [value for _, value in raised],
                "lowered": [token for token, _ in lowered],
                "lowered_by": [value for _, value in lowered],
                "coactive": coactive.get(one, []),
                "similar": near[one],
            },
        )


def _about(part: Part) -> dict[str, Any]:
    settings = part.settings
    return {
        "model": settings.model,
        "transcoders": settings.transcoders,
        "kind": settings.kind,
        "widths": settings.widths,
        "texts": part.done,
        "positions": sum(part.positions),
    }


def _batches(part: Part) -> Iterator[list[int]]:
    """Layers that are read together: as many as fit, so that texts are read again seldom."""
    positions = max(1, sum(part.positions))
    batch, pairs, upstream = list[int](), 0.0, 0.0
    for layer, tally in enumerate(part.tallies):
        if tally.whole:
            mine = len(tally.sampled) * upstream
            if batch and pairs + mine > PAIRS:
                yield batch
                batch, pairs = [], 0.0
            batch.append(layer)
            pairs += mine
        upstream += tally.count.sum() / positions
    yield batch


@dataclass
class _Reread:
    """The pieces that hold examples of some layers, read once more."""

    model: ReplacementModel
    part: Part
    detail: Detail
    layers: Sequence[int]
    around: dict[int, dict[Key, list[float]]] = field(default_factory=dict)
    weights: dict[int, dict[int, dict[str, float]]] = field(default_factory=dict)
    pairs: dict[int, list[np.ndarray]] = field(default_factory=dict)
    silent: dict[int, dict[int, list[tuple[int, list[float]]]]] = field(default_factory=dict)

    def read(self, progress: Progress | None) -> None:
        wanted = {layer: self._wanted(layer) for layer in self.layers}
        for layer in self.layers:
            self.around[layer], self.pairs[layer] = {}, []
            self.weights[layer] = defaultdict(lambda: defaultdict(float))
            self.silent[layer] = defaultdict(list)
        lots = {layer: _Lots.drawn(self.part.tallies[layer]) for layer in self.layers}
        total = len(self.part.needed())
        for done, (number, ids, _) in enumerate(self.part.pieces()):
            here = {layer: _of_piece(entries, number) for layer, entries in wanted.items()}
            if any(len(entries) for entries, _ in here.values()):
                found = list(firing(self.model, torch.tensor(ids), max(self.layers) + 1))
                texts = [self.model.token_text(token).strip() for token in ids]
                for layer, (entries, drawn) in here.items():
                    self._around(layer, entries, found[layer], texts)
                    self._together(layer, entries[drawn], found[:layer])
                    self._quiet(layer, number, lots[layer], found[layer])
            if progress is not None and done % 64 == 0:
                every = self.part.settings.layers
                before = sum(layer < self.layers[0] for layer in every)
                share = (before + len(self.layers) * done / total) / len(every)
                progress(share, f"examples: {done:,} of {total:,} pieces of text")

    def _quiet(self, layer: int, number: int, lots: _Lots, found: Entries) -> None:
        """Note the piece for features it was drawn for and that fire at none of its positions

        but those that are left out; what they do there is noted too.
        """
        left_out = np.isin(found["position"], self.model.ignored_by_default([]))
        for one in lots.of(number, found[~left_out]):
            if len(self.silent[layer][one]) < self.detail.silent:
                own = found[left_out & (found["feature"] == one)]
                flat = [part for _, a, _, at in own.tolist() for part in (at, rounded(a))]
                self.silent[layer][one].append((number, flat))

    def _wanted(self, layer: int) -> tuple[Entries, np.ndarray]:
        """(entries by piece, whether each was drawn): the strongest, then the drawn ones."""
        tally = self.part.tallies[layer]
        both = np.concatenate([tally.strongest, tally.sampled])
        drawn = np.arange(len(both)) >= len(tally.strongest)
        order = np.argsort(both["piece"], kind="stable")
        return both[order], drawn[order]

    def _around(self, layer: int, entries: Entries, found: Entries, texts: list[str]) -> None:
        """What the feature of each entry does all over its piece, and the word it fires at."""
        order = np.lexsort((found["position"], found["feature"]))
        found = found[order]
        low = np.searchsorted(found["feature"], entries["feature"], side="left")
        high = np.searchsorted(found["feature"], entries["feature"], side="right")
        for (one, value, piece, position), start, end in zip(
            entries.tolist(), low.tolist(), high.tolist(), strict=True
        ):
            self.weights[layer][one][texts[position]] += value
            if (one, piece) not in self.around[layer]:
                fires = found[start:end]
                cells = zip(fires["position"].tolist(), fires["value"].tolist(), strict=True)
                flat = [part for place, a in cells for part in (place, rounded(a))]
                self.around[layer][one, piece] = flat

    def _together(self, layer: int, drawn: Entries, below: Sequence[Entries]) -> None:
        """Pairs (feature, feature of a lower layer) that fire at the drawn positions."""
        if not below or not len(drawn):
            return
        starts = np.cumsum([0, *self.part.settings.widths])
        codes = np.concatenate([starts[k] + one["feature"] for k, one in enumerate(below)])
        places = np.concatenate([one["position"] for one in below])
        order = np.argsort(places, kind="stable")
        codes, places = codes[order], places[order]
        low = np.searchsorted(places, drawn["position"], side="left")
        lengths = np.searchsorted(places, drawn["position"], side="right") - low
        steps = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        features = np.repeat(drawn["feature"].astype(np.int64), lengths)
        pairs = features * starts[-1] + codes[np.repeat(low, lengths) + steps]
        self.pairs[layer].append(pairs)

    def coactive(self, layer: int) -> dict[int, list[list[Any]]]:
        """By feature, [layer, id, places together, places drawn] of the closest."""
        if not self.pairs[layer]:
            return {}
        starts = np.cumsum([0, *self.part.settings.widths])
        pairs, together = np.unique(np.concatenate(self.pairs[layer]), return_counts=True)
        features, codes = np.divmod(pairs, starts[-1])
        drawn = np.bincount(self.part.tallies[layer].sampled["feature"])[features]
        counts = np.concatenate([tally.count for tally in self.part.tallies[:layer]])
        closeness = together / drawn - counts[codes] / sum(self.part.positions)
        kept = (together > 1) & (closeness > 0)
        order = np.lexsort((codes[kept], -closeness[kept], features[kept]))
        out: dict[int, list[list[Any]]] = defaultdict(list)
        columns = (x[kept][order].tolist() for x in (features, codes, together, drawn))
        for one, code, both, of in zip(*columns, strict=True):
            if len(out[one]) < self.detail.coactive:
                at = int(np.searchsorted(starts, code, side="right")) - 1
                out[one].append([at, code - int(starts[at]), both, of])
        return out

    def shown(self, layer: int) -> list[dict[str, Any]]:
        """By feature, its examples: the pieces they are from, what it does all over each, and

        groups [name, piece, position, piece, position, …], a piece by its place among these.
        """
        tally = self.part.tallies[layer]
        places = {number: place for place, number in enumerate(self.part.needed().tolist())}
        by_strength = groups(tally.strongest, tally.features)
        by_lot = groups(tally.sampled, tally.features)
        out = []
        for strong, lot in zip(by_strength, by_lot, strict=True):
            chosen = [(STRONGEST, strong[: self.detail.top])]
            ranked = lot[np.argsort(-lot["value"], kind="stable")]
            parts = np.array_split(ranked, min(self.detail.intervals, max(1, len(ranked))))
            for number, some in enumerate(parts, 1):
                ends = np.linspace(0, len(some) - 1, min(self.detail.each, len(some))).round()
                chosen.append((f"Interval {number}", some[ends.astype(int)]))
            chosen.append((RANDOM, lot[: self.detail.random]))
            out.append(self._examples(layer, chosen, places))
        for one, pieces in self.silent[layer].items():
            if out[one]["groups"]:
                held = out[one]["pieces"]
                out[one]["silent"] = list(range(len(held), len(held) + len(pieces)))
                held += [places[number] for number, _ in pieces]
                out[one]["flat"] += [flat for _, flat in pieces]
        return out

    def _examples(
        self, layer: int, chosen: list[tuple[str, Entries]], places: dict[int, int]
    ) -> dict[str, Any]:
        pieces: dict[int, list[float]] = {}
        groups = []
        for name, entries in chosen:
            group: list[Any] = [name]
            for one, _, piece, position in entries.tolist():
                pieces.setdefault(piece, self.around[layer][one, piece])
                group += [list(pieces).index(piece), position]
            if len(entries):
                groups.append(group)
        numbers = [places[piece] for piece in pieces]
        flat = list(pieces.values())
        return {"groups": groups, "pieces": numbers, "flat": flat, "silent": []}

    def words(self, layer: int) -> list[tuple[str, ...]]:
        """By feature, up to three words that it mostly fires at, by their share of activation."""
        out = []
        for one in range(self.part.settings.widths[layer]):
            weights = self.weights[layer].get(one, {})
            total = sum(weights.values())
            ranked = sorted(weights, key=lambda word: (-weights[word], word))
            out.append(tuple(w for w in ranked[:3] if w and weights[w] >= COMMON * total))
        return out


@dataclass(frozen=True)
class _Lots:
    """Pieces drawn for every feature of a layer; those where it does not fire are its silent ones.

    They are drawn by hash among the pieces that hold examples of the layer, so that the same
    counts give the same pieces.
    """

    pieces: Counts
    features: Counts

    @classmethod
    def drawn(cls, tally: Tally) -> _Lots:
        kept = np.unique(np.concatenate([tally.strongest["piece"], tally.sampled["piece"]]))
        features = np.repeat(np.arange(tally.features), LOTS)
        turn = np.tile(np.arange(LOTS, dtype=np.int32), tally.features)
        pieces = (
            kept[priority(features, turn) % np.uint64(max(1, len(kept)))] if len(kept) else kept
        )
        order = np.argsort(pieces, kind="stable")
        return cls(pieces[order], features[order[: len(pieces)]])

    def of(self, number: int, found: Entries) -> list[int]:
        """The features for which a piece was drawn, and that do not fire in it."""
        low, high = np.searchsorted(self.pieces, [number, number + 1])
        return np.setdiff1d(self.features[low:high], found["feature"]).tolist()


def _of_piece(wanted: tuple[Entries, np.ndarray], number: int) -> tuple[Entries, np.ndarray]:
    entries, drawn = wanted
    low, high = np.searchsorted(entries["piece"], [number, number + 1])
    return entries[low:high], drawn[low:high]


def _outputs(
    model: ReplacementModel, layer: int, features: int, k: int
) -> list[tuple[list[tuple[str, float]], list[tuple[str, float]]]]:
    """By feature, (tokens raised, tokens lowered)."""
    vocabulary, out = model.adapter.vocabulary, []
    within = int(notes.BUDGET / (2 * vocabulary * model.adapter.d_model))
    step = max(30, min(within, 2**25 // vocabulary))
    for start in range(0, features, step):
        keys = [(layer, one) for one in range(start, min(features, start + step))]
        found = notes.describe(model, keys, k) if k else {}
        for key in keys:
            note = found.get(key)
            pairs = (note.promoted, note.suppressed) if note else ((), ())
            up, down = ([(token, rounded(value)) for token, value in some] for some in pairs)
            out.append((up, down))
    return out


def _run(counts: Counts) -> list[int]:
    """[the first bin that holds anything, counts from it to the last that does]."""
    (held,) = counts.nonzero()
    return [int(held[0]), *counts[held[0] : held[-1] + 1].tolist()] if len(held) else []


def rounded(value: float) -> float:
    """Three significant digits, which is what examples are kept in."""
    return float(f"{value:.3g}")
