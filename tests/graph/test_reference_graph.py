"""The reference tool's `.pt` graphs, written here as it writes them, and files that are none."""

from __future__ import annotations

import json
import os
import sys
from types import ModuleType
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from circuit_tracer.errors import GraphFileError, InputError
from circuit_tracer.graph import Graph
from circuit_tracer.reference_graph import ALLOWED
from tests.graph.conftest import ORACLE


class LogitTarget(NamedTuple):
    token_str: str
    vocab_idx: int


class UnifiedConfig:
    def __init__(self, **fields):
        self.__dict__.update(fields)


@pytest.fixture
def content(monkeypatch):
    """What Graph.to_pt of the reference tool puts in a file, under the names of its classes."""
    for kind in (LogitTarget, UnifiedConfig):
        name = next(full for _, full in ALLOWED if full.endswith(f".{kind.__name__}"))
        name = name.rpartition(".")[0]
        module = ModuleType(name)
        setattr(module, kind.__name__, kind)
        monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setattr(kind, "__module__", name)
    case = ORACLE / "llama_relu_plt"
    tensors = load_file(case / "expected.safetensors")
    said = json.loads((case / "expected.json").read_text())
    return {
        "input_string": "w2 w10",
        "adjacency_matrix": tensors["adjacency"],
        "cfg": UnifiedConfig(n_layers=4, model_name="tiny", dtype=torch.float32),
        "active_features": tensors["active_features"],
        "logit_targets": [LogitTarget(*pair) for pair in said["logit_targets"]],
        "logit_probabilities": tensors["logit_probabilities"],
        "vocab_size": 256,
        "input_tokens": tensors["input_tokens"],
        "selected_features": tensors["selected_features"],
        "activation_values": tensors["activation_values"],
        "scan": None,
    }


@pytest.fixture
def written(content, tmp_path):
    def write(**changes):
        path = tmp_path / "theirs.pt"
        torch.save({**content, **changes}, path)
        return path

    return write


def test_the_matrix_is_read_as_it_is(written, llama):
    graph = Graph.read(written())
    assert torch.equal(graph.dense(), llama.dense())
    assert torch.equal(graph.activations, llama.activations)
    assert graph.targets == llama.targets
    assert (graph.token_ids, graph.tokens[:2]) == (llama.token_ids, ("#2", "#10"))
    assert graph.provenance.model == "tiny" and graph.expanded.sum() == 214 + len(graph.targets)
    assert Graph.read(written(), tokens=llama.tokens).tokens == llama.tokens


def test_selected_features_may_come_in_any_order(written, content, llama):
    """A limited run keeps some features, most influential first; rows and columns follow."""
    torch.manual_seed(0)
    chosen = torch.randperm(len(content["selected_features"]))[:60]
    rest = torch.arange(len(content["selected_features"]), len(content["adjacency_matrix"]))
    rows = torch.cat([chosen, rest])
    small = content["adjacency_matrix"][rows][:, rows]
    graph = Graph.read(written(selected_features=chosen, adjacency_matrix=small))
    assert graph.index.n_features == 60
    for row in range(0, 60, 7):
        node = graph.nodes[row]
        there = llama.row(node.id)
        assert node.activation == llama.nodes[there].activation
        for column in range(60):
            back = llama.row(graph.nodes[column].id)
            assert graph.dense()[row, column] == llama.dense()[there, back]


def test_older_files_hold_token_numbers_only(written, llama):
    ids = torch.tensor([target.token_id for target in llama.targets])
    targets = Graph.read(written(logit_targets=ids)).targets
    assert [target.token_id for target in targets] == ids.tolist()
    assert targets[0].label == f"#{ids[0]}"


def test_a_number_beyond_the_vocabulary_is_a_direction(written, content):
    said = [LogitTarget("big - small", 256), *content["logit_targets"][1:]]
    target = Graph.read(written(logit_targets=said)).targets[0]
    assert (target.label, target.token_id, target.probability) == ("big - small", None, None)
    assert target.weight == pytest.approx(float(content["logit_probabilities"][0]))


def test_an_added_token_beyond_the_tokenizers_own_is_a_token(written, content):
    """Their `vocab_size` is the tokenizer's, which does not count tokens that were added to it."""
    said = [LogitTarget("<turn>", 250), LogitTarget("a - b", 256), *content["logit_targets"][2:]]
    content["cfg"].d_vocab = 256
    first, second = Graph.read(written(logit_targets=said, vocab_size=240)).targets[:2]
    assert (first.token_id, first.weight) == (250, first.probability)
    assert (second.label, second.token_id) == ("a - b", None)


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_code_in_a_file_does_not_run(written, tmp_path):
    trap = tmp_path / "trap"
    with pytest.raises(GraphFileError, match="could run code"):
        Graph.read(written(scan=Trap(trap)))
    assert not trap.exists()


@pytest.mark.parametrize(
    "changes, said",
    [
        (dict(adjacency_matrix=torch.zeros(3, 3)), r"shape \(3, 3\)"),
        (dict(logit_probabilities=torch.zeros(2)), "2 probabilities"),
        (dict(active_features=torch.full((214, 3), 99)), "outside the model"),
        (dict(active_features=torch.zeros(214, 3, dtype=torch.long)), "twice"),
        (dict(selected_features=None), "selected_features is not a tensor"),
        (dict(cfg={}), "n_layers"),
    ],
)
def test_what_does_not_hold_together_is_refused(written, changes, said):
    with pytest.raises(GraphFileError, match=said) as caught:
        Graph.read(written(**changes))
    assert "theirs.pt" in str(caught.value)


def test_an_edge_backwards_is_refused(written, content):
    matrix = content["adjacency_matrix"].clone()
    matrix[0, 213] = 1.0  # from the last layer into the first
    with pytest.raises(GraphFileError, match="not at a higher layer"):
        Graph.read(written(adjacency_matrix=matrix))


def test_files_of_torch_that_are_no_graph_are_refused(written, tmp_path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "model.pt")
    with pytest.raises(GraphFileError, match="it holds weight"):
        Graph.read(tmp_path / "model.pt")
    whole = written().read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(GraphFileError, match="cut short"):
        Graph.read(tmp_path / "cut.pt")
    with pytest.raises(InputError, match="9 tokens, 1 were given"):
        Graph.read(written(), tokens=["a"])
