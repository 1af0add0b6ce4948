"""Known faults of the reference tool, one test each: what they would look like here.

Where a fault is held by a test that belongs elsewhere, `ELSEWHERE` names that test, and a test here
sees that it is still there.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import tracemalloc

import pytest
import tiny
import torch
from packaging.requirements import Requirement

import circuit_tracer as ct
from circuit_tracer.attribute import attribute
from circuit_tracer.targets import choose
from circuit_tracer.transcoders.base import LayerWeights, TranscoderSet
from circuit_tracer.transcoders.formats.opening import open_set
from circuit_tracer.transcoders.formats.writing import write_folder
from tests.house.repository import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ELSEWHERE = {
    "its own TopK files are rejected on load": (
        "loading/test_formats.py",
        "test_own_topk_files_of_the_reference_tool_are_read",
    ),
    "the last CLT layer of GemmaScope 2 is dropped": (
        "loading/test_formats.py",
        "test_listed_cross_layer_files_include_the_last_layer",
    ),
    "hooks stay on the model after an error, tracing": (
        "loading/test_models.py",
        "test_an_error_in_the_forward_pass_leaves_no_hook_behind",
    ),
    "hooks stay on the model after an error, intervening": (
        "attribution/test_intervene.py",
        "test_nothing_stays_on_the_model_even_after_an_error",
    ),
    "the viewer is blank offline": (
        "view/test_page.py",
        "test_nothing_is_fetched_and_nothing_complains",
    ),
    "a sort of all scores": ("graph/test_prune.py", "test_cutoff_is_what_a_sort_gives"),
}


@pytest.mark.parametrize("fault", ELSEWHERE)
def test_the_test_of_a_fault_is_where_it_was(fault):
    path, name = ELSEWHERE[fault]
    tree = ast.parse((ROOT / "tests" / path).read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_topk_from_disk_stays_topk(tmp_path):
    wanted = tiny.transcoders(activation="topk")
    write_folder(wanted, tmp_path / "set")
    found = open_set(tmp_path / "set")
    x = torch.randn(5, tiny.WIDTH, generator=torch.Generator().manual_seed(0)).double()
    for layer in range(tiny.LAYERS):
        assert found.layer(layer).activation.kind == "topk"
        assert found.layer(layer).activation.k == wanted.layer(layer).activation.k
        cells, values = found.encode(layer, x)
        as_made, made = wanted.encode(layer, x)
        assert torch.equal(cells, as_made) and torch.equal(values, made)
        assert (cells[:, 0].bincount() <= 6).all()


def test_skip_weights_of_cross_layer_sets_are_saved_and_loaded(tmp_path):
    wanted = tiny.transcoders(kind="clt", skip=True)
    write_folder(wanted, tmp_path / "set")
    found = open_set(tmp_path / "set")
    for layer in range(tiny.LAYERS):
        assert torch.equal(found.layer(layer).skip, wanted.layer(layer).skip)


def test_a_last_position_without_features_is_rebuilt_all_the_same():
    """A cross-layer set none of whose features fires on the last token."""
    model = tiny.replacement("llama", kind="clt")
    forward = model.run(tiny.PROMPT)
    sets = model.transcoders

    def silent(layer: int) -> LayerWeights:
        weights = sets.layer(layer)
        last, others = forward.mlp_inputs[layer][-1], forward.mlp_inputs[layer][1:-1]
        # Encoders see only what sets other tokens apart from the last one.
        encoder = weights.encoder - torch.outer(weights.encoder @ last, last) / (last @ last)
        assert (encoder @ others.T).any()
        return LayerWeights(
            encoder,
            torch.full_like(weights.encoder_bias, -1e-9),
            weights.decoders,
            weights.output_bias,
        )

    made = [silent(layer) for layer in range(tiny.LAYERS)]
    still = TranscoderSet("clt", sets.read, sets.write, tiny.LAYERS, made.__getitem__, "silent")
    graph = ct.trace(tiny.PROMPT, ct.ReplacementModel(model.adapter, model.tokenizer, still))
    positions = {node.position for node in graph.nodes if node.kind == "feature"}
    assert positions and len(tiny.PROMPT) - 1 not in positions
    assert graph.closure_error < 1e-12


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_prompt_of_one_token_is_traced(family):
    graph = ct.trace([5], tiny.replacement(family), ignore_positions="none")
    assert len(graph.tokens) == 1 and graph.closure_error < 1e-12
    assert ct.trace([5], tiny.replacement(family)).closure_error < 1e-12


def test_more_logits_than_the_vocabulary_has():
    graph = ct.trace(
        tiny.PROMPT, tiny.replacement("llama"), max_logits=10**6, logit_probability=1.0
    )
    assert 1 < len(graph.targets) <= tiny.VOCABULARY


def test_no_features_means_none():
    graph = ct.trace(tiny.PROMPT, tiny.replacement("llama"), max_features=0)
    assert graph.index.n_features > 0
    assert (graph.edges.rows >= graph.index.first_target).all()


def test_topk_keeps_no_negative_value():
    sets = tiny.transcoders(activation="topk")
    x = torch.randn(40, tiny.WIDTH, generator=torch.Generator().manual_seed(1)).double() * 3
    x[0] = -1e3 * sets.layer(0).encoder.sum(0)  # most pre-activations far below zero
    for layer in range(tiny.LAYERS):
        cells, values = sets.encode(layer, x)
        assert (values > 0).all()
    assert int((sets.encode(0, x)[0][:, 0] == 0).sum()) < 6


IDS = """
import sys
sys.path[:0] = {paths!r}
import tiny, circuit_tracer as ct
graph = ct.trace(tiny.PROMPT, tiny.replacement("llama"), targets=[ct.Difference("w9", "w12"), 7])
print([node.id for node in graph.nodes])
"""


def test_ids_are_the_same_in_every_process():
    code = IDS.format(paths=[str(ROOT), str(ROOT / "kernels"), str(ROOT / "tests")])
    said = [
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            encoding="utf-8",
            check=True,
            env={"PYTHONHASHSEED": seed, "PATH": "", "OMP_NUM_THREADS": "1"},
        ).stdout
        for seed in ("1", "2")
    ]
    assert said[0] == said[1] and "_" in said[0]


def test_pruning_makes_no_matrix_of_all_nodes(monkeypatch):
    """Neither tracing nor pruning asks for the dense matrix, nor sorts as many scores."""
    model = tiny.replacement("llama", features=60)
    graph = ct.trace(tiny.PROMPT * 4, model, max_features=30)
    squared = len(graph.nodes) ** 2
    largest = 0

    class Counting(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, list | tuple) else [result]:
                if isinstance(tensor, torch.Tensor):
                    largest = max(largest, tensor.numel())
            return result

    tracemalloc.start()
    with Counting():
        circuit = graph.prune()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(circuit.nodes) > 5
    assert largest < squared / 4 and peak < 8 * squared


def test_rows_are_kept_for_targets_over_their_cones_only():
    model = tiny.replacement("llama", features=60)
    forward = model.run(tiny.PROMPT * 4)
    local = model.localise(forward)
    rows = attribute(local, choose(model, forward), max_features=30)
    kept = sum(int((part != 0).sum()) for part in (rows.dense()[row] for row in rows.rows.tolist()))
    assert kept < len(rows.index) ** 2 / 10


def test_versions_of_transformers_are_not_pinned():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = map(Requirement, settings["project"]["dependencies"])
    allowed = next(one for one in wanted if one.name == "transformers").specifier
    for version in ("4.56.0", "4.57.3", "4.99.0", "5.0.0", "5.23.0"):
        assert allowed.contains(version), version
