"""The tutorial on a model of one's own: its page is the example's, and the example does it all."""

from __future__ import annotations

import json
import math
import re
import runpy
import shlex

import pytest
from safetensors import safe_open

import circuit_tracer as ct
from tests.house.repository import ROOT

EXAMPLE = ROOT / "examples" / "bring_your_own_model.py"
PAGE = (ROOT / "docs" / "tutorial_your_own_model.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def example():
    return runpy.run_path(str(EXAMPLE))


@pytest.fixture(scope="module")
def folder(example, tmp_path_factory):
    """Where the example ran, in its short form."""
    place = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr("sys.argv", ["bring_your_own_model.py", "--quick"])
        example["main"]()
    return place


def blocks(language: str) -> list[str]:
    """The page's fenced blocks in a language, "" for none."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return [block for name, block in found if name == language]


def test_the_page_gives_the_example_s_commands(example):
    lines = "".join(blocks("")).replace("\\\n", " ").splitlines()
    given = [shlex.split(line[2:]) for line in lines if line.startswith("$ circuit-tracer")]
    sizes = {name: example["FULL"][name] for name in ("features", "k", "steps")}
    typed = example["commands"]("theirs", "sampled.txt", example["PROMPT"], **sizes)
    assert given == [shlex.split(line) for line in typed]


def test_the_page_s_code_is_the_example_s():
    code = blocks("python")
    assert code and all(block in EXAMPLE.read_text(encoding="utf-8") for block in code)


@pytest.mark.slow
def test_the_stand_in_has_a_few_hundred_thousand_parameters(folder):
    with safe_open(folder / "theirs" / "model.safetensors", "pt") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
    assert 2e5 < sum(map(math.prod, shapes)) < 5e5


@pytest.mark.slow
def test_it_is_trained_on_what_the_model_says(example, folder):
    lines = (folder / "sampled.txt").read_text(encoding="utf-8").splitlines()
    words = set((folder / "theirs" / "tokenizer.json").read_text(encoding="utf-8").split('"'))
    assert len(lines) == example["QUICK"]["texts"]
    assert len(set(lines)) > len(lines) / 2
    assert {word for line in lines for word in line.split()} < words


@pytest.mark.slow
def test_transcoders_come_with_their_figures(example, folder):
    found = json.loads((folder / "plt" / "training.json").read_text(encoding="utf-8"))
    assert found["settings"]["features"] == example["QUICK"]["features"]
    assert (folder / "plt" / "README.md").is_file()
    assert (folder / "plt" / "report.html").is_file()


@pytest.mark.slow
def test_the_graph_adds_up_and_carries_its_card(example, folder):
    graph = ct.Graph.load(folder / "graph.safetensors")
    assert list(graph.tokens)[1:] == example["PROMPT"].split()
    assert graph.closure_error < 1e-4
    card = graph.faithfulness
    assert card.edge_error < card.edge_tolerance
    assert card.active_features == graph.index.n_features > 0
    page = (folder / "graph.html").read_text(encoding="utf-8")
    assert "Is it true?" in page
