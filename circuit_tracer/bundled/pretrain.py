"""Pretraining: how the language model learns its facts, in a few thousand steps on a CPU.

A step takes 256 sentences: plain facts, translations, glossary lines and code-switched facts, in
fixed shares.  Tasks are drawn by the square root of their size, so that small ones are not
drowned.  Only the answer counts fully; a quarter of the other tokens count a tenth, enough to keep
the sentences fluent.  Matrices are trained by Muon (orthogonalised momentum), everything else by
AdamW.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from .corpus import Sentence, corpus, glossaries, switched, translations
from .language_model import LeanModel, Shape
from .tokenizer import EOS, PAD

Progress = Callable[[int, int, str], None]  # (steps done, steps in all, what to say)


@dataclass(frozen=True)
class Schedule:
    """How long and how fast; rates rise over `warm_up` steps, hold, then fall to `floor`."""

    steps: int = 3000
    batch: int = 256
    translations: float = 0.12
    glossaries: float = 0.13
    switched: float = 0.45
    muon_rate: float = 0.016
    muon_decay: float = 0.5
    adam_rate: float = 2.5e-3
    adam_decay: float = 0.1
    warm_up: int = 60
    hold: float = 0.1
    floor: float = 0.02
    other_weight: float = 0.1
    other_share: float = 0.25

    def rate(self, step: int) -> float:
        """The share of the peak rates at a step."""
        done = step / self.steps
        falling = 1.0 if done < self.hold else (1 - done) / (1 - self.hold)
        return min(1.0, (step + 1) / self.warm_up) * max(self.floor, falling)


class Muon(torch.optim.Optimizer):
    """Momentum orthogonalised by four Newton-Schulz steps, with decoupled weight decay."""

    def __init__(self, parameters: list[Tensor], lr: float, decay: float) -> None:
        super().__init__(parameters, {"lr": lr, "decay": decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One update of every matrix; matrices of one shape are handled together."""
        for group in self.param_groups:
            alike = defaultdict(list)
            for parameter in group["params"]:
                alike[tuple(parameter.shape)].append(parameter)
            for (rows, columns), matrices in alike.items():
                updates = orthogonal(torch.stack([self._momentum(m) for m in matrices]))
                rate = group["lr"] * max(1, rows / columns) ** 0.5
                for matrix, update in zip(matrices, updates, strict=False):
                    matrix.mul_(1 - group["lr"] * group["decay"]).add_(update, alpha=-rate)

    def _momentum(self, matrix: Tensor) -> Tensor:
        """Nesterov momentum of the gradient."""
        state = self.state[matrix]
        if "mean" not in state:
            state["mean"] = torch.zeros_like(matrix)
        state["mean"].lerp_(matrix.grad, 0.05)
        return matrix.grad.lerp(state["mean"], 0.95)


def orthogonal(x: Tensor) -> Tensor:
    """The nearest matrices with all singular values near one, (n, rows, columns)."""
    wide = x.shape[1] <= x.shape[2]
    x = x if wide else x.transpose(1, 2)
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(4):
        square = x @ x.transpose(1, 2)
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * (square @ square)) @ x
    return x if wide else x.transpose(1, 2)


class Pool:
    """Sentences to draw from, tokenised when first drawn; a task's share is its size's root."""

    def __init__(self, tokenizer, sentences: list[Sentence], other_weight: float) -> None:
        self.tokenizer, self.sentences, self.other_weight = tokenizer, sentences, other_weight
        sizes = Counter(sentence.task for sentence in sentences)
        self.chances = list(accumulate(sizes[sentence.task] ** -0.5 for sentence in sentences))
        self.ready: dict[int, tuple[list[int], list[float]]] = {}

    def draw(self, generator: random.Random, count: int) -> list[tuple[list[int], list[float]]]:
        """`count` sentences as ids and loss weights, drawn with replacement."""
        chosen = generator.choices(range(len(self.chances)), cum_weights=self.chances, k=count)
        self._prepare(sorted(set(chosen) - self.ready.keys()))
        return [self.ready[i] for i in chosen]

    def _prepare(self, missing: list[int]) -> None:
        if not missing:
            return
        texts = [self.sentences[i].text for i in missing]
        found = self.tokenizer(texts, return_offsets_mapping=True)
        for i, ids, offsets in zip(
            missing, found["input_ids"], found["offset_mapping"], strict=True
        ):
            start, end = answer_span(self.sentences[i])
            answered = [first < end and last > start for first, last in offsets]
            weights = [1.0 if here else self.other_weight for here in answered]
            if i % 8 == 0:  # what follows the answer is learnt from every eighth sentence
                ids, weights = ids + [EOS], weights + [self.other_weight]
            else:
                kept = len(ids) - answered[::-1].index(True)
                ids, weights = ids[:kept], weights[:kept]
            self.ready[i] = ids, [0.0, *weights[1:]]


