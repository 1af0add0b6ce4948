"""Instruction models: the tokenizer's template, and what is ignored of it."""

from __future__ import annotations

import json

import pytest
import tiny
import torch

import circuit_tracer as ct
from circuit_tracer.errors import InputError
from circuit_tracer.models.adapter import Adapter
from circuit_tracer.replacement import ReplacementModel

# Gemma's template, each part one word: <bos> <turn> user newline, what is said, and so on.
TEMPLATE = (
    "{{ bos_token }} {% for message in messages %}<turn> w6 w7 {{ message['content'] }} <end> "
    "{% endfor %}{% if add_generation_prompt %}<turn> w8{% endif %}"
)
TURN, END = 4, 5


@pytest.fixture
def model():
    tokenizer = tiny.tokenizer()
    vocabulary = tokenizer.get_vocab()
    assert (vocabulary["w4"], vocabulary["w5"]) == (TURN, END)
    tokenizer.chat_template = TEMPLATE.replace("<turn>", "w4").replace("<end>", "w5")
    tokenizer.add_special_tokens({"additional_special_tokens": ["w4", "w5"]})
    adapter = Adapter(tiny.model("gemma3"), "tiny", torch.float64)
    return ReplacementModel(adapter, tokenizer, tiny.transcoders())


def test_a_prompt_is_put_into_the_template(model):
    ids = model.tokenize("w20 w21", chat=True)
    assert ids.tolist() == [2, TURN, 6, 7, 20, 21, END, TURN, 8]


def test_special_positions_are_those_of_special_and_added_tokens(model):
    ids = model.tokenize("w20 w21", chat=True)
    assert model.special_positions(ids) == (0, 1, 6, 7)
    assert model.special_positions([20, 21]) == ()


@pytest.mark.parametrize("said", ["w20 w21", "0", "a", "a w20", "w6"])
def test_the_opening_of_the_template_is_ignored_whatever_is_said(model, said):
    assert model.ignored_by_default(model.tokenize(said, chat=True), chat=True) == (0, 1, 2, 3)
    assert model.ignored_by_default(model.tokenize("w20")) == (0,)


def test_a_trace_of_a_chat_ignores_the_opening_and_closes(model):
    graph = ct.trace("w20 w21", model, chat=True)
    assert graph.token_ids == (2, TURN, 6, 7, 20, 21, END, TURN, 8)
    assert graph.provenance.ignored_positions == (0, 1, 2, 3)
    assert graph.provenance.prompt == "w20 w21"
    assert graph.closure_error < 1e-12
    assert ct.trace("w20 w21", model, chat=True, ignore_positions="none").closure_error < 1e-12
    special = ct.trace("w20 w21", model, chat=True, ignore_positions="special")
    assert special.provenance.ignored_positions == (0, 1, 6, 7)


def test_a_tokenizer_without_a_template(model):
    model.tokenizer.chat_template = None
    with pytest.raises(InputError, match=r"no chat template.*--chat"):
        model.tokenize("w20", chat=True)


def test_prompts_that_cannot_be_a_turn(model):
    with pytest.raises(InputError, match="chat takes text"):
        model.tokenize([20, 21], chat=True)
    with pytest.raises(InputError, match="empty"):
        model.tokenize("  ", chat=True)


def test_a_template_that_fails_says_why(model):
    model.tokenizer.chat_template = "{{ raise_exception('only the system may speak') }}"
    with pytest.raises(InputError, match="only the system may speak"):
        model.tokenize("w20", chat=True)


def test_the_bundled_model_has_no_template():
    from click.testing import CliRunner

    from circuit_tracer.cli.main import main

    result = CliRunner().invoke(main, ["trace", "Hello", "--chat", "--json", "-"])
    assert result.exit_code == 2
    assert "no chat template" in result.stderr
    assert json.dumps("nodes") not in result.stdout
