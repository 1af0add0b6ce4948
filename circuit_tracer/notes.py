"""What a feature says to the output: the tokens its writing raises and lowers most.

A feature's decoder rows are summed over the layers they write to, taken through the weights of the
norms on the way to the unembedding (their denominators depend on the prompt and are left out), and
multiplied with the demeaned unembedding. The numbers rank tokens; they are not logits of a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from circuit_tracer.circuit import FeatureNote
from circuit_tracer.replacement import ReplacementModel
from circuit_tracer.shapes import Float, Int, Tensor

BUDGET = 3e10
"""Floating point operations that describing the features of one graph may take."""


def describe(
    model: ReplacementModel, features: Sequence[tuple[int, int]], k: int = 8
) -> dict[tuple[int, int], FeatureNote]:
    """Notes with the k most promoted and k most suppressed tokens of (layer, id) features.

    Features come most important first; those beyond `BUDGET` are left out.
    """
    adapter = model.adapter
    per_feature = 2.0 * adapter.vocabulary * adapter.d_model
    wanted = list(dict.fromkeys(features))[: max(30, int(BUDGET / per_feature))]
    notes: dict[tuple[int, int], FeatureNote] = {}
    with torch.no_grad():
        for layer in sorted({layer for layer, _ in wanted}):
            ids = [feature for at, feature in wanted if at == layer]
            rows = writes(model, layer, torch.tensor(ids))
            for feature, note in zip(ids, spoken(model, rows, k), strict=True):
                notes[layer, feature] = note
    return notes


def spoken(
    model: ReplacementModel, vectors: Float[Tensor, "vector d_model"], k: int = 8
) -> list[FeatureNote]:
    """Tokens that vectors in the residual stream raise and lower most."""
    scores = _scores(model, vectors)
    k = min(k, scores.shape[1])
    raised, lowered = (_named(model, *scores.topk(k, largest=most)) for most in (True, False))
    return [
        FeatureNote(promoted=up, suppressed=down) for up, down in zip(raised, lowered, strict=True)
    ]


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


def _named(
    model: ReplacementModel, values: Float[Tensor, "vector k"], ids: Int[Tensor, "vector k"]
) -> list[tuple[tuple[str, float], ...]]:
    """Tokens by name with their scores, a row a vector."""
    return [
        tuple((model.token_text(one), round(value, 4)) for one, value in zip(*row, strict=True))
        for row in zip(ids.tolist(), values.tolist(), strict=True)
    ]
