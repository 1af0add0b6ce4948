"""The replacement model: a model, its tokenizer, and transcoders in place of its MLPs."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch

from circuit_kernels.choice import Choice
from circuit_tracer.changes import Change, Changes
from circuit_tracer.errors import InputError
from circuit_tracer.facts import FeatureNote
from circuit_tracer.forward import Forward, run
from circuit_tracer.graft import Grafts, Positions, graft
from circuit_tracer.intervene import Intervention, Mode, intervene
from circuit_tracer.local import Local
from circuit_tracer.memory import check_forward
from circuit_tracer.models.adapter import Adapter
from circuit_tracer.models.lengths import least_tokens, longest_token
from circuit_tracer.shapes import Int, Tensor
from circuit_tracer.steer import Choosing, Generation, Listener, generate, maxima
from circuit_tracer.transcoders.base import TranscoderSet

LONG = 100_000
"""Characters of a text that is measured before it is tokenised, which takes a tenth of a second."""


class ReplacementModel:
    """A model with transcoders in place of its MLPs.

    Args:
        adapter: the model as data.
        tokenizer: its Hugging Face tokenizer.
        transcoders: a set that fits it.

    Attributes:
        notes: what `circuit_tracer.notes` has said of features so far, by (layer, id, number of
            tokens). Clear it where weights are changed in place.

    Raises:
        TranscoderError: the set has another layer count or width.
    """

    def __init__(self, adapter: Adapter, tokenizer: Any, transcoders: TranscoderSet):
        transcoders.check_fits(adapter.n_layers, adapter.d_model, adapter.name)
        self.adapter = adapter
        self.tokenizer = tokenizer
        self.transcoders = transcoders
        self.notes: dict[tuple[int, int, int], FeatureNote] = {}
        self._texts = _TokenTexts(tokenizer)

    def __repr__(self) -> str:
        return f"ReplacementModel({self.adapter.name!r}, {self.transcoders.name!r})"

    def tokenize(
        self, prompt: str | Sequence[int] | Tensor, chat: bool = False
    ) -> Int[Tensor, " position"]:
        """Token ids of a prompt, (P,).

        Text gets the tokenizer's beginning-of-sequence token, also where the tokenizer itself
        would not add one; a list of ids is taken as it is.

        Args:
            chat: the text is what a user says: put it into the tokenizer's chat template, up to
                where the model's answer starts.

        Raises:
            InputError: an empty prompt, ids outside the vocabulary, more tokens than the context;
                `chat` without a template or with ids.
        """
        special = set(self.tokenizer.all_special_ids)
        if isinstance(prompt, str):
            try:
                prompt.encode()
            except UnicodeEncodeError as error:
                raise InputError(f"the prompt is not valid Unicode text: {error}") from error
        if chat:
            if not isinstance(prompt, str):
                raise InputError("chat takes text, which it puts into the template, not token ids")
            if not prompt.strip():
                raise InputError("the prompt is empty; give what the user says")
            ids = self._in_template(prompt)
        elif isinstance(prompt, bytes):
            raise InputError("a prompt is text or a list of token ids: decode these bytes first")
        elif isinstance(prompt, str):
            self._check_length(prompt)
            ids = list(self.tokenizer(prompt)["input_ids"])
            if not ids or all(token in special for token in ids):
                raise InputError('the prompt is empty; give it words: trace "The opposite of …"')
            if ids[0] not in special:
                starts = ("bos_token_id", "pad_token_id", "eos_token_id")
                found = (getattr(self.tokenizer, name, None) for name in starts)
                ids = [next((token for token in found if token is not None), ids[0]), *ids]
        else:
            ids = _numbers(prompt)
            if not ids:
                raise InputError("the prompt is an empty list of token ids; give at least one")
        wrong = [token for token in ids if not 0 <= token < self.adapter.vocabulary]
        if wrong:
            raise InputError(
                f"token id {wrong[0]} is outside the vocabulary of {self.adapter.name}, "
                f"0 to {self.adapter.vocabulary - 1}"
            )
        self._check_count(len(ids))
        return torch.tensor(ids)

    @cached_property
    def _longest_token(self) -> int | None:
        return longest_token(self.tokenizer)

    def _check_length(self, text: str) -> None:
        """Raise InputError for text that cannot fit, before time goes into tokenising it."""
        if len(text) > LONG and self._longest_token is not None:
            least = least_tokens(self.tokenizer, self._longest_token, text)
            self._check_count(least, "at least ")

    def _check_count(self, count: int, about: str = "") -> None:
        context = self.adapter.context
        if context is not None and count > context:
            raise InputError(
                f"the prompt has {about}{count} tokens, more than the {context} that "
                f"{self.adapter.name} reads; shorten it by {about}{count - context}"
            )

    def _in_template(self, prompt: str) -> list[int]:
        if not getattr(self.tokenizer, "chat_template", None):
            raise InputError(
                f"the tokenizer of {self.adapter.name} has no chat template, so it is no "
                "instruction model: leave chat (--chat) out, or write its turns into the prompt"
            )
        says = [{"role": "user", "content": prompt}]
        try:
            text = self.tokenizer.apply_chat_template(
                says, add_generation_prompt=True, tokenize=False
            )
        except Exception as error:  # a template may raise whatever it likes
            raise InputError(
                f"the chat template of {self.adapter.name} fails: {error}. Write its turns into "
                "the prompt instead of chat (--chat)"
            ) from error
        self._check_length(text)
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def special_positions(self, ids: Sequence[int] | Tensor) -> tuple[int, ...]:
        """Positions that hold special tokens: the tokenizer's own and those added as special."""
        added = getattr(self.tokenizer, "added_tokens_decoder", {})
        special = {token for token, entry in added.items() if entry.special}
        special.update(self.tokenizer.all_special_ids)
        return tuple(place for place, token in enumerate(ids) if int(token) in special)

    def ignored_by_default(
        self, ids: Sequence[int] | Tensor, chat: bool = False
    ) -> tuple[int, ...]:
        """Positions whose features swamp a graph, and which are ignored unless one says otherwise.

        Position 0; with `chat` everything before the user's first token, which is the same
        whatever the user says (`<bos><start_of_turn>user\\n`, positions 0 to 3, of Gemma).

        Args:
            ids: (P,) from `tokenize`.
        """
        if not chat:
            return (0,)
        length = len(ids)
        for other in ("", "0", "a"):  # they begin differently: the prompt may begin like one
            differ = zip(ids, self._in_template(other), strict=False)
            length = min(length, next((k for k, (a, b) in enumerate(differ) if a != b), length))
        return tuple(range(max(length, 1)))

    def token_text(self, token: int) -> str:
        """Text of one token; the token's own name where it is not text by itself (bytes)."""
        return self._texts(token)

    def run(self, prompt: str | Sequence[int] | Tensor) -> Forward:
        """One forward pass of one copy of the prompt, watched. The result is the real model's."""
        ids = self.tokenize(prompt)
        check_forward(self.adapter, len(ids))
        return run(self.adapter, self.transcoders, ids)

    def localise(
        self,
        forward: Forward,
        ignored: Sequence[int] = (0,),
        owned: bool = False,
        kernels: Choice = "auto",
    ) -> Local:
        """The local replacement model of a prompt, ignoring features and errors at positions.

        With `owned` it takes the forward pass over, which is of no use to others then.
        """
        with torch.no_grad():
            return Local(self.adapter, self.transcoders, forward, ignored, owned, kernels)

    def intervene(
        self,
        prompt: str | Sequence[int] | Tensor,
        changes: Changes,
        mode: Mode = "free",
        layers: Sequence[int] | None = None,
        freeze_attention: bool = False,
    ) -> Intervention:
        """Change features of a prompt, all at once, and see what happens.

        Args:
            changes: which features → what becomes of them: `Scale(M)` makes an activation M times
                what it is (1 nothing, 0 ablates, −1 flips), `Clamp(v)` makes it v. A key is (layer,
                position, feature) with position a number, a range, or None for every one; or a
                feature node; or a tuple of these. A list of (key, change) pairs will do for a
                mapping, and there a position may be a slice.
            mode: "direct" holds patterns, norms and MLPs, and is linear: what a graph's edges say.
                "constrained" holds patterns and the MLP outputs of `layers`. "free" holds nothing.
                In the first two, changes are relative to activations on the clean pass; in the
                free mode to those on the changed pass itself.
            layers: of the constrained mode; None for all up to the last that is changed. What
                cross-layer features write to other layers is left out.
            freeze_attention: of the free mode: hold attention patterns.

        Raises:
            InputError: a feature, layer or position that is not there, a feature scaled where it is
                not active, nothing to change, options that do not go together.

        Example:
            >>> import circuit_tracer as ct
            >>> model = ct.load()
            >>> changes = {(0, 1, 248): ct.Scale(0)}
            >>> model.intervene("The opposite of small is", changes).table(1)[0].token
            ' large'
        """
        return self.intervene_each(prompt, [changes], mode, layers, freeze_attention)[0]

    def intervene_each(
        self,
        prompt: str | Sequence[int] | Tensor,
        batch: Sequence[Changes],
        mode: Mode = "free",
        layers: Sequence[int] | None = None,
        freeze_attention: bool = False,
    ) -> list[Intervention]:
        """Several interventions, each on its own copy of the prompt, in one forward pass.

        Arguments and errors are those of `intervene`.
        """
        return intervene(
            self.adapter,
            self.transcoders,
            self.run(prompt),
            batch,
            self._texts,
            mode,
            layers,
            freeze_attention,
        )

    def graft(
        self,
        receiver: str | Sequence[int] | Tensor,
        donor: str | Sequence[int] | Tensor,
        take: Sequence[Any],
        remove: Sequence[Any] = (),
        strengths: Sequence[float] = (1.0,),
        removal: float | None = None,
        end_layers: Sequence[int | None] = (None,),
        at: Positions = None,
        tokens: Sequence[int] = (),
    ) -> Grafts:
        """Put features of one prompt, the donor, into another, the receiver.

        Args:
            take: features of the donor, as keys of `intervene`. Each is set to its activation in
                the donor times the strength; where a range of positions is named, at those where
                it is active.
            remove: features of the receiver to scale, named the same way; a place that something
                is put into is left to that.
            strengths: to try, all of them with each end layer.
            removal: what `remove` is multiplied by; None for 1 − strength.
            end_layers: to try: MLP outputs of layers 0 to this one are held at clean + change, and
                attention patterns; None recomputes everything.
            at: where in the receiver what is taken goes: a position, or donor position →
                receiver position. None for the same position counted from the end.
            tokens: ids of further tokens to follow, beside the likeliest of both prompts.

        Raises:
            InputError: as `intervene`; positions that the receiver does not have, two features for
                one place, an end layer below a feature that is changed.

        Example:
            >>> import circuit_tracer as ct
            >>> small, hot = "The opposite of small is", "The opposite of hot is"
            >>> take, remove = [(2, 4, 949)], [(2, 4, 77)]
            >>> ct.load().graft(small, hot, take, remove, strengths=[1, 6]).trials[1].top
            ' cold'
        """
        return graft(
            self, receiver, donor, take, remove, strengths, removal, end_layers, at, tokens
        )

    def generate(
        self,
        prompt: str | Sequence[int] | Tensor,
        steer: Mapping[tuple[int, int], Change],
        max_new_tokens: int = 40,
        temperature: float = 0.0,
        top_k: int | None = None,
        seed: int = 0,
        listener: Listener | None = None,
    ) -> Generation:
        """Continue a prompt with features held at values everywhere, and without.

        Args:
            steer: (layer, feature) → `Clamp(v)`, its activation at every position of prompt and
                text, or `Scale(M)`, times what it is there. `maxima` tells what is large for it.
            max_new_tokens: at most; a text also stops at the model's end token and at the end of
                its context.
            temperature: 0 takes the likeliest token; otherwise tokens are drawn, the same ones for
                the same `seed`, among the `top_k` likeliest (None: all).
            listener: called with (step, steered) as each token is chosen, the unsteered ones first.

        Raises:
            InputError: nothing to steer, a feature that is not there, no room after the prompt.
        """
        return generate(
            self.adapter,
            self.transcoders,
            self.tokenizer,
            self.tokenize(prompt),
            steer,
            max_new_tokens,
            Choosing(temperature, top_k, seed),
            self.token_text,
            listener,
        )

    def maxima(
        self, features: Sequence[tuple[int, int]], texts: Sequence[str | Sequence[int]]
    ) -> dict[tuple[int, int], float]:
        """Largest activation of each (layer, feature) over texts; their first token is left out."""
        ids = [self.tokenize(text) for text in texts]
        return maxima(self.adapter, self.transcoders, features, ids)


class _TokenTexts:
    """Texts of tokens by id. Holds no model: an `Intervention` keeps it, and can be pickled."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.known: dict[int, str] = {}

    def __call__(self, token: int) -> str:
        if token not in self.known:
            text = self.tokenizer.decode([token])
            whole = text and "\ufffd" not in text
            name = text if whole else str(self.tokenizer.convert_ids_to_tokens(token))
            self.known[token] = name
        return self.known[token]


def _numbers(prompt: Any) -> list[int]:
    """Token ids that were given as a prompt. Raises InputError for what are none."""
    try:
        return [operator.index(token) for token in prompt]
    except TypeError:
        shown = repr(prompt)[:60]
        raise InputError(f"a prompt is text or a list of token ids, not {shown}") from None
