"""Text in every state: read, cut and held out, or refused with the reason."""

from __future__ import annotations

import pytest

from circuit_tracer.errors import InputError
from circuit_tracer.train.corpus import read_texts, split, tokenised
from tests import tiny


def test_a_file_is_a_text_a_line_and_a_folder_a_text_a_file(tmp_path):
    (tmp_path / "b.txt").write_text("w4 w5\n\n   \nw6 w7\r\n")
    (tmp_path / "a.jsonl").write_text('{"text": "w8 w9"}\n\n{"text": "w10"}\n')
    (tmp_path / ".hidden").write_bytes(b"\xff")
    assert read_texts(tmp_path / "b.txt") == ["w4 w5", "w6 w7"]
    assert read_texts(tmp_path) == ["w8 w9", "w10", "w4 w5\n\n   \nw6 w7\r\n"]


@pytest.mark.parametrize(
    "name, content, says",
    [
        ("latin.txt", "w4\ncafé".encode("latin-1"), "line 2 holds the byte 0xe9"),
        ("empty.txt", b"\n\n  \n", "every line is empty"),
        ("bad.jsonl", b'{"text": "w4"}\n{"prompt": "w4"}', "line 2: expected a JSON object"),
        ("bad.jsonl", b'{"text": 4}', '"text" is int'),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_place(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=says):
        read_texts(tmp_path / name)


def test_nothing_there_is_said(tmp_path):
    with pytest.raises(InputError, match="there is no text at"):
        read_texts(tmp_path / "gone")


def test_long_texts_are_cut_and_every_piece_begins_as_prompts_do():
    words = " ".join(f"w{4 + i % 30}" for i in range(25))
    corpus = tokenised(tiny.tokenizer(), [words, "w5"], context=32, window=10)
    pieces = [corpus.piece(number).tolist() for number in range(len(corpus))]
    assert [len(piece) for piece in pieces] == [10, 10, 8, 2]
    assert all(piece[0] == 2 for piece in pieces)
    assert [token for piece in pieces[:3] for token in piece[1:]] == [4 + i % 30 for i in range(25)]
    assert corpus.rows == [9, 9, 7, 1]


def test_texts_without_a_second_token_are_refused():
    with pytest.raises(InputError, match="one token each"):
        tokenised(tiny.tokenizer(), ["", " "], context=None)


def test_what_is_held_out_is_not_trained_on():
    corpus = tokenised(tiny.tokenizer(), [f"w{i} w{i + 1}" for i in range(4, 34)], None)
    kept, held = split(corpus, seed=0)
    both = [tuple(part.piece(n).tolist()) for part in (kept, held) for n in range(len(part))]
    assert len(both) == len(set(both)) == 30 and len(held) == 3


def test_one_long_text_is_cut_in_two():
    corpus = tokenised(tiny.tokenizer(), ["w4 w5 w6 w7 w8 w9 w10 w11 w12 w13"], None)
    kept, held = split(corpus, seed=0)
    assert kept.piece(0).tolist()[1:] + held.piece(0).tolist()[2:] == list(range(4, 14))
    with pytest.raises(InputError, match="4 tokens"):
        split(tokenised(tiny.tokenizer(), ["w4 w5 w6"], None), seed=0)
