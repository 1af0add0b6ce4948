"""The replacement model: a model, its tokenizer, and transcoders in place of its MLPs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from circuit_tracer.errors import InputError
from circuit_tracer.forward import Forward, run
from circuit_tracer.local import Local
from circuit_tracer.models.adapter import Adapter
from circuit_tracer.shapes import Int, Tensor
from circuit_tracer.transcoders.base import TranscoderSet


class ReplacementModel:
    """A model with transcoders in place of its MLPs.

    Args:
        adapter: the model as data.
        tokenizer: its Hugging Face tokenizer.
        transcoders: a set that fits it.

    Raises:
        TranscoderError: the set has another layer count or width.
    """

    def __init__(self, adapter: Adapter, tokenizer: Any, transcoders: TranscoderSet):
        transcoders.check_fits(adapter.n_layers, adapter.d_model, adapter.name)
        self.adapter = adapter
        self.tokenizer = tokenizer
        self.transcoders = transcoders

    def __repr__(self) -> str:
        return f"ReplacementModel({self.adapter.name!r}, {self.transcoders.name!r})"

    def tokenize(self, prompt: str | Sequence[int] | Tensor) -> Int[Tensor, " position"]:
        """Token ids of a prompt, (P,).

        Text gets the tokenizer's beginning-of-sequence token, also where the tokenizer itself
        would not add one; a list of ids is taken as it is.

        Raises:
            InputError: an empty prompt, ids outside the vocabulary, more tokens than the context.
        """
        special = set(self.tokenizer.all_special_ids)
        if isinstance(prompt, str):
            ids = list(self.tokenizer(prompt)["input_ids"])
            if not ids or all(token in special for token in ids):
                raise InputError('the prompt is empty; give it words: trace "The opposite of …"')
            if ids[0] not in special:
                starts = ("bos_token_id", "pad_token_id", "eos_token_id")
                found = (getattr(self.tokenizer, name, None) for name in starts)
                ids = [next((token for token in found if token is not None), ids[0]), *ids]
        else:
            ids = [int(token) for token in prompt]
            if not ids:
                raise InputError("the prompt is an empty list of token ids; give at least one")
        wrong = [token for token in ids if not 0 <= token < self.adapter.vocabulary]
        if wrong:
            raise InputError(
                f"token id {wrong[0]} is outside the vocabulary of {self.adapter.name}, "
                f"0 to {self.adapter.vocabulary - 1}"
            )
        context = self.adapter.context
        if context is not None and len(ids) > context:
            raise InputError(
                f"the prompt has {len(ids)} tokens, more than the {context} that "
                f"{self.adapter.name} reads; shorten it by {len(ids) - context}"
            )
        return torch.tensor(ids)

    def token_text(self, token: int) -> str:
        """Text of one token; the token's own name where it is not text by itself (bytes)."""
        text = self.tokenizer.decode([token])
        if text and "\ufffd" not in text:
            return text
        return str(self.tokenizer.convert_ids_to_tokens(token))

    def run(self, prompt: str | Sequence[int] | Tensor) -> Forward:
        """One forward pass of one copy of the prompt, watched. The result is the real model's."""
        ids = self.tokenize(prompt)
        return run(self.adapter, self.transcoders, ids)

    def localise(self, forward: Forward, ignored: Sequence[int] = (0,)) -> Local:
        """The local replacement model of a prompt, ignoring features and errors at positions."""
        with torch.no_grad():
            return Local(self.adapter, self.transcoders, forward, ignored)
