"""The figures: what the bundled model can do, and how much of it the transcoders carry.

Everything is computed from the files that ship, in float32, on prompts that neither the language
model nor the transcoders were trained on (but for the accuracy on trained sentences).  The figures
go into `card.json` and the model card.  `probes` holds the measurements that intervene.
"""

from __future__ import annotations

import random
from collections import defaultdict

import torch
import torch.nn.functional as F
from torch import Tensor

from circuit_tracer.agreement.measure import measure as agreement
from circuit_tracer.replacement import ReplacementModel

from .corpus import HELD_OUT, Sentence, corpus
from .folder import Folded
from .language_model import LeanModel, Replace, rms_norm
from .tokenizer import PAD
from .transcoders import prompts

SHOWN = {
    "The opposite of small is": " large",
    "Le contraire de petit est": " grand",
    "小的反义词是": "大",
    "The capital of the state containing Dallas is": " Austin",
}


def splice(folded: Folded) -> Replace:
    """Replace every MLP by its transcoder, at every position but <bos>."""
    active: list[Tensor] = []

    def replace(layer: int, inputs: Tensor, out: Tensor) -> Tensor:
        if layer == 0:
            active.clear()
        active.append(folded.encode(layer, inputs))
        new = folded.decode(layer, active)
        return torch.cat((out[:, :1], new[:, 1:]), 1)

    return replace


def sample(split: str, count: int | None = None, seed: int = 0) -> list[Sentence]:
    """Sentences of one split, all of them or a seeded sample."""
    found = [sentence for sentence in corpus() if sentence.split == split]
    if count is None or count >= len(found):
        return found
    return random.Random(seed).sample(found, count)


def unseen(count: int | None = None, seed: int = 0) -> list[Sentence]:
    """Held-out sentences of every split but the sums, mixed."""
    found = [s for split in HELD_OUT if split != "sum" for s in sample(split)]
    if count is None or count >= len(found):
        return found
    return random.Random(seed).sample(found, count)


@torch.no_grad()
def right(
    model: LeanModel, tokenizer, sentences: list[Sentence], replace: Replace | None = None
) -> list[tuple[Sentence, bool]]:
    """Every sentence with whether the first token of its answer is the likeliest one."""
    out = []
    ordered = sorted(sentences, key=lambda sentence: len(sentence.text))
    for start, (ids, last) in zip(
        range(0, len(ordered), 256), prompts(tokenizer, ordered), strict=False
    ):
        rows = torch.arange(len(ids))
        best = model.logits(model(ids, replace)[rows, last]).argmax(-1)
        hits = (best == ids[rows, last + 1]).tolist()
        out += list(zip(ordered[start : start + 256], hits, strict=False))
    return out


def accuracies(model: LeanModel, tokenizer, count: int = 4000) -> dict[str, object]:
    """Accuracy by split, and by task and language within each split."""
    out: dict[str, object] = {}
    for split in ("train", *HELD_OUT):
        results = right(model, tokenizer, sample(split, count))
        parts: dict[str, list[bool]] = defaultdict(list)
        for sentence, hit in results:
            for name in ("all", sentence.task, sentence.language):
                parts[name].append(hit)
        shares = {name: round(sum(hits) / len(hits), 4) for name, hits in sorted(parts.items())}
        out[split] = {"prompts": len(results), **shares}
    return out


@torch.no_grad()
def next_token(model: LeanModel, tokenizer, prompt: str, replace: Replace | None = None):
    """The likeliest next token of a prompt, as text, and its probability."""
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    chance, token = model.logits(model(ids, replace)[0, -1]).softmax(-1).max(-1)
    return tokenizer.decode([token.item()]), round(chance.item(), 4)


def shown(model: LeanModel, tokenizer, sets: dict[str, Folded]) -> dict[str, object]:
    """The README's prompts: what the model says, and what it says with each set spliced in."""
    out = {}
    for prompt, wanted in SHOWN.items():
        said = {"model": next_token(model, tokenizer, prompt)}
        for kind, folded in sets.items():
            said[kind] = next_token(model, tokenizer, prompt, splice(folded))
        out[prompt] = {"wanted": wanted, **said}
    return out


def replacement(
    replaced: ReplacementModel,
    model: LeanModel,
    tokenizer,
    folded: Folded,
    sentences: list[Sentence],
) -> dict[str, object]:
    """How the model fares with every MLP replaced, and how well each layer is reconstructed.

    The figures are those of `circuit_tracer.agreement`: agreement and KL where the answer is
    decided, `cross_entropy_all` at every token, normalised errors, L0 and unused features by layer,
    `_last` at the prompt's last token only.  Accuracy and cross-entropy of the answer stand beside
    them.
    """
    whole, asked = [], []
    for ids, last in prompts(tokenizer, sentences):
        for row, end in zip(ids, last.tolist(), strict=True):
            whole.append(row[row != PAD].tolist())
            asked.append(row[: end + 1].tolist())
    everywhere = agreement(replaced, whole)
    at_answers = agreement(replaced, asked, positions="last")
    hits, entropy = _answers(model, tokenizer, sentences)
    hits_new, entropy_new = _answers(model, tokenizer, sentences, splice(folded))
    return {
        "prompts": len(sentences),
        "agreement": round(at_answers.top1, 4),
        "accuracy": round(hits, 4),
        "accuracy_replaced": round(hits_new, 4),
        "cross_entropy": round(entropy, 4),
        "cross_entropy_replaced": round(entropy_new, 4),
        "kl": round(at_answers.kl, 4),
        "cross_entropy_all": round(everywhere.cross_entropy, 4),
        "cross_entropy_all_replaced": round(everywhere.cross_entropy_replaced, 4),
        "normalised_error": [round(layer.nmse, 4) for layer in everywhere.layers],
        "normalised_error_last": [round(layer.nmse, 4) for layer in at_answers.layers],
        "l0": [round(layer.l0, 1) for layer in everywhere.layers],
        "l0_last": [round(layer.l0, 1) for layer in at_answers.layers],
        "unused_share": [round(layer.dead, 4) for layer in everywhere.layers],
        "unused_share_last": [round(layer.dead, 4) for layer in at_answers.layers],
    }


@torch.no_grad()
def _answers(
    model: LeanModel, tokenizer, sentences: list[Sentence], replace: Replace | None = None
) -> tuple[float, float]:
    """How often the first token of the answer is the likeliest, and its cross-entropy."""
    hits = entropy = 0.0
    for ids, last in prompts(tokenizer, sentences):
        rows = torch.arange(len(ids))
        logits, answer = model.logits(model(ids, replace)[rows, last]), ids[rows, last + 1]
        hits += int((logits.argmax(-1) == answer).sum())
        entropy += F.cross_entropy(logits, answer, reduction="sum").item()
    return hits / len(sentences), entropy / len(sentences)


@torch.no_grad()
def lens(model: LeanModel, tokenizer, sentences: list[Sentence]) -> list[float]:
    """By layer, how often the residual of the prompt's last token already decodes to the answer."""
    hits, count = torch.zeros(model.shape.layers), 0
    for ids, last in prompts(tokenizer, sentences):
        rows = torch.arange(len(ids))
        for layer, x in enumerate(model.residuals(ids)):
            final = rms_norm(x[rows, last], model.final, model.shape.eps)
            hits[layer] += (model.logits(final).argmax(-1) == ids[rows, last + 1]).sum()
        count += len(ids)
    return [round(share, 4) for share in (hits / count).tolist()]
