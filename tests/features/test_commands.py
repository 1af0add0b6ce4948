"""`circuit-tracer features`, from texts to a store and back out."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from tiny import replacement

import circuit_tracer as ct
from circuit_tracer.cli.main import main
from circuit_tracer.features import build

TEXTS = ["w5 w9 w21 w7", "w30 w9 w7 w6", "w8 w8 w33", "w12 w5"]


def run(*arguments):
    return CliRunner().invoke(main, ["features", *map(str, arguments)])


def asked(*arguments):
    result = run(*arguments, "--json", "-")
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


@pytest.fixture(scope="module")
def model():
    return replacement()


@pytest.fixture
def store(model, tmp_path, monkeypatch):
    monkeypatch.setattr(ct, "load", lambda *a, **k: model)
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    path = tmp_path / "s.sqlite"
    result = run("build", "--text", tmp_path / "texts.txt", "-o", path, "--language", "en")
    assert result.exit_code == 0 and result.output.strip() == str(path), result.output
    return path


def test_build_gives_what_the_library_gives(model, store, tmp_path):
    from circuit_tracer.features.corpus import Document

    build(model, [Document(text, "en") for text in TEXTS], tmp_path / "library")
    assert (tmp_path / "library").read_bytes() == store.read_bytes()


def test_shards_are_built_and_merged(store, tmp_path):
    texts = tmp_path / "texts.txt"
    for k in (0, 1):
        shard = ["--shard", f"{k}/2", "-o", tmp_path / f"{k}.part", "--language", "en", "-q"]
        assert run("build", "--text", texts, *shard).output == ""
    merged = tmp_path / "merged"
    assert run("merge", tmp_path / "1.part", tmp_path / "0.part", "-o", merged).exit_code == 0
    assert merged.read_bytes() == store.read_bytes()


def test_features_are_shown_found_and_compared(store):
    lucky = asked("lucky", "--seed", 3, "--store", store)
    name = f"{lucky['layer']}.{lucky['id']}"
    assert asked("show", name, "--store", store) == lucky
    assert asked("show", f"L{lucky['layer']}#{lucky['id']}", "--store", store) == lucky
    shown = run("show", name, "--store", store).output
    assert shown.startswith(f"{name}  ~ ") and "⟦w" in shown and "similar to" in shown
    found = asked("search", "W9", "--store", store, "--most", 3)
    assert 0 < len(found) <= 3 and all(row["label"]["text"].startswith("~ ") for row in found)
    near = asked("similar", name, "--store", store)
    assert [row["cosine"] for row in near] == sorted((r["cosine"] for r in near), reverse=True)
    assert "cosine" in run("similar", name, "--store", store).output
    assert "nothing found" in run("search", "nowhere", "--store", store).output


def test_the_features_of_a_prompt_and_of_a_graph_are_ranked(model, store, tmp_path):
    ranked = asked("top", "--prompt", "w5 w9 w21 w7", "--store", store, "--most", 5)
    scores = [one["score"] for one in ranked]
    assert len(ranked) == 5 and scores == sorted(scores, reverse=True)
    assert scores[0] == pytest.approx(1.0)  # the prompt is one of the corpus' texts
    graph = ct.trace("w5 w9 w21 w7", model)
    graph.save(tmp_path / "g.safetensors")
    ranked = asked("top", "--graph", tmp_path / "g.safetensors", "--store", store, "--most", 5)
    best = max((n for n in graph.nodes if n.kind == "feature"), key=lambda n: n.influence)
    assert ranked[0]["feature"] == f"{best.layer}.{best.feature}"
    assert "influence" in run("top", "--graph", tmp_path / "g.safetensors", "--store", store).output


def test_labels_are_given_listed_shared_and_taken_away(store, tmp_path):
    assert "no feature has" in run("label", "--store", store).output
    assert run("label", "1.3", "my own", "--by", "me", "--store", store).exit_code == 0
    shared = tmp_path / "labels.json"
    assert run("label", "--store", store, "--json", shared, "-q").output == ""
    assert "my own" in run("search", "MY OWN", "--store", store).output
    assert asked("label", "1.3", "--remove", "--store", store) == {"labels": []}
    wanted = [{"layer": 1, "feature": 3, "label": "my own", "source": "me"}]
    assert asked("label", "--from", shared, "--store", store)["labels"] == wanted


def test_stores_are_exported_and_imported(store, tmp_path):
    for form, name in (
        ("html", "1/3.html"),
        ("packed", "features/index.json.gz"),
        ("json", "0.json"),
    ):
        assert run("export", tmp_path / form, "--store", store, "--to", form).exit_code == 0
        assert (tmp_path / form / name).is_file()
    result = run("import", tmp_path / "packed", "-o", tmp_path / "again")
    assert result.exit_code == 0, result.output
    assert asked("show", "1.3", "--store", tmp_path / "again")["id"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "2/417"], "is not a feature, like 2.417"),
        (["show", "9.1"], "has no features of layer 9"),
        (["show", "1.1", "--store", "nowhere.sqlite"], "there is no feature store"),
        (["top"], "either --prompt or --graph"),
        (["label", "1.1"], "its TEXT, or --remove"),
        (["label", "1.1", "~ x"], "automatic"),
        (["build", "--text", "nowhere.txt", "-o", "s"], "there is no file or folder"),
        (["build", "--text", "x", "-o", "s", "--shard", "2/2"], "is not a shard"),
        (["search", " "], "say what to look for"),
    ],
)
def test_what_cannot_be_done_is_said(store, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    named = arguments[0] in ("build",) or "--store" in arguments
    result = run(*arguments, *([] if named else ["--store", store]))
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
