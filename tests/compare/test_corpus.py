"""Parallel corpora: what is read, what is refused, and that order does not matter."""

from __future__ import annotations

import pytest

from circuit_tracer.comparing.corpus import Corpus, bundled_corpus, read_corpus
from circuit_tracer.errors import InputError

TABLE = "group\ten\tfr\nx\tone\tun\ny\ttwo\tdeux\n\nx\tthree\ttrois\n"


def test_a_file_is_read(tmp_path):
    path = tmp_path / "corpus.tsv"
    path.write_text(TABLE, encoding="utf-8-sig")
    found = read_corpus(path)
    assert found.languages == ("en", "fr")
    assert found.texts("fr") == ["un", "trois", "deux"]
    assert found.groups == ("x", "x", "y")


def test_rows_and_columns_in_another_order_are_the_same_corpus():
    one = Corpus(("en", "fr"), (("a", "b"), ("c", "d"), ("e", "f")), ("1", "2", "3"))
    other = Corpus(("fr", "en"), (("f", "e"), ("b", "a"), ("d", "c")), ("3", "1", "2"))
    assert one == other
    assert one.only(["fr", "en"]) == one
    assert one.sample(2) == other.sample(2) and len(one.sample(2)) == 2


def test_a_sample_takes_groups_in_turn():
    rows = tuple((f"a{k}", f"b{k}") for k in range(20))
    found = Corpus(("en", "fr"), rows, ("x",) * 15 + ("y",) * 5).sample(6)
    assert sorted(found.groups) == ["x"] * 3 + ["y"] * 3


def test_the_bundled_corpus_is_parallel_and_has_unrelated_rows():
    found = bundled_corpus()
    assert found.languages == ("de", "en", "es", "fr", "zh")
    assert len(found) > 100 and len(set(found.groups)) >= 5
    row = found.rows[found.texts("en").index("The opposite of small is")]
    assert dict(zip(found.languages, row, strict=True))["zh"] == "小的反义词是"


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "at least two languages"),
        ("en\n1\n", "at least two languages"),
        ("en\tfr\na\tb\nc\n", "ragged: line 3 has 1 cells"),
        ("en\tfr\na\tb\nc\t \n", "row 2 has an empty text"),
        ("en\tfr\na\tb\na\tb\n", "occurs twice"),
        ("en\ten\na\tb\nc\td\n", "two columns have one name"),
        ("en\tfr\na\tb\n", "at least two unrelated rows"),
        ("en\tfr\tgroup\na\tb\tx\nc\td\tx\n", "2 in 1 group"),
    ],
)
def test_bad_files_are_refused(tmp_path, text, said):
    path = tmp_path / "corpus.tsv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=said):
        read_corpus(path)


def test_a_file_that_is_not_there_or_not_text_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot read"):
        read_corpus(tmp_path / "none.tsv")
    (tmp_path / "bytes.tsv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8"):
        read_corpus(tmp_path / "bytes.tsv")


def test_a_language_it_lacks_is_refused():
    corpus = Corpus(("en", "fr"), (("a", "b"), ("c", "d")), ("1", "2"), "mine")
    with pytest.raises(InputError, match="mine has no column 'zh'; it has en, fr"):
        corpus.only(["zh"])
