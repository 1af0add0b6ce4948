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


@torch.no_grad()
def replacement(model: LeanModel, tokenizer, folded: Folded, sentences: list[Sentence]):
    """How the model fares with every MLP replaced, and how well each layer is reconstructed.

    Agreement, cross-entropy and KL are taken where the answer is decided; `cross_entropy_all` at
    every token.  Normalised errors, L0 and unused features are by layer, `_last` at the prompt's
    last token only.
    """
    total: dict[str, float] = defaultdict(float)
    layers = model.shape.layers
    sums = {name: torch.zeros(layers) for name in ("error", "spread", "error_last", "spread_last")}
    counts = {name: torch.zeros(layers) for name in ("active", "active_last")}
    width = folded.w_enc[0].shape[0]
    fired = {name: torch.zeros(layers, width, dtype=torch.bool) for name in ("all", "last")}
    for ids, last in prompts(tokenizer, sentences):
        rows, kept = torch.arange(len(ids)), ids != PAD
        kept[:, 0] = False
        clean, new = model(ids), model(ids, splice(folded))
        _compare(model, total, clean, new, ids, last)
        inputs, outputs = model.sites(ids)
        active: list[Tensor] = []
        for layer in range(layers):
            active.append(folded.encode(layer, inputs[layer]))
            wrong = outputs[layer] - folded.decode(layer, active)
            spread = outputs[layer] - outputs[layer][kept].mean(0)
            spread_last = outputs[layer] - outputs[layer][rows, last].mean(0)
            sums["error"][layer] += wrong[kept].square().sum()
            sums["spread"][layer] += spread[kept].square().sum()
            sums["error_last"][layer] += wrong[rows, last].square().sum()
            sums["spread_last"][layer] += spread_last[rows, last].square().sum()
            on = active[layer] > 0
            counts["active"][layer] += on[kept].sum()
            counts["active_last"][layer] += on[rows, last].sum()
            fired["all"][layer] |= on[kept].any(0)
            fired["last"][layer] |= on[rows, last].any(0)
        total["tokens"] += int(kept.sum())
    answers = total["answers"]
    return {
        "prompts": int(answers),
        "agreement": round(total["agree"] / answers, 4),
        "accuracy": round(total["hit_clean"] / answers, 4),
        "accuracy_replaced": round(total["hit_new"] / answers, 4),
        "cross_entropy": round(total["ce_clean"] / answers, 4),
        "cross_entropy_replaced": round(total["ce_new"] / answers, 4),
        "kl": round(total["kl"] / answers, 4),
        "cross_entropy_all": round(total["ce_clean_all"] / total["next"], 4),
        "cross_entropy_all_replaced": round(total["ce_new_all"] / total["next"], 4),
        "normalised_error": _rounded(sums["error"] / sums["spread"], 4),
        "normalised_error_last": _rounded(sums["error_last"] / sums["spread_last"], 4),
        "l0": _rounded(counts["active"] / total["tokens"], 1),
        "l0_last": _rounded(counts["active_last"] / answers, 1),
        "unused_share": _rounded(1 - fired["all"].float().mean(1), 4),
        "unused_share_last": _rounded(1 - fired["last"].float().mean(1), 4),
    }


def _compare(
    model: LeanModel, total: dict[str, float], clean: Tensor, new: Tensor, ids: Tensor, last: Tensor
) -> None:
    """Add one batch's comparison of final residuals, clean and replaced, to the totals."""
    rows, follows = torch.arange(len(ids)), ids[:, 1:] != PAD
    answer = ids[rows, last + 1]
    logits = {"clean": model.logits(clean[rows, last]), "new": model.logits(new[rows, last])}
    for name, here in (("clean", clean), ("new", new)):
        total[f"hit_{name}"] += int((logits[name].argmax(-1) == answer).sum())
        total[f"ce_{name}"] += F.cross_entropy(logits[name], answer, reduction="sum").item()
        every = model.logits(here[:, :-1][follows])
        truth = ids[:, 1:][follows]
        total[f"ce_{name}_all"] += F.cross_entropy(every, truth, reduction="sum").item()
    total["agree"] += int((logits["clean"].argmax(-1) == logits["new"].argmax(-1)).sum())
    logs = logits["new"].log_softmax(-1), logits["clean"].log_softmax(-1)
    total["kl"] += F.kl_div(*logs, log_target=True, reduction="sum").item()
    total["answers"] += len(ids)
    total["next"] += int(follows.sum())


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
    return _rounded(hits / count, 4)


def _rounded(values: Tensor, digits: int) -> list[float]:
    return [round(value, digits) for value in values.tolist()]
