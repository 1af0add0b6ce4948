"""Names of outputs, and whether they can be written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuit_tracer.cli import destinations
from circuit_tracer.errors import InputError, OutputError


@pytest.mark.parametrize(
    "prompt, expected",
    [
        ("The opposite of small is", "the-opposite-of-small-is"),
        ("Le contraire de “petit” est", "le-contraire-de-petit-est"),
        ("小的反义词是", "小的反义词是"),
        ("ما هي عاصمة فرنسا؟", "ما-هي-عاصمة-فرنسا"),
        ("../../etc/passwd", "etc-passwd"),
        ("  ?!", "prompt"),
        ("a\x00b\nc", "a-b-c"),
        ("2 + 2 =", "2-2"),
    ],
)
def test_slugs(prompt, expected):
    assert destinations.slug(prompt) == expected


@given(st.text())
def test_a_slug_is_always_a_file_name(prompt):
    name = destinations.slug(prompt)
    assert name and len(name.encode()) <= destinations.LONGEST_SLUG
    assert not set(name) & set('/\\:*?"<>|\0\n ') and not name.startswith((".", "-"))


def test_the_page_is_named_after_the_prompt_or_as_told(tmp_path):
    assert destinations.page(None, "A b") == Path("a-b.html")
    assert destinations.page(tmp_path, "A b") == tmp_path / "a-b.html"
    assert destinations.page(tmp_path / "x.html", "A b") == tmp_path / "x.html"
    with pytest.raises(InputError, match="a page is a file"):
        destinations.page(Path("-"), "A b")


def test_checking_leaves_nothing_behind(tmp_path):
    destinations.check(tmp_path / "a.html", None, Path("-"), tmp_path / "b.json")
    assert list(tmp_path.iterdir()) == []


def test_two_outputs_may_not_be_one(tmp_path):
    with pytest.raises(InputError, match="name them apart"):
        destinations.check(tmp_path / "a", tmp_path / "." / "a")


@pytest.mark.parametrize("path, said", [("", "is a folder"), ("nowhere/a.html", "no folder")])
def test_places_that_cannot_be(tmp_path, path, said):
    with pytest.raises(OutputError, match=said):
        destinations.check(tmp_path / path)


def test_a_device_is_left_to_be_written_to():
    destinations.check(Path(os.devnull))
    assert not Path(os.devnull).is_file()


def test_a_folder_that_refuses_is_named(tmp_path, monkeypatch):
    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(destinations.tempfile, "NamedTemporaryFile", refuse)
    with pytest.raises(OutputError, match="Permission denied"):
        destinations.check(tmp_path / "a.html")
