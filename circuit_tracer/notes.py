"""What a feature says to the output: the tokens its writing raises and lowers most.

A feature's decoder rows are summed over the layers they write to, taken through the weights of the
norms on the way to the unembedding (their denominators depend on the prompt and are left out), and
multiplied with the demeaned unembedding. The numbers rank tokens; they are not logits of a prompt.
Nor do they depend on one: a feature is described once, and its model remembers (`model.notes`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch

from circuit_tracer.circuit import FeatureNote
from circuit_tracer.replacement import ReplacementModel
from circuit_tracer.shapes import Float, Int, Tensor

BUDGET = 3e10
"""Floating point operations that describing the features of one graph may take."""
TOGETHER = 32
"""Vectors that meet the unembedding at a time, exactly: how a product of matrices is rounded may
depend on its shape, and a note must not depend on company."""
REMEMBERED = 1 << 14
"""Notes that a model remembers, some 2 kB each; the oldest go first."""


def describe(
    model: ReplacementModel, features: Sequence[tuple[int, int]], k: int = 8
) -> dict[tuple[int, int], FeatureNote]:
    """Notes with the k most promoted and k most suppressed tokens of (layer, id) features.

    Features come most important first; those beyond `BUDGET` are left out. What a note says does
    not depend on what else was asked for, then or before, to the last bit.
    """
    adapter, known = model.adapter, model.notes
    per_feature = 2.0 * adapter.vocabulary * adapter.d_model
    wanted = list(dict.fromkeys(features))[: max(30, int(BUDGET / per_feature))]
    wanted.sort(key=lambda feature: feature[0])
    found = {one: known[(*one, k)] for one in wanted if (*one, k) in known}
    new = [one for one in wanted if one not in found]
    for start in range(0, len(new), TOGETHER):
        some = new[start : start + TOGETHER]
        with torch.no_grad():
            vectors = torch.nn.functional.pad(
                _written(model, some), (0, 0, 0, TOGETHER - len(some))
            )
            notes = _notes(model, _scores(model, vectors)[: len(some)], k)
            found.update(zip(some, notes, strict=True))
    for one in new:
        known[(*one, k)] = found[one]
    while len(known) > REMEMBERED:
        known.pop(next(iter(known)), None)
    return {one: found[one] for one in wanted}


def _written(
    model: ReplacementModel, features: Sequence[tuple[int, int]]
) -> Float[Tensor, "feature d_model"]:
    """`writes` of features of several layers, which ascend."""
    return torch.cat(
        [
            writes(model, layer, torch.tensor([feature for _, feature in here]))
            for layer, here in groupby(features, key=lambda feature: feature[0])
        ]
    )


def spoken(
    model: ReplacementModel, vectors: Float[Tensor, "vector d_model"], k: int = 8
) -> list[FeatureNote]:
    """Tokens that vectors in the residual stream raise and lower most."""
    return _notes(model, _scores(model, vectors), k)


def writes(
    model: ReplacementModel, layer: int, ids: Int[Tensor, " feature"]
) -> Float[Tensor, "feature d_model"]:
    """Decoder rows summed over the layers they write to, post-MLP norm weights applied."""
    adapter, transcoders = model.adapter, model.transcoders
    total = torch.zeros(len(ids), adapter.d_model, dtype=adapter.dtype)
    for written in range(layer, layer + len(transcoders.layer(layer).decoders)):
        rows = transcoders.decoder_rows(layer, written, ids, adapter.dtype).cpu()
        norm = adapter.blocks[written].post_mlp_norm
        if transcoders.write == "mlp.hook_out" and norm is not None:
            rows = norm.centre(rows) * norm.weight.cpu()
        total += rows
    return total.to(adapter.device)


def _scores(
    model: ReplacementModel, writes: Float[Tensor, "feature d_model"]
) -> Float[Tensor, "feature vocabulary"]:
    norm = model.adapter.final_norm
    head = model.adapter.unembedding.weight
    scores = (norm.centre(writes) * norm.weight).to(head.dtype) @ head.T
    return (scores - scores.mean(1, keepdim=True)).float().cpu()


def _notes(
    model: ReplacementModel, scores: Float[Tensor, "vector vocabulary"], k: int
) -> list[FeatureNote]:
    k = min(k, scores.shape[1])
    raised, lowered = (_named(model, *scores.topk(k, largest=most)) for most in (True, False))
    return [
        FeatureNote(promoted=up, suppressed=down) for up, down in zip(raised, lowered, strict=True)
    ]


def _named(
    model: ReplacementModel, values: Float[Tensor, "vector k"], ids: Int[Tensor, "vector k"]
) -> list[tuple[tuple[str, float], ...]]:
    """Tokens by name with their scores, a row a vector."""
    return [
        tuple((model.token_text(one), round(value, 4)) for one, value in zip(*row, strict=True))
        for row in zip(ids.tolist(), values.tolist(), strict=True)
    ]
