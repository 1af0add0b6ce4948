"""`trace` on the bundled model, through click."""

from __future__ import annotations

import json

import click
import pytest
from click.testing import CliRunner

import circuit_tracer as ct
from circuit_tracer.cli.main import main, trace

PROMPT = "The opposite of small is"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments, program=trace, **more):
    return CliRunner().invoke(program, [str(argument) for argument in arguments], **more)


def good(*arguments, **more):
    result = run(*arguments, **more)
    assert result.exit_code == 0, result.output
    return result


def test_it_prints_what_was_found_and_where_the_page_is(folder):
    output = good(PROMPT).stdout
    for said in ("next token", "large", "strongest paths", "→", "replacement", "closure", "kept"):
        assert said in output
    assert output.splitlines()[-1].split() == ["page", "the-opposite-of-small-is.html"]
    assert (folder / "the-opposite-of-small-is.html").read_text().startswith("<!")


@pytest.mark.parametrize(
    "prompt, answer",
    [
        (PROMPT, "large"),
        ("Le contraire de petit est", "grand"),
        ("小的反义词是", "大"),
        ("The capital of the state containing Dallas is", "Austin"),
    ],
)
def test_the_four_prompts_of_the_readme(prompt, answer):
    lines = good(prompt).stdout.splitlines()
    first = lines[lines.index(next(line for line in lines if "next token" in line)) + 1]
    assert first.split('"')[1].strip() == answer


def test_transcoders_of_the_bundled_model_have_names():
    assert "clt" not in good(PROMPT, "-q").stdout
    good(PROMPT, "--transcoders", "clt")


def test_the_group_has_the_same_command():
    assert main.get_command(click.Context(main), "trace") is trace
    good("trace", PROMPT, "-q", program=main)


def test_quiet_says_the_page_and_nothing_else():
    result = good(PROMPT, "--quiet")
    assert result.output == "the-opposite-of-small-is.html\n"


def test_verbose_adds_ids_and_seconds():
    output = good(PROMPT, "-v").stdout
    for said in ("id", "importing", "loading", "tracing", "writing", " s"):
        assert said in output


def test_json_to_standard_output_is_json_and_nothing_else(folder):
    result = good(PROMPT, "--json", "-")
    graph = json.loads(result.stdout)
    assert set(graph) >= {"metadata", "qParams", "nodes", "links"}
    assert result.stderr == ""
    assert list(folder.iterdir()) == []


def test_json_and_the_whole_graph_in_files(folder):
    good(PROMPT, "--json", "small.json", "--save", "small.safetensors", "-o", "page.html")
    assert json.loads((folder / "small.json").read_text())["nodes"]
    assert ct.Graph.load(folder / "small.safetensors").tokens
    assert {path.name for path in folder.iterdir()} == {
        "small.json",
        "small.safetensors",
        "page.html",
    }


def test_stricter_thresholds_keep_less():
    def nodes(*options):
        return len(json.loads(good(PROMPT, "--json", "-", *options).stdout)["nodes"])

    assert nodes("--node-threshold", "0.3") < nodes("--node-threshold", "0.9")


def test_targets_are_the_tokens_named():
    output = good(PROMPT, "--target", " large", "--target", " hot").stdout
    table = output[output.index("next token") : output.index("strongest")]
    assert '" large"' in table and '" hot"' in table
    assert len(table.strip().splitlines()) == 3


def test_targets_of_every_kind_position_by_position():
    output = good(
        *(PROMPT, "--target", " large", "--target-difference", " large", " small"),
        *("--target-feature", "2.10@-1", "--target-feature", "L1#3@2"),
        *("--position", "-1", "--position", "3", "-v", "--json", "small.json"),
    ).stdout
    table = output[output.index("after") : output.index("strongest")].splitlines()
    starts = [line.split('"')[0].strip() for line in table[1:] if line.startswith("  @")]
    assert starts == ["@2", "@3", "@5"]
    for said in (
        "L2#10@5 pre-activation",
        "L1#3@2 pre-activation",
        "logit( large) − logit( small)",
    ):
        assert said in output
    ignored = output[output.index("ignored: features and errors at position 0") :]
    assert '" large" @3' in ignored and "L2#10@5 pre-activation  " in ignored
    graph = ct.Graph.from_json("small.json")
    assert [target.position for target in graph.targets] == [5, 3, 5, 3, 5, 2]
    assert len({node.id for node in graph.nodes}) == len(graph.nodes)


