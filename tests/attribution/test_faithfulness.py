"""The faithfulness card: exact where the model is linear, and able to fail everywhere."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from click.testing import CliRunner
from torch import nn

import circuit_tracer as ct
from circuit_tracer.card import Faithfulness
from circuit_tracer.cli import report
from circuit_tracer.cli.main import trace
from circuit_tracer.edges import EdgeRows, RowBlock
from circuit_tracer.models.adapter import Adapter
from circuit_tracer.patched import Hold, Patch
from circuit_tracer.replacement import ReplacementModel
from circuit_tracer.verify.circuits import alone, like_it, necessity, sufficiency
from circuit_tracer.verify.jacobian import jacobian_cosines
from circuit_tracer.verify.propagation import Propagation, edge_error, predicted
from circuit_tracer.verify.ranks import correlation, spearman
from circuit_tracer.verify.subject import Subject
from circuit_tracer.view.payload import encode

EXACT = 1e-12  # float64
PROMPT = "The opposite of small is"


class Copied(nn.Module):
    """An MLP that is its transcoder."""

    def __init__(self, weights):
        super().__init__()
        self.encoder, self.bias, self.decoder, self.out = (
            nn.Parameter(each)
            for each in (
                weights.encoder,
                weights.encoder_bias,
                weights.decoders[0],
                weights.output_bias,
            )
        )

    def forward(self, x):
        return torch.relu(x @ self.encoder.T + self.bias) @ self.decoder + self.out


def own_replacement():
    """A model whose MLPs are its transcoders: nothing is missed."""
    model = tiny.replacement("llama")
    for layer, block in enumerate(model.adapter.layers):
        block.mlp = Copied(model.transcoders.layer(layer)).requires_grad_(False)
    adapter = Adapter(model.adapter.model, "its own replacement", torch.float64)
    return ReplacementModel(adapter, model.tokenizer, model.transcoders)


def traced(model, **how):
    graph = ct.trace(tiny.PROMPT, model, **how)
    return graph, Subject.of(graph, model, how.get("targets"))


def some(graph, count=8):
    return graph.influence[: graph.index.n_features].argsort(descending=True)[:count]


SETS = [
    dict(),
    dict(activation="jump_relu", skip=True, read="ln2.hook_normalized"),
    dict(activation="topk", read="hook_resid_mid", write="mlp.hook_out"),
    dict(kind="clt", activation="relu"),
    dict(kind="clt", skip=True, read="hook_resid_mid"),
]


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "neox", "qwen3_moe"])
@pytest.mark.parametrize("given", SETS, ids=lambda given: "-".join(map(str, given.values())))
def test_edges_are_what_ablations_do_in_the_direct_mode(family, given):
    graph, subject = traced(tiny.replacement(family, **given))
    tolerance = 1e-10 if family == "qwen3_moe" else EXACT  # its router computes in float32
    assert edge_error(subject, some(graph)) < tolerance


@pytest.mark.parametrize("how", [dict(answer=[5, 6, 7]), dict(positions=[2, -1])])
def test_answers_and_several_positions_are_read_where_they_were(how):
    graph, subject = traced(tiny.replacement("gpt2"), **how)
    wanted = graph.edges.value[graph.index.first_target :]
    torch.testing.assert_close(subject.before.values[0], wanted, atol=EXACT, rtol=0)


@pytest.mark.parametrize("ignored", ["bos", "none"])
def test_the_clean_pass_read_as_changed_ones_are_gives_the_targets_values(ignored):
    targets = [" w9", ct.Difference(5, 6), ct.At(7, 2), (1, 3, 4)]
    model = tiny.replacement("gemma2", kind="clt")
    graph = ct.trace(tiny.PROMPT, model, targets, ignore_positions=ignored)
    subject = Subject.of(graph, model, targets)
    wanted = graph.edges.value[graph.index.first_target :]
    torch.testing.assert_close(subject.before.values[0], wanted, atol=EXACT, rtol=0)
    assert float(subject.before.kl) < EXACT


def test_paths_foretell_small_changes_where_mlps_are_their_transcoders():
    model = own_replacement()
    graph, subject = traced(model)
    rows, small = some(graph, 5), 1e-6
    said = predicted(subject, rows)[graph.index.first_target :].T
    assert not torch.allclose(said, predicted(subject, rows, False)[graph.index.first_target :].T)
    for number, row in enumerate(rows.tolist()):
        patch = subject.removal([row])
        for change in patch.pending.values():
            change *= small
        layer = int(graph.index.features[row, 0])
        hold = Hold(frozenset(range(layer + 1)), patterns=True, norms=True)
        moved = (subject.read(patch, hold).values - subject.before.values)[0] / small
        torch.testing.assert_close(moved, said[number], atol=1e-7, rtol=0)


def test_taking_nothing_away_changes_nothing():
    graph, subject = traced(tiny.replacement("gemma2", kind="clt"))
    rows = some(graph, 4)
    hold = Hold(frozenset(), patterns=True)
    patch = Patch(subject.model.adapter, subject.model.transcoders, [()] * 4)
    reading = subject.read(patch, hold)
    propagation = Propagation(subject, rows)
    propagation.add(0, rows, reading)
    assert propagation.steps() == ()
    assert all(sums.outside < EXACT for sums in propagation.sums.values())


def test_an_ablation_is_the_constrained_intervention():
    model = tiny.replacement("gemma2")
    graph, subject = traced(model)
    for row in some(graph, 3).tolist():
        layer, position, feature = graph.index.features[row].tolist()
        changes = {(layer, position, feature): ct.Scale(0)}
        logits = model.intervene(tiny.PROMPT, changes, "constrained").logits_after[-1]
        hold = Hold(frozenset(range(layer + 1)), patterns=True)
        chance = subject.read(subject.removal([row]), hold).probability
        wanted = logits.softmax(-1)[subject.answer.token_id]
        torch.testing.assert_close(chance[0], wanted, atol=EXACT, rtol=0)


@pytest.mark.parametrize("given", SETS[:4], ids=lambda given: "-".join(map(str, given.values())))
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_all_features_with_the_errors_are_the_model_itself(family, given):
    graph, subject = traced(tiny.replacement(family, **given))
    every = torch.arange(graph.index.n_features)
    values = alone(subject, every, errors=True).values
    torch.testing.assert_close(values, subject.before.values, atol=1e-11, rtol=0)
    assert not torch.allclose(alone(subject, every, errors=False).values, values)


def test_a_model_that_is_its_own_replacement_loses_nothing_without_errors():
    graph, subject = traced(own_replacement(), ignore_positions="none")
    every = torch.arange(graph.index.n_features)
    values = alone(subject, every, errors=False).values
    torch.testing.assert_close(values, subject.before.values, atol=1e-11, rtol=0)
    for layer in range(graph.index.n_layers):
        random, writes = jacobian_cosines(subject, layer)
        assert random == pytest.approx(1)
        assert writes is None if layer == 0 else writes == pytest.approx(1)
    assert sum(graph.scores.error_share_by_layer) < EXACT


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family_has_a_derivative_and_random_transcoders_miss_it(family):
    read = "hook_resid_mid" if family != "olmo2" else "mlp.hook_in"
    graph, subject = traced(tiny.replacement(family, read=read, skip=True))
    cosines = [jacobian_cosines(subject, layer)[0] for layer in range(graph.index.n_layers)]
    assert all(abs(cosine) < 0.5 for cosine in cosines)
    assert any(cosine != 0 for cosine in cosines)


def test_all_features_as_a_circuit_are_no_better_than_chance_and_keep_everything():
    graph, subject = traced(own_replacement())
    every = torch.arange(graph.index.n_features)
    for needed in necessity(subject, every):
        assert needed.random_after == pytest.approx([needed.after] * 5)
        assert not needed.ok
    for enough in sufficiency(subject, every):
        assert enough.share == pytest.approx(1)
        assert enough.random_share == pytest.approx(1)


def test_random_sets_are_as_large_in_every_layer():
    graph, subject = traced(tiny.replacement())
    rows = some(graph, 9)
    counts = graph.index.features[rows, 0].bincount(minlength=3)
    sets = like_it(subject, rows)
    assert all(
        torch.equal(graph.index.features[one, 0].bincount(minlength=3), counts) for one in sets
    )
    assert all(len(one.unique()) == 9 for one in sets)
    assert len({tuple(one.tolist()) for one in sets}) > 1


def test_spearman_by_hand():
    assert spearman(np.array([1.0, 2, 3, 4]), np.array([1.0, 4, 9, 16])) == pytest.approx(1)
    assert spearman(np.array([1.0, 2, 3]), np.array([3.0, 2, 1])) == pytest.approx(-1)
    assert spearman(np.array([1.0, 1, 2]), np.array([5.0, 6, 7])) == pytest.approx(math.sqrt(3) / 2)
    assert spearman(np.ones(3), np.arange(3.0)) == 0


def test_what_the_position_explains_counts_as_chance():
    groups = np.repeat(np.arange(4), 15)
    draw = np.random.default_rng(1)
    by_position = correlation("x", groups + draw.random(60), groups + draw.random(60), groups)
    assert by_position.value > 0.8
    assert by_position.low < by_position.null
    truly = correlation("x", range(60), range(60), groups)
    assert truly.low > truly.null


def shuffled(graph):
    """The same nodes with edges dealt out anew."""
    draw = torch.Generator().manual_seed(0)
    blocks = tuple(
        RowBlock(
            b.layer,
            b.position,
            b.rows,
            b.values[:, torch.randperm(b.values.shape[1], generator=draw)],
        )
        for b in graph.edges.blocks
    )
    edges = graph.edges
    terms = (edges.bias, edges.positional, edges.ignored, edges.value)
    return replace(graph, edges=EdgeRows(edges.index, blocks, *terms))


@pytest.fixture(scope="module")
def bundled():
    model = ct.load()
    graph = ct.trace(PROMPT, model)
    return model, graph, ct.faithfulness(graph, model)


def test_the_bundled_models_card(bundled):
    _, _, card = bundled
    assert card.edge_error < 1e-8
    ranked = card.correlations[0]
    assert ranked.low <= ranked.value <= ranked.high
    assert ranked.value > 0.6 and ranked.low > ranked.null
    first = card.steps[0]
    assert first.cosine > 0.6 and first.nmse < 0.8 and first.layers == 1
    assert all(0 <= step.outside <= 1 for step in card.steps)
    assert [one.ok for one in card.necessity] == [True, True]
    assert all(kept.share > 0.8 > kept.random_share for kept in card.sufficiency)
    assert card.verdict.startswith("Partly borne out: 7 of 8")
    numbers = [
        float(one)
        for one in json.dumps(card.to_plain()).replace(",", " ").split()
        if _is_number(one)
    ]
    assert all(math.isfinite(one) for one in numbers)


def _is_number(text):
    try:
        float(text)
    except ValueError:
        return False
    return True


def test_the_card_is_the_same_every_time(bundled):
    model, graph, card = bundled
    assert ct.faithfulness(graph, model) == card


def test_the_card_is_kept_in_the_file(bundled, tmp_path):
    _, graph, card = bundled
    graph.save(tmp_path / "plain.safetensors")
    assert ct.Graph.load(tmp_path / "plain.safetensors").faithfulness is None
    replace(graph, faithfulness=card).save(tmp_path / "verified.safetensors")
    assert ct.Graph.load(tmp_path / "verified.safetensors").faithfulness == card
    assert Faithfulness.from_plain(json.loads(json.dumps(card.to_plain()))) == card


def test_the_page_and_the_terminal_say_it(bundled):
    _, graph, card = bundled
    silent, circuit = graph.prune(), replace(graph, faithfulness=card).prune()
    assert silent.drawing().checks == ()
    checks = dict(circuit.drawing().checks)
    assert checks["verdict"] == card.verdict
    assert "published 0.72" in checks["Spearman, targets' values"]
    assert "frozen" in checks["known limits"]
    header = encode(circuit.drawing())
    assert b"published 0.72" in header and b"published 0.72" not in encode(silent.drawing())
    said = report.text(replace(graph, faithfulness=card), circuit)
    assert f"is it true? {card.verdict}" in said
    assert "is it true?" not in report.text(graph, silent)


def test_trace_verify_keeps_the_card(tmp_path):
    graph = tmp_path / "graph.safetensors"
    arguments = [PROMPT, "--verify", "-o", str(tmp_path / "page.html"), "--save", str(graph)]
    arguments += ["--target-difference", " large", " tiny"]
    done = CliRunner().invoke(trace, arguments)
    assert done.exit_code == 0, done.output
    kept = ct.Graph.load(graph).faithfulness
    assert f"is it true? {kept.verdict}" in done.output
    assert kept.edge_error < 1e-8


@pytest.mark.parametrize("change", [{"steps": 3}, {"edge_error": "x"}, {"other": 1}, None])
def test_a_damaged_card_is_a_damaged_file(bundled, tmp_path, change):
    _, graph, card = bundled
    plain = None if change is None else card.to_plain() | change
    with pytest.raises(ValueError, match="card cannot be read"):
        Faithfulness.from_plain(plain)


def test_a_shuffled_graph_is_found_out(bundled):
    model, graph, _ = bundled
    card = ct.faithfulness(shuffled(graph), model, max_ablations=30)
    assert card.edge_error > 0.5
    assert card.verdict.startswith("Not true: the edges are not what this model does")
    assert card.steps[0].cosine < 0.3


def test_random_transcoders_are_found_out(bundled):
    trained, _, _ = bundled
    sets = tiny.transcoders(layers=8, width=128, features=300, dtype=torch.float32)
    model = ReplacementModel(trained.adapter, trained.tokenizer, sets)
    card = ct.faithfulness(ct.trace(PROMPT, model), model, max_ablations=30)
    assert card.checks[0][1]  # the arithmetic is right all the same
    assert card.verdict.startswith("Not to be relied on")
    assert card.steps[1].nmse > 1
    assert card.sufficiency[0].share < 0.2
    assert abs(card.mean_jacobian) < 0.1


def test_few_ablations_give_no_correlation():
    model = tiny.replacement()
    graph = ct.trace(tiny.PROMPT, model)
    card = ct.faithfulness(graph, model, max_ablations=3)
    assert card.correlations == ()
    assert card.steps and str(card)


def test_progress_is_told_to_the_end():
    model, told = tiny.replacement(), []
    graph = ct.trace(tiny.PROMPT, model)
    ct.faithfulness(graph, model, max_ablations=9, progress=lambda *said: told.append(said))
    shares = [share for share, _ in told]
    assert shares == sorted(shares) and shares[-1] == 1


def test_graphs_of_something_else_are_refused(tmp_path):
    model = tiny.replacement()
    graph = ct.trace(tiny.PROMPT, model)
    other = ReplacementModel(model.adapter, model.tokenizer, tiny.transcoders(seed=8))
    with pytest.raises(ct.CircuitTracerError, match="does not fire in random transcoders"):
        ct.faithfulness(graph, other)
    with pytest.raises(ct.CircuitTracerError, match="has 3 layers and tiny llama has 2"):
        ct.faithfulness(graph, tiny.replacement(layers=2))
    with pytest.raises(ct.CircuitTracerError, match="has no features"):
        ct.faithfulness(ct.trace([2], model), model)
    with pytest.raises(ct.CircuitTracerError, match="at least 1"):
        ct.faithfulness(graph, model, max_ablations=0)


def test_a_saved_graph_says_what_its_differences_and_directions_are(tmp_path):
    model = tiny.replacement()
    mine = ct.Direction(model.adapter.unembedding.weight[7].detach(), "mine")
    given = [ct.Difference(5, 6), ct.At(mine, 3), (1, 2, 3)]
    ct.trace(tiny.PROMPT, model, given).save(tmp_path / "graph")
    graph = ct.Graph.load(tmp_path / "graph")
    assert ct.faithfulness(graph, model, max_ablations=9).edge_error < EXACT
    with pytest.raises(ct.CircuitTracerError, match="pass those of the trace"):
        ct.faithfulness(graph, model, targets=[ct.Difference(6, 5), *given[1:]])
    nameless = [replace(target, direction=None) for target in graph.targets]
    older = replace(graph, targets=tuple(nameless))
    with pytest.raises(ct.CircuitTracerError, match="the name alone: pass targets="):
        ct.faithfulness(older, model)
    assert ct.faithfulness(older, model, max_ablations=9, targets=given).edge_error < EXACT
