"""The main job, on the model people meet first: exact in float32, and worth looking at."""

from __future__ import annotations

import pytest
import tiny
import torch
from frozen import Frozen

import circuit_tracer as ct

README_PROMPTS = {
    "The opposite of small is": " large",
    "Le contraire de petit est": " grand",
    "小的反义词是": "大",
    "The capital of the state containing Dallas is": " Austin",
}
CLOSES = 2e-5  # float32


@pytest.fixture(scope="module", params=["plt", "clt"])
def model(request):
    return ct.load(transcoders=request.param)


@pytest.fixture(scope="module", params=README_PROMPTS)
def traced(request, model):
    return request.param, ct.trace(request.param, model)


def test_the_answer_is_right_and_every_row_closes(traced):
    prompt, graph = traced
    assert graph.targets[0].label == README_PROMPTS[prompt]
    assert graph.closure_error < CLOSES
    assert int(graph.expanded.sum()) == graph.index.n_features + len(graph.targets)


def test_the_answer_takes_steps(traced):
    assert traced[1].scores.mean_path_length >= 2


def test_influence_ends_where_nothing_flows_in(traced):
    """Every row is expanded, so what reaches embeddings and errors is what the targets weigh."""
    _, graph = traced
    ends = graph.influence[graph.index.first_error : graph.index.first_target].sum()
    assert float(ends) == pytest.approx(float(graph.weights.sum()), rel=1e-6)


def test_scores_lie_between_nothing_and_all_and_pruning_loses_no_mass(traced):
    _, graph = traced
    circuit = graph.prune()
    for scores in (graph.scores, circuit.scores):
        parts = [scores.replacement, sum(scores.error_share_by_layer), scores.unexpanded_share]
        assert sum(parts) == pytest.approx(1, abs=1e-6)
        assert 0 <= scores.completeness <= 1
    assert circuit.scores.replacement <= graph.scores.replacement


@pytest.mark.parametrize("kind", ["plt", "clt"])
def test_edges_of_a_graph_are_the_effects_of_interventions(kind):
    """In float64: edges into the outputs and a hundred features, from a seventh of all sources."""
    model = ct.load(transcoders=kind, dtype="float64")
    tiny.exact(model.adapter.model)
    forward = model.run("小的反义词是")
    local = model.localise(forward)
    assert local.errors.dtype == torch.float64
    graph = ct.trace("小的反义词是", model)
    index, matrix = graph.index, graph.dense()
    frozen = Frozen(local)
    clean_sites, clean_final = frozen.reads({})
    sample = torch.arange(0, index.first_target, 7)
    rows = torch.arange(0, index.n_features, max(1, index.n_features // 100))
    cells = index.features[rows]
    columns = model.adapter.unembedding.weight[[t.token_id for t in graph.targets]]
    columns = columns - model.adapter.mean_unembedding[0]
    for source in sample.tolist():
        sites, final = frozen.reads(frozen.change_of(index, source, 1.0))
        moved = (sites - clean_sites)[cells[:, 0], cells[:, 1]]
        encoders = torch.stack(
            [model.transcoders.layer(layer).encoder[f].double() for layer, _, f in cells.tolist()]
        )
        torch.testing.assert_close(
            matrix[rows, source], (moved * encoders).sum(1), atol=1e-9, rtol=1e-9
        )
        torch.testing.assert_close(
            matrix[index.first_target :, source],
            columns @ (final - clean_final)[-1],
            atol=1e-9,
            rtol=1e-9,
        )


def test_a_graph_of_the_main_job_survives_its_file(traced, tmp_path):
    _, graph = traced
    graph.save(tmp_path / "graph.safetensors")
    again = ct.Graph.load(tmp_path / "graph.safetensors")
    assert torch.equal(again.dense(), graph.dense())
    assert again.closure_error == graph.closure_error and again.notes == graph.notes
