"""The tokenizer keeps the tables' words whole, and every text comes back as it went in."""

from __future__ import annotations

import pytest

from circuit_tracer.bundled.corpus import corpus
from circuit_tracer.bundled.tokenizer import (
    BOS,
    EOS,
    PAD,
    build_tokenizer,
    entity_shares,
    save_tokenizer,
)

HOSTILE = [
    "",
    " ",
    "  two  spaces ",
    "naïve café — “quotes” …",
    "emoji 🙂 and ☃ and \u200b zero width",
    "<bos><pad> [UNK] </s>"[11:],
    "日本語のテキスト",
    "tab\tand\nnewline",
    "ñandú ÅNGSTRÖM ß",
    "0123456789 ▂",
]


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def test_words_of_the_tables_are_one_token(tokenizer):
    assert min(entity_shares(tokenizer).values()) >= 0.98


def test_special_ids(tokenizer):
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (
        BOS,
        EOS,
        PAD,
    )
    assert tokenizer("The opposite")["input_ids"][0] == BOS


def test_sentences_come_back(tokenizer):
    for sentence in corpus()[::37]:
        ids = tokenizer(sentence.text)["input_ids"]
        assert tokenizer.decode(ids, skip_special_tokens=True) == sentence.text


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_strings_come_back(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer.unk_token_id not in ids


def test_chinese_is_cut_at_words(tokenizer):
    ids = tokenizer("包含达拉斯的州的首府是")["input_ids"][1:]
    words = ["包含", "达拉斯", "的", "州", "的", "首府", "是"]
    assert [tokenizer.decode([i]) for i in ids] == words


def test_saved_tokenizer_reads_alike(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    save_tokenizer(tokenizer, tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gemma2"}', encoding="utf-8")
    again = AutoTokenizer.from_pretrained(tmp_path)
    for text in ["The capital of the state containing Dallas is", "小的反义词是", 'a "b" 🙂']:
        assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
