"""The probes: does the model compute as its graphs will say, and do its languages share features?

*Patches* put the residual of one prompt's subject into another prompt and look where the answer
goes: a state's residual in the place of a city must give that state's capital, a Chinese word in
an English prompt the English answer.  *Overlap* compares the features that are active at the last
token of the same fact in two languages with those of other facts.
"""

from __future__ import annotations

import random
from itertools import combinations

import torch
from torch import Tensor

from .corpus import Sentence, corpus
from .folder import Folded
from .language_model import LeanModel, Patch
from .tables import LANGUAGES, Fact, facts

CITY = "The capital of the state containing {} is"
STATE = "The capital of the state of {} is"
CITY_ZH = "包含{}的州的首府是"
OPPOSITE = "The opposite of {} is"
OPPOSITE_ZH = "{}的反义词是"


def patches(model: LeanModel, tokenizer, pairs: int = 80, seed: int = 0) -> dict[str, list[float]]:
    """By layer patched after, how often the answer becomes the donor's, for four kinds of donor."""
    by = {task: _by_key(task) for task in ("hop_state_capital", "state_capital", "antonym")}
    cities, states, words = (list(by[task].values()) for task in by)

    def run(prompt: str, receivers: list[Fact], donor: str, donors: list[Fact], code: str):
        return _patch(model, tokenizer, (prompt, receivers), (donor, donors, code), pairs, seed)

    return {
        "city_to_city": run(CITY, cities, CITY, cities, "en"),
        "state_to_city": run(CITY, cities, STATE, states, "en"),
        "chinese_city_to_english": run(CITY, cities, CITY_ZH, cities, "zh"),
        "chinese_word_to_english": run(OPPOSITE, words, OPPOSITE_ZH, words, "zh"),
    }


@torch.no_grad()
def _patch(
    model: LeanModel,
    tokenizer,
    receiver: tuple[str, list[Fact]],
    donor: tuple[str, list[Fact], str],
    pairs: int,
    seed: int,
) -> list[float]:
    """Share of pairs, by layer, whose answer becomes the donor's English answer."""
    generator, hits, count = random.Random(seed), torch.zeros(model.shape.layers), 0
    while count < pairs:
        old, new = generator.choice(receiver[1]), generator.choice(donor[1])
        wanted = tokenizer(" " + new.answer["en"])["input_ids"][1]
        if wanted == tokenizer(" " + old.answer["en"])["input_ids"][1]:
            continue
        ids, place = _subject(tokenizer, receiver[0], old.subject["en"])
        other, there = _subject(tokenizer, donor[0], new.subject[donor[2]])
        moved = model.residuals(other)[:, 0, there]
        for layer in range(model.shape.layers):
            put = _putting(layer, place, moved[layer])
            answer = model.logits(model(ids, patch=put)[0, -1]).argmax().item()
            hits[layer] += answer == wanted
        count += 1
    return [round(share, 3) for share in (hits / count).tolist()]


def _putting(layer: int, place: int, value: Tensor) -> Patch:
    """A patch that puts one residual (d_model) at one place after one layer."""

    def put(here: int, x: Tensor) -> Tensor:
        if here == layer:
            x = x.clone()
            x[0, place] = value
        return x

    return put


def _by_key(task: str) -> dict[str, Fact]:
    return {fact.key: fact for fact in facts() if fact.task == task}


def _subject(tokenizer, template: str, subject: str) -> tuple[Tensor, int]:
    """The ids of a prompt, (1, tokens), and the position of its subject's last token."""
    prompt = template.format(subject)
    end = template.index("{}") + len(subject)
    found = tokenizer(prompt, return_offsets_mapping=True)
    spans = found["offset_mapping"]
    place = max(i for i, (start, stop) in enumerate(spans) if i and start < end and stop <= end)
    return torch.tensor([found["input_ids"]]), place


