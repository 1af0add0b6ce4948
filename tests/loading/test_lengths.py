"""Texts that are refused for their length before they are tokenised."""

from __future__ import annotations

import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import circuit_tracer as ct
from circuit_tracer.errors import InputError
from circuit_tracer.models.lengths import least_tokens, longest_token

BYTES = [f"<0x{n:02X}>" for n in range(256)]
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
MERGES = [("a", "b"), ("ab", "ab"), ("abab", "abab")]
JOINED = ["ab", "abab", "abababab"]


def fast(model, pre=None, normalizer=None):
    core = Tokenizer(model)
    if pre is not None:
        core.pre_tokenizer = pre
    if normalizer is not None:
        core.normalizer = normalizer
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<bos>")


def bpe(pieces, **settings):
    vocabulary = dict.fromkeys([*pieces, "a", "b", *JOINED])
    return models.BPE({piece: n for n, piece in enumerate(vocabulary)}, MERGES, **settings)


def unigram(**settings):
    pieces = ["<unk>", "a", "b", *JOINED, *BYTES]
    return models.Unigram([(piece, -float(n)) for n, piece in enumerate(pieces)], 0, **settings)


SPACES = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
KNOWN = {
    "bytes": fast(bpe(ALPHABET), pre_tokenizers.ByteLevel(False), normalizers.NFC()),
    "bytes to fall back on": fast(bpe(BYTES, byte_fallback=True), None, SPACES),
    "unigrams": fast(unigram(byte_fallback=True), pre_tokenizers.Metaspace()),
    "two steps": fast(
        bpe(ALPHABET),
        pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.ByteLevel()]),
    ),
}
UNKNOWN = {
    "words": tiny.tokenizer(),
    "letters": fast(bpe([])),
    "a token for all that is not known": fast(unigram()),
    "spaces that are dropped": fast(
        bpe(BYTES, byte_fallback=True), pre_tokenizers.WhitespaceSplit()
    ),
    "pieces that are dropped": fast(
        bpe(ALPHABET),
        pre_tokenizers.Sequence([pre_tokenizers.Split("b", "removed"), pre_tokenizers.ByteLevel()]),
    ),
}


PARTS = st.sampled_from(["a", "b", "abab", " ", "1", "é", "e", "\u0301", "\ud55c", "\n", "<bos>"])
TEXTS = st.lists(PARTS, max_size=40).map("".join) | st.text(max_size=20)


@pytest.fixture(scope="module")
def model():
    return ct.load()


@pytest.mark.parametrize("kind", KNOWN)
@settings(max_examples=60)
@given(text=TEXTS)
def test_no_text_has_fewer_tokens_than_is_said(kind, text):
    tokenizer = KNOWN[kind]
    found = len(tokenizer(text, add_special_tokens=False)["input_ids"])
    assert least_tokens(tokenizer, longest_token(tokenizer), text) <= found


def test_what_is_said_can_be_all_there_is():
    tokenizer = KNOWN["bytes"]
    assert longest_token(tokenizer) == 8
    ids = tokenizer("ab" * 40, add_special_tokens=False)["input_ids"]
    assert least_tokens(tokenizer, 8, "ab" * 40) == len(ids) == 10


@pytest.mark.parametrize("kind", UNKNOWN)
def test_nothing_is_said_where_a_token_may_stand_for_any_text(kind):
    assert longest_token(UNKNOWN[kind]) is None


def test_nothing_is_said_where_a_special_token_swallows_spaces():
    tokenizer = fast(bpe(ALPHABET), pre_tokenizers.ByteLevel())
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [AddedToken("<end>", rstrip=True, special=True)]}
    )
    assert longest_token(tokenizer) is None


def test_a_text_that_cannot_fit_is_refused_without_being_tokenised(model, monkeypatch):
    def used(*_, **__):
        raise AssertionError("it was tokenised")

    monkeypatch.setattr(type(model.tokenizer), "__call__", used)
    with pytest.raises(InputError) as refused:
        ct.trace("the opposite of small is big. " * 700_000, model)
    assert str(refused.value) == (
        "the prompt has at least 1400000 tokens, more than the 128 that bundled reads; "
        "shorten it by at least 1399872"
    )


def test_a_turn_that_cannot_fit_is_refused_without_being_tokenised(model, monkeypatch):
    monkeypatch.setattr(model.tokenizer, "chat_template", "{{ messages[0]['content'] }}")
    assert (
        model.tokenize("small", chat=True).tolist()
        == (model.tokenizer("small", add_special_tokens=False)["input_ids"])
    )
    with pytest.raises(InputError, match="at least 6666 tokens"):
        model.tokenize("a" * 100_001, chat=True)


def test_a_long_text_that_may_fit_is_tokenised(model, monkeypatch):
    monkeypatch.setattr("circuit_tracer.replacement.LONG", 10)
    text = "The opposite of small is"
    assert model.tokenize(text).tolist() == model.tokenizer(text)["input_ids"]
    with pytest.raises(InputError, match=r"has \d+ tokens, more than the 128"):
        model.tokenize("a " * 200)