def test_a_whole_answer():
    output = good(PROMPT, "--answer", " large.", "--save", "graph.safetensors").stdout
    graph = ct.Graph.load("graph.safetensors")
    assert [target.label for target in graph.targets] == [" large", "."]
    assert [target.position for target in graph.targets] == [5, 6]
    assert graph.tokens[-1] == " large" and graph.provenance.prompt == PROMPT
    assert 'answer " large.", probability 0.' in output
    assert '@5 " is"' in output and '@6 " large"' in output
    assert "after" not in good(PROMPT).stdout


def test_special_tokens_can_be_left_out():
    assert "closure" in good(PROMPT, "--ignore-positions", "special").stdout


def test_the_estimate_runs_nothing_and_writes_nothing(folder):
    output = good(PROMPT, "--estimate").stdout
    assert output.strip()
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("limit", ["0", "10", "all", "auto"])
def test_limits(limit):
    assert "expanded" in good(PROMPT, "--max-features", limit).stdout


def test_the_prompt_can_come_from_standard_input(folder):
    good("-", "-q", input="小的反义词是\n")
    assert (folder / "小的反义词是.html").exists()


def test_hostile_prompts_stay_in_their_place():
    output = good("small </script>\x1b[31m\u202e is", "-o", "page.html").stdout
    assert "\x1b" not in output and "\u202e" not in output


@pytest.mark.parametrize(
    "arguments, status, said",
    [
        ([""], 2, "empty"),
        ([PROMPT, "--target", "flabbergasted"], 2, "flabbergasted"),
        ([PROMPT, "--node-threshold", "2"], 2, "between 0 and 1"),
        ([PROMPT, "--max-features", "some"], 2, "nor all, nor auto"),
        ([PROMPT, "--ignore-positions", "99"], 2, "99"),
        ([PROMPT, "--position", "99"], 2, "no position 99"),
        ([PROMPT, "--position", "last"], 2, "last"),
        ([PROMPT, "--target-feature", "3-417"], 2, "like 3.417@5"),
        ([PROMPT, "--target-feature", "99.0@1"], 2, "no layer 99"),
        ([PROMPT, "--target-difference", " large"], 2, "requires 2 arguments"),
        ([PROMPT, "--answer", ""], 2, "answer is empty"),
        ([PROMPT, "--answer", " large", "--position", "3"], 2, "leave out --target"),
        ([PROMPT, "--device", "abacus"], 2, "abacus"),
        ([PROMPT, "--dtype", "float7"], 2, "float7"),
        ([PROMPT, "-o", "nowhere/page.html"], 1, "nowhere"),
        ([PROMPT, "-o", "a", "--json", "a"], 2, "apart"),
        ([PROMPT, "-o", "-"], 2, "page is a file"),
        ([PROMPT, "--model", "nowhere"], 2, "there is no folder nowhere"),
        ([PROMPT, "--model", "no/where", "--transcoders", "not/there"], 1, "not/there"),
        ([PROMPT, "--kernels", "abacus"], 2, "abacus"),
        ([PROMPT, "--transcoders", "nowhere"], 2, "nowhere"),
        (["small " * 5000], 2, "shorten"),
        ([], 2, "PROMPT"),
        (["two", "prompts"], 2, "prompts"),
    ],
)
def test_bad_words(arguments, status, said, folder, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = run(*arguments)
    assert result.exit_code == status, result.output
    assert said in result.stderr
    assert "Traceback" not in result.output
    assert list(folder.iterdir()) == []


def test_outputs_are_tried_before_the_work(monkeypatch):
    def never(*_, **__):
        raise AssertionError("loaded although the page cannot be written")

    monkeypatch.setattr(ct, "load", never)
    assert run(PROMPT, "-o", "nowhere/page.html").exit_code == 1


def test_an_old_page_survives_a_failure(folder):
    page = folder / "page.html"
    page.write_text("the old one")
    assert run(PROMPT, "-o", page, "--target", "flabbergasted").exit_code == 2
    assert page.read_text() == "the old one"


@pytest.mark.parametrize("option", ["--labels", "--features"])
def test_names_of_features_are_read_before_the_work(option, folder, monkeypatch):
    def load(*_given, **_more):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("circuit_tracer.loading.open_model", load)
    (folder / "wrong.json").write_text("<html>")
    result = run(PROMPT, option, "wrong.json")
    assert (result.exit_code, "wrong.json is not" in result.output) == (2, True), result.output


def test_what_is_no_token_has_no_probability_to_show(folder):
    said = run(PROMPT, "--target-feature", "2.10@-1", "--heads", "none").stdout
    assert "target" in said and "probability" not in said and "next token" not in said
