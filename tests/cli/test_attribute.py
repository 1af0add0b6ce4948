"""`circuit-tracer attribute` with the reference tool's words."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

import circuit_tracer as ct
from circuit_tracer import bundled
from circuit_tracer.cli.main import main

PROMPT = "The opposite of small is"


def run(*arguments):
    names = ["-m", bundled.model_dir(), "-t", bundled.transcoder_dir("plt")]
    words = ["attribute", *names, "-p", PROMPT, *arguments]
    return CliRunner().invoke(main, [str(word) for word in words])


def test_a_script_of_the_reference_tool_runs(tmp_path):
    result = run(
        *["--slug", "small", "--graph_file_dir", tmp_path / "graphs"],
        *["--graph_output_path", tmp_path / "small.pt"],
        *["--max_n_logits", 5, "--desired_logit_prob", 0.9, "--max_feature_nodes", 2000],
        *["--batch_size", 64, "--node_threshold", 0.7, "--edge_threshold", 0.9],
        *["--dtype", "fp32", "--offload", "cpu", "--verbose"],
    )
    assert result.exit_code == 0, result.output
    graph = json.loads((tmp_path / "graphs" / "small.json").read_text())
    assert graph["metadata"]["slug"] == "small"
    assert ct.Graph.load(tmp_path / "small.safetensors").tokens
    assert not (tmp_path / "small.pt").exists()
    assert "not pickles" in result.stderr


def test_targets_are_named_as_in_trace(tmp_path):
    path = tmp_path / "graph.safetensors"
    assert run("-o", path, "--target", " large", "--target-feature", "2.10@5").exit_code == 0
    labels = [target.label for target in ct.Graph.load(path).targets]
    assert labels == [" large", "L2#10@5 pre-activation"]
    assert run("-o", path, "--answer", " large.").exit_code == 0
    assert [target.label for target in ct.Graph.load(path).targets] == [" large", "."]


@pytest.mark.parametrize(
    "arguments, said",
    [
        ([], "name an output"),
        (["--slug", "a"], "--graph_file_dir is missing"),
        (["--graph_file_dir", "a"], "--slug is missing"),
        (["--slug", "../a", "--graph_file_dir", "."], "not a path"),
        (["--dtype", "int8", "-o", "a"], "int8"),
        (["-o", "a", "--answer", "b", "--target", "c"], "leave out --target"),
    ],
)
def test_bad_words(arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert list(tmp_path.iterdir()) == []
