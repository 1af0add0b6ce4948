"""`circuit-tracer compare`: tables, JSON, a page, saved graphs, and what is refused."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from circuit_tracer.cli.main import main

EN, ZH = "en=The opposite of small is", "zh=小的反义词是"


def run(*arguments):
    return CliRunner().invoke(main, ["compare", *map(str, arguments)])


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """One run with everything: (output, JSON, page)."""
    folder = tmp_path_factory.mktemp("compare")
    page, plain = folder / "page.html", folder / "all.json"
    result = run(EN, ZH, "--rows", 6, "-k", 2, "-o", page, "--json", plain)
    assert result.exit_code == 0, result.output
    return result.output, json.loads(plain.read_text()), page.read_text()


def test_the_terminal_says_classes_overlap_features_and_baseline(told):
    output, plain, _ = told
    assert output.startswith(plain["summary"])
    for said in ("features in circuits", "overlap of en, zh", "unrelated", "parallel",
                 "shared by all", "only in zh", "different features in one role",
                 "note: The corpus has 6 rows only", "page      "):  # fmt: skip
        assert said in output, said
    rows = [line.split() for line in output.splitlines() if line.startswith("  all ")]
    counts = {name: found["count"] for name, found in plain["classes"].items()}
    assert counts.pop("some") == 0 and list(map(int, rows[0][1:])) == [*counts.values()]
    assert (
        f"  en    The opposite of small is  {plain['sides'][0]['targets'][0][0].strip()} " in output
    )


def test_the_page_is_there_and_says_the_summary(told):
    _, plain, page = told
    assert plain["summary"].split(". ")[0] in page and "小" in page


def test_saved_graphs_need_no_model(told, tmp_path):
    import circuit_tracer as ct

    model = ct.load()
    for word in (EN, ZH):
        name, _, prompt = word.partition("=")
        ct.trace(prompt, model).save(tmp_path / f"{name}.safetensors")
    words = [f"{name}={tmp_path}/{name}.safetensors" for name in ("en", "zh")]
    result = run(*words, "--json", "-")
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    assert found["classes"] == told[1]["classes"]
    assert found["supernodes"] == told[1]["supernodes"]
    refused = run(*words, "--target", " big")
    assert refused.exit_code == 2 and "all of these are graphs" in refused.output
    refused = run(words[0], ZH, "--target", "en= big")
    assert refused.exit_code == 2 and "give its prompt instead" in refused.output
    assert found["overlap"]["corpus"] == "" and "no baseline" in found["notices"][0]


def test_a_picture_instead_of_a_page_and_pages_beside_one(told, tmp_path):
    picture, page = tmp_path / "still.svg", tmp_path / "page.html"
    words = (EN, ZH, "--no-baseline")
    result = run(*words, "-o", picture)
    assert result.exit_code == 0 and "\npicture" in result.output
    count = told[1]["classes"]["shared"]["count"]
    assert f">{count}</text>" in picture.read_text(encoding="utf-8")
    assert run(*words, "-o", page, "--pages", "--quiet").exit_code == 0
    assert {one.name for one in tmp_path.glob("*.html")} == {
        "page.html", "page-1-en.html", "page-2-zh.html"}  # fmt: skip
    refused = run(*words, "-o", picture, "--pages")
    assert refused.exit_code == 2 and "give -o FILE.html" in refused.output


def test_two_sets_on_one_prompt_quietly():
    prompts = [f"{name}=The opposite of small is" for name in ("plt", "clt")]
    sets = ["--transcoders", "plt=plt", "--transcoders", "clt=clt"]
    result = run(*prompts, *sets, "--match", "decoder", "--rows", 4, "--quiet")
    assert result.exit_code == 0, result.output
    assert result.output.count("\n") == 1 and "in plt only" in result.output
    refused = run(*prompts, *sets)
    assert refused.exit_code == 2 and "--match decoder" in refused.output


def test_each_prompt_has_targets_and_limits_of_its_own():
    wanted = ["--target", "en= small", "--target", "en= large", "--target", "大"]
    limits = ["--max-features", "en=40", "--ignore-positions", "zh=none"]
    result = run(EN, ZH, *wanted, *limits, "--no-baseline", "--json", "-")
    assert result.exit_code == 0, result.output
    en, zh = json.loads(result.output)["sides"]
    assert [label for label, _ in en["targets"]] == [" small", " large"]
    assert [label for label, _ in zh["targets"]] == ["大"]
    plain = run(EN, ZH, "--no-baseline", "--json", "-")
    before, other = json.loads(plain.output)["sides"]
    assert en["n_active"] == before["n_active"] and zh["n_active"] > other["n_active"]


@pytest.mark.parametrize(
    "words, said",
    [
        ([], "at least two"),
        ([EN], "at least two"),
        ([EN, EN], "'en' names two prompts"),
        ([EN, "小的反义词是"], "should be a name and a prompt"),
        ([EN, "zh="], "should be a name and a prompt"),
        ([EN, ZH, "--corpus", "none.tsv"], "cannot read none.tsv"),
        ([EN, ZH, "--corpus", "none.tsv", "--no-baseline"], "one or the other"),
        ([EN, ZH, "--rows", "1"], "--rows"),
        ([EN, ZH, "--model", "a", "--model", "b"], "given twice for all"),
        ([EN, ZH, "-o", "no/such/folder.html"], "no folder"),
        ([EN, ZH, "--target", "fr= grand"], "no prompt has this name; names are en, zh"),
        ([EN, ZH, "--transcoders", "hz=clt"], "no prompt has this name; names are en, zh"),
        ([EN, ZH, "--target", "en= big", "--answer", " big"], "leave out its --target"),
        ([EN, ZH, "--answer", "en= a", "--answer", "en= b"], "given twice for en"),
        ([EN, ZH, "--max-features", "zh=few"], "'few' is neither a number"),
        ([EN, ZH, "--chat", "fr"], "a name (en, zh) or all, not 'fr'"),
        ([EN, ZH, "--target", "en=no single token"], "prompt 'en': target 'no single"),
    ],
)
def test_wrong_words_are_refused(words, said):
    result = run(*words)
    assert result.exit_code in (1, 2) and said in result.output
    assert "Traceback" not in result.output


def test_a_graph_file_that_is_not_there_is_not_taken_for_a_prompt(tmp_path):
    result = run("a=gone.json", ZH)
    assert result.exit_code == 2
    assert "gone.json names a graph, but there is no such file" in result.output
