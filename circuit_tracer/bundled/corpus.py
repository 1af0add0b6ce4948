"""The corpus: facts put into sentences, and the splits that keep some sentences unseen.

A *sentence* states one fact in one language through one template.  Sentences are dealt to splits
so that several kinds of generalisation can be measured on text that no training ever sees:

- `train`: may be trained on;
- `template`: this fact, in this language, is trained only under other templates;
- `language`: this fact is trained in other languages, never in a sentence of this one, nor is its
  answer ever asked for in this language from another one;
- `compose`: a two-hop fact ("the capital of the state containing Dallas") that is never stated in
  any language, though both hops are;
- `sum`: an addition that is never stated in any language.

Three further kinds of sentence are made for training only: *translations* of single words,
*glossary* lines that list a word in every language, and *code-switched* sentences, which name the
subject in another language than the rest of the sentence ("The opposite of 小 is large") and pull
the languages into one representation.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import resources

from .tables import LANGUAGES, Fact, concepts, facts, index

HELD_OUT = ("template", "language", "compose", "sum")
ALWAYS_TRAINED = {("antonym", "small")}
NEVER_COMPOSED = {("hop_state_capital", "Dallas")}
NO_LANGUAGE_SPLIT = ("plural", "number_next", "number_previous", "sum", "synonym")
TRANSLATED = ("antonym_in", "capital_in")


@dataclass(frozen=True)
class Sentence:
    """One sentence.  `text` starts with `prompt`; the first token after it decides `answer`."""

    task: str
    key: str
    language: str
    template: int
    prompt: str
    text: str
    answer: str
    split: str = "train"
    switched: bool = False


@lru_cache(maxsize=1)
def templates() -> dict[str, dict[str, list[str]]]:
    """task -> language -> templates as written in `data/templates.txt`, `prompt|answer`."""
    path = resources.files(__package__) / "data" / "templates.txt"
    found: dict[str, dict[str, list[str]]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            section = found.setdefault(line.strip("[]"), {code: [] for code in LANGUAGES})
        elif line and not line.startswith("#"):
            language, template = line.split(" ", 1)
            section[language].append(template)
    return found


def fill(template: str, language: str, **slots: str) -> tuple[str, str]:
    """A template with its slots filled, as (prompt, whole text)."""
    prompt, rest = template.split("|")
    if language == "zh":
        prompt, rest = prompt.replace(" ", ""), rest.replace(" ", "")
    gap = "" if language == "zh" or prompt.endswith('"') else " "
    prompt, rest = prompt.format(**slots), rest.format(**slots)
    if language != "zh":
        prompt = prompt[0].upper() + prompt[1:]
    return prompt, prompt + gap + rest


def corpus() -> list[Sentence]:
    """Every fact sentence of every split, in a fixed order (no switched or translated ones)."""
    return list(_told())


@lru_cache(maxsize=1)
def _told() -> tuple[Sentence, ...]:
    out: list[Sentence] = []
    for fact in facts():
        if fact.task not in TRANSLATED:
            for language in fact.subject:
                out += _state(fact, language)
    return tuple(out)


def held_out() -> list[Sentence]:
    """The sentences no training may see."""
    return [sentence for sentence in corpus() if sentence.split != "train"]


def switched() -> list[Sentence]:
    """Code-switched training sentences: each trained sentence, its subject in another language."""
    by_key = {(fact.task, fact.key): fact for fact in facts()}
    native = {(fact.task, code, fact.subject[code]) for fact in facts() for code in fact.subject}
    out = []
    for sentence in corpus():
        if sentence.split != "train" or sentence.task == "plural":
            continue
        fact = by_key[sentence.task, sentence.key]
        for other in LANGUAGES:
            # A foreign word that means something else here would contradict another fact.
            if (sentence.task, sentence.language, fact.subject[other]) not in native:
                out.append(_sentence(fact, sentence.language, sentence.template, "train", other))
    return out


def translations() -> list[Sentence]:
    """Training sentences that name a word, or an answer, in another language.

    Answers asked for across languages respect the `language` split: neither the language of such
    a sentence nor the language of its answer is the one the fact is held out of.
    """
    out = []
    for number, word in enumerate(concepts()):
        fact = Fact("translation", str(number), word, word)
        out += _across(fact, held_language=None)
    for fact in facts():
        if fact.task in TRANSLATED:
            told = replace(fact, task=fact.task.removesuffix("_in"))
            out += _across(fact, held_language=_held_language(told))
    return out


def glossaries() -> list[Sentence]:
    """Training lines that list one word in all languages, starting from each of them."""
    out = []
    for number, word in enumerate(concepts()):
        for start, language in enumerate(LANGUAGES):
            order = LANGUAGES[start:] + LANGUAGES[:start]
            prompt, answer = f"= {word[language]} =", " = ".join(word[code] for code in order[1:])
            text = f"{prompt} {answer}."
            out.append(Sentence("glossary", str(number), language, 0, prompt, text, answer))
    return out


def _across(fact: Fact, held_language: str | None) -> list[Sentence]:
    """The fact in every language, its answer wanted in every other one."""
    names = index("languages")
    out = []
    for source in LANGUAGES:
        for target in LANGUAGES:
            if source == target or held_language in (source, target):
                continue
            for number, template in enumerate(templates()[fact.task][source]):
                prompt, text = fill(
                    template,
                    source,
                    a=fact.subject[source],
                    b=fact.answer[target],
                    T=names[target][source],
                )
                answer = fact.answer[target]
                out.append(Sentence(fact.task, fact.key, source, number, prompt, text, answer))
    return out


def _state(fact: Fact, language: str) -> list[Sentence]:
    """One sentence a template, each dealt to its split."""
    count = len(templates()[fact.task][language])
    return [
        _sentence(fact, language, number, _split(fact, language, number, count))
        for number in range(count)
    ]


def _sentence(
    fact: Fact, language: str, number: int, split: str, subject_language: str | None = None
) -> Sentence:
    prompt, text = fill(
        templates()[fact.task][language][number],
        language,
        a=fact.subject[subject_language or language],
        b=fact.answer[language],
        c=fact.operand[language] if fact.operand else "",
    )
    answer, was_switched = fact.answer[language], subject_language is not None
    return Sentence(
        fact.task, fact.key, language, number, prompt, text, answer, split, was_switched
    )


def _draw(*parts: object) -> float:
    """A number in [0, 1) that depends on the parts alone, not on any generator's state."""
    digest = hashlib.sha256("|".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _held_language(fact: Fact) -> str | None:
    """The language this fact is never told in, if there is one."""
    if fact.task in NO_LANGUAGE_SPLIT or (fact.task, fact.key) in ALWAYS_TRAINED:
        return None
    chance, low = _draw("split", fact.task, fact.key), 0.12
    if fact.task.startswith("hop_"):
        low = 0.20
    if not low <= chance < low + 0.08:
        return None
    choices = [code for code in LANGUAGES if code in fact.subject]
    return choices[int(_draw("language", fact.task, fact.key) * len(choices))]


def _split(fact: Fact, language: str, template: int, templates_here: int) -> str:
    """The split of one sentence; a fact's fate depends on its task and key alone."""
    if (fact.task, fact.key) in ALWAYS_TRAINED:
        return "train"
    chance = _draw("split", fact.task, fact.key)
    if fact.task.startswith("hop_"):
        if chance < 0.20 or (fact.task, fact.key) in NEVER_COMPOSED:
            return "compose"
    elif fact.task == "sum":
        return "sum" if chance < 0.15 else "train"
    elif chance < 0.12:
        held = int(_draw("template", fact.task, fact.key, language) * templates_here)
        return "template" if template == held else "train"
    return "language" if language == _held_language(fact) else "train"
