"""Texts from files, folders and datasets, and what is said where there are none."""

from __future__ import annotations

import gzip
import sys

import pytest

from circuit_tracer.errors import InputError
from circuit_tracer.features.corpus import Document, documents


def read(*sources, language=""):
    return list(documents([str(source) for source in sources], language))


def test_every_format_is_read_in_order(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\n  \ntwo \u2028half\n", encoding="utf-8")
    (tmp_path / "b.tsv").write_text('language\ttext\nfr\tun "deux\nzh\t小\n', encoding="utf-8")
    (tmp_path / "c.csv").write_text('text,language\n"a, b\nc",de\n', encoding="utf-8")
    (tmp_path / "d.jsonl").write_text(
        '{"text": "x", "more": 1}\n\n{"text": "y", "language": "es"}\n'
    )
    (tmp_path / "e.bin").write_bytes(b"\xff")
    found = read(tmp_path, language="en")
    assert found == [
        Document("one", "en"),
        Document("two \u2028half", "en"),
        Document('un "deux', "fr"),
        Document("小", "zh"),
        Document("a, b\nc", "de"),
        Document("x", "en"),
        Document("y", "es"),
    ]
    assert read(tmp_path / "a.txt", tmp_path / "b.tsv") == [
        Document("one"),
        Document("two \u2028half"),
        *found[2:4],
    ]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.txt", "un\nzwei\n小\n"),
        ("a.tsv", "text\tlanguage\nun\t\nzwei\t\n小\t\n"),
        ("a.csv", "text\nun\nzwei\n小\n"),
        ("a.jsonl", '{"text": "un"}\n{"text": "zwei"}\n{"text": "小"}\n'),
    ],
)
def test_compressed_files_hold_what_the_others_hold(tmp_path, name, data):
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(data.encode()))
    assert read(tmp_path / f"{name}.gz") == [Document("un"), Document("zwei"), Document("小")]
    assert read(tmp_path) == read(tmp_path / f"{name}.gz")
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(data.encode())[:-9])
    with pytest.raises(InputError, match="cannot read"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt.gz", b"no gzip", "cannot read"),
        ("a.gz", b"x", "or these and .gz"),
        ("a.txt", b"\n \n", "holds no text"),
        ("a.txt", b"caf\xe9", "not UTF-8"),
        ("a.tsv", b"texts\nx\n", "'text'; it begins with \\['texts'\\]"),
        ("a.jsonl", b"{", "line 1 is not JSON"),
        ("a.jsonl", b"[1]", "line 1 should be an object"),
        ("a.jsonl", b'{"words": "x"}', "one has 'words'"),
        ("a.pdf", b"x", "should end in one of .txt"),
    ],
)
def test_files_that_hold_no_texts_are_refused(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=message):
        read(tmp_path / name)


def test_what_is_missing_is_said_before_anything_is_read(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(InputError, match="no file or folder"):
        documents([str(tmp_path / "a.txt"), str(tmp_path / "b.txt")])
    with pytest.raises(InputError, match="no files that end in"):
        (tmp_path / "empty").mkdir()
        documents([str(tmp_path / "empty")])
    with pytest.raises(InputError, match="give texts"):
        documents([])


def test_a_dataset_needs_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match="pip install datasets"):
        documents(["org/name"])


def test_a_dataset_is_streamed(monkeypatch):
    class Fake:
        @staticmethod
        def load_dataset(name, split, streaming):
            assert (name, split, streaming) == ("org/name", "test", True)
            return iter([{"text": "x", "language": None}, {"text": " "}, {"text": "y"}])

    monkeypatch.setitem(sys.modules, "datasets", Fake)
    assert read("org/name:test", language="en") == [Document("x", "en"), Document("y", "en")]