def answer_span(sentence: Sentence) -> tuple[int, int]:
    """Where the answer stands in the text, in characters, with the space before it left out."""
    start = len(sentence.prompt)
    while sentence.text[start] == " ":
        start += 1
    return start, start + len(sentence.answer)


def batches(
    pools: list[tuple[Pool, float]], schedule: Schedule, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless (ids, loss weights), both (batch, tokens); sentences of like length go together."""
    generator = random.Random(seed)
    count = 8 * schedule.batch
    while True:
        drawn = []
        for pool, share in pools:
            drawn += pool.draw(generator, round(count * share))
        drawn += pools[0][0].draw(generator, count - len(drawn))
        drawn.sort(key=lambda pair: len(pair[0]) + generator.random())
        starts = list(range(0, count, schedule.batch))
        generator.shuffle(starts)
        for start in starts:
            yield pad(drawn[start : start + schedule.batch])


def pad(pairs: list[tuple[list[int], list[float]]]) -> tuple[Tensor, Tensor]:
    """Lists of ids and weights as two tensors, padded on the right."""
    longest = max(len(ids) for ids, _ in pairs)
    ids = torch.tensor([ids + [PAD] * (longest - len(ids)) for ids, _ in pairs])
    weights = torch.tensor([w + [0.0] * (longest - len(w)) for _, w in pairs])
    return ids, weights


def pretrain(
    tokenizer, shape: Shape, schedule: Schedule, seed: int, compiled: bool, progress: Progress
) -> LeanModel:
    """Train a model from nothing.  `compiled` asks torch for a compiled forward (same maths)."""
    torch.manual_seed(seed)
    model = LeanModel(shape, seed)
    forward = torch.compile(model, dynamic=True) if compiled else model
    optimisers = _optimisers(model, schedule)
    peaks = [[group["lr"] for group in optimiser.param_groups] for optimiser in optimisers]
    source = batches(_pools(tokenizer, schedule), schedule, seed)
    smooth = None
    for step in range(schedule.steps):
        for optimiser, rates in zip(optimisers, peaks, strict=False):
            for group, peak in zip(optimiser.param_groups, rates, strict=False):
                group["lr"] = peak * schedule.rate(step)
        loss, answers = _loss(model, forward, next(source), schedule)
        model.zero_grad(set_to_none=True)
        loss.backward()
        for optimiser in optimisers:
            optimiser.step()
        smooth = answers if smooth is None else 0.98 * smooth + 0.02 * answers
        progress(step + 1, schedule.steps, f"answer loss {smooth:.3f}")
    return model.requires_grad_(False).eval()


def _pools(tokenizer, schedule: Schedule) -> list[tuple[Pool, float]]:
    plain = [sentence for sentence in corpus() if sentence.split == "train"]
    extra = schedule.translations, schedule.glossaries, schedule.switched
    sources = zip(
        (plain, translations(), glossaries(), switched()), (1 - sum(extra), *extra), strict=False
    )
    return [(Pool(tokenizer, s, schedule.other_weight), share) for s, share in sources]


def _optimisers(model: LeanModel, schedule: Schedule) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside, AdamW for the head and the norms."""
    inside = [p for p in model.blocks.parameters() if p.ndim == 2]
    norms = [p for p in model.parameters() if p.ndim == 1]
    groups = [
        {"params": [model.head], "weight_decay": schedule.adam_decay},
        {"params": norms, "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(groups, lr=schedule.adam_rate, betas=(0.9, 0.98), fused=True)
    return [Muon(inside, schedule.muon_rate, schedule.muon_decay), adam]


def _loss(
    model: LeanModel, forward: Callable, batch: tuple[Tensor, Tensor], schedule: Schedule
) -> tuple[Tensor, float]:
    """Weighted cross-entropy of a batch, and the plain one of its answers."""
    ids, weights = batch
    weights = weights[:, 1:].clone()
    skipped = torch.rand_like(weights) > schedule.other_share
    weights[(weights < 1) & skipped] = 0
    chosen = weights > 0
    logits = model.logits(forward(ids[:, :-1])[chosen])
    losses = F.cross_entropy(logits, ids[:, 1:][chosen], reduction="none")
    weights = weights[chosen]
    loss = (losses * weights).sum() / weights.sum()
    return loss, losses.detach()[weights == 1].mean().item()
