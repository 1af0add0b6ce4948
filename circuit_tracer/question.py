"""A question to a model: a prompt, what of its output to explain, and within which limits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from circuit_kernels.choice import Choice
from circuit_tracer.errors import InputError
from circuit_tracer.estimate import MaxFeatures
from circuit_tracer.forward import Forward
from circuit_tracer.keeping import KeepEdges
from circuit_tracer.replacement import ReplacementModel
from circuit_tracer.targets import At, Readout, Wanted, answer_tokens, choose, place

Prompt = str | Sequence[int] | torch.Tensor
IgnorePositions = Literal["bos", "special", "none"] | Sequence[int]
Choosing = Callable[[Forward], list[Readout]]


@dataclass(frozen=True)
class Question:
    """What `trace` is asked; its arguments, by their names and with their defaults."""

    prompt: Prompt
    targets: Sequence[Wanted] | None = None
    max_features: MaxFeatures = "auto"
    max_logits: int = 10
    logit_probability: float = 0.95
    ignore_positions: IgnorePositions = "bos"
    positions: int | Sequence[int] | None = None
    answer: str | Sequence[int] | None = None
    chat: bool = False
    kernels: Choice = "auto"
    keep_edges: KeepEdges = "auto"

    @property
    def everything(self) -> bool:
        """Whether nothing is asked to be left out: no feature, and no edge."""
        return self.max_features in (None, "auto") and self.keep_edges in (1, "auto")

    def put(self, model: ReplacementModel) -> tuple[list[int], Choosing]:
        """(token ids that go through the model, what to read once they have).

        Raises:
            InputError: an empty or too long prompt, an answer that cannot be written, arguments
                that exclude each other.
        """
        if not isinstance(model, ReplacementModel):
            raise InputError(f"model is what load() gives, not {model!r}: trace(prompt, load(…))")
        prompt = model.tokenize(self.prompt, chat=True) if self.chat else self.prompt
        start = model.tokenize(prompt).tolist()
        if self.answer is None:
            places = -1 if self.positions is None else self.positions
            limits = self.max_logits, self.logit_probability
            return start, lambda forward: choose(model, forward, self.targets, *limits, places)
        if self.targets is not None or self.positions is not None:
            raise InputError("answer says what to explain and where: leave out targets, positions")
        follows = answer_tokens(model, prompt if isinstance(prompt, str) else start, self.answer)
        wanted = [At(token, len(start) - 1 + k) for k, token in enumerate(follows)]
        return [*start, *follows[:-1]], lambda forward: [
            replace(found, weight=1.0) for found in choose(model, forward, wanted)
        ]

    def ignored(self, model: ReplacementModel, ids: list[int]) -> tuple[int, ...]:
        """Positions whose features and errors are left out."""
        ignore = self.ignore_positions
        if isinstance(ignore, int):
            raise InputError(f"ignore_positions is a list of positions: give [{ignore}]")
        if not isinstance(ignore, str):
            return tuple(dict.fromkeys(place(position, len(ids)) for position in ignore))
        if ignore == "special":
            return tuple(model.special_positions(ids))
        if ignore not in ("bos", "none"):
            raise InputError(
                'ignore_positions must be "bos", "special", "none" or a list of positions, not '
                f"{ignore!r}"
            )
        return model.ignored_by_default(ids, self.chat) if ignore == "bos" else ()

    def settings(self) -> dict[str, Any]:
        """What a graph's provenance says of it, as JSON values."""
        return {
            "max_features": self.max_features,
            "max_logits": self.max_logits,
            "logit_probability": self.logit_probability,
            "kernels": self.kernels,
            "keep_edges": self.keep_edges,
            "positions": _plain(self.positions),
            "answer": _plain(self.answer),
            "chat": self.chat,
        }


def _plain(value: int | str | Sequence[int] | None) -> int | str | list[int] | None:
    """A setting as JSON holds it."""
    return value if value is None or isinstance(value, int | str) else [int(one) for one in value]