def overlap(
    model: LeanModel, tokenizer, folded: Folded, count: int = 250, seed: int = 5
) -> dict[str, dict[str, list[float]]]:
    """Language pair -> kind of comparison -> mean intersection over union by layer.

    Features active at the last token of a prompt; only facts whose subject is spelled differently
    in every language.  `same_fact`, `same_task` (another fact) and `unrelated` (another task).
    """
    chosen = _parallel(count, seed)
    on = {key: _active(model, tokenizer, folded, row) for key, row in chosen.items()}
    generator = random.Random(seed)
    keys = list(chosen)
    out = {}
    for one, other in combinations(LANGUAGES, 2):
        rows: dict[str, list[tuple]] = {"same_fact": [], "same_task": [], "unrelated": []}
        for key in keys:
            alike = [k for k in keys if k[0] == key[0] and k[1] != key[1]]
            unlike = [k for k in keys if k[0] != key[0]]
            if not alike or not unlike:
                continue
            rows["same_fact"].append((on[key][one], on[key][other]))
            rows["same_task"].append((on[key][one], on[generator.choice(alike)][other]))
            rows["unrelated"].append((on[key][one], on[generator.choice(unlike)][other]))
        out[f"{one}-{other}"] = {name: _mean_iou(pairs) for name, pairs in rows.items()}
    return out


def _parallel(count: int, seed: int) -> dict[tuple[str, str, int], dict[str, Sentence]]:
    """(task, fact, template) -> language -> sentence, where all five languages have it."""
    tasks = ("antonym", "synonym", "color", "category", "day_next", "month_previous")
    names = {(fact.task, fact.key): fact.subject for fact in facts()}
    found: dict[tuple[str, str, int], dict[str, Sentence]] = {}
    for sentence in corpus():
        subjects = names[sentence.task, sentence.key]
        apart = len({subject.lower() for subject in subjects.values()}) == len(LANGUAGES)
        if sentence.task in tasks and apart:
            key = (sentence.task, sentence.key, sentence.template)
            found.setdefault(key, {})[sentence.language] = sentence
    whole = [key for key, row in found.items() if len(row) == len(LANGUAGES)]
    chosen = random.Random(seed).sample(whole, min(count, len(whole)))
    return {key: found[key] for key in chosen}


@torch.no_grad()
def _active(
    model: LeanModel, tokenizer, folded: Folded, row: dict[str, Sentence]
) -> dict[str, list[Tensor]]:
    """Language -> layer -> which features are active at the prompt's last token."""
    out = {}
    for code, sentence in row.items():
        inputs, _ = model.sites(torch.tensor([tokenizer(sentence.prompt)["input_ids"]]))
        out[code] = [folded.encode(i, x[0, -1]) > 0 for i, x in enumerate(inputs)]
    return out


def _mean_iou(pairs: list[tuple[list[Tensor], list[Tensor]]]) -> list[float]:
    layers = len(pairs[0][0])
    out = []
    for layer in range(layers):
        one = torch.stack([a[layer] for a, _ in pairs])
        other = torch.stack([b[layer] for _, b in pairs])
        both, either = (one & other).sum(1), (one | other).sum(1).clamp(min=1)
        out.append(round((both / either).mean().item(), 4))
    return out


def sharing(table: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, float]]:
    """Language pair -> its best inner layer: overlap there, over same-task and unrelated facts.

    Layers 0 and 1 see two tokens only and the last one writes words, so they do not count.  The
    best layer is the one with the highest smaller ratio of the two, each measured against its goal
    (three times same-task, six times unrelated).
    """
    out = {}
    for pair, rows in table.items():
        best = None
        for layer in range(2, len(rows["same_fact"]) - 1):
            same = rows["same_fact"][layer]
            over_task = same / max(rows["same_task"][layer], 1e-4)
            over_unrelated = same / max(rows["unrelated"][layer], 1e-4)
            rank = min(over_task / 3, over_unrelated / 6)
            if best is None or rank > best[0]:
                best = (rank, layer, same, over_task, over_unrelated)
        names = ("layer", "same_fact", "over_same_task", "over_unrelated")
        out[pair] = dict(
            zip(names, (best[1], *(round(value, 3) for value in best[2:])), strict=False)
        )
    return out
