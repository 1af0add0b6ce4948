"""What unrelated texts share between two checkpoints or transcoder sets.

Features are matched by what their decoders write, and nearest neighbours that are alike enough turn
up between any two sets: a share of matched features says little by itself. So the features that
each model fires on a text of a corpus are matched with those that the other fires on another text,
by the same rule and with as many candidates, and on the same text beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from circuit_tracer.comparing.activity import firing
from circuit_tracer.comparing.corpus import Corpus
from circuit_tracer.comparing.matching import LEAST_SIMILARITY, directions, mutual
from circuit_tracer.comparing.overlap import Baseline, Estimates, placed
from circuit_tracer.comparing.resampling import drawn_counts, means, same_rows, unrelated_rows
from circuit_tracer.replacement import ReplacementModel
from circuit_tracer.shapes import Float, Int, Tensor


class DecoderBaseline:
    """Features that fire on a corpus, by model; `baselines` compares two of them.

    Attributes:
        corpus: a column a graph, of the same name.
    """

    def __init__(
        self,
        models: Mapping[str, ReplacementModel],
        corpus: Corpus,
        progress: Callable[[float, str], None],
    ):
        self.models, self.corpus = models, corpus
        self._fired: dict[str, list[list[Tensor]]] = {}
        for number, name in enumerate(corpus.languages):
            progress(number / len(corpus.languages), f"corpus, {name}")
            fired = firing(models[name])
            texts = corpus.texts(name)
            self._fired[name] = [[ids for ids, _ in fired(text)] for text in texts]

    def baselines(self, names: tuple[str, ...], ious: Sequence[float]) -> list[Baseline | None]:
        """By layer; None throughout for more than two graphs, or one without a column."""
        if len(names) != 2 or not set(names) <= set(self.corpus.languages):
            return [None] * len(ious)
        rows = len(self.corpus)
        picks = unrelated_rows(self.corpus.groups, 2), same_rows(rows, 2)
        tables = [
            torch.stack([self._layer(names, layer, each) for layer in range(len(ious))], 1)
            for each in picks
        ]
        counts = drawn_counts(rows)
        apart, same = (
            means(table, each, counts) for table, each in zip(tables, picks, strict=True)
        )
        nothing: Estimates = [None] * len(ious)
        return placed(ious, apart, same, tables[0], (nothing, nothing))

    def _layer(
        self, names: tuple[str, ...], layer: int, picks: Int[Tensor, "combination 2"]
    ) -> Float[Tensor, " combination"]:
        """Matched features over all features, of each combination of texts."""
        fired = [[text[layer] for text in self._fired[name]] for name in names]
        every = [torch.cat(texts).unique() for texts in fired]
        places = [
            [torch.searchsorted(ids, text) for text in texts]
            for ids, texts in zip(every, fired, strict=True)
        ]
        one, other = (
            directions(self.models[name], layer, ids)
            for name, ids in zip(names, every, strict=True)
        )
        alike, found = one @ other.T, []
        for a, b in picks.tolist():
            part = alike[places[0][a]][:, places[1][b]]
            matched = len(list(mutual(part, LEAST_SIMILARITY)))
            total = sum(part.shape) - matched
            found.append(matched / total if total else torch.nan)
        return torch.tensor(found, dtype=torch.float64)
