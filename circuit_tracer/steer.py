"""Steering: text generated while features are held at values, beside the text without.

At every position, of the prompt and of what is generated, a steered feature is read off the model's
own residual stream, and the difference between what it should be and what it is is added where it
writes. What the transcoders do not explain stays in, so that the text stays fluent. Values are
best chosen as multiples of the feature's maximum over some text (`maxima`); the useful range is
about −10 to 10 times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from circuit_tracer.changes import Change, resolve_everywhere
from circuit_tracer.errors import InputError, ModelError
from circuit_tracer.forward import run
from circuit_tracer.models.adapter import Adapter
from circuit_tracer.patched import Patch
from circuit_tracer.shapes import Float, Int, Tensor
from circuit_tracer.transcoders.base import TranscoderSet

Listener = Callable[["Step", bool], None]
"""Told of every token as it is chosen, and whether the text is the steered one. Its `unsteered` is
worked out at the end only, and equals `probability` until then."""


@dataclass(frozen=True)
class Step:
    """One generated token.

    Attributes:
        text, token_id: the token.
        probability: under the model that chose it, at temperature 1.
        unsteered: in a steered text, the probability the unsteered model gives it after the same
            text; otherwise equal to `probability`.
    """

    text: str
    token_id: int
    probability: float
    unsteered: float


@dataclass(frozen=True)
class Generation:
    """Steered and unsteered continuations of a prompt.

    Attributes:
        prompt: as text.
        steered, unsteered: what follows it, as text.
        steered_steps, unsteered_steps: the same token by token.
    """

    prompt: str
    steered: str
    unsteered: str
    steered_steps: tuple[Step, ...]
    unsteered_steps: tuple[Step, ...]

    def __str__(self) -> str:
        return f"unsteered  {self.prompt}{self.unsteered}\nsteered    {self.prompt}{self.steered}"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """In a notebook: as `print` shows it."""
        printer.text(str(self))


@dataclass(frozen=True)
class Choosing:
    """How the next token is chosen.

    Args:
        temperature: 0 takes the most probable token; otherwise tokens are drawn.
        top_k: draw among the k most probable only; None for all.
        seed: of the draws; the same seed gives the same text.

    Raises:
        InputError: a negative temperature, top_k below 1.
    """

    temperature: float = 0.0
    top_k: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise InputError(f"temperature must be 0 or more, not {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"top_k must be at least 1, not {self.top_k}")

    def chooser(self) -> Callable[[Float[Tensor, " vocabulary"]], int]:
        """A function from logits to a token; its draws follow one another."""
        generator = torch.Generator().manual_seed(self.seed)

        def choose(logits: Tensor) -> int:
            if self.temperature == 0:
                return int(logits.argmax())
            best = logits.cpu().topk(min(self.top_k or len(logits), len(logits)))
            shares = (best.values / self.temperature).softmax(-1)
            return int(best.indices[torch.multinomial(shares, 1, generator=generator)])

        return choose


def generate(
    adapter: Adapter,
    transcoders: TranscoderSet,
    tokenizer: Any,
    ids: Int[Tensor, " position"],
    steer: Mapping[tuple[int, int], Change],
    max_new_tokens: int,
    choosing: Choosing,
    token_text: Callable[[int], str],
    listener: Listener | None = None,
) -> Generation:
    """Continue a prompt without and with steering.

    Args:
        ids: the prompt.
        max_new_tokens: a text stops here, at the model's end token, or where its context is full.
        steer: (layer, feature) → what becomes of it at every position.
        listener: told of every token as it is chosen, the unsteered text first.

    Raises:
        InputError: nothing to steer, a feature that does not exist, no room after the prompt.
        ModelError: steering made the logits NaN or infinite.
    """
    edits = resolve_everywhere(steer, transcoders)
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens must be at least 1, not {max_new_tokens}")
    if adapter.context is not None:
        max_new_tokens = min(max_new_tokens, adapter.context - len(ids))
        if max_new_tokens < 1:
            raise InputError(
                f"the prompt fills all {adapter.context} tokens that {adapter.name} reads; shorten "
                "it to leave room for an answer"
            )
    end = _end_tokens(adapter, tokenizer)
    made: list[tuple[list[int], list[float]]] = []
    for steered in (False, True):
        patch = Patch(adapter, transcoders, [edits])
        tokens, shares = [], []
        choose = choosing.chooser()
        around = patch.applied if steered else nullcontext
        for token, share in _tokens(adapter, ids, max_new_tokens, end, choose, around):
            tokens.append(token)
            shares.append(share)
            if listener is not None:
                listener(Step(token_text(token), token, share, share), steered)
        made.append((tokens, shares))
    (plain, plain_shares), (other, other_shares) = made
    usual = _shares_of(adapter, ids, other)
    text = [tokenizer.decode([*ids.tolist(), *tokens]) for tokens in ([], plain, other)]
    return Generation(
        prompt=text[0],
        unsteered=text[1].removeprefix(text[0]),
        steered=text[2].removeprefix(text[0]),
        unsteered_steps=_steps(token_text, plain, plain_shares, plain_shares),
        steered_steps=_steps(token_text, other, other_shares, usual),
    )


def maxima(
    adapter: Adapter,
    transcoders: TranscoderSet,
    features: Sequence[tuple[int, int]],
    texts: Sequence[Int[Tensor, " position"]],
) -> dict[tuple[int, int], float]:
    """The largest activation of some (layer, feature) over texts, their first token left out.

    Zero where a feature never fires.
    """
    found = dict.fromkeys(features, 0.0)
    for ids in texts:
        forward = run(adapter, transcoders, ids)
        for layer in {layer for layer, _ in features}:
            cells, values = transcoders.encode(layer, forward.mlp_inputs[layer])
            for key in (key for key in found if key[0] == layer):
                fired = values[(cells[:, 1] == key[1]) & (cells[:, 0] > 0)]
                found[key] = max([found[key], *fired.tolist()])
    return found


def _tokens(
    adapter: Adapter,
    ids: Int[Tensor, " position"],
    limit: int,
    end: set[int],
    choose: Callable[[Tensor], int],
    around: Callable[[], AbstractContextManager],
) -> Iterator[tuple[int, float]]:
    """Generated tokens with their probabilities. `around` surrounds the model only while it runs:
    nothing stays on it between tokens, also where whoever listens raises."""
    fresh, cache = ids[None].to(adapter.device), None
    for _ in range(limit):
        with torch.no_grad(), around():
            output = adapter.model(input_ids=fresh, past_key_values=cache, use_cache=True)
        logits, cache = output.logits[0, -1], output.past_key_values
        if not torch.isfinite(logits).all():
            raise ModelError(
                f"{adapter.name} gives NaN or infinite logits; steer less (about −10 to 10 times a "
                "feature's maximum is useful), or load the model with dtype='float32'"
            )
        token = choose(logits)
        if token in end:
            return
        yield token, float(logits.cpu().double().softmax(-1)[token])
        fresh = torch.tensor([[token]], device=adapter.device)


def _shares_of(adapter: Adapter, ids: Int[Tensor, " position"], tokens: list[int]) -> list[float]:
    """Probability that the model itself gives each of the tokens after what precedes it."""
    if not tokens:
        return []
    whole = torch.cat([ids, torch.tensor(tokens, dtype=ids.dtype)])[None].to(adapter.device)
    with torch.no_grad():
        logits = adapter.model(input_ids=whole, use_cache=False).logits[0, len(ids) - 1 : -1]
    shares = logits.cpu().double().softmax(-1)
    return shares[range(len(tokens)), tokens].tolist()


def _steps(
    token_text: Callable[[int], str], tokens: list[int], shares: list[float], usual: list[float]
) -> tuple[Step, ...]:
    return tuple(
        Step(token_text(token), token, share, before)
        for token, share, before in zip(tokens, shares, usual, strict=True)
    )


def _end_tokens(adapter: Adapter, tokenizer: Any) -> set[int]:
    """Tokens that end a text."""
    found: set[int] = set()
    for holder in (tokenizer, getattr(adapter.model, "generation_config", None)):
        end = getattr(holder, "eos_token_id", None)
        if end is not None:
            found.update(end if isinstance(end, list | tuple) else [end])
    return found
