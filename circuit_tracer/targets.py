"""Targets: which outputs to explain, as directions in the residual stream.

By default the most likely next tokens until they hold 95 % of the probability, at most ten. A token
named by the user is its unembedding column less the mean over the vocabulary; `Difference(a, b)` is
logit(a) − logit(b); `Direction` is any vector read where the unembedding reads; and
`(layer, position, feature)` is the pre-activation of a feature, whether it fires or not. All but
features, which have a position of their own, can be read at any position: `At(target, position)`.
"""

from __future__ import annotations

import difflib
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from circuit_tracer.errors import InputError
from circuit_tracer.facts import Target
from circuit_tracer.forward import Forward
from circuit_tracer.local import feature_reads
from circuit_tracer.replacement import ReplacementModel
from circuit_tracer.shapes import Float, Tensor


@dataclass(frozen=True)
class Difference:
    """The direction logit(a) − logit(b). Tokens by text or id."""

    a: str | int
    b: str | int


@dataclass(frozen=True, eq=False)
class Direction:
    """Any direction, read at the output of the final norm: its value is vector · output.

    Args:
        vector: (d_model,) numbers, taken as they are (not demeaned); their size matters.
        label: what to call it.

    Example:
        >>> import circuit_tracer as ct
        >>> model = ct.load()
        >>> column = model.adapter.unembedding.weight[500]
        >>> mine = ct.Direction(column, "column 500")
        >>> ct.trace("The opposite of small is", model, [mine]).targets[0].label
        'column 500'
    """

    vector: Float[Tensor, " d_model"] | Sequence[float]
    label: str


@dataclass(frozen=True)
class At:
    """A token, difference or direction read at another position; negative counts from the end."""

    target: str | int | Difference | Direction
    position: int


Output = str | int | Difference | Direction
Wanted = Output | At | tuple[int, int, int]
"""What can be explained; three numbers are the (layer, position, id) of a feature."""


@dataclass(frozen=True, eq=False)
class Readout:
    """One target, ready to be carried down.

    Attributes:
        label: text of the token, or of the direction.
        token_id: id of the token; None for directions and features.
        position: where it is read.
        layer: whose MLP input is read; the number of layers for what is read after the last one.
        feature: id of the feature; None for tokens and directions.
        vector: (d_model,) read vector in the residual stream there, the frozen norm folded in.
        bias: what the biases of the norm and of the unembedding or encoder add.
        value: vector · residual + bias: the demeaned logit before any softcap, the direction's
            product, or the feature's pre-activation.
        probability: of the token under the model; None for directions and features.
        weight: its weight in influence: the probability, 1 where there is none.
        difference: ids of the two tokens, where it is logit(a) − logit(b).
        direction: (d_model,) what a `Direction` was given as.
    """

    label: str
    token_id: int | None
    position: int
    layer: int
    feature: int | None
    vector: Float[Tensor, " d_model"]
    bias: float
    value: float
    probability: float | None
    weight: float
    difference: tuple[int, int] | None = None
    direction: Float[Tensor, " d_model"] | None = None

    @property
    def target(self) -> Target:
        """What a graph keeps of it."""
        feature = None if self.feature is None else (self.layer, self.feature)
        vector = None if self.direction is None else tuple(self.direction.tolist())
        return Target(
            self.label,
            self.token_id,
            self.position,
            self.probability,
            self.weight,
            feature,
            self.difference,
            vector,
        )


def again(target: Target) -> Wanted | None:
    """What has to be asked for to get a graph's target; None for a direction of unknown vector."""
    if target.feature is not None:
        layer, feature = target.feature
        return layer, target.position, feature
    if target.token_id is not None:
        return At(target.token_id, target.position)
    if target.difference is not None:
        return At(Difference(*target.difference), target.position)
    if target.direction is not None:
        return At(Direction(target.direction, target.label), target.position)
    return None


