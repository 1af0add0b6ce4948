"""Activity: what fires on a parallel corpus, and the language of a feature.

One forward pass a text, no tracing. Per text and feature the largest activation is kept, the first
token (and whatever else a graph ignores) left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from circuit_tracer.comparing.corpus import Corpus
from circuit_tracer.comparing.profile import Key
from circuit_tracer.errors import InputError
from circuit_tracer.replacement import ReplacementModel
from circuit_tracer.shapes import Float, Int, Tensor

Verdict = Literal["agnostic", "specific", "mixed", "unknown"]
Fired = tuple[Tensor, Tensor]
"""Ids of the features that fire in a text, ascending, and how strongly."""

AGNOSTIC, SPECIFIC, LEAST_TEXTS = 0.8, 0.8, 5


@dataclass(frozen=True)
class Spread:
    """How the activation of a feature spreads over languages.

    Attributes:
        rates: share of the texts of each language that it fires in.
        means: mean over the texts of each language of its largest activation there.
        texts: how many texts it fires in, of all languages.
        evenness: entropy of `means` over its greatest possible value: 1 where all languages are
            alike, 0 where one has it all; NaN where it never fires.
        language: the language with the largest mean, None where it never fires.
        largest: that language's share of the sum of the means; NaN where it never fires.
    """

    rates: dict[str, float]
    means: dict[str, float]
    texts: int
    evenness: float
    language: str | None
    largest: float

    @property
    def verdict(self) -> Verdict:
        """ "specific" where one language has at least 0.8 of it, "agnostic" where its evenness is
        at least 0.8, "mixed" between, "unknown" where it fires in fewer than 5 texts."""
        if self.texts < LEAST_TEXTS:
            return "unknown"
        if self.largest >= SPECIFIC:
            return "specific"
        return "agnostic" if self.evenness >= AGNOSTIC else "mixed"

    @property
    def said(self) -> str:
        """The verdict with the number it stands on: "specific to fr (93 %)"."""
        if self.verdict == "specific":
            return f"specific to {self.language} ({100 * self.largest:.0f} %)"
        if self.verdict == "unknown":
            return f"unknown ({self.texts} texts)"
        return f"{self.verdict} (evenness {self.evenness:.2f})"


@dataclass(frozen=True, eq=False)
class Activity:
    """Largest activations of all features on a corpus.

    Attributes:
        corpus: the texts.
        ids: by layer, (F,) the features that fire in any of them, ascending.
        values: by layer, (languages, rows, F); 0 where a feature does not fire.
        sizes: by layer, how many features there are.
    """

    corpus: Corpus
    ids: tuple[Int[Tensor, " feature"], ...]
    values: tuple[Float[Tensor, "language row feature"], ...]
    sizes: tuple[int, ...]

    def spread(self, key: Key) -> Spread:
        """The language of the feature (layer, id)."""
        layer, one = key
        found = (self.ids[layer] == one).nonzero()[:, 0]
        values = self.values[layer]
        cell = values[:, :, found[0]] if len(found) else values.new_zeros(values.shape[:2])
        means, rates = cell.mean(1), (cell > 0).double().mean(1)
        total = float(means.sum())
        shares = [mean / total for mean in means.tolist()] if total > 0 else []
        entropy = -math.fsum(share * math.log(share) for share in shares if share > 0)
        languages = self.corpus.languages
        return Spread(
            dict(zip(languages, rates.tolist(), strict=True)),
            dict(zip(languages, means.tolist(), strict=True)),
            int((cell > 0).sum()),
            entropy / math.log(len(languages)) if shares else math.nan,
            languages[int(means.argmax())] if shares else None,
            max(shares) if shares else math.nan,
        )


def activity(
    model: ReplacementModel,
    corpus: Corpus,
    progress: Callable[[float, str], None] | None = None,
) -> Activity:
    """Run every text of a corpus once."""
    sizes = [len(model.transcoders.layer(k).encoder) for k in range(model.adapter.n_layers)]
    return gathered(corpus, firing(model), sizes, progress)


def firing(model: ReplacementModel) -> Callable[[str], list[Fired]]:
    """Says of a text, by layer, which features fire and how strongly at most."""
    transcoders, n_layers = model.transcoders, model.adapter.n_layers

    def fired(text: str) -> list[Fired]:
        forward = model.run(text)
        ignored = torch.tensor(model.ignored_by_default(forward.token_ids))
        found = []
        for layer in range(n_layers):
            cells, values = transcoders.encode(layer, forward.mlp_inputs[layer])
            cells, values = cells.cpu(), values.cpu().double()
            seen = ~torch.isin(cells[:, 0], ignored)
            ids, place = cells[seen, 1].unique(return_inverse=True)
            most = torch.zeros(len(ids), dtype=torch.float64)
            found.append((ids, most.scatter_reduce(0, place, values[seen], "amax")))
        return found

    return fired


def gathered(
    corpus: Corpus,
    fired: Callable[[str], list[Fired]],
    sizes: Sequence[int],
    progress: Callable[[float, str], None] | None = None,
) -> Activity:
    """An activity from what `fired` says of each text, by layer."""
    texts = [(code, text) for code in corpus.languages for text in corpus.texts(code)]
    found: list[list[Fired]] = []
    for number, (code, text) in enumerate(texts):
        if progress is not None:
            progress(number / len(texts), f"corpus, {code}")
        found.append(fired(text))
    ids, tables = [], []
    for layer in range(len(sizes)):
        every = torch.cat([each[layer][0] for each in found]).unique()
        table = torch.zeros(len(texts), len(every), dtype=torch.float64)
        for row, each in enumerate(found):
            table[row, torch.searchsorted(every, each[layer][0])] = each[layer][1]
        ids.append(every)
        tables.append(table.reshape(len(corpus.languages), len(corpus), len(every)))
    return Activity(corpus, tuple(ids), tuple(tables), tuple(sizes))


def language_of(
    features: Iterable[Key],
    corpus: Corpus,
    model: ReplacementModel,
    progress: Callable[[float, str], None] | None = None,
) -> Mapping[Key, Spread]:
    """How the activation of some (layer, id) spreads over the languages of a corpus.

    Raises:
        InputError: a feature that the transcoders do not have.
    """
    wanted = [(int(layer), int(one)) for layer, one in features]
    for layer, one in wanted:
        known = 0 <= layer < model.adapter.n_layers
        if not known or not 0 <= one < len(model.transcoders.layer(layer).encoder):
            raise InputError(f"{model.transcoders.name} has no feature {one} in layer {layer}")
    found = activity(model, corpus, progress)
    return {key: found.spread(key) for key in wanted}
