"""Targets: which outputs to explain, as directions in the residual stream.

By default the most likely next tokens until they hold 95 % of the probability, at most ten. A token
named by the user is its unembedding column less the mean over the vocabulary; `Difference(a, b)` is
logit(a) − logit(b).
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from circuit_tracer.errors import InputError
from circuit_tracer.forward import Forward
from circuit_tracer.replacement import ReplacementModel
from circuit_tracer.shapes import Float, Tensor


@dataclass(frozen=True)
class Difference:
    """The direction logit(a) − logit(b). Tokens by text or id."""

    a: str | int
    b: str | int


@dataclass(frozen=True, eq=False)
class Direction:
    """One target, ready to be carried down.

    Attributes:
        label: text of the token, or of the difference.
        token_id: id of the token; None for directions.
        position: where it is read.
        vector: (d_model,) read vector in the residual stream after the last layer, the frozen
            final norm folded in.
        bias: what b_U and the final norm's bias add.
        value: the demeaned logit before any softcap: vector · residual + bias.
        probability: of the token under the model; None for directions.
        weight: its weight in influence: the probability, 1 for directions.
    """

    label: str
    token_id: int | None
    position: int
    vector: Float[Tensor, " d_model"]
    bias: float
    value: float
    probability: float | None
    weight: float


def choose(
    model: ReplacementModel,
    forward: Forward,
    targets: Sequence[str | int | Difference] | None = None,
    max_logits: int = 10,
    logit_probability: float = 0.95,
) -> list[Direction]:
    """Directions for the last position, by falling probability where they were not named.

    Args:
        targets: tokens (text or id) and differences; None for the most likely tokens.
        max_logits: at most so many tokens, where targets is None; at least 1.
        logit_probability: stop at this much probability, in (0, 1].

    Raises:
        InputError: an unknown token, or limits out of range.
    """
    position = len(forward.token_ids) - 1
    logits = forward.logits[position]
    probabilities = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(-1)
    if targets is None:
        if max_logits < 1 or not 0 < logit_probability <= 1:
            raise InputError(
                f"max_logits must be at least 1 and logit_probability in (0, 1]; got {max_logits} "
                f"and {logit_probability}"
            )
        top = probabilities.topk(min(max_logits, len(probabilities)))
        share = top.values.cumsum(0)
        count = min(int((share < logit_probability).sum()) + 1, len(share))
        targets = top.indices[:count].tolist()
    if not targets:
        raise InputError("targets is empty; name at least one token, or leave it out")
    read = _Reader(model, forward, position, probabilities)
    return [read.direction(target) for target in targets]


class _Reader:
    """Makes directions at one position."""

    def __init__(
        self, model: ReplacementModel, forward: Forward, position: int, probabilities: Tensor
    ):
        self.model, self.forward, self.position = model, forward, position
        self.probabilities = probabilities
        self.norm = model.adapter.final_norm

    def direction(self, target: str | int | Difference) -> Direction:
        if isinstance(target, Difference):
            a, b = token_id(self.model, target.a), token_id(self.model, target.b)
            (row_a, bias_a), (row_b, bias_b) = self._column(a), self._column(b)
            label = f"logit({self.model.token_text(a)}) − logit({self.model.token_text(b)})"
            return self._make(label, None, row_a - row_b, bias_a - bias_b, None)
        token = token_id(self.model, target)
        mean_row, mean_bias = self.model.adapter.mean_unembedding
        row, bias = self._column(token)
        probability = float(self.probabilities[token])
        text = self.model.token_text(token)
        return self._make(text, token, row - mean_row, bias - mean_bias, probability)

    def _column(self, token: int) -> tuple[Tensor, float]:
        head = self.model.adapter.unembedding
        bias = getattr(head, "bias", None)
        row = head.weight[token].detach().to(self.model.adapter.dtype)
        return row, 0.0 if bias is None else float(bias[token])

    def _make(
        self, label: str, token: int | None, row: Tensor, bias: float, probability: float | None
    ) -> Direction:
        value = float(row @ self.forward.final[self.position]) + bias
        if self.norm.bias is not None:
            bias += float(row @ self.norm.bias)
        scale = self.forward.final_scale[self.position]
        return Direction(
            label=label,
            token_id=token,
            position=self.position,
            vector=self.norm.centre(row * self.norm.weight) * scale,
            bias=bias,
            value=value,
            probability=probability,
            weight=1.0 if probability is None else probability,
        )


def token_id(model: ReplacementModel, token: str | int) -> int:
    """Id of a token by text (with or without its leading space) or id.

    Raises:
        InputError: not one token of the vocabulary; the message shows the pieces and near ones.
    """
    size = model.adapter.vocabulary
    if isinstance(token, int):
        if 0 <= token < size:
            return token
        raise InputError(f"there is no token {token}; the vocabulary has ids 0 to {size - 1}")
    unknown = getattr(model.tokenizer, "unk_token_id", None)
    for text in (token, " " + token):
        ids = model.tokenizer(text, add_special_tokens=False)["input_ids"] if token else []
        if len(ids) == 1 and ids[0] != unknown:
            return int(ids[0])
    pieces = model.tokenizer(token, add_special_tokens=False)["input_ids"] if token else []
    shown = ", ".join(repr(model.token_text(piece)) for piece in pieces)
    words = {piece.lstrip("▁Ġ"): piece for piece in model.tokenizer.get_vocab()}
    near = difflib.get_close_matches(token.strip(), words, n=3, cutoff=0.7)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    raise InputError(
        f"target {token!r} is not one token of this model"
        + (f" but {len(pieces)}: {shown}." if len(pieces) > 1 else ".")
        + hint
    )