def choose(
    model: ReplacementModel,
    forward: Forward,
    targets: Sequence[Wanted] | None = None,
    max_logits: int = 10,
    logit_probability: float = 0.95,
    positions: int | Sequence[int] = -1,
) -> list[Readout]:
    """What to read, in the order named; tokens that were not named by falling probability.

    Args:
        targets: what to explain; None for the most likely tokens at each position.
        max_logits: at most so many tokens a position, where targets is None; at least 1.
        logit_probability: stop at this much probability, in (0, 1].
        positions: where to read, negative counting from the end; `At` and features say it
            themselves.

    Raises:
        InputError: an unknown token, a position or feature that is not there, limits out of range.
    """
    reader = _Reader(model, forward)
    places = _places(positions, len(forward.token_ids))
    if targets is None:
        if max_logits < 1 or not 0 < logit_probability <= 1:
            raise InputError(
                f"max_logits must be at least 1 and logit_probability in (0, 1]; got {max_logits} "
                f"and {logit_probability}"
            )
        targets = [
            At(token, place)
            for place in places
            for token in reader.likeliest(place, max_logits, logit_probability)
        ]
    if isinstance(targets, str | int | Difference | Direction | At):
        raise InputError(f"targets is a list: give [{targets!r}]")
    if not targets:
        raise InputError("targets is empty; name at least one token, or leave it out")
    return [readout for target in targets for readout in reader.readouts(target, places)]


def answer_tokens(
    model: ReplacementModel, prompt: str | Sequence[int], answer: str | Sequence[int]
) -> list[int]:
    """Ids of an answer as they follow on the prompt.

    Text is tokenised together with the prompt where the prompt's own tokens come out unchanged, and
    by itself, without special tokens, where the tokenizer would merge across the border.

    Raises:
        InputError: an empty answer, or one that the vocabulary cannot write.
    """
    if not isinstance(answer, str):
        ids = [token_id(model, int(token)) for token in answer]
    else:
        ids = list(model.tokenizer(answer, add_special_tokens=False)["input_ids"])
        if isinstance(prompt, str):
            start = list(model.tokenizer(prompt)["input_ids"])
            whole = list(model.tokenizer(prompt + answer)["input_ids"])
            if ids and whole[: len(start)] == start:
                ids = whole[len(start) :]
        if getattr(model.tokenizer, "unk_token_id", None) in ids:
            raise InputError(
                f"the vocabulary of {model.adapter.name} cannot write the answer {answer!r}"
            )
    if not ids:
        raise InputError('the answer is empty; give at least one token, e.g. answer=" New York"')
    return ids


def place(position: int, n_positions: int) -> int:
    """A position counted from the start. Raises InputError naming the range."""
    try:
        position = operator.index(position)
    except TypeError:
        raise InputError(f"a position must be a whole number, not {position!r}") from None
    if not -n_positions <= position < n_positions:
        raise InputError(
            f"there is no position {position}: the prompt has positions 0 to {n_positions - 1} "
            f"(or -{n_positions} to -1 from the end)"
        )
    return position % n_positions


def _places(positions: int | Sequence[int], n_positions: int) -> list[int]:
    """Every position once, in the order given."""
    if isinstance(positions, str):
        raise InputError(f"a position must be a whole number, not {positions!r}")
    given = list(positions) if isinstance(positions, Iterable) else [positions]
    if not given:
        raise InputError("positions is empty; give at least one, or leave it out")
    return list(dict.fromkeys(place(position, n_positions) for position in given))


