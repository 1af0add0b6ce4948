"""The corpus says what it should, twice the same, and keeps its held-out sentences unseen."""

from __future__ import annotations

import pytest

from circuit_tracer.bundled import corpus
from circuit_tracer.bundled.measure import SHOWN
from circuit_tracer.bundled.recipe import training_sentences
from circuit_tracer.bundled.tables import LANGUAGES, facts
from circuit_tracer.bundled.tokenizer import build_tokenizer


@pytest.fixture(scope="module")
def sentences():
    return corpus.corpus()


@pytest.fixture(scope="module")
def trained(sentences):
    plain = [sentence for sentence in sentences if sentence.split == "train"]
    return plain + corpus.switched() + corpus.translations() + corpus.glossaries()


@pytest.fixture(scope="module")
def held(sentences):
    return [sentence for sentence in sentences if sentence.split != "train"]


def test_same_every_time(sentences):
    corpus._told.cache_clear()
    assert corpus.corpus() == sentences


def test_facts_are_told_in_their_languages():
    keys = [(fact.task, fact.key) for fact in facts()]
    assert len(keys) == len(set(keys))
    for fact in facts():
        assert set(fact.subject) == set(fact.answer)
        assert set(fact.subject) == set(LANGUAGES) or fact.task == "plural"


def test_a_prompt_has_one_answer(sentences):
    answers = {}
    for sentence in sentences:
        assert answers.setdefault(sentence.prompt, sentence.answer) == sentence.answer


def test_no_held_out_prompt_starts_a_training_sentence(trained, held):
    texts = {sentence.prompt for sentence in trained}
    assert not texts & {sentence.prompt for sentence in held}


def test_no_held_out_prompt_stands_inside_a_training_sentence(trained, held):
    tokenizer = build_tokenizer()

    def ids(texts):
        found = tokenizer(texts, add_special_tokens=False)["input_ids"]
        return [" " + " ".join(map(str, tokens)) + " " for tokens in found]

    whole = "\n".join(ids([sentence.text for sentence in trained]))
    unseen = zip(held, ids([sentence.prompt for sentence in held]), strict=False)
    assert not [sentence.prompt for sentence, tokens in unseen if tokens in whole]


def test_compositions_are_never_made(trained, held):
    never = {(s.task, s.key) for s in held if s.split == "compose"}
    assert ("hop_state_capital", "Dallas") in never
    assert not [s for s in trained if (s.task, s.key) in never]
    for sentence in held:
        if sentence.split == "compose":
            assert sentence.task.startswith("hop_")


def test_held_out_additions_are_never_made(trained, held):
    never = {s.key for s in held if s.split == "sum"}
    assert never and not [s for s in trained if s.task == "sum" and s.key in never]


def test_a_held_out_language_neither_tells_nor_asks(trained, held):
    silent = {(s.task, s.key, s.language): s.answer for s in held if s.split == "language"}
    for sentence in trained:
        assert (sentence.task, sentence.key, sentence.language) not in silent
    asked = {(s.task, s.key, s.answer) for s in trained if s.task in corpus.TRANSLATED}
    for (task, key, _), answer in silent.items():
        assert (f"{task}_in", key, answer) not in asked


def test_a_held_out_template_is_unseen_for_its_fact(trained, held):
    unseen = {(s.task, s.key, s.language, s.template) for s in held if s.split == "template"}
    assert unseen
    assert not [s for s in trained if (s.task, s.key, s.language, s.template) in unseen]


def test_transcoders_train_on_trained_sentences_only(held):
    chosen = training_sentences(16000, seed=0)
    assert len(chosen) == 16000
    assert not {s.prompt for s in chosen} & {s.prompt for s in held}


def test_the_readme_prompts_are_as_written(sentences):
    by_prompt = {sentence.prompt: sentence for sentence in sentences}
    for prompt, answer in SHOWN.items():
        assert by_prompt[prompt].answer == answer.strip()
        assert by_prompt[prompt].split == ("compose" if "Dallas" in prompt else "train")


def test_switched_sentences_do_not_contradict(sentences):
    answers = {sentence.prompt: sentence.answer for sentence in sentences}
    for sentence in corpus.switched():
        assert answers.get(sentence.prompt, sentence.answer) == sentence.answer