class _Reader:
    """Makes readouts of one prompt."""

    def __init__(self, model: ReplacementModel, forward: Forward):
        self.model, self.forward = model, forward
        self.norm = model.adapter.final_norm
        self.n_positions = len(forward.token_ids)
        self._probabilities: dict[int, Tensor] = {}

    def probabilities(self, position: int) -> Float[Tensor, " vocabulary"]:
        if position not in self._probabilities:
            logits = self.forward.logits[position]
            wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
            self._probabilities[position] = wide.softmax(-1)
        return self._probabilities[position]

    def likeliest(self, position: int, most: int, share: float) -> list[int]:
        probabilities = self.probabilities(position)
        top = probabilities.topk(min(most, len(probabilities)))
        count = min(int((top.values.cumsum(0) < share).sum()) + 1, len(top.indices))
        return top.indices[:count].tolist()

    def readouts(self, target: Wanted, places: Sequence[int]) -> list[Readout]:
        """Those of one target: one a position, unless it has a position of its own."""
        if isinstance(target, tuple):
            return [self.feature(target)]
        if isinstance(target, At):
            if isinstance(target.target, At | tuple):
                raise InputError(
                    f"{target}: only tokens, differences and directions can be read at another "
                    "position; a feature is named with its own, (layer, position, feature)"
                )
            return [self.output(target.target, place(target.position, self.n_positions))]
        return [self.output(target, position) for position in places]

    def output(self, target: Output, position: int) -> Readout:
        """A token or direction, read after the final norm."""
        if isinstance(target, Difference):
            a, b = token_id(self.model, target.a), token_id(self.model, target.b)
            (row_a, bias_a), (row_b, bias_b) = self._column(a), self._column(b)
            label = f"logit({self.model.token_text(a)}) − logit({self.model.token_text(b)})"
            found = self._after_norm(label, None, position, row_a - row_b, bias_a - bias_b)
            return replace(found, difference=(a, b))
        if isinstance(target, Direction):
            vector = self._vector(target)
            found = self._after_norm(target.label, None, position, vector, 0.0)
            return replace(found, direction=vector)
        token = token_id(self.model, target)
        mean_row, mean_bias = self.model.adapter.mean_unembedding
        row, bias = self._column(token)
        text = self.model.token_text(token)
        return self._after_norm(text, token, position, row - mean_row, bias - mean_bias)

    def feature(self, target: tuple[int, ...]) -> Readout:
        """The pre-activation of a feature, read at its transcoder's input."""
        layer, position, feature = self._checked(target)
        reads, bias, value = feature_reads(
            self.model.adapter,
            self.model.transcoders,
            self.forward,
            layer,
            *torch.tensor([[position], [feature]]),
        )
        label = f"L{layer}#{feature}@{position} pre-activation"
        found = reads[0], float(bias), float(value)
        return Readout(label, None, position, layer, feature, *found, None, 1.0)

    def _checked(self, target: tuple[int, ...]) -> tuple[int, int, int]:
        try:
            layer, position, feature = map(operator.index, target)
        except (TypeError, ValueError):
            raise InputError(
                f"{target!r} is not a feature; name it by three whole numbers, "
                "(layer, position, feature)"
            ) from None
        n_layers = self.model.adapter.n_layers
        if not 0 <= layer < n_layers:
            raise InputError(
                f"feature {target}: there is no layer {layer}; layers are 0 to {n_layers - 1}"
            )
        position = place(position, self.n_positions)
        size = len(self.model.transcoders.layer(layer).encoder)
        if not 0 <= feature < size:
            known = f"they are 0 to {size - 1}" if size else "the layer has no transcoder"
            raise InputError(f"feature {target}: layer {layer} has no feature {feature}; {known}")
        return layer, position, feature

    def _vector(self, target: Direction) -> Float[Tensor, " d_model"]:
        like = self.forward.final
        try:
            vector = torch.as_tensor(target.vector, dtype=like.dtype, device=like.device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"direction {target.label!r} is not a vector: {error}") from error
        vector = vector.detach()
        if vector.shape != like.shape[1:]:
            raise InputError(
                f"direction {target.label!r} has shape {tuple(vector.shape)}; the final norm of "
                f"{self.model.adapter.name} gives vectors of shape {tuple(like.shape[1:])}"
            )
        if not bool(vector.isfinite().all()) or not bool(vector.any()):
            raise InputError(f"direction {target.label!r} is zero, or holds NaN or infinity")
        return vector

    def _column(self, token: int) -> tuple[Tensor, float]:
        head = self.model.adapter.unembedding
        bias = getattr(head, "bias", None)
        row = head.weight[token].detach().to(self.model.adapter.dtype)
        return row, 0.0 if bias is None else float(bias[token])

    def _after_norm(
        self, label: str, token: int | None, position: int, row: Tensor, bias: float
    ) -> Readout:
        probability = None if token is None else float(self.probabilities(position)[token])
        value = float(row @ self.forward.final[position]) + bias
        if self.norm.bias is not None:
            bias += float(row @ self.norm.bias)
        return Readout(
            label=label,
            token_id=token,
            position=position,
            layer=self.model.adapter.n_layers,
            feature=None,
            vector=self.norm.centre(row * self.norm.weight) * self.forward.final_scale[position],
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
    if not isinstance(token, int | str):
        raise InputError(
            f"{token!r} is no target: give a token by text or id, a Difference, a Direction, At, "
            "or a feature as (layer, position, id)"
        )
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
